"""The best multipliers: minimise t (rho^2 + PENALTY sum lambda) - log det M(rho^2, lambda) by Newton steps while t grows.

Every iterate keeps M positive definite, so every iterate is a candidate certificate; variables / t bounds how far rho^2 is
from the optimum at a centred point. Multipliers need no barrier of their own: M > 0 implies that they are positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.lipschitz.system import System

MAX_STEPS = 600
LEAST_MULTIPLIER = 1e-9  #: for units that reach no output
PENALTY = 1e-12  #: on multipliers: those of units that are constant would grow for ever


@dataclass(frozen=True)
class Multipliers:
    """``square`` is rho^2 of the normalised system, ``gap`` what it may exceed the optimum by (numerical), ``steps`` Newton steps."""

    square: float
    values: Array
    gap: float
    steps: int


def solve(system: System, tolerance: float = 1e-6, report: Callable[[float, float], None] | None = None) -> Multipliers:
    """Multipliers whose bound is within ``tolerance`` (relative, in rho^2) of the best that this form can prove.

    ``report(square, gap)`` is called at every centred point. An interrupt (Ctrl-C) ends the search with what it has. Raises
    LinAlgError where rounding leaves no feasible start.
    """
    values = start(system)
    square = _feasible(system, values)
    t, steps = system.size / square, 0
    try:
        while steps < MAX_STEPS:
            steps += 1
            square, values, decrement = _step(system, square, values, t)
            if decrement == np.inf:
                break
            if decrement < 0.5:
                if report is not None:
                    report(square, system.size / t)
                if system.size / t <= tolerance * square:
                    if decrement < 1e-2:
                        break
                else:
                    t *= 4.0
    except KeyboardInterrupt:
        pass
    return Multipliers(square, values, system.size / t, steps)


def start(system: System) -> Array:
    """Multipliers that leave M strictly feasible for some rho: layer by layer from the output, by Schur complements."""
    values = np.zeros(int(system.member.max(initial=-1)) + 1)
    for layer in reversed(system.layers):
        need = _greatest_need(system, values, layer)
        units = system.member[layer.start - system.inputs : layer.stop - system.inputs]
        values[units] = 2 * max(LEAST_MULTIPLIER, need)
    return values


def least_square(system: System, values: Array) -> float:
    """The smallest rho^2 that these multipliers prove, by a Schur complement. Raises LinAlgError where they prove none."""
    return max(_greatest_need(system, values, slice(0, system.inputs)), 1e-300)


def _feasible(system: System, values: Array) -> float:
    """A rho^2 that is strictly feasible in floats: near the least, which rounding hides where a network is almost constant."""
    square = 1.5 * least_square(system, values)
    while square < 1e6:
        if _log_det(system, square, values) > -np.inf:
            return square
        square = max(100 * square, 1e-18)
    raise np.linalg.LinAlgError("no feasible start")


def _greatest_need(system: System, values: Array, block: slice) -> float:
    """The least value that added to the diagonal of ``block`` keeps M(0, values), from there on, positive semidefinite."""
    matrix = system.matrix(0.0, values)
    later = matrix[block.stop :, block.stop :]
    coupling = matrix[block.stop :, block]
    schur = -matrix[block, block]
    if len(later):
        factor = np.linalg.cholesky(later)
        half = lapack.dtrtrs(factor, coupling, lower=1)[0]
        schur = schur + half.T @ half
    return float(np.linalg.eigvalsh(schur)[-1]) if len(schur) else 0.0


def _step(system: System, square: float, values: Array, t: float) -> tuple[float, Array, float]:
    """One damped Newton step; returns the new point and the squared decrement at the old one, infinite where none is possible."""
    gradient, hessian = _derivatives(system, square, values, t)
    if not bool(np.all(np.diagonal(hessian) > 0)):
        return square, values, np.inf
    scale = 1 / np.sqrt(np.diagonal(hessian))
    scaled = hessian * scale[:, None] * scale
    scaled[np.arange(len(scaled)), np.arange(len(scaled))] += 1e-13
    factor, info = lapack.dpotrf(scaled, lower=1, clean=0)
    direction = -scale * lapack.dpotrs(factor, scale * gradient, lower=1)[0]
    decrement = float(-gradient @ direction)
    length = 0.0 if info or not decrement >= 0 else _length(system, square, values, t, direction, decrement)
    if length == 0:
        return square, values, np.inf
    return square + length * direction[0], values + length * direction[1:], decrement


def _length(system: System, square: float, values: Array, t: float, direction: Array, decrement: float) -> float:
    """A step length that decreases the barrier function: long ones first; 0 where rounding leaves none.

    Over the reals 1 / (1 + sqrt(decrement)) always stays feasible and decreases it.
    """
    safe = 1 / (1 + np.sqrt(decrement))
    here = _log_det(system, square, values)
    length = 1.0
    while length > 1e-6 * safe:
        there = _log_det(system, square + length * direction[0], values + length * direction[1:])
        if there > -np.inf and (length <= safe or t * length * _cost(direction) - there + here <= -0.1 * length * decrement):
            return length
        length *= 0.5
    return 0.0


def _cost(point: Array) -> float:
    return float(point[0] + PENALTY * point[1:].sum())


def _log_det(system: System, square: float, values: Array) -> float:
    factor, info = lapack.dpotrf(system.matrix(square, values), lower=1, clean=0)
    return -np.inf if info else 2 * float(np.log(np.diagonal(factor)).sum())


def _derivatives(system: System, square: float, values: Array, t: float) -> tuple[Array, Array]:
    """Gradient and Hessian of t cost - log det M in (rho^2, lambda)."""
    n = system.inputs
    factor, info = lapack.dpotrf(system.matrix(square, values), lower=1)
    if info:
        raise np.linalg.LinAlgError("the iterate is not feasible")
    inverse = lapack.dpotri(factor, lower=1)[0]
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    low, high = system.low, system.high
    rows = system.rows @ inverse  # w_j^T P
    cross = rows[:, n:]
    among = rows @ system.rows.T
    p = inverse[n:] - low[:, None] * rows  # (e_j - low_j w_j)^T P
    q = inverse[n:] - high[:, None] * rows
    units = inverse[n:, n:]
    pp = units - low * cross.T - low[:, None] * cross + low[:, None] * among * low
    qq = units - high * cross.T - high[:, None] * cross + high[:, None] * among * high
    pq = units - high * cross.T - low[:, None] * cross + low[:, None] * among * high
    input_block = inverse[:n, :n]
    slopes = -np.diagonal(pq)
    curvature = 0.5 * (pp * qq + pq * pq.T)
    mixed = np.einsum("ji,ji->j", p[:, :n], q[:, :n])
    count = len(values)
    gradient, hessian = np.zeros(count + 1), np.zeros((count + 1, count + 1))
    gradient[0] = t - np.trace(input_block)
    hessian[0, 0] = np.sum(input_block**2)
    gradient[1:] = np.bincount(system.member, slopes, minlength=count) + t * PENALTY
    hessian[0, 1:] = hessian[1:, 0] = np.bincount(system.member, mixed, minlength=count)
    if count == len(system.member):
        hessian[1:, 1:] = curvature
    else:
        gather = (system.member[None, :] == np.arange(count)[:, None]).astype(np.float64)
        hessian[1:, 1:] = gather @ curvature @ gather.T
    return gradient, hessian
