"""Where a quadratic Lyapunov function comes from: sampled steps of the loop, and an ellipsoid that fits them best.

Everything here is numerical and untrusted: a candidate is only what branch and bound tries to prove.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, solve_discrete_lyapunov
from scipy.optimize import minimize
from scipy.stats import qmc

from lipctrl.certificates.stability.simulation import StepFunction

Array = np.ndarray


IMPROVED = 3  #: starts that are improved by local search


@dataclass(frozen=True)
class Samples:
    """Deviations ``state`` (N, n) in the box and where one step takes them; ``scale`` 1 for the box itself, less for copies of it."""

    state: Array
    after: Array
    leaves_box: Array
    volume: float
    whole: int


@dataclass(frozen=True)
class Candidate:
    """V(y) = y^T P y, the level up to which the samples decrease, and the volume of that sublevel set by counting samples."""

    P: Array
    rho: float
    volume: float


def sample_steps(step: StepFunction, low: Array, high: Array, seed: int, count: int = 1 << 14) -> Samples:
    """Quasi-random states of the box, and shrunken copies of them that show the loop near the equilibrium."""
    n = len(low)
    points = qmc.scale(qmc.Sobol(n, seed=seed).random(count), low, high)
    copies = [points] + [points[: count // 8] * 4.0**-k for k in range(1, 8)]
    state = np.concatenate(copies)
    after = step(state)
    leaves = np.logical_not(((after >= low) & (after <= high)).all(1))
    return Samples(state, after, np.asarray(leaves), float(np.prod(high - low)), count)


def level_of(P: Array, samples: Samples, rate: float) -> tuple[float, float]:
    """Largest rho below every sample that leaves the box or does not decrease by ``rate``, and the volume below it."""
    level, after = ((y @ P * y).sum(1) for y in (samples.state, samples.after))
    failing = samples.leaves_box | ~(after <= (1 - rate) * level)
    rho = float(level[failing].min(initial=np.inf))
    if not np.isfinite(rho):
        rho = float(level.max())
    return rho, samples.volume * float((level[: samples.whole] < rho).mean())


def linearisation(step: StepFunction, low: Array, high: Array) -> Array:
    """Central differences of the loop at the equilibrium over a millionth of the box, (n, n)."""
    spread = 1e-6 * np.minimum(-low, high)
    after = step(np.concatenate([np.diag(spread), -np.diag(spread)]))
    return np.asarray((after[: len(low)] - after[len(low) :]).T / (2 * spread))


def spectral_radius(A: Array) -> float:
    """The greatest modulus of an eigenvalue; infinite where A is not finite."""
    return float(np.abs(np.linalg.eigvals(A)).max()) if np.isfinite(A).all() else np.inf


def find_candidate(step: StepFunction, low: Array, high: Array, *, rate: float, seed: int) -> Candidate | None:
    """The ellipsoid with the largest sampled volume found by local searches, or ``None`` where the linearisation is not stable."""
    A = linearisation(step, low, high)
    if not spectral_radius(A) < np.sqrt(1 - rate):
        return None
    samples = sample_steps(step, low, high, seed)
    scale = np.minimum(-low, high)
    ranked = sorted((_candidate(P, samples, rate) for P in _starts(A, scale, rate)), key=lambda c: (c.volume, c.rho), reverse=True)
    if not ranked:
        return None
    best = max((_improve(start.P, samples, rate, scale) for start in ranked[:IMPROVED]), key=lambda c: c.volume)
    best = max(best, _improve(best.P, samples, rate, scale), key=lambda c: c.volume)
    return best if best.rho > 0 else None


def _starts(A: Array, scale: Array, rate: float) -> list[Array]:
    """Solutions of discrete Lyapunov equations with several weights."""
    n, out = len(A), []
    for fraction in (0.0, 0.5, 0.9):
        spectral = np.abs(np.linalg.eigvals(A)).max()
        growth = 1 / np.sqrt(1 - rate) * (1 + fraction * (0.999 / spectral * np.sqrt(1 - rate) - 1))
        for weight in (np.eye(n), *(np.diag(np.where(np.arange(n) == i, 1.0, 0.01)) for i in range(n))):
            Q = np.diag(1 / scale) @ weight @ np.diag(1 / scale)
            try:
                P = solve_discrete_lyapunov((growth * A).T, Q)
            except (LinAlgError, ValueError):
                continue
            if np.isfinite(P).all() and np.linalg.eigvalsh(P).min() > 0:
                out.append(_normalised(P))
    return out


def _normalised(P: Array) -> Array:
    P = 0.5 * (P + P.T)
    return np.asarray(P / np.exp(np.linalg.slogdet(P)[1] / len(P)))


def _candidate(P: Array, samples: Samples, rate: float) -> Candidate:
    return Candidate(P, *level_of(P, samples, rate))


def _improve(start: Array, samples: Samples, rate: float, scale: Array) -> Candidate:
    """Nelder-Mead over the Cholesky factor (log diagonal), in units of the box."""
    n = len(start)
    lower, rows = np.tril_indices(n), np.arange(n)
    factor = np.linalg.cholesky(scale[:, None] * start * scale)
    first = factor.copy()
    first[rows, rows] = np.log(factor[rows, rows])

    def matrix(parameters: Array) -> Array:
        L = np.zeros((n, n))
        L[lower] = parameters
        L[rows, rows] = np.exp(np.clip(L[rows, rows], -30, 30))
        return np.asarray(_normalised((L @ L.T) / scale[:, None] / scale))

    def cost(parameters: Array) -> float:
        P = matrix(parameters)
        if not np.isfinite(P).all():
            return np.inf
        rho, volume = level_of(P, samples, rate)
        return -volume - 1e-9 * rho  # the level breaks ties where no sample lies below it

    budget = 100 * len(lower[0])
    found = minimize(cost, first[lower], method="Nelder-Mead", options={"maxfev": budget, "xatol": 1e-3, "fatol": 1e-3})
    return _candidate(matrix(found.x), samples, rate)
