"""Every private name of Numba, scikit-learn and NumPy that fastbp uses, and in which versions it was seen.

A new release of theirs may change these without notice; `tests/test_compat.py` exercises each. All other modules
import them from here. Numba's documented interfaces for extensions (`numba.extending`, and what its manual calls the
low-level interface: `numba.core.cgutils`, `numba.core.datamodel`, `numba.core.imputils`, `numba.core.typing.templates`)
are not private. `numba.core.event` is between the two: only the text of the module itself describes it.

==============================================  ===============
name                                            seen in
==============================================  ===============
numba.core.caching: FunctionCache, _Cache       0.62 to 0.68
FunctionCache: _cache_file, _impl.filename_base 0.62 to 0.68
numba.core.serialize: dumps                     0.62 to 0.68
numba.core.codegen: get_host_cpu_features       0.62 to 0.68
numba.core.config: CPU_NAME, CPU_FEATURES       0.62 to 0.68
call_conv of Numba's target context             0.62 to 0.68
numba.core.codegen: JITCodeLibrary and its
_codegen, _finalized, _finalize_final_module,
_optimize_final_module, _optimize_functions     0.62 to 0.68
CompilerBase.state.library                      0.62 to 0.68
numba.core.compiler: DefaultPassBuilder         0.62 to 0.68
CompilerBase.compile_extra                      0.62 to 0.68
numba.core.untyped_passes: InlineClosureLikes,
InlineInlinables and its _do_work               0.62 to 0.68
numba.core.inline_closurecall.InlineWorker:
inline_ir, run_untyped_passes,
_compiler_pipeline                              0.62 to 0.68
numba.core.ir: Block                            0.62 to 0.68
option _nrt of numba.njit                       0.62 to 0.68
numba.np.ufunc.parallel: _is_initialized        0.62 to 0.68
numba.np.ufunc.parallel: _launch_threads        0.62 to 0.68
Dispatcher._cache                               0.62 to 0.68
get_pointer_to_function of a compiled library   0.62 to 0.68
sklearn.base: _fit_context                      1.7 to 1.9
BaseEstimator._parameter_constraints            1.7 to 1.9
BaseEstimator._validate_params                  1.7 to 1.9
sklearn.utils._param_validation                 1.7 to 1.9
sklearn.utils.multiclass:
_check_partial_fit_first_call                   1.7 to 1.9
sklearn.callback: CallbackSupportMixin and its
_init_callback_context, _skl_callbacks          1.9
sklearn.utils.validation: _check_feature_names  1.7 to 1.9
sklearn.utils.validation:
_check_feature_names_in                         1.7 to 1.9
sklearn.utils.validation: _check_sample_weight  1.7 to 1.9
numpy.random.RandomState._bit_generator         1.26 to 2.4
memory of numpy.random.MT19937                  1.26 to 2.4
PyArrayObject_fields, after the object's head   1.26 to 2.4
==============================================  ===============
"""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from numbers import Integral, Real
from typing import TypeVar

import llvmlite.binding as llvm
import numpy as np
from numba import types


@contextmanager
def _private_names_of(package, seen_in):
    """Say, where a private name is gone, which package and versions are at fault."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"fastbp uses private names of {package} that were seen in versions {seen_in}, and {package} "
            f"{version(package)} lacks one: {error}. Install a version of that range, or a newer fastbp."
        ) from error


_NUMBA_SEEN = "0.62 to 0.68"

with _private_names_of("numba", _NUMBA_SEEN):
    from numba.core import config as _numba_config
    from numba.core.caching import FunctionCache, _Cache
    from numba.core.codegen import JITCodeLibrary
    from numba.core.codegen import get_host_cpu_features as _get_host_cpu_features
    from numba.core.compiler import Compiler, DefaultPassBuilder
    from numba.core.compiler_machinery import register_pass
    from numba.core.inline_closurecall import InlineWorker
    from numba.core.ir import Block
    from numba.core.serialize import dumps as serialize
    from numba.core.untyped_passes import InlineClosureLikes, InlineInlinables
    from numba.np.ufunc import parallel as _numba_parallel

    _numba_config.CPU_NAME, _numba_config.CPU_FEATURES  # noqa: B018
    _numba_parallel._is_initialized, _numba_parallel._launch_threads  # noqa: B018
    JITCodeLibrary._finalize_final_module, JITCodeLibrary._optimize_final_module  # noqa: B018
    JITCodeLibrary._optimize_functions  # noqa: B018
    Compiler.compile_extra, InlineInlinables._do_work, InlineWorker.inline_ir, InlineWorker.run_untyped_passes  # noqa: B018

with _private_names_of("scikit-learn", "1.7 to 1.9"):
    from sklearn.base import _fit_context
    from sklearn.utils._param_validation import Interval as _Interval
    from sklearn.utils._param_validation import Options, StrOptions
    from sklearn.utils.multiclass import _check_partial_fit_first_call
    from sklearn.utils.validation import _check_feature_names, _check_feature_names_in, _check_sample_weight

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: there are no callbacks."""


__all__ = [
    "CallbackSupportMixin", "DiskCache", "Interval", "Options", "PartCompiler", "StrOptions", "WholeCompiler",
    "array_fields", "begin_callbacks", "callbacks_of", "check_feature_names", "check_feature_names_in",
    "check_parameters", "check_partial_fit_first_call", "check_sample_weight", "cpu_features", "cpu_name",
    "emit_call_of_compiled", "fit_context", "machine_code_address", "mersenne_twister_of", "mersenne_twister_state",
    "numba_threads_are_started", "open_disk_cache", "serialize", "set_disk_cache", "start_numba_threads",
]  # fmt: skip

_Function = TypeVar("_Function", bound=Callable)
_MAX_FLOAT = sys.float_info.max


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[_Function], _Function]:
    """Return scikit-learn's decorator of methods that fit: it validates the parameters of the estimator."""
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)


def check_parameters(estimator):
    """Validate the parameters of an estimator, as `fit_context` does.

    Raises
    ------
    ValueError
        If one is invalid.
    """
    estimator._validate_params()


def begin_callbacks(estimator, n_tasks):
    """Set up the callbacks of an estimator.

    Parameters
    ----------
    estimator : CallbackSupportMixin
        The estimator that is fitted now. `fit_context` takes the callbacks down when the method ends.
    n_tasks : int
        How many parts the fit has at most.

    Returns
    -------
    sklearn.callback.CallbackContext or None
        None if the estimator has no callbacks.
    """
    if not hasattr(estimator, "_skl_callbacks"):
        return None
    return estimator._init_callback_context(max_subtasks=n_tasks)


def callbacks_of(estimator):
    """Return the callbacks that are set on an estimator, as a list."""
    return getattr(estimator, "_skl_callbacks", [])


class Interval(_Interval):
    """An interval of numbers; whole numbers beyond all floats are in no interval of real ones."""

    def is_satisfied_by(self, val):
        """Whether a parameter has a value of this interval."""
        if self.type is Real and isinstance(val, Integral) and abs(int(val)) > _MAX_FLOAT:
            return False
        return super().is_satisfied_by(val)


check_partial_fit_first_call = _check_partial_fit_first_call
check_feature_names = _check_feature_names
check_feature_names_in = _check_feature_names_in
check_sample_weight = _check_sample_weight

# What a dispatcher's cache has to be: Numba's base class of caches on disk.
DiskCache = _Cache


def cpu_name():
    """Return the processor that Numba compiles for, as LLVM names it."""
    name = _numba_config.CPU_NAME
    return llvm.get_host_cpu_name() if name is None else name


def cpu_features():
    """Return the features that Numba compiles for beside those that the processor's name implies."""
    features = _numba_config.CPU_FEATURES
    return _get_host_cpu_features() if features is None else features


def open_disk_cache(function, make_files):
    """Return Numba's disk cache for a function, which keeps the machine code in files of ours.

    Parameters
    ----------
    function : callable
        The function, not compiled.
    make_files : callable
        Returns an object with the methods `load(key)`, `save(key, data)` and `flush()`, from how the paths of the
        function's files begin.
    """
    backend = FunctionCache(function)
    with _private_names_of("numba", _NUMBA_SEEN):
        backend._cache_file  # noqa: B018  a new name would be set beside the one that Numba reads
        name = backend._impl.filename_base
    backend._cache_file = make_files(os.path.join(backend.cache_path, name))
    return backend


def set_disk_cache(dispatcher, disk_cache):
    """Have a dispatcher load its machine code from a cache, and save it there."""
    with _private_names_of("numba", _NUMBA_SEEN):
        dispatcher._cache  # noqa: B018
    dispatcher._cache = disk_cache


class _WholeLibrary(JITCodeLibrary):
    """The LLVM IR of a function, optimised once.

    Numba optimises each function by itself, then the whole, then removes counts of references, and optimises all of it
    once more. There are no such counts here, and loops over vectors need no vectorizer.
    """

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        manager, builder = self._codegen._module_pass_manager(loop_vectorize=False)
        manager.run(self._final_module, builder)


class _PartLibrary(_WholeLibrary):
    """The LLVM IR of a function that is only ever compiled into others.

    Numba would make machine code of it, and do so again for each function that contains it, and for each that
    contains that one.
    """

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0  # as Numba does for a function without a wrapper for Python

    @property
    def codegen(self):
        return _NoEnvironment(self._codegen)


class _NoEnvironment:
    """Numba's code generator; there is no machine code to tell where the globals of Python are."""

    def __init__(self, codegen):
        self._codegen = codegen

    def __getattr__(self, name):
        return getattr(self._codegen, name)

    def set_env(self, name, environment):
        pass


class _MovedBlock(Block):
    """A block of a function that is inlined where it is: it was made for this call alone.

    Numba copies each block twice, both times with all variables of its function.
    """

    def __deepcopy__(self, memo):
        return self


class _Mover:
    """Numba's `InlineWorker`, but it inlines blocks that are not copied."""

    def __init__(self, worker):
        self._worker = worker
        with _private_names_of("numba", _NUMBA_SEEN):
            worker._compiler_pipeline  # noqa: B018
        worker._compiler_pipeline = _define_untyped_passes

    def inline_function(self, caller_ir, block, i, function):
        callee_ir = self._worker.run_untyped_passes(function)
        blocks = list(callee_ir.blocks.values())
        for moved in blocks:
            moved.__class__ = _MovedBlock
        try:
            return self._worker.inline_ir(caller_ir, block, i, callee_ir, function.__code__.co_freevars)
        finally:
            for moved in blocks:
                moved.__class__ = Block


@register_pass(mutates_CFG=True, analysis_only=False)
class _InlineInlinables(InlineInlinables):
    """Numba's pass that inlines functions before types are inferred."""

    def _do_work(self, state, work_list, block, i, expr, inline_worker):
        return super()._do_work(state, work_list, block, i, expr, _Mover(inline_worker))


def _define_untyped_passes(state):
    passes = DefaultPassBuilder.define_untyped_pipeline(state)
    _select_passes(passes)
    return passes


def _select_passes(pipeline):
    """Leave out what looks for closures, of which there are none, and inline without copies."""
    pipeline.passes = [
        (_InlineInlinables if step is InlineInlinables else step, description)
        for step, description in pipeline.passes
        if step is not InlineClosureLikes
    ]


class _GarbagePause:
    """Python does not look for garbage, in any thread, while Numba compiles.

    It would look through millions of objects that are all in use, a tenth of the time. Numba's garbage of a first fit
    takes some 50 MB.
    """

    is_on = False  # Numba compiles one function at a time

    def __enter__(self):
        self._begins = gc.isenabled()  # else the user does not want it, or another function is being compiled
        if self._begins:
            _GarbagePause.is_on = True
            gc.disable()

    def __exit__(self, *_):
        if self._begins:
            self.end()

    @staticmethod
    def end():
        if _GarbagePause.is_on:
            gc.enable()
            _GarbagePause.is_on = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_GarbagePause.end)  # where the thread that compiles is not


class WholeCompiler(Compiler):
    """Compiles a function that has machine code of its own."""

    library = _WholeLibrary

    def compile_extra(self, func):
        """Compile a function, as Numba does."""
        with _GarbagePause():
            return super().compile_extra(func)

    def define_pipelines(self):
        """Choose the library, then go on as Numba does."""
        state = self.state
        if state.library is None:
            state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.library.enable_object_caching()  # before it is optimised
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            _select_passes(pipeline)
            pipeline.finalize()
        return pipelines


class PartCompiler(WholeCompiler):
    """Compiles a function that only compiled functions call: it is optimised, and becomes machine code, in these.

    It must not raise, as the exception would be looked up among the globals of Python.
    """

    library = _PartLibrary


def machine_code_address(compiled):
    """Return the address of the machine code of an overload of a dispatcher.

    Raises
    ------
    RuntimeError
        If Numba has none: kernels take the address 0 for nothing to do.
    """
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    if not address:
        raise RuntimeError(f"Numba has no machine code for {compiled.fndesc.qualname}.")
    return address


def emit_call_of_compiled(context, builder, address, kinds, values):
    """Build a call of a function that Numba has compiled, and that returns nothing.

    Parameters
    ----------
    context, builder
        As Numba gives them to the code generator of an intrinsic.
    address : llvmlite value
        From `machine_code_address`.
    kinds : sequence of numba types
        Of the arguments.
    values : sequence of llvmlite values
        The arguments.
    """
    kind = context.call_conv.get_function_type(types.none, kinds)
    function = builder.inttoptr(address, kind.as_pointer())
    context.call_conv.call_function(builder, function, types.none, kinds, values)


def numba_threads_are_started():
    """Whether Numba has started its threads in this process."""
    return _numba_parallel._is_initialized


def start_numba_threads():
    """Start Numba's threads, so that its threading layer is known.

    Raises
    ------
    ValueError
        If the threading layer that the user chose is not installed.
    """
    _numba_parallel._launch_threads()


def array_fields(array):
    """Return the address of what NumPy's C interface knows of an array, `PyArrayObject_fields`.

    That is the address of its numbers, the number of its dimensions, and the address of their lengths, in 8 bytes each.

    Raises
    ------
    RuntimeError
        If this NumPy has something else there.
    """
    if not _array_fields_are_as_expected():
        raise RuntimeError(f"NumPy {np.__version__} keeps its arrays in a way that fastbp does not know.")
    return _fields_of(array)


def _fields_of(array):
    return id(array) + object.__basicsize__


@cache
def _array_fields_are_as_expected():
    array = np.zeros((3, 5))
    address, n_dimensions, shape = (ctypes.c_int64 * 3).from_address(_fields_of(array))
    # The number of dimensions has 4 bytes; those after it have no meaning.
    if address != array.ctypes.data or n_dimensions & 0xFFFFFFFF != array.ndim:
        return False
    return tuple((ctypes.c_int64 * array.ndim).from_address(shape)) == array.shape


def mersenne_twister_of(random_state):
    """Return the Mersenne Twister of a RandomState; None where it has another generator."""
    generator = random_state._bit_generator
    return generator if type(generator) is np.random.MT19937 else None


def mersenne_twister_state(generator, n_words):
    """View the memory of a Mersenne Twister.

    Parameters
    ----------
    generator : numpy.random.MT19937
        The generator; who changes its state holds `generator.lock`.
    n_words : int
        Words of its state.

    Returns
    -------
    ndarray of uint32 of shape (n_words + 1,) or None
        The words, and how many of them have been used; None if this NumPy keeps them in another way.
    """
    return _view_state(generator, n_words) if _state_is_as_expected(n_words) else None


def _view_state(generator, n_words):
    address = generator.ctypes.state_address
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint32)), (n_words + 1,))


@cache
def _state_is_as_expected(n_words):
    generator = np.random.MT19937(1)
    generator.random_raw(5)
    expected = generator.state["state"]
    found = _view_state(generator, n_words)
    return np.array_equal(found[:n_words], expected["key"]) and found[n_words] == expected["pos"]
