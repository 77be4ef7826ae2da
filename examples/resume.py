"""Training that resumes: calls of partial_fit, pickled in between, are one fit of as many epochs, bit for bit.

The solver's state, the generators of shuffling and dropout and the cosine schedule go on where they were, with another
number of threads, too. A warm start, as in scikit-learn, keeps the weights only.
"""

import pickle

import numpy as np
from common import digits, parse_arguments
from sklearn.base import clone
from sklearn.metrics import log_loss

from fastbp import BackpropClassifier

parse_arguments(__doc__)
X, X_test, y, y_test = digits()
classes = np.unique(y)


def resumed(model, n_jobs):
    """Train epoch by epoch; between two epochs the model is written to bytes and read again."""
    saved = pickle.dumps(model)
    for _ in range(model.max_iter):
        model = pickle.loads(saved).set_params(n_jobs=n_jobs)
        saved = pickle.dumps(model.partial_fit(X, y, classes=classes))
    return pickle.loads(saved)


def warm_started(model):
    """Train epoch by epoch with calls of fit."""
    n_epochs = model.max_iter
    model.set_params(warm_start=True, max_iter=1)
    for _ in range(n_epochs):
        model.fit(X, y)
    return model


print(f"{'seed':>4}{'':>30}{'log-loss on new data':>22}{'weights that differ':>21}")
for seed in range(3):
    model = BackpropClassifier(
        (100, 50), dropout=0.3, learning_rate="cosine", batch_size=32, max_iter=20, random_state=seed, n_jobs=1
    )
    whole = clone(model).fit(X, y)
    for name, clf in (
        ("one fit of 20 epochs", whole),
        ("20 partial_fits, 1 thread", resumed(model, n_jobs=1)),
        ("20 partial_fits, 2 threads", resumed(model, n_jobs=2)),
        ("20 fits with warm_start=True", warm_started(clone(model))),
    ):
        pairs = zip([*clf.coefs_, *clf.intercepts_], [*whole.coefs_, *whole.intercepts_], strict=True)
        n_different = sum((weights != expected).sum() for weights, expected in pairs)
        print(f"{seed:4}{name:>30}{log_loss(y_test, clf.predict_proba(X_test)):22.16f}{n_different:21}")
