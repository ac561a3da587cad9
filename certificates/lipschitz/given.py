"""What a search is given: networks in the form that their files hold, scales of norms in exact numbers and as claims hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

from lipctrl.certificates.checker.graph import Graph, graph_from_json, graph_to_json, rational_to_text
from lipctrl.core.errors import InputError
from lipctrl.core.rationals import rationals


class HasGraph(Protocol):
    """Anything with a ``graph``, such as a policy: the Graph, or a function that makes it."""

    @property
    def graph(self) -> Graph | Callable[[], Graph]:
        """The network."""
        ...


def graph_of(network: Graph | HasGraph) -> Graph:
    """The network as it reads back from its file form: what a claim is about."""
    given = network if isinstance(network, Graph) else network.graph
    given = given if isinstance(given, Graph) else given()
    return graph_from_json(graph_to_json(given), given.tensors)


def scale_of(values: Any, size: int, name: str) -> tuple[Fraction, ...] | None:
    """The exact scale of a norm, one number for each of ``size`` coordinates or one for all; ``None`` where none is given.

    Raises InputError, which names the argument ``name``, where they are not positive numbers.
    """
    if values is None:
        return None
    scale = rationals(values, size, name)
    if not all(value > 0 for value in scale):
        raise InputError(f"{name} is {values!r}, expected positive numbers")
    return scale


def as_texts(scale: Sequence[Fraction] | None) -> list[str] | None:
    """A scale as a claim holds it."""
    return None if scale is None else [rational_to_text(value) for value in scale]
