"""The race: training speed of fastbp and of other libraries, each in its own process, measured alternately.

Run: ``python benchmarks/race.py`` (about 20 minutes; writes ``benchmarks/RESULTS.md``, or
``RESULTS_avx512.md`` with vectors of 512 bits), or a part of it:
``python benchmarks/race.py --workloads mnist-128 seed-30 --contestants fastbp JAX --threads 1 --rounds 3``.

Other networks, whose results are printed only:
``python benchmarks/race.py --shape 37-150-80-4 --batch 75 --activation tanh`` races one;
``python benchmarks/race.py --random 20 --seed 1`` races random ones, of 1 to 5 layers of 8 to 4096 units (outputs: 1 to
1024), batches of 1 to 4096, any solver, loss and activation here, and prints the lowest ratio first. Those whose
batches take too long for ``--seconds`` are not drawn. ``--seconds 0.1 --rounds 3`` is a quick look.

**What is measured.** Samples per second of training in float32. For each workload, all libraries are first started,
compiled and warmed up, and the amount of training is chosen so that a measurement takes about ``--seconds``. Then
there are ``--rounds`` rounds, in each of which every library makes one measurement. The figure is the best round; the
table also has the ratio of the medians. While one library is measured, the processes of the others are idle, and
before each measurement there is a pause of 120 ms in which spinning threads go to sleep. The number of threads is the
number of cores for all libraries: the affinity of the process and the library's own settings are set before the
library is imported. Environment variables that could slow a BLAS down are removed.

**Equal work.** All libraries have the same layers, initial weights, batch size and optimizer (Adam with the same betas,
or gradient descent without momentum), no L2 penalty (alpha=0), and a new random order of samples in each epoch. All but
plain NumPy compute the loss of each batch. After one epoch, the loss and the distance of the weights from their initial
values are compared. The data are dense random numbers with random labels, or real images with ``--data DIR``. With
``--shape`` and ``--random``, half of the samples resemble their class, and the learning rate is lower for wide layers
and small batches, so that the order of samples changes the result little. For two classes there is one logistic output
unit. scikit-learn's classifier has no squared error: on workloads with squared error it trains with log loss. A library
that lacks the activation is left out.

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
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from contestants import ACTIVATIONS, COMMON_ACTIVATIONS, MAKE
from turns import Failed, Worker, in_turns, sayer, serve, start

HERE = Path(__file__).resolve().parent
# Number of samples, a multiple of the batch size: an epoch of fastbp takes 20 to 300 ms.
SAMPLES = {
    "mnist-128": 20_480, "mnist-512x2": 10_240, "mnist-100": 20_000, "digits-100": 100_000, "tabular-64x2": 96_000,
    "seed-30": 20_000, "online-16": 60_000, "wide-2048x2": 2_048,
}  # fmt: skip
RATES = {"adam": 1e-3, "sgd": 0.1}
# Targets: ratio to the fastest other library, and fraction of the FMA peak, for one and for two threads.
TARGETS = {
    "mnist-128": {1: (1.45, 0.85), 2: (1.6, 0)}, "mnist-512x2": {1: (1.25, 0.88), 2: (1.25, 0.8)},
    "mnist-100": {1: (1.45, 0), 2: (1.55, 0)}, "digits-100": {1: (2.2, 0), 2: (2.5, 0)},
    "tabular-64x2": {1: (2.0, 0), 2: (2.3, 0)}, "seed-30": {1: (2.2, 0), 2: (2.5, 0)},
    "online-16": {1: (4.0, 0), 2: (4.0, 0)}, "wide-2048x2": {1: (1.12, 0.88), 2: (1.12, 0.8)},
}  # fmt: skip
OTHER_TARGET = (1.2, 0)  # of any other network
# Of the networks that --random draws: the numbers of layers, and the least and the most of units, outputs, samples in
# a batch.
LAYERS, UNITS, OUTPUTS, BATCH = (1, 5), (8, 4096), (1, 1024), (1, 4096)
# Name -> package that must be installed.
CONTESTANTS = {
    "fastbp": "numba", "PyTorch": "torch", "torch.compile": "torch", "JAX": "jax", "scikit-learn": "sklearn",
    "NumPy": "numpy",
}  # fmt: skip
FEW_ACTIVATIONS = ("scikit-learn", "NumPy")  # contestants with COMMON_ACTIVATIONS only


def samples_of(units, batch_size, seconds):
    """Return the number of samples of an epoch that is short enough for measurements of about `seconds`.

    Returns
    -------
    int or None
        A multiple of the batch size with all classes in it; None if two batches take too long.
    """
    weights = sum(a * b for a, b in pairwise(units))
    # A batch has an overhead, its operations, and an update that reads and writes 28 bytes for each weight.
    batch_seconds = 2e-6 + 6 * weights * batch_size / 50e9 + 28 * weights / 10e9
    if batch_seconds > seconds / 2:
        return None
    fewest = max(2, -(-units[-1] // batch_size))
    most = min(5_000, 8_000_000 // (units[0] * batch_size))  # 32 MB of inputs
    return batch_size * max(fewest, min(most, round(seconds / 10 / batch_seconds)))


def random_workloads(n, seed, seconds):
    """Draw `n` networks whose measurements take about `seconds` each; sizes are uniform on a logarithmic scale."""
    import numpy as np
    from common import Workload

    rng = np.random.default_rng(seed)

    def size(least, most):
        return round(np.exp(rng.uniform(np.log(least), np.log(most))))

    workloads = {}
    while len(workloads) < n:
        units = [size(*UNITS) for _ in range(rng.integers(LAYERS[0], LAYERS[1] + 1))]
        outputs = size(*OUTPUTS)
        units = (*units, 1 if outputs == 2 else outputs)  # for two classes there is one logistic unit
        batch_size = size(*BATCH)
        solver, loss = str(rng.choice(list(RATES))), str(rng.choice(["log_loss", "squared_error"]))
        workload = Workload(
            units, batch_size, solver, str(rng.choice(ACTIVATIONS)), loss, samples_of(units, batch_size, seconds)
        )
        if workload.n_samples:
            workloads[label(workload)] = workload
    return workloads


def label(workload):
    """Return the name of a network that is not in `common.WORKLOADS`."""
    units = "-".join(map(str, workload.units))
    return f"{units} {workload.activation}, {workload.batch_size} {workload.solver} {workload.loss}"


def write_data(folder, workload, real, learnable):
    """Write the files of a workload for all contestants: inputs, labels, targets and initial weights.

    What a network learns from random labels depends on the order of samples. With `learnable` inputs it hardly does.
    """
    import numpy as np

    from fastbp.activations import get_activation
    from fastbp.initializers import initial_parameters

    rng = np.random.default_rng(0)
    n_samples, n_classes = workload.n_samples, max(workload.units[-1], 2)
    X = rng.random((n_samples, workload.units[0]), dtype=np.float32)
    y = np.arange(n_samples) % n_classes  # so that the first samples have all classes
    if learnable:
        # Half of the samples resemble their class, the others a random one, so that the gradients do not vanish.
        likely = np.where(rng.random(n_samples) < 0.5, y, rng.integers(0, n_classes, n_samples))
        X += rng.random((n_classes, workload.units[0]), dtype=np.float32)[likely]
        X *= 0.5
    if real is not None and workload.units[0] == 784 and n_classes == 10:
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
        if not (abs(loss / first_loss - 1) <= bound and abs(moved / first_moved - 1) <= 0.2)
    ]


def race(name, workload, threads, options, peak, real, failed):
    """Measure all contestants on one workload, with one number of threads.

    Returns
    -------
    dict
        For each contestant, a dict of its best and median samples per second and a note, or a str with the reason for
        its failure. The value of "peak" is the FMA peak in these rounds, in GFLOP/s; that of "median peak" is the
        median of its measurements in the best round.
    """
    say = sayer(f"{name}, {threads} thread(s)")
    results = dict(failed)
    if workload.activation not in COMMON_ACTIVATIONS:
        results |= dict.fromkeys(set(FEW_ACTIVATIONS) & set(options.contestants), f"has no {workload.activation}")
    fixed = name in SAMPLES
    scale = 1 if fixed else min(1, 64 / max(workload.units[:-1])) * min(1, workload.batch_size / 32)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), workload, real, learnable=not fixed)
        job = {**workload._asdict(), "rate": scale * RATES[workload.solver], "threads": threads, "folder": folder}
        workers = {
            contestant: Worker(__file__, {**job, "contestant": contestant}, options.verbose)
            for contestant in options.contestants
            if contestant not in results
        }
        try:
            failures = start(workers, say)
            few = workload.n_samples < 20 * workload.batch_size
            different = compare_work(workers, workload, 0.2 if real or few else 0.02, say)
            notes = in_turns(workers, 1, ("calibrate", options.seconds), say)
            measured = in_turns({**workers, "peak": peak}, options.rounds, ("measure",), say)
        finally:
            for worker in workers.values():
                worker.close()
    peaks, medians = zip(*measured.pop("peak"), strict=True)
    results["peak"], results["median peak"] = max(peaks), max(medians)
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
    products = [a * b for a, b in pairwise(workload.units)]
    return 6 * sum(products) - 2 * products[0]


class Comparison(NamedTuple):
    """Figures of fastbp for one network and one number of threads; None where something failed."""

    gflops: float | None = None
    share: float | None = None  # of the FMA peak in the same rounds
    busy: bool = False  # whether other programs used the cores
    peer: str | None = None  # the fastest other library
    ratio: float | None = None  # to this one
    of_medians: float | None = None
    target: tuple[float, float] = OTHER_TARGET

    @property
    def met(self):
        """Whether ratio and share reach the target."""
        return self.ratio >= self.target[0] and self.share >= self.target[1]

    def cells(self):
        """Return the last cells of a row of a table."""
        share = "-" if self.share is None else f"{self.share:.0%}{'*' * self.busy}"
        numbers = [
            ("-" if x is None else f"{x:.{n}f}") for x, n in ((self.gflops, 1), (self.ratio, 2), (self.of_medians, 2))
        ]
        return [numbers[0], share, *numbers[1:], self.peer or "-"]


def compare(results, workloads, name, threads):
    """Return the `Comparison` of one network."""
    target = TARGETS.get(name, {}).get(threads, OTHER_TARGET)
    fast, peak = (results[threads][name].get(key) for key in ("fastbp", "peak"))
    if not isinstance(fast, dict):
        return Comparison(target=target)
    gflops = fast["best"] * count_work(workloads[name]) / 1e9
    figures = {"gflops": gflops, "share": gflops / peak, "busy": is_busy(results, threads, name)}
    peer, rate = best_peer(results, name, threads, "best")
    if peer:
        median = fast["median"] / best_peer(results, name, threads, "median")[1]
        figures |= {"peer": peer, "ratio": fast["best"] / rate, "of_medians": median}
    return Comparison(**figures, target=target)


def highest_peak(results, threads):
    """Return the highest FMA peak on this number of threads."""
    return max((result["peak"] for result in results[threads].values()), default=float("nan"))


def is_busy(results, threads, name):
    """Return whether other programs used the cores while a network was raced."""
    highest = max(highest_peak(results, t) * threads / t for t in results if t <= threads)
    return results[threads][name]["median peak"] < 0.9 * highest


def report(results, workloads, options):
    """Yield the lines of the tables, as Markdown."""
    yield from (f"FMA peak on {t} core(s): {highest_peak(results, t):.1f} GFLOP/s." for t in results)
    if options.random:
        yield from _ranking(results, workloads)
    else:
        for threads, by_workload in results.items():
            yield ""
            yield f"## {threads} thread(s), samples per second"
            yield ""
            names = options.contestants
            yield f"| workload | {' | '.join(names)} | GFLOP/s | % of peak | ratio | of medians | fastest other |"
            yield "|---" + "|---:" * (len(names) + 4) + "|---|"
            for name, result in by_workload.items():
                rates = [f"{result[c]['best']:,.0f}" if isinstance(result[c], dict) else "-" for c in names]
                yield f"| {' | '.join([name, *rates, *compare(results, workloads, name, threads).cells()])} |"
    yield ""
    yield (
        "GFLOP/s, % of peak and ratio are those of fastbp. Operations on inputs that are zero count like all others. "
        "The ratio compares with the fastest other library, on the same number of threads or fewer. "
        "`*`: other programs used the cores. In all rounds, most measurements of the FMA peak were 10 % below it."
    )
    yield from _notes(results)
    if not options.random:
        yield from _targets(results, workloads)


def _ranking(results, workloads):
    """Yield the lines of one table of all networks, the lowest ratio first."""
    found = [
        (compare(results, workloads, name, threads), name, threads)
        for threads, by_workload in results.items()
        for name in by_workload
    ]
    yield ""
    what = "units, activation, batch, solver, loss"
    yield f"| {what} | threads | GFLOP/s | % of peak | ratio | of medians | fastest other | |"
    yield "|---|---:|---:|---:|---:|---:|---|---|"
    for figures, name, threads in sorted(found, key=lambda row: row[0].ratio or 0):
        verdict = "" if figures.ratio is None or figures.met else f"**below {figures.target[0]}**"
        yield f"| {' | '.join([name, str(threads), *figures.cells(), verdict])} |"


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


def _targets(results, workloads):
    yield ""
    yield "## Targets"
    yield ""
    yield "Targets of the project: the ratio to the fastest other library, and the percentage of the FMA peak."
    yield ""
    yield "| workload | threads | target ratio | reached | target % of peak | reached | |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for name in workloads:
        for threads in results:
            figures = compare(results, workloads, name, threads)
            if figures.ratio is None:
                continue
            ratio, share = figures.target
            yield (
                f"| {name} | {threads} | {ratio} | {figures.ratio:.2f} | {f'{share:.0%}' if share else ''} | "
                f"{figures.share:.0%} | {'met' if figures.met else '**missed**'} |"
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


def _units(text):
    try:
        units = tuple(int(part) for part in text.split("-"))
    except ValueError:
        units = ()
    if len(units) < 2 or min(units) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers of units, such as 37-150-80-4")
    if units[-1] == 2:
        raise argparse.ArgumentTypeError("two classes have one logistic output unit: write 1 instead of the last 2")
    return units


def _workloads(options, parser):
    """Return the networks to race, by name."""
    from common import WORKLOADS, Workload

    if options.random:
        return random_workloads(options.random, options.seed, options.seconds)
    if not options.shape:
        return {name: WORKLOADS[name]._replace(n_samples=SAMPLES[name]) for name in options.workloads}
    batch, seconds = options.batch, options.seconds
    if batch < 1:
        parser.error(f"--batch {batch} is not at least 1")
    if options.samples:
        n_samples = options.samples // batch * batch
        if n_samples < max(2 * batch, options.shape[-1]):
            parser.error(f"--samples {options.samples} are less than two batches, or than the classes")
    else:
        n_samples = samples_of(options.shape, batch, seconds)
        if not n_samples:
            parser.error(f"two batches take longer than --seconds {seconds:g}; allow more, or set --samples")
    workload = Workload(options.shape, batch, options.solver, options.activation, options.loss, n_samples)
    return {label(workload): workload}


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="approximate duration of one measurement")
    parser.add_argument("--workloads", nargs="+", choices=SAMPLES, default=list(SAMPLES), metavar="NAME")
    parser.add_argument("--shape", type=_units, metavar="A-B-...-Z", help="race one network of these units instead")
    parser.add_argument("--batch", type=int, default=200, help="batch size of --shape")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu", help="of the hidden layers of --shape")
    parser.add_argument("--solver", choices=RATES, default="adam", help="of --shape")
    parser.add_argument("--loss", choices=["log_loss", "squared_error"], default="log_loss", help="of --shape")
    parser.add_argument("--samples", type=int, help="of an epoch of --shape; default: as many as --seconds allow")
    parser.add_argument("--random", type=int, metavar="N", help="race N random networks instead")
    parser.add_argument("--seed", type=int, default=0, help="of --random")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--data", metavar="DIR", help="folder with real MNIST, for the workloads with 784 inputs")
    parser.add_argument("--write", action="store_true", help="write the results even after a partial run")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    options = parser.parse_args(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    workloads = _workloads(options, parser)
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
            for name, workload in workloads.items():
                results[threads][name] = race(name, workload, threads, options, peak, real, missing)
        finally:
            peak.close()
    packages = ["numpy", "numba", "scikit-learn", "torch", "jax", "jaxlib"]
    lines = [
        "# The race", "",
        f"`python benchmarks/race.py`, the best of {options.rounds} measurements of about {options.seconds:g} s; "
        f"{'real MNIST for networks with 784 inputs, otherwise ' if options.data else ''}random dense data. "
        "The docstring of the script describes what is compared.", "", *machine(packages), "",
        *report(results, workloads, options),
    ]  # fmt: skip
    print("\n".join(lines))
    full = not (options.shape or options.random) and all(
        len(getattr(options, name)) == len(parser.get_default(name)) for name in ("threads", "workloads", "contestants")
    )
    if (options.write and not (options.shape or options.random)) or (
        full and not options.data and options.rounds >= parser.get_default("rounds") and not missing
    ):
        from fastbp.codegen.target import VECTOR_BITS  # not before: the workers import what they need themselves

        file = HERE / ("RESULTS_avx512.md" if VECTOR_BITS == 512 else "RESULTS.md")
        file.write_text("\n".join(lines) + "\n")
        print(f"wrote {file.name}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        job = json.loads(sys.argv[2])
        serve(job, MAKE[job.pop("contestant")])
    else:
        main()
