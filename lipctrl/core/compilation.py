"""Turn a Graph into a list of ready steps, once, for an evaluation that will run many times.

An evaluation is an object with one attribute per operation of the graph. Operations without attributes (``sin``,
``add``) are functions of their operands; the others (``clip``, ``affine``, ...) take the node's attributes, tensors
instead of their names, and return such a function, with every constant already converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lipctrl.certificates.checker.graph import BINARY, ELEMENTWISE, Graph

Step = Callable[..., Any]


def compile_steps(graph: Graph, operations: Any) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Compile a graph in an evaluation; the result maps input values by name to the values of all nodes.

    Where ``operations`` has an attribute ``constant``, constants are computed once, here.
    """
    start: list[Any] = [None] * len(graph.nodes)
    names: list[tuple[int, str]] = []
    steps: list[tuple[int, Step, tuple[int, ...]]] = []
    for index, node in enumerate(graph.nodes):
        if node.op == "input":
            names.append((index, node.attributes["name"]))
        elif node.op == "constant":
            start[index] = operations.constant(**node.attributes)
        else:
            step = getattr(operations, node.op)
            if node.op not in ELEMENTWISE and node.op not in BINARY and node.op != "concatenate":
                step = step(**_with_tensors(graph, node.attributes))
            steps.append((index, step, node.inputs))

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        values = start.copy()
        for index, name in names:
            values[index] = inputs[name]
        for index, step, operands in steps:
            if len(operands) == 1:
                values[index] = step(values[operands[0]])
            elif len(operands) == 2:
                values[index] = step(values[operands[0]], values[operands[1]])
            else:
                values[index] = step(*[values[i] for i in operands])
        return values

    return run


def _with_tensors(graph: Graph, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: graph.tensors[v] if k in ("weight", "bias", "offset") and v is not None else v for k, v in attributes.items()}
