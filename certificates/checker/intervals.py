"""Vectorised float64 intervals with proved outward rounding.

Every function returns an enclosure of the exact image. +, -, *, / and sqrt are correctly rounded by IEEE 754, so one step
outwards is enough; matrix products carry an a-priori error bound that holds for any summation order; sin, cos, tanh and
log(1 + exp(-x)) come from Taylor tables whose error is proved below, never from a mathematical library. A NaN or an
infinity may appear; callers accept nothing that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from flint import arb, ctx

Array = np.ndarray
UNIT = 2.0**-53  #: unit roundoff of binary64
TINY = 2.0**-1000  #: what is added to radii that may be 0, instead of subnormal numbers


class UnsafeArithmetic(ArithmeticError):
    """This process does not compute IEEE 754 binary64 with round-to-nearest and gradual underflow."""


def require_ieee() -> None:
    """Probe rounding mode and subnormals on run-time values. Raises UnsafeArithmetic."""
    one, half, tiny = np.ones(32), np.full(32, 2.0**-53), np.full(32, 5e-324)
    sound = [tiny * one != 0, one + half == 1, one + (half + 2.0**-105) > 1]  # the last two: not upwards, and not towards zero
    if not all(bool(test.all()) for test in sound):
        raise UnsafeArithmetic("this process flushes subnormals or does not round to nearest; proofs need IEEE 754 arithmetic")


def gamma(n: int) -> float:
    """An upper bound of n*u/(1 - n*u)."""
    return n * UNIT * 1.0001


def down(x: Any) -> Any:
    """The next float below."""
    return np.nextafter(x, -np.inf)


def up(x: Any) -> Any:
    """The next float above."""
    return np.nextafter(x, np.inf)


@dataclass(frozen=True, slots=True)
class Interval:
    """Arrays of intervals ``[low, high]`` of equal shape; operands broadcast as NumPy arrays do."""

    low: Array
    high: Array

    def __add__(self, other: Interval) -> Interval:
        return Interval(down(self.low + other.low), up(self.high + other.high))

    def __sub__(self, other: Interval) -> Interval:
        return Interval(down(self.low - other.high), up(self.high - other.low))

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __mul__(self, other: Interval) -> Interval:
        a, b = self.low * other.low, self.low * other.high
        c, d = self.high * other.low, self.high * other.high
        return Interval(down(np.minimum(np.minimum(a, b), np.minimum(c, d))), up(np.maximum(np.maximum(a, b), np.maximum(c, d))))

    def __truediv__(self, other: Interval) -> Interval:
        safe = (other.low > 0) | (other.high < 0)
        low, high = np.where(safe, other.low, np.nan), np.where(safe, other.high, np.nan)
        return self * Interval(down(1.0 / high), up(1.0 / low))

    @property
    def magnitude(self) -> Array:
        """The largest absolute value."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    def centre_radius(self) -> tuple[Array, Array]:
        """Floats c, r with ``[low, high]`` inside ``c +- r``."""
        centre = 0.5 * self.low + 0.5 * self.high
        return centre, up(np.maximum(self.high - centre, centre - self.low))

    def intersect(self, other: Interval) -> Interval:
        """Both hold, so their intersection does."""
        return Interval(np.maximum(self.low, other.low), np.minimum(self.high, other.high))

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def take(self, indices: Any) -> Interval:
        """Index the last axis."""
        return Interval(self.low[..., indices], self.high[..., indices])


def point(x: Array) -> Interval:
    """Floats as intervals of width zero."""
    return Interval(x, x)


def around(centre: Array, radius: Array) -> Interval:
    """Enclose ``centre +- radius``."""
    return Interval(down(centre - radius), up(centre + radius))


def from_fractions(values: tuple[Fraction, ...]) -> Interval:
    """The tightest float64 enclosure of each rational, as a vector."""
    nearest = [float(v) for v in values]  # correctly rounded
    low = [f if Fraction(f) <= v else float(np.nextafter(f, -np.inf)) for f, v in zip(nearest, values, strict=True)]
    high = [f if Fraction(f) >= v else float(np.nextafter(f, np.inf)) for f, v in zip(nearest, values, strict=True)]
    return Interval(np.array(low), np.array(high))


def from_balls(values: list[arb]) -> Interval:
    """Enclose each ball; a ball that is not finite gives NaN."""
    ends = [_ball_ends(v) for v in values]
    return Interval(np.array([e[0] for e in ends]), np.array([e[1] for e in ends]))


def _ball_ends(value: arb) -> tuple[float, float]:
    if not value.is_finite():
        return np.nan, np.nan
    # float() of a ball's end rounds within one ulp; two steps outwards cover it.
    low, high = float(value.lower()), float(value.upper())
    return float(down(down(np.float64(low)))), float(up(up(np.float64(high))))


def affine(x: Interval, weight: Array, bias: Array | None) -> Interval:
    """Enclose ``x W^T + b`` over the last axis.

    With x in c +- r: fl(cW + b) errs by at most gamma(n+1)(|c||W| + |b|), and the radius below, computed with relative error
    gamma(n+4), exceeds |W|r plus that (any summation order, fused or not; underflow adds (n+2) 2^-1070). Where a partial sum
    overflows nothing is known, although the sum itself may be finite: NaN.
    """
    weight = weight.astype(np.float64)
    n = weight.shape[1]
    centre, radius = x.centre_radius()
    g = gamma(2 * n + 16)
    absolute = np.abs(weight).T
    radius = radius + TINY  # products of subnormal numbers are slow
    value, spread = _rows_times(centre, weight.T), _rows_times(radius + g * (np.abs(centre) + radius), absolute)
    if bias is not None:
        bias = bias.astype(np.float64)
        value, spread = value + bias, spread + g * np.abs(bias)
    value = np.where(np.isfinite(value), value, np.nan)
    return around(value, (spread + (n + 2) * 2.0**-1070) * (1 + 16 * UNIT))


def _rows_times(x: Array, matrix: Array) -> Array:
    """``x @ matrix`` as one product of two matrices: many thin ones are far slower."""
    product: Array = (x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[1])
    return product


def integer_power(x: Interval, exponent: int) -> Interval:
    """Enclose ``x**exponent`` by repeated products; even powers are not negative. NaN to the power 0 is NaN: nothing had a value."""
    result = point(np.where(np.isnan(x.low) | np.isnan(x.high), np.nan, 1.0))
    for _ in range(exponent):
        result = result * x
    return result if exponent % 2 else Interval(np.maximum(result.low, 0.0), result.high)


def sqrt(x: Interval) -> Interval:
    """Enclose the square root; a negative end gives NaN."""
    with np.errstate(invalid="ignore"):
        return Interval(np.maximum(down(np.sqrt(x.low)), 0.0), up(np.sqrt(x.high)))


def by_balls(function: Callable[[arb], arb], x: Interval) -> Interval:
    """An increasing function, one ball at each end: slow and safe."""
    low = from_balls([function(arb(float(v))) if np.isfinite(v) else arb("nan") for v in x.low.ravel()])
    high = from_balls([function(arb(float(v))) if np.isfinite(v) else arb("nan") for v in x.high.ravel()])
    return Interval(low.low.reshape(x.low.shape), high.high.reshape(x.high.shape))


# --- proved elementary functions ---------------------------------------------------------------------------------------
#
# Table: t_k = k/64 for 0 <= t_k <= X, c_kj = float(a_kj), a_kj the j-th Taylor coefficient at t_k, j <= 8. For 0 <= x <= X:
# k = rint(64 x), s = x - k/64 (exact, |s| <= 2^-7), p = Horner(c_k; s). With u = 2^-53 and A = sum |c_kj| |s|^j <= 1.02:
# last addition <= 1.01 u A, earlier ones <= 2.3 |s| u, table <= 1.01 u A, truncation <= 2.4 |s|^9 / (1 - |s|) (Cauchy on radius 1,
# |tanh| <= tan 1, |sin|, |cos| <= cosh 1, |log(1+exp(-z))| <= 2.4): together below 2.1 u + .1 u < 4u = 2^-51.
# Odd functions, relative: A <= 3.1 |x| (k >= 1: t_k <= 2|x|, |s| <= |x|; k = 0: c_00 = 0), so below 9u|x| < 2^-49 |x|.

_ERROR = 2.0**-51
_REACH = {"sin": 32, "cos": 32, "tanh": 20, "softplus_tail": 40}


@cache
def _table(name: str) -> Array:
    """Taylor coefficients (64 X + 1, 9), rounded to nearest from 160-bit balls."""
    saved, ctx.prec = ctx.prec, 160
    try:
        rows = [[float(a.mid()) for a in _COEFFICIENTS[name](arb(k) / 64)] for k in range(64 * _REACH[name] + 1)]
    finally:
        ctx.prec = saved
    return np.array(rows)


def _circular(start: int) -> Callable[[arb], list[arb]]:
    def coefficients(t: arb) -> list[arb]:
        sine, cosine = t.sin(), t.cos()
        cycle, factorial, out = (sine, cosine, -sine, -cosine), arb(1), []
        for j in range(9):
            factorial = factorial * j if j else factorial
            out.append(cycle[(start + j) % 4] / factorial)
        return out

    return coefficients


def _tanh_coefficients(t: arb) -> list[arb]:
    y = [t.tanh()]  # y' = 1 - y^2
    for j in range(8):
        square = sum((y[i] * y[j - i] for i in range(j + 1)), arb(0))
        y.append(((1 if j == 0 else 0) - square) / (j + 1))
    return y


def _softplus_tail_coefficients(t: arb) -> list[arb]:
    s = [1 / (1 + t.exp())]  # s = -l', s' = s^2 - s
    for j in range(8):
        square = sum((s[i] * s[j - i] for i in range(j + 1)), arb(0))
        s.append((square - s[j]) / (j + 1))
    return [(1 + (-t).exp()).log()] + [-s[j] / (j + 1) for j in range(8)]


_COEFFICIENTS: dict[str, Callable[[arb], list[arb]]] = {
    "sin": _circular(0),
    "cos": _circular(1),
    "tanh": _tanh_coefficients,
    "softplus_tail": _softplus_tail_coefficients,
}


def _kernel(name: str, x: Array) -> tuple[Array, Array]:
    """Value and error bound at floats |x| <= X; NaN beyond (NaN is replaced before it could index)."""
    size = np.abs(x)
    inside = size <= _REACH[name]
    size = np.where(inside, size, 0.0)
    k = np.rint(64.0 * size).astype(np.int64)
    s, c = size - k / 64.0, _table(name)[k]
    value = c[..., 8]
    for j in range(7, -1, -1):
        value = value * s + c[..., j]
    if name in ("sin", "tanh"):
        value, error = np.where(x < 0, -value, value), np.minimum(_ERROR, 2.0**-49 * size + 2.0**-1020)
    else:
        error = np.full_like(size, _ERROR)
    return np.where(inside, value, np.nan), error


def _circle(name: str, x: Interval, top: float, bottom: float) -> Interval:
    """sin or cos: the ends, widened to +-1 where a maximum (2 pi (m + top)) or a minimum may lie inside."""
    (a, ea), (b, eb) = _kernel(name, x.low), _kernel(name, x.high)
    low, high = down(np.minimum(a - ea, b - eb)), up(np.maximum(a + ea, b + eb))
    slack = 2.0**-40  # exceeds the rounding of x / 2 pi for |x| <= 32
    turns_low, turns_high = x.low / (2 * np.pi), x.high / (2 * np.pi)

    def may_hold(phase: float) -> Array:
        return np.floor(turns_high - phase + slack) >= np.ceil(turns_low - phase - slack)

    beyond = ~((x.magnitude <= _REACH[name]) & (x.low <= x.high))
    low = np.where(beyond | may_hold(bottom), -1.0, np.maximum(low, -1.0))
    high = np.where(beyond | may_hold(top), 1.0, np.minimum(high, 1.0))
    broken = np.isnan(x.low) | np.isnan(x.high)
    return Interval(np.where(broken, np.nan, low), np.where(broken, np.nan, high))


def sin(x: Interval) -> Interval:
    """Enclose sin."""
    return _circle("sin", x, 0.25, 0.75)


def cos(x: Interval) -> Interval:
    """Enclose cos."""
    return _circle("cos", x, 0.0, 0.5)


def tanh(x: Interval) -> Interval:
    """Enclose tanh; beyond |x| = 20 it lies between 1 - 2^-53 and 1 in absolute value."""
    return Interval(_tanh_end(x.low, -1), _tanh_end(x.high, 1))


def _tanh_end(x: Array, direction: int) -> Array:
    value, error = _kernel("tanh", x)
    bound = np.clip(np.nextafter(value + direction * error, direction * np.inf), -1.0, 1.0)
    outer = np.where(np.sign(x) == direction, direction, -direction * (1 - 2.0**-53))
    return np.asarray(np.where(np.abs(x) > 20, outer, bound))


def sigmoid(x: Interval) -> Interval:
    """Enclose 1 / (1 + exp(-x)) = (1 + tanh(x/2)) / 2."""
    half = tanh(Interval(down(0.5 * x.low), up(0.5 * x.high)))
    return Interval(np.maximum(down(0.5 + 0.5 * half.low), 0.0), np.minimum(up(0.5 + 0.5 * half.high), 1.0))


def softplus(x: Interval) -> Interval:
    """Enclose log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    return Interval(_softplus_end(x.low, -1), _softplus_end(x.high, 1))


def _softplus_end(x: Array, direction: int) -> Array:
    value, error = _kernel("softplus_tail", np.abs(x))
    tail = np.where(np.abs(x) > 40, 0.0 if direction < 0 else 2.0**-57, value + direction * error)
    return np.asarray(np.maximum(np.nextafter(np.maximum(x, 0.0) + np.maximum(tail, 0.0), direction * np.inf), 0.0))
