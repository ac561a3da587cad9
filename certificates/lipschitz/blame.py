"""Which input of a cell to split: the one that makes the slopes of units most uncertain. Nothing here is trusted."""

from __future__ import annotations

from typing import cast

import numpy as np

from lipctrl.certificates.checker.enclosure import Enclosed, Remembered, Scalar
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalAlgebra


class Blaming(LocalAlgebra):
    """Beside another algebra on cells: ``blame`` (k, B) is width of slopes times movement for each input, summed over the units."""

    def __init__(self, cells: Cells, remembered: Remembered | None = None) -> None:
        super().__init__(cells, remembered)
        self.blame: Array = np.zeros((len(cells.free), len(cells.low)))

    def _scalar(self, x: Enclosed, function: Scalar, quotients: Scalar) -> Local:
        result = super()._scalar(x, function, quotients)
        slopes, linear = self.nodes.get(self._place), cast(Local, x).linear
        if slopes is not None and linear is not None:
            self.blame = self.blame + ((slopes.high - slopes.low) * linear.magnitude * self._radius).sum(-1)
        return result


def input_to_split(low: Array, high: Array, free: Array, blame: Array) -> int:
    """Of the inputs ``free`` (k,) of a box (n,) the one with the most ``blame`` (k,), else the widest; -1 where none can be halved."""
    middle = 0.5 * low[free] + 0.5 * high[free]
    can = (low[free] < middle) & (middle < high[free])
    score = np.where(can & np.isfinite(blame), blame, np.where(can, 0.0, -1.0))
    if not score.max(initial=-1.0) > 0:  # nothing to blame
        score = np.where(can, high[free] - low[free], -1.0)
    best = int(np.argmax(score))
    return int(free[best]) if score[best] >= 0 else -1
