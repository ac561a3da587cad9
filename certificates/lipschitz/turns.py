"""Several searches for the same bound that share a budget: the one that is expected to end lowest goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from lipctrl.certificates.checker.intervals import Array

SHARE = 0.12  #: of the time, that every search gets at least


class BoundSearch(Protocol):
    """A search that lowers a bound step by step."""

    cells: int  #: that were bounded
    seconds: float  #: that were spent
    root: Any  #: the tree, a :class:`.affordable.Part`
    exhausted: bool  #: nothing is left to try where the bound is greatest

    @property
    def upper(self) -> float:
        """The bound so far."""
        ...

    def step(self, enough: float, seconds: float) -> None:
        """One slice of work, with ``seconds`` left, down to ``enough``."""
        ...

    def worst(self, count: int) -> Array:
        """Points where the bound is greatest, (count, n)."""
        ...

    def tree(self, upper: float) -> tuple[list[Any], list[dict[str, Any]]]:
        """A split tree whose leaves all have bounds of at most ``upper``, and its proofs."""
        ...


class Turns:
    """Searches in turns; what each has reached after which time says what to expect of it.

    Those ``beside`` get their share of the time and no more, as long as others are left.
    """

    def __init__(self, searches: Sequence[BoundSearch], beside: Sequence[BoundSearch] = ()) -> None:
        self._searches = [*searches, *beside]
        self._first = len(searches)
        self._histories: list[list[tuple[float, float]]] = [[] for _ in self._searches]

    @property
    def best(self) -> BoundSearch:
        """The search with the least bound."""
        return min(self._searches, key=lambda search: search.upper)

    def step(self, least: float, enough: float, left: float) -> bool:
        """One slice of work with ``left`` seconds to go, where no bound can fall below ``least``; False where none is left to do."""
        open_ones = [number for number, search in enumerate(self._searches) if not search.exhausted]
        if not open_ones:
            return False
        total = sum(self._searches[number].seconds for number in open_ones)
        behind = [number for number in open_ones if self._searches[number].seconds <= SHARE * total]
        first = [number for number in open_ones if number < self._first] or open_ones
        chosen = behind[0] if behind else min(first, key=lambda number: expected(self._histories[number], least, left))
        search = self._searches[chosen]
        search.step(enough, left)
        self._histories[chosen].append((search.seconds, search.upper))
        return True


def expected(history: Sequence[tuple[float, float]], least: float, seconds: float) -> float:
    """The bound after so many more seconds, if its excess over ``least`` goes on as it did since half of the (seconds, bounds) so far."""
    passed, upper = history[-1]
    earlier = next((then for then in reversed(history) if then[0] <= 0.5 * passed), history[0])
    excess, before = upper - least, earlier[1] - least
    if not 0 < excess < math.inf:
        return upper
    share = excess / before if passed > earlier[0] else 0.5  # nothing is known yet: hope
    return least + excess * float(share ** (math.log((passed + seconds) / passed) / math.log(passed / min(earlier[0], 0.5 * passed))))
