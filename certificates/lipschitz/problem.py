"""What a search for a Lipschitz bound is given: a network in file form, the norm and its scales, and the checker's code as judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Network, read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import NORMS, effective_scales, prove_lipschitz
from lipctrl.certificates.lipschitz.given import as_texts, scale_of
from lipctrl.certificates.lipschitz.records import UpperBound
from lipctrl.core.errors import InputError

Vector = tuple[Fraction, ...]


@dataclass(frozen=True)
class Problem:
    """A network in file form and its network form, with the scales of the norm as given (exact) and as they act at its ends."""

    graph: Graph
    network: Network
    norm: str
    input_scale: Vector | None
    output_scale: Vector | None
    scale_in: Array
    scale_out: Array

    @property
    def scales(self) -> tuple[Vector, Vector]:
        """The scales of the norm at the graph's own ends, ones where none were given."""
        return self.input_scale or _ones(self.network.inputs), self.output_scale or _ones(self.network.outputs)

    def proved(self, bound: float, evidence: Mapping[str, Any], gap: float | None = None) -> UpperBound | None:
        """The bound as a record if the checker's code accepts it, else ``None``."""
        scales = as_texts(self.input_scale), as_texts(self.output_scale)
        claim = {"property": "lipschitz", "norm": self.norm, **dict(zip(("input_scale", "output_scale"), scales, strict=True))}
        claim["bound"] = float(bound).hex()
        try:
            prove_lipschitz(self.graph, claim, evidence)
        except Rejected:
            return None
        return UpperBound(float(bound), evidence["method"], claim, evidence, gap)


def read_problem(graph: Graph, norm: str, input_scale: Any, output_scale: Any) -> Problem:
    """The problem for a graph in file form. Raises InputError where the network or an argument does not fit."""
    if norm not in NORMS:
        raise InputError(f"norm is {norm!r}, expected one of {', '.join(NORMS)}")
    try:
        network = read_network(graph)
        first, last = scale_of(input_scale, network.inputs, "input_scale"), scale_of(output_scale, network.outputs, "output_scale")
        scales = effective_scales(network, first or _ones(network.inputs), last or _ones(network.outputs))
    except Rejected as error:
        raise InputError(f"this network cannot be bounded: {error}") from error
    return Problem(graph, network, norm, first, last, *scales)


def _ones(length: int) -> Vector:
    return (Fraction(1),) * length
