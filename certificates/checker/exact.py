"""Exact rational evaluation of a Graph: the value, or a refusal; never an approximation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import isqrt, lcm

import numpy as np

from lipctrl.certificates.checker.graph import Graph, evaluate
from lipctrl.certificates.checker.implicit import margin

MAX_BITS = 16_384  #: of a numerator or denominator
MAX_TOTAL_BITS = 1 << 29  #: of all numerators and denominators that one evaluation computes: well under a minute

Vector = tuple[Fraction, ...]


class Inexact(Exception):  # noqa: N818 - an answer ("not a rational that can be computed"), not an error
    """The value is not a rational, is not known to be one, or is too long to write down."""


def evaluate_exact(graph: Graph, inputs: Mapping[str, Sequence[Fraction]]) -> dict[str, Vector]:
    """Outputs of the graph at rational inputs, by name, exactly. Raises Inexact where a rule gives no rational.

    Transcendental operations have a value only where it is rational by rule (sin 0, exp 0, log 1, ...). Raises ValueError
    where an input is missing or has the wrong length.
    """
    sizes = graph.input_sizes
    if {name: len(value) for name, value in inputs.items()} != sizes:
        raise ValueError(f"inputs must have the names and lengths {sizes}")
    return evaluate(graph, {name: tuple(Fraction(v) for v in value) for name, value in inputs.items()}, ExactAlgebra())


def exact_tensor(values: np.ndarray) -> list[Fraction]:
    """The exact values of a float array, flattened in row-major order."""
    return [Fraction(v) for v in values.astype(np.float64).ravel().tolist()]


def _at_zero(op: str, value: Fraction | None) -> Callable[[ExactAlgebra, Vector], Vector]:
    """The rule of an operation whose only rational value we know is the one at 0."""

    def rule(self: ExactAlgebra, x: Vector) -> Vector:
        if value is None or any(x):
            raise Inexact(f"{op} has no known rational value here")
        return (value,) * len(x)

    return rule


def _root(x: Fraction) -> Fraction:
    if x < 0:
        raise Inexact("sqrt of a negative number")
    root = Fraction(isqrt(x.numerator), isqrt(x.denominator))
    if root * root != x:
        raise Inexact("sqrt of a rational that is not a square")
    return root


def _pairs(a: Vector, b: Vector) -> zip[tuple[Fraction, Fraction]]:
    n = max(len(a), len(b))
    return zip(a * (n // len(a)), b * (n // len(b)), strict=True)


class ExactAlgebra:
    """The operations of a Graph on tuples of rationals. One object serves one evaluation: its work is bounded."""

    def __init__(self) -> None:
        self._bits_left = MAX_TOTAL_BITS

    def _bounded(self, values: Iterable[Fraction]) -> Vector:
        """The values, one by one, while they are short and the work is not too much."""
        kept = []
        for value in values:
            bits = value.numerator.bit_length(), value.denominator.bit_length()
            if max(bits) > MAX_BITS:
                raise Inexact(f"a rational grew beyond {MAX_BITS} bits")
            self._spend(sum(bits))
            kept.append(value)
        return tuple(kept)

    def _spend(self, bits: int) -> None:
        self._bits_left -= bits
        if self._bits_left < 0:
            raise Inexact(f"more than {MAX_TOTAL_BITS} bits would have to be computed")

    sin = _at_zero("sin", Fraction(0))
    cos = _at_zero("cos", Fraction(1))
    tan = _at_zero("tan", Fraction(0))
    exp = _at_zero("exp", Fraction(1))
    erf = _at_zero("erf", Fraction(0))
    tanh = _at_zero("tanh", Fraction(0))
    sigmoid = _at_zero("sigmoid", Fraction(1, 2))
    gelu = _at_zero("gelu", Fraction(0))
    silu = _at_zero("silu", Fraction(0))
    softplus = _at_zero("softplus", None)

    def log(self, x: Vector) -> Vector:
        if any(v != 1 for v in x):
            raise Inexact("log has no known rational value here")
        return (Fraction(0),) * len(x)

    def sqrt(self, x: Vector) -> Vector:
        return self._bounded(_root(v) for v in x)

    def neg(self, x: Vector) -> Vector:
        return tuple(-v for v in x)

    def abs(self, x: Vector) -> Vector:
        return tuple(abs(v) for v in x)

    def relu(self, x: Vector) -> Vector:
        return tuple(max(v, Fraction(0)) for v in x)

    def leaky_relu(self, x: Vector, slope: Fraction) -> Vector:
        return self._bounded(v if v >= 0 else slope * v for v in x)

    def add(self, a: Vector, b: Vector) -> Vector:
        return self._bounded(x + y for x, y in _pairs(a, b))

    def sub(self, a: Vector, b: Vector) -> Vector:
        return self._bounded(x - y for x, y in _pairs(a, b))

    def mul(self, a: Vector, b: Vector) -> Vector:
        return self._bounded(x * y for x, y in _pairs(a, b))

    def div(self, a: Vector, b: Vector) -> Vector:
        if not all(b):
            raise Inexact("division by zero")
        return self._bounded(x / y for x, y in _pairs(a, b))

    def min(self, a: Vector, b: Vector) -> Vector:
        return self._bounded(min(pair) for pair in _pairs(a, b))

    def max(self, a: Vector, b: Vector) -> Vector:
        return self._bounded(max(pair) for pair in _pairs(a, b))

    def power(self, x: Vector, exponent: int) -> Vector:
        if any(max(v.numerator.bit_length(), v.denominator.bit_length()) * exponent > 2 * MAX_BITS for v in x):
            raise Inexact(f"a rational grew beyond {MAX_BITS} bits")
        return self._bounded(v**exponent for v in x)

    def clip(self, x: Vector, low: Vector, high: Vector) -> Vector:
        return self._bounded(min(max(v, lo), hi) for v, lo, hi in zip(x, low, high, strict=True))

    def constant(self, values: Vector) -> Vector:
        return values

    def select(self, x: Vector, indices: tuple[int, ...]) -> Vector:
        return tuple(x[i] for i in indices)

    def concatenate(self, *parts: Vector) -> Vector:
        return tuple(v for part in parts for v in part)

    def group_sort(self, x: Vector, group_size: int) -> Vector:
        for _ in range(min(group_size, len(x)).bit_length()):
            self._bounded(x)  # sorting compares each value about as often
        return tuple(v for start in range(0, len(x), group_size) for v in sorted(x[start : start + group_size]))

    def affine(self, x: Vector, weight: np.ndarray, bias: np.ndarray | None) -> Vector:
        """Integer dot products over a common denominator: the weights are dyadic."""
        offset = (Fraction(0),) * len(weight) if bias is None else tuple(exact_tensor(bias))
        if not any(x):
            return offset
        scale = 1
        for v in x:
            scale = lcm(scale, v.denominator)
            if scale.bit_length() > MAX_BITS:
                raise Inexact(f"a rational grew beyond {MAX_BITS} bits")
        whole = [v.numerator * (scale // v.denominator) for v in x]
        self._spend(weight.size * (1 + max(w.bit_length() for w in whole) // 16))
        return self._bounded(_dot(row, whole) / scale + b for row, b in zip(weight, offset, strict=True))

    def implicit(self, x: Vector, weight: np.ndarray, metric: np.ndarray, activation: str) -> Vector:
        margin(weight, metric)  # only then there is one solution
        if any(x) or activation not in ("relu", "tanh"):
            raise Inexact("implicit has no known rational value here")
        return x

    def recentre(self, x: Vector, graph: Graph, point: Vector, offset: np.ndarray) -> Vector:
        (name,), (output,), size = graph.input_sizes, graph.outputs, len(offset)
        if x == point:
            return (Fraction(0),) * size
        return self.sub(*(evaluate(graph, {name: value}, self)[output] for value in (x, point)))


def _dot(row: np.ndarray, whole: list[int]) -> Fraction:
    """Exact sum of float weights times integers."""
    mantissas, exponents = np.frexp(row.astype(np.float64))
    shift = int(exponents.min()) - 53
    integers = (mantissas * 2.0**53).astype(np.int64).tolist()
    total = sum(m * w << int(e) - 53 - shift for m, e, w in zip(integers, exponents.tolist(), whole, strict=True))
    return Fraction(total) * Fraction(2) ** shift
