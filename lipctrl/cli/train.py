"""``lipctrl train bc`` and ``lipctrl train dagger``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from lipctrl.cli.console import Console
from lipctrl.cli.verb import EnvironmentId, Folder, OptionalFolder, Outcome, Verb
from lipctrl.core.errors import InputError, LipctrlError

if TYPE_CHECKING:
    from lipctrl.agents import Demonstrations, TrainingOptions, TrainingResult

# As in lipctrl.agents.training, which is slow to import.
Layer = Literal["sandwich", "cayley", "ldlt", "bjorck", "contraction", "aol", "sll", "cpl", "linear-plus"]
ActivationName = Literal["relu", "tanh", "maxmin", "softplus", "sigmoid", "leaky_relu", "abs", "scaled_gelu", "scaled_silu"]


@dataclass(frozen=True, kw_only=True)
class Train(Verb):
    """What all algorithms share."""

    env: EnvironmentId
    """Environment: a shipped plant (pendulum), any Gymnasium id (Pendulum-v1), or a Python file with plant() -> Plant (it is executed)."""
    out: Folder
    """Folder of the run; the same command resumes it, another one is refused."""
    demos: OptionalFolder = None
    """Folder of demonstrations (demos collect); without it the expert records some first."""
    lipschitz: Annotated[float | None, tyro.conf.arg(metavar="L")] = None
    """Lipschitz constant of the policy, action units per observation unit; by default 5 % above the steepest slope in the data."""
    expert: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Expert: lqr, energy, mpc, or a policy folder; by default the plant's own."""
    episodes: int = 50
    """Episodes of the expert where no demonstrations are given (dagger: and of the policy in each round)."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers."""
    layer: Layer = "sandwich"
    """Family of the layers, or a residual network (sll, cpl), or a linear map beside a network: Lipschitz by construction."""
    activation: ActivationName = "relu"
    """Activation; cayley, bjorck, contraction and aol take all, the others relu, tanh, softplus, sigmoid or leaky_relu."""
    steps: int = 3000
    """Gradient steps (dagger: per round)."""

    def run(self, console: Console) -> Outcome:
        """Train, bound the Lipschitz constant of the result, and write what was learnt about it."""
        if self.lipschitz is not None and not 0 < self.lipschitz < float("inf"):
            raise InputError(f"the Lipschitz constant is {self.lipschitz}, expected a positive number")
        for name, values in (("--steps", (self.steps,)), ("--episodes", (self.episodes,)), ("--hidden", self.hidden)):
            if min(values, default=0) < 1:
                raise InputError(f"{name} is {' '.join(map(str, values)) or 'empty'}, expected whole numbers from 1 on")
        self._refuse_another_run()
        if self.demos is not None and self.expert is not None and not self.needs_expert:
            console.warn(f"--expert {self.expert} is not asked: the demonstrations in {self.demos} are all that is used")
        with console.task("training") as progress:
            from lipctrl.agents import Demonstrations
            from lipctrl.cli.environments import make_environment

            env = make_environment(self.env)
            data = None if self.demos is None else Demonstrations.load(self.demos, env)
            self._refuse_another_run(env, data)
            self.options()  # slow to load: refuses layers and activations that do not fit together
            expert = None if data is not None and not self.needs_expert else self._expert(env)
            if data is None:
                data = self._collect(env, expert, progress)
            lipschitz = self.lipschitz if self.lipschitz is not None else _chosen(data)
            self._say(console, env, data, lipschitz)
            result = self.fit(env, expert, data, lipschitz, progress)
        return _finish(self, env, result, lipschitz)

    algorithm: ClassVar[str] = ""
    needs_expert: ClassVar[bool] = False

    def known(self) -> dict[str, Any]:
        """What the command line alone says of the run's configuration."""
        options = {"hidden": self.hidden, "layer": self.layer, "activation": self.activation, "steps": self.steps}
        lipschitz = {} if self.lipschitz is None else {"lipschitz": self.lipschitz}
        return {"algorithm": self.algorithm, "seed": self.seed, **lipschitz, "options": options}

    def _refuse_another_run(self, env: Any = None, data: Demonstrations | None = None) -> None:
        """Raise InputError where the folder holds something else, as soon as that can be told."""
        from lipctrl.cli.writing import refuse_other_content

        config = self.known()
        if env is not None:
            from lipctrl.agents.interface import Interface

            interface = Interface.of(env)
            config["environment"] = interface.environment
            config |= {} if interface.plant_digest is None else {"plant_digest": interface.plant_digest}
        if data is not None:
            config["demonstrations"] = data.digest()
        refuse_other_content(self.out, "train", config)

    def fit(self, env: Any, expert: Any, data: Demonstrations, lipschitz: float, progress: Any) -> TrainingResult:
        """Run the algorithm."""
        raise TypeError(f"{type(self).__name__} cannot train")

    def options(self, **more: Any) -> TrainingOptions:
        """Options of the fit from those of the command line."""
        from lipctrl.agents import TrainingOptions

        return TrainingOptions(hidden=self.hidden, layer=self.layer, activation=self.activation, steps=self.steps, **more)

    def _expert(self, env: Any) -> Any:
        from lipctrl.agents import make_expert

        return make_expert(self._expert_name(env), env)

    def _expert_name(self, env: Any) -> str:
        from lipctrl.agents.interface import plant_of

        plant = plant_of(env)
        if self.expert is not None:
            return self.expert
        if plant is None:
            raise InputError(f"the environment {self.env!r} has no expert of its own, expected --expert NAME or --demos DIR")
        return plant.experts[0]

    def _collect(self, env: Any, expert: Any, progress: Any) -> Demonstrations:
        """Demonstrations of this run: recorded once, then read."""
        from lipctrl.agents import Demonstrations, collect
        from lipctrl.report.run import DEMONSTRATIONS

        path, name = Path(self.out) / DEMONSTRATIONS, self._expert_name(env)
        if path.exists():
            data = Demonstrations.load(path, env)
            if (len(data.episodes), data.expert) != (self.episodes, name):
                there = f"{len(data.episodes)} episodes of {data.expert} there and {self.episodes} of {name} here"
                raise InputError(f"{self.out} holds another run: demonstrations are {there}; choose another folder with --out")
            return data
        progress(0.0, f"recording {self.episodes} episodes", None)
        data = collect(env, expert, self.episodes, self.seed, expert=name)
        data.save(path)
        return data

    def _say(self, console: Console, env: Any, data: Demonstrations, lipschitz: float) -> None:
        from lipctrl.agents import data_limits, plant_stabilisation_floor
        from lipctrl.agents.interface import plant_of
        from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_down

        console.note(str(data_limits(*data.samples(), lipschitz, seed=self.seed)))
        plant = plant_of(env)
        floor = None if plant is None else plant_stabilisation_floor(plant).lipschitz
        if floor is not None and lipschitz < floor:
            below = f"L = {lipschitz:g} is below {rounded_down(floor)}"
            console.warn(f"{below}: no static policy with this Lipschitz constant can stabilise the equilibrium")


@dataclass(frozen=True, kw_only=True)
class BehaviourCloning(Train):
    """Behaviour cloning: fit a policy with a hard Lipschitz bound to an expert's demonstrations.

    The run folder holds the journal, a checkpoint, the policy and the certificate of its Lipschitz bound.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl train bc --env pendulum --demos runs/pendulum-lqr-v0 --lipschitz 1.5 --out runs/bc"
    algorithm: ClassVar[str] = "behaviour-cloning"

    def fit(self, env: Any, expert: Any, data: Demonstrations, lipschitz: float, progress: Any) -> TrainingResult:
        """Fit once."""
        from lipctrl.agents import train_behaviour_cloning

        return train_behaviour_cloning(data, lipschitz, options=self.options(), seed=self.seed, folder=self.out, progress=progress)


@dataclass(frozen=True, kw_only=True)
class Dagger(Train):
    """DAgger: the policy acts, the expert labels what it saw, and all data are fitted again, in rounds.

    The run folder holds the journal, the data of each round, a checkpoint, the policy and the certificate of its Lipschitz bound.
    """

    EXAMPLE: ClassVar[str] = "  lipctrl train dagger --env Pendulum-v1 --expert energy --lipschitz 10 --out runs/dagger"
    algorithm: ClassVar[str] = "dagger"
    needs_expert: ClassVar[bool] = True

    rounds: int = 3
    """Rounds in which the policy acts."""

    def known(self) -> dict[str, Any]:
        """Rounds and episodes too."""
        return {**super().known(), "rounds": self.rounds, "episodes": self.episodes}

    def fit(self, env: Any, expert: Any, data: Demonstrations, lipschitz: float, progress: Any) -> TrainingResult:
        """Round 0 is the demonstrations."""
        from lipctrl.agents import DaggerOptions, train_dagger

        options = DaggerOptions(self.rounds, self.episodes, training=self.options(validation_fraction=0.0, patience=0))
        return train_dagger(
            env, expert, lipschitz, options=options, demonstrations=data, seed=self.seed, folder=self.out, progress=progress
        )


def _chosen(data: Demonstrations) -> float:
    from lipctrl.quickstart import choose_lipschitz

    return choose_lipschitz(data)


def _finish(verb: Train, env: Any, result: TrainingResult, lipschitz: float) -> Outcome:
    """Save the policy of an interrupted run, certify the Lipschitz bound, and write the results."""
    from lipctrl.agents.interface import Interface
    from lipctrl.agents.training import export_policy
    from lipctrl.certificates.checker.kinds import check
    from lipctrl.certificates.checker.verdict import PROVED, PROVED_FOR_MODEL, UNKNOWN
    from lipctrl.certificates.lipschitz import certify_lipschitz
    from lipctrl.cli.results import entry
    from lipctrl.cli.writing import write_results

    path = Path(verb.out)
    if not result.completed:
        export_policy(result.policy, Interface.of(env), {"completed": False}).save(path / "best-so-far")
        line = f"interrupted: the policy so far is in {path / 'best-so-far'}; the same command goes on"
        return Outcome([line], status="unknown", keys={"policy": str(path / "best-so-far")}, interrupted=True)
    losses = [record["training_loss"] for record in result.history if "training_loss" in record]
    lines = [f"policy: {path / 'policy'}", *(f"last training loss {loss:.3g}" for loss in losses[-1:])]
    where, verdict, lower, reason = None, None, None, ""
    try:
        certificate = certify_lipschitz(result.policy.graph(), seed=verb.seed)
    except LipctrlError as error:
        reason = str(error)
        lines.append(f"no Lipschitz bound was proved: {reason}")
    else:
        where = certificate.write(path / "certificates" / "lipschitz")
        verdict, lower = check(where), None if certificate.lower is None else certificate.lower.value
        reason = verdict.reason
        lines.append(f"{verdict.claim or reason} ({verdict.level})")
    keys = {
        "policy": str(path / "policy"),
        "lipschitz": lipschitz,
        "upper": None if verdict is None else verdict.numbers.get("lipschitz"),
        "lower": lower,
        "norm": "l2",
        "training_loss": losses[-1] if losses else None,
        "error_floor": result.limits.error_floor,
        "interpolation_constant": result.limits.interpolation_constant,
        "results": [entry("lipschitz", where, verdict, reason)],
    }
    outcome = Outcome(
        lines=lines,
        status="ok" if verdict is not None and verdict.level in (PROVED, PROVED_FOR_MODEL) else "unknown",
        level=UNKNOWN if verdict is None else verdict.level,
        claim="" if verdict is None else verdict.claim,
        certificates=[] if where is None else [str(where)],
        keys=keys,
    )
    write_results(path, "train", outcome)
    return outcome
