"""The network form: what a Lipschitz proof needs to know about a Graph, read from its nodes and nothing else.

It is a list of signals, each made of earlier ones: affine maps, sums and differences, concatenations, selections, sorted groups,
implicit layers, and coordinate-wise maps with an interval of slopes for each coordinate. Only increments matter, so shifts are left
out. Every run of coordinate-wise maps (scales, clips, activations) becomes one map, its slopes rounded outwards, so that scales that
are no binary fractions are never multiplied into weights. What does not fit is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lipctrl.certificates.checker.graph import Graph, GraphError, Node
from lipctrl.certificates.checker.implicit import margin
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.slopes import SLOPES, compose, slopes_of
from lipctrl.certificates.checker.verdict import Rejected

MAX_FRACTIONS = 400_000  #: exact numbers, and four for each product of slopes, in all coordinate-wise maps

Place = int | tuple[int, ...]  #: a node's index in a graph, or a path to it through ``recentre`` nodes
Slopes = Mapping[Place, Interval]  #: slopes that were proved for coordinate-wise nodes on some set


@dataclass(frozen=True)
class Input:
    """The input, after the coordinate-wise maps that the network's ``input_gain`` bounds."""

    size: int


@dataclass(frozen=True)
class Affine:
    """W times signal ``operand``; ``weight`` W (n_out, n_in) holds the stored floats as float64."""

    operand: int
    weight: Array

    @property
    def size(self) -> int:
        """Length of the signal."""
        return len(self.weight)


@dataclass(frozen=True)
class Sum:
    """Signal ``first`` plus ``sign`` (1 or -1) times signal ``second``, of equal sizes."""

    first: int
    second: int
    sign: float
    size: int


@dataclass(frozen=True)
class Concatenation:
    """The signals ``operands``, one after the other."""

    operands: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Selection:
    """The coordinates ``indices`` of signal ``operand``."""

    operand: int
    indices: Array

    @property
    def size(self) -> int:
        """Length of the signal."""
        return len(self.indices)


@dataclass(frozen=True)
class Activation:
    """A coordinate-wise map of signal ``operand`` with slopes in [``low``, ``high``], each (n,).

    Coordinates whose slopes are a single number are linear: they need no variable and no multiplier.
    """

    operand: int
    low: Array
    high: Array

    @property
    def size(self) -> int:
        """Length of the signal."""
        return len(self.low)

    @property
    def gain(self) -> Array:
        """The greatest absolute slope of each coordinate, (n,)."""
        return Interval(self.low, self.high).magnitude

    @property
    def free(self) -> Array:
        """Indices of the coordinates that are not linear."""
        return np.flatnonzero(self.low != self.high)

    @property
    def multipliers(self) -> int:
        """How many multipliers it has: one for each coordinate that is not linear."""
        return len(self.free)

    variables = multipliers  #: how many coordinates of its output are not linear in its input


@dataclass(frozen=True)
class Sort:
    """Signal ``operand`` (``size`` long) sorted inside consecutive groups of ``group_size``; the last may be smaller."""

    operand: int
    size: int
    group_size: int

    @property
    def multipliers(self) -> int:
        """How many multipliers it has: one for each group."""
        return -(-self.size // self.group_size)

    @property
    def variables(self) -> int:
        """How many coordinates of its output are not linear in its input: the sums of groups are."""
        return self.size - self.multipliers


@dataclass(frozen=True)
class Implicit:
    """dz = S (D dz + dv) for signal ``operand`` v, with slopes S in [``low``, ``high``], each (n,), inside [0, 1].

    ``weight`` D (n, n) holds the stored floats as float64; it is proved that sum_i metric_i u_i (u - D u)_i is at least
    ``margin`` > 0 times sum_i metric_i u_i^2 for all u, see :mod:`lipctrl.certificates.checker.implicit`.
    """

    operand: int
    weight: Array
    metric: Array
    margin: float
    low: Array
    high: Array

    @property
    def size(self) -> int:
        """Length of the signal."""
        return len(self.weight)

    @property
    def free(self) -> Array:
        """Indices of all coordinates: each is a variable, also where its slope is a single number."""
        return np.arange(self.size)

    @property
    def multipliers(self) -> int:
        """How many multipliers it has: one for each coordinate."""
        return self.size

    variables = multipliers  #: how many coordinates of its output are not linear in its input


Layer = Activation | Sort | Implicit
Signal = Input | Affine | Sum | Concatenation | Selection | Activation | Sort | Implicit


@dataclass(frozen=True)
class Network:
    """Signals in an order in which each reads earlier ones; signal 0 is the Input.

    ``output`` is the signal that leaves, before coordinate-wise maps whose absolute slopes ``output_gain`` (n_out,) bounds;
    ``input_gain`` (n_in,), positive, bounds those of the maps before signal 0.
    """

    signals: tuple[Signal, ...]
    output: int
    input_gain: Array
    output_gain: Array

    @property
    def inputs(self) -> int:
        """Length of the input."""
        return self.signals[0].size

    @property
    def outputs(self) -> int:
        """Length of the output."""
        return self.signals[self.output].size

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The signals that may have multipliers, in order."""
        return tuple(signal for signal in self.signals if isinstance(signal, Layer))

    @property
    def variables(self) -> list[int]:
        """The blocks of a multiplier matrix: the input, then each layer."""
        return [self.inputs, *(layer.variables for layer in self.layers)]


def read_network(graph: Graph, slopes: Slopes | None = None) -> Network:
    """The network form of a graph with one input and one output. Raises Rejected, naming the operation, where there is none.

    ``slopes`` narrows coordinate-wise nodes, on a set of inputs where the caller has proved it: (n,) each, at the node's index,
    or at the path (index of ``recentre``, ..., index) of a node inside. At the ``input`` node itself a slope 0 fixes a
    coordinate. At ``min`` or ``max`` of two signals they are slopes in the first one.
    """
    if len(graph.input_sizes) != 1 or len(graph.outputs) != 1:
        raise Rejected(f"a network form has one input and one output, got {list(graph.input_sizes)} and {list(graph.outputs)}")
    steps = _Steps({} if slopes is None else slopes)
    return _Builder(steps, steps.follow(graph, None, ())).build()


@dataclass(frozen=True)
class _Step:
    """A node that changes increments, at ``place`` in the whole graph, and the steps that it reads."""

    graph: Graph
    index: int
    place: Place
    operands: tuple[int, ...]

    @property
    def node(self) -> Node:
        return self.graph.nodes[self.index]

    @property
    def size(self) -> int:
        return self.graph.sizes[self.index]

    @property
    def is_coordinate_wise(self) -> bool:
        return len(self.operands) == 1 and self.node.op not in ("affine", "group_sort", "select", "concatenate", "implicit")


@dataclass
class _Steps:
    """The nodes that the output rests on, in order, with ``recentre`` followed into its graph and shifts left out."""

    slopes: Slopes
    steps: list[_Step] = field(default_factory=list)

    def follow(self, graph: Graph, entering: int | None, path: tuple[int, ...]) -> int:
        """Append the steps of a graph whose input is step ``entering``; returns the step of its output."""
        (output,) = graph.outputs.values()
        found: dict[int, int] = {}
        for index in _ancestors(graph, output):
            node = graph.nodes[index]
            operands = tuple(found[i] for i in node.inputs if i in found)
            if node.op == "constant":
                continue
            if node.op == "input" and entering is not None:
                found[index] = entering
            elif node.op == "recentre":
                found[index] = self.follow(node.attributes["graph"], _one(node, operands), (*path, index))
            elif node.op in ("add", "sub") and len(operands) == 1 and node.inputs[0] in found:
                found[index] = operands[0]
                _same_size(node, graph, index)
            else:
                if node.op != "input" and not operands:
                    raise Rejected(f"{node.op!r} of 0 signals is no part of a network form")
                self.steps.append(_Step(graph, index, (*path, index) if path else index, operands))
                found[index] = len(self.steps) - 1
                if node.op not in ("input", "affine", "concatenate", "select"):
                    _same_size(node, graph, index)
        if output not in found:
            raise Rejected("the output of this graph is a constant")
        return found[output]

    def proved(self, step: _Step) -> Interval | None:
        """The slopes that were given for a step, of its size and finite."""
        given = self.slopes.get(step.place)
        if given is not None and not (given.low.shape == given.high.shape == (step.size,) and bool(np.isfinite(given.magnitude).all())):
            raise Rejected(f"slopes of node {step.place} are not {step.size} finite intervals")
        return given


def _ancestors(graph: Graph, output: int) -> list[int]:
    """The output and everything that it rests on, in order."""
    needed, waiting = {output}, [output]
    while waiting:
        for operand in graph.nodes[waiting.pop()].inputs:
            if operand not in needed:
                needed.add(operand)
                waiting.append(operand)
    return sorted(needed)


def _one(node: Node, operands: tuple[int, ...]) -> int:
    if len(operands) != 1:
        raise Rejected(f"{node.op!r} of {len(operands)} signals is no part of a network form")
    return operands[0]


def _same_size(node: Node, graph: Graph, index: int) -> None:
    for operand in node.inputs:
        if graph.nodes[operand].op != "constant" and graph.sizes[operand] != graph.sizes[index]:
            raise Rejected(f"{node.op!r} repeats a signal of length 1; write that as an affine node")


class _Builder:
    """Turns steps into signals: ``place[step]`` is the signal of a step, ``readers[step]`` counts those who read it."""

    def __init__(self, steps: _Steps, last: int) -> None:
        self.all, self.steps, self.last = steps, steps.steps, last
        self.signals: list[Signal] = [Input(self.steps[0].size)]
        self.place: list[int] = []
        self.fractions = 0
        self.weights: dict[int, Array] = {}  # by the id of their tensor, as float64: a weight may be used many times
        self.readers = [0] * len(self.steps)
        for step in self.steps:
            for operand in step.operands:
                self.readers[operand] += 1

    def build(self) -> Network:
        size = self.signals[0].size
        gain = np.broadcast_to(self._entering().magnitude, size)
        fixed = gain == 0
        if fixed.any():  # coordinates that do not pass: from here on their increments are 0
            self.signals.append(Activation(0, *2 * (np.where(fixed, 0.0, 1.0),)))
            self.place = [1] * len(self.place)
        for step in self.steps[len(self.place) :]:
            self.place.append(self._signal(step))
        output = self.place[self.last]
        signal, leaving = self.signals[output], np.ones(self.signals[output].size)
        if isinstance(signal, Activation):
            output, leaving = signal.operand, signal.gain
            self.signals.pop()  # nobody reads what leaves, so it is the last
        return Network(tuple(self.signals), output, np.where(fixed, 1.0, gain), leaving)

    def _entering(self) -> Interval:
        """Slopes of the run of coordinate-wise maps that alone read the input; they are placed at signal 0."""
        one = np.ones(1)
        total = self.all.proved(self.steps[0]) or Interval(one, one)
        self.place.append(0)
        for step in self.steps[1:]:
            if self.readers[len(self.place) - 1] != 1 or not step.is_coordinate_wise:
                break
            total = self._composed(total, self._slopes(step))
            self.place.append(0)
        return total

    def _signal(self, step: _Step) -> int:
        """The signal of one more step, new or an earlier one that the step was taken into."""
        node = step.node
        operands = tuple(self.place[i] for i in step.operands)
        if step.is_coordinate_wise:
            return self._activation(step, operands[0])
        if node.op == "affine":
            return self._add(Affine(operands[0], self._tensor(step, "weight")))
        if node.op == "implicit":
            return self._implicit(step, operands[0])
        if node.op == "group_sort":
            return self._add(Sort(operands[0], step.size, node.attributes["group_size"]))
        if node.op == "select":
            return self._add(Selection(operands[0], np.array(node.attributes["indices"], dtype=np.int64)))
        if node.op == "concatenate" and len(operands) == len(node.inputs):
            return self._add(Concatenation(operands, step.size))
        if node.op in ("add", "sub") and len(operands) == 2:
            return self._add(Sum(*operands, 1.0 if node.op == "add" else -1.0, step.size))
        if node.op in ("min", "max") and len(operands) == 2:  # max(a, b) = b + relu(a - b), min(a, b) = b - relu(b - a)
            sign = 1.0 if node.op == "max" else -1.0
            greater, other = operands if node.op == "max" else operands[::-1]
            switch = self._switch(step, self._add(Sum(greater, other, -1.0, step.size)))
            return self._add(Sum(operands[1], switch, sign, step.size))
        raise Rejected(f"{node.op!r} of {len(operands)} signals is no part of a network form")

    def _tensor(self, step: _Step, key: str) -> Array:
        tensor = step.graph.tensors[step.node.attributes[key]]
        if id(tensor) not in self.weights:
            self.weights[id(tensor)] = tensor.astype(np.float64)
        return self.weights[id(tensor)]

    def _implicit(self, step: _Step, operand: int) -> int:
        low, high = (np.full(step.size, float(end)) for end in SLOPES[step.node.attributes["activation"]])
        slopes = self._narrowed(Interval(low, high), step)
        weight, metric = self._tensor(step, "weight"), self._tensor(step, "metric")
        try:
            proved = margin(weight, metric)
        except GraphError as error:
            raise Rejected(str(error)) from error
        return self._add(Implicit(operand, weight, metric, proved, slopes.low, slopes.high))

    def _activation(self, step: _Step, operand: int) -> int:
        before, slopes = self.signals[operand], self._slopes(step)
        if isinstance(before, Activation) and self.readers[step.operands[0]] == 1:
            slopes = self._composed(Interval(before.low, before.high), slopes)
            self.signals[operand] = Activation(before.operand, slopes.low, slopes.high)
            return operand
        return self._add(Activation(operand, *(np.broadcast_to(end, step.size) for end in (slopes.low, slopes.high))))

    def _switch(self, step: _Step, operand: int) -> int:
        slopes = self._narrowed(Interval(np.zeros(step.size), np.ones(step.size)), step)
        return self._add(Activation(operand, slopes.low, slopes.high))

    def _add(self, signal: Signal) -> int:
        self.signals.append(signal)
        return len(self.signals) - 1

    def _slopes(self, step: _Step) -> Interval:
        if step.node.op in ("mul", "div"):
            self._count(step.size)
        return self._narrowed(slopes_of(step.graph, step.node), step)

    def _narrowed(self, known: Interval | None, step: _Step) -> Interval:
        """Slopes that hold for an operation everywhere, and those that were given for this step."""
        given = self.all.proved(step)
        slopes = given if known is None else known if given is None else known.intersect(given)
        if slopes is None:
            raise Rejected(f"operation {step.node.op!r} has unbounded slopes")
        if not bool(np.all(slopes.low <= slopes.high)):
            raise Rejected(f"slopes of node {step.place} contradict its operation {step.node.op!r}")
        return slopes

    def _composed(self, first: Interval, second: Interval) -> Interval:
        self._count(4 * max(first.low.size, second.low.size))
        return compose(first, second)

    def _count(self, fractions: int) -> None:
        """Before so many exact numbers are computed, which is slow."""
        self.fractions += fractions
        if self.fractions > MAX_FRACTIONS:
            raise Rejected(f"scales and runs of coordinate-wise maps need more than {MAX_FRACTIONS} exact numbers, more than are accepted")
