"""The command line ``fastbp``, which is ``python -m fastbp`` too."""

import re
import runpy
import sys
import tomllib
import types
from importlib.metadata import EntryPoint
from pathlib import Path

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


def test_info_says_what_to_do_without_a_cache_folder(capsys, monkeypatch):
    stats = types.SimpleNamespace(cache_path=None)
    monkeypatch.setattr(command_line.backprop, "train", types.SimpleNamespace(stats=stats))
    command_line.main(["info"])
    assert "compiles in memory" in (printed := capsys.readouterr().out) and "NUMBA_CACHE_DIR" in printed
    stats.cache_path = "/a/folder"
    command_line.main(["info"])
    assert "NUMBA_CACHE_DIR" not in capsys.readouterr().out


def test_the_console_script_is_main():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert EntryPoint("fastbp", project["scripts"]["fastbp"], "console_scripts").load() is command_line.main


def test_help_is_plain_text(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--help"])
    monkeypatch.delitem(sys.modules, "fastbp.__main__")
    with pytest.raises(SystemExit) as error:
        runpy.run_module("fastbp", run_name="__main__")  # as python -m does
    assert error.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: fastbp ")
    assert "`" not in printed
    assert {"demo", "warmup", "info"} <= set(printed.split())


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as error:
        command_line.main([])
    assert error.value.code == 2
    assert "demo" in capsys.readouterr().err
