"""A fitted network as a function that compiled code calls: a user's own `@njit` functions, or C.

Numba knows the function by a type of its own, whose value is the address of a description of the network. So it is an
argument like any other: the caller is compiled once for all networks of a dtype, and its machine code can be kept on
disk.
"""

from functools import cached_property
from weakref import finalize

import numpy as np
from numba import cfunc, from_dtype, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.imputils import lower_constant
from numba.extending import (
    NativeValue,
    lower_builtin,
    make_attribute_wrapper,
    models,
    overload_method,
    register_model,
    typeof_impl,
    unbox,
)
from numba.np.numpy_support import as_dtype

from fastbp.codegen.jit import address_of, call_at, source_stamp
from fastbp.codegen.memory import integers_at, load_scalar, pointer
from fastbp.kernels import embedded
from fastbp.kernels.addresses import kernel_addresses
from fastbp.kernels.network import aligned_copy, make_network
from fastbp.kernels.records import declare_writeable
from fastbp.prediction import check_shapes


class CompiledPredictor:
    """A fitted network as a function that compiled code calls; `compiled_predictor` of an estimator returns it.

    It computes what `predict_proba` of a classifier, or `predict` of a regressor, returns for dense samples, with the
    same bits, in the thread that calls it; any number of threads may do so at once. It has a copy of the weights:
    neither training nor editing the estimator changes it.

    In functions that Numba compiles, call it as in Python. As an argument it has one type for all networks of a dtype,
    so that the function is compiled once, and ``cache=True`` works. As a global variable it is a constant of the
    function, which Numba compiles in each process, with a warning if it has ``cache=True``; the predictor then lives
    until the process ends.

    Parameters
    ----------
    coefs, intercepts : list of ndarray
        Weights of shape (fan_in, fan_out) and biases of each layer.
    activations : list of Activation
        One for each layer.
    n_features : int
        Features of the samples.
    is_pair : bool
        Whether the one output is the probability of the second of two classes, and those of both are wanted.
    rule : {None, "clip", "shares"}
        How outputs become probabilities: they are, clipped to [0, 1], and also divided by their sum.
    is_vector : bool
        Whether the result for some samples has one dimension, as that of a regressor with one target.

    Attributes
    ----------
    n_features : int
        Number of features of a sample.
    n_outputs : int
        Number of outputs for a sample: probabilities, targets, or levels of quantiles.
    dtype : dtype
        Type of the weights and the outputs: float32 or float64.
    address : int
        The address of a C function, valid as long as this object:
        ``void predict(const T *x, int64_t n_samples, T *out)``. T is float or double, as `dtype`; `x` holds n_samples
        rows of n_features numbers, and `out` room for n_samples rows of n_outputs numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from numba import njit
    >>> from sklearn.datasets import load_iris
    >>> from fastbp import BackpropClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> predictor = BackpropClassifier(max_iter=300, random_state=0).fit(X, y).compiled_predictor()
    >>> @njit
    ... def share_of_first(predictor, x, n):
    ...     count = 0
    ...     for _ in range(n):
    ...         count += predictor(x + 0.1 * np.random.randn(x.size)).argmax() == 0
    ...     return count / n
    >>> share_of_first(predictor, X[0], 1000)
    1.0
    """

    def __init__(self, coefs, intercepts, activations, n_features, *, is_pair, rule, is_vector):
        units = check_shapes(coefs, intercepts, n_features, activations)
        network = make_network(units, activations, coefs[0].dtype)
        self.dtype, self._is_vector = network.dtype, is_vector
        self.n_features, self.n_outputs = units[0], 2 if is_pair else units[-1]
        self._arrays = [aligned_copy(array, self.dtype) for array in [*coefs, *intercepts]]
        values = types.CPointer(from_dtype(self.dtype))
        kinds = (types.CPointer(types.int64), values, types.int64, values)
        self._description = embedded.describe(
            network, self._arrays[: len(coefs)], self._arrays[len(coefs) :],
            kernel_addresses(self.dtype, prefetch_write=False), address_of(embedded.predict_rows, kinds),
            is_pair=is_pair, rule=rule,
        )  # fmt: skip
        self._place = self._description.ctypes.data

    def __call__(self, x, out=None):
        """Compute the outputs for a sample, or for some.

        Parameters
        ----------
        x : ndarray of shape (n_features,) or (n_samples, n_features)
            The input data. It is used without a copy if it is C-ordered and of the dtype of the weights.
        out : ndarray of shape (n_outputs,) or (n_samples, n_outputs), default=None
            What becomes the outputs, C-ordered and of the dtype of the weights; None for a new array.

        Returns
        -------
        ndarray of shape (n_outputs,) or (n_samples, n_outputs)
            The outputs: `out`, if it was given. A regressor with one target returns, and takes, the shape (n_samples,)
            for some samples; for one it returns a number, and takes an array with one element. A sample with an input
            that is NaN or infinite has outputs that are NaN.

        Raises
        ------
        ValueError
            If the shapes do not fit. Numba refuses other types when it compiles.
        """
        x = np.asarray(x)
        if x.ndim not in (1, 2) or x.shape[-1] != self.n_features:
            raise ValueError(
                f"x must have the shape ({self.n_features},) or (n_samples, {self.n_features}), got {x.shape}."
            )
        shape = (*x.shape[:-1], self.n_outputs)
        if self._is_vector and x.ndim == 2:
            shape = shape[:1]
        result = np.empty(shape, self.dtype) if out is None else out
        if result.shape != shape or result.dtype != self.dtype or not result.flags.carray:
            raise ValueError(
                f"out must be a C-ordered array of {self.dtype} of the shape {shape} that is not read-only, got "
                f"{result.dtype} of the shape {result.shape}."
            )
        inputs = declare_writeable(np.ascontiguousarray(x, self.dtype).reshape(-1))
        embedded.call_rows(self._description, inputs, x.size // self.n_features, result.reshape(-1))
        return result[0] if out is None and self._is_vector and x.ndim == 1 else result

    @property
    def address(self):
        """The address of a C function."""
        return self._c_function.address

    @cached_property
    def _c_function(self):
        free = _FREE_C_FUNCTIONS.setdefault(self.dtype, [])
        try:
            function = free.pop()
        except IndexError:
            function = _CFunction(self.dtype, self._description.item(embedded.KERNEL))
        function.description[0] = self._place
        # By then nobody may call it for this predictor any more.
        finalize(self, free.append, function).atexit = False
        return function

    def __repr__(self):
        return f"CompiledPredictor(n_features={self.n_features}, n_outputs={self.n_outputs}, dtype={self.dtype})"

    def __reduce__(self):
        raise TypeError(
            "A CompiledPredictor belongs to its process. Pickle or copy the estimator, and call its "
            "compiled_predictor() there."
        )


class _CFunction:
    """A C function that predicts with the network whose description is at the address in `description`."""

    def __init__(self, dtype, kernel):
        self.description = np.zeros(1, np.int64)
        place, values = self.description.ctypes.data, types.CPointer(from_dtype(dtype))

        @cfunc(types.void(values, types.int64, values))
        def predict(x, n_samples, out):
            call_at(kernel, (integers_at(load_scalar(integers_at(place), 0)), x, n_samples, out))

        self._compiled, self.address = predict, predict.address


# Those of predictors that are no more, for the next ones: Numba keeps machine code until the process ends.
_FREE_C_FUNCTIONS: dict[np.dtype, list[_CFunction]] = {}


# --- what Numba knows of it ---


class PredictorType(types.Type):
    """Numba's type of a `CompiledPredictor`: what its caller is compiled for.

    Its name has the stamp of this version: what another version has compiled, and Numba has kept on disk, does not know
    the description of the network.
    """

    def __init__(self, dtype, is_vector):
        self.dtype, self.is_vector = dtype, is_vector
        super().__init__(name=f"CompiledPredictor({dtype}, is_vector={is_vector}, version={source_stamp()})")


_DESCRIPTION = types.CPointer(types.int64)


@register_model(PredictorType)
class _PredictorModel(models.StructModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, [("description", _DESCRIPTION)])


make_attribute_wrapper(PredictorType, "description", "description")
# Those that are constants of machine code, which may run as long as the process does.
_CONSTANTS: list[CompiledPredictor] = []


@typeof_impl.register(CompiledPredictor)
def _typeof(value, context):
    return PredictorType(from_dtype(value.dtype), value._is_vector)


def _struct_of(context, builder, place):
    """Build the value of the type from the address of the description, a pointer."""
    return cgutils.pack_struct(builder, [builder.bitcast(place, context.get_value_type(_DESCRIPTION))])


@unbox(PredictorType)
def _unbox(kind, value, c):
    number = c.pyapi.object_getattr_string(value, "_place")
    place = c.pyapi.long_as_voidptr(number)
    c.pyapi.decref(number)
    failed = cgutils.is_not_null(c.builder, c.pyapi.err_occurred())
    return NativeValue(_struct_of(c.context, c.builder, place), is_error=failed)


@lower_constant(PredictorType)
def _lower_constant(context, builder, kind, value):
    _CONSTANTS.append(value)
    # Numba keeps no machine code with such an address on disk.
    return _struct_of(context, builder, context.add_dynamic_addr(builder, value._place, info=repr(value)))


@lower_builtin(PredictorType, PredictorType, types.VarArg(types.Any))
def _lower_call(context, builder, signature, args):
    method = context.typing_context.resolve_getattr(signature.args[0], "__call__")
    return context.get_function(method, signature)(builder, args)


@overload_method(PredictorType, "__call__")
def _overload_call(predictor, x, out=None):
    if not isinstance(x, types.Array) or x.ndim not in (1, 2) or not isinstance(x.dtype, types.Number | types.Boolean):
        raise TypingError(f"x must be an array of numbers of one dimension or two, got {x}.")
    dtype, is_vector, is_row = as_dtype(predictor.dtype), predictor.is_vector, x.ndim == 1
    if isinstance(x.dtype, types.Complex):
        raise TypingError(f"x must be an array of real numbers, got {x}.")
    if out is None or isinstance(out, types.NoneType | types.Omitted):
        return _with_new_array(dtype, is_vector, is_row)
    n_dimensions = 1 if is_row or is_vector else 2
    if not isinstance(out, types.Array) or (out.dtype, out.ndim, out.layout, out.mutable) != (
        predictor.dtype, n_dimensions, "C", True
    ):  # fmt: skip
        raise TypingError(
            f"out must be a C-ordered array of {dtype} of {n_dimensions} dimension(s) that is not read-only, got {out}."
        )
    if x.dtype != predictor.dtype or x.layout != "C":
        # A copy that is an argument lives until the call returns.
        return lambda predictor, x, out=None: predictor(np.ascontiguousarray(x).astype(dtype), out)

    def call(predictor, x, out=None):
        description = predictor.description
        n_samples = 1 if is_row else x.shape[0]
        if x.shape[x.ndim - 1] != load_scalar(description, embedded.N_FEATURES):
            raise ValueError("x must have as many features as the network has inputs")
        if out.size != n_samples * load_scalar(description, embedded.N_COLUMNS) or (
            out.ndim == 2 and out.shape[0] != n_samples
        ):
            raise ValueError("out must have a row for each sample, and as many columns as the network has outputs")
        kernel = load_scalar(description, embedded.KERNEL)
        call_at(kernel, (description, pointer(x, 0), np.int64(n_samples), pointer(out, 0)))
        return out

    return call


def _with_new_array(dtype, is_vector, is_row):
    """Return what a call without `out` does."""

    def one_number(predictor, x, out=None):
        return predictor(x, np.empty(1, dtype))[0]

    def row(predictor, x, out=None):
        return predictor(x, np.empty(load_scalar(predictor.description, embedded.N_COLUMNS), dtype))

    def vector(predictor, x, out=None):
        return predictor(x, np.empty(x.shape[0], dtype))

    def matrix(predictor, x, out=None):
        n_outputs = load_scalar(predictor.description, embedded.N_COLUMNS)
        return predictor(x, np.empty((x.shape[0], n_outputs), dtype))

    return ((one_number, vector) if is_vector else (row, matrix))[not is_row]
