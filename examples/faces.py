"""Face recognition: forty people, ten pictures of each (Olivetti faces; scikit-learn downloads them)."""

from common import load_or_skip, parse_arguments
from sklearn.datasets import fetch_olivetti_faces
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropClassifier

parse_arguments(__doc__)
faces = load_or_skip(fetch_olivetti_faces)
X, X_test, y, y_test = train_test_split(
    faces.data, faces.target, test_size=0.3, stratify=faces.target, random_state=0
)  # fmt: skip
model = make_pipeline(StandardScaler(), BackpropClassifier((100,), alpha=1.0, max_iter=100, random_state=0)).fit(X, y)
print(f"4096-100-40, accuracy on three new pictures of each person: {model.score(X_test, y_test):.1%}")
