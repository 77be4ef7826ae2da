"""A steeper logistic unit learns faster: its slope is a factor of the gradient (Maren 2020, after Eq. 6.30).

This holds up to a limit: units that are too steep saturate, and their derivative is close to 0 almost everywhere.
"""

from common import digits, parse_arguments

from fastbp import BackpropClassifier
from fastbp.activations import Logistic

parse_arguments(__doc__)
X, X_test, y, y_test = digits()
print("64-30-10, gradient descent with learning rate 0.1, squared error, the same initial weights for all slopes")
print(f"{'slope':>6}{'loss after 5 epochs':>22}{'after 50':>12}{'test accuracy':>16}")
for slope in (0.25, 0.5, 1, 2, 4, 16, 64):
    unit = Logistic(slope)
    clf = BackpropClassifier(
        (30,), unit, loss="squared_error", output_activation=unit, solver="sgd", momentum=0.0, batch_size=10,
        learning_rate_init=0.1, max_iter=50, tol=0.0, n_iter_no_change=50, alpha=0.0, random_state=0,
    ).fit(X, y)  # fmt: skip
    loss = clf.loss_curve_
    print(f"{slope:6}{loss[4]:22.4f}{loss[-1]:12.4f}{clf.score(X_test, y_test):16.3f}")
