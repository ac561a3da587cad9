"""``lipctrl stability``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError

if TYPE_CHECKING:
    from lipctrl.certificates.stability import StabilityResult
    from lipctrl.core.policy import Policy
    from lipctrl.envs.plant import Plant

METHOD = "Lyapunov function by branch and bound"


@dataclass(frozen=True, kw_only=True)
class Stability(Verb):
    """Prove that a policy stabilises the equilibrium of a plant, and from how large a region, for the nonlinear equations.

    Two certificates: the real-valued network (exponential stability) and the float32 network as deployed (practical
    stability, with the ball that it ends in). Exit code 0: the first is proved; 1: refuted; 3: not found within the budget.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl stability --plant pendulum --policy runs/quickstart/policy --budget-s 60"

    plant: Annotated[str, tyro.conf.arg(metavar="NAME|FILE.py")]
    """A shipped plant, or a Python file that defines plant() -> Plant (the file is executed)."""
    policy: Annotated[str, tyro.conf.arg(metavar="POLICY")]
    """A policy folder."""
    budget_s: float = 60.0
    """Seconds for the search."""
    activation_ulp: int | None = None
    """Assumed accuracy of float32 tanh and sigmoid where the network runs, in units in the last place; the claim then names it."""
    out: OptionalFolder = None
    """Folder for certificates and results.json; by default runs/stability-PLANT-DIGEST."""

    def run(self, console: Console) -> Outcome:
        """Search, write, check."""
        from lipctrl.cli.writing import output_folder, refuse_other_content, write_results

        if not 0 < self.budget_s < math.inf:
            raise InputError(f"the budget is {self.budget_s} s, expected a positive number of seconds")
        if self.activation_ulp is not None and not 1 <= self.activation_ulp <= 1024:
            raise InputError(f"--activation-ulp is {self.activation_ulp}, expected a whole number from 1 to 1024")
        if self.out is not None:
            refuse_other_content(self.out, "stability", {"algorithm": "stability"})
        with console.task("proving") as progress:
            progress(0.0, "loading", None)
            from lipctrl.core.policy import Policy
            from lipctrl.core.run_folder import RunFolder
            from lipctrl.envs import load_plant

            plant, policy = load_plant(self.plant), Policy.load(self.policy)
            _check_fit(plant, policy, console)
            folder = output_folder(self.out or f"runs/stability-{plant.name}-{policy.digest[:12]}")
            RunFolder(folder, {"algorithm": "stability", "plant": plant.name, "plant_digest": plant.digest, "policy": policy.digest})
            policy.save(folder / "policy")
            from lipctrl.certificates.stability import certify_stability  # slow to load: after the folder has been refused or made

            results = certify_stability(
                plant.subject(),
                policy.graph,
                folder / "certificates",
                budget_s=self.budget_s,
                seed=self.seed,
                activation_ulp=self.activation_ulp,
                progress=progress,
            )
        outcome = _outcome(results)
        for result in results:
            if result.status == "unknown":
                console.warn(f"not proved for the {result.arithmetic} reading: {result.reason or 'the checker refused it'}")
        write_results(folder, "stability", outcome)
        return outcome


def _check_fit(plant: Plant, policy: Policy, console: Console) -> None:
    """Raise InputError where sizes differ; warn where names, units or sampling times do."""
    for kind in ("observation", "action"):
        mine, theirs = getattr(policy, kind), getattr(plant, kind)
        if len(mine) != len(theirs):
            raise InputError(
                f"the policy has {len(mine)} {kind} coordinates, the plant {plant.name} has {len(theirs)}: expected equal numbers"
            )
        if tuple(mine) != tuple(theirs) and any(unit not in ("1", "unstated") for _, unit in mine):
            console.warn(f"the policy's {kind} is {_named(mine)}, the plant's {_named(theirs)}; coordinates are matched by their order")
    if policy.dt is not None and policy.dt != plant.dt:
        console.warn(
            f"the policy was made for a sampling time of {policy.dt} s, the plant has {plant.dt} s; the proof is about the plant's"
        )


def _named(coordinates: Any) -> str:
    return ", ".join(f"{name} [{unit}]" for name, unit in coordinates)


def _outcome(results: list[StabilityResult]) -> Outcome:
    """Property, level and numbers are those of the real-valued loop."""
    from lipctrl.cli.results import entry

    first = results[0]
    proved = first.status == "ok" and first.verdict is not None
    numbers = dict(first.verdict.numbers) if first.verdict is not None else {}
    lines = []
    for result in results:
        found = result.reason if result.verdict is None else result.verdict.claim or result.verdict.reason
        lines.append(f"{result.arithmetic}: {result.level}\n  {found}")
        lines += [] if result.path is None else [f"  certificate: {result.path}"]
    return Outcome(
        lines=lines,
        status=first.status,  # type: ignore[arg-type]
        level=first.level,
        claim=first.verdict.claim if first.verdict is not None else "",
        certificates=[str(result.path) for result in results if result.path is not None],
        keys={
            "property": first.verdict.property if proved and first.verdict is not None else None,
            "volume": numbers.get("volume") if proved else None,
            "rho": numbers.get("rho") if proved else None,
            "method": METHOD,
            "reason": first.reason,
            "results": [entry(f"stability-{result.arithmetic}", result.path, result.verdict, result.reason) for result in results],
        },
    )
