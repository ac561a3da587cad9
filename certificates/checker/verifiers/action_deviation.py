"""The kind ``action-deviation``, property ``float32_evaluation``: |S_out (f32(x) - f(x))| <= bound for all x in a box or ball.

f is the policy graph over the reals; f32 is any IEEE binary32 evaluation of it, whatever the order of its sums, with x itself
cast to binary32 first. Together with a Lipschitz bound L this says how the *deployed* policy may move:
|f32(x) - f32(y)| <= L |x - y| + 2 bound. The evidence is a split tree of the domain, as for local Lipschitz bounds; on each leaf
the checker bounds the error itself, see :mod:`lipctrl.certificates.checker.rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import Certificate, fields, floats
from lipctrl.certificates.checker.definite import require_ieee_products
from lipctrl.certificates.checker.domain import Domain, read_domain, read_leaves
from lipctrl.certificates.checker.enclosure import Remembered, seeds
from lipctrl.certificates.checker.graph import Graph, GraphError
from lipctrl.certificates.checker.intervals import Array, Interval, UnsafeArithmetic, up
from lipctrl.certificates.checker.rounding import float32_error
from lipctrl.certificates.checker.verdict import Rejected, Verdict, verified
from lipctrl.certificates.checker.verifiers.lipschitz_bound import NORMS, rounded_up, scale_of_norm
from lipctrl.certificates.checker.verifiers.local_lipschitz import where_it_holds
from lipctrl.certificates.checker.work import Work, work_of_graph

KIND = "action-deviation"
PROPERTY = "float32_evaluation"
MAX_LEAVES = 100_000
MAX_WORK = 3_000_000_000  #: units of work, see ``checker/work.py``


@dataclass(frozen=True)
class Deviation:
    """What is to be bounded: a graph on a domain, the norm and scale of its output, the assumed accuracy of activations."""

    graph: Graph
    domain: Domain
    norm: str
    scale: tuple[Fraction, ...]
    activation_ulp: int | None
    remembered: Remembered

    def work(self) -> Work:
        """The work on one leaf: the real graph and its errors, whose real part is evaluated once more."""
        cell, batch, kept = work_of_graph(self.graph, len(self.domain.low))
        return Work(3 * cell, 3 * batch, 2 * kept)

    def errors(self, low: Array, high: Array) -> Array:
        """A bound (B,) on |S_out (f32(x) - f(x))| for boxes (B, n); 0 where a box surely holds no point, NaN where nothing is known."""
        try:
            cells, empty = self.domain.cells(low, high)
            centre, radius = Interval(cells.low, cells.high).centre_radius()
            operand = seeds(iv.point(centre), Interval(cells.low, cells.high), 0, low.shape[1])
            with np.errstate(all="ignore"):
                each = float32_error(self.graph, operand, radius.T[:, :, None], self.activation_ulp, self.remembered)
                sizes = up(np.broadcast_to(each, (len(low), len(self.scale))) * iv.from_fractions(self.scale).high)
                errors = sizes.max(-1) if self.norm == "linf" else _euclidean(sizes)
        except GraphError as error:
            raise Rejected(str(error)) from error
        except OverflowError as error:
            raise Rejected("a number of the network, the domain or output_scale is too large for float64") from error
        return np.where(empty, 0.0, errors)


def _euclidean(sizes: Array) -> Array:
    squares = up(sizes * sizes)
    total = squares.sum(-1) * (1 + 4 * (sizes.shape[-1] + 4) * iv.UNIT)
    length: Array = up(np.sqrt(up(total)))  # a square that underflows is stepped up beyond what it lost
    return length


def read_deviation(graph: Graph, claim: Mapping[str, Any]) -> tuple[Deviation, float]:
    """What a claim is about, and its bound. Raises Rejected."""
    table = fields(claim, ("property", "norm", "output_scale", "bound", "domain", "activation_ulp"), "claim")
    if table["property"] != PROPERTY or table["norm"] not in [*NORMS]:
        raise Rejected(f"claim: expected property {PROPERTY!r} and a norm of {', '.join(NORMS)}")
    if len(graph.input_sizes) != 1 or len(graph.outputs) != 1:
        raise Rejected("a deviation is about a graph with one input and one output")
    ulp = table["activation_ulp"]
    if ulp is not None and not (type(ulp) is int and 0 < ulp <= 1024):
        raise Rejected("activation_ulp must be null or an integer from 1 to 1024")
    (size,), (outputs,) = graph.input_sizes.values(), graph.output_sizes.values()
    domain = read_domain(table["domain"], size, table["norm"], (Fraction(1),) * size)
    scale, bound = scale_of_norm(table["output_scale"], outputs), float(floats([table["bound"]], 1, "bound")[0])
    return Deviation(graph, domain, table["norm"], scale, ulp, Remembered()), bound


def prove_deviation(graph: Graph, claim: Mapping[str, Any], evidence: Mapping[str, Any]) -> float:
    """The claimed bound if the evidence proves it for this graph. Raises Rejected with the reason otherwise."""
    problem, bound = read_deviation(graph, claim)
    table = fields(evidence, ("method", "tree"), "evidence")
    if table["method"] != "cells":
        raise Rejected("evidence: expected method 'cells'")
    if not 0 <= bound < math.inf:
        raise Rejected(f"the bound must be finite and not negative, got {bound!r}")
    try:
        require_ieee_products(256)
    except UnsafeArithmetic as error:
        raise Rejected(str(error)) from error
    leaves = read_leaves(table["tree"], problem.domain, MAX_LEAVES)
    if any(leaf.entry is not None for leaf in leaves):
        raise Rejected("a leaf must be null")
    work = problem.work()
    if not work.cells_at_once or work.total(len(leaves)) > MAX_WORK:
        raise Rejected(f"{len(leaves)} leaves of this network are more work than the checker does")
    for start in range(0, len(leaves), work.cells_at_once):
        part = leaves[start : start + work.cells_at_once]
        errors = problem.errors(np.stack([leaf.low for leaf in part]), np.stack([leaf.high for leaf in part])).tolist()
        for leaf, most in zip(part, errors, strict=True):
            if not most <= bound:
                box = f"{leaf.low.tolist()} .. {leaf.high.tolist()}"
                raise Rejected(f"in the leaf {box} the error is at most {most!r}, which is not proved to be at most {bound!r}")
    return bound


def verify(certificate: Certificate) -> Verdict:
    """Verify an ``action-deviation`` certificate. Raises Rejected with the reason where it proves nothing."""
    if certificate.arithmetic != "float32":
        raise Rejected("a deviation of float32 evaluation is about the policy in float32")
    if certificate.requires:
        raise Rejected(f"a {KIND} certificate rests on no other certificate")
    if set(certificate.subject) != {"policy"}:
        raise Rejected(f"a {KIND} certificate has a policy as its subject and nothing else")
    bound = prove_deviation(certificate.policy, certificate.claim, certificate.evidence)
    problem, _ = read_deviation(certificate.policy, certificate.claim)
    ulp, weighted = problem.activation_ulp, certificate.claim["output_scale"] is not None
    units = "weighted by the claim's output_scale" if weighted else "in the units of the policy's output"
    return verified(
        kind=KIND,
        property=PROPERTY,
        claim=(
            f"evaluated in IEEE binary32, the policy differs from its value over the reals by at most {rounded_up(bound)} "
            f"for all x {where_it_holds(problem.domain)}, in {NORMS[problem.norm]}, {units}"
        ),
        arithmetic=certificate.arithmetic,
        subject=certificate.digests,
        assumptions=() if ulp is None else (f"float32 tanh and sigmoid are accurate to {ulp} units in the last place",),
        numbers={f"evaluation_error_{problem.norm}": bound},
    )
