"""How strongly the output of a graph depends on each of its units: one sweep from the output back. Nothing here is trusted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Place


class Sensitivities:
    """Rows (q, n) of d(output)/d(what leaves each coordinate-wise node), for nodes that are linear with the ``slopes`` given.

    ``slopes`` are the noted ones of ``local_slopes``, a number each; ``factors`` what enters products and quotients. At ``min``
    and ``max`` it is the switch between both signals that has the sensitivity. What is unknown counts as 0.
    """

    def __init__(self, slopes: Mapping[Place, Array], factors: Mapping[Place, tuple[Array, Array]]) -> None:
        self.found: dict[Place, Array] = {}
        self._slopes, self._factors = slopes, factors

    def sweep(self, graph: Graph, rows: Array, path: tuple[int, ...] = ()) -> Array:
        """Note the sensitivities of all units for these combinations ``rows`` (q, outputs) of outputs; returns those to the input."""
        (output,) = graph.outputs.values()
        leaving = [np.zeros((len(rows), size)) for size in graph.sizes[: output + 1]]
        leaving[output] += rows
        entering = np.zeros((len(rows), 0))
        for index in range(output, -1, -1):
            node, place = graph.nodes[index], (*path, index) if path else index
            if node.op == "input":
                entering = leaving[index]
            elif leaving[index].any():
                for operand, part in zip(node.inputs, self._parts(graph, node, place, leaving[index]), strict=True):
                    short = leaving[operand].shape[1] == 1 < part.shape[1]  # a signal of length 1 that is repeated
                    leaving[operand] += part.sum(1, keepdims=True) if short else part
        return entering

    def _parts(self, graph: Graph, node: Node, place: Place, rows: Array) -> list[Array]:
        """What each operand of a node passes on."""
        op, sizes = node.op, [graph.sizes[i] for i in node.inputs]
        if op == "affine":
            return [rows @ graph.tensors[node.attributes["weight"]]]
        if op in ("add", "sub"):
            return [rows, rows if op == "add" else -rows]
        if op == "neg":
            return [-rows]
        if op == "concatenate":
            return np.split(rows, np.cumsum(sizes)[:-1], axis=1)
        if op == "select":
            part = np.zeros((len(rows), sizes[0]))
            np.add.at(part.T, list(node.attributes["indices"]), rows.T)
            return [part]
        if op == "recentre":
            path = place if isinstance(place, tuple) else (place,)
            return [self.sweep(node.attributes["graph"], rows, path)]
        if op in ("mul", "div") and place in self._factors:
            first, second = self._factors[place]
            return [rows * second, rows * first] if op == "mul" else [rows / second, -rows * first / second**2]
        if place not in self._slopes:
            return [np.zeros((len(rows), size)) for size in sizes]
        self.found[place], passed = rows, rows * self._slopes[place]
        if op not in ("min", "max"):
            return [passed]
        swapped = graph.nodes[node.inputs[0]].op == "constant"
        return [rows - passed, passed] if swapped else [passed, rows - passed]
