"""A steeper logistic unit learns faster: the gradient has the slope as a factor (Maren 2020, after Eq. 6.30).

Up to a point: units that are too steep saturate, and their derivative is 0 nearly everywhere.
"""

from common import digits

from fastbp import BackpropClassifier
from fastbp.activations import Logistic

X, X_test, y, y_test = digits()
print("64-30-10, gradient descent with a rate of 0.1, squared error; the same weights to begin with")
print(f"{'slope':>6}{'loss after 5 epochs':>22}{'after 50':>12}{'test accuracy':>16}")
for slope in (0.25, 0.5, 1, 2, 4, 16, 64):
    unit = Logistic(slope)
    clf = BackpropClassifier(
        (30,), unit, loss="squared_error", output_activation=unit, solver="sgd", momentum=0.0, batch_size=10,
        learning_rate_init=0.1, max_iter=50, tol=0.0, n_iter_no_change=50, alpha=0.0, random_state=0,
    ).fit(X, y)  # fmt: skip
    loss = clf.loss_curve_
    print(f"{slope:6}{loss[4]:22.4f}{loss[-1]:12.4f}{clf.score(X_test, y_test):16.3f}")
