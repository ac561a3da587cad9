"""Multipliers for one cell of a domain: the network form with the slopes that its activations have there.

Most units of a small cell are linear and have no variable, so the matrices are small. Nothing here is trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.increments import Linear, Unrolled, unroll
from lipctrl.certificates.checker.intervals import Array, UnsafeArithmetic
from lipctrl.certificates.checker.network import Activation, Network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales
from lipctrl.certificates.checker.verifiers.local_lipschitz import Problem
from lipctrl.certificates.lipschitz.newton import Multipliers, least_square, solve, start
from lipctrl.certificates.lipschitz.system import LEAST_WIDTH, System


@dataclass(frozen=True)
class CellSystem:
    """A normalised system and what it takes to file its multipliers: factors of the units, and the layers they belong to."""

    system: System
    factors: Array
    layers: list[int]

    def filed(self, values: Array) -> list[list[str]]:
        """Multipliers in the checker's form, one list for each layer."""
        ends = np.cumsum([0, *self.layers])
        own = values * self.factors
        return [[float(v).hex() for v in own[a:b]] for a, b in zip(ends[:-1], ends[1:], strict=True)]


def cell_system(network: Network, scale_in: Array, scale_out: Array) -> CellSystem | None:
    """The system of a network form without sorts, or ``None`` where no output depends on an input that moves."""
    unrolled = unroll(network, lambda values: np.array(values, dtype=np.float64))
    layers = [layer for layer in network.layers if isinstance(layer, Activation)]
    ends = np.cumsum([0, *unrolled.sizes])
    rows = np.vstack([_matrix(form, layer.multipliers, unrolled) for form, layer in zip(unrolled.entering, layers, strict=True)] + [
        np.zeros((0, int(ends[-1])))
    ])
    low, high = (np.concatenate([*(getattr(layer, end)[layer.free] for layer in layers), []]) for end in ("low", "high"))
    gain = np.maximum(np.abs(low), np.abs(high))
    n = unrolled.sizes[0]
    size = np.ones(int(ends[-1]))
    size[:n] = 1 / scale_in
    entering = np.ones(len(rows))
    for j, row in enumerate(rows):  # units are measured in what they can be, by and large
        entering[j] = np.linalg.norm(row[: n + j] * size[: n + j]) or 1.0
        size[n + j] = entering[j] * (gain[j] or 1.0)
    output = scale_out[:, None] * _matrix(unrolled.output, network.outputs, unrolled) * size
    norm = float(np.linalg.norm(output, 2)) if output.size else 0.0
    if not 0 < norm < math.inf:
        return None
    scaled = rows * size / size[n:, None]
    wider = np.maximum(0.0, LEAST_WIDTH * gain - (high - low)) / 2
    blocks = tuple(slice(int(a), int(b)) for a, b in zip(ends[1:-1], ends[2:], strict=True) if b > a)
    members = np.arange(len(rows))
    system = System(n, scaled, output / norm, low - wider, high + wider, members, blocks, (members,), np.array([norm]))
    return CellSystem(system, (norm / size[n:]) ** 2, [layer.multipliers for layer in layers])


def _matrix(form: Linear, rows: int, unrolled: Unrolled) -> Array:
    ends = np.cumsum([0, *unrolled.sizes])
    matrix = np.zeros((rows, int(ends[-1])))
    for block, part in form.items():
        matrix[:, ends[block] : ends[block + 1]] = part
    return matrix


@dataclass(frozen=True)
class CellBound:
    """A bound on one cell that the checker's code accepted, and the proof."""

    value: float
    proof: dict[str, Any]


def bound_cell(problem: Problem, network: Network, tolerance: float, enough: float = 0.0) -> CellBound | None:
    """The best Euclidean bound by multipliers on a cell that the checker's code accepts, or ``None``."""
    scales = effective_scales(network, problem.scale_in, problem.scale_out)
    try:
        with np.errstate(all="ignore"):
            cell = cell_system(network, *scales)
            if cell is None:
                return None
            return _accepted(problem, network, cell, solve(cell.system, tolerance))
    except (np.linalg.LinAlgError, Rejected, OutOfRange, UnsafeArithmetic, ValueError):
        return None


def _accepted(problem: Problem, network: Network, cell: CellSystem, found: Multipliers) -> CellBound | None:
    inside = start(cell.system)
    square = 2 * least_square(cell.system, inside)
    for weight in (0.0, *(10.0**-digits for digits in range(12, 1, -1))):
        mixed = (1 - weight) * found.values + weight * inside
        bound = math.sqrt((1 - weight) * found.square + weight * square) * cell.system.scale
        proof = {"method": "multipliers", "multipliers": cell.filed(mixed)}
        try:
            problem.prove(network, bound, proof)
        except (Rejected, OutOfRange):
            continue
        return CellBound(bound, proof)
    return None
