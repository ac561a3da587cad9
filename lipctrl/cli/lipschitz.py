"""``lipctrl lipschitz``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Verb):
    """Prove an upper bound of a network's Lipschitz constant, in physical units, and find a pair of points from below.

    The upper bound is a certificate that the checker has verified; the lower bound is a steep pair, evaluated rigorously.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl lipschitz runs/quickstart/policy --norm l2 --out runs/bound"

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """A policy folder."""
    norm: Literal["l2", "linf"] = "l2"
    """Norm of observations and actions."""
    low: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Lower corner of a box of observations: a local bound (not offered yet)."""
    high: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Upper corner of the box (not offered yet)."""
    out: OptionalFolder = None
    """Folder for the certificate and results.json; by default runs/lipschitz-DIGEST."""

    def run(self, console: Console) -> Outcome:
        """Bound, write, check."""
        from lipctrl.certificates.checker.kinds import check
        from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_up
        from lipctrl.cli.results import entry
        from lipctrl.cli.writing import output_folder, write_results
        from lipctrl.core.policy import Policy

        if self.norm != "l2":
            raise InputError(f"the norm is {self.norm!r}, but only l2 can be proved in this version; use --norm l2")
        if self.low or self.high:
            raise InputError(
                "--low and --high (a bound on a box only) cannot be proved in this version; leave both out for the global bound"
            )
        _check_network(self.network)
        policy = Policy.load(self.network)
        folder = output_folder(self.out or f"runs/lipschitz-{policy.digest[:12]}")
        with console.task("bounding") as progress:
            from lipctrl.certificates.lipschitz import certify_lipschitz

            found = certify_lipschitz(policy.graph, self.norm, seed=self.seed, progress=progress)
            path = found.write(folder / "certificate")
        verdict = check(path)
        lower = None if found.lower is None else found.lower.value
        lines = [f"{verdict.claim or verdict.reason} ({verdict.level})"]
        lines += [] if lower is None else [f"at least {lower:.6g}: a pair of points, evaluated rigorously"]
        outcome = Outcome(
            lines=[*lines, f"upper bound {rounded_up(found.upper.value)} by {found.upper.method}", f"certificate: {path}"],
            status="ok" if verdict.level in ("proved", "proved-for-model") else "unknown",
            level=verdict.level,
            claim=verdict.claim,
            certificates=[str(path)],
            keys={
                "upper": found.upper.value,
                "lower": lower,
                "norm": self.norm,
                "method": found.upper.method,
                "results": [entry("lipschitz", path, verdict, verdict.reason)],
            },
        )
        write_results(folder, "lipschitz", outcome)
        return outcome


def _check_network(name: str) -> None:
    """Raise InputError, saying what to do, for forms that this version does not read."""
    path = Path(name)
    if not path.exists():
        raise InputError(f"no such file or folder: {name}; expected a policy folder")
    if path.is_file():
        raise InputError(f"{name} is a file, but only lipctrl's own policy folders can be read in this version (not ONNX, not zip)")
