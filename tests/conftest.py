"""What holds for all tests: kinds of tests, and that none runs for ever."""

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

import joblib
import numba
import pytest

import fastbp

# Tests whose results depend on the vector instructions in use; `.ci/run` repeats them for each width of vectors.
NUMERICAL = {
    "test_activations", "test_backprop", "test_bitmask", "test_bounds", "test_csr", "test_dropout", "test_elementary",
    "test_inspection", "test_losses", "test_matmul", "test_memory", "test_optimizers", "test_processor",
    "test_random_bits", "test_sparse", "test_tiles", "test_transpose", "test_vectors",
}  # fmt: skip
# The others that `.ci/run` repeats with the oldest versions. Of the estimators what holds for all versions of
# scikit-learn: other tests of theirs compare with the texts and rules of 1.9.
VERSIONS = {
    "test_classifier", "test_compiled_predictor", "test_persistence", "test_plots", "test_regressor",
    "test_sparse_input", "test_target",
}  # fmt: skip
# In files of the first kind but of the second: they choose the vector instructions, or count beyond 2^31.
NOT_NUMERICAL = ("test_kernels_stay_inside_their_arrays_on_the_least_", "test_more_than_two_to_the_31_")
# Of the estimators' tests those that compare with scikit-learn's results.
NUMERICAL_OF_THE_ESTIMATORS = {
    "test_classifier": ("test_same_", "test_float32_", "test_a_prediction_", "test_squared_"),
    "test_inputs": ("test_layouts_",),
    "test_regressor": ("test_the_gradient_",),
}

_terminal = pytest.StashKey[int]()


def pytest_configure(config):
    config.addinivalue_line("markers", "numerical: what is computed depends on the processor's vector instructions")
    config.addinivalue_line("markers", "versions: what else depends on those of Numba, NumPy and scikit-learn")
    config.addinivalue_line("markers", "slow: takes minutes; only with -m slow")
    config.stash[_terminal] = os.dup(2)  # pytest captures the stream itself during a test
    if numba.config.DISABLE_JIT:
        raise pytest.UsageError("NUMBA_DISABLE_JIT is set, and the kernels run only as compiled code")


# --- several processes: pytest -n ---


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """The processes of `-n auto`: with more than four, most of the time each of them imports and compiles."""
    if config.option.dist == "no":  # else tests of a file, which share what they set up, would be dealt out
        config.option.dist = "worksteal"
    return min(4, joblib.cpu_count())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
    """Fill the disk cache that they share: each would compile what the others compile at the same time."""
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1])}
    half = "from fastbp import system; system._VARIANTS = system._VARIANTS[{}::2]; system.warmup()"
    commands = [[sys.executable, "-P", "-c", half.format(i)] for i in range(2)]
    for process in [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for command in commands]:
        process.wait()  # whatever comes of it: the tests will show


def pytest_collection_modifyitems(items):
    for item in items:
        file, name = item.path.stem, item.name
        is_excluded = name.startswith(NOT_NUMERICAL)
        if (file in NUMERICAL and not is_excluded) or name.startswith(NUMERICAL_OF_THE_ESTIMATORS.get(file, ())):
            item.add_marker("numerical")
        if file in VERSIONS or is_excluded:
            item.add_marker("versions")


@pytest.fixture
def ctrl_c_interrupts():
    """A process that a shell script starts in the background ignores Ctrl-C, and so does pytest in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# pytest-timeout interrupts a test from Python. Compiled code does not notice that: a kernel that waits for ever, as a
# thread at a barrier, is ended with the process, some time after.
_GRACE = 60


def _end_later(config, seconds):
    limit = float(config.getoption("timeout") or config.getini("timeout") or 0)
    if limit and not config.getoption("usepdb"):
        faulthandler.dump_traceback_later(seconds(limit), exit=True, file=config.stash[_terminal])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _end_later(item.config, lambda limit: limit + _GRACE)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure(config):
    # Python waits for all threads before it ends: one that a failed test has left behind may never come back. A process
    # of pytest-xdist waits for the others, too, and is ended with the first.
    if not hasattr(config, "workerinput"):
        _end_later(config, lambda limit: _GRACE)
