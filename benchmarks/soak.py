"""Half an hour of mixed work in several threads: errors, wrong results, and leaks of memory, threads, files and caches.

Run: ``python benchmarks/soak.py [--minutes 30] [--seed 0] [--threads 4]``

Each thread takes one random case after the other: classifier or regressor, targets, loss, solver, activation, types,
dense or sparse input, shapes, number of threads. It fits the estimator, and uses it in a random order: it predicts,
scores, continues training, pickles, saves and loads, clones, exports to ONNX, and calls the compiled predictor, from
compiled code and as C does. Copies must have the same bits. Meanwhile one thread fits a shared estimator again and
again, on sets of 20 and of 600 features, and two predict with it: they get the bits of one of its models, or hear that
the number of features is another. No warning is expected but that of convergence. What needs safetensors or onnx is
left out where they are not installed.

The threads work in rounds of some seconds. Then all of them end; one case of the round is repeated, alone, and must
have the same bits; and the process is measured at rest. The first rounds, in which everything is compiled or loaded, do
not count. Reported is the growth per hour, with its 99 % confidence interval, of

- the resident memory while the threads work: the median of each round, of measurements each second;
- the resident memory at rest, after the C library has given back what it can;
- the memory that is allocated at rest, as the C library counts it (with glibc);
- the blocks that Python's own allocator has given out.

The first two contain what is free, too, where it is in pieces: threads that allocate arrays of random sizes leave
holes, whose number grows for some minutes. The others do not. The growth is the median of the slopes between all pairs
of rounds (Theil and Sen). It is a leak if its interval is above zero, and the growth in all above its bound (`BOUNDS`);
the growth within each half of the rounds, too, would have to be above it in all that time: one step, as where a rare
kernel is compiled late, is in one half only. The numbers of threads and of open files, and the sizes of fastbp's own
caches, must not grow at all. The exit code is 1 after a leak or any other fault.

``--case`` repeats one case alone: the report of a fault has its numbers.
"""

import argparse
import copy
import ctypes
import faulthandler
import gc
import hashlib
import itertools
import os
import pickle
import statistics
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher
from scipy.sparse import csr_array
from scipy.stats import theilslopes
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import ACTIVATIONS, Gaussian, Logistic, PiecewiseLinear, Threshold

ROUND = 5.0  # seconds
WARM_ROUNDS = 6
HANG = 300  # seconds after which a round hangs
MB = 2**20
# What growth in all is called a leak, in MB or blocks, if it is above the noise. Holes take up to 100 MB in the first
# minutes, while what is allocated stays the same.
BOUNDS = {"resident, at work": 128.0, "resident, at rest": 128.0, "allocated, at rest": 4.0, "Python's blocks": 2e4}

PROBLEMS = {
    "two classes": (BackpropClassifier, {"class_weight": {0: 1.0, 1: 2.0}}),
    "several classes": (BackpropClassifier, {}),
    "names of classes": (BackpropClassifier, {"label_smoothing": 0.1}),
    "several classes, squared error": (BackpropClassifier, {"loss": "squared_error"}),
    "multilabel": (BackpropClassifier, {}),
    "a number": (BackpropRegressor, {}),
    "three numbers": (BackpropRegressor, {}),
    "counts": (BackpropRegressor, {"loss": "poisson"}),
    "a number, absolute error": (BackpropRegressor, {"loss": "absolute_error"}),
    "three numbers, huber": (BackpropRegressor, {"loss": "huber"}),
    "quantiles": (BackpropRegressor, {"loss": "quantile", "quantile": [0.1, 0.5, 0.9]}),
}
SOLVERS = {
    "adam": {},
    "adam, dropout": {"dropout": 0.2},
    "adamw": {"solver": "adamw", "weight_decay": 0.01, "alpha": 0.0},
    "sgd": {"solver": "sgd", "max_grad_norm": 1.0},
    "sgd, one_cycle": {
        "solver": "sgd",
        "max_grad_norm": 1.0,
        "learning_rate": "one_cycle",
        "nesterovs_momentum": False,
    },
    "lbfgs": {"solver": "lbfgs"},
}
CHOICES = {
    "problem": list(PROBLEMS),
    "solver": list(SOLVERS),
    "activation": [
        *(name for name in ACTIVATIONS if name != "threshold"), Threshold("logistic"), Logistic(2.0),
        Gaussian(0.5, 2.0), PiecewiseLinear(-2.0, 1.0),
    ],
    "numbers": ["float32", "float64", "uint8", "int64"],
    "dtype": ["auto", "float32", "float64"],
    "input": ["dense", "mostly zero", "Fortran", "sparse"],
    "size": [*["usual"] * 6, "single samples", "many samples", "large"],
    "early_stopping": [False, False, False, True],
    "weighted": [False, False, True],
    "n_jobs": [None, 1, 2],
}  # fmt: skip
# All combinations of these come first, so that what they need is compiled.
FIRST = [("numbers", "dtype", "input", "size"), ("dtype", "input", "size", "solver"), ("dtype", "activation"),
         ("dtype", "problem", "early_stopping")]  # fmt: skip
# Entries of a cache for combinations that come later: a leak has one for each of thousands of operations.
LATE = 10


# --- the cases ---


class Case:
    """An estimator that is not fitted, and its data, all drawn from one seed.

    Parameters
    ----------
    numbers : tuple of int
        The seed.
    chosen : dict
        Entries of `CHOICES` that are not drawn. With any, the estimator is used in all ways, else in some.
    """

    def __init__(self, numbers, chosen):
        self.rng = rng = np.random.default_rng(numbers)
        options = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()} | chosen
        self.problem, size = options["problem"], options["size"]
        cls, parameters = PROBLEMS[self.problem]
        parameters = parameters | SOLVERS[options["solver"]]
        early_stopping = options["early_stopping"]
        self.can_continue = options["solver"] != "lbfgs" and not early_stopping
        n, n_features, hidden = self._shape(size)
        self.estimator = cls(
            hidden_layer_sizes=hidden, activation=options["activation"], dtype=options["dtype"],
            batch_size=1 if size == "single samples" else int(rng.integers(8, n // 2)), n_jobs=options["n_jobs"],
            early_stopping=early_stopping, validation_fraction=0.3, max_iter=int(rng.integers(1, 5)),
            random_state=int(rng.integers(2**31)), **parameters,
        )  # fmt: skip
        X = rng.standard_normal((n, n_features)) / 2
        if options["numbers"] in ("uint8", "int64"):
            X = np.abs(2 * X)
        if options["input"] in ("mostly zero", "sparse"):
            X *= rng.random(X.shape) < 0.1
        X = X.astype(options["numbers"])
        self.probe = X[: rng.integers(1, 100)]
        self.X = {"sparse": csr_array, "Fortran": np.asfortranarray}.get(options["input"], np.asarray)(X)
        self.y = self._targets(n)
        self.weight = rng.random(n) + 0.1 if options["weighted"] else None
        uses = rng.permutation(list(USES))
        self.uses = uses if chosen else uses[: rng.integers(2, len(uses))]

    def _shape(self, size):
        """Return the numbers of samples and features, and the units of the hidden layers."""
        rng = self.rng
        if size == "large":  # so that threads share a batch, and parameters are prefetched
            return 400, 400, (600,)
        if size == "many samples":  # so that threads share a prediction, and zeros are looked for
            return 2500, 300, (50,)
        limits = [(40, 1500), (1, 300), *[(1, 150)] * int(rng.integers(4))]
        n, n_features, *hidden = (round(np.exp(rng.uniform(*np.log(pair)))) for pair in limits)
        if size == "single samples":
            return min(n, 300), min(n_features, 30), (8,)
        return n, n_features, tuple(hidden)

    def _targets(self, n):
        rng = self.rng
        if self.problem == "two classes":
            return np.arange(n) % 2
        if self.problem == "names of classes":
            return np.array(["north", "east", "south", "west"])[np.arange(n) % 4]
        if self.problem.startswith("several classes"):
            return np.arange(n) % rng.integers(3, 12)
        if self.problem == "multilabel":
            return (rng.random((n, 3)) < 0.5).astype(int)
        if self.problem == "counts":
            return rng.poisson(1.0, n)
        return rng.standard_normal((n, 3) if "three" in self.problem else n)

    def run(self, path, counts=None):
        """Fit and use the estimator; return a digest of all results.

        Parameters
        ----------
        path : path-like
            A file that may be written.
        counts : Counter, default=None
            Counts what was done.
        """
        model = self.estimator.fit(self.X, self.y, self.weight)
        self.fitted = results = self.digest_of(model)
        for name in self.uses:
            USES[name](self, model, path)
            results += self.digest_of(model)
        if counts is not None:
            counts.update(["fit", *self.uses])
        return results

    def digest_of(self, model):
        """Return a digest of the weights and of some predictions."""
        return digest(*model.coefs_, *model.intercepts_, outputs(model, self.probe))


def outputs(model, X):
    return model.predict_proba(X) if is_classifier(model) else model.predict(X)


def digest(*arrays):
    """Return what differs where types, shapes or bits of arrays do."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(f"{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array))
    return state.hexdigest()


def check(is_right, fault):
    if not is_right:
        raise AssertionError(fault)


# --- what is done with a fitted estimator ---


def predict(case, model, path):
    P, labels = outputs(model, case.X), model.predict(case.X)
    check(len(P) == len(labels) == case.X.shape[0] and np.isfinite(P).all(), "outputs are not finite")
    if is_classifier(model) and case.problem != "multilabel":
        check(np.allclose(P.sum(axis=1), 1, atol=1e-5), "probabilities do not sum to 1")
    if is_classifier(model) and case.problem != "multilabel" and model.loss == "log_loss":
        check((labels == model.classes_[P.argmax(axis=1)]).all(), "a label is not the most probable one")


def score(case, model, path):
    check(np.isfinite(model.score(case.X, case.y, case.weight)), "the score is not finite")


def partial_fit(case, model, path):
    if case.can_continue:
        model.partial_fit(case.X, case.y, case.weight)


def compare(case, model, other):
    """Check that a copy predicts, and continues training, with the same bits."""
    check(case.digest_of(other) == case.digest_of(model), "a copy has other bits")
    if case.can_continue:
        again = copy.deepcopy(model)
        for part in (other, again):
            part.partial_fit(case.X, case.y, case.weight)
        check(case.digest_of(other) == case.digest_of(again), "a copy continues with other bits")


def pickle_and_load(case, model, path):
    compare(case, model, pickle.loads(pickle.dumps(model)))


def save_and_load(case, model, path):
    fastbp.save(model, path)
    compare(case, model, fastbp.load(path))


def clone_and_fit(case, model, path):
    again = clone(model).fit(case.X, case.y, case.weight)
    check(case.digest_of(again) == case.fitted, "a clone has learned other bits")


def export(case, model, path):
    parts = [fastbp.to_onnx(part).SerializeToString() for part in (model, copy.deepcopy(model))]
    check(parts[0] == parts[1], "a copy is exported with other bits")


C_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)


@njit(nogil=True)
def call_predictor(predictor, X):
    return predictor(X)


def compile_predictor(case, model, path):
    predictor, expected = model.compiled_predictor(), digest(outputs(model, case.probe))
    X = np.ascontiguousarray(case.probe, predictor.dtype)
    check(digest(predictor(X)) == expected, "the compiled predictor has other bits")
    check(digest(call_predictor(predictor, X)) == expected, "compiled code gets other bits")
    out = predictor(X)
    out[...] = np.nan
    C_FUNCTION(predictor.address)(X.ctypes.data, len(X), out.ctypes.data)
    check(digest(out) == expected, "C gets other bits")


USES = {function.__name__: function for function in (predict, score, partial_fit, pickle_and_load, clone_and_fit)}
USES["compile_predictor"] = compile_predictor
if find_spec("safetensors"):
    USES["save_and_load"] = save_and_load
if find_spec("onnx"):
    USES["export"] = export


class Shared:
    """An estimator that one thread fits while others predict with it."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.model = BackpropClassifier(hidden_layer_sizes=(30,), max_iter=3, random_state=0)
        self.sets, self.probes, self.expected = [], [], {}
        for n, n_features in [(100, 20), (300, 20), (100, 600), (300, 600)]:
            X, y = rng.standard_normal((n, n_features)), np.arange(n) % 3
            self.sets.append((X, y))
            self.probes += [X[:1], X[:60]]
        for X, y in self.sets:
            self.model.fit(X, y)
            for i, probe in enumerate(self.probes):
                if probe.shape[1] == X.shape[1]:
                    self.expected.setdefault(i, set()).add(digest(self.model.predict_proba(probe)))

    def fit(self, rng, counts):
        """Fit it on one of the sets."""
        self.model.fit(*self.sets[rng.integers(len(self.sets))])
        counts["shared: fit"] += 1

    def predict(self, rng, counts):
        """Predict with it, or with a copy, and compare with what its models predict."""
        time.sleep(0.002)  # as a server between two requests: the other threads need Python too
        i = rng.integers(len(self.probes))
        model = pickle.loads(pickle.dumps(self.model)) if rng.random() < 0.02 else self.model
        try:
            found = digest(model.predict_proba(self.probes[i]))
        except ValueError as error:
            if "features" not in str(error):
                raise
            counts["shared: other features"] += 1
        else:
            check(found in self.expected[i], "a prediction is that of no model")
            counts["shared: predict"] += 1


# --- measurements ---


def resident():
    """Return the resident memory in MB; where the system does not tell it, its peak."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    with suppress(ImportError):
        import psutil

        return psutil.Process().memory_info().rss / MB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MB if sys.platform == "darwin" else 1024)


class _MallocInfo(ctypes.Structure):
    _names = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def allocated():
    """Return the MB that glibc has given out, after it has given back to the system what it can; NaN without it."""
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallinfo2.restype = _MallocInfo
        info = libc.mallinfo2()
    except (AttributeError, OSError, TypeError):
        return np.nan
    return (info.uordblks + info.hblkhd) / MB


def count_entries(folder):
    """Return the number of entries of a folder of the system, or 0 if there is none."""
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


def cache_sizes():
    """Return the number of entries of each container that fastbp's modules and classes have, and of compiled code."""
    sizes = {}
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "fastbp"}
    for module_name, module in modules.items():
        owners = {module_name: module} | {
            f"{module_name}.{name}": value
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module_name
        }
        for owner, of in owners.items():
            for name, value in list(vars(of).items()):
                size = _size(getattr(value, "__func__", value))
                if size is not None and not name.startswith("__"):
                    sizes[sys.intern(f"{owner}.{name}")] = size
    return sizes


def _size(value):
    if isinstance(value, Dispatcher):
        return len(value.overloads)
    if hasattr(value, "cache_info"):
        info = value.cache_info()
        return info.currsize if info.maxsize is None else None  # which is bounded
    return len(value) if isinstance(value, dict | list | set) else None


def counts_at_rest():
    """Return what must not grow."""
    return {
        "Python threads": threading.active_count(),
        "threads": count_entries("/proc/self/task"),
        "open files": count_entries("/proc/self/fd"),
        **cache_sizes(),
    }


def growth(hours, values):
    """Return the median of the slopes between all pairs of some values, per hour, and its confidence interval."""
    result = theilslopes(values, hours, alpha=0.99)
    return result.slope, result.low_slope, result.high_slope


def fill_cache_of_numpy():
    """Have NumPy keep what it may of the memory of small arrays, some MB, which would grow with each new size."""
    for size in range(1, 1025):
        arrays = [np.empty(size, np.uint8) for _ in range(8)]
        del arrays


# --- the rounds ---


def first_choices():
    """Return the combinations of `FIRST`."""
    options = {name: list(dict.fromkeys(values)) for name, values in CHOICES.items()} | {
        "dtype": ["float32", "float64"]
    }
    usual = {"n_jobs": None, "solver": "adam", "early_stopping": False}
    return [
        usual | dict(zip(names, values, strict=True))
        for names in FIRST
        for values in itertools.product(*(options[name] for name in names))
    ]


class Soak:
    """The threads, and what they have done.

    Parameters
    ----------
    seed, n_threads : int
        Seed of all cases, and the number of threads that take cases.
    folder : path-like
        Where models are saved.
    """

    def __init__(self, seed, n_threads, folder):
        self.seed, self.n_threads, self.folder = seed, n_threads, Path(folder)
        self.counts, self.faults = Counter(), Counter()
        self.first = iter(first_choices())
        self.numbers = itertools.count()
        self._lock = threading.Lock()
        warnings.simplefilter("always")
        warnings.showwarning = self.note_warning
        self.shared = Shared()

    def note_fault(self, text):
        """Count a fault, and print it if it is one of the first."""
        with self._lock:
            self.faults[text] += 1
            if self.faults[text] == 1 and len(self.faults) <= 20:
                print(text, file=sys.stderr, flush=True)

    def note_warning(self, message, category, filename, lineno, file=None, line=None):
        """Do as `warnings.showwarning`: what is not expected is a fault."""
        if not issubclass(category, ConvergenceWarning):
            self.note_fault(f"{filename}:{lineno}: {category.__name__}: {message}")

    def run_case(self, number, chosen, counts=None):
        """Return the results of a case, or None after a fault."""
        try:
            return Case((self.seed, number), chosen).run(self.folder / f"{threading.get_ident()}.safetensors", counts)
        except Exception:
            what = f", with {chosen}" if chosen else ""
            self.note_fault(f"--case {self.seed} {number}{what}:\n{traceback.format_exc()}")

    def _take_cases(self, end, done):
        counts = Counter()
        while time.perf_counter() < end:
            with self._lock:
                number, chosen = next(self.numbers), next(self.first, {})
            done[number] = chosen, self.run_case(number, chosen, counts)
        with self._lock:
            self.counts += counts

    def _repeat(self, end, work, seed):
        counts, rng = Counter(), np.random.default_rng(seed)
        while time.perf_counter() < end:
            try:
                work(rng, counts)
            except Exception:
                self.note_fault(f"shared estimator:\n{traceback.format_exc()}")
        with self._lock:
            self.counts += counts

    def run_round(self):
        """Work for some seconds; return the median of the resident memory."""
        faulthandler.dump_traceback_later(HANG, exit=True)
        done, memory, end = {}, [], time.perf_counter() + ROUND
        jobs = [(self._take_cases, end, done)] * self.n_threads
        jobs += [(self._repeat, end, work, i) for i, work in enumerate([self.shared.fit, *[self.shared.predict] * 2])]
        crew = [threading.Thread(target=target, args=args) for target, *args in jobs]
        for thread in crew:
            thread.start()
        for thread in crew:
            while thread.is_alive():
                memory.append(resident())
                thread.join(1.0)
        for number, (chosen, results) in list(done.items())[-1:]:
            again = self.run_case(number, chosen)
            if again != results:
                self.note_fault(f"--case {self.seed} {number}: other bits when it is repeated alone")
            self.counts["repeated alone"] += 1
        faulthandler.cancel_dump_traceback_later()
        return statistics.median(memory)

    def is_warm(self):
        """Whether all combinations of `FIRST` were taken."""
        self.first = iter(rest := list(self.first))
        return not rest


def measure(soak, minutes):
    """Yield the hours, what grows with noise, and the changes of what must not grow, after each round."""
    begin, first, changes = None, {}, {}
    fill_cache_of_numpy()
    for round_number in itertools.count():
        at_work = soak.run_round()
        gc.collect()
        time.sleep(0.1)  # until threads of OpenMP have ended
        now = time.perf_counter()
        given_out = allocated()  # which gives back to the system what is free
        row = resident(), given_out, sys.getallocatedblocks()
        if begin is None:
            if round_number >= WARM_ROUNDS and soak.is_warm():
                begin, first = now, counts_at_rest()
            continue
        # What is kept here must hardly grow itself: only what has changed, and mostly the same dictionary.
        new = {name: n - first.get(name, 0) for name, n in counts_at_rest().items() if n != first.get(name, 0)}
        changes = new if new != changes else changes
        yield (now - begin) / 3600, (at_work, *row), changes
        if now - begin > minutes * 60:
            return


def report(soak, rows):
    """Print the results; return whether all is well."""
    hours, figures, changes = zip(*rows, strict=True)
    quarter = max(1, len(rows) // 4)
    print(
        f"\n{sum(soak.counts.values())} operations: {', '.join(f'{n} {name}' for name, n in soak.counts.most_common())}"
    )
    leaks = []
    for (name, bound), values in zip(BOUNDS.items(), zip(*figures, strict=True), strict=True):
        slope, low, high = growth(hours, values)
        first, last = (statistics.median(part) for part in (values[:quarter], values[-quarter:]))
        unit = "" if name == "Python's blocks" else " MB"
        print(
            f"{name}: {slope:+.1f} ({low:+.1f} to {high:+.1f}){unit} per hour; "
            f"first median {first:.1f}, last {last:.1f}"
        )
        half = len(rows) // 2
        parts = growth(hours[:half], values[:half])[0], growth(hours[half:], values[half:])[0]
        if low > 0 and min(slope, *parts) * hours[-1] > bound:
            leaks.append(name)
    for name in changes[-1]:
        values = [row.get(name, 0) for row in changes]
        if min(values[-quarter:]) > max(values[:quarter]) + (LATE if name.startswith("fastbp") else 0):
            leaks.append(f"{name} ({min(values[-quarter:]) - max(values[:quarter])} more)")
    sizes = counts_at_rest()
    caches = [n for name, n in sizes.items() if name.startswith("fastbp")]
    others = ", ".join(f"{n} {name}" for name, n in sizes.items() if not name.startswith("fastbp"))
    print(f"{others}, {sum(caches)} entries of {len(caches)} containers")
    print(f"leaks: {', '.join(leaks) or 'none'}; faults: {sum(soak.faults.values())}")
    return not leaks and not soak.faults


def main():
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="after the first rounds; default: 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=4, help="that take cases, besides three for the shared estimator"
    )
    parser.add_argument("--case", type=int, nargs=2, metavar=("SEED", "NUMBER"), help="run only this case")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(options.seed, options.threads, folder)
        if options.case:
            soak.seed = options.case[0]
            chosen = next(itertools.islice(soak.first, options.case[1], None), {})
            soak.run_case(options.case[1], chosen)
            return int(bool(soak.faults))
        rows = []
        for row in measure(soak, options.minutes):
            rows.append(row)
            if len(rows) % 12 == 1:
                print(
                    f"{row[0] * 60:5.1f} min, {sum(soak.counts.values())} operations, "
                    + ", ".join(f"{name} {value:.1f}" for name, value in zip(BOUNDS, row[1], strict=True)),
                    flush=True,
                )
        return int(not report(soak, rows))


if __name__ == "__main__":
    sys.exit(main())
