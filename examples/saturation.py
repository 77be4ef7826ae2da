"""Deep logistic networks stall: each layer takes a part of the gradient away (Maren 2020, secs. 6.3.2, 6.4).

The derivative of a logistic unit is at most a quarter, and next to nothing where the unit is saturated; the delta of
the first layer is a product of them. Units that are steeper at 0, or that do not saturate, pass more on.
"""

from common import digits, plot_file

from fastbp import BackpropClassifier
from fastbp.activations import Logistic
from fastbp.inspection import gradient_flow
from fastbp.plots import GradientFlowDisplay

plot = plot_file(__doc__)
X, X_test, y, y_test = digits()
print("64-(30, six times)-10, Adam, 30 epochs")
print(f"{'hidden units':<22}{'|delta| first/last layer':>26}{'saturated, 1st layer':>22}{'test accuracy':>15}")
for unit in ("logistic", Logistic(4.0), "tanh", "relu", "selu"):
    clf = BackpropClassifier((30,) * 6, unit, max_iter=30, random_state=0, learning_rate_init=3e-3)
    flow = gradient_flow(clf.initialize(X.shape[1], range(10)), X, y)
    if plot and unit == "logistic":
        GradientFlowDisplay.from_estimator(clf, X, y).figure_.savefig(plot)
    score = clf.fit(X, y).score(X_test, y_test)
    print(f"{unit!s:<22}{flow.ratio_to_last[0]:26.1e}{flow.saturated[0]:22.0%}{score:15.3f}")
