"""Quantile regression: one network, an output for each level, and the bands between the levels on new data.

The target is how far diabetes progresses within a year. The band from level 0.05 to level 0.95 should cover nine of ten
new patients. There are few to learn from, and the longer a network trains, the narrower is its band: it covers too few.
Early stopping ends where the pinball loss of other patients is lowest, but the band is still too narrow. Widened by
what patients set aside need, it covers enough (conformalized quantile regression, Romano, Patterson and Candès 2019).

For some patients the outputs of neighbouring levels cross. Sorted, their pinball loss is not higher. The figures are
means over ten splits of the patients; that of the coverage has its standard deviation.
"""

import numpy as np
from common import parse_arguments
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.metrics import mean_pinball_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from fastbp import BackpropRegressor

parse_arguments(__doc__)
levels = [0.05, 0.25, 0.5, 0.75, 0.95]
# One thread: the network is too small for more.
base = BackpropRegressor(loss="quantile", quantile=levels, n_jobs=1)
networks = {
    "100 epochs": {"max_iter": 100, "n_iter_no_change": np.inf},
    "1000 epochs": {"max_iter": 1000, "n_iter_no_change": np.inf},
    "early stopping": {"max_iter": 1000, "early_stopping": True, "scoring": "loss"},
}


def evaluate(y, outputs):
    """Return the coverage and the mean width of the widest band, the share of patients with a crossing, and losses."""
    ordered = np.sort(outputs, axis=1)
    low, high = ordered[:, 0], ordered[:, -1]
    crossing = (np.diff(outputs, axis=1) < 0).any(axis=1)
    losses = [
        np.mean([mean_pinball_loss(y, column, alpha=level) for column, level in zip(bands.T, levels, strict=True)])
        for bands in (outputs, ordered)
    ]
    return [((low <= y) & (y <= high)).mean(), (high - low).mean(), crossing.mean(), *losses]


X, y = load_diabetes(return_X_y=True)
y /= 100  # the initial weights suit targets of about this size
figures = {}
for seed in range(10):
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, random_state=seed)
    X_train, X_held, y_train, y_held = train_test_split(X_train, y_train, test_size=0.4, random_state=seed)
    scaler = StandardScaler().fit(X_train)
    X_train, X_held, X_test = map(scaler.transform, (X_train, X_held, X_test))
    half = len(y_held) // 2  # one for early stopping, one to widen the band
    same = np.tile(np.quantile(y_train, levels), (len(y_test), 1))
    figures.setdefault("the same for all", []).append(evaluate(y_test, same))
    for name, parameters in networks.items():
        reg = clone(base).set_params(random_state=seed, **parameters)
        watched = {"X_val": X_held[:half], "y_val": y_held[:half]} if reg.early_stopping else {}
        reg.fit(X_train, y_train, **watched)
        figures.setdefault(name, []).append(evaluate(y_test, reg.predict(X_test)))
    # The last network is that of early stopping. How far outside of its band a patient is; negative inside.
    bands = np.sort(reg.predict(X_held[half:]), axis=1)
    outside = np.maximum(bands[:, 0] - y_held[half:], y_held[half:] - bands[:, -1])
    margin = np.sort(outside)[int(np.ceil(0.9 * (len(outside) + 1))) - 1]
    widened = np.sort(reg.predict(X_test), axis=1)
    widened[:, [0, -1]] += -margin, margin
    figures.setdefault("early stopping, widened", []).append(evaluate(y_test, widened))

print(f"{'':>24}{'coverage':>16}{'width':>8}{'crossing':>10}{'pinball loss':>14}{'sorted':>8}")
for name, rows in figures.items():
    coverage, width, crossing, loss, ordered = np.mean(rows, axis=0)
    cell = f"{coverage:.3f} ± {np.std(rows, axis=0, ddof=1)[0]:.3f}"
    print(f"{name:>24}{cell:>16}{100 * width:8.1f}{crossing:10.1%}{100 * loss:14.2f}{100 * ordered:8.2f}")
