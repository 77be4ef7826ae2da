"""A stack of linear layers is one linear layer: depth needs a non-linear activation (Lopez Davila, sec. 3).

The task is one that a linear classifier does not solve well: whether a digit is even or odd.
"""

import numpy as np
from common import digits, parse_arguments
from sklearn.linear_model import LogisticRegression

from fastbp import BackpropClassifier

parse_arguments(__doc__)
X, X_test, y, y_test = digits()
y, y_test = y % 2, y_test % 2
kwargs = {"max_iter": 100, "random_state": 0, "dtype": "float64"}
deep = BackpropClassifier((40, 30, 20), "identity", **kwargs).fit(X, y)

# Multiply the layers: W = W1 W2 W3 W4, b = ((b1 W2 + b2) W3 + b3) W4 + b4.
W, b = np.eye(X.shape[1]), np.zeros(X.shape[1])
for coef, intercept in zip(deep.coefs_, deep.intercepts_, strict=True):
    W, b = W @ coef, b @ coef + intercept
flat = BackpropClassifier((), **kwargs).initialize(X.shape[1], [0, 1])
flat.coefs_, flat.intercepts_ = [W], [b]
difference = np.abs(deep.predict_proba(X_test) - flat.predict_proba(X_test)).max()
nonlinear = BackpropClassifier((40, 30, 20), "relu", **kwargs).fit(X, y)
regression = LogisticRegression(max_iter=1000).fit(X, y)

print("test accuracy")
print(f"four linear layers                    {deep.score(X_test, y_test):.3f}")
print(f"their product as one layer            {flat.score(X_test, y_test):.3f}", end="")
print(f"  (largest difference of a probability: {difference:.0e})")
print(f"scikit-learn's LogisticRegression     {regression.score(X_test, y_test):.3f}")
print(f"the same four layers with relu        {nonlinear.score(X_test, y_test):.3f}")
