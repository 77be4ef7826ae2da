"""How functions are compiled, where their machine code is kept, and how they call each other.

- `jit` is `numba.njit` with the options that all kernels share; what a kernel calls is compiled into it. `inlined`
  merges a function into its callers before types are inferred, `typed_inlined` after. To infer types takes most of the
  time of compiling: use the second for what is large, or has several callers.
- `cached_jit` keeps the machine code on disk, for the few functions that Python calls.
- `called_by_address` does so for parts that several kernels share, or that not every network needs. They are compiled
  when `address_of` is first called, and kernels call them with `call_at`.
"""

import glob
import hashlib
import logging
import multiprocessing
import os
import pickle
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import numba
from numba import config, njit, types
from numba.core import cgutils, event
from numba.extending import intrinsic

from fastbp.compat import (
    DiskCache,
    PartCompiler,
    WholeCompiler,
    emit_call_of_compiled,
    machine_code_address,
    open_disk_cache,
    serialize,
    set_disk_cache,
)
from fastbp.files import write_atomically
from fastbp.user_warnings import warn_user

# error_model="numpy": with Python's, each division is a branch that can raise, and
# the loop around it is not vectorised. nogil: Python threads may run side by side.
_OPTIONS = {"error_model": "numpy", "nogil": True}
# Nothing here makes an array, whose references Numba would count, or computes with whole arrays, which it would fuse.
_LEAN_OPTIONS = _OPTIONS | {"no_rewrites": True, "_nrt": False, "no_cfunc_wrapper": True}

_whole = partial(njit, pipeline_class=WholeCompiler, **_LEAN_OPTIONS)
jit = partial(njit, pipeline_class=PartCompiler, no_cpython_wrapper=True, **_LEAN_OPTIONS)
inlined = partial(jit, inline="always")
typed_inlined = partial(jit, forceinline=True)


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
    # A parallel loop makes arrays.
    dispatcher = njit(function, parallel=True, no_cfunc_wrapper=True, **_OPTIONS) if parallel else _whole(function)
    set_disk_cache(dispatcher, _ForgivingCache(function))
    return dispatcher


def called_by_address(function):
    """Compile a function of pointers and scalars, without a result, that kernels call by its address."""
    dispatcher = _whole(function, no_cpython_wrapper=True)
    set_disk_cache(dispatcher, _ForgivingCache(function))
    return dispatcher


@cache
def address_of(function, kinds):
    """Compile a function for arguments of some types, or load it, and return the address of its machine code.

    Parameters
    ----------
    function : numba.core.dispatcher.Dispatcher
        From `cached_jit` or `called_by_address`.
    kinds : tuple of numba types
        One for each parameter.

    Returns
    -------
    int
        The address; never 0.
    """
    function.compile(kinds)
    return machine_code_address(function.overloads[kinds])


@intrinsic
def call_at(typingctx, address, args):
    """Call the function at an address from `address_of` with the elements of a tuple.

    A function that is called by its name is compiled once more, into its caller.
    """

    def codegen(context, builder, signature, values):
        unpacked = [builder.extract_value(values[1], i) for i in range(len(args))]
        emit_call_of_compiled(context, builder, values[0], args.types, unpacked)
        return context.get_dummy_value()

    return types.void(address, args), codegen


@intrinsic
def store_arguments(typingctx, args):
    """Put a tuple on the stack of the calling function; return its address."""

    def codegen(context, builder, signature, values):
        place = cgutils.alloca_once_value(builder, values[0])
        return builder.ptrtoint(place, context.get_value_type(types.int64))

    return types.int64(args), codegen


@intrinsic
def call_with_stored(typingctx, address, place):
    """Do as `call_at`, with the tuple that a pointer points at."""
    args = place.dtype

    def codegen(context, builder, signature, values):
        kind = context.get_value_type(args)
        stored = builder.load(builder.bitcast(values[1], kind.as_pointer()))
        unpacked = [builder.extract_value(stored, i) for i in range(len(args))]
        emit_call_of_compiled(context, builder, values[0], args.types, unpacked)
        return context.get_dummy_value()

    return types.void(address, place), codegen


# --- what a user hears of compiling ---

logger = logging.getLogger("fastbp")
# Seconds of compiling in a process after which the user is told what takes so long.
PATIENCE = 3.0


class _CompilationNotice(event.Listener):
    """Says once, after some seconds of compiling, what is going on. Numba calls it while it compiles one function."""

    said = False
    spent = 0.0

    def __init__(self):
        self._begin = time.perf_counter()
        self._depth = 0
        event.register("numba:compile", self)

    def on_start(self, _):
        self._depth += 1
        self._look()

    def on_end(self, _):
        self._depth -= 1
        if self._depth == 0:  # the function itself, compiled or failed
            # Numba is going through the listeners. This one came last, so that none is passed over.
            event.unregister("numba:compile", self)
        self._look()
        if self._depth == 0:
            _CompilationNotice.spent += time.perf_counter() - self._begin

    def _look(self):
        if _CompilationNotice.said or _CompilationNotice.spent + time.perf_counter() - self._begin <= PATIENCE:
            return
        _CompilationNotice.said = True
        # Workers do not know how logging was set up in the process that started them, and all would say the same.
        if multiprocessing.parent_process() is not None:
            return
        fate = (
            "The machine code is kept on disk, from where later processes load it. `python -m fastbp warmup` compiles "
            "what most networks need ahead of time"
            if all_code_is_kept()
            else "The machine code cannot be kept on disk, so that each process compiles anew; set NUMBA_CACHE_DIR to "
            "a folder of yours that can be written to"
        )
        with suppress(Exception):  # of a handler: trouble with a message never stops the work
            logger.warning(
                "fastbp is compiling its kernels, which takes 10 to 30 seconds. %s; "
                "logging.getLogger('fastbp').setLevel('ERROR') hides this message.",
                fate,
            )


@contextmanager
def no_compilation_notice():
    """Compile without a notice within this block."""
    before = _CompilationNotice.said, _CompilationNotice.spent
    _CompilationNotice.said = True
    try:
        yield
    finally:
        _CompilationNotice.said, _CompilationNotice.spent = before


# --- the disk cache ---


def _sources(folder):
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _sources(entry)
        elif entry.name.endswith(".py"):
            yield entry


def _hash_sources():
    sources = list(_sources(files("fastbp")))
    if not sources:
        raise RuntimeError("fastbp is installed without its sources, by which old machine code is told from new")
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


@cache
def source_stamp():
    """Hash all sources of the package, in a folder or an archive: machine code of another version is stale.

    Numba's own stamp covers only the file of the cached function, not the files
    of the functions that were compiled into it.
    """
    return _hash_sources()


with suppress(Exception):  # who needs it will hear of it
    source_stamp()  # of what this process imports now, though it may compile long after an update


class _CodeFiles:
    """The files with the machine code of a function: one for each combination of types and processor.

    Numba has an index of them, and two processes that save at the same time, for other types or on other processors of
    a cluster, can leave an index that names the machine code of the one for the other. And it loads what was damaged
    in the middle.

    Parameters
    ----------
    stamp : str
        Machine code with another one is stale.
    base : str
        How the paths of the files begin.
    """

    _MAGIC = b"machine code of fastbp "

    def __init__(self, stamp, base):
        self._base = base
        self._head = self._MAGIC + f"{stamp}, Numba {numba.__version__}\n".encode()

    def _path(self, key):
        key = f"{key!r} {config.OPT} {config.BOUNDSCHECK}"
        return Path(f"{self._base}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.nbc")

    def load(self, key):
        """Return what was saved; None if there is nothing, or that of another version."""
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        if content.startswith(self._MAGIC) and not content.startswith(self._head):
            return None
        digest, data = content[len(self._head) :][:32], content[len(self._head) + 32 :]
        if hashlib.sha256(data).digest() != digest:
            raise ValueError(f"{str(self._path(key))!r} is damaged")
        return pickle.loads(data)

    def save(self, key, data):
        """Save the machine code in the place of what there is."""
        data = serialize(data)
        write_atomically(self._path(key), self._head + hashlib.sha256(data).digest() + data, durable=False)

    def flush(self):
        """Remove all of them."""
        for path in Path(self._base).parent.glob(f"{glob.escape(Path(self._base).name)}-*.nbc"):
            path.unlink(missing_ok=True)


class _ForgivingCache(DiskCache):
    """Numba's disk cache, but trouble with the disk never stops the work.

    A folder that cannot be written to, a truncated file, a full disk: the function
    is compiled in memory, and one warning says why. Nothing touches the disk before
    the first call, so that an import stays fast and cannot fail.
    """

    all_kept = True  # of what was compiled in this process
    _warned = False

    def __init__(self, function):
        self._function = function
        self._enabled = True
        self._on_disk = None

    def _backend(self):
        if self._on_disk is None:
            was_there = os.path.lexists("~")
            backend = open_disk_cache(self._function, partial(_CodeFiles, source_stamp()))
            # Where the system knows no home folder, Numba makes a folder named "~" in the current one. One that
            # NUMBA_CACHE_DIR names is the user's own doing.
            chosen = config.CACHE_DIR and backend.cache_path.startswith(config.CACHE_DIR)
            if backend.cache_path.startswith("~") and not chosen:
                if not was_there:
                    with suppress(OSError):
                        os.removedirs(backend.cache_path)  # as far as they are empty
                raise RuntimeError("there is no home folder")
            if config.CACHE_DIR and not chosen:
                self._warn_of_folder(backend.cache_path)
            self._on_disk = backend
        return self._on_disk

    # Numba calls `load_overload` before it compiles, and `save_overload` after.

    def load_overload(self, sig, target_context):
        loaded = None
        if self._enabled:
            try:
                loaded = self._backend().load_overload(sig, target_context)
            except Exception as error:  # a damaged file can raise anything when unpickled
                if self._on_disk is None:
                    self._give_up(f"has no folder ({error})")
                else:
                    self._warn(f"could not be read ({error})")
        if loaded is None:
            _CompilationNotice()
        return loaded

    def save_overload(self, sig, data):
        if not self._enabled:
            return
        try:
            if _hash_sources() != source_stamp():  # they were replaced after this process had imported them
                self._enabled = _ForgivingCache.all_kept = False
                return
            self._backend().save_overload(sig, data)
        except Exception as error:
            self._give_up(f"could not be written ({error!r})")

    def _give_up(self, what):
        self._enabled = _ForgivingCache.all_kept = False
        self._warn(what)

    @staticmethod
    @cache
    def _warn_of_folder(path):
        warn_user(
            f"NUMBA_CACHE_DIR={config.CACHE_DIR} is not used, as Numba cannot write to it or fastbp is in an archive: "
            f"the disk cache of fastbp's compiled code is in {path}.",
            RuntimeWarning,
        )

    @classmethod
    def _warn(cls, what):
        if not cls._warned:
            _ForgivingCache._warned = True
            warn_user(
                f"The disk cache of fastbp's compiled code {what}. fastbp compiles in memory instead, which takes many "
                "seconds in each new process. Set NUMBA_CACHE_DIR to a folder of yours that can be written to.",
                RuntimeWarning,
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


def all_code_is_kept():
    """Whether all that was compiled in this process can be loaded from the disk by the next one."""
    return _ForgivingCache.all_kept
