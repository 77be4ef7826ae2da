"""Export to ONNX: `to_onnx` for an estimator, `register` for whole pipelines by skl2onnx.

The packages onnx and skl2onnx are imported when they are needed. The graphs consist of operators that ONNX Runtime has
for float64 too: a graph is the namespace of functions of which `Activation.formula` composes an activation.
"""

from functools import cache
from importlib import import_module
from itertools import count

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import erfcx
from sklearn.utils.validation import check_is_fitted

from fastbp.classifier import BackpropClassifier
from fastbp.prediction import check_shapes
from fastbp.regressor import BackpropRegressor

__all__ = ["register", "to_onnx"]

# The first version of ONNX's operators in which these are as they are used here.
FIRST_OPSET = 13
ML_DOMAIN = "ai.onnx.ml"  # of the operator ZipMap


def to_onnx(
    estimator: BackpropClassifier | BackpropRegressor, *, target_opset: int = 17, zipmap: bool = False
):  # fmt: skip
    """Export a fitted estimator as an ONNX model.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        The fitted estimator. For a pipeline, call `register` and then `skl2onnx.to_onnx`.
    target_opset : int, default=17
        Version of ONNX's operators, 13 or higher.
    zipmap : bool, default=False
        Whether the probabilities of a sample are a dictionary from the class to a float32, not a row. For classes that
        are integers or strings, and not for multilabel classification.

    Returns
    -------
    onnx.ModelProto
        Its input is `X` of shape (n_samples, n_features) and of the type of the weights.

        - A classifier has the outputs `label`, which is what `predict` returns, and `probabilities`, what
          `predict_proba` returns. Labels are int64, bool, float, double or string, as `classes_`. In multilabel
          classification they are a matrix of 0 and 1 in int64.
        - A regressor has the output `variable` of shape (n_samples, n_outputs), also where `predict` returns a vector.

    Raises
    ------
    ImportError
        If the package onnx is not installed.
    TypeError
        If the estimator is of another class.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If ONNX has no such operators, or nothing for the classes.

    Examples
    --------
    >>> import fastbp
    >>> from sklearn.datasets import load_iris
    >>> clf = fastbp.BackpropClassifier(max_iter=300, random_state=0).fit(*load_iris(return_X_y=True))
    >>> model = fastbp.to_onnx(clf)
    >>> [output.name for output in model.graph.output]
    ['label', 'probabilities']
    """
    onnx = _import("onnx")
    if not isinstance(estimator, BackpropClassifier | BackpropRegressor):
        raise TypeError(
            f"to_onnx exports BackpropClassifier and BackpropRegressor, got {type(estimator).__name__}. For a pipeline "
            "with one of them, call fastbp.onnx.register() and then skl2onnx.to_onnx."
        )
    model = estimator._as_it_is()
    check_is_fitted(model)
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= target_opset <= newest:
        raise ValueError(
            f"target_opset must be from {FIRST_OPSET} to {newest}, the newest that onnx {onnx.__version__} knows, got "
            f"{target_opset!r}."
        )
    helper = onnx.helper
    numbers = count()
    graph = _Graph(model.coefs_[0].dtype, lambda name: f"{name}_{next(numbers)}")
    outputs = _add_estimator(graph, [_Tensor(graph, "X")], model)
    infos = [_tensor_info(helper, name, *kind) for name, kind in _output_kinds(model).items()]
    opsets = [helper.make_opsetid("", target_opset)]
    if zipmap:
        infos[1] = _add_zipmap(graph, helper, outputs.pop("probabilities"), model)
        opsets.append(helper.make_opsetid(ML_DOMAIN, 1))
    for name, tensor in outputs.items():
        graph.add("Identity", tensor, output=name)
    nodes = [
        helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes)
        for op, domain, inputs, output, attributes in graph.nodes
    ]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    X = _tensor_info(helper, "X", graph.dtype, model.n_features_in_)
    from fastbp import __version__

    return helper.make_model(
        helper.make_graph(nodes, type(estimator).__name__, [X], infos, constants),
        opset_imports=opsets,
        # The first that has these operators, as a runtime may be older than the package onnx.
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="fastbp",
        producer_version=__version__,
    )


def register():
    """Make the estimators known to skl2onnx, so that `skl2onnx.to_onnx` converts pipelines that contain them.

    The outputs of a pipeline are those of `to_onnx`. As for all classifiers of skl2onnx, probabilities are dictionaries
    unless you pass ``options={"zipmap": False}``. Do so for a network in float64: ONNX has such dictionaries for
    float32 only.

    Raises
    ------
    ImportError
        If the package skl2onnx is not installed.
    """
    skl2onnx = _import("skl2onnx")
    for cls, options in (
        (BackpropClassifier, {"zipmap": [True, False, "columns"], "nocl": [True, False]}),
        (BackpropRegressor, None),
    ):
        skl2onnx.update_registered_converter(cls, f"Fastbp{cls.__name__}", _set_kinds, _convert, options=options)


def _import(package):
    try:
        return import_module(package)
    except ImportError as error:
        extra = f"pip install {'fastbp[onnx]' if package == 'onnx' else package}"
        raise ImportError(f"The export to ONNX needs the package {package}: {extra}.") from error


# --- graphs ---


class _Graph:
    """The nodes and constants of a graph, and the functions of which `Activation.formula` makes its nodes.

    Parameters
    ----------
    dtype : dtype
        Type of the numbers.
    unique_name : callable
        Makes a name that nothing else has from a word.
    """

    def __init__(self, dtype, unique_name):
        self.dtype, self._unique_name = dtype, unique_name
        self.nodes, self.constants = [], {}
        self._scalars = {}

    def add(self, op, *inputs, output=None, domain="", **attributes):
        """Add a node; return its output. Its inputs are tensors of the graph, arrays, or numbers of its dtype."""
        names = [self._name_of(value) for value in inputs]
        output = output or self._unique_name(op)
        self.nodes.append((op, domain, names, output, attributes))
        return _Tensor(self, output)

    def _name_of(self, value):
        if isinstance(value, _Tensor):
            return value.name
        if isinstance(value, np.ndarray):
            name = self._unique_name("constant")
            self.constants[name] = value
            return name
        if value not in self._scalars:
            self._scalars[value] = self._name_of(np.array(value, self.dtype))
        return self._scalars[value]

    def cast(self, x, dtype):
        """Convert a tensor to another type."""
        return self.add("Cast", x, to=int(_import("onnx").helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def exp(self, x):
        return self.add("Exp", x)

    def tanh(self, x):
        return self.add("Tanh", x)

    def maximum(self, x, y):
        return self.add("Relu", x) if type(y) is float and y == 0 else self.add("Max", x, y)

    def minimum(self, x, y):
        return self.add("Min", x, y)

    def where(self, condition, x, y):
        return self.add("Where", condition, x, y)

    def softmax(self, x):
        return self.add("Softmax", x, axis=-1)

    def expit(self, x):
        # ONNX Runtime's Sigmoid is never less than 1e-8 in float32; the log of a probability needs more.
        return 1.0 / (1.0 + self.exp(-x))

    def expm1(self, x):
        # The same number, without the cancellation of exp(x) - 1 near 0.
        return self.tanh(x * 0.5) * (self.exp(x) + 1.0)

    def erf(self, x):
        if self.dtype == np.float32:
            return self.add("Erf", x)
        # ONNX Runtime has none for float64.
        size = self.minimum(self.add("Abs", x), 30.0)
        q, scaled = (size - 2.0) / (size + 2.0), 0.0
        for coefficient in _scaled_erfcx():
            scaled = scaled * q + coefficient
        rest = self.exp(size * -size) * scaled / (size * 2.0 + 1.0)
        return self.where(x < 0.0, rest - 1.0, 1.0 - rest)


class _Tensor:
    """A tensor of a graph, with the operators of an array."""

    def __init__(self, graph, name):
        self.graph, self.name = graph, name

    def __neg__(self):
        return self.graph.add("Neg", self)

    def __add__(self, other):
        return self.graph.add("Add", self, other)

    def __radd__(self, other):
        return self.graph.add("Add", other, self)

    def __sub__(self, other):
        return self.graph.add("Sub", self, other)

    def __rsub__(self, other):
        return self.graph.add("Sub", other, self)

    def __mul__(self, other):
        return self.graph.add("Mul", self, other)

    def __rmul__(self, other):
        return self.graph.add("Mul", other, self)

    def __truediv__(self, other):
        return self.graph.add("Div", self, other)

    def __rtruediv__(self, other):
        return self.graph.add("Div", other, self)

    def __lt__(self, other):
        return self.graph.add("Less", self, other)

    def __gt__(self, other):
        return self.graph.add("Greater", self, other)

    def __ge__(self, other):
        return self.graph.add("GreaterOrEqual", self, other)


@cache
def _scaled_erfcx():
    """Return the coefficients of (1 + 2x) erfcx(x) for x >= 0 as a polynomial in (x - 2) / (x + 2), highest first.

    erf(x) is 1 - exp(-x^2) erfcx(x); Chebyshev interpolation, with an error below 1e-13.
    """

    def function(q):
        x = 2 * (1 + q) / (1 - q)
        return (1 + 2 * x) * erfcx(x)

    series = Chebyshev.interpolate(function, 26)
    return series.convert(kind=Polynomial).coef[::-1].tolist()


# --- the estimators ---


def _output_kinds(model):
    """Return the type and the number of columns of each output; None for a vector."""
    dtype, n_outputs = model.coefs_[0].dtype, model.coefs_[-1].shape[1]
    if isinstance(model, BackpropRegressor):
        return {"variable": (dtype, n_outputs)}
    if model._has_pair():
        n_outputs = 2
    label = (np.dtype(np.int64), n_outputs) if _is_multilabel(model) else (_labels(model).dtype, None)
    return {"label": label, "probabilities": (dtype, n_outputs)}


def _is_multilabel(model):
    return model._binarizer.y_type_ == "multilabel-indicator"


def _labels(model):
    """Return the classes as ONNX can hold them."""
    classes = model.classes_
    kind, itemsize = classes.dtype.kind, classes.dtype.itemsize
    if kind == "b":
        return classes
    if kind in "iu" and (not classes.size or classes.max() <= np.iinfo(np.int64).max):
        return classes.astype(np.int64)
    if kind == "f" and itemsize <= 8:
        return classes.astype(np.float64 if itemsize == 8 else np.float32)
    if kind in "UO" and all(isinstance(label, str) for label in classes):
        return classes.astype(object)
    raise ValueError(
        f"ONNX has no type for the classes {classes!r}. Fit with labels that are integers below 2**63, strings, bool, "
        "float32 or float64."
    )


def _add_estimator(graph, inputs, model):
    """Add the nodes of an estimator; return its outputs by name."""
    activations = model._activations
    check_shapes(model.coefs_, model.intercepts_, model.n_features_in_, activations)  # which users may have edited
    y = inputs[0] if len(inputs) == 1 else graph.add("Concat", *inputs, axis=1)
    for coef, intercept, activation in zip(model.coefs_, model.intercepts_, activations, strict=True):
        y = graph.add("Gemm", y, *(np.ascontiguousarray(array, graph.dtype) for array in (coef, intercept)))
        y = activation.formula(y, graph)
    if isinstance(model, BackpropRegressor):
        return {"variable": y}
    return {"label": _add_labels(graph, y, model), "probabilities": _add_probabilities(graph, y, model)}


def _add_labels(graph, y, model):
    """Add what `predict` does with the outputs of the network."""
    if _is_multilabel(model):
        return graph.cast(y > 0.5, np.int64)
    labels = _labels(model)
    if model.coefs_[-1].shape[1] > 1:
        place = graph.add("ArgMax", y, axis=1, keepdims=0)  # the first of equal ones
    else:
        # Where there is one class only, the second place is never taken.
        is_second = y > (0.5 if len(labels) > 1 else float("inf"))
        place = graph.add("Squeeze", graph.cast(is_second, np.int64), np.array([1]))
    return graph.add("Gather", labels, place)


def _add_probabilities(graph, y, model):
    """Add what `predict_proba` does with the outputs of the network."""
    n_outputs = model.coefs_[-1].shape[1]
    if model._has_pair():
        y = graph.add("Concat", 1.0 - y, y, axis=1)
    if model._loss.name == "squared_error":
        y = graph.minimum(graph.maximum(y, 0.0), 1.0)
        if n_outputs > 1 and not _is_multilabel(model):
            total = graph.add("ReduceSum", y, np.array([1]), keepdims=1)
            y = graph.where(total > 0.0, y, 1.0) / graph.where(total > 0.0, total, float(n_outputs))
    return y


def _add_zipmap(graph, helper, probabilities, model):
    """Add the output "probabilities" as dictionaries; return its description."""
    labels = None if _is_multilabel(model) else _labels(model)
    if labels is None or labels.dtype.kind not in "iO" or len(labels) == 1:
        raise ValueError(
            "zipmap=True is for two or more classes that are integers or strings, not for multilabel classification, "
            f"got the classes {model.classes_!r}. Use zipmap=False."
        )
    name, dtype = ("classlabels_int64s", np.int64) if labels.dtype.kind == "i" else ("classlabels_strings", object)
    values = graph.cast(probabilities, np.float32)
    graph.add("ZipMap", values, output="probabilities", domain=ML_DOMAIN, **{name: labels.tolist()})
    key, value = (helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (dtype, np.float32))
    mapping = helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, []))
    return helper.make_value_info("probabilities", helper.make_sequence_type_proto(mapping))


def _tensor_info(helper, name, dtype, n_columns):
    shape = [None] if n_columns is None else [None, n_columns]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


# --- skl2onnx ---


def _set_kinds(operator):
    """Set the types and shapes of the outputs of skl2onnx's operator."""
    model = operator.raw_operator
    check_is_fitted(model)
    for variable, (dtype, n_columns) in zip(operator.outputs, _output_kinds(model).values(), strict=True):
        variable.type = _tensor_types()[dtype.type]([None] if n_columns is None else [None, n_columns])


def _convert(scope, operator, container):
    """Add the nodes of skl2onnx's operator."""
    onnx = _import("onnx")
    model = operator.raw_operator
    graph = _Graph(model.coefs_[0].dtype, scope.get_unique_variable_name)
    expected = _tensor_types()[graph.dtype.type]
    inputs = [
        _Tensor(graph, variable.full_name) if type(variable.type) is expected
        else graph.cast(_Tensor(graph, variable.full_name), graph.dtype)
        for variable in operator.inputs
    ]  # fmt: skip
    outputs = _add_estimator(graph, inputs, model)
    for variable, tensor in zip(operator.outputs, outputs.values(), strict=True):
        graph.add("Identity", tensor, output=variable.full_name)
    for name, array in graph.constants.items():
        container.initializers.append(onnx.numpy_helper.from_array(array, name))
    for op, domain, names, output, attributes in graph.nodes:
        container.add_node(
            op, names, [output], op_domain=domain, name=scope.get_unique_operator_name(op), **attributes
        )  # fmt: skip


def _tensor_types():
    """Return skl2onnx's type for each of NumPy's."""
    types = import_module("skl2onnx.common.data_types")
    return {
        np.bool_: types.BooleanTensorType, np.int64: types.Int64TensorType, np.float32: types.FloatTensorType,
        np.float64: types.DoubleTensorType, np.object_: types.StringTensorType,
    }  # fmt: skip
