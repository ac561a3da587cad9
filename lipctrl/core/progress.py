"""One callback for all long work."""

from __future__ import annotations

from collections.abc import Callable

#: ``progress(fraction, message, best)``: fraction done in [0, 1], one line of text, the best result so far (or ``None``).
Progress = Callable[[float, str, object], None]


def no_progress(fraction: float, message: str, best: object) -> None:
    """The silent callback."""
