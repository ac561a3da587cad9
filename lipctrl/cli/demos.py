"""``lipctrl demos collect`` and ``lipctrl demos show``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import EnvironmentId, Folder, OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError

if TYPE_CHECKING:
    from lipctrl.agents.demonstrations import Demonstrations


@dataclass(frozen=True, kw_only=True)
class Collect(Verb):
    """Record whole episodes of an expert as a Minari data set, with names, units, sampling time and plant.

    Experts: lqr, energy (pump, then LQR), mpc, or the path of a policy folder. Episode i starts from reset(seed=SEED + i).
    """

    EXAMPLE: ClassVar[str] = "  lipctrl demos collect --env pendulum --expert lqr --episodes 50 --out runs/pendulum-lqr-v0"

    env: EnvironmentId
    """Environment: a shipped plant (pendulum), any Gymnasium id (Pendulum-v1), or a Python file with plant() -> Plant (it is executed)."""
    expert: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """Expert: lqr, energy, mpc, or a policy folder."""
    out: Folder
    """Folder of the data set; it must not exist yet."""
    episodes: int = 50
    """Episodes to record."""

    def run(self, console: Console) -> Outcome:
        """Roll out the expert and write the episodes."""
        from lipctrl.cli.writing import new_folder

        if self.episodes < 1:
            raise InputError(f"the number of episodes is {self.episodes}, expected at least 1")
        out = new_folder(self.out)
        with console.task("collecting") as progress:
            from lipctrl.agents import collect, make_expert
            from lipctrl.cli.environments import make_environment

            env = make_environment(self.env)
            data = collect(env, make_expert(self.expert, env), self.episodes, self.seed, expert=self.expert, progress=progress)
        data.save(out)
        return Outcome(lines=[*_lines(data), f"written to {out}"], keys={**_keys(data), "path": str(out)})


@dataclass(frozen=True, kw_only=True)
class Show(Verb):
    """Say what a data set holds: environment, expert, coordinates, returns, and which Lipschitz constants it allows."""

    EXAMPLE: ClassVar[str] = "  lipctrl demos show runs/pendulum-lqr-v0 --lipschitz 1.5"

    data: Annotated[Folder, tyro.conf.Positional]
    """Folder of the data set (Minari's form)."""
    lipschitz: Annotated[float | None, tyro.conf.arg(metavar="L")] = None
    """Also say how well a policy of this Lipschitz constant could fit at best."""
    out: OptionalFolder = None
    """Write the results there too, as results.json."""

    def run(self, console: Console) -> Outcome:
        """Read the data set and describe it."""
        from lipctrl.agents import Demonstrations, data_limits
        from lipctrl.agents.limits import interpolation_constant
        from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_down
        from lipctrl.cli.writing import refuse_other_content, write_results

        if self.lipschitz is not None and not 0 < self.lipschitz < float("inf"):
            raise InputError(f"the Lipschitz constant is {self.lipschitz}, expected a positive number")
        if self.out is not None:
            refuse_other_content(self.out, "demos")
        data = Demonstrations.load(self.data)
        lines, keys = _lines(data), _keys(data)
        keys["interpolation_constant"] = steepest = interpolation_constant(*data.samples())
        lines.append(f"steepest slope between two samples: {rounded_down(steepest, 4)} (an exact fit needs at least this, numerical)")
        if self.lipschitz is not None:
            limits = data_limits(*data.samples(), self.lipschitz, seed=self.seed)
            lines.append(str(limits))
            keys |= {"lipschitz": self.lipschitz, "error_floor": limits.error_floor, "squared_error_floor": limits.mean_squared_error_floor}
        outcome = Outcome(lines=lines, keys=keys)
        if self.out is not None:
            write_results(self.out, "demos", outcome)
        return outcome


def _keys(data: Demonstrations) -> dict[str, Any]:
    return {
        "environment": data.interface.environment,
        "expert": data.expert,
        "episodes": len(data.episodes),
        "steps": data.steps,
        "mean_return": float(data.returns.mean()),
        "digest": data.digest(),
    }


def _lines(data: Demonstrations) -> list[str]:
    names = {kind: ", ".join(f"{c[0]} [{c[1]}]" for c in getattr(data.interface, kind)) for kind in ("observation", "action")}
    dt = "not stated" if data.interface.dt is None else f"{float(data.interface.dt):g} s"
    returns = data.returns
    return [
        f"{len(data.episodes)} episodes, {data.steps} steps of {data.expert} in {data.interface.environment}, sampling time {dt}",
        f"observation: {names['observation']}; action: {names['action']}",
        f"return: mean {returns.mean():.4g}, from {returns.min():.4g} to {returns.max():.4g}",
    ]
