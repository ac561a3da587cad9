"""Lipschitz bounds on boxes and balls: branch and bound, then the checker's code judges the whole tree."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph, GraphError, rational_to_text
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_up
from lipctrl.certificates.checker.verifiers.local_lipschitz import MAX_LEAVES, PROPERTY, Problem, prove_local, read_problem
from lipctrl.certificates.lipschitz.affordable import affordable
from lipctrl.certificates.lipschitz.given import HasGraph, as_texts, graph_of, scale_of
from lipctrl.certificates.lipschitz.local_search import FEW_INPUTS, Search
from lipctrl.certificates.lipschitz.local_witness import WitnessSearch
from lipctrl.certificates.lipschitz.records import LipschitzCertificate, LowerBound, UpperBound
from lipctrl.certificates.lipschitz.turns import Turns
from lipctrl.certificates.lipschitz.unit_search import UnitSearch, has_kinks
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.core.rationals import rational, rationals

MARGIN = 1e-9  #: relative, between the bound that was found and the one that is claimed
LEAST = 1e-40  #: what is claimed for a network whose slopes are rounding errors about 0
WITNESS = 0.2  #: of the time for lower bounds, at most
FIRST, AGAIN = 0.06, 0.04  #: of the time for the first search for a lower bound, and for each one after it
_SIZES = (1.0, 1 + 1e-7, 1 + 1e-5, 1 + 1e-3)  #: of the claimed bound, should the checker refuse a smaller one


@dataclass(frozen=True)
class Budget:
    """When a search ends: seconds, cells, or a bound within ``tolerance`` (relative) of the lower bound; and its ``seed``.

    The judgement of all that was found comes after the seconds, up to about a quarter of them.
    """

    seconds: float = 10.0
    cells: int = 100_000
    tolerance: float = 1e-3
    seed: int = 0


def certify_local_lipschitz(
    network: Graph | HasGraph,
    norm: str = "l2",
    *,
    low: Any = None,
    high: Any = None,
    centre: Any = None,
    radius: Any = None,
    input_scale: Any = None,
    output_scale: Any = None,
    budget: Budget | None = None,
    progress: Progress = no_progress,
) -> LipschitzCertificate:
    """Bound the Lipschitz constant of a network on a box or a ball from above, with proof, and from below, with a witness.

    The domain is the box ``low <= x <= high`` or the ball ``|S_in (x - centre)| <= radius``, in exact numbers and in the units of
    the network's own input; an input with low = high does not move. ``norm`` is ``"l2"`` or ``"linf"``, scales are those of
    :func:`certify_lipschitz`. Cells are split and bounded until the budget is spent or the bounds meet; Ctrl-C ends the search
    with what it has. What comes back was accepted by the checker's code on the graph read back from its file form.

    Raises InputError where the network or an argument does not fit, LipctrlError where nothing could be proved.
    """
    graph = graph_of(network)
    claim = _claim(graph, norm, domain_of(graph, low, high, centre, radius), input_scale, output_scale)
    try:
        problem, _ = read_problem(graph, {**claim, "bound": "0"})
        problem.domain.box()  # refuses what is beyond float64
        if not problem.work().cells_at_once:
            raise InputError("this network is too large for local bounds")
        return _Certifier(graph, claim, problem, budget or Budget(), progress).run()
    except (Rejected, GraphError) as error:
        raise InputError(f"this network cannot be bounded on this domain: {error}") from error


def domain_of(graph: Graph, low: Any, high: Any, centre: Any, radius: Any) -> dict[str, Any]:
    """The domain as a claim holds it. Raises InputError."""
    if len(graph.input_sizes) != 1 or len(graph.outputs) != 1:
        raise InputError(f"the network has inputs {list(graph.input_sizes)} and outputs {list(graph.outputs)}, expected one of each")
    (size,) = graph.input_sizes.values()
    box, ball = (low is not None, high is not None), (centre is not None, radius is not None)
    if box == (True, True) and not any(ball):
        ends = rationals(low, size, "low"), rationals(high, size, "high")
        for index, (a, b) in enumerate(zip(*ends, strict=True)):
            if not a <= b:
                raise InputError(f"low[{index}] is {a} and high[{index}] is {b}, expected low <= high")
        return {name: [rational_to_text(v) for v in end] for name, end in zip(("low", "high"), ends, strict=True)}
    if ball == (True, True) and not any(box):
        reach = rational(radius, "radius")
        if not reach >= 0:
            raise InputError(f"radius is {radius!r}, expected a number that is not negative")
        return {"centre": [rational_to_text(v) for v in rationals(centre, size, "centre")], "radius": rational_to_text(reach)}
    raise InputError("the domain needs low and high (a box), or centre and radius (a ball)")


def _claim(graph: Graph, norm: str, domain: dict[str, Any], input_scale: Any, output_scale: Any) -> dict[str, Any]:
    if norm not in ("l2", "linf"):
        raise InputError(f"norm is {norm!r}, expected 'l2' or 'linf'")
    (size,), (outputs,) = graph.input_sizes.values(), graph.output_sizes.values()
    scales = {"input_scale": scale_of(input_scale, size, "input_scale"), "output_scale": scale_of(output_scale, outputs, "output_scale")}
    return {"property": PROPERTY, "norm": norm, "domain": domain, **{name: as_texts(scale) for name, scale in scales.items()}}


class _Certifier:
    """One run: witness, search, witness again, proof."""

    def __init__(self, graph: Graph, claim: dict[str, Any], problem: Problem, budget: Budget, progress: Progress) -> None:
        self.graph, self.claim, self.problem, self.budget, self.progress = graph, claim, problem, budget, progress
        scales = problem.scale_in, problem.scale_out
        self.witnesses = WitnessSearch(graph, problem.domain, problem.norm, *scales, budget.seed)
        self.begun, self.seeking = time.monotonic(), 0.0  # seconds that went into lower bounds

    @property
    def lower(self) -> LowerBound | None:
        """The steepest pair so far."""
        return self.witnesses.best

    def run(self) -> LipschitzCertificate:
        """Search, then prove."""
        if not len(self.problem.domain.free):
            return LipschitzCertificate(self.graph, self._proved(0.0, [None], []), None, None)
        units = UnitSearch.where_it_helps(self.problem)
        few, many = Search(self.problem, True), Search(self.problem, False)
        # with kinks and few inputs, multipliers on boxes fall late and then deep: what they have reached says nothing before
        late = units is None and has_kinks(self.problem.graph) and len(self.problem.domain.free) <= FEW_INPUTS
        turns = Turns([few], beside=[many]) if late else Turns([*([units] if units else []), few, many])
        try:
            self._witness(None)
            self._search(turns)
            if turns.best.upper > self._enough:
                self._witness(turns.best.worst(64))
        except KeyboardInterrupt:
            pass
        search = turns.best
        if not math.isfinite(search.upper):
            raise LipctrlError("no bound on this domain could be proved: values or slopes there are not finite")
        upper = affordable(self.problem, search.root, search.upper)
        for size in _SIZES:
            bound = max(upper * (1 + MARGIN) * size, LEAST) if upper > 0 else 0.0
            try:
                proved = self._proved(bound, *search.tree(bound))
            except Rejected:
                continue
            self.progress(1.0, f"upper bound {rounded_up(bound)}", proved)
            return LipschitzCertificate(self.graph, proved, self.lower, None)
        raise LipctrlError("the checker did not accept the bound that the search found on this domain")

    @property
    def _least(self) -> float:
        return 0.0 if self.lower is None else self.lower.value

    @property
    def _enough(self) -> float:
        return self._least * (1 + self.budget.tolerance)

    def _search(self, turns: Turns) -> None:
        """Until the bounds meet or the budget is spent."""
        seconds = self.budget.seconds
        while (best := turns.best).upper > (enough := self._enough) and best.cells < min(self.budget.cells, MAX_LEAVES):
            passed = time.monotonic() - self.begun
            if self.seeking + 2 * AGAIN * seconds < WITNESS * passed:  # one turn is kept for the end
                self._witness(best.worst(64))
                continue
            left = (1 - AGAIN) * seconds - passed
            if left <= 0 or (best.exhausted and math.isfinite(best.upper)):
                break
            spent = 1 - left / seconds
            self.progress(0.1 + 0.8 * spent, f"bound {rounded_up(best.upper)} on {best.cells} cells (not yet proved)", None)
            if not turns.step(self._least, enough, left):
                break

    def _witness(self, starts: np.ndarray | None) -> None:
        """Seek a lower bound for a while, from inputs (B, n) or random ones."""
        begun = time.monotonic()
        if starts is None:
            self.witnesses.search(begun + FIRST * self.budget.seconds)
        else:
            self.witnesses.improve(starts, begun + AGAIN * self.budget.seconds)
        self.seeking += time.monotonic() - begun

    def _proved(self, bound: float, tree: list[Any], proofs: list[dict[str, Any]]) -> UpperBound:
        """The bound as a record. Raises Rejected where the checker's code does not accept it."""
        claim = {**self.claim, "bound": float(bound).hex()}
        evidence = {"method": "cells", "tree": tree, "proofs": proofs}
        prove_local(self.graph, claim, evidence)
        return UpperBound(float(bound), "cells", claim, evidence)
