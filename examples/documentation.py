"""Sparse text: tell from which part of scikit-learn a paragraph of its documentation comes.

TfidfVectorizer makes sparse input. With alpha=0 a training step touches only the weights of the words in its batch.
"""

import time

import numpy as np
from common import parse_arguments
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.utils import all_estimators

from fastbp import BackpropClassifier

parse_arguments(__doc__)
paragraphs = {}  # a paragraph that occurs more than once counts once
for _, estimator in all_estimators():
    for text in (estimator.__doc__ or "").split("\n\n"):
        if len(text.split()) >= 10:
            paragraphs.setdefault(" ".join(text.split()), estimator.__module__.split(".")[1])
modules = sorted(set(paragraphs.values()))
modules = [module for module in modules if list(paragraphs.values()).count(module) >= 100]
texts, labels = zip(*((text, module) for text, module in paragraphs.items() if module in modules), strict=True)
texts, new_texts, y, y_test = train_test_split(texts, labels, test_size=0.3, random_state=0, stratify=labels)
vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
X, X_test = vectorizer.fit_transform(texts), vectorizer.transform(new_texts)
print(
    f"{X.shape[0]} paragraphs, {len(modules)} modules, {X.shape[1]} words and pairs, {X.nnz / X.shape[0]:.0f} in each"
)
print(f"{'':>28}{'seconds':>9}{'accuracy':>10}")
for name, estimator in (
    ("BackpropClassifier, alpha=0", BackpropClassifier(alpha=0.0, max_iter=10, random_state=0)),
    ("BackpropClassifier", BackpropClassifier(max_iter=10, random_state=0)),
    ("MLPClassifier", MLPClassifier(max_iter=10, random_state=0)),
):
    clone(estimator).fit(X[:300], y[:300])  # loads compiled code
    begin = time.perf_counter()
    estimator.fit(X, y)
    print(f"{name:>28}{time.perf_counter() - begin:9.2f}{estimator.score(X_test, y_test):10.1%}")
