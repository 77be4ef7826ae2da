"""The examples run and show what they claim; if their data set is missing, they say so."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fastbp

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {"common"})
APPLICATIONS = {"sonar", "text", "steering", "land_cover", "robot"}


def run(name, *arguments):
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1]), "MPLBACKEND": "Agg"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def numbers(name, *arguments):
    """The numbers of each line that an example prints, after the label."""
    done = run(name, *arguments)
    assert done.returncode == 0, done.stderr
    number = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?")
    return [[float(found) for found in number.findall(line)] for line in done.stdout.splitlines()]


def test_all_examples_are_listed():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\.py` \|.*\| (\d+|not measured) \|$", text, re.MULTILINE)  # with seconds
    assert sorted(script for script, _ in rows) == SCRIPTS
    assert set(SCRIPTS) > APPLICATIONS


def exit_code(name, *arguments, monkeypatch):
    """Run a script in this process, so that not each of them has to import everything again."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "common", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return caught.value.code


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_the_docstring(name, monkeypatch, capsys):
    assert exit_code(name, "--help", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    (_, docstring, _) = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)
    assert out.startswith(f"usage: {name}.py [-h]") and docstring.strip() in out


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_arguments_are_refused(name, monkeypatch, capsys):
    for argument in ("--no-such-option", "surplus"):
        assert exit_code(name, argument, monkeypatch=monkeypatch) == 2
        captured = capsys.readouterr()
        assert f"unrecognized arguments: {argument}" in captured.err and not captured.out


def test_slope():
    rows = numbers("slope")[2:]
    accuracy = {row[0]: row[-1] for row in rows}
    assert accuracy[0.25] < accuracy[0.5] < accuracy[1] < accuracy[2] > accuracy[64]


def test_saturation(tmp_path):
    plot = tmp_path / "flow.png"
    done = run("saturation", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    scores = {line.split()[0]: float(line.split()[-1]) for line in done.stdout.splitlines()[3:]}
    assert scores["logistic"] < scores["Logistic(slope=4.0)"] < scores["tanh"]
    assert plot.stat().st_size > 5000


def test_loss_and_accuracy(tmp_path):
    plot = tmp_path / "curves.png"
    rows = numbers("loss_and_accuracy", "--plot", str(plot))[1:]
    assert [row[0] for row in rows] == [1, 5, 10, 20, 50, 100, 200, 400]
    _, _, losses, accuracies = map(list, zip(*rows, strict=True))
    assert losses[-1] > 1.05 * min(losses) and accuracies[-1] >= max(accuracies) - 0.005
    assert plot.stat().st_size > 5000


def test_linear_collapse():
    deep, flat, regression, nonlinear = (row[0] for row in (line[-2:] for line in numbers("linear_collapse")[1:]))
    assert deep == flat == pytest.approx(regression, abs=0.02)
    assert nonlinear > deep + 0.05


def test_chain_rule():
    rows = [row[-1] for row in numbers("chain_rule") if row]
    assert rows[4] == pytest.approx(rows[5], rel=1e-14)
    assert rows[-2] == pytest.approx(rows[-1], rel=1e-14)


def test_forgetting():
    rows = numbers("forgetting")[1:]
    before, none, *_, all_of_them = rows
    assert before[-2] > 0.95 > 0.1 > none[-2]
    assert all_of_them[-2] > 0.9 and all_of_them[-1] > 0.9


def test_documentation():
    shape, _, *rows = numbers("documentation")
    assert shape[0] > 1000 and shape[2] > 10_000
    without, ours, theirs = (row[-1] for row in rows)
    # The same model as scikit-learn's, up to rounding in float32; chance is below 30 %.
    assert ours == pytest.approx(theirs, abs=1) and min(without, ours) > 50


def test_table():
    _, _, ours, boosting, *_ = numbers("table")
    assert ours[0] > 93 and ours[1] < boosting[1]  # accuracy, log loss


def test_class_weights():
    _, _, none, balanced = numbers("class_weights")  # mean and standard deviation of each metric
    for metric, sign in ((0, 1), (2, 1), (4, -1), (6, -1)):  # balanced accuracy, recall, precision, accuracy
        assert sign * (balanced[metric] - none[metric]) > balanced[metric + 1] + none[metric + 1]


def test_validation_curve(tmp_path):
    plot = tmp_path / "curves.png"
    rows = numbers("validation_curve", "--plot", str(plot))[1:]
    assert len(rows) == 10
    losses = []
    for (_, *to_the_end), (_, *stopped) in zip(rows[::2], rows[1::2], strict=True):
        n_epochs, lowest, best, kept, loss, _ = stopped
        assert best < n_epochs < to_the_end[0] == 400
        assert kept == lowest
        losses.append((to_the_end[4], loss))
    assert sum(stopped < to_the_end for to_the_end, stopped in losses) >= 4
    assert plot.stat().st_size > 5000


def test_dropout():
    rows = numbers("dropout")[1:]
    assert [row[:2] for row in rows] == [[n, rate] for n in (100, 200) for rate in (0, 0.2, 0.5)]
    for without, *others in (rows[:3], rows[3:]):
        for _, _, _, loss, _, _, _, lower, _ in others:
            assert loss < without[3] and lower >= 3


def test_resume():
    rows = [row[-2:] for row in numbers("resume")[1:]]
    assert len(rows) == 12
    for seed in range(3):
        whole, *resumed, warm_started = rows[4 * seed : 4 * seed + 4]
        assert resumed == [whole, whole] and whole[1] == 0 < warm_started[1]


def test_quantile_bands():
    same, few, many, stopped, widened = (row[-6:] for row in numbers("quantile_bands")[1:])
    assert many[0] < few[0] < 0.9 and stopped[0] < 0.9 < widened[0]  # coverage
    assert many[2] < few[2] < same[2]  # width
    for row in (few, many, stopped):
        assert row[3] > 0 and row[5] < row[4] < same[4]  # crossings, and the pinball loss


def test_monte_carlo():
    _, *rows, differences, _ = numbers("monte_carlo")
    assert [row[0] for row in rows] == [-1, 0, 2]
    for _, mean, deviation, found_mean, found_deviation in rows:
        assert abs(found_mean - mean) < 0.05 and found_deviation == pytest.approx(deviation, rel=0.1)
    assert differences == [0]


@pytest.mark.parametrize("name", sorted(APPLICATIONS))
def test_data_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTBP_DATA", str(tmp_path))
    message = exit_code(name, monkeypatch=monkeypatch)  # Python prints it, and exits with 1
    assert message.startswith("skipped: ") and "FASTBP_DATA" in message


needs_data = pytest.mark.skipif("FASTBP_DATA" not in os.environ, reason="FASTBP_DATA is not set")


@needs_data
def test_sonar_is_close_to_the_published_figures():
    rows = numbers("sonar")[2:]
    assert [row[0] for row in rows] == [0, 2, 3, 6, 12, 24]
    for hidden, mean, _, published in rows:
        assert abs(mean - published) < 3 or hidden == 0


@needs_data
@pytest.mark.parametrize(("name", "least"), [("land_cover", 87), ("robot", 91), ("steering", 73)])
def test_applications(name, least):
    done = run(name)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r": (\d+\.\d)%", done.stdout)[1]) >= least
