"""Handwriting: the digits of MNIST, with networks of four sizes for which others have published results."""

import time

from common import load_or_skip, parse_arguments

from fastbp import BackpropClassifier
from fastbp.datasets import load_mnist

parse_arguments(__doc__)
X, y, X_test, y_test = load_or_skip(load_mnist)
X, X_test = (X / 255).astype("float32"), (X_test / 255).astype("float32")
NETWORKS = {
    (100,): ("96.59 %", "Nielsen, ch. 1: plain gradient descent, 30 epochs"),
    (300,): ("95.3 %", "LeCun et al. 1998: squared error"),
    (300, 100): ("96.95 %", "LeCun et al. 1998: squared error"),
    (800,): ("98.4 %", "Simard et al. 2003: cross entropy"),
}
print(f"{'hidden':>10}{'seconds':>9}{'accuracy':>10}{'published':>11}")
for hidden, (published, source) in NETWORKS.items():
    begin = time.perf_counter()
    clf = BackpropClassifier(
        hidden, batch_size=128, learning_rate="one_cycle", learning_rate_init=0.005, max_iter=10, alpha=0.0,
        n_iter_no_change=10, random_state=0,
    ).fit(X, y)  # fmt: skip
    seconds = time.perf_counter() - begin
    print(f"{'-'.join(map(str, hidden)):>10}{seconds:9.1f}{clf.score(X_test, y_test):10.2%}{published:>11}  {source}")
