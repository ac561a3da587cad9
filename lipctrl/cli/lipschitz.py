"""``lipctrl lipschitz``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError

if TYPE_CHECKING:
    from lipctrl.certificates.checker.graph import Graph
    from lipctrl.certificates.checker.verdict import Verdict
    from lipctrl.certificates.lipschitz import LipschitzCertificate
    from lipctrl.core.progress import Progress

#: What to say about a network whose numbers are not those of sensors and actuators.
UNITS = {
    "normalized": ("the observations are normalised in front of this network: the bound is about normalised observations",),
    "unstated": ("the file does not say what its numbers mean: the bound is in its own units",),
}


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Verb):
    """Prove an upper bound of a network's Lipschitz constant, in physical units, and find a pair of points from below.

    The upper bound is a certificate that the checker has verified; the lower bound is a steep pair, evaluated rigorously.
    With --monotone: prove which outputs never fall, or never rise, when an input rises.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl lipschitz runs/quickstart/policy --norm l2 --out runs/bound"

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """A policy folder, an .onnx file, or a Stable-Baselines3 .zip."""
    norm: Literal["l2", "linf"] = "l2"
    """Norm of observations and actions: Euclidean, or greatest absolute value."""
    low: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Lower corner of a box of observations, for a bound that holds there; numbers such as 0.15 or 3/20 are exact."""
    high: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Upper corner of the box; an observation with low = high does not move."""
    centre: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER ...")] = ()
    """Centre of a ball of observations, in the norm of the bound, in place of a box."""
    radius: Annotated[str | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Radius of the ball."""
    monotone: bool = False
    """In place of a bound: signs of outputs when one input rises, on the box, or the box around the ball, or everywhere."""
    signs: Annotated[tuple[Literal[1, 0, -1], ...], tyro.conf.arg(metavar="1|0|-1 ...")] = ()
    """With --monotone: what to prove, one row after the other for each output: 1 never falls, -1 never rises, 0 nothing; else found."""
    budget_s: float = 20.0
    """Seconds for the search on a box or ball."""
    activation_ulp: int | None = None
    """On a box or ball: assumed accuracy of float32 tanh and sigmoid, in units in the last place, for the error of float32 evaluation."""
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

        self._check_domain()
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
        suffix = ("-local" if self._is_local else "") + ("-monotone" if self.monotone else "")
        folder = output_folder(self.out or f"runs/lipschitz-{network.graph.digest()[:12]}{suffix}")
        if self.monotone:
            outcome = self._monotone(network.graph, folder, console)
            write_results(folder, "lipschitz", outcome)
            return outcome
        with console.task("bounding") as progress:
            found = self._certified(network.graph, progress)
            path = found.write(folder / "certificate")
        verdict = check(path)
        deployed = self._evaluation(network.graph, folder / "evaluation", console) if self._is_local else None
        lower = None if found.lower is None else found.lower.value
        lines = [f"{verdict.claim or verdict.reason} ({verdict.level})"]
        lines += [] if lower is None else [f"at least {rounded_down(lower)}: a pair of points, evaluated rigorously"]
        lines += [f"upper bound {rounded_up(found.upper.value)} by {found.upper.method}", f"certificate: {path}"]
        results = [entry("lipschitz", path, verdict, verdict.reason)]
        if deployed is not None:
            lines += [f"{deployed[1].claim or deployed[1].reason} ({deployed[1].level})", f"certificate: {deployed[0]}"]
            results.append(entry("evaluation", *deployed, deployed[1].reason))
        outcome = Outcome(
            lines=lines,
            status="ok" if verdict.level in ("proved", "proved-for-model") else "unknown",
            level=verdict.level,
            claim=verdict.claim,
            certificates=[str(path), *([] if deployed is None else [str(deployed[0])])],
            keys={
                "upper": found.upper.value,
                "lower": lower,
                "norm": self.norm,
                "units": network.units,
                "method": found.upper.method,
                "results": results,
            },
        )
        write_results(folder, "lipschitz", outcome)
        return outcome

    @property
    def _is_local(self) -> bool:
        return bool(self.low or self.high or self.centre or self.radius is not None)

    def _check_domain(self) -> None:
        """Raise InputError where the options name no domain, or half of one."""
        box, ball = (bool(self.low), bool(self.high)), (bool(self.centre), self.radius is not None)
        if box[0] != box[1] or ball[0] != ball[1] or (box[0] and ball[0]):
            raise InputError("a bound on a box needs --low and --high, one on a ball --centre and --radius: expected one pair or none")
        if self.activation_ulp is not None and not 1 <= self.activation_ulp <= 1024:
            raise InputError(f"--activation-ulp is {self.activation_ulp}, expected a whole number from 1 to 1024")
        if self.signs and not self.monotone:
            raise InputError("--signs says what to prove with --monotone: expected both or only --monotone")
        if not 0 < self.budget_s < math.inf:
            raise InputError(f"the budget is {self.budget_s} s, expected a positive number of seconds")

    @property
    def _domain(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high} if self.low else {"centre": self.centre, "radius": self.radius}

    def _evaluation(self, graph: Graph, folder: Path, console: Console) -> tuple[Path, Verdict] | None:
        """The certificate of the float32 evaluation's error and its verdict; ``None``, with a warning, where there is no such bound."""
        from lipctrl.certificates.checker.kinds import check
        from lipctrl.certificates.lipschitz import certify_evaluation

        try:
            path = certify_evaluation(graph, self.norm, **self._domain, activation_ulp=self.activation_ulp).write(folder)
        except InputError as error:
            console.warn(str(error))
            return None
        return path, check(path)

    def _certified(self, graph: Graph, progress: Progress) -> LipschitzCertificate:
        from lipctrl.certificates.lipschitz import Budget, certify_lipschitz, certify_local_lipschitz

        if not self._is_local:
            return certify_lipschitz(graph, self.norm, seed=self.seed, progress=progress)
        self._check_sizes(graph)
        return certify_local_lipschitz(graph, self.norm, **self._domain, budget=Budget(self.budget_s, seed=self.seed), progress=progress)

    def _check_sizes(self, graph: Graph) -> None:
        (size,) = graph.input_sizes.values()
        for name, values in (("low", self.low), ("high", self.high), ("centre", self.centre)):
            if values and len(values) != size:
                raise InputError(f"--{name} has {len(values)} numbers, expected {size}, one for each observation")

    def _monotone(self, graph: Graph, folder: Path, console: Console) -> Outcome:
        from lipctrl.certificates.lipschitz import Budget
        from lipctrl.cli.monotone import monotone_outcome

        self._check_sizes(graph)
        domain = self._domain if self._is_local else {}
        return monotone_outcome(graph, self.signs, domain, Budget(self.budget_s, seed=self.seed), folder, console)
