"""DAgger under a hard Lipschitz bound: the learner acts, the expert labels what it saw, all data together are fitted again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.agents.behaviour_cloning import describe
from lipctrl.agents.demonstrations import Demonstrations, collect
from lipctrl.agents.fitting import Fit, Samples
from lipctrl.agents.interface import Environment, Interface
from lipctrl.agents.limits import data_limits
from lipctrl.agents.rollouts import label, rollout
from lipctrl.agents.training import TrainingOptions, TrainingResult, build_policy, export_policy, one_thread
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.core.run_folder import RunFolder

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DaggerOptions:
    """Rounds and episodes of DAgger, and how each round is fitted."""

    rounds: int = 3
    """Rounds in which the learner acts; 0 is behaviour cloning."""
    episodes: int = 50
    """Episodes of the expert in round 0, and of the learner in each later round."""
    environment_seed: int | None = None
    """Seed of the first episode, the others follow; by default 1000 + 10000 times the training seed."""
    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(hidden=(64, 64), validation_fraction=0.0, patience=0))
    """Fit of each round; it keeps its last iterate, so validation_fraction and patience must be 0."""

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.episodes < 1:
            raise InputError(f"DAgger got {self.rounds} rounds of {self.episodes} episodes, expected >= 0 rounds of >= 1 episode")
        if self.training.validation_fraction or self.training.patience:
            raise InputError("DAgger keeps the last iterate of each round: expected validation_fraction 0 and patience 0")


DEFAULTS = DaggerOptions()


def train_dagger(
    env: Environment,
    expert: Controller,
    lipschitz: float,
    *,
    options: DaggerOptions = DEFAULTS,
    demonstrations: Demonstrations | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Clone the expert (round 0), then in each round let the learner act, label its states, and fit all data so far.

    ``lipschitz`` bounds the policy in action units per observation unit (l2). Round 0 uses ``demonstrations`` where they are
    given, else episodes of the expert. Every round starts from the parameters of the one before. The journal logs e*(L) and the
    mean return of whoever acted. With a ``folder`` the run is resumable and ends with the same bytes however often it was
    killed; Ctrl-C returns the policy as it is then. The policy is in ``FOLDER/policy`` when the run is complete.

    Raises InputError for demonstrations of another environment and for a folder that holds another run.
    """
    interface = Interface.of(env)
    if demonstrations is not None:
        demonstrations.interface.check_matches(interface)
    run = None if folder is None else RunFolder(folder, _config(interface, expert, lipschitz, options, demonstrations, seed))
    fit = Fit(build_policy(interface, lipschitz, options.training, seed), options.training, seed)
    first_seed = 1000 + 10_000 * seed if options.environment_seed is None else options.environment_seed
    dagger = _Dagger(env, expert, lipschitz, options, first_seed, demonstrations, fit, run, progress)
    completed = True
    with one_thread():
        try:
            dagger.run()
        except KeyboardInterrupt:
            if not dagger.rounds:
                raise  # there is no policy yet
            completed = False
    if run is not None and completed:
        export_policy(fit.policy, interface, {"algorithm": "dagger", "seed": seed}).save(run.path / "policy")
    return TrainingResult(fit.policy, tuple(dagger.history), data_limits(*dagger.samples(), lipschitz), completed)


@dataclass(frozen=True)
class _Round:
    """Observations (N, n) of one round and the expert's actions there (N, m), with the mean return of whoever acted."""

    observations: Array
    actions: Array
    mean_return: float


@dataclass
class _Dagger:
    """A run in progress."""

    env: Environment
    expert: Controller
    lipschitz: float
    options: DaggerOptions
    first_seed: int
    demonstrations: Demonstrations | None
    fit: Fit
    folder: RunFolder | None
    progress: Progress
    rounds: list[_Round] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """All rounds, from the last checkpoint on."""
        self._resume()
        for index in range(max(0, len(self.rounds) - 1), self.options.rounds + 1):
            if index == len(self.rounds):
                self._begin(index)
            samples = Samples.of(*self.samples(), next(self.fit.policy.parameters()).dtype)
            self.fit.run(samples, None, lambda record, index=index: self._checkpoint({"round": index, **record}))  # type: ignore[misc]

    def samples(self) -> tuple[Array, Array]:
        """All observations and labels so far."""
        return np.concatenate([r.observations for r in self.rounds]), np.concatenate([r.actions for r in self.rounds])

    def _begin(self, index: int) -> None:
        """Gather the data of a round, and write them before the state that counts on them."""
        gathered = self._expert_round() if index == 0 else self._learner_round(index)
        if self.folder is not None:
            arrays = {"observations": gathered.observations, "actions": gathered.actions}
            self.folder.save_tensors(_data_file(index), arrays, {"mean_return": gathered.mean_return})
        self.rounds.append(gathered)
        self.fit.start()
        limits = data_limits(*self.samples(), self.lipschitz, subsample=0)
        record = {"round": index, "samples": sum(len(r.actions) for r in self.rounds), "mean_return": gathered.mean_return}
        self._checkpoint(record | {"error_floor": limits.error_floor, "interpolation_constant": str(limits.interpolation_constant)})

    def _expert_round(self) -> _Round:
        data = self.demonstrations
        if data is None:
            data = collect(self.env, self.expert, self.options.episodes, self.first_seed)
        return _Round(*data.samples(), float(data.returns.mean()))

    def _learner_round(self, index: int) -> _Round:
        first = self.first_seed + index * self.options.episodes
        episodes = rollout(self.env, self.fit.policy.export(), range(first, first + self.options.episodes))
        observations = np.concatenate([episode.observations[:-1] for episode in episodes]).astype(np.float64)
        actions = np.concatenate(label(self.expert, episodes)).astype(np.float64)
        return _Round(observations, actions, float(np.mean([episode.rewards.sum() for episode in episodes])))

    def _checkpoint(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        if self.folder is not None:
            self.folder.append(record)
            values = {"fit": self.fit.values(), "records": len(self.history), "round": len(self.rounds) - 1}
            self.folder.save_state(self.fit.tensors(), values)
        done = (record["round"] + record.get("step", 0) / self.options.training.steps) / (self.options.rounds + 1)
        self.progress(min(done, 1.0), _message(record), self.fit.policy)

    def _resume(self) -> None:
        saved = None if self.folder is None else self.folder.load_state()
        if self.folder is None or saved is None:
            if self.folder is not None:
                self.folder.keep_records(0)
            return
        tensors, values = saved
        for index in range(values["round"] + 1):
            stored = self.folder.load_tensors(_data_file(index))
            if stored is None:
                raise InputError(f"{self.folder.path} is damaged: {_data_file(index)} is missing; delete the run folder to start again")
            arrays, numbers = stored
            self.rounds.append(_Round(arrays["observations"], arrays["actions"], numbers["mean_return"]))
        self.folder.keep_records(values["records"])
        self.history = self.folder.records()
        self.fit.restore(tensors, values["fit"])


def _data_file(index: int) -> str:
    return f"round-{index}.safetensors"


def _message(record: dict[str, Any]) -> str:
    if "step" in record:
        return f"round {record['round']}, {describe(record)}"
    actor = "learner" if record["round"] else "expert"
    return f"round {record['round']}: {record['samples']} samples, mean return of the {actor} {record['mean_return']:.1f}"


def _config(
    interface: Interface, expert: Controller, lipschitz: float, options: DaggerOptions, demonstrations: Demonstrations | None, seed: int
) -> dict[str, Any]:
    return {
        "algorithm": "dagger",
        "environment": interface.environment,
        "plant_digest": interface.plant_digest,
        "expert": type(expert).__name__,
        "demonstrations": None if demonstrations is None else demonstrations.digest(),
        "lipschitz": float(lipschitz),
        "seed": seed,
        "rounds": options.rounds,
        "episodes": options.episodes,
        "environment_seed": options.environment_seed,
        "options": options.training.table(),
    }
