"""Each private name of other packages that fastbp uses does what fastbp needs of it.

A test that fails here after an update of Numba, scikit-learn or NumPy says which name has changed.
"""

import ast
import inspect
import re
from numbers import Integral, Real

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


def test_disk_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    class Recorder(compat.DiskCache):
        def __init__(self, stamp):
            self.backend = compat.open_disk_cache(double, stamp)
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
    assert run("another") == (["load", "save"], 0)  # the stamp decides what is stale


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


def test_only_compat_uses_private_names():
    """No other file imports a name with a leading underscore from these packages, or what is listed as private."""
    private = re.compile(r"\b_(?!_)\w+")
    for module, tree in TREES.items():
        if module == "compat":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in (
                "numba",
                "sklearn",
                "numpy",
                "joblib",
            ):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                found = [name for name in names if private.match(name)]
                assert not found, f"{module} imports {found}"
                listed = {"populate_array", "get_host_cpu_features", "FunctionCache"} & set(names)
                assert not listed, f"{module} imports {listed}"
    assert "get_host_cpu_features" in inspect.getsource(compat)
