"""A second task makes a network forget the first; how much rehearsal saves (Lopez Davila, sec. 6).

A network learns the digits 0 to 4, then 5 to 9. In the second part some of the first digits are mixed in.
"""

import numpy as np
from common import digits

from fastbp import BackpropClassifier

X, X_test, y, y_test = digits()
first, first_test = y < 5, y_test < 5
generator = np.random.default_rng(0)
print(f"{'rehearsed digits':>18}{'accuracy on 0 to 4':>20}{'on 5 to 9':>12}")
for share in (None, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0):
    clf = BackpropClassifier((50,), random_state=np.random.RandomState(0))
    for _ in range(60):
        clf.partial_fit(X[first], y[first], classes=range(10))
    if share is not None:
        old = generator.choice(np.flatnonzero(first), round(share * first.sum()), replace=False)
        rows = np.concatenate([np.flatnonzero(~first), old])
        for _ in range(60):
            clf.partial_fit(X[rows], y[rows])
    scores = [clf.score(X_test[part], y_test[part]) for part in (first_test, ~first_test)]
    name = "before the second" if share is None else f"{share:.0%}"
    print(f"{name:>18}{scores[0]:20.3f}{scores[1]:12.3f}")
