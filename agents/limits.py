"""What a Lipschitz policy can and cannot do with given demonstrations, found before any training.

For a policy whose constant is ``L`` (action units per observation unit, l2), by the triangle inequality alone:

* :func:`interpolation_constant`: the smallest L that could fit every action exactly;
* :func:`error_floor` e*(L): the largest action error is at least this, whatever the training;
* :func:`smallest_lipschitz`: the smallest L that leaves an error of at most a given tolerance possible;
* :func:`squared_error_floor`: the mean squared action error is at least this.

All are computed in floating point and are therefore ``numerical``. They are information, not gates: a large floor comes
from a few conflicting pairs of samples and says little about the return.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_down
from lipctrl.core.errors import InputError

Array = NDArray[np.float64]

_PAIRS_AT_ONCE = 4_000_000  #: distances held in memory at a time


@dataclass(frozen=True)
class DataLimits:
    """The floors of one data set under one Lipschitz constant; errors are in action units (l2 over the components).

    They come from ``samples`` of the ``of`` samples, the mean squared error's from ``subsample`` of them, and are floors for
    all of them; only ``interpolation_constant`` may be larger for all.
    """

    lipschitz: float
    samples: int
    of: int
    interpolation_constant: float
    error_floor: float
    mean_squared_error_floor: float
    subsample: int
    level: str = "numerical"

    def __str__(self) -> str:
        needed = rounded_down(self.interpolation_constant, 4)
        return (
            f"{self.samples} of {self.of} samples: an exact fit needs L >= {needed}; at L = {self.lipschitz:g} "
            f"the largest error is at least {rounded_down(self.error_floor, 4)} and the mean squared error at least "
            f"{rounded_down(self.mean_squared_error_floor, 3)} ({self.level})"
        )


def data_limits(
    observations: ArrayLike, actions: ArrayLike, lipschitz: float, *, max_samples: int = 5000, subsample: int = 200, seed: int = 0
) -> DataLimits:
    """All floors at once.

    ``observations`` (N, n) and ``actions`` (N, m) in physical units, ``lipschitz`` in action units per observation unit.
    ``max_samples``: how many samples, drawn with ``seed``, are compared pair by pair (time grows with the square, memory stays
    bounded); ``subsample``: how many of them enter the quadratic program (0: none, and that floor is 0). Raises InputError for
    arrays that do not fit together or hold values that are not finite.
    """
    x, u = checked_samples(observations, actions)
    of = len(x)
    chosen = np.sort(np.random.default_rng(seed).permutation(of)[:max_samples])
    x, u = x[chosen], u[chosen]
    interpolation, floor = 0.0, 0.0
    for distance, gap in _pairs(x, u):
        interpolation = max(interpolation, _steepest(distance, gap))
        floor = max(floor, float((gap - lipschitz * distance).max()) / 2)
    squared = squared_error_floor(x, u, lipschitz, subsample, seed) * len(x) / of
    return DataLimits(lipschitz, len(x), of, interpolation, floor, squared, min(subsample, len(x)))


def interpolation_constant(observations: ArrayLike, actions: ArrayLike) -> float:
    """L_data, the largest action difference per observation distance: the smallest L that could fit exactly.

    Infinite where equal observations carry different actions, 0 for one sample.
    """
    x, u = checked_samples(observations, actions)
    return max(_steepest(distance, gap) for distance, gap in _pairs(x, u))


def error_floor(observations: ArrayLike, actions: ArrayLike, lipschitz: float) -> float:
    """e*(L): every L-Lipschitz policy errs by at least this at some sample; attained for scalar actions."""
    x, u = checked_samples(observations, actions)
    return max(float(np.maximum(gap - lipschitz * distance, 0.0).max()) / 2 for distance, gap in _pairs(x, u))


def smallest_lipschitz(observations: ArrayLike, actions: ArrayLike, tolerance: float) -> float:
    """The smallest L for which an error of at most ``tolerance`` (action units) at every sample is not excluded."""
    x, u = checked_samples(observations, actions)
    return max(_steepest(distance, np.maximum(gap - 2 * tolerance, 0.0)) for distance, gap in _pairs(x, u))


def squared_error_floor(observations: ArrayLike, actions: ArrayLike, lipschitz: float, subsample: int = 200, seed: int = 0) -> float:
    """A floor on the mean over all samples of the squared action error of any L-Lipschitz policy.

    A quadratic program over ``subsample`` samples; the value is that of the solver's multipliers put into the dual function, so
    a solver that stops early gives a lower floor, not a wrong one.
    """
    x, u = checked_samples(observations, actions)
    if subsample < 2:
        return 0.0
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:subsample])
    total = sum(_scalar_squared_floor(x[chosen], column, lipschitz) for column in u[chosen].T)
    return total / len(x)


def checked_samples(observations: ArrayLike, actions: ArrayLike) -> tuple[Array, Array]:
    """Both as float64 matrices with one row per sample. Raises InputError where they do not fit or are not finite."""
    x, u = (np.asarray(values, dtype=np.float64) for values in (observations, actions))
    x, u = (values[:, None] if values.ndim == 1 else values for values in (x, u))
    if x.ndim != 2 or u.ndim != 2 or len(x) != len(u) or len(x) == 0:
        raise InputError(f"observations have shape {x.shape} and actions {u.shape}, expected (N, n) and (N, m) with the same N >= 1")
    for name, values in (("observations", x), ("actions", u)):
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(f"{name} hold {values[row, column]} in row {row}, column {column}, expected finite numbers")
    return x, u


def _pairs(x: Array, u: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks of observation distances and action differences that together hold every pair i <= j at least once."""
    rows = max(1, _PAIRS_AT_ONCE // len(x))
    for start in range(0, len(x), rows):
        block = slice(start, start + rows)
        yield cdist(x[block], x[start:]).astype(np.float64), cdist(u[block], u[start:]).astype(np.float64)


def _steepest(distance: Array, gap: Array) -> float:
    """Largest gap / distance; pairs at distance 0 count only where the gap is not 0, and then as infinite."""
    if bool(((distance == 0) & (gap > 0)).any()):
        return math.inf
    return float(np.divide(gap, distance, out=np.zeros_like(gap), where=distance > 0).max())


def _scalar_squared_floor(x: Array, u: Array, lipschitz: float) -> float:
    """Lower bound on min sum (f_i - u_i)^2 subject to |f_i - f_j| <= L d_ij, from its dual function."""
    import cvxpy  # slow to import, and only needed here
    import scipy.sparse as sp

    cp: Any = cvxpy
    first, second = np.triu_indices(len(x), 1)
    reach = lipschitz * np.linalg.norm(x[first] - x[second], axis=1)
    binding = reach < u.max() - u.min()  # some minimiser stays in [min u, max u], where all other pairs are slack
    first, second, reach = first[binding], second[binding], reach[binding]
    if not bool((np.abs(u[first] - u[second]) > reach).any()):
        return 0.0
    rows, ones = np.arange(len(reach)), np.ones(len(reach))
    difference = sp.csr_array((np.r_[ones, -ones], (np.r_[rows, rows], np.r_[first, second])), (len(rows), len(x)))
    fit = cp.Variable(len(x))
    above, below = difference @ fit <= reach, -difference @ fit <= reach
    problem: Any = cp.Problem(cp.Minimize(cp.sum_squares(fit - u)), [above, below])
    problem.solve(solver=cp.CLARABEL)
    if above.dual_value is None or below.dual_value is None:
        return 0.0  # the trivial floor: multipliers 0
    plus, minus = np.maximum(above.dual_value, 0), np.maximum(below.dual_value, 0)
    pull = difference.T @ (plus - minus)
    # inf_f sum (f - u)^2 + pull . f  =  sum pull u - pull^2 / 4
    return max(0.0, float(pull @ u - pull @ pull / 4 - reach @ (plus + minus)))
