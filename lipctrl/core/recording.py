"""Run a Python function once on symbols and keep what it did as a Graph.

Write constants as ``Fraction(3, 20)`` or ``"0.15"`` where the decimal is meant: a float means its exact binary value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.rationals import rationals
from lipctrl.core.recorded_functions import group_sort, implicit  # the import fills the table of functions
from lipctrl.core.symbols import RecordingError, Symbol, Tape, Vector, tape_of

__all__ = ["RecordingError", "RecordingWarning", "group_sort", "implicit", "inline", "recentre", "record"]


class RecordingWarning(UserWarning):
    """A recorded function that works but is not what a proof needs, such as an equilibrium that is not exact."""


def record(function: Callable[..., Any], inputs: Mapping[str, int], output: str = "output", exact: bool = False) -> Graph:
    """Record ``function`` as a Graph with the named input vectors and one output vector.

    ``function`` is called once, with one vector symbol of the given size per input, in order. It may use Python
    arithmetic, slices, constant matrices from both sides, NumPy and torch functions, ``torch.nn`` layers, and returns a
    symbol, a list of numbers and symbols, or ``np.array([...])`` of scalar symbols. Float matrices and the weights of
    layers become tensors of the graph; with ``exact`` they become exact rational constants (plants hold no tensors).

    Raises RecordingError, naming the line, where the code asks for a symbol's value (``if``, ``==``, ``math.sin``) or
    leaves the closed list of operations.
    """
    tape = Tape(exact)
    symbols = [Vector(tape, tape.node("input", (), size, name=name, size=size)) for name, size in inputs.items()]
    result = function(*symbols)
    name = getattr(function, "__name__", "function")
    if result is None or isinstance(result, Mapping):
        raise RecordingError(f"{name} returned {type(result).__name__}, expected a vector: return np.stack([...])")
    return tape.graph({output: tape.lift(result).index})


def inline(graph: Graph, **inputs: Any) -> dict[str, Any]:
    """Apply a recorded Graph to symbols: its nodes are copied onto their tape. Returns vector symbols by output name.

    ``inputs`` holds one symbol (or list of numbers and symbols) per input of the graph. Raises RecordingError where
    names or sizes differ.
    """
    if set(inputs) != set(graph.input_sizes):
        raise RecordingError(f"the graph has inputs {sorted(graph.input_sizes)}, got {sorted(inputs)}")
    tape = tape_of(inputs.values())
    places: list[int] = []
    for node, size in zip(graph.nodes, graph.sizes, strict=True):
        if node.op == "input":
            symbol = tape.lift(inputs[node.attributes["name"]])
            if tape.sizes[symbol.index] != size:
                got = tape.sizes[symbol.index]
                raise RecordingError(f"input {node.attributes['name']!r} of the graph has {size} components, got {got}")
            places.append(symbol.index)
        else:
            places.append(tape.node(node.op, [places[i] for i in node.inputs], size, **tape.kept(graph, node)))
    return {name: Vector(tape, places[index]) for name, index in graph.outputs.items()}


def recentre(graph: Graph, value: Any, point: Any, offset: np.ndarray) -> Symbol:
    """``graph(value) - graph(point)``, over the reals by rule; in floating point the stored ``offset`` is subtracted.

    ``graph`` has one input and one output; ``point`` holds one exact number per component of ``value``.
    """
    symbol = tape_of([value]).lift(value)
    tape, (size,) = symbol.tape, graph.output_sizes.values()
    inner = tape.adopt(graph)
    exact = rationals(point, tape.sizes[symbol.index], "point")
    return Vector(tape, tape.node("recentre", (symbol.index,), size, graph=inner, point=exact, offset=tape.tensor(offset)))
