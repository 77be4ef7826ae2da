"""Warnings that point at the line of the user's code, not at a line of ours."""

import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

# What lies between the user's line and ours: scikit-learn's meta-estimators, joblib, Numba's dispatchers.
_BETWEEN = ("fastbp", "numba", "sklearn", "joblib")


def _folder(package):
    spec = find_spec(package)
    return f"{Path(spec.origin).parent if spec is not None and spec.origin else package}{os.sep}"


_FOLDERS = tuple(map(_folder, _BETWEEN))


def warn_user(message, category=UserWarning):
    """Issue a warning that points at the first line outside of fastbp and scikit-learn.

    Parameters
    ----------
    message : str
        The text.
    category : type, default=UserWarning
        A subclass of Warning.
    """
    stacklevel, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_FOLDERS):
        stacklevel, frame = stacklevel + 1, frame.f_back
    warnings.warn(message, category, stacklevel=stacklevel)
