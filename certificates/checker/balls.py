"""Ball arithmetic (arb) evaluation of a Graph: every output ball holds the true value at every point of the input balls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from flint import arb, arb_mat, ctx, fmpq

from lipctrl.certificates.checker.graph import Graph, evaluate
from lipctrl.certificates.checker.implicit import ImplicitLayer

PRECISION = 192  #: bits
REFINEMENTS, SWEEPS = 3, 2  #: Newton steps for an implicit layer's solution, about 50 bits each; then intersections with phi(D z + v)

Balls = list[arb]


def ball(value: Fraction | float) -> arb:
    """The ball of a rational (as small as the precision in force allows) or of a float (exact)."""
    return arb(fmpq(value.numerator, value.denominator)) if isinstance(value, Fraction) else arb(value)


def evaluate_balls(graph: Graph, inputs: Mapping[str, Sequence[arb]], precision: int = PRECISION) -> dict[str, Balls]:
    """Outputs of the graph over input balls, by name. Values outside an operation's domain are not finite: callers refuse them.

    Raises ValueError where an input is missing or has the wrong length.
    """
    sizes = graph.input_sizes
    if {name: len(value) for name, value in inputs.items()} != sizes:
        raise ValueError(f"inputs must have the names and lengths {sizes}")
    with ctx.workprec(precision):
        return evaluate(graph, {name: list(value) for name, value in inputs.items()}, BallAlgebra())


def _pairs(a: Balls, b: Balls) -> zip[tuple[arb, arb]]:
    n = max(len(a), len(b))
    return zip(a * (n // len(a)), b * (n // len(b)), strict=True)


def _ranked(group: Balls) -> Balls:
    """The k-th smallest value lies between the k-th smallest lower end and the k-th smallest upper end."""
    if not all(v.is_finite() for v in group):
        return [arb.nan()] * len(group)
    return [low.union(high) for low, high in zip(sorted(v.lower() for v in group), sorted(v.upper() for v in group), strict=True)]


def _increasing(function: Callable[[arb], arb], x: arb) -> arb:
    """An increasing function: wide balls by their ends, where arb's own answer is loose or not a number."""
    return function(x) if x.rad() < 1 else function(x.lower()).union(function(x.upper()))


def _tanh(x: arb) -> arb:
    return _increasing(arb.tanh, x)


def _power(x: arb, exponent: int) -> arb:
    """Repeated squaring: arb's own power is not a number on balls around 0."""
    base, result = x, 1 + 0 * x  # not a number stays not a number, also to the power 0
    while exponent:
        result, base, exponent = result * base if exponent & 1 else result, base * base, exponent >> 1
    return result


def _middles(values: Balls) -> np.ndarray:
    return np.array([float(v.mid()) for v in values])


class BallAlgebra:
    """The operations of a Graph on lists of balls, at the precision in force."""

    def constant(self, values: tuple[Fraction, ...]) -> Balls:
        return [ball(v) for v in values]

    def neg(self, x: Balls) -> Balls:
        return [-v for v in x]

    def abs(self, x: Balls) -> Balls:
        return [abs(v) for v in x]

    def add(self, a: Balls, b: Balls) -> Balls:
        return [x + y for x, y in _pairs(a, b)]

    def sub(self, a: Balls, b: Balls) -> Balls:
        return [x - y for x, y in _pairs(a, b)]

    def mul(self, a: Balls, b: Balls) -> Balls:
        return [x * y for x, y in _pairs(a, b)]

    def div(self, a: Balls, b: Balls) -> Balls:
        return [x / y for x, y in _pairs(a, b)]

    def min(self, a: Balls, b: Balls) -> Balls:
        return [x.min(y) for x, y in _pairs(a, b)]

    def max(self, a: Balls, b: Balls) -> Balls:
        return [x.max(y) for x, y in _pairs(a, b)]

    def power(self, x: Balls, exponent: int) -> Balls:
        return [_power(v, exponent) for v in x]

    def sin(self, x: Balls) -> Balls:
        return [v.sin() for v in x]

    def cos(self, x: Balls) -> Balls:
        return [v.cos() for v in x]

    def tan(self, x: Balls) -> Balls:
        return [v.tan() for v in x]

    def exp(self, x: Balls) -> Balls:
        return [_increasing(arb.exp, v) for v in x]

    def log(self, x: Balls) -> Balls:
        return [v.log() for v in x]

    def sqrt(self, x: Balls) -> Balls:
        return [v.sqrt() for v in x]

    def erf(self, x: Balls) -> Balls:
        return [_increasing(arb.erf, v) for v in x]

    def tanh(self, x: Balls) -> Balls:
        return [_tanh(v) for v in x]

    def sigmoid(self, x: Balls) -> Balls:
        return [(1 + _tanh(v / 2)) / 2 for v in x]

    def softplus(self, x: Balls) -> Balls:
        return [v.max(arb(0)) + (-abs(v)).exp().log1p() for v in x]

    def relu(self, x: Balls) -> Balls:
        return [v.max(arb(0)) for v in x]

    def leaky_relu(self, x: Balls, slope: Fraction) -> Balls:
        return [v.max(arb(0)) + ball(slope) * v.min(arb(0)) for v in x]

    def gelu(self, x: Balls) -> Balls:
        return [v * (1 + _increasing(arb.erf, v / arb(2).sqrt())) / 2 for v in x]

    def silu(self, x: Balls) -> Balls:
        return self.mul(x, self.sigmoid(x))

    def clip(self, x: Balls, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Balls:
        return [v.max(ball(lo)).min(ball(hi)) for v, lo, hi in zip(x, low, high, strict=True)]

    def select(self, x: Balls, indices: tuple[int, ...]) -> Balls:
        return [x[i] for i in indices]

    def concatenate(self, *parts: Balls) -> Balls:
        return [v for part in parts for v in part]

    def group_sort(self, x: Balls, group_size: int) -> Balls:
        return [v for start in range(0, len(x), group_size) for v in _ranked(x[start : start + group_size])]

    def affine(self, x: Balls, weight: np.ndarray, bias: np.ndarray | None) -> Balls:
        column = arb_mat(len(x), 1, x)
        rows = (arb_mat(1, len(x), [arb(w) for w in row]) for row in weight.tolist())
        products = [(row * column)[0, 0] for row in rows]
        return products if bias is None else self.add(products, [arb(b) for b in bias.tolist()])

    def implicit(self, v: Balls, weight: np.ndarray, metric: np.ndarray, activation: str) -> Balls:
        """What :mod:`lipctrl.certificates.checker.implicit` proves around a solution that Newton steps have refined."""
        layer, u = ImplicitLayer(weight, metric, activation), [x.mid() for x in v]
        y = [arb(a) for a in layer.solver(_middles(u))[0].tolist()]

        def after(z: Balls, entering: Balls) -> Balls:
            result: Balls = getattr(self, activation)(self.add(self.affine(z, weight, None), entering))
            return result

        for _ in range(REFINEMENTS):
            steps = layer.solver.newton(_middles(y), _middles(u), _middles(self.sub(after(y, u), y)))
            y = [(a + arb(step)).mid() for a, step in zip(y, steps.tolist(), strict=True)]
        s = after(y, u)
        miss = self.add(self.affine(self.sub(s, y), weight, None), self.sub(v, u))
        scale = [arb(w) for w in layer.metric.tolist()]
        norm = sum((w * e.abs_upper() ** 2 for w, e in zip(scale, miss, strict=True)), arb(0)).sqrt()
        z = [a + arb(0, 1) * norm / (layer.margin * w.sqrt()) for a, w in zip(s, scale, strict=True)]
        for _ in range(SWEEPS):
            z = [a.intersection(b) for a, b in zip(z, after(z, v), strict=True)]
        return z

    def recentre(self, x: Balls, graph: Graph, point: tuple[Fraction, ...], offset: np.ndarray) -> Balls:
        (name,), (output,) = graph.input_sizes, graph.outputs
        here, there = (evaluate(graph, {name: value}, self)[output] for value in (x, self.constant(point)))
        return self.sub(here, there)
