"""Each private name of other packages that fastbp uses does what fastbp needs of it.

A test that fails here after an update of Numba, scikit-learn or NumPy says which name has changed.
"""

import ast
import ctypes
import pickle
import re
from functools import partial
from numbers import Integral, Real
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import njit, typeof, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from sklearn.base import BaseEstimator
from test_imports import TREES

from fastbp import compat


def double(x):
    return 2 * x


def test_versions_are_stated_for_each_package():
    for package in ("numba", "sklearn", "numpy"):
        assert re.search(rf"^{package}\S*: .*\d\.\d+ to \d\.\d+$|^{package}\S+ +\d", compat.__doc__, re.MULTILINE)


def test_a_name_that_is_gone_is_reported():
    with (
        pytest.raises(ImportError, match=r"private names of numpy .* in versions 1 to 2, and numpy \d.* lacks one"),
        compat._private_names_of("numpy", "1 to 2"),
    ):
        from numpy import no_such_name  # noqa: F401


def test_cpu_name_and_features(monkeypatch):
    assert compat.cpu_name() and isinstance(compat.cpu_features(), str)
    # Numba reads these two, and the features of the host where the second is not set.
    monkeypatch.setattr(numba.core.config, "CPU_NAME", "some-processor")
    monkeypatch.setattr(numba.core.config, "CPU_FEATURES", "+some")
    assert (compat.cpu_name(), compat.cpu_features()) == ("some-processor", "+some")
    monkeypatch.setattr(numba.core.config, "CPU_FEATURES", None)
    assert re.fullmatch(r"([+-][\w.-]+,?)*", compat.cpu_features())


def test_numba_compiles_for_that_processor():
    codegen = cpu_target.target_context.codegen()
    assert codegen._get_host_cpu_name() == compat.cpu_name()
    assert codegen._get_host_cpu_features() == compat.cpu_features()


class Files:
    """Keeps machine code in one file; the stamp decides what is stale."""

    def __init__(self, stamp, base):
        self.stamp, self.path = stamp, Path(base)

    def load(self, key):
        stamp, saved, data = pickle.loads(self.path.read_bytes()) if self.path.exists() else (None, None, None)
        return pickle.loads(data) if (stamp, saved) == (self.stamp, repr(key)) else None

    def save(self, key, data):
        self.path.write_bytes(pickle.dumps((self.stamp, repr(key), compat.serialize(data))))


def test_disk_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    class Recorder(compat.DiskCache):
        def __init__(self, stamp):
            self.backend = compat.open_disk_cache(double, partial(Files, stamp))
            self.calls = []

        @property
        def cache_path(self):
            return self.backend.cache_path

        def load_overload(self, sig, target_context):
            self.calls.append("load")
            return self.backend.load_overload(sig, target_context)

        def save_overload(self, sig, data):
            self.calls.append("save")
            self.backend.save_overload(sig, data)

        def enable(self):
            pass

        def disable(self):
            pass

        def flush(self):
            self.backend.flush()

    def run(stamp):
        dispatcher, recorder = njit(double), Recorder(stamp)
        compat.set_disk_cache(dispatcher, recorder)
        assert dispatcher(2.0) == 4
        assert dispatcher.stats.cache_path.startswith(str(tmp_path))
        return recorder.calls, sum(dispatcher.stats.cache_hits.values())

    assert run("one") == (["load", "save"], 0)
    assert run("one") == (["load"], 1)
    assert run("another") == (["load", "save"], 0)


class Renamed:
    """Numba's objects in a version that has other names for the attributes that compat sets."""

    _cache_file = None


def test_attributes_that_are_gone_are_reported(monkeypatch):
    with pytest.raises(ImportError, match=r"private names of numba .* lacks one: .*_cache\b"):
        compat.set_disk_cache(Renamed(), None)
    monkeypatch.setattr(compat, "FunctionCache", lambda function: Renamed())
    with pytest.raises(ImportError, match=r"private names of numba .* lacks one: .*_impl\b"):
        compat.open_disk_cache(double, Files)


def test_machine_code_address():
    compiled = njit(double)
    kinds = (numba.float64,)
    compiled.compile(kinds)
    assert compat.machine_code_address(compiled.overloads[kinds]) > 0


@njit
def set_first(values, value):
    values[0] = value


@intrinsic
def call(typingctx, address, values, value):
    def codegen(context, builder, signature, args):
        compat.emit_call_of_compiled(context, builder, args[0], signature.args[1:], args[1:])
        return context.get_dummy_value()

    return types.void(address, values, value), codegen


@njit
def run_call(address, values, value):
    call(address, values, value)


def test_call_of_compiled():
    values = np.zeros(2)
    kinds = (typeof(values), types.float64)
    set_first.compile(kinds)
    run_call(compat.machine_code_address(set_first.overloads[kinds]), values, 1.5)
    assert values.tolist() == [1.5, 0]


def test_threads_of_numba():
    try:
        compat.start_numba_threads()
    except ValueError:  # the layer that is asked for is not installed
        pytest.skip("Numba has no threading layer here")
    assert compat.numba_threads_are_started() is True
    assert numba.threading_layer() in ("omp", "tbb", "workqueue")


class Estimator(BaseEstimator):
    _parameter_constraints = {
        "size": [compat.Interval(Integral, 1, None, closed="left"), compat.Options(Real, {np.inf})],
        "mode": [compat.StrOptions({"a", "b"})],
    }

    def __init__(self, size=1, mode="a"):
        self.size, self.mode = size, mode

    @compat.fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, classes=None):
        self.first = compat.check_partial_fit_first_call(self, classes)
        compat.check_feature_names(self, X, reset=True)
        return self


@pytest.mark.parametrize(("values", "name"), [({"size": 0}, "size"), ({"size": 2.5}, "size"), ({"mode": "c"}, "mode")])
def test_parameter_validation(values, name):
    with pytest.raises(ValueError, match=f"The '{name}' parameter of Estimator must be"):
        Estimator(**values).fit(None, [0, 1])
    with pytest.raises(ValueError, match=f"The '{name}' parameter of Estimator must be"):
        compat.check_parameters(Estimator(**values))
    Estimator(size=np.inf).fit(np.zeros((2, 2)), [0, 1])


def test_first_call_of_partial_fit():
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        Estimator().fit(np.zeros((2, 2)))
    model = Estimator().fit(np.zeros((2, 2)), [1, 0])
    assert model.first and model.classes_.tolist() == [0, 1]
    assert not model.fit(np.zeros((2, 2))).first


def test_feature_names():
    pandas = pytest.importorskip("pandas")
    model = Estimator().fit(pandas.DataFrame({"one": [1], "two": [2]}), [0, 1])
    assert model.feature_names_in_.tolist() == ["one", "two"]
    assert not hasattr(model.fit(np.zeros((2, 2))), "feature_names_in_")


def test_sample_weights():
    X = np.zeros((3, 2))
    weight = compat.check_sample_weight([1, 2, 3], X, dtype=np.float32, ensure_non_negative=True)
    assert weight.dtype == np.float32 and weight.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"sample_weight.shape"):
        compat.check_sample_weight([1, 2], X, dtype=np.float32)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        compat.check_sample_weight([1, -2, 3], X, dtype=np.float32, ensure_non_negative=True)


def test_fields_of_arrays(monkeypatch):
    array = np.zeros((7, 3))
    fields = (ctypes.c_int64 * 3).from_address(compat.array_fields(array))
    shape = (ctypes.c_int64 * 2).from_address(fields[2])
    assert (fields[0], tuple(shape)) == (array.ctypes.data, (7, 3))
    array.resize((2, 4), refcheck=False)
    assert tuple((ctypes.c_int64 * 2).from_address(fields[2])) == (2, 4)
    compat._array_fields_are_as_expected.cache_clear()
    monkeypatch.setattr(compat, "_fields_of", lambda array: id(array) + 8)
    with pytest.raises(RuntimeError, match=r"NumPy .* keeps its arrays"):
        compat.array_fields(array)
    compat._array_fields_are_as_expected.cache_clear()


def test_mersenne_twister():
    assert compat.mersenne_twister_of(np.random.RandomState(np.random.PCG64(0))) is None
    random_state = np.random.RandomState(7)
    generator = compat.mersenne_twister_of(random_state)
    assert type(generator) is np.random.MT19937
    state = compat.mersenne_twister_state(generator, 624)
    expected = random_state.get_state()
    np.testing.assert_array_equal(state[:-1], expected[1])
    assert state[-1] == expected[2]
    state[-1] = 5  # a view, not a copy
    assert random_state.get_state()[2] == 5
    assert compat.mersenne_twister_state(generator, 623) is None


FOREIGN = {"numba", "sklearn", "numpy", "scipy", "joblib", "llvmlite"}
# What compat has under a name of its own although it has no leading underscore.
LISTED = {"FunctionCache", "get_host_cpu_features", "get_pointer_to_function", "call_conv", "CPU_NAME", "CPU_FEATURES"}

OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}  # documented


def private_names(tree):
    """What a module uses of the private names of other packages, as far as its text shows it.

    A private attribute of an object counts unless the object is the module's own: `self`, `cls`, a class of this
    module, or unless some class of fastbp has an attribute of this name.
    """

    def is_private(name):
        return name in LISTED or (name.startswith("_") and not name.endswith("__") and name not in OF_NAMED_TUPLES)

    found, foreign = set(), set()  # `foreign` are names of this module for other packages and what is in them
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [(alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [(f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        else:
            continue
        for path, name in imported:
            root, *parts = path.split(".")
            if root in FOREIGN:
                foreign.add(name)
                found |= {path for part in parts if is_private(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            name = root.id if isinstance(root, ast.Name) else None
            if name in foreign or (name not in ("self", "cls", "sys", "os") and node.attr not in OWN_ATTRIBUTES):
                found.add(ast.unparse(node))
    return found


def own_attributes(tree):
    """The attributes that the classes of a module have."""
    for scope in ast.walk(tree):
        if isinstance(scope, ast.ClassDef):
            for node in ast.walk(scope):
                match node:
                    case ast.FunctionDef(name) | ast.Name(name, ast.Store()):
                        yield name
                    case ast.Attribute(ast.Name("self" | "cls"), name, ast.Store()):
                        yield name


OWN_ATTRIBUTES = {name for tree in TREES.values() for name in own_attributes(tree)}


@pytest.mark.parametrize("module", sorted(set(TREES) - {"compat"}))
def test_only_compat_uses_private_names(module):
    assert not private_names(TREES[module])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from sklearn.utils import _foo", {"sklearn.utils._foo"}),
        ("from sklearn.utils._foo import bar", {"sklearn.utils._foo.bar"}),
        ("import scipy._lib", {"scipy._lib"}),
        ("import scipy._lib as lib", {"scipy._lib"}),
        ("import numpy as np\nnp.core._foo(np.random._bar.baz)", {"np.core._foo", "np.random._bar"}),
        ("import sklearn.utils\ndef f():\n    return sklearn.utils._foo", {"sklearn.utils._foo"}),
        ("from numba import config\nconfig.CPU_NAME", {"config.CPU_NAME"}),
        ("from numba.core.caching import FunctionCache", {"numba.core.caching.FunctionCache"}),
        ("from joblib import parallel\nparallel._backend", {"parallel._backend"}),
        ("def f(dispatcher):\n    dispatcher._cache = 1", {"dispatcher._cache"}),
        ("f().x._target", {"f().x._target"}),
        ("from numpy.random import mtrand\nmtrand._rand.seed()", {"mtrand._rand"}),
        ("import numpy as np\nnp.__version__\nself._loss\nclf._loss", set()),
    ],
)
def test_the_search_for_private_names(text, found):
    assert private_names(ast.parse(text)) == found


def test_parts_are_compiled_into_others_only():
    inner = njit(double, pipeline_class=compat.PartCompiler, no_cpython_wrapper=True, no_cfunc_wrapper=True)

    @njit(pipeline_class=compat.WholeCompiler, no_cfunc_wrapper=True)
    def outer(x):
        return inner(x) + 1

    assert outer(20) == 41
    (part,), (whole,) = inner.overloads.values(), outer.overloads.values()
    with pytest.raises(RuntimeError, match="no machine code"):
        compat.machine_code_address(part)
    assert compat.machine_code_address(whole)


inlined = partial(njit, pipeline_class=compat.PartCompiler, inline="always")


@inlined
def double_here(x):
    return 2 * x if x > 1 else x + x


@inlined
def add_up(n, factor):
    total = 0
    for i in range(n):
        if i == 3:
            continue
        total += double_here(i) * factor
    return total


def test_inlined_blocks_are_moved(monkeypatch):
    moved = []
    monkeypatch.setattr(compat._MovedBlock, "__deepcopy__", lambda block, memo: moved.append(block) or block)

    @njit(pipeline_class=compat.WholeCompiler)
    def twice(n):
        return add_up(n, 1) + add_up(n + 1, 10)

    assert twice(6) == 24 + 360
    # Both calls, those in them, and no block of another class than Numba's is left.
    assert len({id(block) for block in moved}) >= 12
    assert {type(block) for block in moved} == {compat.Block}
