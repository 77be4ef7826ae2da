"""Vanishing gradients: in deep logistic networks the gradient shrinks from layer to layer (Maren 2020, 6.3.2, 6.4).

The derivative of a logistic unit is at most 1/4, and close to 0 if the unit is saturated; the delta of the first layer
has the derivatives of all layers as factors. The gradient shrinks less with a larger derivative at 0, and with
activations that do not saturate. Relu units are not saturated but inactive if their derivative is 0.
"""

from common import digits, parse_arguments

from fastbp import BackpropClassifier
from fastbp.activations import Logistic
from fastbp.inspection import gradient_flow
from fastbp.plots import GradientFlowDisplay

options = parse_arguments(__doc__, plot=True)
X, X_test, y, y_test = digits()
print("64-30-30-30-30-30-30-10: before training, |delta| and saturated (relu: inactive) units of the first layer;")
print("after 30 epochs of Adam, the test accuracy")
print(f"{'activation':<22}{'|delta| first/last layer':>26}{'saturated units':>17}{'test accuracy':>15}")
for activation in ("logistic", Logistic(4.0), "tanh", "relu", "selu"):
    clf = BackpropClassifier((30,) * 6, activation, max_iter=30, random_state=0, learning_rate_init=3e-3)
    flow = gradient_flow(clf.initialize(X.shape[1], range(10)), X, y)
    if options.plot and activation == "logistic":
        GradientFlowDisplay.from_estimator(clf, X, y).figure_.savefig(options.plot)
    score = clf.fit(X, y).score(X_test, y_test)
    print(f"{activation!s:<22}{flow.ratio_to_last[0]:26.1e}{flow.saturated[0]:17.0%}{score:15.3f}")
