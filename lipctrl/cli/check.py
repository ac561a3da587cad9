"""``lipctrl check``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Check(Verb):
    """Verify certificates with the checker alone: exact numbers and rigorous arithmetic, no solver, no torch.

    Nothing is drawn at random: --seed is there because every verb has it. ``lipctrl-check`` does the same and needs only
    NumPy, python-flint and safetensors.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl check runs/quickstart/certificates/* --about runs/quickstart/policy"

    certificates: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CERTIFICATE ...")]
    """Certificates: a folder, its certificate.json, or a zip of it."""
    about: Annotated[str | None, tyro.conf.arg(metavar="POLICY|PLANT")] = None
    """Also require that the claims are about this policy folder or shipped plant."""
    out: OptionalFolder = None
    """Write the results there too, as results.json."""

    def run(self, console: Console) -> Outcome:
        """Check each file; the level of all together is the weakest."""
        from lipctrl.certificates.checker.command import describe, report
        from lipctrl.certificates.checker.kinds import check, resolve_about
        from lipctrl.cli.writing import write_results

        start = time.perf_counter()
        if not self.certificates:
            raise InputError("no certificate was given, expected at least one folder, certificate.json or zip")
        for path in self.certificates:
            if not Path(path).exists():
                raise InputError(f"no such file or folder: {path}; expected a certificate's folder, certificate.json or zip")
        try:
            if self.about is not None:
                resolve_about(self.about)
        except ValueError as error:
            raise InputError(str(error)) from error
        verdicts = []
        with console.task("checking") as progress:
            for index, path in enumerate(self.certificates):
                progress(index / len(self.certificates), path, None)
                others = [other for other in self.certificates if other != path]
                verdicts.append((path, check(path, self.about, others)))
        found = report(verdicts, time.perf_counter() - start)
        outcome = Outcome(
            lines=[describe(path, verdict) for path, verdict in verdicts],
            status=found["status"],
            level=found["level"],
            claim=found["claim"],
            certificates=found["certificates"],
            keys={"results": found["results"]},
        )
        if self.out is not None:
            write_results(self.out, "check", outcome)
        return outcome
