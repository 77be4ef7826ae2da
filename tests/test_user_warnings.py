"""Warnings point at the user's line."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastbp
from fastbp import BackpropClassifier, user_warnings
from fastbp.user_warnings import warn_user

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


WORKERS = """
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
import joblib
from fastbp.user_warnings import warn_user
from work import warn

def start(worker):
    worker.start()
    worker.join()

if __name__ == "__main__":
    for function, of in ((warn, "of the user"), (warn_user, "of fastbp")):
        start(Thread(target=function, args=[f"thread {of}"]))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(function, f"thread pool {of}").result()
        joblib.Parallel(n_jobs=2)([joblib.delayed(function)(f"joblib {of}")])
        start(multiprocessing.get_context("spawn").Process(target=function, args=[f"process {of}"]))
"""


@pytest.mark.slow
def test_warnings_of_workers(tmp_path):
    """Where no line is the user's, as none calls `Thread(target=clf.fit)`, a warning points at fastbp."""
    (tmp_path / "script.py").write_text(WORKERS)
    (tmp_path / "work.py").write_text(
        "from fastbp.user_warnings import warn_user\n\ndef warn(message):\n    warn_user(message)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1]), "PYTHONWARNINGS": "always"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(.*):\d+: UserWarning: (.*) of (.*)$", done.stderr, re.MULTILINE)
    places = {(way, of): Path(place).name for place, way, of in found}
    ways = ("thread", "thread pool", "joblib", "process")
    expected = {(way, "the user"): "work.py" for way in ways} | {(way, "fastbp"): "user_warnings.py" for way in ways}
    assert places == expected, done.stderr


def runs_in(file):
    """A function whose source is in a file of this name, and that warns in its third line."""
    scope = {"warn_user": warn_user}
    exec(compile("\ndef run():\n    warn_user('here')\n", file, "exec"), scope)
    return scope["run"]


def test_what_runs_a_module_is_not_the_users():
    # `python -m fastbp` begins there. A thread has no line of this test below it.
    thread = Thread(target=runs_in("<frozen runpy>"))
    with pytest.warns(UserWarning, match="here") as caught:
        thread.start()
        thread.join()
    assert [warning.filename for warning in caught] == [user_warnings.__file__]


@pytest.mark.parametrize("name", ["fastbp", "sklearn", "joblib", "concurrent"])
@pytest.mark.parametrize("ending", ["_scripts", "-work", ".old"])
def test_a_folder_beside_a_package_is_the_users(name, ending):
    """Its name begins like that of the package."""
    folder = Path(importlib.import_module(name).__spec__.submodule_search_locations[0])
    file = str(folder.with_name(name + ending) / "script.py")
    with pytest.warns(UserWarning, match="here") as caught:
        runs_in(file)()
    assert [(warning.filename, warning.lineno) for warning in caught] == [(file, 3)]


SCRIPT = """
import warnings
from fastbp.activations import Logistic
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert Logistic()([0.0]) == 0.5  # compiled, as all of a fit is
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
