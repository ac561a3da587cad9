"""Colours and small drawing habits. Blue is proved, orange refuted, grey unknown: in every figure, table and badge.

The three differ in lightness and hatching too, so that they survive grey printing and colour-blind eyes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2933", "#52606d", "#c3ccd5"


@dataclass(frozen=True)
class Fill:
    """How a set is drawn: face colour, edge colour, hatching."""

    face: str
    edge: str
    hatch: str

    def patch(self, **more: Any) -> dict[str, Any]:
        """Arguments of a matplotlib patch."""
        return {"facecolor": self.face, "edgecolor": self.edge, "hatch": self.hatch, **more}


PROVED = Fill("#9ecae9", "#08519c", "")
REFUTED = Fill("#fdd0a2", "#a63603", "xxx")
UNKNOWN = Fill("#eceff2", "#7b8794", "")

#: Each level of claim with its fill; levels that are no proof share the grey of ``unknown``.
LEVEL_FILLS = {
    "proved": PROVED,
    "proved-for-model": PROVED,
    "falsified": REFUTED,
    "numerical": UNKNOWN,
    "statistical": UNKNOWN,
    "unknown": UNKNOWN,
}


def figure(width: float = 7.2, height: float = 5.4, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of its own canvas (no pyplot, no global state) with ``columns`` axes side by side; sizes in inches."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(1, columns, squeeze=False, **options)[0]
    for ax in axes:
        tidy(ax)
    return made, list(axes)


def tidy(ax: Axes) -> None:
    """Readable sizes, and no frame where nothing is measured."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=10, colors=INK)
    for spine in ax.spines.values():
        spine.set_color(MUTED)
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        text.set_fontsize(11)
        text.set_color(INK)


def legend(ax: Axes, handles: list[Any], columns: int = 1, **options: Any) -> None:
    """A legend below the axes, where it covers no data."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.6, "frameon": False, "fontsize": 9.5, "ncols": columns}
    ax.legend(handles=handles, **{**place, **options})


def png(made: Figure, dpi: int = 120) -> bytes:
    """The figure as PNG bytes, without dates or versions: equal figures give equal bytes."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


def rounded(value: float, towards: Literal["up", "down"], digits: int = 4) -> str:
    """A few digits of a bound, rounded so that "at most" or "at least" stays true."""
    exact = Decimal(value)
    if not exact.is_finite() or not exact:
        return f"{value:g}"
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{float(exact.quantize(step, rounding=ROUND_CEILING if towards == 'up' else ROUND_FLOOR)):.{digits}g}"


def label(name: str, unit: str) -> str:
    """Name and unit for an axis; the unit 1 is left out."""
    return name if unit == "1" else f"{name} [{unit}]"
