"""A validation set: early stopping keeps the weights of the epoch with the lowest validation loss.

`fit` takes validation samples and records their loss after each epoch. With early_stopping=True and scoring="loss" it
stops when this loss does not decrease any more. The loss on other new data is lower then; the accuracy is not higher.
--plot shows the losses of the first seed without early stopping.
"""

import numpy as np
from common import digits, parse_arguments
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from fastbp import BackpropClassifier
from fastbp.plots import LossCurveDisplay

options = parse_arguments(__doc__, plot=True)
X, X_test, y, y_test = digits()
header = ("epochs", "lowest validation loss", "in epoch", "of the kept weights", "test loss", "accuracy")
print(f"{'seed':>4}{'early_stopping':>16}" + "".join(f"{name:>{len(name) + 2}}" for name in header))
for seed in range(5):
    X_train, X_val, y_train, y_val = train_test_split(
        X, y, train_size=300, test_size=300, random_state=seed, stratify=y
    )
    for early_stopping in (False, True):
        # One thread: the network is too small for more.
        clf = BackpropClassifier(
            (100, 100), batch_size=50, max_iter=400, early_stopping=early_stopping, scoring="loss",
            n_iter_no_change=10 if early_stopping else np.inf, random_state=seed, n_jobs=1,
        )  # fmt: skip
        clf.fit(X_train, y_train, X_val=X_val, y_val=y_val)
        curve = clf.validation_loss_curve_
        kept = clf.best_iter_ if early_stopping else clf.n_iter_
        test_loss, accuracy = log_loss(y_test, clf.predict_proba(X_test)), clf.score(X_test, y_test)
        print(
            f"{seed:4}{early_stopping!s:>16}{clf.n_iter_:8}{min(curve):24.4f}{np.argmin(curve) + 1:10}"
            f"{curve[kept - 1]:21.4f}{test_loss:11.4f}{accuracy:10.3f}"
        )
        if options.plot and seed == 0 and not early_stopping:
            display = LossCurveDisplay(loss=clf.loss_curve_, validation_loss=curve).plot()
            display.figure_.savefig(options.plot)
