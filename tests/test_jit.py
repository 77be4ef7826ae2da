import errno
import gc
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import njit, typeof
from numba.core import event
from numba.core.errors import TypingError
from numba.extending import intrinsic
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor, compat
from fastbp.codegen import jit
from fastbp.codegen.jit import address_of, cached_jit, call_at
from fastbp.codegen.target import X86
from fastbp.kernels import backprop, prediction

PACKAGE = Path(fastbp.__file__).parent
SOURCE = """
def twice(x):
    return 2 * x


def thrice(x):
    return 3 * x
"""


@pytest.fixture
def load_module(monkeypatch):
    """Import a module from a file, until the end of the test."""

    def load(path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # Numba imports the module of what it loads from the disk, if no function of that name is in memory.
        monkeypatch.setitem(sys.modules, path.stem, module)
        return module

    return load


def copy_package(folder):
    """Copy the sources into a folder that can be written to, even if the package cannot."""
    for path in PACKAGE.rglob("*.py"):
        target = folder / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the disk cache; no warning has been given yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit._ForgivingCache, "_warned", False)
    monkeypatch.setattr(jit._ForgivingCache, "all_kept", True)
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path, load_module):
    """A module with functions to compile; a new `cached_jit` of one is what a new process has."""
    path = tmp_path / "small_functions.py"
    path.write_text(SOURCE)
    return load_module(path)


def hits_and_misses(function):
    return sum(function.stats.cache_hits.values()), sum(function.stats.cache_misses.values())


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.nb?")}


def test_second_process_compiles_nothing(cache, small):
    first = cached_jit(small.twice)
    assert not cache.exists()  # importing kernels writes nothing
    assert first(4.0) == 8 and first(4) == 8
    assert hits_and_misses(first) == (0, 2)
    files = snapshot(cache)
    assert len(files) == 2
    second = cached_jit(small.twice)
    assert second(5.0) == 10 and second(5) == 10
    assert hits_and_misses(second) == (2, 0)
    assert second.stats.cache_path.startswith(str(cache))
    assert snapshot(cache) == files


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: np.random.default_rng(0).bytes(len(content)),
    "one byte": lambda content: content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_replaced(cache, small, damage):
    cached_jit(small.twice)(4.0)
    (path,) = cache.rglob("*.nbc")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.warns(RuntimeWarning, match=r"cache of fastbp's compiled code could not be read") as caught:
        second = cached_jit(small.twice)
        assert second(5.0) == 10
    assert len(caught) == 1
    assert hits_and_misses(second) == (0, 1)
    third = cached_jit(small.twice)
    assert third(6.0) == 12
    assert hits_and_misses(third) == (1, 0)
    assert jit.all_code_is_kept()


def test_processes_that_save_at_once_lose_nothing(cache, small, monkeypatch):
    """Nor does one load what another has saved for other types: Numba has all of a function in one index."""
    replace = os.replace

    def save_another_first(*args):
        monkeypatch.setattr(os, "replace", replace)
        assert cached_jit(small.twice)(4) == 8
        replace(*args)

    monkeypatch.setattr(os, "replace", save_another_first)
    assert cached_jit(small.twice)(4.0) == 8
    gc.collect()
    later = cached_jit(small.twice)
    assert later(5.0) == 10 and later(5) == 10
    assert hits_and_misses(later) == (2, 0)


def test_recompiling_replaces_the_files(cache, small):
    for function in (small.twice, small.thrice):
        cached_jit(function)(4.0)
    cached_jit(small.twice).recompile()
    (path,) = cache.rglob("*.nbc")
    assert "thrice" in path.name


def test_another_folder_than_that_of_the_user_is_said(cache, small, tmp_path, monkeypatch):
    cache.touch()
    with pytest.warns(RuntimeWarning, match=r"NUMBA_CACHE_DIR=.* is not used, .* is in ") as caught:
        for function in (small.twice, small.thrice):
            assert cached_jit(function)(4.0)
    assert len(caught) == 1


def test_nowhere_to_write(cache, small, tmp_path, monkeypatch):
    # Files in the place of folders keep even root from making these: the one of NUMBA_CACHE_DIR, the one
    # beside the source, and the one in the home folder.
    cache.touch()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    (tmp_path / "__pycache__").touch()
    monkeypatch.setenv("HOME", str(cache))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.warns(RuntimeWarning, match=r"Set NUMBA_CACHE_DIR to a folder of yours") as caught:
        for function, factor in [(small.twice, 2), (small.thrice, 3)]:
            compiled = cached_jit(function)
            assert compiled(4.0) == 4 * factor and compiled(4) == 4 * factor
            assert compiled.stats.cache_path is None
    assert len(caught) == 1 and not jit.all_code_is_kept()


def test_full_disk(cache, small, monkeypatch):
    saves = []

    def save_overload(self, sig, data):
        saves.append(sig)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compat.FunctionCache, "save_overload", save_overload)
    compiled = cached_jit(small.twice)
    with pytest.warns(RuntimeWarning, match=r"could not be written \(OSError\(.*No space left") as caught:
        assert compiled(4.0) == 8 and compiled(4) == 8
    assert not jit.all_code_is_kept()
    assert (len(caught), len(saves)) == (1, 1)  # once it failed, it is not tried again


def test_each_processor_has_its_own_code(cache, small, monkeypatch):
    cached_jit(small.twice)(4.0)
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "CPU_NAME", "some-processor")
        other = cached_jit(small.twice)
        assert other(4.0) == 8 and hits_and_misses(other) == (0, 1)
    again = cached_jit(small.twice)
    assert again(4.0) == 8 and hits_and_misses(again) == (1, 0)


def test_code_of_other_sources_is_stale(cache, small, monkeypatch):
    cached_jit(small.twice)(4.0)
    for name in ("source_stamp", "_hash_sources"):
        monkeypatch.setattr(jit, name, lambda: "the stamp of another version")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = cached_jit(small.twice)
        assert other(4.0) == 8
    assert hits_and_misses(other) == (0, 1)
    assert len(snapshot(cache)) == 1  # in the place of the old one


def test_code_of_sources_that_were_replaced_is_not_kept(cache, small, monkeypatch):
    """An update, while a notebook has imported the version before and compiles later."""
    monkeypatch.setattr(jit, "_hash_sources", lambda: "the stamp of another version")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached_jit(small.twice)(4.0) == 8
    assert not snapshot(cache) and not jit.all_code_is_kept()


def test_sources_are_looked_at_when_they_are_imported(tmp_path):
    copy_package(tmp_path / "fastbp")
    script = """
import json, pathlib
from fastbp.codegen import jit
path = pathlib.Path(jit.__file__)
path.write_bytes(path.read_bytes() + b"# another version")
print(json.dumps([jit.source_stamp(), jit._hash_sources()]))
"""
    ((stamp, later),) = finish(start(script, tmp_path))
    assert stamp == jit.source_stamp() != later


@pytest.mark.parametrize("name", ["OPT", "BOUNDSCHECK"])
def test_code_with_other_checks_is_other_code(cache, small, monkeypatch, name):
    cached_jit(small.twice)(4.0)
    monkeypatch.setattr(numba.config, name, 2)
    other = cached_jit(small.twice)
    assert other(4.0) == 8 and hits_and_misses(other) == (0, 1)


def test_source_stamp_covers_all_files(tmp_path, monkeypatch):
    package = tmp_path / "copy"
    copy_package(package)
    monkeypatch.setattr(jit, "files", {"fastbp": package}.get)
    new_stamp = jit.source_stamp.__wrapped__
    stamps = {new_stamp()}
    assert stamps == {new_stamp()}
    sources = sorted(package.rglob("*.py"))
    assert package / "codegen" / "vectors.py" in sources
    for path in sources:
        path.write_bytes(path.read_bytes() + b"\n# another version\n")
        stamps.add(new_stamp())
    assert len(stamps) == len(sources) + 1


@pytest.mark.slow
def test_source_stamp_of_a_package_in_an_archive(tmp_path):
    copy_package(tmp_path / "source" / "fastbp")
    archive = shutil.make_archive(str(tmp_path / "package"), "zip", tmp_path / "source")
    script = "import json; from fastbp.codegen import jit; print(json.dumps([jit.__file__, jit.source_stamp()]))"
    ((file, stamp),) = finish(start(script, tmp_path, PYTHONPATH=archive))
    assert file.startswith(archive)
    assert stamp == jit.source_stamp()


def test_without_sources_nothing_is_kept(cache, small, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(jit, "files", {"fastbp": tmp_path / "empty"}.get)
    monkeypatch.setattr(jit, "source_stamp", jit.source_stamp.__wrapped__)
    with pytest.warns(RuntimeWarning, match=r"without its sources.* compiles in memory"):
        assert cached_jit(small.twice)(4.0) == 8
    assert not jit.all_code_is_kept() and not snapshot(tmp_path)


def test_no_folder_is_made_where_there_is_no_home(cache, small, tmp_path, monkeypatch):
    """A folder that NUMBA_CACHE_DIR names is the user's; one that Numba falls back to is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    (tmp_path / "__pycache__").touch()
    cache.touch()
    with pytest.warns(RuntimeWarning, match="there is no home folder"):
        assert cached_jit(small.twice)(4.0) == 8
    assert not os.path.lexists("~")
    monkeypatch.setattr(numba.config, "CACHE_DIR", os.path.join("~", "chosen"))
    assert cached_jit(small.twice)(4.0) == 8
    assert snapshot(tmp_path / "~" / "chosen")


def test_compiled_code_divides_as_numpy_does(cache, load_module, tmp_path):
    path = tmp_path / "divide.py"
    path.write_text("def divide(x, y):\n    return x / y\n")
    assert cached_jit(load_module(path).divide)(1.0, 0.0) == np.inf


@njit
def to_be_called(values, pair, factor):
    values[0] = factor * pair[0][1] + pair[1]


@njit
def run_call_at(address, values, pair, factor):
    call_at(address, (values, pair, factor))


def test_call_at():
    values, pair = np.zeros(2), (np.array([5, 7]), 0.5)
    kinds = tuple(map(typeof, (values, pair, 3)))
    run_call_at(address_of(to_be_called, kinds), values, pair, 3)
    assert values.tolist() == [21.5, 0]


# --- what a user hears of compiling ---


@pytest.fixture
def slow(monkeypatch, small):
    """Compiling takes longer than a user waits without a word; none has been said."""
    monkeypatch.setattr(jit, "PATIENCE", 0.0)
    monkeypatch.setattr(jit._CompilationNotice, "said", False)
    monkeypatch.setattr(jit._CompilationNotice, "spent", 0.0)
    return small


def test_long_compiling_is_explained_once(cache, slow, caplog):
    first = cached_jit(slow.twice)
    first(4.0)
    first(4)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("fastbp", "WARNING")
    assert "kept on disk, from where" in record.getMessage()
    assert "python -m fastbp warmup" in record.getMessage()


def test_the_notice_tells_where_code_is_not_kept(cache, slow, caplog, monkeypatch):
    def open_disk_cache(*_):
        raise RuntimeError("no folder here")

    monkeypatch.setattr(jit, "open_disk_cache", open_disk_cache)
    with pytest.warns(RuntimeWarning, match="no folder here"):
        cached_jit(slow.twice)(4.0)
    (record,) = caplog.records
    assert "cannot be kept on disk" in record.getMessage() and "NUMBA_CACHE_DIR" in record.getMessage()
    assert "warmup" not in record.getMessage()


def test_a_notice_that_cannot_be_given_stops_nothing(cache, slow):
    class Broken(logging.Handler):
        asked = False

        def emit(self, record):
            Broken.asked = True
            raise RuntimeError

    handler = Broken()
    jit.logger.addHandler(handler)
    try:
        assert cached_jit(slow.twice)(4.0) == 8
    finally:
        jit.logger.removeHandler(handler)
    assert Broken.asked


def test_the_notice_comes_once_after_a_warmup(cache, slow, caplog):
    with jit.no_compilation_notice():
        cached_jit(slow.twice)(4.0)
    assert not caplog.records
    cached_jit(slow.twice)(4)
    cached_jit(slow.thrice)(4.0)
    assert len(caplog.records) == 1


WORKERS = """
import json
from joblib import Parallel, delayed
from fastbp.codegen import jit
jit.PATIENCE = 0.0

def compile_here(name):
    import small
    from fastbp.codegen import jit
    jit.PATIENCE = 0.0
    function = getattr(small, name)
    return [function(4.0), sum(function.stats.cache_misses.values())]

if __name__ == "__main__":
    names = ["twice", "thrice"]
    print(json.dumps(Parallel(n_jobs=2)(delayed(compile_here)(name) for name in names) + [compile_here(HERE)]))
"""


@pytest.mark.slow
def test_workers_are_silent(tmp_path):
    """Each would say the same, and none knows of `setLevel` in the process that started it."""
    (tmp_path / "small.py").write_text(
        "from fastbp.codegen.jit import cached_jit\n" + SOURCE.replace("def", "@cached_jit\ndef")
        + "\n\n@cached_jit\ndef fourfold(x):\n    return 4 * x\n"
    )  # fmt: skip
    process = start(WORKERS.replace("HERE", "'fourfold'"), tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out) == [[8.0, 1], [12.0, 1], [16.0, 1]]  # all have compiled something
    assert err.count("fastbp is compiling its kernels") == 1, err  # the one that the user has started


def test_nothing_is_said_where_nothing_is_compiled(cache, slow, caplog):
    with jit.no_compilation_notice():
        cached_jit(slow.twice)(4.0)
    cached_jit(slow.twice)(5.0)  # from the disk
    assert not caplog.records


def test_short_compiling_is_silent(cache, slow, caplog, monkeypatch):
    monkeypatch.setattr(jit, "PATIENCE", 1000.0)
    cached_jit(slow.twice)(4.0)
    assert not caplog.records
    # The seconds of several functions add up.
    assert 0 < jit._CompilationNotice.spent < 1000
    monkeypatch.setattr(jit._CompilationNotice, "spent", 1000.0)
    cached_jit(slow.thrice)(4.0)
    assert len(caplog.records) == 1


def test_a_failed_compilation_says_nothing_of_later_ones(cache, slow, caplog, monkeypatch):
    monkeypatch.setattr(jit, "PATIENCE", 1000.0)
    failing = cached_jit(slow.twice)
    with pytest.raises(TypingError):
        failing(None)
    monkeypatch.setattr(jit, "PATIENCE", 0.0)
    njit(slow.thrice)(4.0)  # code of a user, not ours
    assert not caplog.records


@intrinsic
def interrupt(typingctx):
    raise KeyboardInterrupt


def interrupted():
    interrupt()


class Counter(event.Listener):
    starts = ends = 0

    def on_start(self, _):
        self.starts += 1

    def on_end(self, _):
        self.ends += 1


@pytest.mark.parametrize("ending", ["compiled", "failed", "interrupted"])
def test_the_notice_leaves_no_listener(cache, slow, ending):
    counter = Counter()
    event.register("numba:compile", counter)  # another one of the user, which hears of all
    try:
        if ending == "compiled":
            cached_jit(slow.twice)(4.0)
        elif ending == "failed":
            with pytest.raises(TypingError):
                cached_jit(slow.twice)(None)
        else:
            with pytest.raises(KeyboardInterrupt):
                cached_jit(interrupted)()
        assert event._registered["numba:compile"] == [counter]
    finally:
        event.unregister("numba:compile", counter)
    assert counter.starts == counter.ends > 0
    assert jit._CompilationNotice.spent > 0


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("ending", ["compiled", "failed", "interrupted"])
def test_garbage_is_not_looked_for_meanwhile(cache, small, ending, enabled):
    class Look(event.Listener):
        found = []

        def on_start(self, _):
            self.found.append(gc.isenabled())

        def on_end(self, _):
            pass

    look = Look()
    event.register("numba:run_pass", look)
    try:
        if not enabled:
            gc.disable()
        if ending == "compiled":
            cached_jit(small.twice)(4.0)
        elif ending == "failed":
            with pytest.raises(TypingError):
                cached_jit(small.twice)(None)
        else:
            with pytest.raises(KeyboardInterrupt):
                cached_jit(interrupted)()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
        event.unregister("numba:run_pass", look)
    assert look.found and not any(look.found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_of_a_process_that_compiles_looks_for_garbage(cache, small):
    class Fork(event.Listener):
        codes = []

        def on_start(self, _):
            if not self.codes:
                child = os.fork()
                if child == 0:
                    os._exit(7 if gc.isenabled() else 8)
                self.codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        def on_end(self, _):
            pass

    fork = Fork()
    event.register("numba:run_pass", fork)
    try:
        cached_jit(small.twice)(4.0)
    finally:
        event.unregister("numba:run_pass", fork)
    assert fork.codes == [7]


def start(script, folder, **changes):
    """Start a process in a folder, with the modules that are there and changes of the environment."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PACKAGE.parent)]), **changes}
    env = {name: value for name, value in env.items() if value is not None}
    command = [sys.executable, "-c", script]
    return subprocess.Popen(
        command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def start_fit(script, folder, **changes):
    """Start a process that compiles for training, with the least effort of LLVM: its speed does not matter."""
    return start(script, folder, NUMBA_OPT="1", **changes)


def finish(*processes):
    """Return what each process prints; none of them is left running."""
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            results.append(json.loads(out))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return results


def test_processes_that_start_at_once_without_a_cache(tmp_path):
    source = "from fastbp.codegen.jit import cached_jit\n" + SOURCE.replace("def", "@cached_jit\ndef")
    (tmp_path / "small.py").write_text(source)
    script = """
import warnings
import small
warnings.simplefilter("error")
print(small.twice(4.0) + small.thrice(4.0))
"""
    processes = [start(script, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2)]
    assert finish(*processes) == [20.0] * 2


# What a user does, with the warnings of ours and what was compiled.
FIT = """
import gc, json, warnings
import numpy as np
from numba.core.dispatcher import Dispatcher
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from fastbp import BackpropClassifier
    from fastbp.codegen.jit import _ForgivingCache
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    model = BackpropClassifier(3, max_iter=2, n_jobs=1, random_state=0).fit(X, np.arange(20) % 2)
    probabilities = model.predict_proba(X).tolist()
ours = [d for d in gc.get_objects() if isinstance(d, Dispatcher) and isinstance(d._cache, _ForgivingCache)]
print(json.dumps({
    "warnings": [str(w.message) for w in caught if "NUMBA_CACHE_DIR" in str(w.message)],
    "compiled": sorted(d.__name__ for d in ours if d.stats.cache_misses),
    "probabilities": probabilities,
}))
"""


# All that a first fit and a prediction need: each takes time. Nothing for inputs that are mostly zero, for several
# threads, for other activations.
COMPILED = [
    "_logistic_backward", "_logistic_forward", "_relu_backward", "_relu_forward", "begin_dense", "gather_rows",
    "multiply_panel", "multiply_tile_prefetch", "multiply_transposed", "predict", "predict_rows_of_thread", "train",
]  # fmt: skip


@pytest.fixture(scope="module")
def first_fit(tmp_path_factory):
    """The folder of the cache, and what a first fit with it prints."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, *finish(start_fit(FIT, folder, NUMBA_CACHE_DIR=str(folder)))


def test_fit_with_an_empty_cache(first_fit):
    _, result = first_fit
    assert (result["warnings"], result["compiled"]) == ([], COMPILED)


@pytest.mark.slow
def test_fit_without_a_folder_for_the_cache(first_fit, tmp_path):
    """Nothing can be written anywhere: not beside the package, not in the home folder."""
    _, cached = first_fit
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "below")
    copy = tmp_path / "fastbp"
    copy_package(copy)
    for path in {path.parent for path in copy.rglob("*.py")}:
        (path / "__pycache__").touch()
    (result,) = finish(start_fit(FIT, tmp_path, NUMBA_CACHE_DIR=below, HOME=below, XDG_CACHE_HOME=below))
    assert len(result["warnings"]) == 1 and "compiles in memory" in result["warnings"][0]
    assert result["compiled"] == COMPILED
    assert result["probabilities"] == cached["probabilities"]


def test_fit_in_a_second_process_compiles_nothing(first_fit, tmp_path):
    folder, cached = first_fit
    files = snapshot(folder)
    assert files
    # A home folder is not needed for it either.
    (result,) = finish(start_fit(FIT, tmp_path, NUMBA_CACHE_DIR=str(folder), HOME=None, XDG_CACHE_HOME=None))
    assert result == {"warnings": [], "compiled": [], "probabilities": cached["probabilities"]}
    assert snapshot(folder) == files


def test_fit_with_a_damaged_cache(first_fit, tmp_path):
    folder, cached = first_fit
    shutil.copytree(folder, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*._relu_forward-*.nbc")
    path.write_bytes(path.read_bytes()[:-100])
    (result,) = finish(start_fit(FIT, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")))
    assert len(result["warnings"]) == 1 and "could not be read" in result["warnings"][0]
    assert (result["compiled"], result["probabilities"]) == (["_relu_forward"], cached["probabilities"])


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
"""


@pytest.mark.skipif(os.name != "posix", reason="only there files can be limited")
def test_fit_where_a_file_can_be_written_in_part_only(first_fit, tmp_path):
    """As on a full disk."""
    folder, cached = first_fit
    shutil.copytree(folder, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*._relu_forward-*.nbc")
    path.unlink()
    files = sorted((tmp_path / "cache").rglob("*"))
    (result,) = finish(start_fit(LIMITED + FIT, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")))
    assert len(result["warnings"]) == 1 and "could not be written" in result["warnings"][0]
    assert (result["compiled"], result["probabilities"]) == (["_relu_forward"], cached["probabilities"])
    assert sorted((tmp_path / "cache").rglob("*")) == files


@pytest.mark.slow
def test_sixteen_processes_fit_at_once_with_an_empty_cache(first_fit, tmp_path):
    _, cached = first_fit
    processes = [start_fit(FIT, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for _ in range(16)]
    for result in finish(*processes):
        assert (result["warnings"], result["probabilities"]) == ([], cached["probabilities"])
    (result,) = finish(start_fit(FIT, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")))
    assert result == {"warnings": [], "compiled": [], "probabilities": cached["probabilities"]}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_fit_where_all_files_of_the_cache_are_damaged(damage, first_fit, tmp_path):
    folder, cached = first_fit
    shutil.copytree(folder, tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*.nbc"):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    first, second = (finish(start_fit(FIT, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")))[0] for _ in range(2))
    assert len(first["warnings"]) == 1 and first["compiled"] == COMPILED
    assert (second["warnings"], second["compiled"]) == ([], [])
    assert first["probabilities"] == second["probabilities"] == cached["probabilities"]


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="the name is that of an x86-64 processor")
def test_fit_with_a_cache_of_another_processor(first_fit, tmp_path):
    folder, cached = first_fit
    shutil.copytree(folder, tmp_path / "cache")
    other = {"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": ""}
    results = []
    for changes in (other, {}, other):
        results += finish(start_fit(FIT, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"), **changes))
    assert [result["warnings"] for result in results] == [[], [], []]
    assert results[0]["compiled"] and not results[1]["compiled"] and not results[2]["compiled"]
    assert results[1]["probabilities"] == cached["probabilities"]
    assert results[0]["probabilities"] == results[2]["probabilities"]
    np.testing.assert_allclose(results[0]["probabilities"], cached["probabilities"], rtol=1e-5)


WARMUP = """
import gc, json, warnings
import numpy as np
from numba.core.dispatcher import Dispatcher
import fastbp
from fastbp.codegen.jit import _ForgivingCache
from fastbp.system import _VARIANTS
warnings.simplefilter("ignore")
fastbp.warmup()
ours = [d for d in gc.get_objects() if isinstance(d, Dispatcher) and isinstance(d._cache, _ForgivingCache)]
before = {d: len(d.overloads) for d in ours}
for source, dtype in _VARIANTS:
    for zeros in (0.0, 0.95):
        rng = np.random.default_rng(0)
        X = (rng.integers(1, 99, (5_000, 40)) * (rng.random((5_000, 40)) > zeros)).astype(source)
        model = fastbp.BackpropClassifier((70, 5), activation=["tanh", "gelu"], max_iter=2, dtype=dtype)
        model.fit(X, np.arange(5_000) % 3).predict(X)
        model.predict(X[:2])
    # Larger than the caches.
    fastbp.BackpropClassifier((2000, 2000), dtype=dtype).initialize(40, np.arange(3)).predict(X[:200])
print(json.dumps([len(ours) > 20, sorted(d.__name__ for d in ours if len(d.overloads) > before[d])]))
"""


def test_nothing_is_left_to_compile_after_warmup(tmp_path):
    assert finish(start(WARMUP, tmp_path)) == [[True, []]]


def test_inputs_of_other_types_do_not_compile_training_again():
    """Only what gathers the samples knows their type."""
    X, y = np.arange(60.0).reshape(20, 3) / 8, np.arange(20) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        before = None
        for source in ("float32", "float64", "uint8"):
            BackpropClassifier(3, dtype="float32", max_iter=1).fit(X.astype(source), y)
            before = before or len(backprop.train.overloads)
            assert len(backprop.train.overloads) == before


def test_read_only_arrays_compile_nothing():
    """Numba has another type for them, as joblib shares them with its workers and pandas returns them."""
    rng = np.random.default_rng(0)
    X, y, weight = rng.random((300, 20)), rng.random(300), rng.random(300)
    sparse = csr_array(X * (X > 0.7))

    def use_all():
        for inputs in (X, sparse):
            reg = BackpropRegressor(hidden_layer_sizes=(3,), max_iter=1).fit(inputs, y, sample_weight=weight)
            for rows in (300, 2):
                reg.predict(inputs[:rows])
            for array in [*reg.coefs_, *reg.intercepts_]:
                array.flags.writeable = writeable
            reg.predict(inputs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        writeable = True
        use_all()
        kernels = (backprop.train, prediction.predict, prediction.predict_csr)
        before = [len(kernel.overloads) for kernel in kernels]
        assert all(before)
        writeable = False
        for array in (X, y, weight, sparse.data, sparse.indices, sparse.indptr):
            array.flags.writeable = False
        use_all()
        assert [len(kernel.overloads) for kernel in kernels] == before
