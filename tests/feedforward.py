"""Random feed-forward graphs with skips, parallel branches, sums, concatenations and selections, and sampled slopes of them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.core.numpy_evaluation import compile_numpy

ACTIVATIONS = ("relu", "tanh", "abs", "leaky_relu", "gelu", "silu", "sigmoid", "softplus", "group_sort", "neg", "clip", "mul", "div")


def layered(weights, op: str = "relu", **attributes) -> Graph:
    """A chain of affine maps without biases, with the operation ``op`` between them."""
    nodes = [Node("input", (), {"name": "x", "size": np.shape(weights[0])[1]})]
    for k in range(len(weights)):
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
        if k < len(weights) - 1:
            nodes.append(Node(op, (len(nodes) - 1,), attributes))
    return Graph(tuple(nodes), {"y": len(nodes) - 1}, {f"w{k}": np.array(weight, dtype=float) for k, weight in enumerate(weights)})


class Branches:
    """A graph under construction; methods return the index of the node that they add."""

    def __init__(self, generator: np.random.Generator, inputs: int) -> None:
        self.generator = generator
        self.nodes = [Node("input", (), {"name": "observation", "size": inputs})]
        self.sizes = [inputs]
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, node: Node, size: int) -> int:
        self.nodes.append(node)
        self.sizes.append(size)
        return len(self.nodes) - 1

    def constant(self, size: int, low: int = -40) -> int:
        values = tuple(
            Fraction(int(v) or 1, int(d)) for v, d in zip(*self.generator.integers([[low], [1]], [[40], [12]], (2, size)), strict=True)
        )
        return self.add(Node("constant", (), {"values": values}), size)

    def affine(self, operand: int, size: int, scale: float = 1.0) -> int:
        names = {kind: f"{kind}{len(self.nodes)}" for kind in ("weight", "bias")}
        before = self.sizes[operand]
        dtype = self.generator.choice([np.float32, np.float64]) if 1e-20 < scale < 1e20 else np.float64
        self.tensors[names["weight"]] = (scale * self.generator.standard_normal((size, before)) / np.sqrt(before)).astype(dtype)
        self.tensors[names["bias"]] = self.generator.standard_normal(size).astype(dtype)
        return self.add(Node("affine", (operand,), names), size)

    def activation(self, operand: int, op: str | None = None) -> int:
        op = str(self.generator.choice(ACTIVATIONS)) if op is None else op
        size = self.sizes[operand]
        if op in ("mul", "div"):
            return self.add(Node(op, (operand, self.constant(size))), size)
        attributes = {
            "leaky_relu": {"slope": Fraction(int(self.generator.integers(-4, 9)), 8)},
            "group_sort": {"group_size": int(self.generator.integers(2, 5))},
            "clip": {"low": (Fraction(-1),) * size, "high": (Fraction(1, 2),) * size},
        }.get(op, {})
        return self.add(Node(op, (operand,), attributes), size)

    def graph(self, output: int) -> Graph:
        return Graph(tuple(self.nodes), {"action": output}, self.tensors)


def random_graph(seed: int, steps: int = 8, width: int = 6, scale: float = 1.0, ops: tuple[str, ...] | None = None) -> Graph:
    """A graph in which every step reads signals that were made before, near ones more often."""
    generator = np.random.default_rng(seed)
    made = Branches(generator, int(generator.integers(1, width + 1)))
    signals = [0]

    def op() -> str | None:
        return None if ops is None else str(generator.choice(ops))

    def pick() -> int:
        return signals[max(0, len(signals) - 1 - int(generator.geometric(0.5)) + 1)]

    for _ in range(steps):
        operand, kind = pick(), generator.choice(["layer", "activation", "sum", "concatenate", "select", "residual", "max"])
        if kind == "layer":
            signals.append(made.affine(operand, int(generator.integers(1, width + 1)), scale))
            signals.append(made.activation(signals[-1], op()))
        elif kind == "activation":
            signals.append(made.activation(operand, op()))
        elif kind == "select":
            indices = tuple(generator.integers(0, made.sizes[operand], int(generator.integers(1, made.sizes[operand] + 1))).tolist())
            signals.append(made.add(Node("select", (operand,), {"indices": indices}), len(indices)))
        elif kind == "concatenate":
            other = pick()
            signals.append(made.add(Node("concatenate", (operand, other)), made.sizes[operand] + made.sizes[other]))
        elif kind == "residual":
            inner = made.activation(
                made.affine(operand, int(generator.integers(1, width + 1))), None if ops is None else str(generator.choice(ops))
            )
            outer = made.affine(inner, made.sizes[operand], scale)
            signals.append(made.add(Node("add", (operand, outer)), made.sizes[operand]))
        else:
            other = made.affine(pick(), made.sizes[operand], scale)
            binary = str(generator.choice(["add", "sub"] if kind == "sum" else ["min", "max"]))
            signals.append(made.add(Node(binary, (operand, other)), made.sizes[operand]))
    return made.graph(made.affine(signals[-1], int(generator.integers(1, width + 1))))


def steepest_sampled(graph: Graph, seed: int, order: float = 2, pairs: int = 400) -> float:
    """The greatest slope of pairs of points in float64, in the p-norm of this order."""
    generator = np.random.default_rng(seed)
    (size,) = graph.input_sizes.values()
    evaluate = compile_numpy(graph)
    x = generator.standard_normal((pairs, size)) * 10 ** generator.uniform(-1, 1, (pairs, 1))
    y = x + generator.standard_normal((pairs, size)) * 10 ** generator.uniform(-4, 0, (pairs, 1))
    rise = evaluate(observation=x)["action"] - evaluate(observation=y)["action"]
    return float((np.linalg.norm(rise, order, axis=1) / np.linalg.norm(x - y, order, axis=1)).max())
