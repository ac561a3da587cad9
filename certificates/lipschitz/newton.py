"""The best multipliers: minimise t (sum q + PENALTY sum lambda) - log det M(q, lambda) by Newton steps while t grows.

q are the shares of the inputs: one number rho^2 for all, or one for each. Every iterate keeps M positive definite, so every
iterate is a candidate certificate; variables / t bounds how far sum q is from the optimum at a centred point. Shares and
multipliers need no barrier of their own: M > 0 implies that they are positive. Not so in implicit layers: their multipliers have a
barrier -log lambda and count as variables do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, lapack

from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.lipschitz.system import System

MAX_STEPS = 600
LEAST_MULTIPLIER = 1e-9  #: for units that reach no output
PENALTY = 1e-12  #: on multipliers: those of units that are constant would grow for ever


@dataclass(frozen=True)
class Multipliers:
    """``shares`` q and multipliers ``values`` of the normalised system, ``gap`` what sum q may exceed the optimum by (numerical),
    ``steps`` Newton steps; ``interrupted`` where Ctrl-C ended them."""

    shares: Array
    values: Array
    gap: float
    steps: int
    interrupted: bool = False

    @property
    def square(self) -> float:
        """rho^2: the sum of the shares."""
        return float(self.shares.sum())

    @property
    def relative_gap(self) -> float | None:
        """The gap of rho, relative; ``None`` where nothing is known of it."""
        return self.gap / (2 * self.square) if math.isfinite(self.gap) else None


def solve(
    system: System,
    tolerance: float = 1e-6,
    report: Callable[[float, float], None] | None = None,
    first: Array | None = None,
    seconds: float = math.inf,
    enough: float = 0.0,
) -> Multipliers:
    """Multipliers whose bound is within ``tolerance`` (relative, in rho^2) of the best that this form can prove.

    ``report(square, gap)`` is called at every centred point. ``first`` are multipliers to begin with, in place of :func:`start`.
    After ``seconds``, at a square of ``enough``, or at an interrupt (Ctrl-C), the search ends with what it has. Raises LinAlgError
    where rounding leaves no feasible start.
    """
    deadline = time.monotonic() + seconds
    point = _feasible(system, start(system) if first is None else first)
    t, steps, interrupted = system.barriers / point.square, 0, False
    try:
        while steps < MAX_STEPS and time.monotonic() < deadline and point.square > enough:
            steps += 1
            point, decrement = _step(system, point, t)
            if decrement == np.inf:
                break
            if decrement < 0.5:
                if report is not None:
                    report(point.square, system.barriers / t)
                if system.barriers / t <= tolerance * point.square:
                    if decrement < 1e-2:
                        break
                else:
                    t *= 4.0
    except KeyboardInterrupt:
        interrupted = True
    return Multipliers(point.shares, point.values, system.barriers / t, steps, interrupted)


def mixtures(system: System, found: Multipliers) -> Iterator[tuple[Array, Array]]:
    """Shares and multipliers to try on the checker: those found, then with ever more of a point deep inside the feasible set."""
    inside = start(system)
    shares, weights = 2 * least_shares(system, inside), [10.0**-digits for digits in range(12, 1, -1)]
    for weight in (0.0, *weights):
        yield (1 - weight) * found.shares + weight * shares, (1 - weight) * found.values + weight * inside
    for weight in weights:  # networks that are almost constant: rounding errors are as large as what would cancel
        yield shares + weight, inside


def start(system: System) -> Array:
    """Multipliers that leave M strictly feasible for some rho: layer by layer from the output, by Schur complements."""
    values = np.zeros(int(system.member.max(initial=-1)) + 1)
    for layer in reversed(system.layers):
        units = system.member[layer.start - system.inputs : layer.stop - system.inputs]
        need = _greatest_need(system, values, layer)
        values[units] = 2 * max(LEAST_MULTIPLIER, need)
    return values


def least_square(system: System, values: Array) -> float:
    """A small rho^2 that these multipliers prove, the smallest where shares are equal. Raises LinAlgError where they prove none."""
    return float(least_shares(system, values).sum())


def least_shares(system: System, values: Array) -> Array:
    """The shares of :func:`least_square`, from a Schur complement C: its greatest eigenvalue, or the row sums of |C|."""
    schur = _schur(system, values, slice(0, system.inputs))
    if not system.separate:
        return np.asarray(np.maximum(np.linalg.eigvalsh(schur)[-1:], 1e-300))
    sums: Array = np.abs(schur).sum(axis=1)
    return np.asarray(np.maximum(sums, 1e-9 * float(sums.max()) + 1e-300))


@dataclass(frozen=True)
class _Point:
    """A feasible point with the Cholesky factor of its matrix (lower, in the order of LAPACK), and the logarithms of its determinant
    and of the multipliers of implicit layers, added up."""

    shares: Array
    values: Array
    factor: Array
    log_det: float

    @property
    def square(self) -> float:
        return float(self.shares.sum())


def _point(system: System, shares: Array, values: Array) -> _Point | None:
    """The point, if it is strictly feasible in floats."""
    own = values[system.implicit]
    if not bool(np.all(own > 0)):
        return None
    factor, info = _factor(system.matrix(shares, values))
    return None if info else _Point(shares, values, factor, 2 * float(np.log(np.diagonal(factor)).sum()) + float(np.log(own).sum()))


def _feasible(system: System, values: Array) -> _Point:
    """With shares that are strictly feasible in floats: near the least, which rounding hides where a network is almost constant."""
    shares = 1.5 * least_shares(system, values)
    while float(shares.max()) < 1e6:
        point = _point(system, shares, values)
        if point is not None:
            return point
        shares = np.maximum(100 * shares, 1e-18)
    raise np.linalg.LinAlgError("no feasible start")


def _greatest_need(system: System, values: Array, block: slice) -> float:
    """The least value that equal multipliers in ``block`` need for M(0, values), from there on, to be positive semidefinite."""
    schur = _schur(system, values, block)
    units = system.member[block.start - system.inputs : block.stop - system.inputs]
    if not system.implicit[units].any():  # added to the diagonal
        return float(np.linalg.eigvalsh(schur)[-1]) if len(schur) else 0.0
    equal = np.zeros_like(values)
    equal[units] = 1.0
    added = system.matrix(0.0, equal)[block, block] - system.matrix(0.0, 0 * equal)[block, block]
    return float(eigh(schur, added, eigvals_only=True)[-1])


def _schur(system: System, values: Array, block: slice) -> Array:
    """What added to ``block`` makes M(0, values), from there on, positive semidefinite and singular."""
    matrix = system.matrix(0.0, values)
    later = matrix[block.stop :, block.stop :]
    coupling = matrix[block.stop :, block]
    schur: Array = -matrix[block, block]
    if len(later):
        factor = np.linalg.cholesky(later)
        half = lapack.dtrtrs(factor, coupling, lower=1)[0]
        schur = schur + half.T @ half
    return schur


def _step(system: System, point: _Point, t: float) -> tuple[_Point, float]:
    """One damped Newton step; returns the new point and the squared decrement at the old one, infinite where none is possible."""
    gradient, hessian = _derivatives(system, point, t)
    if not bool(np.all(np.diagonal(hessian) > 0)):
        return point, np.inf
    scale = 1 / np.sqrt(np.diagonal(hessian))
    scaled = hessian * scale[:, None] * scale
    scaled[np.arange(len(scaled)), np.arange(len(scaled))] += 1e-13
    factor, info = _factor(scaled)
    direction = -scale * lapack.dpotrs(factor, scale * gradient, lower=1)[0]
    decrement = float(-gradient @ direction)
    after = None if info or not decrement >= 0 else _search(system, point, t, direction, decrement)
    return (point, np.inf) if after is None else (after, decrement)


def _search(system: System, point: _Point, t: float, direction: Array, decrement: float) -> _Point | None:
    """A step that decreases the barrier function: long ones first; ``None`` where rounding leaves none.

    Over the reals the length 1 / (1 + sqrt(decrement)) always stays feasible and decreases it.
    """
    safe = 1 / (1 + np.sqrt(decrement))
    k = system.shares
    cost = float(direction[:k].sum() + PENALTY * direction[k:].sum())
    length = 1.0
    while length > 1e-6 * safe:
        after = _point(system, point.shares + length * direction[:k], point.values + length * direction[k:])
        if after is not None and (length <= safe or t * length * cost - after.log_det + point.log_det <= -0.1 * length * decrement):
            return after
        length *= 0.5
    return None


def _factor(matrix: Array) -> tuple[Array, int]:
    """Cholesky factor of a symmetric matrix that is given up. Its transpose has the order that LAPACK wants: nothing is copied."""
    factor, info = lapack.dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
    return factor, info


def _derivatives(system: System, point: _Point, t: float) -> tuple[Array, Array]:
    """Gradient and Hessian of t cost - log det M, and of the barrier of implicit layers, in (q, lambda)."""
    n, k, count = system.inputs, system.shares, len(point.values)
    inverse = lapack.dpotri(point.factor, lower=1)[0].T
    inverse = inverse + inverse.T
    inverse[np.arange(system.size), np.arange(system.size)] /= 2
    slopes, mixed, curvature = _products(system, inverse)
    input_block = inverse[:n, :n]
    gradient, hessian = np.empty(k + count), np.empty((k + count, k + count))
    if system.separate:
        gradient[:k] = t - np.diagonal(input_block)
        hessian[:k, :k] = input_block**2
    else:
        gradient[0] = t - np.trace(input_block)
        hessian[0, 0] = np.sum(input_block**2)
        mixed = mixed.sum(axis=1, keepdims=True)
    gradient[k:] = t * PENALTY - np.bincount(system.member, slopes, minlength=count)
    if count == len(system.member):
        hessian[k:, :k] = mixed
        hessian[k:, k:] = curvature
    else:
        gather = (system.member[None, :] == np.arange(count)[:, None]).astype(np.float64)
        hessian[k:, :k] = gather @ mixed
        hessian[k:, k:] = gather @ curvature @ gather.T
    hessian[:k, k:] = hessian[k:, :k].T
    own = k + np.flatnonzero(system.implicit)
    gradient[own] -= 1 / point.values[own - k]
    hessian[own, own] += 1 / point.values[own - k] ** 2
    return gradient, hessian


def _products(system: System, inverse: Array) -> tuple[Array, Array, Array]:
    """With p_j = e_j - low_j w_j and q_j = e_j - high_j w_j: p_j^T P q_j, (P p_j)_0 * (P q_j)_0 by inputs, and half of
    (p_i^T P p_j)(q_i^T P q_j) + (p_i^T P q_j)(q_i^T P p_j).
    """
    n, low, high = system.inputs, system.low[:, None], system.high[:, None]
    rows, among = _row_products(system, inverse)  # W P and W P W^T
    units, inner = inverse[n:, n:], inverse[n:, :n]
    left = units - high * rows[:, n:]  # q_i^T P e_j
    qq = left + left.T
    qq -= units
    qq += np.multiply(among, high * high.T)
    if low.any():
        right = units - low * rows[:, n:]  # p_i^T P e_j
        pp = right + right.T
        pp -= units
        pp += np.multiply(among, low * low.T)
        left -= low.T * (rows[:, n:].T - high * among)  # q_i^T P p_j
    else:
        pp = units
    slopes = np.diagonal(left).copy()
    qq *= pp
    qq += left * left.T
    qq *= 0.5
    mixed = (inner - low * rows[:, :n]) * (inner - high * rows[:, :n])
    return slopes, mixed, qq


def _row_products(system: System, inverse: Array) -> tuple[Array, Array]:
    """W P and W P W^T for the rows w_j: each layer reads few of the variables, and only those columns are multiplied."""
    rows, among = np.empty_like(system.rows), np.empty((len(system.rows), len(system.rows)))
    for units, columns, block in system.blocks:
        rows[units] = block @ inverse[columns]
    for units, columns, block in system.blocks:
        among[:, units] = rows[:, columns] @ block.T
    return rows, among
