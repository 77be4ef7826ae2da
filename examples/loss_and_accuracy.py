"""The loss on new data can increase while the accuracy does not decrease.

As training goes on, the predicted probabilities approach 0 and 1, also for the few samples that are misclassified.
"""

import numpy as np
from common import digits, parse_arguments

from fastbp import BackpropClassifier
from fastbp.plots import LossCurveDisplay

options = parse_arguments(__doc__, plot=True)
X, X_test, y, y_test = digits()
X, y = X[:300], y[:300]
# One thread: the network is too small for more.
clf = BackpropClassifier((100, 100), alpha=0.0, batch_size=50, random_state=0, n_jobs=1)
test_losses, test_accuracies = [], []
print(f"{'epoch':>6}{'training loss':>15}{'test loss':>12}{'test accuracy':>15}")
for epoch in range(1, 401):
    clf.partial_fit(X, y, classes=range(10))
    probabilities = clf.predict_proba(X_test)
    test_losses.append(-np.log(probabilities[np.arange(len(y_test)), y_test]).mean())
    test_accuracies.append((probabilities.argmax(axis=1) == y_test).mean())
    if epoch in (1, 5, 10, 20, 50, 100, 200, 400):
        print(f"{epoch:6}{clf.loss_:15.4f}{test_losses[-1]:12.4f}{test_accuracies[-1]:15.3f}")
if options.plot:
    display = LossCurveDisplay(
        loss=clf.loss_curve_, validation_loss=test_losses, validation_score=test_accuracies, score_name="Accuracy"
    ).plot()
    display.figure_.savefig(options.plot)
