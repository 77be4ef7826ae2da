"""A table with gaps and categories: `make_tabular_classifier` takes the frame as it is.

The data are scikit-learn's measurements of breast tumours. A fifth of the numbers are removed, and the texture of the
tumours is replaced by words, some of which are removed too. scikit-learn's estimators need a pipeline for that; its
gradient boosting takes the gaps, and the words if it is told so.
"""

import time

import numpy as np
import pandas as pd
from common import parse_arguments
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from fastbp import make_tabular_classifier

parse_arguments(__doc__)
frame, y = load_breast_cancer(return_X_y=True, as_frame=True)
rng = np.random.default_rng(0)
frame = frame.mask(rng.random(frame.shape) < 0.2)
words = pd.cut(frame["mean texture"], [0, 16, 20, 24, 100], labels=["smooth", "fine", "coarse", "rough"])
frame["mean texture"] = words.astype(object)
X, X_test, y, y_test = train_test_split(frame, y.map({0: "malignant", 1: "benign"}), stratify=y, random_state=0)
print(f"{len(X)} rows, {X.isna().to_numpy().mean():.0%} of the values missing")

boosting = HistGradientBoostingClassifier(categorical_features=["mean texture"], random_state=0)
estimators = {"fastbp": make_tabular_classifier(random_state=0), "gradient boosting": boosting}
print(f"{'':<20}{'accuracy':>10}{'log loss':>10}{'seconds':>9}")
for name, estimator in estimators.items():
    begin = time.perf_counter()
    estimator.fit(X, y)
    seconds = time.perf_counter() - begin
    loss = log_loss(y_test, estimator.predict_proba(X_test))
    print(f"{name:<20}{estimator.score(X_test, y_test):10.1%}{loss:10.3f}{seconds:9.2f}")

clf = estimators["fastbp"]
names = clf.transformer_.get_feature_names_out()
print(f"{X.shape[1]} columns become {len(names)} inputs; those of the words: {', '.join(names[-5:])}")
print(f"temperature of the {len(clf.members_)} networks: {clf.temperature_:.2f}")
