"""``lipctrl quickstart``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lipctrl.cli.console import Console
from lipctrl.cli.verb import OptionalFolder, Outcome, Verb

if TYPE_CHECKING:
    from lipctrl.quickstart import Finding, QuickstartResult


@dataclass(frozen=True, kw_only=True)
class Quickstart(Verb):
    """Demonstrations of an expert, a Lipschitz policy, three proofs about it, and a report with pictures.

    The plant is a pendulum, the expert an LQR controller. A run whose proofs are not found says which and exits with 3. The
    same command goes on where an interrupted run stopped.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl quickstart\n  lipctrl quickstart --seed 3 --out runs/third --json"

    out: OptionalFolder = None
    """Folder of the run; by default runs/quickstart (for other seeds runs/quickstart-seed-N)."""
    episodes: int = 40
    """Episodes of the expert."""
    steps: int = 1500
    """Gradient steps of the training."""
    budget_s: float = 60.0
    """Seconds for the search of the stability proofs."""

    def run(self, console: Console) -> Outcome:
        """Run all steps and say what was proved."""
        from lipctrl.cli.writing import refuse_other_content

        known = {"seed": self.seed, "episodes": self.episodes, "steps": self.steps, "budget_s": self.budget_s}
        refuse_other_content(self._folder(), "quickstart", {"algorithm": "quickstart", **known})
        with console.task("quickstart") as progress:
            progress(0.0, "loading", None)
            from lipctrl.quickstart import QuickstartOptions, quickstart

            options = QuickstartOptions(episodes=self.episodes, steps=self.steps, budget_s=self.budget_s)
            result = quickstart(self._folder(), options, seed=self.seed, progress=progress)
        for finding in result.failed:
            console.warn(f"not proved: {finding.name}, level {finding.level}: {finding.reason or 'the checker refused it'}")
        return _outcome(result)

    def _folder(self) -> Path:
        return Path(self.out or ("runs/quickstart" if self.seed == 0 else f"runs/quickstart-seed-{self.seed}"))


def _outcome(result: QuickstartResult) -> Outcome:
    from lipctrl.certificates.checker.verdict import FALSIFIED, LEVELS

    claims = [finding.verdict.claim for finding in result.findings if finding.verdict is not None and finding.verdict.claim]
    lines = [f"{finding.name}: {finding.level}\n  {_claim(finding)}" for finding in result.findings]
    region, returns = result.results["region"], result.results["mean_return"]
    lines.append(f"mean return: expert {returns['expert']:.1f}, policy {returns['policy']:.1f}")
    if region["simulated"] is not None:
        lines.append(f"area that arrives in simulation (numerical): {region['simulated']:.4g}, in the box {region['simulated_in_box']:.4g}")
    lines += [f"report: {result.folder / 'report.html'}", f"check it yourself: lipctrl-check {result.folder}/certificates/*"]
    return Outcome(
        lines=lines,
        status=result.status,  # type: ignore[arg-type]
        level=FALSIFIED if result.status == "refuted" else max((finding.level for finding in result.findings), key=LEVELS.index),
        claim="; ".join(claims),
        certificates=[str(finding.path) for finding in result.findings if finding.path is not None],
        keys={
            "results": [_entry(finding) for finding in result.findings],
            "report": str(result.folder / "report.html"),
            **{key: value for key, value in result.results.items() if key != "results"},
            "step_seconds": dict(result.seconds),
        },
    )


def _claim(finding: Finding) -> str:
    return finding.reason if finding.verdict is None else finding.verdict.claim or finding.verdict.reason


def _entry(finding: Finding) -> dict[str, Any]:
    from lipctrl.cli.results import entry

    return entry(finding.name, finding.path, finding.verdict, finding.reason)
