"""Models exported to ONNX: ONNX Runtime computes what the estimator computes."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.special import erf, expit
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import fastbp
from fastbp import BackpropClassifier, BackpropRegressor
from fastbp.activations import ACTIVATIONS, Elu, Gaussian, LeakyRelu, Logistic, PiecewiseLinear, Threshold
from fastbp.onnx import FIRST_OPSET, _Graph, _Tensor

with warnings.catch_warnings():  # theirs
    warnings.simplefilter("ignore")
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DTYPES = ["float32", "float64"]
OBJECTS = [
    *ACTIVATIONS.values(), Logistic(slope=2.5), PiecewiseLinear(-0.5, 2.0), Gaussian(0.25, 0.75), LeakyRelu(-0.5),
    Elu(0.5), Threshold("tanh"),
]  # fmt: skip
OPSETS = range(FIRST_OPSET, onnx.defs.onnx_opset_version() + 1)
N_ROWS = [0, 1, 1000]


def session_of(model):
    onnx.checker.check_model(model, full_check=True)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model, X):
    """The outputs of ONNX Runtime by name."""
    session = session_of(model)
    values = session.run(None, {session.get_inputs()[0].name: X})
    return dict(zip([output.name for output in session.get_outputs()], values, strict=True))


def dimensions(info):
    return [dim.dim_value or None for dim in info.type.tensor_type.shape.dim]


def samples(n, n_features, dtype, seed=0):
    return np.random.RandomState(seed).randn(n, n_features).astype(dtype)


def check_classifier(clf, model):
    n = clf.n_features_in_
    X = samples(1000, n, clf.coefs_[0].dtype)
    (info,) = model.graph.input
    assert (info.name, dimensions(info)) == ("X", [None, n])
    assert [output.name for output in model.graph.output] == ["label", "probabilities"]
    labels, probabilities = clf.predict(X), clf.predict_proba(X)
    assert dimensions(model.graph.output[1]) == [None, probabilities.shape[1]]
    assert dimensions(model.graph.output[0]) == [None, *labels.shape[1:]]
    for n_rows in N_ROWS:
        found = run(model, X[:n_rows])
        assert found["probabilities"].dtype == probabilities.dtype
        np.testing.assert_allclose(found["probabilities"], probabilities[:n_rows], rtol=0, atol=1e-6)
        assert found["label"].shape == labels[:n_rows].shape
        # Where two probabilities agree up to rounding, either label is right.
        two = np.sort(probabilities[:n_rows], axis=1)[:, -2:]
        clear = two[:, 1] - two[:, 0] > 2e-6 if labels.ndim == 1 else abs(probabilities[:n_rows] - 0.5) > 1e-6
        assert not n_rows or clear.mean() > 0.9
        np.testing.assert_array_equal(found["label"][clear], labels[:n_rows][clear])
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_every_activation(activation, dtype):
    clf = BackpropClassifier((20, 10), activation, dtype=dtype, random_state=0).initialize(7, range(3))
    if activation.name == "threshold":
        # Sums of few bits, which are the same in any order, and away from the jump.
        for coef, intercept in zip(clf.coefs_, clf.intercepts_, strict=True):
            coef[...], intercept[...] = np.round(coef * 8) / 8, np.round(intercept * 8) / 8 + 1 / 64
        X = np.round(samples(1000, 7, dtype) * 8) / 8
        found = run(fastbp.to_onnx(clf), X)
        np.testing.assert_allclose(found["probabilities"], clf.predict_proba(X), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found["label"], clf.predict(X))
    else:
        check_classifier(clf, fastbp.to_onnx(clf))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", OBJECTS, ids=repr)
def test_every_activation_alone(activation, dtype):
    # A network of one layer with the weight 1: the outputs are those of the activation, far out too.
    z = np.concatenate([np.linspace(-12, 12, 2001), [0.0, -0.0, 1e-6, -1e-6, 80.0, -80.0, 1e4, -1e4]])
    X = z.astype(dtype)[:, None]
    reg = BackpropRegressor(hidden_layer_sizes=(), output_activation=activation, dtype=dtype).initialize(1)
    reg.coefs_[0][...], reg.intercepts_[0][...] = 1, 0
    (found,) = run(fastbp.to_onnx(reg), X).values()
    expected = activation(X)
    # Prediction flushes subnormal numbers to 0.
    np.testing.assert_allclose(reg.predict(X), expected[:, 0], rtol=0, atol=np.finfo(dtype).tiny)
    bound = 1e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound)


def test_small_probabilities_keep_their_digits():
    # ONNX Runtime's Sigmoid does not: its logs would be wrong.
    for dtype in DTYPES:
        clf = BackpropClassifier((), dtype=dtype).initialize(1, [0, 1])
        clf.coefs_[0][...], clf.intercepts_[0][...] = 1, 0
        X = np.linspace(-60, 0, 61, dtype=dtype)[:, None]
        found = run(fastbp.to_onnx(clf), X)["probabilities"]
        np.testing.assert_allclose(found[:, 1], expit(X[:, 0].astype(float)), rtol=1e-5)


def test_erf_of_float64_is_accurate():
    x = np.concatenate([np.linspace(-7, 7, 4001), [0.0, 1e-8, 40.0, -40.0, 1e300, -1e300, np.inf, -np.inf]])
    numbers = iter(range(1000))
    graph = _Graph(np.dtype(np.float64), lambda name: f"{name}_{next(numbers)}")
    y = graph.erf(_Tensor(graph, "X"))
    helper = onnx.helper
    nodes = [helper.make_node(op, inputs, [output]) for op, _, inputs, output, _ in graph.nodes]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [None]) for name in ("X", y.name)]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "erf", infos[:1], infos[1:], constants),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    (found,) = run(model, x).values()
    np.testing.assert_allclose(found, erf(x), rtol=0, atol=1e-13)


LABELS = {
    "int": [3, -5, 2**40],
    "str": ["a", "ü", ""],
    "object": np.array(["x", "y", "long label"], object),
    "float": [0.5, 1.0, -2.0],
    "uint8": np.array([3, 4, 255], np.uint8),
}


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("n_classes", [1, 2, 3])
@pytest.mark.parametrize("kind", LABELS)
def test_labels(kind, n_classes, loss):
    classes = np.asarray(LABELS[kind])[:n_classes]
    if kind == "float":
        classes = classes.round()  # scikit-learn takes others for targets of a regression
    y = np.repeat(classes, 20)
    X = samples(len(y), 4, "float64")
    clf = BackpropClassifier((5,), loss=loss, random_state=0, max_iter=5).fit(X, y)
    found = check_classifier(clf, fastbp.to_onnx(clf))["label"]
    assert found.dtype == {"U": object, "u": np.int64}.get(classes.dtype.kind, classes.dtype)


def test_labels_that_are_bool():
    X = samples(60, 4, "float32")
    clf = BackpropClassifier((5,), random_state=0, max_iter=5).fit(X, X[:, 0] > 0)
    assert check_classifier(clf, fastbp.to_onnx(clf))["label"].dtype == bool


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_multilabel(dtype, loss):
    X = samples(100, 4, dtype)
    Y = (X[:, :3] + X[:, 1:] > 0).astype(int)
    clf = BackpropClassifier((8,), loss=loss, dtype=dtype, random_state=0, max_iter=20).fit(X, Y)
    found = check_classifier(clf, fastbp.to_onnx(clf))["label"]
    assert found.dtype == np.int64 and 0 < found.mean() < 1


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_outputs_that_are_no_probabilities(n_classes, activation):
    # Beyond 0 and 1, and with relu all 0 for some samples, for which all classes are equally likely.
    clf = BackpropClassifier((8,), loss="squared_error", output_activation=activation, dtype="float64", random_state=3)
    clf.initialize(5, range(n_classes))
    for coef in clf.coefs_:
        coef *= 3
    clf.intercepts_[-1] -= 1
    probabilities = clf.predict_proba(samples(1000, 5, "float64"))
    if activation == "relu":
        assert (probabilities == 0.25).all(axis=1).any() or n_classes == 2
    X = samples(1000, 5, "float64")
    found = run(fastbp.to_onnx(clf), X)
    np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found["label"], clf.predict(X))


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_ties(dtype):
    X = samples(20, 3, dtype)
    for classes in (["b", "a"], ["c", "a", "b"]):
        clf = BackpropClassifier((4,), dtype=dtype).initialize(3, classes)
        clf.coefs_[-1][...], clf.intercepts_[-1][...] = 0, 0
        found = run(fastbp.to_onnx(clf), X)
        assert (found["probabilities"] == clf.predict_proba(X)).all() and np.ptp(found["probabilities"]) < 1e-7
        assert found["label"].tolist() == clf.predict(X).tolist() == ["a"] * 20
    # Outputs above 1 are a tie of the probabilities, not of the outputs, of which `predict` takes the largest.
    clf = BackpropClassifier((4,), loss="squared_error", output_activation="identity", dtype=dtype)
    clf.initialize(3, [0, 1, 2])
    clf.coefs_[-1][...], clf.intercepts_[-1][...] = 0, [2, 3, 1]
    assert run(fastbp.to_onnx(clf), X)["label"].tolist() == clf.predict(X).tolist() == [1] * 20


REGRESSORS = {
    "squared_error": {}, "poisson": {}, "absolute_error": {}, "huber": {}, "quantile": {"quantile": 0.3},
    "several levels": {"loss": "quantile", "quantile": [0.1, 0.5, 0.9]},
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_targets", [1, 3])
@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name, n_targets, dtype):
    if name == "several levels" and n_targets > 1:
        pytest.skip("these are for one target")
    reg = BackpropRegressor(**{"loss": name} | REGRESSORS[name], dtype=dtype, random_state=0, max_iter=10)
    X = samples(1000, 4, dtype)
    Y = np.exp(X[:, :n_targets] / 4).astype(dtype)
    reg.fit(X, Y.ravel() if n_targets == 1 else Y)
    model = fastbp.to_onnx(reg)
    (info,) = model.graph.output
    assert (info.name, dimensions(info)) == ("variable", [None, reg.n_outputs_])
    for n_rows in N_ROWS:
        (found,) = run(model, X[:n_rows]).values()
        assert (found.dtype, found.shape) == (dtype, (n_rows, reg.n_outputs_))
        expected = reg.predict(X).reshape(len(X), -1)[:n_rows]
        np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
def test_opsets(opset):
    X, y = load_iris(return_X_y=True)
    for dtype in DTYPES:
        clf = BackpropClassifier((8, 7), ["gelu", "selu"], dtype=dtype, random_state=0, max_iter=5).fit(X, y)
        model = fastbp.to_onnx(clf, target_opset=opset)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        onnx.checker.check_model(model, full_check=True)
        try:
            found = run(model, X.astype(dtype))
        except Exception as error:
            if "opset" not in str(error):
                raise
            pytest.skip(f"onnxruntime {runtime.__version__} does not know the opset {opset}")
        np.testing.assert_allclose(found["probabilities"], clf.predict_proba(X), rtol=0, atol=1e-6)


@pytest.mark.parametrize("opset", [12, 10**6, -1])
def test_opsets_that_there_are_not(opset):
    clf = BackpropClassifier().initialize(3, [0, 1])
    with pytest.raises(ValueError, match=f"target_opset must be from 13 to .* got {opset}"):
        fastbp.to_onnx(clf, target_opset=opset)


def test_zipmap():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    for labels in (y, names[y], y > 0):
        clf = BackpropClassifier(dtype="float64", random_state=0, max_iter=20).fit(X, labels)
        if labels.dtype == bool:
            with pytest.raises(ValueError, match=r"zipmap=True is for .* Use zipmap=False"):
                fastbp.to_onnx(clf, zipmap=True)
            continue
        found = run(fastbp.to_onnx(clf, zipmap=True), X)
        assert found["label"].tolist() == clf.predict(X).tolist()
        for row, probabilities in zip(found["probabilities"], clf.predict_proba(X), strict=True):
            assert row == pytest.approx(dict(zip(clf.classes_.tolist(), probabilities, strict=True)), abs=1e-6)
    clf.fit(X, np.eye(3, dtype=int)[y])
    with pytest.raises(ValueError, match="not for multilabel"):
        fastbp.to_onnx(clf, zipmap=True)


def test_edited_weights_are_exported():
    X, y = load_iris(return_X_y=True)
    clf = BackpropClassifier(random_state=0, max_iter=5).fit(X, y)
    clf.coefs_[0] = np.asfortranarray(clf.coefs_[0][:, ::-1])
    clf.intercepts_ = [intercept.astype(np.float32) for intercept in clf.intercepts_]
    model = fastbp.to_onnx(clf)
    found = run(model, X)["probabilities"]
    np.testing.assert_allclose(found, clf.predict_proba(X), rtol=0, atol=1e-12)
    clf.coefs_[0][...] = 0  # the model is a copy
    assert (run(model, X)["probabilities"] == found).all()
    clf.coefs_[0] = np.zeros((3, 100))
    with pytest.raises(ValueError, match=r"coefs_\[0\] must have the shape \(4, n_units\), got \(3, 100\)"):
        fastbp.to_onnx(clf)


def test_what_is_refused():
    with pytest.raises(NotFittedError):
        fastbp.to_onnx(BackpropClassifier())
    for other in (LogisticRegression(), make_pipeline(StandardScaler(), BackpropClassifier()), None):
        with pytest.raises(TypeError, match=r"fastbp\.onnx\.register\(\)"):
            fastbp.to_onnx(other)
    clf = BackpropClassifier().initialize(2, np.array([0, 2**64 - 1], np.uint64))
    with pytest.raises(ValueError, match="ONNX has no type for the classes"):
        fastbp.to_onnx(clf)


MISSING = """
import sys
sys.modules["onnx"] = sys.modules["skl2onnx"] = None
import fastbp
for call, extra in ((lambda: fastbp.to_onnx(None), r"fastbp[onnx]"), (fastbp.onnx.register, "skl2onnx")):
    try:
        call()
    except ImportError as error:
        assert f"pip install {extra}" in str(error), error
    else:
        raise AssertionError
"""


def test_without_onnx():
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_import_does_not_import_onnx():
    command = "import sys, fastbp; fastbp.onnx.to_onnx; print({'onnx', 'skl2onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=100)
    assert done.stdout == "set()\n", done.stderr


# --- pipelines ---


@pytest.fixture(scope="module")
def skl2onnx():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import skl2onnx
        except ImportError as error:
            pytest.skip(f"skl2onnx cannot be imported: {error}")
    fastbp.onnx.register()
    return skl2onnx


def convert(skl2onnx, model, X, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return skl2onnx.to_onnx(model, X[:1], target_opset=17, **options)


@pytest.mark.parametrize("input_dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pipelines(dtype, input_dtype, skl2onnx):
    X, y = load_iris(return_X_y=True)
    X = (X * 4).astype(input_dtype)
    for labels in (y, np.array(["a", "b", "c"])[y], y > 0, y == 1, np.eye(3, dtype=int)[y]):
        pipe = make_pipeline(
            StandardScaler(), MinMaxScaler(), BackpropClassifier(dtype=dtype, random_state=0, max_iter=9)
        )
        pipe.fit(X, labels)
        found = run(convert(skl2onnx, pipe, X, options={"zipmap": False}), X)
        assert list(found) == ["label", "probabilities"]
        np.testing.assert_array_equal(found["label"], pipe.predict(X))
        np.testing.assert_allclose(found["probabilities"], pipe.predict_proba(X), rtol=0, atol=1e-5)


def test_pipelines_of_regressors(skl2onnx):
    X, y = load_diabetes(return_X_y=True)
    for target in (y, np.stack([y, -y], axis=1)):
        pipe = make_pipeline(StandardScaler(), BackpropRegressor(random_state=0, max_iter=20)).fit(X, target / 100)
        (found,) = run(convert(skl2onnx, pipe, X), X).values()
        np.testing.assert_allclose(found, pipe.predict(X).reshape(len(X), -1), rtol=0, atol=1e-5)


def test_zipmap_of_skl2onnx(skl2onnx):
    X, y = load_iris(return_X_y=True)
    X = X.astype(np.float32)
    clf = BackpropClassifier(random_state=0, max_iter=9).fit(X, y)
    rows = list(run(convert(skl2onnx, clf, X), X).values())[1]
    expected = clf.predict_proba(X)
    assert [list(row) for row in rows] == [[0, 1, 2]] * len(X)
    np.testing.assert_allclose([list(row.values()) for row in rows], expected, rtol=0, atol=1e-6)
