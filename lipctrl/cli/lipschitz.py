"""``lipctrl lipschitz``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError

#: What to say about a network whose numbers are not those of sensors and actuators.
UNITS = {
    "normalized": ("the observations are normalised in front of this network: the bound is about normalised observations",),
    "unstated": ("the file does not say what its numbers mean: the bound is in its own units",),
}


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Verb):
    """Prove an upper bound of a network's Lipschitz constant, in physical units, and find a pair of points from below.

    The upper bound is a certificate that the checker has verified; the lower bound is a steep pair, evaluated rigorously.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl lipschitz runs/quickstart/policy --norm l2 --out runs/bound"

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """A policy folder, an .onnx file, or a Stable-Baselines3 .zip."""
    norm: Literal["l2", "linf"] = "l2"
    """Norm of observations and actions: Euclidean, or greatest absolute value."""
    low: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Lower corner of a box of observations: a local bound (not offered yet)."""
    high: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Upper corner of the box (not offered yet)."""
    squash: Literal["yes", "no"] | None = None
    """Of a zip: whether a tanh, scaled to the action box, is at the output; like the next ones only where the zip does not say it."""
    activation: str | None = None
    """Of a zip: what stands between the layers, such as tanh or relu."""
    observation_normaliser: Annotated[str | None, tyro.conf.arg(metavar="NPZ|none|unknown")] = None
    """Of a zip: statistics of its VecNormalize (mean, var, epsilon, clip_obs), or none where observations were not normalised."""
    action_low: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Of a zip: lower corner of the action box."""
    action_high: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Of a zip: upper corner of the action box."""
    out: OptionalFolder = None
    """Folder for the certificate and results.json; by default runs/lipschitz-DIGEST."""

    def run(self, console: Console) -> Outcome:
        """Bound, write, check."""
        from lipctrl.certificates.checker.kinds import check
        from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_down, rounded_up
        from lipctrl.cli.results import entry
        from lipctrl.cli.writing import output_folder, refuse_other_content, write_results
        from lipctrl.readers import read_network

        if self.low or self.high:
            raise InputError(
                "--low and --high (a bound on a box only) cannot be proved in this version; leave both out for the global bound"
            )
        if self.out is not None:
            refuse_other_content(self.out, "lipschitz")
        network = read_network(
            self.network,
            squash=None if self.squash is None else self.squash == "yes",
            activation=self.activation,
            observation_normaliser=self.observation_normaliser,
            action_low=self.action_low or None,
            action_high=self.action_high or None,
        )
        for note in (*network.notes, *UNITS.get(network.units, ())):
            console.warn(note)
        folder = output_folder(self.out or f"runs/lipschitz-{network.graph.digest()[:12]}")
        with console.task("bounding") as progress:
            from lipctrl.certificates.lipschitz import certify_lipschitz

            found = certify_lipschitz(network.graph, self.norm, seed=self.seed, progress=progress)
            path = found.write(folder / "certificate")
        verdict = check(path)
        lower = None if found.lower is None else found.lower.value
        lines = [f"{verdict.claim or verdict.reason} ({verdict.level})"]
        lines += [] if lower is None else [f"at least {rounded_down(lower)}: a pair of points, evaluated rigorously"]
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
                "units": network.units,
                "method": found.upper.method,
                "results": [entry("lipschitz", path, verdict, verdict.reason)],
            },
        )
        write_results(folder, "lipschitz", outcome)
        return outcome
