"""Second, third and fourth derivatives of smooth coordinate-wise operations, enclosed on intervals.

Where an operation is not defined on the whole interval the result is NaN or infinite: callers refuse it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flint import arb

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval

Higher = Callable[[Interval], tuple[Interval, Interval, Interval]]  #: from an interval to the ranges of f'', f''' and f'''' on it


def higher_derivatives(node: Node) -> Higher | None:
    """The second, third and fourth derivative of a node's operation; ``None`` where it is not smooth, or not of one signal."""
    if node.op == "power":
        exponent: int = node.attributes["exponent"]
        return lambda v: (_monomial(v, exponent, 2), _monomial(v, exponent, 3), _monomial(v, exponent, 4))
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


def reciprocal(v: Interval) -> tuple[Interval, Interval, Interval]:
    """Of 1 / v: 2 / v^3, -6 / v^4 and 24 / v^5."""
    inverse = _number(1) / v
    powers = [iv.integer_power(inverse, exponent) for exponent in (3, 4, 5)]
    return _number(2) * powers[0], _number(-6) * powers[1], _number(24) * powers[2]


def _number(x: float) -> Interval:
    return iv.point(np.array(float(x)))


def _clamped(v: Interval, low: float, high: float) -> Interval:
    return Interval(np.maximum(v.low, low), np.minimum(v.high, high))


def _monomial(v: Interval, exponent: int, order: int) -> Interval:
    """The derivative of this order of v^exponent."""
    if exponent < order:
        return _number(0) * iv.integer_power(v, 0)
    return _number(float(np.prod(range(exponent - order + 1, exponent + 1)))) * iv.integer_power(v, exponent - order)


def _tanh(v: Interval) -> tuple[Interval, Interval, Interval]:
    y = iv.tanh(v)
    first, square = _clamped((_number(1) - y) * (_number(1) + y), 0.0, 1.0), iv.integer_power(y, 2)
    return _number(-2) * y * first, first * (_number(6) * square - _number(2)), first * y * (_number(16) - _number(24) * square)


def _sigmoid_derivatives(v: Interval) -> tuple[Interval, Interval, Interval, Interval]:
    s = iv.sigmoid(v)
    first = _clamped(s * (_number(1) - s), 0.0, 0.25)
    second = first * (_number(1) - _number(2) * s)
    return first, second, first * (_number(1) - _number(6) * first), second * (_number(1) - _number(12) * first)


def _silu(v: Interval) -> tuple[Interval, Interval, Interval]:
    first, second, third, fourth = _sigmoid_derivatives(v)
    return _number(2) * first + v * second, _number(3) * second + v * third, _number(4) * third + v * fourth


def _bell(v: Interval, factor: arb, rate: float) -> Interval:
    """factor exp(-rate v^2)."""
    return iv.from_balls([factor]) * iv.by_balls(arb.exp, _number(-rate) * iv.integer_power(v, 2))


def _erf(v: Interval) -> tuple[Interval, Interval, Interval]:
    first, square = _bell(v, 2 / arb.pi().sqrt(), 1.0), iv.integer_power(v, 2)
    third = first * (_number(4) * square - _number(2))
    return _number(-2) * v * first, third, first * v * (_number(12) - _number(8) * square)


def _gelu(v: Interval) -> tuple[Interval, Interval, Interval]:
    density, square = _bell(v, 1 / (2 * arb.pi()).sqrt(), 0.5), iv.integer_power(v, 2)
    fourth = density * (square * (_number(7) - square) - _number(4))
    return density * (_number(2) - square), density * v * (square - _number(4)), fourth


def _exp(v: Interval) -> tuple[Interval, Interval, Interval]:
    value = iv.by_balls(arb.exp, v)
    return value, value, value


def _log(v: Interval) -> tuple[Interval, Interval, Interval]:
    inverse = _number(1) / v
    powers = [iv.integer_power(inverse, exponent) for exponent in (2, 3, 4)]
    return -powers[0], _number(2) * powers[1], _number(-6) * powers[2]


def _sqrt(v: Interval) -> tuple[Interval, Interval, Interval]:
    inverse = _number(1) / iv.sqrt(v)
    powers = [iv.integer_power(inverse, exponent) for exponent in (3, 5, 7)]
    return _number(-0.25) * powers[0], _number(0.375) * powers[1], _number(-0.9375) * powers[2]


def _tan(v: Interval) -> tuple[Interval, Interval, Interval]:
    y = iv.sin(v) / iv.cos(v)
    square = iv.integer_power(y, 2)
    first = _number(1) + square
    third = _number(2) * first * (_number(1) + _number(3) * square)
    return _number(2) * y * first, third, _number(8) * y * first * (_number(2) + _number(3) * square)


_HIGHER: dict[str, Higher] = {
    "tanh": _tanh,
    "sigmoid": lambda v: _sigmoid_derivatives(v)[1:],
    "softplus": lambda v: _sigmoid_derivatives(v)[:3],
    "silu": _silu,
    "erf": _erf,
    "gelu": _gelu,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "sin": lambda v: (-iv.sin(v), -iv.cos(v), iv.sin(v)),
    "cos": lambda v: (-iv.cos(v), iv.sin(v), iv.cos(v)),
    "tan": _tan,
}
