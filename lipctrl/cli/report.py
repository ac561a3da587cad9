"""``lipctrl report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import Folder, OptionalFolder, Outcome, Verb


@dataclass(frozen=True, kw_only=True)
class Report(Verb):
    """Check a run's certificates again, draw its pictures, and write one self-contained HTML page.

    Works for any folder that quickstart, train or stability wrote. Nothing is drawn at random beyond fixed seeds: --seed is
    there because every verb has it.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl report runs/quickstart"

    run_dir: Annotated[Folder, tyro.conf.Positional, tyro.conf.arg(name="", metavar="RUN_DIR")]
    """Folder of the run."""
    out: OptionalFolder = None
    """Folder for report.html and figures/; by default the run's own."""

    def run(self, console: Console) -> Outcome:
        """Write the report; the level is the weakest of the certificates."""
        from lipctrl.cli.writing import refuse_other_content

        if self.out is not None and Path(self.out).resolve() != Path(self.run_dir).resolve():
            refuse_other_content(self.out, "report")
        with console.task("reporting") as progress:
            progress(0.0, "loading", None)
            from lipctrl.certificates.checker.verdict import LEVELS
            from lipctrl.cli.results import entry
            from lipctrl.report.run import read_run
            from lipctrl.report.writing import write_report

            run = read_run(self.run_dir)
            verdicts = {run.folder / item.name: item.verdict for item in run.entries}
            path = write_report(self.run_dir, self.out, verdicts=verdicts, progress=progress)
        levels = [item.verdict.level for item in run.entries]
        return Outcome(
            lines=[f"{item.name}: {item.verdict.level}" for item in run.entries] + [f"report: {path}"],
            level=max(levels, key=LEVELS.index) if levels else None,
            claim="; ".join(item.verdict.claim for item in run.entries if item.verdict.claim),
            certificates=[str(run.folder / item.name) for item in run.entries],
            keys={
                "report": str(path),
                "results": [entry(item.name, run.folder / item.name, item.verdict, item.verdict.reason) for item in run.entries],
            },
        )
