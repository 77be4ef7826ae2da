"""How every kernel is compiled, and where its machine code is kept.

`jit` is `numba.njit` with the options that all kernels share; what a kernel calls is compiled into it.
`cached_jit` also keeps the machine code on disk, for the few functions that Python calls directly.
`called_by_address` does so for parts that not every network needs, or that several kernels share: these find them by
an address, and they are compiled when first asked for.
"""

import hashlib
import warnings
from functools import cache, partial
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache, _Cache

# error_model="numpy": with Python's, each division is a branch that can raise, and
# the loop around it is not vectorised. nogil: Python threads may run side by side.
_OPTIONS = {"error_model": "numpy", "nogil": True}

jit = partial(njit, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)
inlined = partial(jit, inline="always")


def cached_jit(function=None, *, parallel=False):
    """Compile a function that Python calls, with its machine code kept on disk.

    Parameters
    ----------
    function : callable
        The function to compile.
    parallel : bool, default=False
        Whether `prange` loops start threads.

    Returns
    -------
    numba.core.dispatcher.Dispatcher
        The compiled function.
    """
    if function is None:
        return partial(cached_jit, parallel=parallel)
    dispatcher = njit(function, parallel=parallel, **_OPTIONS)
    dispatcher._cache = _ForgivingCache(function)
    return dispatcher


def called_by_address(function):
    """Compile a function of pointers and numbers, returning nothing, that kernels call with `intrinsics.call_at`."""
    dispatcher = jit(function)
    dispatcher._cache = _ForgivingCache(function)
    return dispatcher


@cache
def address_of(function, kinds):
    """Compile a function for arguments of some types, or load it, and return where its machine code is.

    Parameters
    ----------
    function : numba.core.dispatcher.Dispatcher
        A function with a disk cache.
    kinds : tuple of numba types
        One for each parameter.
    """
    function.compile(kinds)
    compiled = function.overloads[kinds]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    if not address:  # which kernels would take for nothing to do
        raise RuntimeError(f"Numba has no machine code for {compiled.fndesc.qualname}.")
    return address


@cache
def _source_stamp():
    """Hash all sources of the package: machine code of another version is stale.

    Numba's own stamp covers only the file of the cached function, not the files
    of the functions that were compiled into it.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _ForgivingCache(_Cache):
    """Numba's disk cache, but trouble with the disk never stops the work.

    A folder that cannot be written to, a truncated file, a full disk: the function
    is compiled in memory, and one warning says why. Nothing touches the disk before
    the first call, so that an import stays fast and cannot fail.
    """

    _warned = False

    def __init__(self, function):
        self._function = function
        self._enabled = True
        self._on_disk = None

    def _backend(self):
        if self._on_disk is None:
            self._on_disk = FunctionCache(self._function)
            self._on_disk._cache_file._source_stamp = _source_stamp()
        return self._on_disk

    def load_overload(self, sig, target_context):
        if self._enabled:
            try:
                return self._backend().load_overload(sig, target_context)
            except Exception as error:  # a damaged file can raise anything when unpickled
                self._warn(f"could not be read ({error!r})")
        return None

    def save_overload(self, sig, data):
        if not self._enabled:
            return
        try:
            try:
                self._backend().save_overload(sig, data)
            except OSError:
                raise
            except Exception:  # a damaged index: begin a new one
                self._backend().flush()
                self._backend().save_overload(sig, data)
        except Exception as error:
            self._enabled = False
            self._warn(f"could not be written ({error!r})")

    @classmethod
    def _warn(cls, what):
        if not cls._warned:
            _ForgivingCache._warned = True
            warnings.warn(
                f"The disk cache of fastbp's compiled code {what}: compiling in memory instead, which takes "
                "some seconds in each new process. Set NUMBA_CACHE_DIR to a folder of yours that can be "
                "written to.",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def cache_path(self):
        try:
            return self._backend().cache_path
        except Exception:
            return None

    def enable(self):
        self._enabled = True

    def disable(self):
        self._enabled = False

    def flush(self):
        self._backend().flush()
