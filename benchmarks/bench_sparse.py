"""Training on sparse text, against scikit-learn: seconds per epoch, and peak memory.

`python benchmarks/bench_sparse.py`

The first set is made: 20,000 texts of 100 words out of 100,000, whose frequencies follow Zipf's law, in 20 classes. The
second is scikit-learn's 20 newsgroups, which it downloads at its first use. Both libraries train the same network in
float32, in turns. An epoch is what lies between two of their progress lines; for fastbp the fastest of some, for
scikit-learn the only one of two. Memory is the peak of what a fit of one epoch allocates, as `tracemalloc` sees it.
"""

import argparse
import contextlib
import io
import socket
import time
import tracemalloc
import warnings

import numpy as np
from common import all_threads_limited
from numba import get_num_threads
from scipy.sparse import csr_matrix
from sklearn.datasets import fetch_20newsgroups_vectorized
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from fastbp import BackpropClassifier

LIBRARIES = {"fastbp": BackpropClassifier, "scikit-learn": MLPClassifier}
EPOCHS = {"fastbp": 8, "scikit-learn": 2}  # one of scikit-learn's takes half a minute
DOWNLOAD_SECONDS = 30


def made_text(n_samples=20_000, n_words=100_000, per_row=100, n_classes=20):
    """Return bags of words whose frequencies are those of natural language, and random classes."""
    rng = np.random.default_rng(0)
    share = np.cumsum(1 / np.arange(1, n_words + 1))
    names = rng.permutation(n_words).astype(np.int32)
    rows = []
    for _ in range(n_samples):
        drawn = names[np.searchsorted(share, share[-1] * rng.random(3 * per_row))]
        rows.append(np.sort(rng.permutation(np.unique(drawn))[:per_row]))
    indices, ends = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
    values = (0.2 * rng.random(len(indices))).astype(np.float32)
    X = csr_matrix((values, indices, ends.astype(np.int32)), shape=(n_samples, n_words))
    return X, rng.integers(0, n_classes, n_samples)


def newsgroups():
    """Return the training part of 20 newsgroups, in float32; raise OSError where it cannot be had."""
    socket.setdefaulttimeout(DOWNLOAD_SECONDS)
    X, y = fetch_20newsgroups_vectorized(subset="train", return_X_y=True)
    return csr_matrix(X, dtype=np.float32), y


SETS = {"made text": made_text, "20 newsgroups": newsgroups}


class Clock(io.StringIO):
    """A stream that notes when the progress line of each epoch is written."""

    def __init__(self):
        super().__init__()
        self.times = []

    def write(self, text):
        """Note the time of a progress line."""
        if text.startswith("Iteration"):
            self.times.append(time.perf_counter())
        return len(text)


def fit(library, X, y, **kwargs):
    """Train; return the seconds of the fastest epoch after the first, and the model."""
    clock = Clock()
    model = LIBRARIES[library](verbose=True, random_state=0, tol=0, **kwargs)
    with contextlib.redirect_stdout(clock):
        model.fit(X, y)
    return np.diff(clock.times).min(initial=np.inf), model


def memory_of(library, X, y, alpha):
    """Return the megabytes that a fit of one epoch takes beside the data, at its peak."""
    tracemalloc.start()
    fit(library, X, y, max_iter=1, alpha=alpha)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main():
    """Print a table for each set that can be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, help="only this one")
    parser.add_argument("--alpha", type=float, help="only this one")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in [args.set] if args.set else SETS:
        try:
            X, y = SETS[name]()
        except OSError as error:
            print(f"{name}: left out, as scikit-learn cannot download it here ({error}).")
            continue
        print(f"{name}: {X.shape[0]} x {X.shape[1]}, {X.nnz / X.shape[0]:.0f} entries a row, {len(set(y))} classes")
        print("   alpha  threads   fastbp s/epoch   scikit-learn s/epoch   ratio   loss   loss of scikit-learn")
        for alpha in [1e-4, 0.0] if args.alpha is None else [args.alpha]:
            fit("fastbp", X, y, max_iter=1, alpha=alpha)  # compiles
            for threads in sorted({1, get_num_threads()}):
                seconds, losses = {}, {}
                with all_threads_limited(threads):
                    for library, n_epochs in EPOCHS.items():
                        kwargs = {"n_jobs": 1} if threads == 1 and library == "fastbp" else {}
                        seconds[library], model = fit(library, X, y, max_iter=n_epochs, alpha=alpha, **kwargs)
                        losses[library] = model.loss_curve_[1]
                ours, theirs = seconds.values()
                print(
                    f"{alpha:8g} {threads:8d} {ours:16.3f} {theirs:22.2f} {theirs / ours:7.1f} {losses['fastbp']:8.5f}"
                    f"{losses['scikit-learn']:10.5f}", flush=True,
                )  # fmt: skip
            megabytes = {library: memory_of(library, X, y, alpha) for library in LIBRARIES}
            print(f"{alpha:8g}   peak memory:", ", ".join(f"{key} {mb:.0f} MB" for key, mb in megabytes.items()))


if __name__ == "__main__":
    main()
