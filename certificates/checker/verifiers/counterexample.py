"""Kind ``counterexample``: a concrete witness against a property, replayed rigorously. Level: ``falsified``.

The claim names the property that fails and the region it was claimed for:

``forward_invariant``: region ``low``, ``high``, ``P``, ``rho``: S = {y = x - x*: low <= y <= high, y' P y <= rho}; evidence ``state``:
a state x of S whose successor lies outside S.
``asymptotically_stable``: region and evidence empty. The checker shows F(x*) = x* exactly, that F is continuously differentiable around
x*, and that its derivative there has an eigenvalue of modulus above 1; x* is then unstable, whatever the region.
``lipschitz``: region ``norm`` (``l2`` or ``linf``), ``bound``, ``input_scale``, ``output_scale`` (weights of the norms, or null),
evidence ``first`` and ``second``: two inputs of the network whose outputs are further apart than ``bound`` times their distance.
``monotone``: region ``signs`` and ``domain`` as in :mod:`lipctrl.certificates.checker.verifiers.monotonicity`, evidence ``first`` and
``second``: two inputs in the domain of which the second is greater in one coordinate, and where an output moves against its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce
from itertools import pairwise
from math import comb
from typing import Any, NamedTuple

import numpy as np
from flint import arb, arb_mat, ctx

from lipctrl.certificates.checker.balls import PRECISION, BallAlgebra, Balls, ball, evaluate_balls
from lipctrl.certificates.checker.bundle import Certificate, fields, graph_cost, number, numbers
from lipctrl.certificates.checker.closed_loop import closed_loop_evaluate
from lipctrl.certificates.checker.exact import ExactAlgebra, Inexact
from lipctrl.certificates.checker.graph import ELEMENTWISE, Graph, evaluate
from lipctrl.certificates.checker.verdict import Rejected, Verdict, shown, verified
from lipctrl.certificates.checker.verifiers.monotonicity import PROPERTY as MONOTONE
from lipctrl.certificates.checker.verifiers.monotonicity import read_claim

DOUBLINGS = 48  #: J, J^2, J^4, ... are tested up to this power of two
MAX_STATES, MAX_SLOPES, MAX_PRODUCTS = 32, 2_000_000, 100_000_000  #: bounds of the work of differentiation
MAX_BITS = 2200  #: of a numerator or denominator in y' P y: every float64, and differences of two


def verify(certificate: Certificate) -> Verdict:
    """Replay the witness of a counterexample. Raises Rejected where it does not refute the named property."""
    claim = fields(certificate.claim, ("property", "region"), "claim")
    replay = _REPLAYS.get(str(claim["property"]))
    if replay is None:
        raise Rejected(f"no counterexample is known for a property {str(claim['property'])[:40]!r}, only for {sorted(_REPLAYS)}")
    if certificate.arithmetic != "real":
        raise Rejected("counterexamples are about the real-valued network: arithmetic must be 'real'")
    with ctx.workprec(PRECISION):
        sentence = replay(certificate, claim["region"])
    return verified(
        kind=certificate.kind,
        property=claim["property"],
        claim=sentence,
        arithmetic=certificate.arithmetic,
        subject=certificate.digests,
    )


def _point(values: Sequence[Fraction]) -> str:
    return "(" + ", ".join(shown(v) for v in values) + ")"


# --- forward_invariant ------------------------------------------------------------------------------------------------


def _leaves_set(certificate: Certificate, region: object) -> str:
    plant = certificate.plant
    table, n, rest = fields(region, ("low", "high", "P", "rho"), "region"), len(plant.state), plant.equilibrium_state
    low, high = numbers(table["low"], n, "low"), numbers(table["high"], n, "high")
    rows = table["P"] if isinstance(table["P"], list) and len(table["P"]) == n else [None]
    matrix, rho = [numbers(row, n, "P") for row in rows], number(table["rho"], "rho")
    state = numbers(fields(certificate.evidence, ("state",), "evidence")["state"], n, "state")
    y = [x - r for x, r in zip(state, rest, strict=True)]
    if n > MAX_STATES or any(max(v.numerator.bit_length(), v.denominator.bit_length()) > MAX_BITS for row in (*matrix, y) for v in row):
        raise Rejected(f"at most {MAX_STATES} states, and numbers of {MAX_BITS} bits, are multiplied out exactly")
    if not all(lo <= v <= hi for lo, v, hi in zip(low, y, high, strict=True)) or _quadratic(matrix, y) > rho:
        raise Rejected("the witness state is not in the set S")
    successor = closed_loop_evaluate(plant, certificate.policy, [ball(x) for x in state], BallAlgebra())
    moved = [x - ball(r) for x, r in zip(successor, rest, strict=True)]
    outside = any(v < ball(lo) or v > ball(hi) for lo, v, hi in zip(low, moved, high, strict=True))
    if not outside and not _quadratic([[ball(v) for v in row] for row in matrix], moved) > ball(rho):
        raise Rejected("the successor of the witness state was not shown to lie outside S")
    where = f"the sublevel set of level {shown(rho)} within the claim's box"
    return f"{where} is not forward invariant: its state {_point(state)} leaves it in one step"


def _quadratic(matrix: Sequence[Sequence[Any]], x: Sequence[Any]) -> Any:
    return sum(x[i] * matrix[i][j] * x[j] for i in range(len(x)) for j in range(len(x)))


# --- lipschitz --------------------------------------------------------------------------------------------------------


def _stretches(certificate: Certificate, region: object) -> str:
    table, policy = fields(region, ("norm", "bound", "input_scale", "output_scale"), "region"), certificate.policy
    if len(policy.input_sizes) != 1 or len(policy.outputs) != 1 or table["norm"] not in ("l2", "linf"):
        raise Rejected("a Lipschitz counterexample needs a network with one input and one output, and the norm 'l2' or 'linf'")
    (name, size), bound = *policy.input_sizes.items(), number(table["bound"], "bound")
    evidence = fields(certificate.evidence, ("first", "second"), "evidence")
    pair = [[ball(v) for v in numbers(evidence[key], size, key)] for key in ("first", "second")]
    images = [next(iter(evaluate_balls(policy, {name: x}).values())) for x in pair]
    before = _distance(pair[0], pair[1], table["input_scale"], table["norm"])
    after = _distance(images[0], images[1], table["output_scale"], table["norm"])
    if not after > ball(bound) * before:
        raise Rejected("the two outputs were not shown to be further apart than the bound allows")
    what = f"a Lipschitz constant of the network in the {table['norm']} norm"
    return f"{shown(bound, 'down')} is not {what}: two inputs are stretched by more"


def _distance(a: Balls, b: Balls, scale: object, norm: str) -> arb:
    weights = [Fraction(1)] * len(a) if scale is None else numbers(scale, len(a), "scale")
    if not all(w > 0 for w in weights):
        raise Rejected("a scale of the norm is not positive")
    parts = [ball(w) * abs(x - y) for w, x, y in zip(weights, a, b, strict=True)]
    if norm == "l2":
        return sum((v * v for v in parts), arb(0)).sqrt()
    return reduce(arb.max, parts)


# --- monotone ---------------------------------------------------------------------------------------------------------


def _moves_against(certificate: Certificate, region: object) -> str:
    problem = read_claim(certificate.policy, {"property": MONOTONE, **fields(region, ("signs", "domain"), "region")})
    (name, size), evidence = *certificate.policy.input_sizes.items(), fields(certificate.evidence, ("first", "second"), "evidence")
    first, second = (numbers(evidence[key], size, key) for key in ("first", "second"))
    moved = [j for j in range(size) if first[j] != second[j]]
    if len(moved) != 1 or not first[moved[0]] < second[moved[0]]:
        raise Rejected("the second input of the witness must be greater than the first in one coordinate, and equal in all others")
    if not (problem.contains(first) and problem.contains(second)):
        raise Rejected("an input of the witness is not in the domain")
    before, after = (next(iter(evaluate_balls(certificate.policy, {name: [ball(v) for v in x]}).values())) for x in (first, second))
    for i, sign in enumerate(problem.signs[:, moved[0]].tolist()):
        if sign * (after[i] - before[i]) < 0:
            direction = "falls" if sign > 0 else "rises"
            what = f"output {i + 1} {direction} when x{moved[0] + 1} rises"
            return f"the network is not monotone as claimed: {what}, from where x is {_point(first)}"
    raise Rejected("no output was shown to move against its sign")


# --- asymptotically_stable --------------------------------------------------------------------------------------------


def _is_unstable(certificate: Certificate, region: object) -> str:
    fields(region, (), "region")
    fields(certificate.evidence, (), "evidence")
    plant, policy = certificate.plant, certificate.policy
    try:
        rest = closed_loop_evaluate(plant, policy, plant.equilibrium_state, ExactAlgebra())
    except Inexact as error:
        raise Rejected(f"F(x*) = x* was not shown exactly: {error}") from error
    if rest != plant.equilibrium_state:
        raise Rejected("F(x*) differs from x*")
    n = len(rest)
    costs = [graph_cost(graph) for graph in (plant.observe, policy, plant.dynamics)]
    if n > MAX_STATES or sum(values for values, _ in costs) * n > MAX_SLOPES or sum(products for _, products in costs) * n > MAX_PRODUCTS:
        raise Rejected("the closed loop is too large to differentiate")
    identity = [[arb(int(i == j)) for j in range(n)] for i in range(n)]
    state = Jet([ball(v) for v in rest], identity)
    power = arb_mat(closed_loop_evaluate(plant, policy, state, _Derivatives(n)).slopes)
    for _ in range(DOUBLINGS):
        # A monic polynomial of degree n whose roots have modulus <= 1 has coefficients of modulus <= (n choose i).
        if any(abs(c) > comb(n, i) for i, c in enumerate(power.charpoly())):
            return f"the equilibrium {_point(rest)} of the closed loop is unstable: the linearisation has an eigenvalue of modulus above 1"
        power = power * power
    raise Rejected("no eigenvalue of modulus above 1 was found")


class Jet(NamedTuple):
    """Values at a point, one ball per coordinate, and their partial derivatives there, one row per coordinate."""

    values: Balls
    slopes: list[Balls]


def _away(x: arb, kink: arb) -> arb:
    """The operand, known to lie on one side of a kink. Raises Rejected where it may touch it."""
    if not x != kink:
        raise Rejected("F was not shown to be differentiable at x*: an operand lies on a kink")
    return x


def _step(x: arb) -> arb:
    return arb(int(_away(x, arb(0)) > 0))


def _sigmoid(x: arb) -> arb:
    return (1 + (x / 2).tanh()) / 2


def _sigmoid_slope(x: arb) -> arb:
    return _sigmoid(x) * _sigmoid(-x)


def _normal_density(x: arb) -> arb:
    return (-x * x / 2).exp() / (2 * arb.pi()).sqrt()


_SLOPES: dict[str, Callable[[arb], arb]] = {
    "neg": lambda x: arb(-1),
    "abs": lambda x: 2 * _step(x) - 1,
    "sin": arb.cos,
    "cos": lambda x: -x.sin(),
    "tan": lambda x: 1 + x.tan() * x.tan(),
    "exp": arb.exp,
    "log": lambda x: 1 / x,
    "sqrt": lambda x: 1 / (2 * x.sqrt()),
    "erf": lambda x: 2 * (-x * x).exp() / arb.pi().sqrt(),
    "tanh": lambda x: 1 - x.tanh() * x.tanh(),
    "sigmoid": _sigmoid_slope,
    "softplus": _sigmoid,
    "relu": _step,
    "gelu": lambda x: (1 + (x / arb(2).sqrt()).erf()) / 2 + x * _normal_density(x),
    "silu": lambda x: _sigmoid(x) + x * _sigmoid_slope(x),
}


def _repeated(a: Jet, b: Jet) -> tuple[Jet, Jet]:
    n = max(len(a.values), len(b.values))
    return _times(a, n // len(a.values)), _times(b, n // len(b.values))


def _times(x: Jet, count: int) -> Jet:
    return Jet(x.values * count, x.slopes * count)


class _Derivatives:
    """Forward differentiation in ball arithmetic of the operations of a Graph, at points where all of them are smooth."""

    def __init__(self, seeds: int) -> None:
        self._seeds = seeds
        self._balls = BallAlgebra()

    def __getattr__(self, op: str) -> Callable[[Jet], Jet]:
        if op not in ELEMENTWISE:
            raise AttributeError(op)
        return lambda x: self._scaled(getattr(self._balls, op)(x.values), [(x, [_SLOPES[op](v) for v in x.values])])

    def _scaled(self, values: Balls, terms: list[tuple[Jet, Balls]]) -> Jet:
        """The chain rule: the slopes of each operand times its partial derivatives, added up. All must be finite."""
        slopes = [
            [sum((factors[i] * x.slopes[i][j] for x, factors in terms), arb(0)) for j in range(self._seeds)] for i in range(len(values))
        ]
        if not all(v.is_finite() for row in [values, *slopes] for v in row):
            raise Rejected("F was not shown to be differentiable at x*: a value or slope is not finite")
        return Jet(values, slopes)

    def constant(self, values: tuple[Fraction, ...]) -> Jet:
        return Jet(self._balls.constant(values), [[arb(0)] * self._seeds for _ in values])

    def add(self, a: Jet, b: Jet) -> Jet:
        a, b = _repeated(a, b)
        ones = [arb(1)] * len(a.values)
        return self._scaled(self._balls.add(a.values, b.values), [(a, ones), (b, ones)])

    def sub(self, a: Jet, b: Jet) -> Jet:
        return self.add(a, self.neg(b))

    def mul(self, a: Jet, b: Jet) -> Jet:
        a, b = _repeated(a, b)
        return self._scaled(self._balls.mul(a.values, b.values), [(a, b.values), (b, a.values)])

    def div(self, a: Jet, b: Jet) -> Jet:
        a, b = _repeated(a, b)
        quotients = self._balls.div(a.values, b.values)
        return self._scaled(quotients, [(a, [1 / v for v in b.values]), (b, [-q / v for q, v in zip(quotients, b.values, strict=True)])])

    def max(self, a: Jet, b: Jet) -> Jet:
        a, b = _repeated(a, b)
        first = [arb(int(_away(x, y) > y)) for x, y in zip(a.values, b.values, strict=True)]
        return self._scaled(self._balls.max(a.values, b.values), [(a, first), (b, [1 - v for v in first])])

    def min(self, a: Jet, b: Jet) -> Jet:
        return self.neg(self.max(self.neg(a), self.neg(b)))

    def power(self, x: Jet, exponent: int) -> Jet:
        lower = self._balls.power(x.values, max(exponent - 1, 0))
        return self._scaled(self._balls.power(x.values, exponent), [(x, [exponent * v for v in lower])])

    def leaky_relu(self, x: Jet, slope: Fraction) -> Jet:
        slopes = [ball(slope) + (1 - ball(slope)) * _step(v) for v in x.values]
        return self._scaled(self._balls.leaky_relu(x.values, slope), [(x, slopes)])

    def clip(self, x: Jet, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Jet:
        return self.min(self.max(x, self.constant(low)), self.constant(high))

    def select(self, x: Jet, indices: tuple[int, ...]) -> Jet:
        return Jet([x.values[i] for i in indices], [x.slopes[i] for i in indices])

    def concatenate(self, *parts: Jet) -> Jet:
        return Jet([v for part in parts for v in part.values], [row for part in parts for row in part.slopes])

    def group_sort(self, x: Jet, group_size: int) -> Jet:
        order: list[int] = []
        for start in range(0, len(x.values), group_size):
            group = sorted(range(start, min(start + group_size, len(x.values))), key=lambda i: float(x.values[i].mid()))
            for i, j in pairwise(group):
                if not x.values[i] < x.values[j]:
                    raise Rejected("F was not shown to be differentiable at x*: an operand lies on a kink")
            order += group
        return self.select(x, tuple(order))

    def affine(self, x: Jet, weight: np.ndarray, bias: np.ndarray | None) -> Jet:
        columns = [self._balls.affine([row[j] for row in x.slopes], weight, None) for j in range(self._seeds)]
        return Jet(self._balls.affine(x.values, weight, bias), [list(row) for row in zip(*columns, strict=True)])

    def implicit(self, x: Jet, weight: np.ndarray, metric: np.ndarray, activation: str) -> Jet:
        raise Rejected("F was not shown to be differentiable at x*: derivatives of implicit layers are not offered")

    def recentre(self, x: Jet, graph: Graph, point: tuple[Fraction, ...], offset: np.ndarray) -> Jet:
        (name,), (output,) = graph.input_sizes, graph.outputs
        there = evaluate(graph, {name: self._balls.constant(point)}, self._balls)[output]
        here: Jet = evaluate(graph, {name: x}, self)[output]
        return Jet(self._balls.sub(here.values, there), here.slopes)


_REPLAYS: dict[str, Callable[[Certificate, object], str]] = {
    "asymptotically_stable": _is_unstable,
    "forward_invariant": _leaves_set,
    "lipschitz": _stretches,
    MONOTONE: _moves_against,
}
