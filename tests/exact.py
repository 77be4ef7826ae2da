"""Arithmetic as a processor does it, computed with exact fractions."""

from fractions import Fraction
from math import frexp, ldexp

import numpy as np

from fastbp.codegen.target import HAS_FMA

_DIGITS = {np.float32: 24, np.float64: 53}


def _rounded(value, dtype):
    """Round an exact number to the nearest of a type, ties to even."""
    if value == 0:
        return 0.0
    places = _DIGITS[dtype] - frexp(float(value))[1]
    return ldexp(round(value * Fraction(2) ** places), -places)


def fma_naive(x, y, z, dtype):
    """Return x y + z, rounded once where the machine has FMA, else twice."""
    product = Fraction(float(x)) * Fraction(float(y))
    if not HAS_FMA:
        product = Fraction(_rounded(product, dtype))
    return _rounded(product + Fraction(float(z)), dtype)
