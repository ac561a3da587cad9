"""Chains: networks whose affine maps and activations follow one another, the form that methods for very large networks need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Affine, Network, Sort, read_network
from lipctrl.certificates.checker.verdict import Rejected

MAX_IDENTITY = 1024  #: inputs of a chain that has no affine node


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


def read_chain(graph: Graph) -> Chain:
    """The chain that the graph is. Raises Rejected, naming the operation, where it is none."""
    return chain_of(read_network(graph))


def chain_of(network: Network) -> Chain:
    """The network as a chain; affine maps in a row are joined by linear units. Raises Rejected where it is none."""
    hidden: list[Hidden] = []
    weight: Array | None = None
    for index, signal in enumerate(network.signals[1:], start=1):
        if not isinstance(signal, Affine | Activation | Sort) or signal.operand != index - 1:
            raise Rejected(f"{type(signal).__name__} of signals that skip layers is not part of a chain")
        before = network.signals[index - 1]
        if isinstance(signal, Affine):
            if isinstance(before, Affine):
                ones = np.ones(before.size)
                hidden.append(Hidden(before.weight, ones, ones))
            weight = signal.weight
        elif not isinstance(before, Affine) or weight is None or index == network.output:
            raise Rejected("in a chain every activation or group_sort stands alone between two affine nodes, not at an end")
        elif isinstance(signal, Activation):
            hidden.append(Hidden(weight, signal.low, signal.high))
        else:
            hidden.append(Hidden(weight, np.zeros(signal.size), np.ones(signal.size), signal.group_size))
    if weight is None:
        if network.inputs > MAX_IDENTITY:
            raise Rejected(f"a chain without affine nodes has {network.inputs} inputs, at most {MAX_IDENTITY} are accepted")
        weight = np.eye(network.inputs)
    return Chain(network.input_gain, tuple(hidden), weight, network.output_gain)
