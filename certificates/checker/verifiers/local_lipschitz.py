"""Claims of the kind ``lipschitz-bound`` about a domain: |S_out (f(x) - f(y))| <= bound |S_in (x - y)| for all x and y in a box or ball.

The evidence is a binary split tree of the domain and, for each of its leaves, a proof about any two points of that leaf. The
leaves cover the domain, which is convex, and f moves at no more than the bound between two points of the same leaf. Then it does
between any two points of the domain, also where leaves are bent because the tree splits by units: values are continuous and
halves keep the threshold, so leaves are closed. Walk along the segment from x to y. Go from x to the last point of it in x's leaf
at once; just behind that point are points of other leaves, of which there are finitely many, so it is in another leaf as well.
Go on from there in the same way. No leaf comes twice, so the walk ends at y, and no step was steeper than the bound.

A leaf without a proof of its own rests on the slopes that the checker encloses there: f(x) - f(y) = A (x - y) with A in an
interval matrix. A leaf with a proof takes those slopes of the single activations into the network form; the proof is then
evidence of the global kind, see :mod:`lipctrl.certificates.checker.verifiers.lipschitz_bound`. In leaves that are cut by units the
file may help the checker to narrower ranges, see :mod:`lipctrl.certificates.checker.unit_splits`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import Certificate, fields, floats, graph_cost
from lipctrl.certificates.checker.curved import Curved, all_entries, curved_slopes
from lipctrl.certificates.checker.definite import MAX_BALL_ORDER, OutOfRange, require_ieee_products
from lipctrl.certificates.checker.derivatives import is_curved
from lipctrl.certificates.checker.domain import Domain, Leaf, read_domain, read_leaves
from lipctrl.certificates.checker.enclosure import Remembered
from lipctrl.certificates.checker.expansion import expanded_gain, order_of, record
from lipctrl.certificates.checker.graph import Graph, GraphError
from lipctrl.certificates.checker.increments import Unrolled
from lipctrl.certificates.checker.intervals import Array, Interval, UnsafeArithmetic
from lipctrl.certificates.checker.jacobian import (
    Family,
    family_gains,
    family_row_sums,
    gain_is_at_most,
    quick_gains,
    row_gains,
    scaled,
)
from lipctrl.certificates.checker.local_slopes import LocalSlopes, local_slopes
from lipctrl.certificates.checker.network import Affine, Network, Place, read_network
from lipctrl.certificates.checker.products import products_of_norms
from lipctrl.certificates.checker.slopes import enclose
from lipctrl.certificates.checker.sorts import without_sorts
from lipctrl.certificates.checker.unit_splits import MAX_SYMBOLS, Pass, read_passes, slopes_in_leaf
from lipctrl.certificates.checker.verdict import Rejected, Verdict, shown, verified
from lipctrl.certificates.checker.verifiers.lipschitz_bound import (
    KIND,
    NORMS,
    effective_scales,
    norm_in_words,
    prove_network,
    rounded_up,
    scale_of_norm,
)
from lipctrl.certificates.checker.work import Work, work_of_graph

PROPERTY = "local_lipschitz"
EXPANSION = "expansion"  #: the method of a leaf's proof that needs no numbers
MAX_LEAVES = 200_000
MAX_ENDS = 10_000_000  #: ends of the boxes of all leaves
MAX_PROOFS = 4096  #: leaves with a proof of their own
MAX_WORK = 3_000_000_000  #: units of work on the slopes of leaves, see ``checker/work.py``
MAX_PRODUCTS = 1e12  #: multiplications for the proofs of leaves
PER_VALUE = 5e4  #: multiplications in the time that the exact slopes of one value take
MAX_CURVED_INPUTS, MAX_CURVED_WORK = 64, 10**8  #: that vary, and on one leaf, for slopes by polynomials
PER_FACTOR = 100  #: units of work, beside one for each input, that one factor of a range takes
PER_FORM = 12  #: units of work for each coordinate of the form of an end
PER_HALF_LINE = 2500  #: units of work, beside one for each coordinate, that a half-line takes in a pass
_SHOWN_INPUTS = 6  #: a sentence names the ends of a domain with so many inputs

Vector = tuple[Fraction, ...]


@dataclass(frozen=True)
class Problem:
    """What is to be bounded: a graph without sorts, on a domain, in weighted norms."""

    graph: Graph
    domain: Domain
    norm: str
    scale_in: Vector
    scale_out: Vector
    remembered: Remembered
    curved: bool = False  #: slopes are enclosed by polynomials

    def slopes(self, low: Array, high: Array) -> tuple[LocalSlopes, Array]:
        """Slopes on boxes (B, n) of the domain, and which of them surely hold no point of it. Raises Rejected."""
        with _rejecting():
            cells, empty = self.domain.cells(low, high)
            enclose_slopes = curved_slopes if self.curved else local_slopes
            return enclose_slopes(self.graph, cells, self.remembered), empty

    def slopes_in_leaf(self, leaf: Leaf, passes: Sequence[Pass], symbols: int = 0) -> LocalSlopes | None:
        """Slopes on a leaf by passes with so many symbols, or ``None`` where it surely holds no point of the domain. Raises Rejected."""
        with _rejecting():
            cells, empty = self.domain.cells(leaf.low[None], leaf.high[None])
            return None if empty[0] else slopes_in_leaf(self.graph, cells, leaf.half_lines, passes, self.remembered, symbols)

    def expanded(self, low: Array, high: Array) -> float:
        """A bound on one box (n,) by :mod:`lipctrl.certificates.checker.expansion`; no number where there is none. Raises Rejected."""
        with _rejecting():
            cells, empty = self.domain.cells(low[None], high[None])
            if empty[0] or not len(self.domain.free):
                return 0.0
            found, errors = record(self.graph, cells, self.remembered)
            family = self.family(found, 1)
            if family is None or errors is None:
                return math.nan
            return expanded_gain(family, errors, *self._scales(), self.norm == "l2")

    def matrices(self, found: LocalSlopes, batch: int) -> Interval:
        """The scaled interval matrices (B, n_out, k) of the whole graph."""
        slope = found.output.slope
        return self._scaled(iv.point(np.zeros((1, 1, 1))) if slope is None else slope, batch)

    def family(self, found: LocalSlopes, batch: int) -> Family | None:
        """The same as polynomials in the inputs, where these are known."""
        model = found.output.model if isinstance(found.output, Curved) else None
        if model is None or found.spread is None:
            return None
        error = self._scaled(Interval(-model.play, model.play), batch).high
        parts, k = model.bend and self._scaled(model.bend, batch), len(self.domain.free)
        curves = model.twist and self._scaled(all_entries(model.twist, k), batch)
        return Family(self._scaled(model.linear, batch), parts, error, found.spread, curves)

    def _scaled(self, slope: Interval, batch: int) -> Interval:
        """Scaled matrices (..., B, n_out, k) from slopes (..., k, B, n_out)."""
        front, shape = slope.low.shape[:-3], (len(self.domain.free), batch, len(self.scale_out))
        ends = (np.moveaxis(np.broadcast_to(end, (*front, *shape)), -3, 0) for end in (slope.low, slope.high))
        flat = scaled(Interval(*(end.reshape(shape[0], -1, shape[2]) for end in ends)), *self._scales())
        return Interval(*(end.reshape(*front, batch, shape[2], shape[0]) for end in (flat.low, flat.high)))

    def _scales(self) -> tuple[Interval, Interval]:
        return iv.from_fractions(tuple(self.scale_in[i] for i in self.domain.free)), iv.from_fractions(self.scale_out)

    def gains(self, found: LocalSlopes, batch: int) -> Array:
        """Bounds (B,) on cells by their slopes alone, quickly; polynomials are looked at where they are known."""
        with np.errstate(all="ignore"):
            matrices, family = self.matrices(found, batch), self.family(found, batch)
            gains = (quick_gains if self.norm == "l2" else row_gains)(matrices)
            if family is not None:
                others = family_gains(family) if self.norm == "l2" else family_row_sums(family, matrices).max(-1)
                gains = np.where(others < gains, others, gains)
        return gains

    def network(self, found: LocalSlopes, index: int) -> Network:
        """The network form on one cell, with the slopes of its activations there."""
        narrow: dict[Place, Interval] = {}
        for place, slopes in found.nodes.items():
            row = index if len(slopes.low) > 1 else 0
            narrow[place] = Interval(slopes.low[row], slopes.high[row])
        moves = np.zeros(len(self.domain.low))
        moves[self.domain.free] = 1.0
        (entry,) = (i for i, node in enumerate(self.graph.nodes) if node.op == "input")
        narrow[entry] = iv.point(moves)
        return read_network(self.graph, narrow)

    def prove(self, network: Network, bound: float, proof: Mapping[str, Any], unrolled: dict[str, Unrolled]) -> None:
        """Return if the proof holds for this form. Raises Rejected, OutOfRange or UnsafeArithmetic."""
        with np.errstate(all="ignore"):
            prove_network(network, self.norm, *effective_scales(network, self.scale_in, self.scale_out), bound, proof, unrolled)

    def expansion_products(self) -> float:
        """About how many multiplications the expansion of a leaf takes."""
        k, (values, weights) = len(self.domain.free), graph_cost(self.graph)
        entries = math.comb(k + 2, 3) if order_of(self.graph, k) == 3 else 0
        each = PER_VALUE + 500.0 * k**2 + 2.0 * k**3 + 100.0 * entries + 2.0 * len(self.scale_out) ** 2
        return values * each + (10.0 * k**2 + entries) * weights

    def work(self, symbols: int = 0) -> Work:
        """The work on one leaf without a proof of its own, or of a pass with so many symbols."""
        k, m = len(self.domain.free), len(self.scale_out)
        second = k * (k + 2) if self.curved else 0
        cell, batch, floats_kept = work_of_graph(self.graph, 2 * k + 8 + second + symbols)
        careful = 0 if min(k, m) == 1 or self.norm == "linf" else 30_000 + 4 * (min(k, m) ** 3 + k * m * min(k, m)) // 100
        turned, bases = (2000 + second * m * (40 + (k + m) // 4) + m**3 // 100, 4 * m * m) if self.curved else (0, 0)
        floats_kept = 2 * floats_kept + (12 + second) * k * m + bases
        return Work(3 * cell + 20 * k * m + careful + turned, (3 + self.curved) * batch, floats_kept)


@contextmanager
def _rejecting() -> Iterator[None]:
    """Numbers that overflow are refused later on; what cannot be evaluated is refused at once."""
    try:
        with np.errstate(all="ignore"):
            yield
    except GraphError as error:
        raise Rejected(str(error)) from error
    except OverflowError as error:
        raise Rejected("a number of the network or the domain is too large for float64") from error


def read_problem(graph: Graph, claim: Mapping[str, Any]) -> tuple[Problem, float]:
    """What a claim about a domain is about, and its bound. Raises Rejected."""
    table = fields(claim, ("property", "norm", "input_scale", "output_scale", "bound", "domain"), "claim")
    if table["property"] != PROPERTY or table["norm"] not in [*NORMS]:
        raise Rejected(f"claim: expected property {PROPERTY!r} and a norm of {', '.join(NORMS)}")
    if len(graph.input_sizes) != 1 or len(graph.outputs) != 1:
        raise Rejected("a Lipschitz bound is about a graph with one input and one output")
    (size,), (outputs,) = graph.input_sizes.values(), graph.output_sizes.values()
    scale_in, scale_out = scale_of_norm(table["input_scale"], size), scale_of_norm(table["output_scale"], outputs)
    for scale in (scale_in, scale_out):
        enclose([*scale], [*scale])  # refuses what is beyond float64
    domain = read_domain(table["domain"], size, table["norm"], scale_in)
    bound = float(floats([table["bound"]], 1, "bound")[0])
    problem = Problem(without_sorts(graph), domain, table["norm"], scale_in, scale_out, Remembered())
    curved = replace(problem, curved=is_curved(problem.graph))
    small = len(domain.free) <= MAX_CURVED_INPUTS and curved.work().cell <= MAX_CURVED_WORK and curved.work().cells_at_once
    return curved if small else problem, bound


def prove_local(graph: Graph, claim: Mapping[str, Any], evidence: Mapping[str, Any]) -> float:
    """The claimed bound if the evidence proves it for this graph on the claim's domain. Raises Rejected with the reason otherwise."""
    problem, bound = read_problem(graph, claim)
    table = fields(evidence, ("method", "tree", "proofs"), "evidence")
    if table["method"] != "cells" or not isinstance(table["proofs"], list) or len(table["proofs"]) > MAX_PROOFS:
        raise Rejected(f"evidence: expected method 'cells' and a list of at most {MAX_PROOFS} proofs")
    if not 0 <= bound < math.inf:
        raise Rejected(f"the bound must be finite and not negative, got {bound!r}")
    try:
        require_ieee_products(256)
        leaves = read_leaves(table["tree"], problem.domain, min(MAX_LEAVES, MAX_ENDS // len(problem.domain.low)), problem.graph)
        work = problem.work()
        if not work.cells_at_once or work.total(len(leaves)) > MAX_WORK:
            raise Rejected(f"{len(leaves)} leaves of this network are more work than the checker does")
        if len(problem.domain.free):
            _prove_plain(problem, bound, [leaf for leaf in leaves if leaf.entry is None and not leaf.half_lines])
            _prove_others(problem, bound, [leaf for leaf in leaves if leaf.entry is not None or leaf.half_lines], table["proofs"])
    except (UnsafeArithmetic, OutOfRange) as error:
        raise Rejected(str(error)) from error
    return bound


def verify_local(certificate: Certificate) -> Verdict:
    """The verdict on a claim about a domain. Raises Rejected with the reason where it proves nothing."""
    claim = certificate.claim
    bound = prove_local(certificate.policy, claim, certificate.evidence)
    problem, _ = read_problem(certificate.policy, claim)
    name = PROPERTY if problem.norm == "l2" else f"{PROPERTY}_{problem.norm}"
    where = where_it_holds(problem.domain)
    return verified(
        kind=KIND,
        property=PROPERTY,
        claim=f"|f(x) - f(y)| <= {rounded_up(bound)} |x - y| for all x and y {where}, in {norm_in_words(claim)}",
        arithmetic=certificate.arithmetic,
        subject=certificate.digests,
        numbers={name: bound},
    )


def _prove_plain(problem: Problem, bound: float, leaves: list[Leaf]) -> None:
    """Boxes that rest on enclosed slopes alone."""
    at_once = problem.work().cells_at_once
    for start in range(0, len(leaves), at_once):
        part = leaves[start : start + at_once]
        found, empty = problem.slopes(np.stack([leaf.low for leaf in part]), np.stack([leaf.high for leaf in part]))
        _prove_slopes(problem, bound, part, found, empty)


def _prove_slopes(problem: Problem, bound: float, leaves: list[Leaf], found: LocalSlopes, empty: Array) -> None:
    gains = problem.gains(found, len(leaves))
    with np.errstate(all="ignore"):
        matrices = problem.matrices(found, len(leaves))
    for index in np.flatnonzero(~(empty | (gains <= bound))):
        if problem.norm != "l2" or not gain_is_at_most(Interval(matrices.low[index], matrices.high[index]), bound):
            box = f"{leaves[index].low.tolist()} .. {leaves[index].high.tolist()}"
            raise Rejected(f"the slopes in the leaf {box} are not proved to allow {bound!r} at most")


def _prove_others(problem: Problem, bound: float, leaves: list[Leaf], proofs: list[Any]) -> None:
    """Leaves with a proof of their own, or judged by passes."""
    entries = [_read_entry(leaf, problem.graph, proofs) for leaf in leaves]
    if (count := sum(entry.proof is not None for entry in entries)) > MAX_PROOFS:
        raise Rejected(f"{count} leaves have proofs of their own, at most {MAX_PROOFS} are accepted")
    work = sum(work_of_passes(problem, len(leaf.half_lines), e.passes, e.symbols) for leaf, e in zip(leaves, entries, strict=True))
    if not work <= MAX_WORK:
        raise Rejected(f"the ranges in {len(leaves)} leaves are more work than the checker does")
    products, values = 0.0, graph_cost(problem.graph)[0]
    for leaf, entry in zip(leaves, entries, strict=True):
        proof = None if entry.proof is None else proofs[entry.proof]
        if proof is not None and proof.get("method") == EXPANSION:
            products += problem.expansion_products()
            _prove_expansion(problem, bound, leaf, proof, products)
            continue
        if entry.passes:
            found = problem.slopes_in_leaf(leaf, entry.passes, entry.symbols)
        else:
            slopes, empty = problem.slopes(leaf.low[None], leaf.high[None])
            found = None if empty[0] else slopes
        if found is None:
            continue
        if proof is None:
            _prove_slopes(problem, bound, [leaf], found, np.zeros(1, dtype=bool))
            continue
        network, unrolled = problem.network(found, 0), dict[str, Unrolled]()
        products += products_of(network, problem.norm, proof.get("method") == "windows") + values * PER_VALUE
        if not products <= MAX_PRODUCTS:
            raise Rejected("the proofs of the leaves are more work than the checker does")
        problem.prove(network, bound, proof, unrolled)
        if "balls" in unrolled:  # which is rare, so that it counts for the leaves that follow
            products += products_of(network, problem.norm, True)


def _prove_expansion(problem: Problem, bound: float, leaf: Leaf, proof: dict[str, Any], products: float) -> None:
    fields(proof, ("method",), "proof")
    if type(leaf.entry) is not int or leaf.half_lines or not problem.curved:
        raise Rejected("an expansion is for whole boxes, and for smooth networks of few inputs")
    if not products <= MAX_PRODUCTS:
        raise Rejected("the proofs of the leaves are more work than the checker does")
    if not problem.expanded(leaf.low, leaf.high) <= bound:
        raise Rejected(f"the expansion in the leaf {leaf.low.tolist()} .. {leaf.high.tolist()} does not prove {bound!r}")


@dataclass(frozen=True)
class _Entry:
    """What a file says about a leaf: the index of a proof, and how its slopes are found; without passes on its box alone."""

    proof: int | None
    passes: list[Pass]
    symbols: int = 0


def _read_entry(leaf: Leaf, graph: Graph, proofs: list[Any]) -> _Entry:
    """In a leaf that is cut by units there is one pass where the file gives none."""
    if isinstance(leaf.entry, dict):
        table = fields(leaf.entry, ("ranges", "proof"), "leaf", ("symbols",))
        symbols = table.get("symbols", 0)
        if type(symbols) is not int or not 0 <= symbols <= MAX_SYMBOLS:
            raise Rejected(f"the symbols of a leaf must be an integer from 0 to {MAX_SYMBOLS}")
        entry = _Entry(table["proof"], read_passes(table["ranges"], graph, len(leaf.half_lines)), symbols)
    else:
        entry = _Entry(leaf.entry, [Pass()] if leaf.half_lines else [])
    proof = entry.proof
    if proof is not None and not (type(proof) is int and 0 <= proof < len(proofs) and isinstance(proofs[proof], dict)):
        raise Rejected("a leaf must be null or the index of a proof, or a table of ranges and proof")
    return entry


def work_of_passes(problem: Problem, half_lines: int, passes: Sequence[Pass], symbols: int) -> int:
    """The work of passes over a leaf with so many half-lines, beside one on a whole cell.

    Raises Rejected where numbers for so many symbols take too much room.
    """
    work, coordinates = problem.work(symbols), len(problem.domain.free) + symbols
    ends = [ends for found in passes for ends in found.values()]
    factors, forms = sum(e.factors.size + len(e.index) for e in ends), sum(len(e.index) for e in ends)
    if passes and not work.cells_at_once:
        raise Rejected(f"{symbols} symbols are more than this network leaves room for")
    each = work.cell + work.batch + half_lines * (PER_HALF_LINE + coordinates)
    return len(passes) * each + factors * (PER_FACTOR + coordinates) + forms * PER_FORM * coordinates


def products_of(network: Network, norm: str, in_balls: bool) -> float:
    """About how many multiplications the proof of a leaf takes, or may take in ball arithmetic, which is a hundred times slower."""
    order = float(sum(network.variables))
    weights = sum(signal.weight.size for signal in network.signals if isinstance(signal, Affine))
    matrices, squares = (network.outputs, 1) if norm == "linf" else (1, network.outputs)
    form = matrices * order**2 * (order + squares) + weights * order
    return (300 if in_balls and order <= MAX_BALL_ORDER else 3) * form + 30 * products_of_norms(network)


def where_it_holds(domain: Domain) -> str:
    """The domain in words; what is rounded is rounded inwards."""
    names, what = [f"x{i + 1}" for i in range(len(domain.low))], "box" if domain.centre is None else "ball"
    if len(names) > _SHOWN_INPUTS:
        return f"in the {what} of {len(names)} inputs that the claim names"
    if domain.centre is not None:
        middle = ", ".join(shown(c) for c in domain.centre)
        return f"in the ball of radius {shown(domain.radius, 'down')} around the claim's centre, about ({middle})"
    ends = [(shown(low, "up"), shown(high, "down")) for low, high in zip(domain.low, domain.high, strict=True)]
    if not all(Fraction(low) <= Fraction(high) for low, high in ends):
        return "in the box that the claim names, which is too thin to be written here"
    return "in the box " + ", ".join(f"{low} <= {name} <= {high}" for (low, high), name in zip(ends, names, strict=True))
