"""Gains of interval matrices: how much any matrix between two others can stretch a vector, rounded up.

A :class:`Family` is a set of matrices whose deviations from its centre move together. In bases of singular vectors of the centre
those deviations count first that lie along the greatest singular value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.definite import OutOfRange, exact, is_semidefinite
from lipctrl.certificates.checker.intervals import Array, Interval

TINY = 2.0**-500  #: exceeds what underflow can take from a norm below
SMALL = 2.0**-150  #: entries below that are enlarged, or taken as errors, where numbers of a limited range are needed
ROUNDS = 12  #: of power iteration


@dataclass(frozen=True)
class Family:
    """Matrices ``centre`` + sum_k d_k parts_k + sum_jk d_j d_k curves_jk / 2 +- ``error``, for all d in question.

    Shapes (B, m, n), (K, B, m, n), (K, K, B, m, n) and (B, m, n); ``parts`` and ``curves`` may be ``None`` for 0.

    ``spread`` takes |parts| (K, B, e) to the most (B, e) that their sums with d can be.
    """

    centre: Interval
    parts: Interval | None
    error: Array
    spread: Callable[[Array], Array]
    curves: Interval | None = None

    def most(self, change: Callable[[Interval], Interval] = lambda x: x) -> Array:
        """The most that the sums over d may be, after a linear change of all matrices."""
        total = np.zeros_like(change(self.centre).low)
        if self.parts is not None:
            total = self._most(change(self.parts).magnitude)
        if self.curves is not None:
            across = np.stack([self._most(row) for row in change(self.curves).magnitude])
            total = iv.up(total + 0.5 * self._most(across))
        return total

    def _most(self, size: Array) -> Array:
        return self.spread(size.reshape(*size.shape[:2], -1)).reshape(size.shape[1:])


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


def family_gains(family: Family) -> Array:
    """For each: the Euclidean gain, near the greatest for small d; NaN or infinite where nothing is known.

    With float bases U, V that are orthogonal up to 1 - eta_U and 1 - eta_V, |A| <= |U^T A V| / sqrt((1 - eta_U)(1 - eta_V)), whatever
    they are.
    """
    middle = 0.5 * family.centre.low + 0.5 * family.centre.high
    middle = np.where(np.isfinite(middle).all((-2, -1), keepdims=True), middle, 0.0)
    try:
        left, _, right = np.linalg.svd(middle)
    except np.linalg.LinAlgError:
        return np.full(len(middle), np.inf)
    right = right.swapaxes(-2, -1)
    size = iv.up(_turned(left, family.centre, right).magnitude + family.most(lambda x: _turned(left, x, right)))
    gains: Array = iv.up(iv.up(nonnegative_gains(size) * iv.up(_defect(left) * _defect(right))) + nonnegative_gains(family.error))
    return gains


def nonnegative_gains(size: Array) -> Array:
    """For each matrix (B, m, n) without negative entries: its Euclidean gain, nearly the least bound. Others with at most these
    absolute values have no greater one.

    The greatest eigenvalue of G = S^T S is at most max_i (G w)_i / w_i for any w > 0 (Collatz, Wielandt).
    """
    size = size if size.shape[-2] >= size.shape[-1] else size.swapaxes(-2, -1)
    w = np.ones((*size.shape[:-2], size.shape[-1], 1))
    for _ in range(ROUNDS):
        image = size.swapaxes(-2, -1) @ (size @ w)
        top = image.max((-2, -1), keepdims=True)
        w = np.maximum(image / np.where(top > 0, top, 1.0), 1e-9)
    image = size.swapaxes(-2, -1) @ (size @ w)
    gains: Array = np.sqrt((image / w).max((-2, -1))) * _slack(size) + _tiny(size)
    return gains


def _turned(left: Array, x: Interval, right: Array) -> Interval:
    """U^T A V."""
    return _product(left.swapaxes(-2, -1), _transposed(_product(right.swapaxes(-2, -1), _transposed(x))))


def _transposed(x: Interval) -> Interval:
    return Interval(x.low.swapaxes(-2, -1), x.high.swapaxes(-2, -1))


def _product(left: Array, x: Interval) -> Interval:
    """Floats times an interval matrix; the radius pays for roundings as in :func:`intervals.affine`."""
    n = left.shape[-1]
    centre, radius = x.centre_radius()
    spread = np.abs(left) @ (radius + iv.gamma(2 * n + 16) * (np.abs(centre) + radius))
    return iv.around(left @ centre, (spread + (n + 2) * 2.0**-1070) * (1 + 16 * iv.UNIT))


def _defect(basis: Array) -> Array:
    """At least 1 / sqrt(1 - eta), eta the greatest absolute row sum of Q^T Q - 1; not a number where that is 1 or more."""
    apart = _product(basis.swapaxes(-2, -1), iv.point(basis)) - iv.point(np.eye(basis.shape[-1]))
    eta = apart.magnitude.sum(-1).max(-1) * _slack(basis)
    return np.asarray(iv.up(1 / iv.down(np.sqrt(iv.down(1 - eta)))))


def family_row_sums(family: Family, slopes: Interval) -> Array:
    """The greatest sum of absolute values in each row (B, m): entries whose sign is known, by ``slopes``, move as one."""
    sign = np.where(slopes.low > 0, 1.0, np.where(slopes.high < 0, -1.0, 0.0))
    unknown = np.where(sign == 0, slopes.magnitude, family.error).sum(-1) * _slack(sign) + TINY
    size = iv.up(_signed_sum(sign, family.centre).magnitude + family.most(lambda x: _signed_sum(sign, x)))
    return np.asarray(iv.up(size + unknown))


def gain_of(matrix: Interval) -> float:
    """The Euclidean gain of one interval matrix (m, n), by a product of its shorter sides."""
    centre, radius = matrix.centre_radius()
    centre = centre if len(centre) <= centre.shape[1] else centre.T
    square = _product(centre, iv.point(centre.T))
    gain = family_gains(Family(Interval(square.low[None], square.high[None]), None, np.zeros((1, *square.low.shape)), lambda size: size))
    # what underflow may take from a product of tiny numbers is less than TINY in a norm
    return float(iv.up(iv.up(np.sqrt(gain[0])) + nonnegative_gains(radius[None])[0]) + TINY)


def _signed_sum(sign: Array, x: Interval) -> Interval:
    """Row sums of entries times signs, (..., m)."""
    centre, radius = x.centre_radius()
    count, size = sign.shape[-1], np.abs(sign)
    spread = (size * (radius + iv.gamma(count + 8) * (np.abs(centre) + radius))).sum(-1) * _slack(sign)
    return iv.around((sign * centre).sum(-1), spread)


def gain_is_at_most(matrix: Interval, bound: float) -> bool:
    """Whether the Euclidean gain of one interval matrix (n_out, n_in) is *proved* to be at most the bound.

    By the gains of its middle and of its radius together, or by that of its absolute values.
    """
    if not bool(np.isfinite(matrix.magnitude).all()):
        return False
    middle, radius = matrix.centre_radius()
    small, size = np.abs(middle) < SMALL, matrix.magnitude
    middle, radius, size = np.where(small, 0.0, middle), np.where(small, size, radius), np.where(size > 0, np.maximum(size, SMALL), 0.0)
    spread = float(quick_gains(iv.point(radius[None]))[0])
    try:
        return _norm_is_at_most(middle, float(iv.down(bound - spread))) or _norm_is_at_most(size, bound)
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
