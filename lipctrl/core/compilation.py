"""Turn a Graph into a list of ready steps, once, for an evaluation that will run many times.

An evaluation is an object with one attribute per operation of the graph. Operations without attributes (``sin``,
``add``) are functions of their operands; the others (``clip``, ``affine``, ...) take the node's attributes, tensors
instead of their names, and return such a function, with every constant already converted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from lipctrl.certificates.checker.graph import BINARY, ELEMENTWISE, TENSOR_KEYS, Graph
from lipctrl.core.errors import InputError

Step = Callable[..., Any]


def compile_steps(graph: Graph, operations: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Compile a graph in an evaluation; the result maps input values by name to output values by name.

    Where ``operations`` has an attribute ``constant``, constants are computed once, here. A value is let go as soon as nobody
    reads it any more: the next one then takes its memory, which is still in the processor's cache. Raises InputError, which names
    the node, where an operation refuses its attributes.
    """
    registers = _registers(graph)
    start: list[Any] = [None] * (max(registers, default=-1) + 1)
    names: list[tuple[int, str]] = []
    steps: list[tuple[int, Step, tuple[int, ...]]] = []
    for index, node in enumerate(graph.nodes):
        if node.op == "input":
            names.append((registers[index], node.attributes["name"]))
        elif node.op == "constant":
            start[registers[index]] = operations.constant(**node.attributes)
        else:
            step = getattr(operations, node.op)
            if node.op not in ELEMENTWISE and node.op not in BINARY and node.op != "concatenate":
                try:
                    step = step(**_with_tensors(graph, node.attributes))
                except InputError as error:
                    raise InputError(f"node {index} ({node.op!r}): {error}") from error
            steps.append((registers[index], step, tuple(registers[i] for i in node.inputs)))
    outputs = [(name, registers[index]) for name, index in graph.outputs.items()]

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        values = start.copy()
        for register, name in names:
            values[register] = inputs[name]
        for register, step, operands in steps:
            if len(operands) == 1:
                values[register] = step(values[operands[0]])
            elif len(operands) == 2:
                values[register] = step(values[operands[0]], values[operands[1]])
            else:
                values[register] = step(*[values[i] for i in operands])
        return {name: values[register] for name, register in outputs}

    return run


def _registers(graph: Graph) -> list[int]:
    """Where each node's value is kept. A node takes the place of an operand that nobody reads after it, if there is one."""
    last = {operand: index for index, node in enumerate(graph.nodes) for operand in node.inputs}
    kept = {*graph.outputs.values(), *(index for index, node in enumerate(graph.nodes) if node.op in ("input", "constant"))}
    registers: list[int] = []
    fresh = itertools.count()
    for index, node in enumerate(graph.nodes):
        ending = (operand for operand in node.inputs if last[operand] == index and operand not in kept)
        operand = next(ending, None)
        registers.append(next(fresh) if operand is None else registers[operand])
    return registers


def _with_tensors(graph: Graph, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: graph.tensors[v] if k in TENSOR_KEYS and v is not None else v for k, v in attributes.items()}
