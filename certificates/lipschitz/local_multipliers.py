"""Multipliers for one cell of a domain: the network form with the slopes that its activations have there.

Most units of a small cell are linear and have no variable, so the matrices are small. Nothing here is trusted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.increments import Unrolled
from lipctrl.certificates.checker.intervals import Array, UnsafeArithmetic
from lipctrl.certificates.checker.network import Network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import local_lipschitz
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales, prove_network
from lipctrl.certificates.lipschitz.affordable import proof_products
from lipctrl.certificates.lipschitz.maximum import bound_maximum
from lipctrl.certificates.lipschitz.newton import Multipliers, least_shares, least_square, mixtures, solve, start
from lipctrl.certificates.lipschitz.problem import Problem
from lipctrl.certificates.lipschitz.records import UpperBound
from lipctrl.certificates.lipschitz.system import System, build_system
from lipctrl.core.progress import no_progress


class CellProblem(Problem):
    """A problem whose network form holds on one cell only: the evidence is judged for that form."""

    @cached_property
    def unrolled(self) -> dict[str, Unrolled]:
        """The increments of this network, which the checker's code keeps from one judgement to the next."""
        return {}

    def proved(self, bound: float, evidence: Mapping[str, Any], gap: float | None = None) -> UpperBound | None:
        """The bound on the cell if the checker's code accepts it, else ``None``."""
        try:
            with np.errstate(all="ignore"):
                prove_network(self.network, self.norm, self.scale_in, self.scale_out, bound, evidence, self.unrolled)
        except (Rejected, OutOfRange, UnsafeArithmetic):
            return None
        return UpperBound(float(bound), evidence["method"], {}, evidence, gap)


def bound_cell(problem: local_lipschitz.Problem, network: Network, tolerance: float, seconds: float) -> tuple[UpperBound, float] | None:
    """The best bound by multipliers on a cell with this network form that the checker's code accepts, and what that takes of the
    multiplications that the checker does; or ``None``.

    After ``seconds`` it ends with what it has; 0 seconds: with multipliers that are near the best where slopes are narrow.
    """
    try:
        scales = effective_scales(network, problem.scale_in, problem.scale_out)
        cell = CellProblem(problem.graph, network, problem.norm, problem.scale_in, problem.scale_out, *scales)
        with np.errstate(all="ignore"):
            linf = problem.norm == "linf"
            bound = bound_maximum(cell, tolerance, None, no_progress) if linf else _bound_euclidean(cell, tolerance, seconds)
            return None if bound is None else (bound, proof_products(problem, network, "balls" in cell.unrolled))
    except (np.linalg.LinAlgError, Rejected, OutOfRange, UnsafeArithmetic):
        return None


def _bound_euclidean(cell: CellProblem, tolerance: float, seconds: float) -> UpperBound | None:
    system = build_system(cell.network, cell.scale_in, cell.scale_out)
    first = _first(system)
    if seconds > 0:
        found = solve(system, tolerance, first=first, seconds=seconds)
    else:
        found = Multipliers(least_shares(system, first) * (1 + 1e-9), first, math.inf, 0)

    def accepted(shares: Array, values: Array) -> UpperBound | None:
        bound = math.sqrt(float(shares.sum())) * system.scale
        return cell.proved(bound, {"method": "multipliers", "multipliers": system.filed_as_texts(values)})

    best = accepted(found.shares, found.values)
    if best is not None:
        return best
    tries = list(mixtures(system, found))
    low, high = 1, (len(tries) + 1) // 2
    while low < high:  # further inside bounds are greater and easier to prove: the first that is accepted
        middle = (low + high) // 2
        here = accepted(*tries[middle])
        best, low, high = (best, middle + 1, high) if here is None else (here, low, middle)
    return best or next(filter(None, itertools.starmap(accepted, tries[(len(tries) + 1) // 2 :])), None)


def _first(system: System) -> Array:
    """Multipliers to begin with: the better of the general ones, and of those that balance what each unit may add to the gain."""
    best = start(system)
    square = least_square(system, best)
    balanced = balanced_multipliers(system)
    for factor in (1.0, 2.0, 4.0):
        try:
            other = least_square(system, factor * balanced)
        except np.linalg.LinAlgError:
            continue
        if other < square:
            best, square = factor * balanced, other
    return best


def balanced_multipliers(system: System) -> Array:
    """Multipliers |J| c / b for units that move the output by c and may leave their middle slope by b, see :func:`moves`.

    Each unit adds about lambda b^2 + |J|^2 c^2 / lambda to the square of the bound, where slopes are narrow.
    """
    gain, b, c = moves(system)
    multipliers: Array = (gain or 1.0) * np.maximum(c, 1e-9 * c.max(initial=1e-300)) / np.maximum(b, 1e-9 * b.max(initial=1e-300))
    return multipliers


def moves(system: System) -> tuple[float, Array, Array]:
    """|J|, J the gain where every unit has its middle slope, and for each unit there: how far an input may bring it from that slope,
    and how far it moves the output."""
    n, middle, half = system.inputs, 0.5 * (system.low + system.high), 0.5 * (system.high - system.low)
    inputs, units = system.rows[:, :n], system.rows[:, n:]
    triangle = np.eye(len(units)) - middle[:, None] * units
    moved = solve_triangular(triangle, middle[:, None] * inputs, lower=True)
    entering = inputs + units @ moved
    leaving = solve_triangular(triangle, system.output[:, n:].T, lower=True, trans=1).T
    gain = float(np.linalg.norm(system.output[:, :n] + system.output[:, n:] @ moved, 2))
    return gain, half * np.linalg.norm(entering, axis=1), np.linalg.norm(leaving, axis=0)
