"""Gains of interval matrices: how much any matrix between two others can stretch a vector, rounded up."""

from __future__ import annotations

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.definite import OutOfRange, exact, is_semidefinite
from lipctrl.certificates.checker.intervals import Array, Interval

TINY = 2.0**-500  #: exceeds what underflow can take from a norm below


def scaled(slope: Interval, scale_in: Interval, scale_out: Interval) -> Interval:
    """Matrices (B, n_out, n_in) of S_out A S_in^-1, from slopes (n_in, B, n_out) and positive scales (n_in,), (n_out,)."""
    across = Interval(slope.low.transpose(1, 2, 0), slope.high.transpose(1, 2, 0))
    columns = Interval(scale_out.low[:, None], scale_out.high[:, None])
    return across * columns / scale_in


def row_gains(matrices: Interval) -> Array:
    """For each: the greatest sum of absolute values in a row, which is the gain from maximum norm to maximum norm."""
    size = matrices.magnitude
    gains: Array = size.sum(-1).max(-1) * _slack(size) + _tiny(size)
    return gains


def quick_gains(matrices: Interval) -> Array:
    """For each: a Euclidean gain, by norms that need no eigenvalue; exact for one row or one column, up to rounding."""
    size = matrices.magnitude
    product = np.sqrt(size.sum(-1).max(-1)) * np.sqrt(size.sum(-2).max(-1))
    # squares below float64's range lose less than 2^-500 of a norm
    frobenius = np.sqrt((size**2).sum((-2, -1)))
    gains: Array = np.minimum(product, frobenius) * _slack(size) ** 2 + _tiny(size)
    return gains


def gain_is_at_most(matrix: Interval, bound: float) -> bool:
    """Whether the Euclidean gain of one interval matrix (n_out, n_in) is *proved* to be at most the bound.

    By the gains of its middle and of its radius together, or by that of its absolute values.
    """
    if not bool(np.isfinite(matrix.magnitude).all()):
        return False
    middle, radius = matrix.centre_radius()
    spread = float(quick_gains(iv.point(radius[None]))[0])
    try:
        return _norm_is_at_most(middle, float(iv.down(bound - spread))) or _norm_is_at_most(matrix.magnitude, bound)
    except OutOfRange:
        return False


def _norm_is_at_most(matrix: Array, bound: float) -> bool:
    if not bound > 0:
        return False
    side, tall = exact(np.array(bound)), exact(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    return is_semidefinite(side * side * exact(np.eye(tall.value.shape[1])) - tall.T @ tall)


def _tiny(size: Array) -> Array:
    """What underflow may have taken: nothing from zeros."""
    return np.where((size == 0).all((-2, -1)), 0.0, TINY)


def _slack(size: Array) -> float:
    return 1 + 4 * float(size.shape[-1] * size.shape[-2] + 8) * iv.UNIT
