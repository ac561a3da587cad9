"""How much work and memory the enclosure of one step takes, counted from the graphs before any of it is done.

The unit of work is one interval operation on one number: about 30 ns on one core of 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipctrl.certificates.checker.cells import Loop
from lipctrl.certificates.checker.graph import Graph, Node

PER_NODE, PER_OPERAND = 2000, 600  #: units that a node, and each of its operands, cost however small the batch is
PER_IMPLICIT = 200_000  #: units that an implicit layer costs beside them
BATCH = 2048  #: cells at a time, at most
MAX_FLOATS = 1 << 25  #: numbers that are kept for one batch
_EXTRA = {
    **dict.fromkeys("sin cos tan tanh sigmoid softplus silu".split(), 40),
    **dict.fromkeys("exp log erf gelu".split(), 1000),
}  #: units for each entry, beside its slopes


@dataclass(frozen=True)
class Work:
    """Units for each cell and each batch of cells, and numbers kept for each cell."""

    cell: int
    batch: int
    floats: int

    @property
    def cells_at_once(self) -> int:
        """Cells in a batch: as many as memory allows, 0 where not even one fits."""
        return min(BATCH, MAX_FLOATS // self.floats)

    def total(self, cells: int) -> int:
        """Units for this many cells of one kind; needs ``cells_at_once`` > 0."""
        return cells * self.cell + -(-cells // self.cells_at_once) * self.batch


def work_of_step(loop: Loop) -> Work:
    """The work of :meth:`Loop.step` and of what it does to V."""
    rounded = loop.arithmetic == "float32"
    n = loop.dimension
    seeds = n + (len(loop.plant.action) if rounded else 0)
    parts = [work_of_graph(graph, seeds) for graph in (loop.plant.observe, loop.plant.dynamics, *[loop.policy] * (3 if rounded else 1))]
    cell, batch, floats = (sum(part) for part in zip(*parts, strict=True))
    return Work(cell + n * seeds * (n + seeds) // 4, batch, floats + 8 * seeds * (n + seeds))


def work_of_graph(graph: Graph, seeds: int) -> tuple[int, int, int]:
    """The enclosure of a graph in this many seed coordinates: (units for a cell, units for a batch, numbers kept for a cell).

    The float32 error evaluates recentred graphs once more.
    """
    cell, batch, floats = 0, sum(PER_NODE + PER_OPERAND * len(node.inputs) for node in graph.nodes), 0
    for node, size in zip(graph.nodes, graph.sizes, strict=True):
        if node.op == "recentre":
            inner = work_of_graph(node.attributes["graph"], seeds)
            cell, batch, floats = cell + 2 * inner[0], batch + 2 * inner[1], floats + 2 * inner[2]
        cell += size * (_repeats(node) * (seeds + 3) + _EXTRA.get(node.op, 0))
        floats += size * (2 * seeds + 6)
        if node.op == "affine":
            products = graph.tensors[node.attributes["weight"]].size
            cell, batch = cell + products * (seeds + 3) // 128, batch + products
        if node.op == "implicit":  # solutions by splitting and Newton steps, an inverse for each cell, then sweeps
            cell, batch = cell + size * (500 + size * (60 + 2 * seeds) + 3 * size**2), batch + PER_IMPLICIT + size**3
            floats += 6 * size**2
        if node.op == "group_sort":
            floats += size * min(size, node.attributes["group_size"]) // 2
    return cell, batch, floats


def _repeats(node: Node) -> int:
    return int(node.attributes.get("exponent", node.attributes.get("group_size", 2))) + 2
