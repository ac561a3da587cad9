"""Global bounds of small networks by vertices: best first, the worst leaf is split at a unit whose slope matters.

The slope of a unit is split into the two ends of its interval, see :mod:`lipctrl.certificates.checker.vertices`. Multipliers prove
each leaf; those of a leaf, without that of the unit which is split, are feasible in both halves and begin the search there.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.graph import GraphError
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Network, read_network
from lipctrl.certificates.checker.products import absolute_product
from lipctrl.certificates.checker.sorts import without_sorts
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales
from lipctrl.certificates.checker.vertices import MAX_DEPTH, MAX_LEAVES, METHOD, split
from lipctrl.certificates.lipschitz.local_multipliers import CellProblem, moves
from lipctrl.certificates.lipschitz.maximum import bound_maximum
from lipctrl.certificates.lipschitz.newton import Multipliers, solve
from lipctrl.certificates.lipschitz.problem import Problem
from lipctrl.certificates.lipschitz.records import UpperBound
from lipctrl.certificates.lipschitz.system import System, build_system
from lipctrl.core.progress import no_progress

MARGINS = (1e-9, 1e-7, 1e-5, 1e-3)  #: relative, between the greatest bound of a leaf and the one that is claimed
Report = Callable[[int, float], None]


@dataclass
class Leaf:
    """A network with some slopes at their ends, its bound with the proof, and the unit [layer, unit] to be split next, if any.

    ``warm`` holds multipliers for all coordinates of each layer, to begin with. A leaf that has ``halves`` is one no more.
    """

    network: Network
    bound: float
    proof: dict[str, Any]
    unit: tuple[int, int] | None
    warm: list[Array] = field(default_factory=list)
    depth: int = 0
    halves: list[Leaf] = field(default_factory=list)


def bound_by_vertices(problem: Problem, splits: int, order: int, goal: float, tolerance: float, report: Report) -> UpperBound | None:
    """The bound that is left after at most ``splits`` splits, or once ``goal`` is reached, if the checker's code accepts it.

    Leaves are bounded to the relative ``tolerance`` in the square. ``report(done, bound)`` is called after each split, with a bound
    that is not yet proved. Ctrl-C ends the search with what it has. ``None`` for a network with more than ``order`` variables, its
    sorted groups as absolute values, or with implicit layers, and where floats leave no bound.
    """
    try:
        network = read_network(without_sorts(problem.graph))
        scales = effective_scales(network, *problem.scales)
    except (Rejected, GraphError):
        return None
    search = _Search(CellProblem(problem.graph, network, problem.norm, problem.input_scale, problem.output_scale, *scales), goal, tolerance)
    fits = sum(network.variables) <= order and len(_activations(network)) == len(network.layers)
    root = search.leaf(network, None) if fits else None
    if root is None:
        return None
    with contextlib.suppress(KeyboardInterrupt):
        search.run(root, min(splits, MAX_LEAVES - 1), report)
    bound, evidence = evidence_of(root)
    return next((proved for margin in MARGINS if (proved := problem.proved(bound * (1 + margin), evidence)) is not None), None)


def evidence_of(root: Leaf) -> tuple[float, dict[str, Any]]:
    """The greatest bound of the leaves below, and the evidence for it."""
    bound, tree, proofs, waiting = 0.0, list[Any](), list[dict[str, Any]](), [root]
    while waiting:
        here = waiting.pop()
        if here.halves:
            tree.append(list(here.unit or ()))
            waiting += reversed(here.halves)
        else:
            bound = max(bound, here.bound)
            tree.append(len(proofs))
            proofs.append(here.proof)
    return bound, {"method": METHOD, "tree": tree, "proofs": proofs}


class _Search:
    """Best first; what is not trusted here is judged by the checker in the end."""

    def __init__(self, problem: CellProblem, goal: float, tolerance: float) -> None:
        self.problem, self.goal, self.tolerance = problem, goal, tolerance
        self.interrupted = False

    def run(self, root: Leaf, splits: int, report: Report) -> None:
        """Split the worst leaf, again and again."""
        waiting = [(-root.bound, 0, root)]
        for done in range(splits):
            worst = waiting[0][2]
            if self.interrupted or not worst.bound > self.goal or worst.unit is None or worst.depth >= MAX_DEPTH:
                return
            first, second = (self.leaf(half, worst) for half in split(worst.network, list(worst.unit)))
            if self.interrupted or first is None or second is None:
                return
            worst.halves = [first, second]
            heapq.heapreplace(waiting, (-first.bound, 2 * done + 1, first))
            heapq.heappush(waiting, (-second.bound, 2 * done + 2, second))
            report(done + 1, waiting[0][2].bound)

    def leaf(self, network: Network, parent: Leaf | None) -> Leaf | None:
        """The leaf with these slopes, ``None`` where floats leave no bound."""
        try:
            with np.errstate(all="ignore"):
                found = self._maximum(network) if self.problem.norm == "linf" else self._euclidean(network, parent)
        except (np.linalg.LinAlgError, OutOfRange, Rejected):
            return None
        if parent is not None:
            found.depth = parent.depth + 1
        return found

    def _euclidean(self, network: Network, parent: Leaf | None) -> Leaf:
        system, layers = build_system(network, self.problem.scale_in, self.problem.scale_out), _activations(network)
        first = None
        if parent is not None:
            first = system.normalised([warm[layer.free] for warm, layer in zip(parent.warm, layers, strict=True)])
        found = solve(system, self.tolerance, first=first, enough=(self.goal / system.scale) ** 2)
        self.interrupted |= found.interrupted
        warm = [np.zeros(layer.size) for layer in layers]
        for own, layer, values in zip(warm, layers, system.filed(found.values), strict=True):
            own[layer.free] = values
        proof = {"method": "multipliers", "multipliers": system.filed_as_texts(found.values)}
        bound = math.sqrt(found.square) * system.scale
        return Leaf(network, bound, proof, _unit(network, _slack(system, found) * _influence(system)), warm)

    def _maximum(self, network: Network) -> Leaf:
        scales = self.problem.scale_in, self.problem.scale_out
        product = float(absolute_product(network, *scales).max())
        found = bound_maximum(replace(self.problem, network=network), self.tolerance, None, no_progress)
        influence = _influence(build_system(network, *scales))
        bound, proof = (product, {"method": "absolute-product"}) if found is None else (found.value, dict(found.evidence))
        return Leaf(network, bound, proof, _unit(network, influence))


def _activations(network: Network) -> list[Activation]:
    return [signal for signal in network.signals if isinstance(signal, Activation)]


def _unit(network: Network, scores: Array) -> tuple[int, int] | None:
    """The unit with the greatest score; ``None`` where no slope is open."""
    units = [(index, int(unit)) for index, layer in enumerate(_activations(network)) for unit in layer.free]
    return units[int(np.argmax(scores))] if units else None


def _slack(system: System, found: Multipliers) -> Array:
    """The price lambda of each unit, times how far it is from both ends of its slopes, on average, in the relaxed worst case.

    The inverse X of M is that case's second moment, up to a factor: p^T X p and q^T X q for p = e - low w, q = e - high w.
    """
    inverse = np.linalg.inv(system.matrix(found.shares, found.values))
    own = np.eye(system.size)[system.inputs :]
    ends = [own - slope[:, None] * system.rows for slope in (system.low, system.high)]
    squares = [np.maximum(((end @ inverse) * end).sum(axis=1), 0.0) for end in ends]
    slack: Array = found.values[system.member] * squares[0] * squares[1] / np.maximum(squares[0] + squares[1], 1e-300)
    return slack


def _influence(system: System) -> Array:
    """What each unit may add to the gain by leaving its middle slope."""
    _, reached, moved = moves(system)
    influence: Array = reached * moved
    return influence
