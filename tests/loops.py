"""Small closed loops for tests of the checker, built by hand from nodes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph, Node, graph_to_json, rational_to_text
from lipctrl.certificates.checker.writing import write_certificate


class Sketch:
    """A graph in the making: calling it with an operation and operands appends a node and returns its index."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}

    def __call__(self, op: str, *inputs: int, **attributes: Any) -> int:
        self.nodes.append(Node(op, inputs, attributes))
        return len(self.nodes) - 1

    def input(self, name: str, size: int) -> int:
        return self("input", name=name, size=size)

    def constant(self, *values: Any) -> int:
        return self("constant", values=tuple(Fraction(v) for v in values))

    def affine(self, x: int, weight: Any, bias: Any = None, dtype: type = np.float32) -> int:
        names = [f"t{len(self.tensors)}", None if bias is None else f"t{len(self.tensors)}b"]
        for name, value in zip(names, (weight, bias), strict=True):
            if name is not None:
                self.tensors[name] = np.array(value, dtype)
        return self("affine", x, weight=names[0], bias=names[1])

    def graph(self, **outputs: int) -> Graph:
        return Graph(tuple(self.nodes), outputs, self.tensors)


def gain(*rows: Any, low: Any = None, high: Any = None, bias: Any = None) -> Graph:
    """A linear policy u = rows @ observation, clipped where bounds are given."""
    s = Sketch()
    u = s.affine(s.input("observation", len(rows[0])), rows, bias)
    if low is not None:
        u = s("clip", u, low=(Fraction(low),) * len(rows), high=(Fraction(high),) * len(rows))
    return s.graph(action=u)


def identity(size: int) -> Graph:
    s = Sketch()
    return s.graph(observation=s("select", s.input("state", size), indices=tuple(range(size))))


def linear_plant(A: Any, B: Any, limit: Any = 1, box: Any = 100) -> dict[str, Any]:
    """x+ = A x + B clip(u), as a subject; entries are exact."""
    n, m = len(A), len(B[0])
    s = Sketch()
    x, u = s.input("state", n), s.input("action", m)
    u = s("clip", u, low=(-Fraction(limit),) * m, high=(Fraction(limit),) * m)
    rows = [_sum(s, [*_terms(s, x, A[i]), *_terms(s, u, B[i])]) for i in range(n)]
    return subject(s.graph(next_state=s("concatenate", *rows)), n, m, box=box, limit=limit)


def _terms(s: Sketch, x: int, row: Any) -> list[int]:
    return [s("mul", s("select", x, indices=(j,)), s.constant(a)) for j, a in enumerate(row) if a]


def _sum(s: Sketch, terms: list[int]) -> int:
    total = terms[0] if terms else s.constant(0)
    for term in terms[1:]:
        total = s("add", total, term)
    return total


def subject(dynamics: Graph, n: int, m: int, *, box: Any = 100, limit: Any = 1, rest: Any = None) -> dict[str, Any]:
    """A plant subject with full observation, symmetric boxes and the equilibrium ``rest`` (0 by default)."""

    def texts(value: Any, size: int) -> list[str]:
        return [rational_to_text(Fraction(value))] * size

    return {
        "state": [[f"x{i}", "1"] for i in range(n)],
        "action": [[f"u{i}", "1"] for i in range(m)],
        "observation": [[f"x{i}", "1"] for i in range(n)],
        "dt": "1/20",
        "scheme": "Euler",
        "state_box": [texts(-Fraction(box), n), texts(box, n)],
        "action_box": [texts(-Fraction(limit), m), texts(limit, m)],
        "equilibrium": {"state": texts(0, n) if rest is None else [rational_to_text(Fraction(v)) for v in rest], "action": texts(0, m)},
        "dynamics": graph_to_json(dynamics),
        "observe": graph_to_json(identity(n)),
    }


def interval(rho: Any, low: Any, high: Any) -> dict[str, Any]:
    """The region {low <= x <= high, x^2 <= rho} of a scalar loop."""
    low, high, rho = (rational_to_text(Fraction(v)) for v in (low, high, rho))
    return {"low": [low], "high": [high], "P": [["1"]], "rho": rho}


def counterexample(folder: Path, property: Any, region: Any, policy: Graph, **parts: Any) -> Path:
    """Write a counterexample; ``parts`` are ``plant``, ``evidence``, ``arithmetic`` and so on."""
    return write_certificate(folder, kind="counterexample", claim={"property": property, "region": region}, policy=policy, **parts)


def saturated_scalar() -> dict[str, Any]:
    """Plant and policy of x+ = 1.2 x - sat(x / 2), whose region of attraction is (-5, 5)."""
    return {"plant": linear_plant([["6/5"]], [[1]]), "policy": gain([-0.5])}
