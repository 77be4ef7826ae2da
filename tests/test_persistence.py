"""`save`, `load`, and the guard of pickles and skops files."""

import copy
import errno
import json
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mutations import join, split
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import make_scorer, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor, FormatError
from fastbp.activations import Elu, LeakyRelu, Logistic, PiecewiseLinear, Relu, Threshold
from fastbp.codegen.target import CACHE_LINE

pytest.importorskip("safetensors", reason="the extra 'save' is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Got `batch_size` less than 1 or larger"),
]

RNG = np.random.RandomState(0)
X = RNG.randn(40, 6)
CODES = RNG.permutation(np.arange(40) % 3)
TARGETS = X @ RNG.randn(6, 2)


def labels(*names, dtype=None):
    return np.array(names, dtype)[CODES % len(names)]


def classifier(y=CODES, X=X, **parameters):
    parameters = {"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0} | parameters
    return BackpropClassifier(**parameters).fit(X, y)


def regressor(y=TARGETS[:, 0], loss="squared_error", **parameters):
    parameters = {"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0} | parameters
    return BackpropRegressor(loss, **parameters).fit(X, y)


def in_parts(model, y, n=3):
    first = {"classes": np.unique(y)} if isinstance(model, BackpropClassifier) else {}
    for _ in range(n):
        model.partial_fit(X, y, **first)
    return model


def edited():
    model = classifier()
    model.coefs_[0] = np.asfortranarray(model.coefs_[0] * 2)
    model.coefs_[1] = model.coefs_[1].astype(np.float32)
    return model


def with_names():
    pd = pytest.importorskip("pandas")
    return classifier(X=pd.DataFrame(X, columns=["a", "β", "", "a long name", "x\0", "\U0001f600"]))


MODELS = {
    "integers": classifier,
    "two classes": lambda: classifier(CODES > 1, hidden_layer_sizes=(4, 3), solver="sgd"),
    "small integers": lambda: classifier(CODES.astype(np.uint8), dtype="float32"),
    "floats": lambda: classifier(labels(1.0, 2.0, -3.0)),
    "strings": lambda: classifier(labels("no", "perhaps", "yes")),
    "wide strings": lambda: classifier(labels("no", "ye\u00df", dtype="<U9")),
    "objects": lambda: classifier(labels("no", "perhaps", "", dtype=object)),
    "one class": lambda: classifier(np.ones(40)),
    "multilabel": lambda: classifier(np.column_stack([CODES > 0, CODES > 1, CODES == 0]).astype(int)),
    "sparse multilabel": lambda: classifier(csr_matrix(np.column_stack([CODES > 0, CODES > 1]).astype(int))),
    "no hidden layer": lambda: classifier(hidden_layer_sizes=()),
    "float32": lambda: classifier(X=X.astype(np.float32)),
    "lbfgs": lambda: classifier(solver="lbfgs"),
    "lbfgs in float32": lambda: classifier(solver="lbfgs", dtype="float32"),
    "many epochs": lambda: classifier(max_iter=30, early_stopping=True, n_iter_no_change=np.inf),
    "parameters": lambda: classifier(
        solver="adamw", hidden_layer_sizes=np.array([4, 3]), alpha=np.float32(0.1), learning_rate="cosine",
        class_weight={0: 1.5, 1: 2}, dropout=[0.1, 0.0], weight_decay=0.1, max_grad_norm=1, max_time=1e6, n_jobs=1,
        label_smoothing=0.1, early_stopping=True, scoring="accuracy", random_state=np.int64(3), verbose=False,
        activation=[LeakyRelu(0.2), "tanh"],
    ),
    "class weights by name": lambda: classifier(labels("no", "yes"), class_weight={"no": 1, "yes": 0.5}),
    "multilabel weights": lambda: classifier(
        np.column_stack([CODES > 0, CODES > 1]).astype(int), class_weight=[{0: 1, 1: 3}, {0: 0.5, 1: 1}]
    ),
    "activations": lambda: classifier(
        hidden_layer_sizes=(4, 3, 4, 2, 3), loss="squared_error", output_activation=Elu(0.3),
        activation=(PiecewiseLinear(-2, 1.5), Threshold("tanh"), Logistic(slope=np.float64(0.7)), Relu(), "gaussian"),
    ),
    "names": with_names,
    "edited": edited,
    "partial_fit": lambda: in_parts(BackpropClassifier((5,), random_state=7), CODES),
    "dropout": lambda: in_parts(BackpropRegressor(hidden_layer_sizes=(5,), dropout=0.3, random_state=7), TARGETS),
    "generator": lambda: in_parts(BackpropClassifier((5,), random_state=np.random.RandomState(5)), CODES),
    "initialized": lambda: BackpropClassifier((5,), random_state=0).initialize(6, ["a", "b"]),
    "targets": lambda: regressor(TARGETS),
    "validation": lambda: BackpropRegressor(hidden_layer_sizes=(5,), max_iter=20).fit(
        X, TARGETS, X_val=X[:9], y_val=TARGETS[:9]
    ),
    "quantile": lambda: regressor(loss="quantile", quantile=[0.1, 0.5, 0.9]),
    "huber": lambda: regressor(TARGETS, "huber", delta=0.3),
    "poisson": lambda: regressor(np.exp(TARGETS), "poisson"),
    "changed parameters": lambda: classifier().set_params(hidden_layer_sizes=(7,), loss="squared_error", max_iter=9),
}  # fmt: skip


def save_and_load(model, path, **options):
    fastbp.save(model, path / "model.safetensors", **options)
    return fastbp.load(path / "model.safetensors")


def assert_equal(one, other, where="model"):
    """Compare types and bits of values of any kind."""
    one, other = (value.item() if isinstance(value, np.generic) else value for value in (one, other))
    assert type(one) is type(other), where
    if isinstance(one, BackpropClassifier | BackpropRegressor):
        assert_equal(one.__getstate__(), other.__getstate__(), where)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}.{i}")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        assert one.tobytes() == other.tobytes() if one.dtype != object else one.tolist() == other.tolist(), where
    elif isinstance(one, np.random.RandomState):
        assert_equal(one.get_state(legacy=False), other.get_state(legacy=False), where)
    elif hasattr(one, "__dict__") and not callable(one):
        assert_equal(vars(one), vars(other), where)
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("kind", MODELS)
def test_a_loaded_model_is_the_same(kind, tmp_path):
    model = MODELS[kind]()
    loaded = save_and_load(model, tmp_path)
    if kind == "edited":
        model.coefs_[1] = model.coefs_[1].astype(np.float64)  # the type of the first
    assert_equal(model, loaded)
    inputs = getattr(model, "feature_names_in_", None)
    inputs = X if inputs is None else pytest.importorskip("pandas").DataFrame(X, columns=inputs)
    for method in {"predict", "predict_proba"} & set(dir(model)):
        found, expected = getattr(loaded, method)(inputs), getattr(model, method)(inputs)
        if not isinstance(expected, np.ndarray):
            found, expected = found.toarray(), expected.toarray()
        assert_equal(expected, found)
    for array in (*loaded.coefs_, *loaded.intercepts_):  # they keep no more memory than they need
        assert array.flags.writeable and (array.flags.owndata or array.base.nbytes <= array.nbytes + CACHE_LINE)


@pytest.mark.parametrize(
    "kind", ["partial_fit", "dropout", "generator", "initialized", "parameters", "float32", "targets"]
)
@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
def test_training_continues_bit_for_bit(kind, how, tmp_path):
    model = MODELS[kind]()
    if how == "partial_fit":
        model.set_params(early_stopping=False, scoring=None)
    else:
        model.set_params(warm_start=True, max_iter=2)
    loaded = save_and_load(model, tmp_path)
    y = TARGETS if isinstance(model, BackpropRegressor) else np.array(model.classes_)[CODES % len(model.classes_)]
    for estimator in (model, loaded):
        for _ in range(2):
            (estimator.partial_fit if how == "partial_fit" else estimator.fit)(X.astype(model.coefs_[0].dtype), y)
    assert_equal(model, loaded)


@pytest.mark.parametrize("make", [lambda: MODELS["dropout"](), lambda: MODELS["partial_fit"]()])
def test_without_its_memory_the_optimizer_begins_anew(make, tmp_path):
    model = make()
    loaded = save_and_load(model, tmp_path, optimizer=False)
    size = (tmp_path / "model.safetensors").stat().st_size
    y = TARGETS if isinstance(model, BackpropRegressor) else CODES
    assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.loss_curve_ == model.loss_curve_
    fresh = BackpropRegressor if isinstance(model, BackpropRegressor) else BackpropClassifier
    fresh = fresh(**model.get_params()).initialize(6, np.unique(CODES) if fresh is BackpropClassifier else 2)
    fresh.coefs_, fresh.intercepts_ = copy.deepcopy((model.coefs_, model.intercepts_))
    del fresh._shuffling  # `initialize` has drawn
    fresh.partial_fit(X, y), loaded.partial_fit(X, y)
    for ours, theirs in zip(loaded.coefs_, fresh.coefs_, strict=True):
        assert_array_equal(ours, theirs)
    assert_equal(save_and_load(loaded, tmp_path), loaded)
    assert (tmp_path / "model.safetensors").stat().st_size > size


class Mine(BackpropClassifier):
    pass


class Square(Relu):
    name = "square"


SCORER = make_scorer(r2_score)
UNSAVED = {
    "not fitted": (BackpropClassifier, NotFittedError, "not fitted yet"),
    "subclass": (lambda: Mine((3,), max_iter=1).fit(X, CODES), TypeError, r"got Mine\. .*skops.io.dump or joblib.dump"),
    "pipeline": (lambda: make_pipeline(StandardScaler(), classifier()), TypeError, "got Pipeline"),
    "ensemble": (lambda: BaggingClassifier(classifier(), n_estimators=1).fit(X, CODES), TypeError, "got Bagging"),
    "table": (
        lambda: fastbp.make_tabular_classifier(max_updates=2, n_members=1).fit(X, CODES), TypeError, "got TabularC",
    ),
    "nothing": (lambda: None, TypeError, "got NoneType"),
    "scorer": (lambda: regressor(scoring=SCORER), ValueError, r"is code.*set_params\(scoring=None\)"),
    "own activation": (lambda: classifier().set_params(activation=Square()), ValueError, r"activation=Square\(\) c"),
    "own activation in use": (lambda: _with(classifier(), "_activations", Square()), ValueError, "Square"),
    "other generator": (
        lambda: classifier(random_state=np.random.RandomState(np.random.PCG64(1))), ValueError, "generator PCG64",
    ),
    "invalid parameter": (lambda: classifier().set_params(alpha=-1), ValueError, "'alpha' parameter .* must be"),
    "weights of NaN": (lambda: _with(classifier(), "coefs_", np.full((6, 5), np.nan)), ValueError, "must be finite"),
    "weights of a wrong shape": (lambda: _with(classifier(), "coefs_", np.ones((6, 4))), ValueError, r"cepts_\[0\]"),
    "weights of a list": (lambda: _with(classifier(), "coefs_", [[1.0]]), ValueError, r"coefs_\[0\] must be an array"),
    "long doubles": (lambda: _renamed(np.arange(3, dtype=np.longdouble)), ValueError, "array of float128"),
    "objects": (lambda: _renamed(np.array([1, 2, None])), ValueError, "classes is an array of object"),
    "very long parameters": (lambda: classifier().set_params(scoring="x" * 2**20), ValueError, "1048576.*joblib.dump"),
}  # fmt: skip


def _with(model, attribute, first):
    setattr(model, attribute, [first, *getattr(model, attribute)[1:]])
    return model


def _renamed(classes):
    model = classifier()
    model.classes_ = classes
    return model


@pytest.mark.parametrize("kind", UNSAVED)
def test_what_is_not_saved(kind, tmp_path):
    make, error, message = UNSAVED[kind]
    model = make()
    with pytest.raises(error, match=message):
        fastbp.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_callable_scorer_of_the_past(tmp_path):
    model = regressor(scoring=SCORER, early_stopping=True).set_params(scoring=None)
    loaded = save_and_load(model, tmp_path)
    assert_array_equal(loaded.predict(X), model.predict(X))
    for estimator in (model, loaded):  # other scores do not continue those
        estimator.set_params(warm_start=True).fit(X, TARGETS[:, 0])
        assert len(estimator.validation_scores_) == 3
    assert_equal(model, loaded)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of models that together have everything that a file can have."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("objects", "names", "partial_fit", "dropout", "generator", "parameters", "activations", "many epochs",
                 "lbfgs", "quantile"):  # fmt: skip
        fastbp.save(MODELS[kind](), folder / f"{kind}.safetensors")
    return folder


def tensor(header, name, **entries):
    header[name] |= entries


def fitted(model, *names, value):
    """Set an entry of "fitted"."""
    entry = model["fitted"]
    for name in names[:-1]:
        entry = entry[name]
    entry[names[-1]] = value


# The file, what is changed in header and model, and what the message says.
DAMAGES = {
    "newer": (lambda h, m: h["__metadata__"].update(format_version="2"), "format version is 2, .*Install a newer"),
    "version 0": (lambda h, m: h["__metadata__"].update(format_version="0"), "no format version 0"),
    "another format": (lambda h, m: h["__metadata__"].update(format="pt"), "does not say that it is one"),
    "more metadata": (lambda h, m: h["__metadata__"].update(more="1"), r"unknown entries \['more'\]"),
    "no tensor": (lambda h, m: fitted(m, "coefs", 0, value={"tensor": "no"}), "tensor 'no' is missing"),
    "tensor used twice": (lambda h, m: fitted(m, "coefs", 1, value={"tensor": "coefs.0"}), "'coefs.0' is missing"),
    "unknown tensor": (lambda h, m: m["fitted"].pop("shuffling"), r"unknown tensors \['shuffling.generator.key'"),
    "shape": (lambda h, m: tensor(h, "coefs.0", shape=[5, 6]), r"coefs_\[0\] must have the shape \(6, n_units\)"),
    "shape of a bias": (lambda h, m: tensor(h, "intercepts.0", shape=[5, 1]), r"intercepts_\[0\] must have the shape"),
    "dtype": (lambda h, m: tensor(h, "coefs.0", dtype="I64"), r"coefs_\[0\] must be an array of float32 or float64"),
    "size": (lambda h, m: tensor(h, "intercepts.0", dtype="F32", shape=[10]), r"intercepts_\[0\] must have the shape"),
    "dtypes": (lambda h, m: tensor(h, "intercepts.0", dtype="F16", shape=[20]), r"must be an array of .*, got float16"),
    "unknown dtype": (lambda h, m: tensor(h, "coefs.0", dtype="BF16"), r"tensors of \['BF16'\]"),
    "classes": (lambda h, m: fitted(m, "classes", value={"floats": "classes"}), "'classes' must be of float64"),
    "two classes": (lambda h, m: tensor(h, "classes", dtype="I32", shape=[6]), "6 classes do not fit"),
    "no activation": (lambda h, m: fitted(m, "activations", value=[]), "one activation or more"),
    "activations": (lambda h, m: m["fitted"]["activations"].pop(), "one array for each of 1 layers"),
    "softmax in between": (
        lambda h, m: fitted(m, "activations", 0, value={"activation": {"name": "softmax"}}), "softmax for its outputs",
    ),
    "unknown activation": (
        lambda h, m: fitted(m, "activations", 0, value={"activation": {"name": "os.abort"}}), "activation 'os.abort'",
    ),
    "parameter of an activation": (
        lambda h, m: fitted(m, "activations", 0, value={"activation": {"name": "elu", "alpha": -1.0}}), "above 0, got",
    ),
    "no parameter of an activation": (
        lambda h, m: fitted(m, "activations", 0, value={"activation": {"name": "elu"}}), r"\[\], not \['alpha'\]",
    ),
    "estimator": (lambda h, m: m.update(estimator="Pipeline"), "no estimator 'Pipeline'"),
    "other estimator": (lambda h, m: m.update(estimator="BackpropRegressor"), "unknown entries .'class_weight'"),
    "unknown parameter": (lambda h, m: m["parameters"].update(depth=3), r"unknown entries \['depth'\]"),
    "invalid parameter": (lambda h, m: m["parameters"].update(alpha=-1), "'alpha' parameter of BackpropCl"),
    "parameter of a wrong type": (lambda h, m: m["parameters"].update(solver=["adam"]), "'solver' parameter"),
    "code": (lambda h, m: m["parameters"].update(scoring={"import": "os.system"}), "must have one entry, one of"),
    "loss": (lambda h, m: fitted(m, "loss", "name", value="hinge"), "_loss: name cannot be 'hinge'"),
    "parameters of the loss": (lambda h, m: fitted(m, "loss", "parameters", value={"tuple": []}), "0 parameters"),
    "steps": (lambda h, m: fitted(m, "optimizer", "steps", value=2**63), "_optimizer: steps cannot be"),
    "rate": (lambda h, m: fitted(m, "optimizer", "rate", value={"float": "nan"}), "_optimizer: rate cannot be nan"),
    "solver": (lambda h, m: fitted(m, "optimizer", "solver", value="sgd"), "memory of the optimizer 'sgd' does"),
    "no memory": (lambda h, m: fitted(m, "optimizer", "parts", value=[]), "unknown tensors"),
    "curve": (lambda h, m: fitted(m, "progress", "loss_curve", value=["x"]), "loss_curve cannot be"),
    "epochs": (lambda h, m: fitted(m, "progress", "epochs", value=-1), "epochs cannot be -1"),
    "position": (lambda h, m: fitted(m, "shuffling", "generator", "generator", "pos", value=625), "position 625"),
    "sparse input": (lambda h, m: fitted(m, "binarizer", "sparse_input", value=[1]), "sparse_input_ cannot be"),
    "kind of labels": (lambda h, m: fitted(m, "binarizer", "y_type", value="continuous"), "y_type_ cannot be"),
    "seed": (lambda h, m: fitted(m, "shuffling", "seed", value=None), "a seed and a generator, or neither"),
    "features": (lambda h, m: fitted(m, "n_features_in", value=2**40), r"the shape \(1099511627776, n_units\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_refused(kind, files, tmp_path):
    change, message = DAMAGES[kind]
    header, model, rest = split((files / "partial_fit.safetensors").read_bytes())
    change(header, model)
    path = tmp_path / "model"
    path.write_bytes(join(header, model, rest))
    with pytest.raises(FormatError, match=message) as caught:
        fastbp.load(path)
    assert str(path) in str(caught.value)


def put(data, name, values):
    """Replace the numbers of a tensor."""
    header, _, _ = split(data)
    begin, _ = header[name]["data_offsets"]
    begin += len(data) - max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    values = np.ascontiguousarray(values)
    return data[:begin] + values.tobytes() + data[begin + values.nbytes :]


@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        ("partial_fit", "coefs.0", np.nan, "must be finite"),
        ("partial_fit", "intercepts.1", np.inf, "must be finite"),
        ("partial_fit", "shuffling.order", np.uint8(40), "each number from 0 on once"),
        ("partial_fit", "shuffling.order", np.uint8([7, 7]), "each number from 0 on once"),
        ("generator", "parameters.random_state.key", np.zeros(624, np.uint32), "draws nothing but 0"),
        ("names", "feature_names_in.lengths", 2**62, "do not fit"),
        ("names", "feature_names_in", np.uint8(255), "can't decode byte 0xff"),
    ],
)
def test_damaged_tensors_are_refused(kind, name, values, message, files, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(put((files / f"{kind}.safetensors").read_bytes(), name, values))
    with pytest.raises(FormatError, match=message):
        fastbp.load(path)


def test_text_and_booleans_are_checked(tmp_path):
    """NumPy would take any bytes for them."""
    path = tmp_path / "model"
    for model, value, message in (
        (classifier(labels("no", "yes")), np.uint32(0x110000), "is no text"),
        (classifier(CODES > 1), np.uint8(2), "neither true nor false"),
    ):
        fastbp.save(model, path)
        path.write_bytes(put(path.read_bytes(), "classes", value))
        with pytest.raises(FormatError, match=message):
            fastbp.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "has an entry twice"),
        ('{"a": NaN}', "no number 'NaN'"),
        ('{"a": 1e999}', "no number '1e999'"),
        ("[" * 5000, "recursion"),
        ('{"a": 1', "Expecting"),
        ('{"__metadata__": []}', "must be a JSON object"),
        ('{"__metadata__": {"format": "fastbp", "format_version": "1"}}', r"no entries \['model'\]"),
        ("[]", "header must be a JSON object, got"),
        ("", "Expecting value"),
        (" " * 2**20 + "{}", "a longer one than 1048576 bytes"),
    ],
)
def test_headers_are_read_strictly(text, message, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(FormatError, match=message):
        fastbp.load(path)


def test_what_is_no_model(files, tmp_path):
    with pytest.raises(FileNotFoundError):
        fastbp.load(tmp_path / "none")
    with pytest.raises(OSError):
        fastbp.load(tmp_path)
    path = tmp_path / "model"
    data = (files / "lbfgs.safetensors").read_bytes()
    for content in (b"", b"{}", pickle.dumps(classifier()), data[:-1], data + b"0", data[:100]):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="is damaged, or not a model of fastbp"):
            fastbp.load(path)


def test_a_parameter_of_a_later_version_has_its_default(files, tmp_path):
    header, model, rest = split((files / "lbfgs.safetensors").read_bytes())
    del model["parameters"]["max_time"]
    (tmp_path / "model").write_bytes(join(header, model, rest))
    assert fastbp.load(tmp_path / "model").max_time is None


def run_mutations(files, count, seed):
    command = [sys.executable, Path(__file__).with_name("mutations.py"), files, str(count), str(seed)]
    env = {**os.environ, "PYTHONPATH": str(Path(fastbp.__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # models may be verbose


def check_mutations(found, count):
    assert found["others"] == [] and found["events"] == [], found
    assert found["loaded"] + found["refused"] == count
    assert min(found["loaded"], found["refused"]) > count / 50  # both ways are tried
    assert found["growth"] < 50e6


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")


@linux
def test_mutations(files):
    check_mutations(run_mutations(files, 300, seed=0), 300)


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_mutations(files):
    found = run_mutations(files, 100_000, seed=1)
    print(found)
    check_mutations(found, 100_000)


GROWTH = """
import contextlib
import os
import sys
import fastbp
from mutations import growth_during

def load():
    with contextlib.suppress(fastbp.FormatError):
        fastbp.load(path)

small, *paths = sys.argv[1:]
fastbp.load(small)
for path in paths:  # each in a process that has read none before, as that would leave memory to use
    child = os.fork()
    if child == 0:
        fastbp.load(small)  # for the pages that it shares with its parent
        print(growth_during(load), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def growth(small, paths):
    """By how many bytes the memory of a process grows while it loads a file, for each of some."""
    folders = [str(Path(fastbp.__file__).parents[1]), str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", GROWTH, small, *paths], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


def headers_of_a_megabyte():
    room = 2**20 - 200
    tensors = ",".join(f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(room // 55))
    metadata = '"__metadata__":{"format":"fastbp","format_version":"1","model":"%s"}'
    yield "{" + tensors + "," + metadata % "{}" + "}"
    for model in ("[" + "[]," * (room // 3) + "0]", "[" + '\\"ab\\",' * (room // 7) + "0]"):
        yield "{" + metadata % model + "}"
    for item in ("{},", '{"":0},', '{"":[]},'):
        yield '{"a":[' + item * (room // len(item)) + "0]}"


@linux
def test_memory(files, tmp_path):
    headers = []
    for i, text in enumerate(headers_of_a_megabyte()):
        headers.append(tmp_path / f"header {i}")
        headers[-1].write_bytes(len(text).to_bytes(8, "little") + text.encode())
    long, weights, names = (tmp_path / name for name in ("long", "weights", "names"))
    long.write_bytes((2**62).to_bytes(8, "little") + b"{" * 2**24)
    fastbp.save(BackpropClassifier((1500, 1500), dtype="float32").initialize(200, [0, 1, 2]), weights)
    model = BackpropClassifier(()).initialize(100_000, [0, 1])
    model.feature_names_in_ = np.array([f"x{i}" for i in range(100_000)], dtype=object)
    fastbp.save(model, names)
    paths = [*headers, long, weights, names]
    found = dict(zip(paths, growth(files / "lbfgs.safetensors", paths), strict=True))
    for path in paths:
        size = path.stat().st_size
        print(f"{size / 1e6:.1f} MB: {found[path] / 1e6:.1f} MB")
        assert found[path] < 3 * size + 50e6
    assert all(found[path] > 1e6 for path in headers)  # which were read
    assert found[weights] > weights.stat().st_size > 25e6


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / "model"
    fastbp.save(classifier(), path)
    old = path.read_bytes()

    def fail(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            fastbp.save(regressor(), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    fastbp.save(regressor(), path)
    assert path.read_bytes() != old and list(tmp_path.iterdir()) == [path]


def test_the_file_is_complete_before_it_has_its_name(tmp_path, monkeypatch):
    path, replace = tmp_path / "model", os.replace

    def look(part, target):
        assert not path.exists() and isinstance(fastbp.load(part), BackpropClassifier)
        replace(part, target)

    monkeypatch.setattr(os, "replace", look)
    fastbp.save(classifier(), path)
    assert path.exists()


def test_what_is_no_file_remains(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="is not a file"):
        fastbp.save(classifier(), path)
    assert path.is_fifo() and list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "model"
    fastbp.save(classifier(), path)
    path.chmod(0o600)
    fastbp.save(classifier(), path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_system_that_cannot_save_folders(tmp_path, monkeypatch):
    """The file is there all the same."""
    fsync = os.fsync

    def refuse(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(number)

    monkeypatch.setattr(os, "fsync", refuse)
    assert isinstance(save_and_load(classifier(), tmp_path), BackpropClassifier)


def test_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "model")
    fastbp.save(classifier(), link)
    assert link.is_symlink() and isinstance(fastbp.load(link), BackpropClassifier)
    assert (tmp_path / "folder" / "model").is_file()
    umask = os.umask(0)
    os.umask(umask)
    assert link.stat().st_mode & 0o777 == 0o666 & ~umask


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    for call in (lambda: fastbp.save(classifier(), tmp_path / "model"), lambda: fastbp.load(tmp_path / "model")):
        with pytest.raises(ImportError, match=re.escape('pip install "fastbp[save]"')):
            call()


def broken(model, change):
    change(state := copy.deepcopy(model.__getstate__()))
    return state


BREAKS = {
    "no memory": (lambda s: s["_optimizer"].update(parts=[]), "memory of the optimizer 'adam' does not fit"),
    "half of the memory": (lambda s: s["_optimizer"]["parts"].pop(), "memory of the optimizer 'adam' does not fit"),
    "small memory": (
        lambda s: s["_optimizer"].update(parts=[([np.ones((1, 5)), np.ones((5, 3))], [np.ones(5), np.ones(3)])] * 2),
        r"coefs_\[0\] must have the shape \(6, n_units\)",
    ),
    "memory of text": (lambda s: s["_optimizer"].update(parts=["ab", "cd"]), r"a part cannot be .ab."),
    "solver": (lambda s: s["_optimizer"].update(solver="newton"), "solver cannot be 'newton'"),
    "no solver": (lambda s: s["_optimizer"].pop("solver"), "_optimizer has the entries"),
    "steps": (lambda s: s["_optimizer"].update(steps=-1), "steps cannot be -1"),
    "weights": (lambda s: s["coefs_"].pop(), "one array for each of 2 layers"),
    "shape": (lambda s: s["coefs_"].reverse(), r"coefs_\[0\] must have the shape"),
    "list": (lambda s: s.update(coefs_=None), "coefs_ cannot be None"),
    "features": (lambda s: s.update(n_features_in_=10**6), r"coefs_\[0\] must have the shape"),
    "outputs": (lambda s: s.update(n_outputs_=1), "n_outputs_ is 1, but the weights are those of 3"),
    "activation": (lambda s: s["_activations"][0].update(name="cube"), "no activation 'cube'"),
    "order": (lambda s: s["_shuffling"]["order"].__setitem__(0, 200), "each number from 0 on once"),
    "negative order": (
        lambda s: s["_shuffling"].update(order=s["_shuffling"]["order"].astype(int) - 1), "each number from 0 on once",
    ),
    "classes": (lambda s: s.update(classes_=np.arange(2)), "2 classes do not fit a network of 3 outputs|classes"),
    "progress": (lambda s: s["_progress"].pop("loss"), "_progress has the entries"),
    "missing": (lambda s: s.pop("_loss"), r"lacks \['_loss'\]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_pickle_is_refused(kind):
    change, message = BREAKS[kind]
    state = broken(MODELS["partial_fit"](), change)
    with pytest.raises(FormatError, match=message):
        object.__new__(BackpropClassifier).__setstate__(state)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("feature_names_in_", np.array(["a"], object), "feature_names_in_ must be 6 strings"),
        ("feature_names_in_", np.arange(6), "feature_names_in_ must be 6 strings"),
        ("_n_targets", 3, "_n_targets cannot be 3"),
        ("_is_untrained", "no", "_is_untrained cannot be 'no'"),
        ("n_layers_", 4, "n_layers_ is 4, but the weights are those of 3"),
    ],
)
def test_a_broken_attribute_is_refused(name, value, message):
    state = MODELS["targets"]().__getstate__() | {name: value}
    with pytest.raises(FormatError, match=message):
        object.__new__(BackpropRegressor).__setstate__(state)


def test_the_position_of_a_pickled_generator_is_checked():
    """NumPy takes any, and reads beyond its memory."""
    model = MODELS["partial_fit"]()
    for generator in (model._shuffling.generator, np.random.RandomState(0)):
        state = generator._bit_generator.state
        state["state"]["pos"] = 10**9
        generator._bit_generator.state = state
    with pytest.raises(FormatError, match="at the position 1000000000"):
        copy.copy(model)
    with pytest.raises(FormatError, match="at the position 1000000000"):
        copy.copy(classifier().set_params(random_state=generator))


def test_weights_of_another_shape_begin_with_a_new_optimizer():
    model = MODELS["partial_fit"]().set_params(hidden_layer_sizes=(2,))
    model.coefs_, model.intercepts_ = [np.ones((6, 2)), np.ones((2, 3))], [np.ones(2), np.ones(3)]
    travelled = pickle.loads(pickle.dumps(model))
    assert travelled._optimizer["parts"] is None
    for estimator in (model, travelled):
        estimator.partial_fit(X, CODES)
    assert_equal(model, travelled)


@pytest.mark.parametrize("make", [classifier, regressor, MODELS["partial_fit"], MODELS["lbfgs"], with_names])
def test_skops(make, tmp_path):
    sio = pytest.importorskip("skops.io")
    model = make_pipeline(StandardScaler(), make())
    model[0].fit(X)
    sio.dump(model, tmp_path / "model.skops")
    name = type(model[-1]).__name__
    trusted = [f"fastbp.{name.removeprefix('Backprop').lower()}.{name}"]
    assert sio.get_untrusted_types(file=tmp_path / "model.skops") == trusted
    loaded = sio.load(tmp_path / "model.skops", trusted=trusted)
    assert_equal(model[-1], loaded[-1])


def test_skops_with_activations(tmp_path):
    sio = pytest.importorskip("skops.io")
    model = MODELS["activations"]()
    data = sio.dumps(model)
    trusted = sio.get_untrusted_types(data=data)
    assert trusted == [
        f"fastbp.activations.{cls}" for cls in ("Elu", "Logistic", "PiecewiseLinear", "Relu", "Threshold")
    ] + ["fastbp.classifier.BackpropClassifier"]
    assert_equal(model, sio.loads(data, trusted=trusted))


def test_a_broken_skops_file_is_refused(monkeypatch):
    sio = pytest.importorskip("skops.io")
    model = MODELS["partial_fit"]()
    state = broken(model, BREAKS["half of the memory"][0])
    monkeypatch.setattr(BackpropClassifier, "__getstate__", lambda self: state)
    data = sio.dumps(model)
    monkeypatch.undo()
    with pytest.raises(FormatError, match="memory of the optimizer 'adam' does not fit"):
        sio.loads(data, trusted=["fastbp.classifier.BackpropClassifier"])
