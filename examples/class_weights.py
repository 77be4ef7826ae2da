"""Class imbalance: class_weight="balanced" finds more of a rare class, and pays for it with false alarms.

The rare class is the tenth of the diabetes patients whose disease progressed most within a year. The figures are means
of ten five-fold cross-validations, each with another shuffle of the patients, and their standard deviations.
"""

import numpy as np
from common import parse_arguments
from sklearn.datasets import load_diabetes
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_score, recall_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropClassifier

parse_arguments(__doc__)
X, progression = load_diabetes(return_X_y=True)
y = (progression > np.quantile(progression, 0.9)).astype(int)
metrics = {
    "balanced accuracy": balanced_accuracy_score,
    "recall": recall_score,
    "precision": lambda y, predicted: precision_score(y, predicted, zero_division=0),
    "accuracy": accuracy_score,
}
print(f"{len(y)} patients, {y.sum()} of the rare class; always the other class: accuracy {1 - y.mean():.3f}")
print(f"{'class_weight':>12}" + "".join(f"{name:>20}" for name in metrics))
for class_weight in (None, "balanced"):
    scores = []
    for seed in range(10):
        # One thread: the network is too small for more.
        clf = BackpropClassifier(class_weight=class_weight, max_iter=100, random_state=seed, n_jobs=1)
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        predicted = cross_val_predict(make_pipeline(StandardScaler(), clf), X, y, cv=folds)
        scores.append([metric(y, predicted) for metric in metrics.values()])
    cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(np.mean(scores, 0), np.std(scores, 0, ddof=1), strict=True)]
    print(f"{class_weight!s:>12}" + "".join(f"{cell:>20}" for cell in cells))
