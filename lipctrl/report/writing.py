"""Write the report of a run: pictures as files, and one HTML page that holds them all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lipctrl.certificates.checker.verdict import Verdict
from lipctrl.core.errors import InputError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.core.run_folder import write_atomically
from lipctrl.report.html import page
from lipctrl.report.pictures import pictures
from lipctrl.report.run import read_run

REPORT, FIGURES = "report.html", "figures"


def write_report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    verdicts: Mapping[Path, Verdict] | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Write ``report.html`` and ``figures/*.png`` for a run folder, into it or into ``out``; returns the page's path.

    Works for any folder that quickstart, train or stability wrote. ``verdicts`` saves checking again what this process has just
    checked. Raises InputError where there is nothing to report, or the files cannot be written.
    """
    progress(0.0, "checking certificates", None)
    run = read_run(folder, verdicts)
    target = Path(folder if out is None else out)
    try:
        (target / FIGURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {target}: {error.strerror}") from error
    drawn = []
    for picture in pictures(run):
        write_atomically(target / FIGURES / f"{picture.name}.png", picture.data)
        drawn.append(picture)
        progress(min(0.2 + 0.1 * len(drawn), 0.95), f"drew the {picture.title.lower()}", None)
    write_atomically(target / REPORT, page(run, drawn))
    progress(1.0, f"wrote {target / REPORT}", None)
    return target / REPORT
