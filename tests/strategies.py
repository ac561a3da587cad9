"""Hypothesis strategies: random graphs over every operation, on domains where all evaluations are defined and smooth enough."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from lipctrl.certificates.checker.graph import ELEMENTWISE, Graph, Node
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats

#: Inputs of random graphs lie in this range; every node is squashed so that values stay moderate.
INPUT_RANGE = 2.0

_SAFE_UNARY = [op for op in ELEMENTWISE if op not in ("tan", "exp", "log", "sqrt")]
rational_numbers = st.fractions(min_value=-3, max_value=3, max_denominator=50)


def _tensor(draw: st.DrawFn, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    values = draw(st.lists(st.integers(-300, 300), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return (np.array(values, dtype=dtype) / dtype(173)).reshape(shape)


class _Builder:
    def __init__(self, draw: st.DrawFn, nesting: int) -> None:
        self.draw, self.nesting = draw, nesting
        self.nodes: list[Node] = []
        self.sizes: list[int] = []
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, op: str, inputs: tuple[int, ...], size: int, /, **attributes: object) -> int:
        self.nodes.append(Node(op, inputs, attributes))
        self.sizes.append(size)
        return len(self.nodes) - 1

    def tensor(self, array: np.ndarray) -> str:
        name = f"t{len(self.tensors)}" if self.nesting == 0 else f"inner{self.draw(st.uuids())}"
        self.tensors[name] = array
        return name

    def bounded(self, index: int) -> int:
        """The node clipped to [-4, 4], so that later nodes stay moderate."""
        n = self.sizes[index]
        return self.add("clip", (index,), n, low=(Fraction(-4),) * n, high=(Fraction(4),) * n)

    def positive(self, index: int) -> int:
        """1/2 + x^2, for operations that need a positive operand."""
        half = self.add("constant", (), 1, values=(Fraction(1, 2),))
        square = self.add("power", (index,), self.sizes[index], exponent=2)
        return self.add("add", (square, half), self.sizes[index])

    def step(self) -> None:
        draw = self.draw
        x = self.bounded(draw(st.sampled_from(range(len(self.nodes)))))
        n = self.sizes[x]
        kind = draw(st.sampled_from(["unary", "positive", "binary", "div", "power", "clip", "leaky_relu", "affine", "affine"]
                                    + ["group_sort", "select", "concatenate"] + ["recentre"] * (self.nesting == 0)))  # fmt: skip
        if kind == "unary":
            self.add(draw(st.sampled_from(_SAFE_UNARY)), (x,), n)
        elif kind == "positive":
            self.add(draw(st.sampled_from(["exp", "log", "sqrt"])), (self.positive(x),), n)
        elif kind in ("binary", "div"):
            other = draw(st.sampled_from([i for i, size in enumerate(self.sizes) if size in (1, n)]))
            other = self.bounded(other) if kind == "binary" else self.positive(self.bounded(other))
            self.add(draw(st.sampled_from(["add", "sub", "mul", "min", "max"])) if kind == "binary" else "div", (x, other), n)
        elif kind == "power":
            self.add("power", (x,), n, exponent=draw(st.integers(0, 4)))
        elif kind == "clip":
            low = tuple(draw(rational_numbers) for _ in range(n))
            self.add("clip", (x,), n, low=low, high=tuple(v + draw(st.fractions(Fraction(1, 10), 3)) for v in low))
        elif kind == "leaky_relu":
            self.add("leaky_relu", (x,), n, slope=draw(st.fractions(0, 1, max_denominator=20)))
        elif kind == "affine":
            rows, dtype = draw(st.integers(1, 4)), draw(st.sampled_from([np.float32, np.float64]))
            bias = self.tensor(_tensor(draw, (rows,), dtype)) if draw(st.booleans()) else None
            self.add("affine", (x,), rows, weight=self.tensor(_tensor(draw, (rows, n), dtype)), bias=bias)
        elif kind == "group_sort":
            self.add("group_sort", (x,), n, group_size=draw(st.integers(2, 4)))
        elif kind == "select":
            indices = tuple(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4)))
            self.add("select", (x,), len(indices), indices=indices)
        elif kind == "concatenate":
            parts = (x, *(draw(st.sampled_from(range(len(self.nodes)))) for _ in range(draw(st.integers(0, 2)))))
            if sum(self.sizes[i] for i in parts) <= 12:
                self.add("concatenate", parts, sum(self.sizes[i] for i in parts))
        else:
            inner = draw(graphs(inputs={"x": n}, max_steps=3, nesting=1))
            self.tensors.update(inner.tensors)  # files hold the tensors of nested graphs beside the others
            (size,) = inner.output_sizes.values()
            point = tuple(draw(rational_numbers) for _ in range(n))
            (offset,) = compile_numpy(inner)(x=floats(point)).values()  # both readings agree up to rounding
            self.add("recentre", (x,), size, graph=inner, point=point, offset=self.tensor(offset))


@st.composite
def graphs(draw: st.DrawFn, inputs: dict[str, int] | None = None, max_steps: int = 8, nesting: int = 0) -> Graph:
    """Random graphs with the named inputs (default: one or two vectors of 1 to 4 components) and output ``output``."""
    builder = _Builder(draw, nesting)
    if inputs is None:
        inputs = {name: draw(st.integers(1, 4)) for name in ("x", "y")[: draw(st.integers(1, 2))]}
    for name, size in inputs.items():
        builder.add("input", (), size, name=name, size=size)
    if draw(st.booleans()):
        values = tuple(draw(st.lists(rational_numbers, min_size=1, max_size=3)))
        builder.add("constant", (), len(values), values=values)
    for _ in range(draw(st.integers(1, max_steps))):
        builder.step()
    output = builder.bounded(len(builder.nodes) - 1)
    return Graph(tuple(builder.nodes), {"output": output}, builder.tensors, nesting)


@st.composite
def graphs_with_inputs(draw: st.DrawFn, max_steps: int = 8) -> tuple[Graph, dict[str, tuple[Fraction, ...]]]:
    """A random graph and one exact input vector per name, dyadic, so that floats hold it exactly."""
    graph = draw(graphs(max_steps=max_steps))
    dyadic = st.integers(-int(INPUT_RANGE * 256), int(INPUT_RANGE * 256)).map(lambda k: Fraction(k, 256))
    return graph, {name: tuple(draw(dyadic) for _ in range(size)) for name, size in graph.input_sizes.items()}
