"""Second and third derivatives of smooth coordinate-wise operations, enclosed on intervals.

Where an operation is not defined on the whole interval the result is NaN or infinite: callers refuse it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flint import arb

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval

Higher = Callable[[Interval], tuple[Interval, Interval]]  #: from an interval to the ranges of f'' and f''' on it


def higher_derivatives(node: Node) -> Higher | None:
    """The second and third derivative of a node's operation; ``None`` where it is not smooth, or not of one signal."""
    if node.op == "power":
        exponent: int = node.attributes["exponent"]
        return lambda v: (_monomial(v, exponent, 2), _monomial(v, exponent, 3))
    return _HIGHER.get(node.op)


def is_curved(graph: Graph) -> bool:
    """Whether second derivatives say anything about a graph: it has smooth operations, or products of signals.

    Not where it has implicit layers, whose second derivatives are not enclosed.
    """
    curved = False
    for node in graph.nodes:
        signals = [graph.nodes[i].op != "constant" for i in node.inputs]
        if node.op == "implicit":
            return False
        if node.op == "recentre":
            curved = curved or is_curved(node.attributes["graph"])
            if any(inner.op == "implicit" for inner in node.attributes["graph"].nodes):
                return False
        smooth = any(signals) and higher_derivatives(node) is not None
        curved = curved or smooth or (node.op == "mul" and all(signals)) or (node.op == "div" and signals[1])
    return curved


def reciprocal(v: Interval) -> tuple[Interval, Interval]:
    """Of 1 / v: 2 / v^3 and -6 / v^4."""
    inverse = _number(1) / v
    return _number(2) * iv.integer_power(inverse, 3), _number(-6) * iv.integer_power(inverse, 4)


def _number(x: float) -> Interval:
    return iv.point(np.array(float(x)))


def _clamped(v: Interval, low: float, high: float) -> Interval:
    return Interval(np.maximum(v.low, low), np.minimum(v.high, high))


def _monomial(v: Interval, exponent: int, order: int) -> Interval:
    """The derivative of this order of v^exponent."""
    if exponent < order:
        return _number(0) * iv.integer_power(v, 0)
    return _number(float(np.prod(range(exponent - order + 1, exponent + 1)))) * iv.integer_power(v, exponent - order)


def _tanh(v: Interval) -> tuple[Interval, Interval]:
    y = iv.tanh(v)
    first = _clamped((_number(1) - y) * (_number(1) + y), 0.0, 1.0)
    return _number(-2) * y * first, first * (_number(6) * iv.integer_power(y, 2) - _number(2))


def _sigmoid_derivatives(v: Interval) -> tuple[Interval, Interval, Interval]:
    s = iv.sigmoid(v)
    first = _clamped(s * (_number(1) - s), 0.0, 0.25)
    return first, first * (_number(1) - _number(2) * s), first * (_number(1) - _number(6) * first)


def _silu(v: Interval) -> tuple[Interval, Interval]:
    first, second, third = _sigmoid_derivatives(v)
    return _number(2) * first + v * second, _number(3) * second + v * third


def _bell(v: Interval, factor: arb, rate: float) -> Interval:
    """factor exp(-rate v^2)."""
    return iv.from_balls([factor]) * iv.by_balls(arb.exp, _number(-rate) * iv.integer_power(v, 2))


def _erf(v: Interval) -> tuple[Interval, Interval]:
    first = _bell(v, 2 / arb.pi().sqrt(), 1.0)
    return _number(-2) * v * first, first * (_number(4) * iv.integer_power(v, 2) - _number(2))


def _gelu(v: Interval) -> tuple[Interval, Interval]:
    density, square = _bell(v, 1 / (2 * arb.pi()).sqrt(), 0.5), iv.integer_power(v, 2)
    return density * (_number(2) - square), density * v * (square - _number(4))


def _exp(v: Interval) -> tuple[Interval, Interval]:
    value = iv.by_balls(arb.exp, v)
    return value, value


def _log(v: Interval) -> tuple[Interval, Interval]:
    inverse = _number(1) / v
    return -iv.integer_power(inverse, 2), _number(2) * iv.integer_power(inverse, 3)


def _sqrt(v: Interval) -> tuple[Interval, Interval]:
    inverse = _number(1) / iv.sqrt(v)
    return _number(-0.25) * iv.integer_power(inverse, 3), _number(0.375) * iv.integer_power(inverse, 5)


def _tan(v: Interval) -> tuple[Interval, Interval]:
    y = iv.sin(v) / iv.cos(v)
    square = iv.integer_power(y, 2)
    first = _number(1) + square
    return _number(2) * y * first, _number(2) * first * (_number(1) + _number(3) * square)


_HIGHER: dict[str, Higher] = {
    "tanh": _tanh,
    "sigmoid": lambda v: _sigmoid_derivatives(v)[1:],
    "softplus": lambda v: _sigmoid_derivatives(v)[:2],
    "silu": _silu,
    "erf": _erf,
    "gelu": _gelu,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "sin": lambda v: (-iv.sin(v), -iv.cos(v)),
    "cos": lambda v: (-iv.cos(v), iv.sin(v)),
    "tan": _tan,
}
