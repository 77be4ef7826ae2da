"""Where a process has less than it expects: one core for two threads; and how soon Ctrl-C and `max_time` end a fit.

Run: ``python benchmarks/limits.py`` (about two minutes), or a part of it: ``python benchmarks/limits.py cores``,
``interrupts`` or ``time``. Other programs disturb all figures.

**Cores.** CPU seconds of a fit, and of predictions, with `n_jobs=2` against `n_jobs=1`, in new processes: on one core
from the beginning, where the system takes the other core away after a first fit, and where fastbp does not know that
there is one core only. CPU seconds of all threads together are what one core needs, and other programs do not count.
The target is a ratio of at most 1.3. The last case is the process as it is: under a quota of the control group, for
example.

**Interrupts.** Seconds from Ctrl-C, at random moments of training, until `fit` returns. The target is 0.5 s.

**Time.** Seconds from the end of `max_time` until `fit` returns. The target is 0.1 s.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CASES = ["one core", "one core after a fit", "one core, not known", "as it is"]
# Name, units, samples and batch of the networks for which threads share a core.
NETWORKS = [("tabular", (30, 64, 64), 4_000, 64), ("digits", (64, 100), 4_000, 200), ("mnist", (784, 128), 8_000, 128)]
TURNS = 7
# For Ctrl-C and `max_time`: name, units, samples, and parameters.
FITS = [
    ("short epochs", (8, 16), 100, {"batch_size": 10}),
    ("one by one", (8, 16), 10_000, {"batch_size": 1}),
    ("long epochs", (784, 100), 60_000, {"batch_size": 200}),
    ("wide network", (784, 2048, 2048), 10_000, {"batch_size": 512}),
    ("a batch of all samples", (784, 512, 512), 60_000, {"batch_size": 60_000}),
    ("lbfgs", (784, 512, 512), 60_000, {"solver": "lbfgs"}),
    ("early stopping", (784, 100), 60_000, {"batch_size": 200, "early_stopping": True}),
]


def make_data(n_features, n_samples):
    """Return random inputs and labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.random((n_samples, n_features), dtype=np.float32), np.arange(n_samples) % 10


def network(units, **options):
    """Return a classifier that no rule stops."""
    from fastbp import BackpropClassifier

    return BackpropClassifier(units[1:], tol=0.0, n_iter_no_change=float("inf"), random_state=0, **options)


def timed(function, *args, times=1, clock=time.perf_counter):
    """Return the duration of some calls in seconds."""
    begin = clock()
    for _ in range(times):
        function(*args)
    return clock() - begin


def confine():
    """Leave one core to all threads of this process, as a container does that shrinks."""
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), {min(os.sched_getaffinity(0))})


def measure_cores(case):
    """Return rows of the name, and the seconds on one thread and on two of a fit and of predictions."""
    from fastbp.kernels import threads

    if case == "one core":
        confine()
    rows = []
    models = []
    for name, units, n_samples, batch in NETWORKS:
        X, y = make_data(units[0], n_samples)
        fits = {n: network(units, batch_size=batch, n_jobs=n, max_iter=1) for n in (1, 2)}
        epochs = max(1, int(0.4 / min(timed(fits[1].fit, X, y) for _ in range(3))))
        fits[2].fit(X, y)
        models.append((name, X, y, fits, epochs))
    if case.startswith("one core"):
        confine()
    if case == "one core, not known":
        threads._count_cores = lambda: 2
    for name, X, y, fits, epochs in models:
        seconds = {}
        for n in (1, 2):
            fits[n].set_params(max_iter=epochs)
        for _ in range(TURNS):
            for n, model in fits.items():
                seconds.setdefault(("fit", n), []).append(timed(model.fit, X, y, clock=time.process_time))
                for rows_at_once in (500, len(X)):
                    times = 20_000 // rows_at_once
                    spent = timed(model.predict_proba, X[:rows_at_once], times=times, clock=time.process_time)
                    seconds.setdefault((f"predict {rows_at_once}", n), []).append(spent)
        for task in dict.fromkeys(task for task, _ in seconds):
            rows.append((f"{name}, {task}", *(statistics.median(seconds[task, n]) for n in (1, 2))))
    return rows


def show_cores():
    """Measure the cases in new processes, and print the ratios."""
    print(f"{'':24}{'':30}{'1 thread':>10}{'2 threads':>10}{'ratio':>8}")
    for case in CASES:
        env = os.environ | {"NUMBA_NUM_THREADS": "2"}
        done = subprocess.run([sys.executable, __file__, "--case", case], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        for name, one, two in json.loads(done.stdout):
            print(f"{case:24}{name:30}{one:9.3f}s{two:9.3f}s{two / one:8.2f}", flush=True)


def show_interrupts(n):
    """Interrupt fits, and print how long the answers take."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells switch off in the background
    print(f"\nseconds from Ctrl-C to the end of fit, {n} times{'median':>12}{'slowest':>12}")
    for name, units, n_samples, options in FITS:
        X, y = make_data(units[0], n_samples)
        network(units, max_iter=1, **options).fit(X, y)
        answers = []
        for _ in range(n):
            sent = []

            def send(sent=sent):
                sent.append(time.perf_counter())
                os.kill(os.getpid(), signal.SIGINT)

            timer = threading.Timer(random.uniform(0.05, 0.5), send)
            timer.start()
            with suppress(KeyboardInterrupt):  # before the end of the first batch
                network(units, max_iter=10**7, max_fun=10**7, **options).fit(X, y)
            answers.append(time.perf_counter() - sent[0])
        print(f"{name:44}{statistics.median(answers):11.3f}s{max(answers):11.3f}s", flush=True)


def show_time(n):
    """End fits by `max_time`, and print how late they are."""
    print(f"\nseconds from max_time to the end of fit, {n} times{'median':>10}{'latest':>12}")
    for name, units, n_samples, options in FITS:
        X, y = make_data(units[0], n_samples)
        network(units, max_iter=1, **options).fit(X, y)
        limits = [random.uniform(0.3, 1.0) for _ in range(n)]
        if name in ("a batch of all samples", "lbfgs"):  # the first batch is always trained
            limits = [seconds + 8.0 for seconds in limits[: max(1, n // 4)]]
        late = []
        for seconds in limits:
            model = network(units, max_iter=10**7, max_fun=10**7, max_time=seconds, **options)
            late.append(timed(model.fit, X, y) - seconds)
        print(f"{name:44}{statistics.median(late):11.3f}s{max(late):11.3f}s", flush=True)


def main():
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="?", choices=["cores", "interrupts", "time"], help="default: all")
    parser.add_argument("--times", type=int, default=20, help="fits of each kind that are ended (default: 20)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.case:
        print(json.dumps(measure_cores(options.case)))
        return
    if options.part in (None, "cores"):
        show_cores()
    if options.part in (None, "interrupts"):
        show_interrupts(options.times)
    if options.part in (None, "time"):
        show_time(options.times)


if __name__ == "__main__":
    main()
