"""Exact numbers: what a number written by a user means as a rational."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from lipctrl.core.errors import InputError

#: What a user may write where an exact number is wanted.
Number = int | float | Fraction | Decimal | str | np.integer | np.floating


def rational(value: object, what: str = "number") -> Fraction:
    """The exact value of a number: ``Fraction(3, 20)``, ``"0.15"`` and ``"3/20"`` are the decimal, a float its exact binary value.

    Zero-dimensional arrays and tensors count as numbers. Raises InputError for anything else, for NaN and for infinity;
    ``what`` names the thing in the message.
    """
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool | np.bool_):
        raise InputError(f"{what} is {value!r}, expected a number")
    if isinstance(value, str):
        try:
            return Fraction(value)
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(f"{what} is {value!r}, expected a number such as '0.15' or '3/20'") from error
    if not isinstance(value, numbers.Number | np.generic) and getattr(value, "ndim", None) == 0:
        item = getattr(value, "item", None)
        value = value if item is None else item()
    if isinstance(value, numbers.Integral):
        return Fraction(int(value))
    if isinstance(value, numbers.Rational):
        return Fraction(int(value.numerator), int(value.denominator))
    if isinstance(value, np.floating):
        value = float(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise InputError(f"{what} is {value}, expected a finite number")
        return Fraction(value)
    raise InputError(f"{what} is {value!r} of type {type(value).__name__}, expected a number")


def rationals(values: object, length: int | None = None, what: str = "list of numbers") -> tuple[Fraction, ...]:
    """The exact values of a sequence of numbers (list, tuple, 1-D array or tensor); a single number is repeated ``length`` times.

    Raises InputError where a member is no number or the length differs from ``length``.
    """
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        return (rational(values, what),) * (1 if length is None else length)
    result = tuple(rational(value, f"{what}[{index}]") for index, value in enumerate(values))
    if length is not None and len(result) != length:
        raise InputError(f"{what} has {len(result)} numbers, expected {length}")
    return result


def floats(values: Sequence[Fraction]) -> np.ndarray:
    """Exact numbers as a float64 array, each rounded once, to nearest."""
    return np.array([float(value) for value in values], dtype=np.float64)
