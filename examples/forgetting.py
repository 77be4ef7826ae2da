"""Catastrophic forgetting: learning a second task makes a network forget the first (Lopez Davila, sec. 6).

A network learns the digits 0 to 4, then the digits 5 to 9. With rehearsal, the training data of the second task
includes a share of the samples of the first.
"""

import copy

import numpy as np
from common import digits, parse_arguments

from fastbp import BackpropClassifier

parse_arguments(__doc__)
X, X_test, y, y_test = digits()
first, first_test = y < 5, y_test < 5


def print_accuracy(name, clf):
    """Print the accuracy on the test samples of each task."""
    scores = [clf.score(X_test[part], y_test[part]) for part in (first_test, ~first_test)]
    print(f"{name:>24}{scores[0]:20.3f}{scores[1]:20.3f}")


# One thread: the network is too small for more.
trained_on_first = BackpropClassifier((50,), random_state=0, n_jobs=1)
for _ in range(60):
    trained_on_first.partial_fit(X[first], y[first], classes=range(10))

print(f"{'rehearsed samples':>24}{'accuracy on 0 to 4':>20}{'accuracy on 5 to 9':>20}")
print_accuracy("before the second task", trained_on_first)
generator = np.random.default_rng(0)
for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0):
    clf = copy.deepcopy(trained_on_first)
    rehearsed = generator.choice(np.flatnonzero(first), round(share * first.sum()), replace=False)
    rows = np.concatenate([np.flatnonzero(~first), rehearsed])
    for _ in range(60):
        clf.partial_fit(X[rows], y[rows])
    print_accuracy(f"{share:.0%}", clf)
