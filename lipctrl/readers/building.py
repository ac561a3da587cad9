"""Layers written down as graph nodes: the vocabulary that all readers share.

A value is the index of a node. Floats of a network are kept as they are: weights as tensors, everything that acts
coordinate by coordinate as exact rationals in nodes of its own, never multiplied into weights.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker.bundle import MAX_PRODUCTS, MAX_VALUES, graph_cost
from lipctrl.certificates.checker.graph import MAX_SIZE, Graph
from lipctrl.core.errors import InputError
from lipctrl.core.symbols import Tape

Array = np.ndarray

DTYPES = ("float32", "float64")  #: what weights and signals may be
MAX_WEIGHT_BYTES = 256 << 20  #: of a file that is read


def exact(values: Array, what: str = "constant") -> tuple[Fraction, ...]:
    """The exact values of an array, in row-major order. Raises InputError where one is not finite."""
    flat = np.asarray(values).ravel()
    if not np.isfinite(flat).all():
        raise InputError(f"{what} holds a value that is not finite")
    return tuple(Fraction(value) for value in flat.tolist())


class Builder:
    """Writes a network from ``observation`` (``size`` components) to ``action``, one layer after the other."""

    def __init__(self, size: int) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise InputError(f"the network has {size} inputs, expected 1..{MAX_SIZE}")
        self.tape = Tape()
        self._values = self._products = 0
        self.observation = self._node("input", (), size, name="observation", size=size)

    def _node(self, op: str, inputs: tuple[int, ...], size: int, products: int = 0, /, **attributes: Any) -> int:
        """Write a node; work and memory are bounded while a file is read, with room for nodes that nothing needs in the end."""
        self._values += size
        self._products += products
        if size > MAX_SIZE or self._values > 2 * MAX_VALUES or self._products > 2 * MAX_PRODUCTS:
            raise InputError(f"the network is too large: {self._values} values, {self._products} products, the largest vector {size}")
        return self.tape.node(op, inputs, size, **attributes)

    def size(self, x: int) -> int:
        """Number of components of a value."""
        return self.tape.sizes[x]

    def apply(self, op: str, x: int, **attributes: Any) -> int:
        """An operation that acts coordinate by coordinate and has one operand."""
        return self._node(op, (x,), self.size(x), **attributes)

    def combine(self, op: str, x: int, y: int) -> int:
        """``add sub mul div min max`` of two values of equal size, or one of them of size 1."""
        sizes = {self.size(x), self.size(y)} - {1}
        if len(sizes) > 1:
            raise InputError(f"{op} of vectors of {self.size(x)} and {self.size(y)} components; sizes must be equal, or one of them 1")
        return self._node(op, (x, y), max(self.size(x), self.size(y)))

    def constant(self, values: Array | tuple[Fraction, ...]) -> int:
        """A constant vector, exactly."""
        values = exact(values) if isinstance(values, np.ndarray) else values
        return self._node("constant", (), len(values), values=values)

    def affine(self, x: int, weight: Array, bias: Array | None = None) -> int:
        """``weight`` x + ``bias``; the floats become tensors of the graph, as they are."""
        if (
            weight.ndim != 2
            or weight.shape[1] != self.size(x)
            or 0 in weight.shape
            or (bias is not None and bias.shape != weight.shape[:1])
        ):
            shapes = f"{weight.shape} and bias of shape {None if bias is None else bias.shape}"
            raise InputError(f"a weight of shape {shapes} does not fit a vector of {self.size(x)} components")
        names = {"weight": self.tape.tensor(weight), "bias": None if bias is None else self.tape.tensor(bias)}
        return self._node("affine", (x,), len(weight), weight.size, **names)

    def scale(self, x: int, factors: Array | tuple[Fraction, ...]) -> int:
        """Each component times its factor; nothing where all factors are 1."""
        values = exact(factors) if isinstance(factors, np.ndarray) else factors
        return x if set(values) == {Fraction(1)} else self.combine("mul", x, self.constant(values))

    def shift(self, x: int, offsets: Array | tuple[Fraction, ...]) -> int:
        """Each component plus its offset; nothing where all offsets are 0."""
        values = exact(offsets) if isinstance(offsets, np.ndarray) else offsets
        return x if set(values) == {Fraction(0)} else self.combine("add", x, self.constant(values))

    def clip(self, x: int, low: Array | None, high: Array | None) -> int:
        """min(max(x, low), high), numbers or one for each component; ``None`` and infinity mean no bound on that side."""
        ends = []
        for end, unbounded in ((low, -np.inf), (high, np.inf)):
            values = None if end is None else np.broadcast_to(end, self.size(x))
            ends.append(None if values is None or (values == unbounded).all() else exact(values, "a bound of clip"))
        lower, upper = ends
        if lower is not None and upper is not None and all(a < b for a, b in zip(lower, upper, strict=True)):
            return self.apply("clip", x, low=lower, high=upper)
        for op, bounds in (("max", lower), ("min", upper)):
            x = x if bounds is None else self.combine(op, x, self.constant(bounds))
        return x

    def leaky_relu(self, x: int, slopes: Array) -> int:
        """x where positive, slope times x elsewhere; one slope, or one for each component: a x + (1 - a) relu(x)."""
        values = exact(slopes, "a slope")
        if len(set(values)) == 1:
            return self.apply("leaky_relu", x, slope=values[0])
        above = self.combine("mul", self.apply("relu", x), self.constant(tuple(1 - value for value in values)))
        return self.combine("add", self.combine("mul", x, self.constant(values)), above)

    def softplus(self, x: int, beta: Fraction) -> int:
        """log(1 + exp(beta x)) / beta."""
        if beta <= 0:
            raise InputError(f"softplus has beta {beta}, expected a positive number")
        return self.scale(self.apply("softplus", self.scale(x, (beta,))), (1 / beta,))

    def batch_norm(self, x: int, mean: Array, variance: Array, weight: Array, bias: Array, epsilon: float) -> int:
        """Inference of batch normalisation as a diagonal affine map x a + (bias - mean a), exact over the rationals.

        a is the float that PyTorch multiplies by: weight / sqrt(variance + epsilon), each operation rounded in the dtype of
        the statistics. The true quotient is irrational; that float is what runs.
        """
        one, small = variance.dtype.type(1), variance.dtype.type(epsilon)
        with np.errstate(all="ignore"):  # what is not finite is refused
            factors = one / np.sqrt(variance + small) * weight
        a, m, b = (exact(values, "batch normalisation") for values in (factors, mean, bias))
        return self.shift(self.scale(x, a), tuple(bias - mean * factor for factor, mean, bias in zip(a, m, b, strict=True)))

    def select(self, x: int, indices: Array) -> int:
        """The components with these numbers, in this order."""
        wanted = tuple(int(i) for i in indices.ravel())
        if not 1 <= len(wanted) <= MAX_SIZE:
            raise InputError(f"a vector of {len(wanted)} components, expected 1..{MAX_SIZE}")
        return x if wanted == tuple(range(self.size(x))) else self._node("select", (x,), len(wanted), indices=wanted)

    def concatenate(self, parts: list[int]) -> int:
        """Several vectors after one another."""
        return parts[0] if len(parts) == 1 else self._node("concatenate", tuple(parts), sum(map(self.size, parts)))

    def finish(self, x: int) -> Graph:
        """The graph whose ``action`` is this value. Raises InputError where a value does not fit or the network is too large."""
        graph = self.tape.graph({"action": x})
        values, products = graph_cost(graph)
        if values > MAX_VALUES or products > MAX_PRODUCTS:
            limits = f"at most {MAX_VALUES} and {MAX_PRODUCTS} are allowed"
            raise InputError(f"the network computes {values} values with {products} products an evaluation, {limits}")
        return graph
