"""What people see while a verb works: progress, notes and warnings, all on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lipctrl.core.progress import Progress

PLAIN_SECONDS = 5.0  #: between lines of progress where standard error is not a terminal


class Console:
    """Messages on standard error."""

    def note(self, text: str) -> None:
        """One line of information."""
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """One line about something that may surprise; the work goes on."""
        self.note(f"warning: {text}")

    @contextmanager
    def task(self, title: str) -> Iterator[Progress]:
        """A progress callback for one piece of work: a bar on a terminal, else a line now and then."""
        if sys.stderr.isatty():
            with _bar(title) as progress:
                yield progress
        else:
            yield self._lines(title)

    def _lines(self, title: str) -> Progress:
        start = time.monotonic()
        last = start - PLAIN_SECONDS
        self.note(f"{title} ...")

        def progress(fraction: float, message: str, best: object) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PLAIN_SECONDS:
                last = now
                self.note(f"{title}: {100 * min(max(fraction, 0.0), 1.0):3.0f} %, {now - start:.0f} s, {message}")

        return progress


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Bar(*columns, TextColumn("{task.fields[message]}"), console=Terminal(stderr=True)) as bar:
        task = bar.add_task(title, total=1.0, message="")

        def progress(fraction: float, message: str, best: object) -> None:
            bar.update(task, completed=min(max(fraction, 0.0), 1.0), message=message)

        yield progress
        bar.update(task, completed=1.0)
