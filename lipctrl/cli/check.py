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

    Exit code 0: all are verified and hold; 1: one was rejected (status unknown: that refutes nothing) or is a verified
    counterexample (refuted). ``lipctrl-check`` does the same and needs only NumPy, python-flint and safetensors. Nothing is
    drawn at random: --seed is there because every verb has it.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl check runs/quickstart/certificates/* --about runs/quickstart/policy"

    certificates: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CERTIFICATE ...")]
    """Certificates: a folder, its certificate.json, or a zip of it."""
    about: Annotated[str | None, tyro.conf.arg(metavar="POLICY|PLANT|FILE")] = None
    """Also require that the claims are about this policy folder, shipped plant, plant in FILE.py (executed), .onnx or .zip."""
    out: OptionalFolder = None
    """Write the results there too, as results.json."""

    def run(self, console: Console) -> Outcome:
        """Check each file; the level of all together is the weakest."""
        from lipctrl.certificates.checker.command import describe, holds, report
        from lipctrl.certificates.checker.kinds import check
        from lipctrl.cli.writing import refuse_other_content, write_results

        start = time.perf_counter()
        if not self.certificates:
            raise InputError("no certificate was given, expected at least one folder, certificate.json or zip")
        for path in self.certificates:
            if not Path(path).exists():
                raise InputError(f"no such file or folder: {path}; expected a certificate's folder, certificate.json or zip")
        if self.out is not None:
            refuse_other_content(self.out, "check")
        about = None if self.about is None else _about(self.about)
        verdicts = []
        with console.task("checking") as progress:
            for index, path in enumerate(self.certificates):
                progress(index / len(self.certificates), path, None)
                others = [other for other in self.certificates if other != path]
                verdicts.append((path, check(path, about, others)))
        found = report(verdicts, time.perf_counter() - start)
        outcome = Outcome(
            lines=[describe(path, verdict) for path, verdict in verdicts],
            status=found["status"],
            level=found["level"],
            claim=found["claim"],
            certificates=found["certificates"],
            keys={"results": found["results"]},
            code=0 if holds(verdicts) else 1,
        )
        if self.out is not None:
            write_results(self.out, "check", outcome)
        return outcome


def _about(about: str) -> tuple[str, str]:
    """The part of a subject and its digest; what the checker alone does not read (FILE.py, .onnx, .zip) is read here."""
    from lipctrl.certificates.checker.kinds import resolve_about

    if about.endswith(".py"):
        from lipctrl.envs import load_plant

        return "plant", load_plant(about).digest
    if about.endswith((".onnx", ".zip")):
        from lipctrl.readers import read_network

        return "policy", read_network(about).graph.digest()
    try:
        return resolve_about(about)
    except ValueError as error:
        raise InputError(str(error)) from error
