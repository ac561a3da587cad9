"""The chain form of a network: what a Lipschitz proof needs to know about a Graph, read from its nodes and nothing else.

A chain is observation -> coordinate-wise maps -> affine -> activation -> ... -> affine -> coordinate-wise maps. Every run of
coordinate-wise maps (scales, clips, activations) becomes one interval of slopes per coordinate, rounded outwards, so that
scales that are no binary fractions are never multiplied into weights. What does not fit is refused by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

import numpy as np

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Array, Interval, from_fractions
from lipctrl.certificates.checker.verdict import Rejected

MAX_IDENTITY = 1024  #: inputs of a chain that has no affine node
MAX_COMPOSED = 500_000  #: exact products of slopes in one run of coordinate-wise maps

_ZERO, _ONE = Fraction(0), Fraction(1)
_GELU, _SILU, _ERF = Fraction(11_289_041_452, 10**10), Fraction(10_998_393_202, 10**10), Fraction(11_283_791_671, 10**10)

#: Incremental slopes (least, greatest) of the coordinate-wise operations; irrational ends are rounded outwards.
SLOPES: dict[str, tuple[Fraction, Fraction]] = {
    **dict.fromkeys("relu tanh softplus clip min max".split(), (_ZERO, _ONE)),
    **dict.fromkeys("abs sin cos".split(), (-_ONE, _ONE)),
    "add": (_ONE, _ONE),
    "neg": (-_ONE, -_ONE),
    "sigmoid": (_ZERO, Fraction(1, 4)),
    "erf": (_ZERO, _ERF),
    "gelu": (_ONE - _GELU, _GELU),
    "silu": (_ONE - _SILU, _SILU),
}


@dataclass(frozen=True)
class Hidden:
    """One hidden layer z = phi(W z_before + b) of n units.

    ``weight`` (n, n_before) holds the stored floats as float64. ``group_size`` 0: phi acts coordinate by coordinate with
    slopes in [``low``, ``high``], each (n,). Otherwise phi sorts consecutive groups of that size, and the slopes are 0 and 1.
    """

    weight: Array
    low: Array
    high: Array
    group_size: int = 0

    @property
    def gain(self) -> Array:
        """The greatest absolute slope of each unit, (n,)."""
        gain: Array = np.maximum(np.abs(self.low), np.abs(self.high))
        return gain

    @property
    def groups(self) -> int:
        """How many groups are sorted, the last may be smaller; 0 where none is."""
        return -(-len(self.weight) // self.group_size) if self.group_size else 0

    @property
    def multipliers(self) -> int:
        """How many multipliers the layer has: one for each unit, or for each group that is sorted."""
        return self.groups or len(self.weight)

    @property
    def variables(self) -> int:
        """How many coordinates of its output are not linear in its input: the sums of sorted groups are."""
        return len(self.weight) - self.groups


@dataclass(frozen=True)
class Chain:
    """``input_gain`` (n_in,) and ``output_gain`` (n_out,) bound the absolute slopes of the coordinate-wise maps at both ends,
    ``hidden`` are the layers between them and ``weight`` (n_out, n_last) is the last affine map."""

    input_gain: Array
    hidden: tuple[Hidden, ...]
    weight: Array
    output_gain: Array

    @property
    def inputs(self) -> int:
        """Length of the input."""
        return len(self.input_gain)

    @property
    def outputs(self) -> int:
        """Length of the output."""
        return len(self.output_gain)

    @property
    def variables(self) -> list[int]:
        """The blocks of a multiplier matrix: the input, then each hidden layer."""
        return [self.inputs, *(layer.variables for layer in self.hidden)]


@dataclass(frozen=True)
class _Affine:
    weight: Array


@dataclass(frozen=True)
class _Sort:
    group_size: int


_Step = _Affine | _Sort | Interval


def read_chain(graph: Graph) -> Chain:
    """The chain that the graph is. Raises Rejected, naming the operation, where it is none."""
    if len(graph.input_sizes) != 1 or len(graph.outputs) != 1:
        raise Rejected(f"a chain has one input and one output, got {list(graph.input_sizes)} and {list(graph.outputs)}")
    (size,) = graph.input_sizes.values()
    steps = _steps(graph)
    if not any(isinstance(step, _Affine) for step in steps):
        if size > MAX_IDENTITY:
            raise Rejected(f"a chain without affine nodes has {size} inputs, at most {MAX_IDENTITY} are accepted")
        steps = [_Affine(np.eye(size)), *steps]
    runs: list[list[_Sort | Interval]] = [[]]
    weights: list[Array] = []
    for step in steps:
        if isinstance(step, _Affine):
            weights.append(step.weight)
            runs.append([])
        else:
            runs[-1].append(step)
    hidden = tuple(_hidden(weight, run) for weight, run in zip(weights[:-1], runs[1:-1], strict=True))
    return Chain(_gain(runs[0], size), hidden, weights[-1], _gain(runs[-1], len(weights[-1])))


def _hidden(weight: Array, run: list[_Sort | Interval]) -> Hidden:
    size = len(weight)
    if len(run) == 1 and isinstance(run[0], _Sort):
        return Hidden(weight, np.zeros(size), np.ones(size), run[0].group_size)
    slopes = _slopes(run, size)
    return Hidden(weight, slopes.low, slopes.high)


def _gain(run: list[_Sort | Interval], size: int) -> Array:
    return _slopes(run, size).magnitude


def _slopes(run: list[_Sort | Interval], size: int) -> Interval:
    """Slopes of coordinate-wise maps one after the other."""
    maps = [step for step in run if isinstance(step, Interval)]
    if len(maps) != len(run):
        raise Rejected("group_sort is supported alone between two affine nodes, not at an end or beside other activations")
    if size * len(maps) > MAX_COMPOSED:
        raise Rejected(f"{len(maps)} coordinate-wise maps of {size} signals in a row, at most {MAX_COMPOSED} products are accepted")
    total = reduce(_compose, maps, Interval(np.ones(1), np.ones(1)))
    return Interval(np.broadcast_to(total.low, size), np.broadcast_to(total.high, size))


def _compose(first: Interval, second: Interval) -> Interval:
    """Products of slopes, exact and then rounded outwards; operands have equal length or length 1."""
    ends = np.broadcast_arrays(first.low, first.high, second.low, second.high)
    lows, highs = [], []
    for a, b, c, d in zip(*(end.tolist() for end in ends), strict=True):
        products = [Fraction(x) * Fraction(y) for x in (a, b) for y in (c, d)]
        lows.append(min(products))
        highs.append(max(products))
    return enclose(lows, highs)


def enclose(lows: list[Fraction], highs: list[Fraction]) -> Interval:
    """Floats below ``lows`` and above ``highs``, as near as there are. Raises Rejected where a number is beyond float64."""
    try:
        slopes = Interval(from_fractions(tuple(lows)).low, from_fractions(tuple(highs)).high)
    except OverflowError as error:
        raise Rejected("a scale is too large for float64") from error
    if not bool(np.isfinite(slopes.magnitude).all()):  # rounded outwards from just above the greatest float
        raise Rejected("a scale is too large for float64")
    return slopes


def _steps(graph: Graph) -> list[_Step]:
    """The operations between the input and the output, in order."""
    (index,) = graph.outputs.values()
    steps: list[_Step] = []
    while (node := graph.nodes[index]).op != "input":
        operands = [i for i in node.inputs if graph.nodes[i].op != "constant"]
        if len(operands) != 1:
            raise Rejected(f"{node.op!r} of {len(operands)} signals is not part of a chain; supported: one signal and constants")
        if node.op == "recentre":
            steps.extend(reversed(_steps(node.attributes["graph"])))
        else:
            if node.op != "affine" and graph.sizes[index] != graph.sizes[operands[0]]:
                raise Rejected(f"{node.op!r} repeats a signal of length 1; write that as an affine node")
            steps.append(_step(graph, node, operands[0]))
        index = operands[0]
    return steps[::-1]


def _step(graph: Graph, node: Node, operand: int) -> _Step:
    if node.op == "affine":
        return _Affine(graph.tensors[node.attributes["weight"]].astype(np.float64))
    if node.op == "group_sort":
        return _Sort(node.attributes["group_size"])
    if node.op in SLOPES:
        low, high = SLOPES[node.op]
        return enclose([low], [high])
    if node.op == "leaky_relu":
        slope = node.attributes["slope"]
        return enclose([min(slope, _ONE)], [max(slope, _ONE)])
    first = node.inputs[0] == operand
    if node.op == "sub":
        return enclose([_ONE if first else -_ONE], [_ONE if first else -_ONE])
    if node.op == "mul" or (node.op == "div" and first):
        factors = list(graph.nodes[node.inputs[1 if first else 0]].attributes["values"])
        if node.op == "div":
            if not all(factors):
                raise Rejected("'div' by a constant that is zero")
            factors = [1 / factor for factor in factors]
        return enclose(factors, factors)
    raise Rejected(f"operation {node.op!r} is not part of a chain: affine, group_sort, scales, shifts, clips and activations are")
