"""Certificates that outputs never fall, or never rise, when an input rises: search, then the checker's code judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipctrl.certificates.checker.domain import Domain
from lipctrl.certificates.checker.graph import Graph, GraphError, rational_to_text
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.signs import Moves, signs_everywhere
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.monotonicity import KIND, PROPERTY, Monotone, leaf_batches, prove_monotone, read_claim
from lipctrl.certificates.lipschitz.given import HasGraph, graph_of
from lipctrl.certificates.lipschitz.local import Budget, domain_of
from lipctrl.certificates.lipschitz.monotone_search import Pair, Sampler, Search
from lipctrl.certificates.lipschitz.records import Filed
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.core.rationals import rational

ROUNDS = 16  #: of sampling for a contradiction where there is no box to split


@dataclass(frozen=True)
class MonotonicityCertificate(Filed):
    """Signs that were proved, or a pair of points that contradicts them, in the form that the checker accepted in this process.

    ``signs`` (m, n) says for each output and input whether the output never falls (1) or never rises (-1) when the input rises; of 0
    nothing is said. ``kind`` is ``"monotonicity"``, or ``"counterexample"`` where a pair of points contradicts one of the signs.
    """

    graph: Graph
    signs: Array
    kind: str
    claim: Mapping[str, Any]
    evidence: Mapping[str, Any]

    def _parts(self) -> dict[str, Any]:
        return {"kind": self.kind, "claim": self.claim, "policy": self.graph, "evidence": self.evidence}


class NotProved(LipctrlError):
    """What was asked is neither proved nor refuted. ``part`` is the certificate of the signs that were proved, or ``None``."""

    def __init__(self, message: str, part: MonotonicityCertificate | None = None) -> None:
        super().__init__(message)
        self.part = part


def certify_monotone(
    network: Graph | HasGraph,
    signs: Any = None,
    *,
    low: Any = None,
    high: Any = None,
    centre: Any = None,
    radius: Any = None,
    budget: Budget | None = None,
    progress: Progress = no_progress,
) -> MonotonicityCertificate:
    """Prove that outputs of a network never fall, or never rise, when one of its inputs rises and the others stay as they are.

    ``signs`` has a row for each output and a column for each input: 1 for never falls, -1 for never rises, 0 where nothing is
    asked. All of it is proved, or a counterexample comes back, whose verdict is ``falsified``. Without ``signs`` all signs that can
    be proved within the budget are; Ctrl-C ends the search with those that are proved by then.

    The claim holds on the box ``low <= x <= high``, or on the box around the ball of this ``centre`` and ``radius`` in the maximum
    norm, in exact numbers and in the units of the network's input; without any of them on all of R^n, where only the signs of weights
    and of slopes count. What comes back was accepted by the checker's code on the graph read back from its file form.

    Raises InputError where the network or an argument does not fit, NotProved where signs could be neither proved nor refuted.
    """
    graph = graph_of(network)
    if len(graph.input_sizes) != 1 or len(graph.outputs) != 1:
        raise InputError(f"the network has inputs {list(graph.input_sizes)} and outputs {list(graph.outputs)}, expected one of each")
    everywhere = all(argument is None for argument in (low, high, centre, radius))
    box = None if everywhere else _box(graph, low, high, centre, radius)
    wanted = None if signs is None else _read_signs(signs, *graph.output_sizes.values(), *graph.input_sizes.values())
    try:
        return _Certifier(graph, box, wanted, budget or Budget(), progress).run()
    except (Rejected, GraphError) as error:
        raise InputError(f"nothing can be said about the signs of this network: {error}") from error


def _box(graph: Graph, low: Any, high: Any, centre: Any, radius: Any) -> dict[str, list[str]]:
    """The domain as a claim holds it. Raises InputError."""
    domain = domain_of(graph, low, high, centre, radius)
    if "low" in domain:
        return domain
    middle, reach = [rational(v) for v in domain["centre"]], rational(domain["radius"])
    return {"low": [rational_to_text(v - reach) for v in middle], "high": [rational_to_text(v + reach) for v in middle]}


def _read_signs(signs: Any, outputs: int, inputs: int) -> Array:
    matrix = np.asarray(signs)
    if matrix.shape != (outputs, inputs) or matrix.dtype.kind not in "iuf" or not np.isin(matrix, (-1, 0, 1)).all() or not matrix.any():
        raise InputError(f"signs is {signs!r}, expected {outputs} rows of {inputs} numbers 1, -1 or 0, not all of them 0")
    return matrix.astype(np.int8)


class _Certifier:
    """One run: signs of weights first, then cells, and all the time pairs of points that contradict."""

    def __init__(self, graph: Graph, box: dict[str, Any] | None, wanted: Array | None, budget: Budget, progress: Progress) -> None:
        self.graph, self.box, self.wanted, self.budget, self.progress = graph, box, wanted, budget, progress
        self.problem = self._problem(box, wanted)
        self.sampler = Sampler(graph, self.problem.domain, budget.seed)

    def _problem(self, box: dict[str, Any] | None, wanted: Array | None) -> Monotone:
        (size,), (outputs,) = self.graph.input_sizes.values(), self.graph.output_sizes.values()
        asked = np.ones((outputs, size), dtype=np.int8) if wanted is None else wanted
        if box is not None:
            still = np.array([low == high for low, high in zip(box["low"], box["high"], strict=True)])
            if still.all():
                raise InputError("no input varies on this box, expected low < high for one of them at least")
            if wanted is not None and wanted[:, still].any():
                raise InputError(f"a sign is asked for x{int(np.argmax(still & wanted.any(0))) + 1}, which does not vary on this box")
            asked = np.where(still, 0, asked).astype(np.int8)
        return read_claim(self.graph, self._claim(asked))

    def _claim(self, signs: Array) -> dict[str, Any]:
        return {"property": PROPERTY, "signs": signs.tolist(), "domain": self.box}

    def run(self) -> MonotonicityCertificate:
        """Prove or refute."""
        moves = self._everywhere()
        if moves is not None and not self.problem.contradicted(moves, self.sampler.free).any():
            return self._certificate(self.problem.signs, {"method": "signs"})
        if self.problem.domain is None:
            return self._without_box(moves)
        return self._on_box(self.problem.domain)

    def _everywhere(self) -> Moves | None:
        """What the outputs may do on all of R^n; ``None`` where they have no values somewhere, or that is too much work."""
        try:
            found = signs_everywhere(self.problem.graph)
        except Rejected:
            return None
        return Moves(found.up[self.sampler.free], found.down[self.sampler.free])

    def _without_box(self, moves: Moves | None) -> MonotonicityCertificate:
        signs = np.zeros_like(self.problem.signs)
        if moves is not None:
            best = np.where(moves.down, np.where(moves.up, 0, -1), 1)[:, 0, :].T
            signs = np.where((self.problem.signs == best) | (self.wanted is None), best, 0).astype(np.int8)
        part = self._certificate(signs, {"method": "signs"}) if signs.any() else None
        if self.wanted is None and part is not None:
            return part
        if self.wanted is not None:
            for round_ in range(ROUNDS):
                self.progress(round_ / ROUNDS, "looking for a pair of points that contradicts", part)
                for _, _, pair in self.sampler.contradictions(self.wanted, *self.sampler.spread()):
                    return self._counterexample(pair)
        raise NotProved("the signs of weights and slopes do not decide what outputs do everywhere; on a box more can be proved", part)

    def _on_box(self, domain: Domain) -> MonotonicityCertificate:
        search = Search(self.problem, domain, self.sampler, self.problem.signs)
        try:
            sample = self.sampler.spread()
            if self.wanted is None:
                search.asked = self._tendency(search, self.sampler.differences(*sample))
            search.learn(*sample)
            search.run(self.budget.seconds, self.budget.cells, self.wanted is not None, self.progress)
        except KeyboardInterrupt:
            pass
        if self.wanted is not None and search.against:
            return self._counterexample(search.against[0])
        search.asked = search.proved
        part = self._judged(search.asked, search.tree(), domain) if search.asked.any() else None
        if part is None:
            raise NotProved(f"no sign could be proved on this box, on {search.cells} cells")
        if self.wanted is not None and bool((part.signs != self.wanted).any()):
            counts = [np.count_nonzero(signs) for signs in (part.signs, self.wanted)]
            raise NotProved(f"{counts[0]} of {counts[1]} signs could be proved on this box, on {search.cells} cells", part)
        return part

    def _tendency(self, search: Search, rises: Array) -> Array:
        """What to ask for: for each pair of an output and an input the direction that was seen more, or else the one that is proved."""
        seen, asked = rises.sum(1).T, self.problem.signs.copy()
        falling = (seen < 0) | ((seen == 0) & search.root.holds[1].T & ~search.root.holds[0].T)
        asked[:, self.sampler.free] = np.where(falling, -1, 1)
        return asked

    def _judged(self, signs: Array, tree: list[Any], domain: Domain) -> MonotonicityCertificate | None:
        """The certificate of those signs that the checker's code accepts: sums round otherwise in batches of other sizes."""
        evidence = {"method": "cells", "tree": tree}
        try:
            return self._certificate(signs, evidence)
        except Rejected:
            problem = read_claim(self.graph, self._claim(signs))
        signs = signs.copy()
        for _, moves, finite in leaf_batches(problem, domain, tree):
            wrong = (problem.contradicted(moves, domain.free) | ~finite[None, :, None]).any(1)
            signs[:, domain.free] = np.where(wrong.T, 0, signs[:, domain.free])
        return self._certificate(signs, evidence) if signs.any() else None

    def _certificate(self, signs: Array, evidence: dict[str, Any]) -> MonotonicityCertificate:
        """The certificate if the checker's code accepts it. Raises Rejected."""
        prove_monotone(self.graph, self._claim(signs), evidence)
        found = MonotonicityCertificate(self.graph, signs, KIND, self._claim(signs), evidence)
        self.progress(1.0, f"{np.count_nonzero(signs)} signs proved", found)
        return found

    def _counterexample(self, pair: Pair) -> MonotonicityCertificate:
        """Refuted: the pair was confirmed."""
        region = {"signs": self.problem.signs.tolist(), "domain": self.box}
        evidence = {key: [rational_to_text(v) for v in x] for key, x in zip(("first", "second"), pair, strict=True)}
        found = MonotonicityCertificate(
            self.graph, self.problem.signs, "counterexample", {"property": PROPERTY, "region": region}, evidence
        )
        self.progress(1.0, "refuted by a pair of points", found)
        return found
