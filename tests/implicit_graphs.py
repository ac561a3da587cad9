"""Graphs with implicit layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.core.recording import implicit, record


def monotone(generator: np.random.Generator, n: int, margin: float = 0.1) -> Array:
    a, b = generator.standard_normal((2, n, n)) / math.sqrt(n)
    return np.asarray((1 - margin) * np.eye(n) - a.T @ a + b - b.T)


def skewed(generator: np.random.Generator, n: int, skew: float, margin: float = 0.1) -> Array:
    """As ``monotone``, its skew part times ``skew``."""
    weight = monotone(generator, n, margin)
    return np.asarray((weight + weight.T) / 2 + skew * (weight - weight.T) / 2)


def scalar(weight: float, activation: str = "relu", gain: float = 1.0) -> Graph:
    return record(lambda x: np.array([[gain]]) @ implicit(np.array([[weight]]), x, activation), {"x": 1})


def random_network(seed: int, n: int = 5, activation: str = "relu", margin: float = 0.1) -> Graph:
    generator = np.random.default_rng(seed)
    weight, entering, leaving = monotone(generator, n, margin), generator.standard_normal((n, 3)), generator.standard_normal((2, n))
    bias = generator.standard_normal(n)
    return record(lambda x: leaving @ implicit(weight, entering @ x + bias.tolist(), activation), {"x": 3})


def layered(seed: int) -> tuple[Graph, Graph]:
    """A feed-forward ReLU network as one implicit layer, and layer by layer."""
    generator = np.random.default_rng(seed)
    first, second, third, last = (generator.standard_normal(shape) for shape in ((4, 3), (5, 4), (3, 5), (2, 3)))
    weight, entering, leaving = np.zeros((12, 12)), np.zeros((12, 3)), np.zeros((2, 12))
    weight[4:9, :4], weight[9:, 4:9], entering[:4], leaving[:, 9:] = second, third, first, last
    step = 0.25 / max(np.linalg.norm(second, 2), np.linalg.norm(third, 2)) ** 2
    metric = np.repeat([1, step, step**2], [4, 5, 3])
    one = record(lambda x: leaving @ implicit(weight, entering @ x, "relu", metric), {"x": 3})

    def layers(x: Any) -> Any:
        for matrix in (first, second, third):
            x = np.maximum(matrix @ x, 0)
        return last @ x

    return one, record(layers, {"x": 3})


def mixed() -> Graph:
    """Implicit layers between and beside ordinary ones."""
    generator = np.random.default_rng(9)
    first, second = monotone(generator, 5), monotone(generator, 4, 0.3)
    matrices = [generator.standard_normal(shape) / 2 for shape in ((5, 3), (4, 5), (3, 4), (5, 5))]

    def network(x: Any) -> Any:
        z = implicit(first, np.tanh(matrices[0] @ x * "3/10"), "relu")
        u = implicit(second, matrices[1] @ np.maximum(matrices[3] @ z, 0), "softplus")
        return np.clip(matrices[2] @ u + x, -5, 5)

    return record(network, {"x": 3})
