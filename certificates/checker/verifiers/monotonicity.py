"""The kind ``monotonicity``, property ``monotone``: outputs that never fall, or never rise, when an input rises.

The claim gives a sign s for each output i and input j: f_i(x + t e_j) - f_i(x) has the sign of s (or is 0) for every t >= 0 and x with
both points in the domain, which is a box, or null for all of R^n; where s is 0 nothing is claimed. f is the policy graph over the reals.

Evidence ``signs`` has no numbers: the checker derives the signs of increments everywhere, see :mod:`lipctrl.certificates.checker.signs`.
Evidence ``cells`` is a split tree of the box, and the checker derives the signs in each of its leaves. The segment from x to x + t e_j
lies in the box, since that is a product of intervals; finitely many closed leaves cut it into parts, in each of which f_i
moves in the claimed direction, so it does on the whole segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker.bundle import Certificate, fields
from lipctrl.certificates.checker.definite import require_ieee_products
from lipctrl.certificates.checker.derivatives import is_curved
from lipctrl.certificates.checker.domain import Domain, Leaf, read_domain, read_leaves
from lipctrl.certificates.checker.enclosure import Remembered
from lipctrl.certificates.checker.graph import Graph, GraphError
from lipctrl.certificates.checker.implicit import require_well_posed
from lipctrl.certificates.checker.intervals import Array, UnsafeArithmetic
from lipctrl.certificates.checker.local_slopes import Cells
from lipctrl.certificates.checker.signs import Moves, Notes, signs_everywhere, signs_on_cells
from lipctrl.certificates.checker.sorts import with_comparators
from lipctrl.certificates.checker.verdict import Rejected, Verdict, verified
from lipctrl.certificates.checker.verifiers.local_lipschitz import MAX_CURVED_INPUTS, where_it_holds
from lipctrl.certificates.checker.work import MAX_FLOATS, Work, work_of_graph

KIND = "monotonicity"
PROPERTY = "monotone"
MAX_LEAVES = 100_000
MAX_ENDS = 10_000_000  #: ends of the boxes of all leaves
MAX_WORK = 3_000_000_000  #: units of work, see ``checker/work.py``
_SHOWN_SIGNS = 12  #: a sentence names so many pairs of an output and an input


@dataclass(frozen=True)
class Monotone:
    """What is claimed: ``signs`` (m, n) of 1, -1 and 0 for a graph without sorts, on ``domain`` or everywhere."""

    graph: Graph
    signs: Array
    domain: Domain | None
    remembered: Remembered
    curved: bool = False  #: slopes on cells are enclosed to first order

    def contains(self, x: Sequence[Fraction]) -> bool:
        """Whether a point lies in the domain, exactly."""
        domain = self.domain
        return domain is None or all(low <= v <= high for low, v, high in zip(domain.low, x, domain.high, strict=True))

    def contradicted(self, moves: Moves, inputs: Array) -> Array:
        """Where moves (k, B, m) of outputs when these inputs rise do not rule out the other direction: (k, B, m) booleans."""
        claimed = self.signs.T[inputs][:, None, :]
        against: Array = ((claimed > 0) & moves.down) | ((claimed < 0) & moves.up)
        return against

    def on_cells(self, notes: Notes) -> tuple[Moves, Array]:
        """What the outputs may do on cells, (k, B, m), and on which cells they surely have values. Raises Rejected."""
        try:
            with np.errstate(all="ignore"):
                return signs_on_cells(self.graph, notes, self.curved)
        except OverflowError as error:
            raise Rejected("a number of the network is too large for float64") from error

    def work(self, inputs: int) -> Work:
        """The work on one leaf when this many inputs vary: slopes, forms, and what each signal may do."""
        second = inputs * (inputs + 2) if self.curved else 0
        cell, batch, kept = work_of_graph(self.graph, 2 * inputs + 8 + second)
        return Work(5 * cell, 4 * batch, 3 * kept)


def read_claim(graph: Graph, claim: Mapping[str, Any]) -> Monotone:
    """What a claim is about. Raises Rejected."""
    table = fields(claim, ("property", "signs", "domain"), "claim")
    if table["property"] != PROPERTY:
        raise Rejected(f"claim: expected property {PROPERTY!r}")
    if len(graph.input_sizes) != 1 or len(graph.outputs) != 1:
        raise Rejected("monotonicity is about a graph with one input and one output")
    (size,), (outputs,) = graph.input_sizes.values(), graph.output_sizes.values()
    signs = _read_signs(table["signs"], outputs, size)
    try:
        require_well_posed(graph)
    except GraphError as error:
        raise Rejected(str(error)) from error
    domain = None
    if table["domain"] is not None:
        domain = read_domain(fields(table["domain"], ("low", "high"), "domain"), size, "linf", ())
        still = np.setdiff1d(np.flatnonzero(signs.any(0)), domain.free)
        if len(still):
            raise Rejected(f"input {still[0] + 1} does not vary on the domain, so that a sign for it says nothing")
    problem = Monotone(with_comparators(graph), signs, domain, Remembered())
    if domain is None or len(domain.free) > MAX_CURVED_INPUTS or not is_curved(problem.graph):
        return problem
    curved = replace(problem, curved=True)
    return curved if curved.work(len(domain.free)).cells_at_once else problem


def _read_signs(rows: object, outputs: int, inputs: int) -> Array:
    expected = f"signs must be {outputs} lists of {inputs} numbers 1, -1 or 0, not all of them 0"
    if not isinstance(rows, list) or len(rows) != outputs:
        raise Rejected(expected)
    if not all(isinstance(row, list) and len(row) == inputs and all(type(s) is int and -1 <= s <= 1 for s in row) for row in rows):
        raise Rejected(expected)
    signs = np.array(rows, dtype=np.int8)
    if not signs.any():
        raise Rejected(expected)
    return signs


def prove_monotone(graph: Graph, claim: Mapping[str, Any], evidence: Mapping[str, Any]) -> Monotone:
    """The claim as read if the evidence proves it for this graph. Raises Rejected with the reason otherwise."""
    problem = read_claim(graph, claim)
    try:
        require_ieee_products(256)  # before any weight is looked at: a mode that flushes subnormals changes their signs
    except UnsafeArithmetic as error:
        raise Rejected(str(error)) from error
    method = evidence.get("method")
    if method == "signs":
        fields(evidence, ("method",), "evidence")
        _prove_everywhere(problem)
    elif method == "cells" and problem.domain is not None:
        table = fields(evidence, ("method", "tree"), "evidence")
        _prove_leaves(problem, problem.domain, table["tree"])
    else:
        raise Rejected("evidence: expected method 'signs', or 'cells' where the claim has a domain")
    return problem


def _prove_everywhere(problem: Monotone) -> None:
    inputs = np.arange(problem.signs.shape[1])
    work = problem.work(len(inputs))
    if work.floats > MAX_FLOATS or work.cell + work.batch > MAX_WORK:
        raise Rejected("the signs of this network are more work than the checker does")
    against = problem.contradicted(signs_everywhere(problem.graph), inputs)
    if against.any():
        raise Rejected(_reason(problem, against, inputs, "everywhere"))


def _prove_leaves(problem: Monotone, domain: Domain, tree: object) -> None:
    for leaves, moves, finite in leaf_batches(problem, domain, tree):
        if not finite.all():
            raise Rejected(f"the network is not known to have finite values {_in(leaves[int(np.argmin(finite))])}")
        against = problem.contradicted(moves, domain.free)
        bad = np.flatnonzero(against.any((0, 2)))
        if len(bad):
            raise Rejected(_reason(problem, against[:, bad[:1]], domain.free, _in(leaves[bad[0]])))


def leaf_batches(problem: Monotone, domain: Domain, tree: object) -> Iterator[tuple[list[Leaf], Moves, Array]]:
    """The leaves of a split tree, batch by batch, with what the outputs may do there and whether they surely have finite values.

    Raises Rejected where the tree is malformed, or more work than the checker does.
    """
    leaves = read_leaves(tree, domain, min(MAX_LEAVES, MAX_ENDS // len(domain.low)))
    if any(leaf.entry is not None for leaf in leaves):
        raise Rejected("a leaf must be null")
    work = problem.work(len(domain.free))
    if not work.cells_at_once or work.total(len(leaves)) > MAX_WORK:
        raise Rejected(f"{len(leaves)} leaves of this network are more work than the checker does")
    for start in range(0, len(leaves), work.cells_at_once):
        part = leaves[start : start + work.cells_at_once]
        cells = Cells(np.stack([leaf.low for leaf in part]), np.stack([leaf.high for leaf in part]), domain.free)
        yield part, *problem.on_cells(Notes(cells, problem.remembered))


def _in(leaf: Leaf) -> str:
    return f"in the leaf {leaf.low.tolist()} .. {leaf.high.tolist()}"


def _reason(problem: Monotone, against: Array, inputs: Array, where: str) -> str:
    j, _, i = np.argwhere(against)[0]
    direction = "fall" if problem.signs[i, inputs[j]] > 0 else "rise"
    return f"output {i + 1} is not proved never to {direction} when input {inputs[j] + 1} rises {where}"


def verify(certificate: Certificate) -> Verdict:
    """Verify a ``monotonicity`` certificate. Raises Rejected with the reason where it proves nothing."""
    if certificate.arithmetic != "real":
        raise Rejected("monotonicity is about the real-valued network: rounding may turn small steps around")
    if certificate.requires:
        raise Rejected(f"a {KIND} certificate rests on no other certificate")
    if set(certificate.subject) != {"policy"}:
        raise Rejected(f"a {KIND} certificate has a policy as its subject and nothing else")
    problem = prove_monotone(certificate.policy, certificate.claim, certificate.evidence)
    where = "everywhere" if problem.domain is None else where_it_holds(problem.domain)
    others = " while the other inputs stay as they are" if problem.signs.shape[1] > 1 else ""
    return verified(
        kind=KIND,
        property=PROPERTY,
        claim=f"{signs_in_words(problem.signs)}{others}, {where}",
        arithmetic=certificate.arithmetic,
        subject=certificate.digests,
    )


def signs_in_words(signs: Array) -> str:
    """What signs (m, n) say, such as "output 1 never falls when x1 or x3 rises and never rises when x2 rises"."""
    count = int(np.count_nonzero(signs))
    for sign, verb in ((1, "falls"), (-1, "rises")):
        if signs.size > 1 and bool((signs == sign).all()):
            return f"no output ever {verb} when an input rises"
    if count > _SHOWN_SIGNS:
        return f"outputs never move against the {count} signs that the claim gives to pairs of an output and an input, when an input rises"
    parts = []
    for i, row in enumerate(signs):
        verbs = [(verb, np.flatnonzero(row == sign)) for verb, sign in (("falls", 1), ("rises", -1))]
        phrases = [f"never {verb} when {' or '.join(f'x{j + 1}' for j in which)} rises" for verb, which in verbs if len(which)]
        if phrases:
            parts.append(f"output {i + 1} {' and '.join(phrases)}")
    return ", ".join(parts)
