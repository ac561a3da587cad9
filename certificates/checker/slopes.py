"""Slopes of coordinate-wise operations: intervals that hold (f(x) - f(y)) / (x - y) for all x and y, rounded outwards."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from lipctrl.certificates.checker.graph import ELEMENTWISE, Graph, Node
from lipctrl.certificates.checker.intervals import Interval, from_fractions
from lipctrl.certificates.checker.verdict import Rejected

_ZERO, _ONE = Fraction(0), Fraction(1)
_GELU, _SILU, _ERF = Fraction(11_289_041_452, 10**10), Fraction(10_998_393_202, 10**10), Fraction(11_283_791_671, 10**10)

#: Incremental slopes (least, greatest) of the coordinate-wise operations; irrational ends are rounded outwards.
SLOPES: dict[str, tuple[Fraction, Fraction]] = {
    **dict.fromkeys("relu tanh softplus clip min max".split(), (_ZERO, _ONE)),
    **dict.fromkeys("abs sin cos".split(), (-_ONE, _ONE)),
    "add": (_ONE, _ONE),
    "neg": (-_ONE, -_ONE),
    "sigmoid": (_ZERO, Fraction(1, 4)),
    "erf": (_ZERO, _ERF),
    "gelu": (_ONE - _GELU, _GELU),
    "silu": (_ONE - _SILU, _SILU),
}

#: Operations whose slopes are unbounded over the reals: they need slopes that were proved on a smaller set.
UNBOUNDED = ({*ELEMENTWISE} | {"power"}) - {*SLOPES}


def slopes_of(graph: Graph, node: Node) -> Interval | None:
    """The slopes of one signal and constants under ``node``, of length 1 or its size; ``None`` where they are unbounded.

    Raises Rejected, naming the operation, where it does not act coordinate by coordinate.
    """
    if node.op in SLOPES:
        low, high = SLOPES[node.op]
        return enclose([low], [high])
    if node.op == "leaky_relu":
        slope = node.attributes["slope"]
        return enclose([min(slope, _ONE)], [max(slope, _ONE)])
    if node.op in UNBOUNDED:
        return None
    first = graph.nodes[node.inputs[0]].op != "constant"
    if node.op == "sub":
        return enclose([_ONE if first else -_ONE], [_ONE if first else -_ONE])
    if node.op == "mul" or (node.op == "div" and first):
        factors = list(graph.nodes[node.inputs[1 if first else 0]].attributes["values"])
        if node.op == "div":
            if not all(factors):
                raise Rejected("'div' by a constant that is zero")
            factors = [1 / factor for factor in factors]
        return enclose(factors, factors)
    raise Rejected(f"operation {node.op!r} is no part of a network form: affine maps, sums, scales, shifts, clips and activations are")


def compose(first: Interval, second: Interval) -> Interval:
    """Products of slopes, exact and then rounded outwards; operands have equal length or length 1."""
    ends = np.broadcast_arrays(first.low, first.high, second.low, second.high)
    lows, highs = [], []
    for a, b, c, d in zip(*(end.tolist() for end in ends), strict=True):
        products = [Fraction(x) * Fraction(y) for x in (a, b) for y in (c, d)]
        lows.append(min(products))
        highs.append(max(products))
    return enclose(lows, highs)


def enclose(lows: list[Fraction], highs: list[Fraction]) -> Interval:
    """Floats below ``lows`` and above ``highs``, as near as there are. Raises Rejected where a number is beyond float64."""
    try:
        slopes = Interval(from_fractions(tuple(lows)).low, from_fractions(tuple(highs)).high)
    except OverflowError as error:
        raise Rejected("a scale is too large for float64") from error
    if not bool(np.isfinite(slopes.magnitude).all()):  # rounded outwards from just above the greatest float
        raise Rejected("a scale is too large for float64")
    return slopes
