"""Monte Carlo in compiled code: what a measurement says of a parameter, by a network that has only seen simulations.

A network learns to tell pairs of a parameter and its measurement from pairs that do not belong together. Its odds are
the ratio of likelihood and evidence, with which Metropolis' random walk draws the parameter, given a measurement
(Hermans, Begy and Louppe, arXiv:1903.04057). Each step needs the prediction of the last one, in the compiled loop. The
exact answer is known here, and printed beside it.
"""

import math
import time

import numpy as np
from common import parse_arguments
from numba import njit

from fastbp import BackpropClassifier

parse_arguments(__doc__)
ERROR = 0.5  # of a measurement; the parameter itself has the prior N(0, 1)
random_state = np.random.RandomState(0)
theta = random_state.randn(50_000)
measured = theta + ERROR * random_state.randn(len(theta))
pairs = np.stack([theta, measured], axis=1)
others = np.stack([theta, random_state.permutation(measured)], axis=1)
X, y = np.concatenate([pairs, others]), np.repeat([1, 0], len(theta))
clf = BackpropClassifier(
    (32, 32), "tanh", learning_rate="one_cycle", learning_rate_init=0.01, max_iter=20, random_state=0
).fit(X, y)  # fmt: skip


@njit
def walk(predict, measured, steps, uniforms):
    """Draw the parameter by a random walk: `predict(pair, out)` puts the probabilities of both classes into `out`."""
    draws, pair, out = np.empty(len(steps)), np.array([0.0, measured]), np.empty(2)
    theta, log_density = 0.0, -math.inf
    for i in range(len(steps)):
        pair[0] = theta + steps[i]
        predict(pair, out)
        proposed = math.log(out[1]) - math.log(out[0]) - pair[0] ** 2 / 2
        if math.log(uniforms[i]) < proposed - log_density:
            theta, log_density = pair[0], proposed
        draws[i] = theta
    return draws


def predict_in_python(pair, out):
    """Do what the compiled predictor does, for one pair."""
    out[:] = clf.predict_proba(pair[None])[0]


predictor = clf.compiled_predictor()
steps, uniforms = random_state.randn(300_000), 1 - random_state.rand(300_000)
print(f"{'measured':>8}{'exact mean and deviation':>26}{'those of 300,000 draws':>26}")
for measured in (-1.0, 0.0, 2.0):
    draws = walk(predictor, measured, steps, uniforms)[1000:]
    mean, deviation = measured / (1 + ERROR**2), ERROR / math.sqrt(1 + ERROR**2)
    print(f"{measured:8.1f}{mean:13.3f}{deviation:13.3f}{draws.mean():13.3f}{draws.std():13.3f}")

n = 20_000
begin = time.perf_counter()
compiled = walk(predictor, 1.0, steps[:n], uniforms[:n])
middle = time.perf_counter()
interpreted = walk.py_func(predict_in_python, 1.0, steps[:n], uniforms[:n])
end = time.perf_counter()
print(f"steps in the same walk that differ in Python: {(compiled != interpreted).sum()}")
print(f"microseconds for a step: {1e6 * (middle - begin) / n:.2f} compiled, {1e6 * (end - middle) / n:.1f} in Python")
