"""Warnings that point at the line of the user's code, not at a line of ours."""

import multiprocessing
import os
import sys
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

# What lies between the user's line and ours: scikit-learn's meta-estimators, Numba's dispatchers, decorators, and what
# starts threads and processes.
_BETWEEN = (
    "fastbp", "numba", "sklearn", "joblib", "functools", "contextlib", "asyncio", "concurrent", "multiprocessing",
    "threading",
)  # fmt: skip


def _place(package):
    """Return how the names of all files of a package, or of one module, begin."""
    spec = find_spec(package)
    if spec is None or not spec.origin:
        return f"{package}{os.sep}"
    path = Path(spec.origin)
    return f"{path.parent}{os.sep}" if spec.submodule_search_locations else str(path)


_OURS = _place("fastbp")
_PLACES = (*map(_place, _BETWEEN), "<frozen ")  # runpy and importlib are built into Python


class MaxTimeWarning(UserWarning):
    """Training has ended as `max_time` is over."""


_HELD: ContextVar[list | None] = ContextVar("held warnings", default=None)


@contextmanager
def held_warnings():
    """Yield a list of the messages and categories that `warn_user` gets in this thread, and does not issue."""
    held: list[tuple[str, type]] = []
    token = _HELD.set(held)
    try:
        yield held
    finally:
        _HELD.reset(token)


def _is_between(frame):
    file = frame.f_code.co_filename
    # A process is not always forked: `python -c "from multiprocessing..."` is how Python starts one.
    starts_worker = file == "<string>" and frame.f_back is None and multiprocessing.parent_process() is not None
    return starts_worker or file.startswith(_PLACES)


def warn_user(message, category=UserWarning):
    """Issue a warning that points at the first line outside of fastbp, scikit-learn and what starts workers.

    In a worker there may be no such line. The warning then points at the outermost line of fastbp.

    Parameters
    ----------
    message : str
        The text.
    category : type, default=UserWarning
        A subclass of Warning.
    """
    held = _HELD.get()
    if held is not None:
        held.append((message, category))
        return
    frame: FrameType | None = sys._getframe()
    stacklevel = outermost_of_ours = 1
    while frame is not None and _is_between(frame):
        if frame.f_code.co_filename.startswith(_OURS):
            outermost_of_ours = stacklevel
        stacklevel, frame = stacklevel + 1, frame.f_back
    warnings.warn(message, category, stacklevel=outermost_of_ours if frame is None else stacklevel)
