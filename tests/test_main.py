"""The command line ``python -m fastbp``."""

import re

import pytest

import fastbp
from fastbp import __main__ as command_line


def test_demo_shows_one_accuracy_for_all_three(capsys):
    command_line.main(["demo", "--epochs", "3"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^(fastbp|scikit-learn|plain NumPy)\D*(0\.\d{4}) +(\d+\.\d+) ms", printed, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["fastbp", "scikit-learn", "plain NumPy"]
    assert len({accuracy for _, accuracy, _ in rows}) == 1
    assert float(rows[0][1]) > 0.5
    taken = [float(ms) for _, _, ms in rows]
    ratios = [float(ratio) for ratio in re.findall(r"(\d+\.\d) times as fast", printed)]
    assert ratios == pytest.approx([taken[1] / taken[0], taken[2] / taken[0]], rel=0.05, abs=0.06)


def test_no_round_begins_after_the_limit():
    calls = []
    command_line._best_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, limit=0.0)
    assert calls == ["a", "b"]
    command_line._best_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, limit=60.0)
    assert calls == ["a", "b"] * 4


def test_warmup_prints_the_total(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "warmup", lambda report: report("one step") or 2.0)
    command_line.main(["warmup"])
    assert capsys.readouterr().out == "one step\nTotal: 2.0 s\n"


def test_info_shows_versions(capsys):
    command_line.main(["info"])
    assert fastbp.__version__ in capsys.readouterr().out


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as error:
        command_line.main([])
    assert error.value.code == 2
    assert "demo" in capsys.readouterr().err
