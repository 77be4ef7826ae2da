"""Warnings point at the user's line."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastbp
from fastbp import BackpropClassifier

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 3)), np.arange(60) % 2


def line_of_warning(call, category, match):
    with pytest.warns(category, match=match) as caught:
        call()
    for warning in caught:
        if issubclass(warning.category, category):
            assert warning.filename == __file__, warning.filename
            return warning.lineno
    raise AssertionError


def lines_of(function):
    lines, first = inspect.getsourcelines(function)
    return range(first, first + len(lines))


def test_max_iter():
    def fit():
        BackpropClassifier(3, max_iter=1).fit(X, Y)

    def fit_pipeline():
        make_pipeline(StandardScaler(), BackpropClassifier(3, max_iter=1)).fit(X, Y)

    def search():
        cross_val_score(BackpropClassifier(3, max_iter=1), X, Y, cv=2)

    for call in (fit, fit_pipeline, search):
        assert line_of_warning(call, ConvergenceWarning, "Maximum iterations") in lines_of(call)


def test_batch_size():
    def fit():
        BackpropClassifier(3, max_iter=1, learning_rate="cosine", batch_size=100).fit(X, Y)

    assert line_of_warning(fit, UserWarning, "batch_size") in lines_of(fit)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_schedules_that_end_by_themselves_do_not_warn(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = BackpropClassifier(3, max_iter=2, learning_rate=schedule).fit(X, Y)
    assert clf.n_iter_ == 2


SCRIPT = """
import warnings
import numpy as np
from fastbp import BackpropClassifier
X = np.zeros((20, 3), np.float32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    BackpropClassifier(2, max_iter=1, n_jobs=1, learning_rate="cosine").fit(X, np.arange(20) % 2)
print([(w.category.__name__, w.filename) for w in caught], "has no folder" in str(caught[0].message))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_a_user_without_a_home_folder_is_told_that_nothing_is_kept(tmp_path):
    """The user has no entry in the system's list, HOME is not set, and the package cannot be written to."""
    copy = tmp_path / "fastbp"
    shutil.copytree(Path(fastbp.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "*.nb?"))
    for package in (copy, copy / "codegen", copy / "kernels"):
        (package / "__pycache__").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    # As os.path.expanduser leaves "~" for such a user.
    (tmp_path / "sitecustomize.py").write_text("import os.path\nos.path.expanduser = lambda path: path\n")
    gone = ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in gone} | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "script.py"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[\('RuntimeWarning', '.*script\.py'\)\] True\n", done.stdout), done.stdout
    assert not (tmp_path / "~").exists()
