"""The parts from which a plant is built: ranges, quadratic costs, clipped and sampled equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.core.coordinates import Coordinate, coordinates
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import rational, rationals
from lipctrl.core.recording import inline, record
from lipctrl.envs.discretisation import SCHEMES, SECOND_ORDER, Equations

Rationals = tuple[Fraction, ...]
#: Unit and box of one coordinate: ``("rad", 12)`` is the box [-12, 12], ``("N", 0, 6)`` is [0, 6].
Range = tuple[str, Any] | tuple[str, Any, Any]


def quadratic(q: Rationals, r: Rationals, state: Rationals, action: Rationals) -> Equations:
    """(x - x*)' diag(q) (x - x*) + (u - u*)' diag(r) (u - u*), to be recorded."""

    def cost(x: Any, u: Any) -> Any:
        return np.sum(list(q) * (x - list(state)) ** 2) + np.sum(list(r) * (u - list(action)) ** 2)

    return cost


def ranges(table: Mapping[str, Range], what: str) -> tuple[tuple[Coordinate, ...], Rationals, Rationals]:
    """Names, lower and upper ends of ``{name: (unit, bound)}`` or ``{name: (unit, low, high)}``.

    Raises InputError, naming ``what`` and the coordinate, for anything else and for an empty box.
    """
    entries: dict[str, Any] = dict(table)
    for name, entry in entries.items():
        fits = isinstance(entry, tuple | list) and len(entry) in (2, 3)
        if not fits or any(isinstance(end, tuple | list) for end in entry[1:]):
            raise InputError(f"{what} {name!r} is {entry!r}, expected (unit, bound) or (unit, low, high)")
    names = coordinates({name: entry[0] for name, entry in entries.items()}, what)
    high = tuple(rational(entry[-1], f"{what} {name!r}") for name, entry in entries.items())
    low = tuple(rational(entry[1]) if len(entry) == 3 else -rational(entry[1]) for entry in entries.values())
    for coordinate, lower, upper in zip(names, low, high, strict=True):
        if not lower < upper:
            raise InputError(f"{what} {coordinate.name!r} has the box [{lower}, {upper}], expected its lower end below its upper")
    return names, low, high


def about(rest: Rationals, ranges: Sequence[Any]) -> tuple[Rationals, Rationals]:
    """Lower and upper ends of half-widths about a point, or of pairs (low, high). Raises InputError for another number of them."""
    if len(ranges) != len(rest):
        raise InputError(f"reset has {len(ranges)} entries, expected one for each of {len(rest)} state coordinates")
    low, high = [], []
    for x, entry in zip(rest, ranges, strict=True):
        pair = isinstance(entry, tuple | list) and len(entry) == 2
        a, b = (rationals(entry, 2, "reset")) if pair else (x - rational(entry, "reset"), x + rational(entry, "reset"))
        low.append(a)
        high.append(b)
    return tuple(low), tuple(high)


def clipped(update: Equations, low: Rationals, high: Rationals) -> Equations:
    """The update with the actuator's clip in front."""
    lower: Any = list(low)
    upper: Any = list(high)
    return lambda state, action: update(state, np.clip(action, lower, upper))


def sampled(equations: Equations, scheme: str, dt: Fraction, sizes: Mapping[str, int]) -> Equations:
    """The update of a scheme with the step ``dt`` in seconds; the user's equations run once, then only their graph is used.

    Raises InputError for an unknown scheme, and for equations that do not fit the scheme or the state.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme is {scheme!r}, expected one of {', '.join(SCHEMES)}")
    graph = record(equations, sizes, "derivative", exact=True)
    got, n = graph.output_sizes["derivative"], sizes["state"]
    if got != n:
        raise InputError(f"the equations return {got} components, expected {n}, one for each state coordinate")
    if scheme in SECOND_ORDER:
        points = np.random.default_rng(0).normal(size=(5, n))
        rates = compile_numpy(graph)(state=points, action=np.ones(sizes["action"]))["derivative"]
        if n % 2 or not np.array_equal(rates[:, : n // 2], points[:, n // 2 :]):
            raise InputError(f"scheme {scheme!r} needs a state of positions followed by their velocities, in equal order")
    return SCHEMES[scheme](lambda state, action: inline(graph, state=state, action=action)["derivative"], dt)
