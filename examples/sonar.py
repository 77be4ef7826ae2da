"""Sonar targets, mines or rocks, with the settings of Gorman and Sejnowski (1988): batches of one sample, ten runs.

Their networks had two outputs, and errors below 0.2 counted as 0; here there is one output, and all errors count.
"""

import numpy as np
from common import load_or_skip, parse_arguments

from fastbp import BackpropClassifier
from fastbp.datasets import load_tabular

parse_arguments(__doc__)
data = load_or_skip(load_tabular, "sonar_angle")
PUBLISHED = {0: 73.1, 2: 85.7, 3: 87.6, 6: 89.3, 12: 90.4, 24: 89.2}
print("60-h-1, logistic, squared error, learning rate 2, 300 epochs, split by aspect angle: test accuracy in %")
print(f"{'h':>4}{'mean of 10 runs':>18}{'standard deviation':>20}{'published':>12}")
for h, published in PUBLISHED.items():
    scores = []
    for seed in range(10):
        generator = np.random.RandomState(seed)
        clf = BackpropClassifier(
            (h,) if h else (), "logistic", loss="squared_error", solver="sgd", momentum=0.0, learning_rate_init=2.0,
            batch_size=1, alpha=0.0, max_iter=300, tol=0.0, n_iter_no_change=np.inf, warm_start=True,
            random_state=generator, dtype="float64",
        ).initialize(60, np.unique(data.y))  # fmt: skip
        for weights in [*clf.coefs_, *clf.intercepts_]:
            weights[:] = generator.uniform(-0.3, 0.3, weights.shape)
        clf.fit(data.X_train, data.y_train)  # a warm start: training begins with these weights
        scores.append(100 * clf.score(data.X_test, data.y_test))
    print(f"{h:4}{np.mean(scores):18.1f}{np.std(scores):20.1f}{published:12.1f}")
