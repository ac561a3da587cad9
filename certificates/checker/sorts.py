"""Sorted groups written as other operations, exactly, by rounds of neighbours that change places (odd-even transposition).

As absolute values, min(a, b) and max(a, b) being (a + b -+ |b - a|) / 2: where the order of two coordinates never changes their
absolute difference is linear, and so the sort is a permutation there. Or as ``min`` and ``max`` themselves, which rise with both.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph, GraphError, Node
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.verdict import Rejected

MAX_PRODUCTS = 8_000_000  #: products in the affine nodes that replace sorts


def without_sorts(graph: Graph) -> Graph:
    """The same function with every ``group_sort``, also inside ``recentre``, replaced; the graph itself where there is none.

    Raises Rejected where that would be too large.
    """
    return _rewritten(graph, [MAX_PRODUCTS], _Rewriting)


def with_comparators(graph: Graph) -> Graph:
    """The same function with every ``group_sort`` replaced by ``min`` and ``max`` of neighbours; the graph itself where there is none.

    Raises Rejected where that would be too large.
    """
    try:
        return _rewritten(graph, [MAX_PRODUCTS], _Comparing)
    except GraphError as error:
        raise Rejected(f"sorts written as comparisons: {error}") from error


def _rewritten(graph: Graph, left: list[int], how: type[_Rewriting]) -> Graph:
    return how(graph, left).result() if _has_sorts(graph) else graph


def _has_sorts(graph: Graph) -> bool:
    return any(node.op == "group_sort" or (node.op == "recentre" and _has_sorts(node.attributes["graph"])) for node in graph.nodes)


@dataclass
class _Rewriting:
    """A graph under construction from ``graph``; ``place[i]`` is where its node i has gone, ``left`` counts products down."""

    graph: Graph
    left: list[int]
    nodes: list[Node] = field(default_factory=list)
    place: list[int] = field(default_factory=list)
    added: dict[str, Array] = field(default_factory=dict)

    def result(self) -> Graph:
        for index, node in enumerate(self.graph.nodes):
            inputs = tuple(self.place[i] for i in node.inputs)
            if node.op == "group_sort":
                self.place.append(self._sorted(inputs[0], self.graph.sizes[index], node.attributes["group_size"]))
                continue
            if node.op == "recentre":
                node = replace(node, attributes={**node.attributes, "graph": _rewritten(node.attributes["graph"], self.left, type(self))})
            self.place.append(self._add(node.op, *inputs, **node.attributes))
        outputs = {name: self.place[index] for name, index in self.graph.outputs.items()}
        return Graph(tuple(self.nodes), outputs, {**self.graph.tensors, **self.added}, self.graph.nesting)

    def _add(self, op: str, *inputs: int, **attributes: Any) -> int:
        self.nodes.append(Node(op, inputs, attributes))
        return len(self.nodes) - 1

    def _affine(self, weight: Array, operand: int) -> int:
        name = f"sort {len(self.added)}"
        while name in self.graph.tensors:
            name += "'"
        self.added[name] = weight
        return self._add("affine", operand, weight=name, bias=None)

    def _sorted(self, index: int, size: int, group_size: int) -> int:
        """Node ``index`` (of this size) with its groups sorted, ascending: a new node."""
        largest = min(group_size, size)
        rounds = 1 if largest <= 2 else largest
        self.left[0] -= rounds * self._cost(size)
        if self.left[0] < 0:
            raise Rejected(f"sorting {size} signals in groups of {group_size} needs more than {MAX_PRODUCTS} products")
        position = np.arange(size) % group_size
        for turn in range(rounds):
            first = np.flatnonzero((position[:-1] % 2 == turn % 2) & (position[1:] > 0))
            if first.size:
                index = self._compared(index, size, first)
        return index

    def _cost(self, size: int) -> int:
        """Products in a round, or what takes as long."""
        return 2 * size * size

    def _compared(self, index: int, size: int, first: Array) -> int:
        """Node ``index`` where the neighbours at ``first`` and one further have changed places unless they are in order: a new node."""
        difference, pairs = np.zeros((len(first), size)), np.arange(len(first))
        difference[pairs, first], difference[pairs, first + 1] = -1, 1
        back = np.eye(size, size + len(first))
        for rows, sign in ((first, -0.5), (first + 1, 0.5)):
            back[rows, first] = back[rows, first + 1] = 0.5
            back[rows, size + pairs] = sign
        distance = self._add("abs", self._affine(difference, index))
        return self._affine(back, self._add("concatenate", index, distance))


class _Comparing(_Rewriting):
    """By ``min`` and ``max``."""

    def _cost(self, size: int) -> int:
        return 8 * size

    def _compared(self, index: int, size: int, first: Array) -> int:
        left, right = (self._add("select", index, indices=tuple(at.tolist())) for at in (first, first + 1))
        whole = self._add("concatenate", index, self._add("min", left, right), self._add("max", left, right))
        order, pairs = np.arange(size), np.arange(len(first))
        order[first], order[first + 1] = size + pairs, size + len(first) + pairs
        return self._add("select", whole, indices=tuple(order.tolist()))
