"""Names and units of coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lipctrl.core.errors import InputError


class Coordinate(NamedTuple):
    """One coordinate of a state, action or observation: its name and its unit (``"1"`` where it has none)."""

    name: str
    unit: str = "1"


def coordinates(values: Mapping[str, str] | Iterable[tuple[str, str]], what: str = "coordinates") -> tuple[Coordinate, ...]:
    """Coordinates from ``{name: unit}`` or from (name, unit) pairs. Raises InputError for anything else and for repeated names."""
    pairs: list[Any] = list(values.items()) if isinstance(values, Mapping) else list(values)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise InputError(f"{what} contains {pair!r}, expected a pair (name, unit)")
    result = tuple(Coordinate(name, unit) for name, unit in pairs)
    names = [coordinate.name for coordinate in result]
    if not names or len(set(names)) != len(names):
        raise InputError(f"{what} has the names {names}, expected at least one, all different")
    return result
