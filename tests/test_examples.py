"""The examples run and show what they claim; if their data set is missing, they say so."""

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fastbp

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {"common"})
APPLICATIONS = {"sonar", "text", "steering", "land_cover", "robot"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example in this process, so that not each has to import everything again; return what it prints."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.delitem(sys.modules, "common", raising=False)
        with warnings.catch_warnings(action="ignore"):  # elsewhere they are errors
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield call
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def numbers(printed):
    """The numbers of each line that an example prints, after the label."""
    number = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?")
    return [[float(found) for found in number.findall(line)] for line in printed.splitlines()]


def test_all_examples_are_listed():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\.py` \|.*\| (\d+|not measured) \|$", text, re.MULTILINE)  # with seconds
    assert sorted(script for script, _ in rows) == SCRIPTS
    assert set(SCRIPTS) > APPLICATIONS


def exit_code(run, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    return caught.value.code


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_the_docstring(name, run, capsys):
    assert exit_code(run, name, "--help") == 0
    out = capsys.readouterr().out
    (_, docstring, _) = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)
    assert out.startswith(f"usage: {name}.py [-h]") and docstring.strip() in out


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_arguments_are_refused(name, run, capsys):
    for argument in ("--no-such-option", "surplus"):
        assert exit_code(run, name, argument) == 2
        captured = capsys.readouterr()
        assert f"unrecognized arguments: {argument}" in captured.err and not captured.out


def test_slope(run):
    rows = numbers(run("slope"))[2:]
    accuracy = {row[0]: row[-1] for row in rows}
    assert accuracy[0.25] < accuracy[0.5] < accuracy[1] < accuracy[2] > accuracy[64]


def test_saturation(tmp_path, run):
    plot = tmp_path / "flow.png"
    printed = run("saturation", "--plot", str(plot))
    scores = {line.split()[0]: float(line.split()[-1]) for line in printed.splitlines()[3:]}
    assert scores["logistic"] < scores["Logistic(slope=4.0)"] < scores["tanh"]
    assert plot.stat().st_size > 5000


def test_loss_and_accuracy(tmp_path, run):
    plot = tmp_path / "curves.png"
    rows = numbers(run("loss_and_accuracy", "--plot", str(plot)))[1:]
    assert [row[0] for row in rows] == [1, 5, 10, 20, 50, 100, 200, 400]
    _, _, losses, accuracies = map(list, zip(*rows, strict=True))
    assert losses[-1] > 1.05 * min(losses) and accuracies[-1] >= max(accuracies) - 0.005
    assert plot.stat().st_size > 5000


def test_linear_collapse(run):
    deep, flat, regression, nonlinear = (row[0] for row in (line[-2:] for line in numbers(run("linear_collapse"))[1:]))
    assert deep == flat == pytest.approx(regression, abs=0.02)
    assert nonlinear > deep + 0.05


def test_chain_rule():
    """In a process of its own, as users run them all."""
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1])}
    command = [sys.executable, str(EXAMPLES / "chain_rule.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [row[-1] for row in numbers(done.stdout) if row]
    assert rows[4] == pytest.approx(rows[5], rel=1e-14)
    assert rows[-2] == pytest.approx(rows[-1], rel=1e-14)


def test_forgetting(run):
    rows = numbers(run("forgetting"))[1:]
    before, none, *_, all_of_them = rows
    assert before[-2] > 0.95 > 0.1 > none[-2]
    assert all_of_them[-2] > 0.9 and all_of_them[-1] > 0.9


@pytest.mark.slow
def test_documentation(run):
    shape, _, *rows = numbers(run("documentation"))
    assert shape[0] > 1000 and shape[2] > 10_000
    without, ours, theirs = (row[-1] for row in rows)
    # The same model as scikit-learn's, up to rounding in float32; chance is below 30 %.
    assert ours == pytest.approx(theirs, abs=1) and min(without, ours) > 50


def test_table(run):
    _, _, ours, boosting, *_ = numbers(run("table"))
    assert ours[0] > 93 and ours[1] < boosting[1]  # accuracy, log loss


def test_class_weights(run):
    _, _, none, balanced = numbers(run("class_weights"))  # mean and standard deviation of each metric
    for metric, sign in ((0, 1), (2, 1), (4, -1), (6, -1)):  # balanced accuracy, recall, precision, accuracy
        assert sign * (balanced[metric] - none[metric]) > balanced[metric + 1] + none[metric + 1]


@pytest.mark.slow
def test_validation_curve(tmp_path, run):
    plot = tmp_path / "curves.png"
    rows = numbers(run("validation_curve", "--plot", str(plot)))[1:]
    assert len(rows) == 10
    losses = []
    for (_, *to_the_end), (_, *stopped) in zip(rows[::2], rows[1::2], strict=True):
        n_epochs, lowest, best, kept, loss, _ = stopped
        assert best < n_epochs < to_the_end[0] == 400
        assert kept == lowest
        losses.append((to_the_end[4], loss))
    assert sum(stopped < to_the_end for to_the_end, stopped in losses) >= 4
    assert plot.stat().st_size > 5000


@pytest.mark.slow
def test_dropout(run):
    rows = numbers(run("dropout"))[1:]
    assert [row[:2] for row in rows] == [[n, rate] for n in (100, 200) for rate in (0, 0.2, 0.5)]
    for without, *others in (rows[:3], rows[3:]):
        for _, _, _, loss, _, _, _, lower, _ in others:
            assert loss < without[3] and lower >= 3


@pytest.mark.slow
def test_resume(run):
    rows = [row[-2:] for row in numbers(run("resume"))[1:]]
    assert len(rows) == 12
    for seed in range(3):
        whole, *resumed, warm_started = rows[4 * seed : 4 * seed + 4]
        assert resumed == [whole, whole] and whole[1] == 0 < warm_started[1]


def test_quantile_bands(run):
    same, few, many, stopped, widened = (row[-6:] for row in numbers(run("quantile_bands"))[1:])
    assert many[0] < few[0] < 0.9 and stopped[0] < 0.9 < widened[0]  # coverage
    assert many[2] < few[2] < same[2]  # width
    for row in (few, many, stopped):
        assert row[3] > 0 and row[5] < row[4] < same[4]  # crossings, and the pinball loss


def test_monte_carlo(run):
    _, *rows, differences, _ = numbers(run("monte_carlo"))
    assert [row[0] for row in rows] == [-1, 0, 2]
    for _, mean, deviation, found_mean, found_deviation in rows:
        assert abs(found_mean - mean) < 0.05 and found_deviation == pytest.approx(deviation, rel=0.1)
    assert differences == [0]


@pytest.mark.parametrize("name", sorted(APPLICATIONS))
def test_data_that_is_not_there(name, tmp_path, run, monkeypatch):
    monkeypatch.setenv("FASTBP_DATA", str(tmp_path))
    message = exit_code(run, name)  # Python prints it, and exits with 1
    assert message.startswith("skipped: ") and "FASTBP_DATA" in message


needs_data = pytest.mark.skipif("FASTBP_DATA" not in os.environ, reason="FASTBP_DATA is not set")


@needs_data
def test_sonar_is_close_to_the_published_figures(run):
    rows = numbers(run("sonar"))[2:]
    assert [row[0] for row in rows] == [0, 2, 3, 6, 12, 24]
    for hidden, mean, _, published in rows:
        assert abs(mean - published) < 3 or hidden == 0


@needs_data
@pytest.mark.parametrize(("name", "least"), [("land_cover", 87), ("robot", 91), ("steering", 73)])
def test_applications(name, least, run):
    assert float(re.search(r": (\d+\.\d)%", run(name))[1]) >= least
