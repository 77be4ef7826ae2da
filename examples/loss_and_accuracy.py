"""Loss and accuracy are two things: the loss on new data gets worse while the accuracy does not.

A network that goes on training becomes ever surer of what it says, of its few mistakes too.
"""

import numpy as np
from common import digits, plot_file
from sklearn.metrics import log_loss

from fastbp import BackpropClassifier
from fastbp.plots import LossCurveDisplay

plot = plot_file(__doc__)
X, X_test, y, y_test = digits()
X, y = X[:300], y[:300]
clf = BackpropClassifier((100, 100), alpha=0.0, max_iter=400, batch_size=50)
# A generator: with a number each call of partial_fit would shuffle alike.
clf.set_params(random_state=np.random.RandomState(0))
if plot:
    LossCurveDisplay.from_estimator(clf, X, y, X_val=X_test, y_val=y_test).figure_.savefig(plot)

print(f"{'epoch':>6}{'training loss':>15}{'test loss':>12}{'test accuracy':>15}")
for epoch in range(1, clf.max_iter + 1):
    clf.partial_fit(X, y, classes=range(10))
    if epoch in (1, 5, 10, 20, 50, 100, 200, 400):
        test_loss = log_loss(y_test, clf.predict_proba(X_test))
        print(f"{epoch:6}{clf.loss_:15.4f}{test_loss:12.4f}{clf.score(X_test, y_test):15.3f}")
