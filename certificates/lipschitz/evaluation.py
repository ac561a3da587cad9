"""How far a policy as deployed, in float32, may be from the real-valued one: cells are split where the bound is greatest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipctrl.certificates.checker.domain import halves
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.action_deviation import KIND, PROPERTY, Deviation, prove_deviation, read_deviation
from lipctrl.certificates.lipschitz.given import HasGraph, as_texts, graph_of, scale_of
from lipctrl.certificates.lipschitz.local import domain_of
from lipctrl.certificates.lipschitz.records import Filed
from lipctrl.core.errors import InputError

MARGIN = 1e-9  #: relative, of the claim above what the search found: sums round otherwise in batches of other sizes


@dataclass(frozen=True)
class EvaluationCertificate(Filed):
    """|f32(x) - f(x)| <= ``value`` on the claim's domain: ``claim`` and ``evidence`` are what the checker accepted in this process."""

    graph: Graph
    value: float
    claim: Mapping[str, Any]
    evidence: Mapping[str, Any]

    def _parts(self) -> dict[str, Any]:
        return {"kind": KIND, "claim": self.claim, "policy": self.graph, "evidence": self.evidence, "arithmetic": "float32"}


def certify_evaluation(
    network: Graph | HasGraph,
    norm: str = "l2",
    *,
    low: Any = None,
    high: Any = None,
    centre: Any = None,
    radius: Any = None,
    output_scale: Any = None,
    activation_ulp: int | None = None,
    cells: int = 64,
) -> EvaluationCertificate:
    """Bound |f32(x) - f(x)| on a box or ball: f32 is any IEEE binary32 evaluation of the network f, x cast to float32 first.

    The domain is given as for :func:`certify_local_lipschitz`, in the units of the network's input; the bound is in those of its
    output, or of ``output_scale`` times it. ``activation_ulp`` is the assumed accuracy of the runtime's float32 tanh and sigmoid,
    in units in the last place: with it the checker's level is ``proved-for-model``. The domain is split into at most ``cells``
    cells. Raises InputError where the network has operations whose float32 accuracy is not known, weights that are not
    float32, values that may overflow, or where an argument does not fit.
    """
    if norm not in ("l2", "linf"):
        raise InputError(f"norm is {norm!r}, expected 'l2' or 'linf'")
    graph = graph_of(network)
    claim: dict[str, Any] = {"property": PROPERTY, "norm": norm, "domain": domain_of(graph, low, high, centre, radius)}
    (outputs,) = graph.output_sizes.values()
    claim["output_scale"] = as_texts(scale_of(output_scale, outputs, "output_scale"))
    claim["activation_ulp"] = activation_ulp
    try:
        problem, _ = read_deviation(graph, {**claim, "bound": "0"})
        if not problem.work().cells_at_once:
            raise InputError("this network is too large for a bound of its float32 error")
        found, tree = _split(problem, cells)
        bound = found * (1 + MARGIN)
        if not np.isfinite(bound):
            raise InputError("the float32 evaluation of this network may overflow on this domain")
        claim["bound"], evidence = bound.hex(), {"method": "cells", "tree": tree}
        prove_deviation(graph, claim, evidence)
    except Rejected as error:
        raise InputError(f"the float32 error of this network cannot be bounded: {error}") from error
    return EvaluationCertificate(graph, bound, claim, evidence)


class _Cell:
    """A node of the split tree under construction."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = low, high
        self.error = np.inf
        self.split: tuple[int, float, tuple[_Cell, _Cell]] | None = None

    def entries(self) -> list[Any]:
        """The tree in preorder."""
        if self.split is None:
            return [None]
        axis, threshold, children = self.split
        return [[axis, threshold.hex()], *(entry for child in children for entry in child.entries())]


def _split(problem: Deviation, count: int) -> tuple[float, list[Any]]:
    """The least bound with this many cells, each split in half where it is widest, relative to the domain; and their tree."""
    root = _Cell(*problem.domain.box())
    width = np.maximum(root.high - root.low, np.finfo(float).tiny)
    leaves = [root]
    _bound(problem, leaves)
    while len(leaves) < count:
        worst = max(leaves, key=lambda leaf: leaf.error)
        axis = int(((worst.high - worst.low) / width).argmax())
        threshold = float(0.5 * worst.low[axis] + 0.5 * worst.high[axis])
        if axis not in problem.domain.free or not worst.low[axis] < threshold < worst.high[axis]:
            break
        first, second = (_Cell(*half) for half in halves(worst.low, worst.high, axis, threshold))
        worst.split = axis, threshold, (first, second)
        leaves = [leaf for leaf in leaves if leaf is not worst] + [first, second]
        _bound(problem, [first, second])
    return max(leaf.error for leaf in leaves), root.entries()


def _bound(problem: Deviation, leaves: list[_Cell]) -> None:
    errors = problem.errors(np.stack([leaf.low for leaf in leaves]), np.stack([leaf.high for leaf in leaves]))
    for leaf, error in zip(leaves, errors.tolist(), strict=True):
        leaf.error = np.inf if np.isnan(error) else error  # NaN: nothing is known
