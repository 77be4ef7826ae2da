"""The race: training speed of fastbp and of other libraries, each in its own process, measured alternately.

Run: ``python benchmarks/race.py`` (about 20 minutes; writes ``benchmarks/RESULTS.md``), or a part of it:
``python benchmarks/race.py --workloads mnist-128 seed-30 --contestants fastbp jax --threads 1 --rounds 3``.

**What is measured.** Samples per second of training in float32. For each workload, all libraries are first started,
compiled and warmed up, and the amount of training is chosen so that a measurement takes about ``--seconds``. Then
there are ``--rounds`` rounds, in each of which every library makes one measurement. The figure is the best round; the
table also has the ratio of the medians. While one library is measured, the processes of the others are idle, and
before each measurement there is a pause of 50 ms in which spinning threads go to sleep. The number of threads is the
number of cores for all libraries: the affinity of the process and the library's own settings are set before the
library is imported. Environment variables that could slow a BLAS down are removed.

**Equal work.** All libraries have the same layers, initial weights, batch size and optimizer (Adam with the same betas,
or gradient descent without momentum), no L2 penalty (alpha=0), and a new random order of samples in each epoch. All but
plain NumPy compute the loss of each batch. After one epoch, the loss and the distance of the weights from their initial
values are compared. The data are dense random numbers with random labels, or real images with ``--data DIR``. For
two classes there is one logistic output unit. scikit-learn's classifier has no squared error: on workloads with squared
error it trains with log loss.

**The contestants.** Each measurement starts from the initial weights. If a library offers several ways to do the same,
the one that is fastest on the workload is used.

- fastbp, scikit-learn: the time of a fit of 1 + e epochs minus the time of a fit of one epoch.
- PyTorch: eager mode, fused Adam; the samples are gathered once per epoch or once per batch.
- torch.compile: one graph of a whole training step: gather, forward, backward, update.
- JAX: one jitted `lax.scan` over an epoch with donated buffers; shuffled by JAX or by NumPy, unrolled or not.
- NumPy: `fastbp.plain`, which computes no loss.

With two threads, fastbp is compared with the other libraries at one and at two threads, whichever is faster.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from contestants import MAKE
from turns import Failed, Worker, in_turns, sayer, serve, start

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
# Number of samples, a multiple of the batch size: an epoch of fastbp takes 20 to 300 ms.
SAMPLES = {
    "mnist-128": 20_480, "mnist-512x2": 10_240, "mnist-100": 20_000, "digits-100": 100_000, "tabular-64x2": 96_000,
    "seed-30": 20_000, "online-16": 60_000, "wide-2048x2": 2_048,
}  # fmt: skip
# Targets: ratio to the fastest other library, and fraction of the FMA peak, for one and for two threads.
TARGETS = {
    "mnist-128": {1: (1.5, 0), 2: (2.0, 0)}, "mnist-512x2": {1: (1.4, 0), 2: (1.4, 0.75)},
    "mnist-100": {1: (1.5, 0), 2: (2.0, 0)}, "digits-100": {1: (2.5, 0), 2: (3.0, 0)},
    "tabular-64x2": {1: (2.0, 0), 2: (2.5, 0)}, "seed-30": {1: (2.0, 0), 2: (2.5, 0)},
    "online-16": {1: (4.0, 0), 2: (4.0, 0)}, "wide-2048x2": {1: (1.1, 0), 2: (1.1, 0.8)},
}  # fmt: skip
# Name -> package that must be installed.
CONTESTANTS = {
    "fastbp": "numba", "PyTorch": "torch", "torch.compile": "torch", "JAX": "jax", "scikit-learn": "sklearn",
    "NumPy": "numpy",
}  # fmt: skip


def write_data(folder, workload, n_samples, real):
    """Write the files of a workload for all contestants: inputs, labels, targets and initial weights."""
    import numpy as np

    from fastbp.activations import get_activation
    from fastbp.initializers import initial_parameters

    rng = np.random.default_rng(0)
    n_classes = max(workload.units[-1], 2)
    X = rng.random((n_samples, workload.units[0]), dtype=np.float32)
    y = rng.permutation(np.arange(n_samples) % n_classes)
    if real is not None and workload.units[0] == 784:
        X, y = (real[0][:n_samples] / np.float32(255)).astype(np.float32), real[1][:n_samples].astype(np.int64)
    Y = y[:, None] if n_classes == 2 else np.eye(n_classes)[y]
    factors = [get_activation(workload.activation).init_factor] * (len(workload.units) - 1)
    coefs, intercepts = initial_parameters(workload.units, factors, np.random.RandomState(0), np.float32)
    np.save(folder / "X.npy", X)
    np.save(folder / "labels.npy", y)
    np.save(folder / "targets.npy", Y.astype(np.float32))
    np.savez(folder / "start.npz", *coefs, *intercepts)


def compare_work(workers, workload, bound, say):
    """Train each contestant for one epoch, and return the names of those whose result differs from the first.

    The order of samples differs between contestants. This alone changes the distance from the initial weights by up
    to 10 %, and the loss by some thousandths with random labels, or by 10 % with real labels or few batches.
    """
    checks = in_turns(workers, 1, ("check",), say)
    found = {name: answer[0] for name, answer in checks.items() if not isinstance(answer, Failed)}
    shown = ", ".join(f"{name} {loss:.4f} {moved:.3f}" for name, (loss, moved) in found.items())
    say(f"loss after one epoch, and distance from the initial weights: {shown}")
    if workload.loss == "squared_error":
        found.pop("scikit-learn", None)
    first_loss, first_moved = next(iter(found.values()), (1.0, 1.0))
    return [
        name
        for name, (loss, moved) in found.items()
        if abs(loss / first_loss - 1) > bound or abs(moved / first_moved - 1) > 0.2
    ]


def race(name, workload, threads, options, peak, real, failed):
    """Measure all contestants on one workload, with one number of threads.

    Returns
    -------
    dict
        For each contestant, a dict of its best and median samples per second and a note, or a str with the reason for
        its failure. The value of "peak" is the FMA peak in these rounds, in GFLOP/s.
    """
    say = sayer(f"{name}, {threads} thread(s)")
    results = dict(failed)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), workload, SAMPLES[name], real)
        job = {**workload._asdict(), "threads": threads, "folder": folder}
        workers = {
            contestant: Worker(__file__, {**job, "contestant": contestant}, options.verbose)
            for contestant in options.contestants
            if contestant not in failed
        }
        try:
            failures = start(workers, say)
            few = SAMPLES[name] < 20 * workload.batch_size
            different = compare_work(workers, workload, 0.2 if real or few else 0.02, say)
            notes = in_turns(workers, 1, ("calibrate", options.seconds), say)
            measured = in_turns({**workers, "peak": peak}, options.rounds, ("measure",), say)
        finally:
            for worker in workers.values():
                worker.close()
    results["peak"] = max(measured.pop("peak"))
    for contestant, answers in {**notes, **measured, **failures}.items():
        if isinstance(answers, Failed):
            results[contestant] = f"failed: {answers}"
            continue
        best = min(long for _, long, _ in answers) - min(short for _, _, short in answers)
        results[contestant] = {
            "best": answers[0][0] / best,
            "median": answers[0][0] / statistics.median(long - short for _, long, short in answers),
            "note": "; ".join(filter(None, [notes[contestant][0], "OTHER WORK" if contestant in different else ""])),
        }
    for contestant in options.contestants:
        result = results[contestant]
        say(f"{contestant}: " + (result if isinstance(result, str) else f"{result['best']:,.0f}/s  {result['note']}"))
    return results


def best_peer(results, name, threads, figure):
    """Return the name and the figure of the fastest other library, with at most this number of threads."""
    rates = {
        f"{peer}{'' if t == threads else f' on {t}'}": result[figure]
        for t, by_workload in results.items()
        for peer, result in by_workload.get(name, {}).items()
        if t <= threads and peer != "fastbp" and isinstance(result, dict)
    }
    peer = max(rates, key=rates.get, default=None)
    return (peer, rates[peer]) if peer else (None, None)


def count_work(workload):
    """Return the flops of an update per sample; the first layer needs no deltas of its inputs."""
    products = [a * b for a, b in zip(workload.units[:-1], workload.units[1:], strict=True)]
    return 6 * sum(products) - 2 * products[0]


def report(results, workloads, options):
    """Yield the lines of the tables, as Markdown."""
    peaks = {t: max((r["peak"] for r in by.values()), default=float("nan")) for t, by in results.items()}
    yield from (f"FMA peak on {t} core(s): {peak:.1f} GFLOP/s." for t, peak in peaks.items())
    for threads, by_workload in results.items():
        yield ""
        yield f"## {threads} thread(s), samples per second"
        yield ""
        names = options.contestants
        yield f"| workload | {' | '.join(names)} | GFLOP/s | % of peak | ratio | of medians | fastest other |"
        yield "|---" + "|---:" * (len(names) + 4) + "|---|"
        for name, result in by_workload.items():
            rates = [f"{result[c]['best']:,.0f}" if isinstance(result[c], dict) else "-" for c in names]
            yield f"| {name} | {' | '.join(rates)} | {_figures(results, workloads, name, threads, peaks)} |"
    yield ""
    yield (
        "GFLOP/s, % of peak and ratio are those of fastbp. Operations on inputs that are zero count like all others. "
        "The ratio compares with the fastest other library, on the same number of threads or fewer. "
        "`*`: other programs used the cores, which reached less than 90 % of their peak in these rounds."
    )
    yield from _notes(results)
    yield from _targets(results, workloads, peaks)


def _figures(results, workloads, name, threads, peaks):
    fast = results[threads][name].get("fastbp")
    if not isinstance(fast, dict):
        return "- | - | - | - | -"
    gflops = fast["best"] * count_work(workloads[name]) / 1e9
    busy = "*" if results[threads][name]["peak"] < 0.9 * peaks[threads] else ""
    cells = [f"{gflops:.1f}", f"{gflops / peaks[threads]:.0%}{busy}"]
    peer, rate = best_peer(results, name, threads, "best")
    if not peer:
        return " | ".join([*cells, "-", "-", "-"])
    median = fast["median"] / best_peer(results, name, threads, "median")[1]
    return " | ".join([*cells, f"{fast['best'] / rate:.2f}", f"{median:.2f}", peer])


def _notes(results):
    notes = {}
    for threads, by_workload in results.items():
        for name, result in by_workload.items():
            for contestant, found in result.items():
                note = found["note"] if isinstance(found, dict) else found if isinstance(found, str) else ""
                if note:
                    notes.setdefault((contestant, note), []).append(f"{name} ({threads})")
    total = sum(len(by_workload) for by_workload in results.values())
    if notes:
        yield ""
        yield "Notes, with the number of threads in parentheses:"
        yield ""
    for (contestant, note), where in sorted(notes.items()):
        yield f"- {contestant}: {note}: {'all' if len(where) == total else ', '.join(where)}."


def _targets(results, workloads, peaks):
    yield ""
    yield "## Targets"
    yield ""
    yield "Targets of the project: the ratio to the fastest other library, and the percentage of the FMA peak."
    yield ""
    yield "| workload | threads | target ratio | reached | target % of peak | reached | |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for name, wanted in TARGETS.items():
        for threads, (ratio, share) in wanted.items():
            fast = results.get(threads, {}).get(name, {}).get("fastbp")
            peer, rate = best_peer(results, name, threads, "best")
            if not isinstance(fast, dict) or not peer:
                continue
            reached = fast["best"] / rate
            reached_share = fast["best"] * count_work(workloads[name]) / 1e9 / peaks[threads]
            met = "met" if reached >= ratio and reached_share >= share else "**missed**"
            yield (
                f"| {name} | {threads} | {ratio} | {reached:.2f} | {f'{share:.0%}' if share else ''} | "
                f"{reached_share:.0%} | {met} |"
            )


def machine(packages):
    """Yield lines on the machine and the versions, on which the figures depend."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"- {model}, {n_cores} cores; {platform.system()}, {platform.machine()}, Python {platform.python_version()}"
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    yield f"- {', '.join(found)}"
    yield f"- {datetime.date.today().isoformat()}"


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="approximate duration of one measurement")
    parser.add_argument("--workloads", nargs="+", choices=SAMPLES, default=list(SAMPLES), metavar="NAME")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--data", metavar="DIR", help="folder with real MNIST, for the workloads with 784 inputs")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md even after a partial run")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    options = parser.parse_args(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from common import WORKLOADS

    real = None
    if options.data:
        from fastbp.datasets import load_mnist

        real = load_mnist(options.data)[:2]
    missing = {name: "not installed" for name in options.contestants if not find_spec(CONTESTANTS[name])}
    for name in missing:
        print(f"{name} is not installed: left out", file=sys.stderr)
    results = {}
    for threads in sorted(set(options.threads)):
        results[threads] = {}
        peak = Worker(__file__, {"contestant": "peak", "threads": threads}, options.verbose)
        try:
            peak.answer()
            for name in options.workloads:
                results[threads][name] = race(name, WORKLOADS[name], threads, options, peak, real, missing)
        finally:
            peak.close()
    packages = ["numpy", "numba", "scikit-learn", "torch", "jax", "jaxlib"]
    lines = [
        "# The race", "",
        f"`python benchmarks/race.py`, the best of {options.rounds} measurements of about {options.seconds:g} s; "
        f"{'real MNIST for networks with 784 inputs, otherwise ' if options.data else ''}random dense data. "
        "The docstring of the script describes what is compared.", "", *machine(packages), "",
        *report(results, WORKLOADS, options),
    ]  # fmt: skip
    print("\n".join(lines))
    full = all(
        len(getattr(options, name)) == len(parser.get_default(name)) for name in ("threads", "workloads", "contestants")
    )
    if options.write or (full and not options.data and options.rounds >= parser.get_default("rounds") and not missing):
        RESULTS.write_text("\n".join(lines) + "\n")
        print(f"wrote {RESULTS.name}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(job, MAKE[job.pop("contestant")])
    else:
        main()
