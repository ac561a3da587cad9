"""Affine forms whose errors are symbols: what a unit leaves of its line is one unknown number, the same wherever it goes.

One term of error gathers the errors of many units as absolute values, layer by layer, although most of them cancel. Here each
uncertain unit of a single cell has a symbol of its own, as the noise of affine arithmetic (de Figueiredo and Stolfi 2004) and of
zonotopes: f(t) = s t + m + d e(x), where e is a function of x with values in [-1, 1]. Symbols are further coordinates of the forms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.enclosure import Enclosed, Remembered
from lipctrl.certificates.checker.intervals import Array, Interval, up
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalAlgebra

NEGLIGIBLE = 2.0**-40  #: of the greatest value of a unit: errors below need no symbol


class SymbolAlgebra(LocalAlgebra):
    """Evaluate graphs on one cell, with ``limit`` symbols at most; ``symbols`` says how many there are so far.

    Rows of ``linear`` are those of the k inputs that vary, then those of the symbols. Forms from before a symbol may lack its row.
    """

    def __init__(self, cells: Cells, remembered: Remembered | None, limit: int) -> None:
        super().__init__(cells, remembered)
        self.symbols = 0
        self._limit = limit

    @property
    def coordinates(self) -> int:
        """Inputs that vary and symbols."""
        return len(self._cells.free) + self.symbols

    def _spread(self, size: Array) -> Array:
        k = len(self._cells.free)
        slack = 1 + 4 * (len(size) + 8) * iv.UNIT
        spread: Array = up(super()._spread(size[:k]) + size[k:].sum(0) * slack)
        return spread

    def _deviating(self, local: Local, deviation: Array) -> Local:
        """The greatest deviations, one coordinate each, become symbols while there is room."""
        if local.linear is None:
            return super()._deviating(local, deviation)
        n = local.value.low.shape[1]
        deviation = np.broadcast_to(deviation, (1, n))
        worth = np.flatnonzero((deviation[0] > NEGLIGIBLE * local.value.magnitude[0]) & np.isfinite(deviation[0]))
        chosen = worth[np.argsort(-deviation[0, worth], kind="stable")[: self._limit - self.symbols]]
        rows, rest = np.zeros((len(chosen), 1, n)), deviation.copy()
        rows[np.arange(len(chosen)), 0, chosen] = deviation[0, chosen]
        rest[0, chosen] = 0.0
        known = self._full(local.linear, n)
        self.symbols += len(chosen)
        linear = Interval(*(np.concatenate([end, rows]) for end in (known.low, known.high)))
        return super()._deviating(replace(local, linear=linear), rest)

    def _full(self, linear: Interval, size: int) -> Interval:
        """With a row for every symbol, and so many columns."""
        missing = np.zeros((self.coordinates - len(linear.low), 1, size))
        ends = (np.broadcast_to(end, (len(end), 1, size)) for end in (linear.low, linear.high))
        return Interval(*(np.concatenate([end, missing]) for end in ends))

    def _complete(self, x: Enclosed) -> Local:
        x = cast(Local, x)
        return x if x.linear is None else replace(x, linear=self._full(x.linear, x.value.low.shape[1]))

    def add(self, x: Enclosed, y: Enclosed) -> Local:
        return super().add(self._complete(x), self._complete(y))

    def mul(self, x: Enclosed, y: Enclosed) -> Local:
        return super().mul(self._complete(x), self._complete(y))

    def concatenate(self, *parts: Enclosed) -> Local:
        return super().concatenate(*map(self._complete, parts))
