"""Figures and self-contained HTML reports of runs; names load on first use, so that importing this costs nothing."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipctrl.report.figures import (
        learning_curve,
        lipschitz_slopes,
        margin_map,
        phase_portrait,
        policy_surface,
        round_returns,
        time_series,
    )
    from lipctrl.report.loop import ClosedLoop, Fates, sampled_slopes
    from lipctrl.report.run import RunContents, read_run
    from lipctrl.report.writing import write_report

_HOMES = {
    "figures": (
        "learning_curve",
        "lipschitz_slopes",
        "margin_map",
        "phase_portrait",
        "policy_surface",
        "round_returns",
        "time_series",
    ),
    "loop": ("ClosedLoop", "Fates", "sampled_slopes"),
    "run": ("RunContents", "read_run"),
    "writing": ("write_report",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ClosedLoop",
    "Fates",
    "RunContents",
    "learning_curve",
    "lipschitz_slopes",
    "margin_map",
    "phase_portrait",
    "policy_surface",
    "read_run",
    "round_returns",
    "sampled_slopes",
    "time_series",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
