"""`save` and `load`: models in safetensors files, without pickle.

The arrays of the model are the tensors of the file. The text "model" in its header is a JSON object:

- "estimator": the name of the class;
- "parameters": those of `get_params`;
- "fitted": what training has set, by the names of `_FITTED`.

What JSON does not have is an object with a single entry, whose name says what it is: see `_Decoder`. All names are
looked up in tables: no file can name what is to be imported or called.

References
----------
The format: https://github.com/huggingface/safetensors
"""

import copy
import inspect
import json
import math
import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import check_is_fitted

from fastbp.activations import Activation
from fastbp.checkpoints import A_CALLABLE
from fastbp.classifier import BackpropClassifier
from fastbp.compat import check_parameters
from fastbp.files import write_atomically
from fastbp.regressor import BackpropRegressor
from fastbp.state import FormatError, activation_of, check_generator, describe_activation

FORMAT, VERSION = "fastbp", 1
_ESTIMATORS: dict[Any, type] = {cls.__name__: cls for cls in (BackpropClassifier, BackpropRegressor)}
# The entries of "fitted" and the attributes that they are; all other attributes follow from these.
_FITTED = {
    "n_features_in": "n_features_in_", "feature_names_in": "feature_names_in_", "classes": "classes_",
    "binarizer": "_binarizer", "n_targets": "_n_targets", "coefs": "coefs_", "intercepts": "intercepts_",
    "activations": "_activations", "loss": "_loss", "progress": "_progress", "optimizer": "_optimizer",
    "shuffling": "_shuffling", "training_state": "_training_state", "is_untrained": "_is_untrained",
}  # fmt: skip
# Those that an estimator may do without.
_OPTIONAL = {"feature_names_in", "shuffling", "training_state", "is_untrained"}
_OF_CLASSIFIERS, _OF_REGRESSORS = {"classes", "binarizer"}, {"n_targets"}
# Those that are objects with entries of their own.
_SECTIONS = {"binarizer", "loss", "progress", "optimizer", "shuffling", "training_state"}
_BINARIZER = {"classes": "classes_", "y_type": "y_type_", "sparse_input": "sparse_input_"}
# The longest header in bytes: Python needs up to forty times its size to read it.
_MAX_HEADER = 2**20
# The types of tensors that `save` writes, as safetensors calls them.
_DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64"}
# Longer lists of floats are tensors.
_MAX_IN_TEXT = 16


def save(estimator: BackpropClassifier | BackpropRegressor, path: str | os.PathLike, *, optimizer: bool = True) -> None:
    """Save a fitted estimator to a file from which `load` returns an equal one.

    It is a safetensors file, without pickle. This needs the library: ``pip install "fastbp[save]"``.

    Parameters
    ----------
    estimator : BackpropClassifier or BackpropRegressor
        A fitted estimator. Callbacks, metadata requests and attributes of your own are not saved.
    path : path-like
        The file; by custom its name ends with ".safetensors". It is replaced as a whole: after a failure, the old file
        is there.
    optimizer : bool, default=True
        Whether to save what training continues from: the memory of the optimizer, and the order of the samples.
        `partial_fit` then continues bit for bit. Without it the optimizer begins anew, and a file after training with
        Adam has a third of the size.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    TypeError
        If it is of another class, subclasses included.
    ValueError
        If a parameter is code, such as a callable `scoring`, or invalid; if edited weights do not fit together or are
        not finite.
    OSError
        If the file cannot be written.
    ImportError
        If safetensors is not installed.

    See Also
    --------
    load : Load the file.

    Examples
    --------
    >>> import fastbp
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = fastbp.BackpropClassifier(max_iter=300, random_state=0).fit(X, y)
    >>> fastbp.save(clf, "iris.safetensors")  # doctest: +SKIP
    >>> fastbp.load("iris.safetensors").predict(X[:2])  # doctest: +SKIP
    array([0, 0])
    """
    library = _import_library()
    name = type(estimator).__name__
    if _ESTIMATORS.get(name) is not type(estimator):
        raise TypeError(
            f"save takes a BackpropClassifier or a BackpropRegressor, got {name}. Save other estimators, pipelines and "
            "ensembles with skops.io.dump or joblib.dump."
        )
    check_is_fitted(estimator)
    model: Any = copy.copy(estimator)  # which checks its state
    check_parameters(model)
    _unify_dtypes(model)
    _check_weights(model)
    encoder = _Encoder()
    text = json.dumps(_describe(model, encoder, optimizer), allow_nan=False)
    data = library.save(encoder.tensors, {"format": FORMAT, "format_version": str(VERSION), "model": text})
    if _header_size(data) > _MAX_HEADER:
        raise ValueError(
            f"Parameters and layers take {_header_size(data)} bytes of text, of which load accepts {_MAX_HEADER}. Use "
            "joblib.dump."
        )
    write_atomically(path, data)


def load(path: str | os.PathLike) -> BackpropClassifier | BackpropRegressor:
    """Load an estimator that `save` has written.

    Nothing in the file is executed, so that it may come from anyone.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    BackpropClassifier or BackpropRegressor
        With the parameters, the fitted attributes and, bit for bit, the predictions of the estimator that was saved.

    Raises
    ------
    FormatError
        If the file is not a model of fastbp, is damaged, or comes from a newer version.
    OSError
        If it cannot be read; FileNotFoundError if there is none.
    ImportError
        If safetensors is not installed.

    See Also
    --------
    save : Write such a file.
    """
    library = _import_library()
    path = Path(path)
    data = path.read_bytes()
    try:
        description, tensors = _open(data, library)
        del data
        return _estimator_of(description, _Decoder(tensors))
    except MemoryError:
        raise
    except Exception as error:  # what the libraries raise that read the file
        raise FormatError(f"{str(path)!r} is damaged, or not a model of fastbp: {error}") from error


def check_can_save(estimator):
    """Check before a long training that the parameters can be saved, and safetensors is installed.

    Raises
    ------
    ValueError, ImportError
        If not.
    """
    _import_library()
    _Encoder().encode_entries(estimator.get_params(deep=False), "parameters")


def _import_library():
    try:
        from safetensors import numpy as library
    except ImportError as error:
        raise ImportError('fastbp.save and fastbp.load need safetensors: pip install "fastbp[save]".') from error
    return library


def _describe(model, encoder, keeps_optimizer):
    """Return the JSON object of a model, whose arrays the encoder takes."""
    parameters = model.get_params(deep=False)
    if callable(parameters["scoring"]):
        raise ValueError(
            f"scoring={parameters['scoring']!r} is code, which the file does not hold. Save a copy without it: "
            "copy.copy(estimator).set_params(scoring=None)."
        )
    state = model.__getstate__()
    state["_activations"] = model._activations
    progress = state["_progress"]
    if callable(progress["scoring"]):  # other scores begin anew
        progress["scoring"] = A_CALLABLE
    if not keeps_optimizer:
        state["_optimizer"] |= {"parts": None, "steps": 0, "seed": None}
        for name in ("_shuffling", "_training_state"):
            state.pop(name, None)
    if "_binarizer" in state:
        state["_binarizer"] = {name: getattr(state["_binarizer"], key) for name, key in _BINARIZER.items()}
    fitted = {name: state[attribute] for name, attribute in _FITTED.items() if attribute in state}
    return {
        "estimator": type(model).__name__,
        "parameters": encoder.encode_entries(parameters, "parameters"),
        "fitted": {
            name: (encoder.encode_entries if name in _SECTIONS else encoder.encode)(value, name)
            for name, value in fitted.items()
        },
    }


# How files begin that others write, and what loads them.
_OTHERS = {b"PK": "skops.io.load, or what has written it", b"\x80": "joblib.load or pickle.load, if you trust it"}


def _open(data, library):
    """Return the JSON object "model" and the tensors of a file."""
    size = _header_size(data)
    if len(data) < 8 or size > len(data) - 8 or size > _MAX_HEADER:
        for start, way in _OTHERS.items():
            if data.startswith(start):
                raise FormatError(f"it seems to be a file of another kind; load it with {way}.")
        raise FormatError(f"it has no header, or a longer one than {_MAX_HEADER} bytes.")
    header = _entries(_parse(data[8 : 8 + size].decode()), "header")
    metadata = _entries(header.get("__metadata__"), "__metadata__")
    if metadata.get("format") != FORMAT:
        raise FormatError("its header does not say that it is one.")
    _check_version(metadata.get("format_version"))
    _require_entries(metadata, {"format", "format_version", "model"}, "__metadata__")
    dtypes = {_entries(tensor, name).get("dtype") for name, tensor in header.items() if name != "__metadata__"}
    if not dtypes <= _DTYPES:
        raise FormatError(f"it has tensors of {sorted(map(str, dtypes - _DTYPES))}.")
    del header  # a hostile one takes much memory
    return _parse(metadata["model"]), library.load(data)


def _header_size(data):
    return int.from_bytes(data[:8], "little")


def _check_version(text):
    version = int(text)
    if version > VERSION:
        raise FormatError(f"its format version is {version}, this fastbp knows {VERSION}. Install a newer fastbp.")
    if version < 1:
        raise FormatError(f"there is no format version {version}.")


def _parse(text):
    """Return what a JSON text says, more strictly than Python."""
    return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)


def _unique(pairs):
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise FormatError("an object of its JSON has an entry twice.")
    return entries


def _finite(text):
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text):
    raise FormatError(f"JSON has no number {reprlib.repr(text)}.")


def _entries(value, name):
    if not isinstance(value, dict):
        raise FormatError(f"{name} must be a JSON object, got {reprlib.repr(value)}.")
    return value


def _require_entries(value, names, what, optional=frozenset()):
    """Return an object that has certain entries, and no others."""
    found = _entries(value, what).keys()
    for problem, wrong in (("unknown entries", found - names - optional), ("no entries", names - found)):
        if wrong:
            raise FormatError(f"{what} has {problem} {sorted(wrong)}.")
    return value


def _estimator_of(description, decoder):
    """Return the estimator that a JSON object and the tensors of its decoder describe."""
    _require_entries(description, {"estimator", "parameters", "fitted"}, "model")
    cls = _ESTIMATORS.get(description["estimator"])
    if cls is None:
        raise FormatError(f"there is no estimator {description['estimator']!r}.")
    parameters = decoder.decode_entries(description["parameters"], "parameters")
    # Those that a later version has added have their defaults.
    _require_entries(parameters, set(), "parameters", inspect.signature(cls).parameters.keys())
    model = cls(**parameters)
    check_parameters(model)
    model.__setstate__(vars(model) | _fitted_of(description["fitted"], cls, decoder))
    _check_weights(model)
    model._set_results()
    return model


def _fitted_of(description, cls, decoder):
    """Return the attributes that "fitted" describes."""
    others = _OF_REGRESSORS if cls is BackpropClassifier else _OF_CLASSIFIERS
    _require_entries(description, _FITTED.keys() - _OPTIONAL - others, "fitted", _OPTIONAL)
    state = {
        _FITTED[name]: decoder.decode_entries(value, name) if name in _SECTIONS else decoder.decode(value)
        for name, value in description.items()
    }
    if decoder.tensors:
        raise FormatError(f"it has unknown tensors {reprlib.repr(sorted(decoder.tensors))}.")
    if "_binarizer" in state:
        labels = _require_entries(state["_binarizer"], _BINARIZER.keys(), "binarizer")
        state["_binarizer"] = binarizer = LabelBinarizer()
        for name, attribute in _BINARIZER.items():
            setattr(binarizer, attribute, labels[name])
    return state


def _arrays(model):
    """Return the weights and the memory of the optimizer, a list for each kind."""
    memory = [arrays for part in model._optimizer["parts"] or () for arrays in part]
    return [model.coefs_, model.intercepts_, *memory, *_best(model)]


def _best(model):
    """Return the best parameters so far of a checkpoint, or nothing."""
    state = getattr(model, "_training_state", None)
    return (state and state.best) or ()


def _unify_dtypes(model):
    """Give all arrays of a model the type of its first weights, in which it computes."""
    dtype = model.coefs_[0].dtype

    def convert(arrays):
        with np.errstate(over="ignore"):
            return [array.astype(dtype, copy=False) for array in arrays]

    model.coefs_, model.intercepts_ = convert(model.coefs_), convert(model.intercepts_)
    parts = model._optimizer["parts"]
    parts = parts and [tuple(map(convert, part)) for part in parts]
    model._optimizer = {**model._optimizer, "parts": parts}
    if best := _best(model):
        model._training_state.best = tuple(map(convert, best))


def _check_weights(model):
    dtypes = {array.dtype for arrays in _arrays(model) for array in arrays}
    if len(dtypes) > 1:
        raise FormatError(f"The arrays of a model must have one type, got {sorted(map(str, dtypes))}.")
    best = [array for arrays in _best(model) for array in arrays]
    if not all(np.isfinite(array).all() for array in (*model.coefs_, *model.intercepts_, *best)):
        raise FormatError("Weights and biases must be finite.")


class _Encoder:
    """Turns values into JSON; the arrays become tensors.

    Attributes
    ----------
    tensors : dict of str to ndarray
        Named after the place where each stands.
    """

    def __init__(self):
        self.tensors = {}

    def encode_entries(self, entries, name):
        """Return an object with the same entries."""
        return {key: self.encode(value, f"{name}.{key}") for key, value in entries.items()}

    def encode(self, value, name):
        """Return what JSON has for a value.

        Raises
        ------
        ValueError
            If the value cannot be saved.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, list):
            return self._encode_list(value, name)
        if isinstance(value, tuple):
            return {"tuple": self._encode_list(list(value), name)}
        if isinstance(value, dict):
            return {"pairs": [self.encode(list(pair), f"{name}.{i}") for i, pair in enumerate(value.items())]}
        if isinstance(value, np.ndarray):
            return self._encode_array(value, name)
        if isinstance(value, np.random.RandomState):
            return self._encode_generator(value, name)
        if isinstance(value, Activation) and isinstance(description := describe_activation(value), dict):
            return {"activation": self.encode_entries(description, name)}
        raise ValueError(
            f"{name}={value!r} cannot be saved: it is neither a number, a string, a list, an array, nor an activation "
            "of fastbp. Use joblib.dump, or set the parameter to one of these."
        )

    def _encode_list(self, values, name):
        if len(values) > _MAX_IN_TEXT and all(type(value) is float for value in values):
            self.tensors[name] = np.array(values)
            return {"floats": name}
        return [self.encode(value, f"{name}.{i}") for i, value in enumerate(values)]

    def _encode_array(self, array, name):
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
        if native.dtype.kind in "biuf" and native.itemsize <= 8:
            self.tensors[name] = native
            return {"tensor": name}
        if native.dtype.kind == "U" and native.ndim == 1:
            self.tensors[name] = native.view(np.uint32).reshape(len(native), -1)
            return {"text": name}
        if native.dtype.kind == "O" and native.ndim == 1 and all(isinstance(value, str) for value in native):
            parts = [value.encode("utf-8", "surrogatepass") for value in native]
            self.tensors[name] = np.frombuffer(b"".join(parts), np.uint8)
            self.tensors[f"{name}.lengths"] = np.array([len(part) for part in parts], np.int64)
            return {"strings": name}
        raise ValueError(
            f"{name} is an array of {array.dtype}, of which only numbers, booleans and strings can be saved."
        )

    def _encode_generator(self, random_state, name):
        state = random_state.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            raise ValueError(
                f"{name} has the generator {state['bit_generator']}, but only MT19937 can be saved: pass a number, or "
                "numpy.random.RandomState(seed)."
            )
        return {
            "generator": self.encode_entries(state.pop("state") | {k: state[k] for k in ("has_gauss", "gauss")}, name)
        }


class _Decoder:
    """Turns JSON into values: the methods are those that the entry of an object may name.

    Attributes
    ----------
    tensors : dict of str to ndarray
        Those that have not been used. None is used twice.
    """

    def __init__(self, tensors):
        self.tensors = tensors
        self._kinds = {
            "float": self._float, "tuple": self._tuple, "pairs": self._pairs, "activation": self._activation,
            "generator": self._generator, "tensor": self._tensor, "floats": self._floats, "text": self._text,
            "strings": self._strings,
        }  # fmt: skip

    def decode_entries(self, entries, name):
        """Return a dict with the same entries."""
        return {key: self.decode(value) for key, value in _entries(entries, name).items()}

    def decode(self, value):
        """Return the value that JSON describes."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) != 1 or not value.keys() <= self._kinds.keys():
            raise FormatError(f"{reprlib.repr(value)} must have one entry, one of {sorted(self._kinds)}.")
        [(kind, content)] = value.items()
        return self._kinds[kind](content)

    def _take(self, name, dtype, ndim):
        """Return a copy of a tensor, which has memory of its own."""
        if not isinstance(name, str) or name not in self.tensors:
            raise FormatError(f"the tensor {reprlib.repr(name)} is missing, or used twice.")
        array = self.tensors.pop(name)
        if dtype is not None and (array.dtype, array.ndim) != (dtype, ndim):
            raise FormatError(
                f"the tensor {name!r} must be of {dtype} with {ndim} dimensions, got {array.dtype} {array.shape}."
            )
        if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
            raise FormatError(f"the tensor {name!r} has booleans that are neither true nor false.")
        return array.copy()

    def _tensor(self, name):
        return self._take(name, None, None)

    def _floats(self, name):
        return self._take(name, np.dtype(np.float64), 1).tolist()

    def _text(self, name):
        codes = self._take(name, np.dtype(np.uint32), 2)
        if not codes.shape[1] or (codes > 0x10FFFF).any():
            raise FormatError(f"the tensor {name!r} is no text.")
        return codes.view(f"U{codes.shape[1]}")[:, 0].copy()

    def _strings(self, name):
        data = self._take(name, np.dtype(np.uint8), 1).tobytes()
        lengths = self._take(f"{name}.lengths", np.dtype(np.int64), 1)
        if (lengths < 0).any() or (lengths > len(data)).any() or lengths.sum() != len(data):
            raise FormatError(f"the lengths of the strings {name!r} do not fit.")
        ends = lengths.cumsum().tolist()
        strings = np.empty(len(ends), dtype=object)
        for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            strings[i] = data[begin:end].decode("utf-8", "surrogatepass")
        return strings

    def _float(self, text):
        if text not in ("inf", "-inf", "nan"):
            raise FormatError(f"{reprlib.repr(text)} is no float that JSON does not have.")
        return float(text)

    def _tuple(self, content):
        values = self.decode(content)
        if not isinstance(values, list):
            raise FormatError("a tuple must have a list.")
        return tuple(values)

    def _pairs(self, content):
        entries = dict(self.decode(content))
        if len(entries) < len(content):
            raise FormatError("a dict has a key twice.")
        return entries

    def _activation(self, content):
        return activation_of(self.decode_entries(content, "an activation"))

    def _generator(self, content):
        state = self.decode_entries(content, "a generator")
        _require_entries(state, {"key", "pos", "has_gauss", "gauss"}, "a generator")
        key, gauss = state["key"], state["gauss"]
        if not isinstance(key, np.ndarray) or (key.dtype, key.shape) != (np.uint32, (624,)):
            raise FormatError("the key of a generator must be 624 numbers of uint32.")
        if type(state["pos"]) is not int or state["has_gauss"] not in (0, 1) or type(gauss) is not float:
            raise FormatError("the state of a generator has a wrong type.")
        check_generator(key, state["pos"])
        generator = np.random.RandomState(0)
        generator.set_state(("MT19937", key, state["pos"], state["has_gauss"], gauss))
        return generator
