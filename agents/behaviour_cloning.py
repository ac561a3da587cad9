"""Behaviour cloning of an expert by a policy with a hard Lipschitz bound."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.agents.demonstrations import Demonstrations
from lipctrl.agents.fitting import Fit, Samples
from lipctrl.agents.limits import data_limits
from lipctrl.agents.training import TrainingOptions, TrainingResult, build_policy, export_policy, one_thread
from lipctrl.core.progress import Progress, no_progress
from lipctrl.core.run_folder import RunFolder

DEFAULTS = TrainingOptions()


def train_behaviour_cloning(
    demonstrations: Demonstrations,
    lipschitz: float,
    *,
    options: TrainingOptions = DEFAULTS,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Fit a policy whose Lipschitz constant is at most ``lipschitz`` (action units per observation unit, l2) to demonstrations.

    With a ``folder`` the run is written there and resumed from its last checkpoint: a run that was killed ends with the same
    bytes as one that was not, and equal seeds give equal policies. Ctrl-C returns the best policy so far. ``progress`` gets the
    policy as its third argument. The policy is in ``FOLDER/policy`` when the run is complete.

    Raises InputError where the folder holds another run, or the constant or an option is out of its range.
    """
    policy = build_policy(demonstrations.interface, lipschitz, options, seed)
    limits = data_limits(*demonstrations.samples(), lipschitz)
    training, validation = split(demonstrations, options.validation_fraction, seed, policy)
    run = None if folder is None else RunFolder(folder, _config(demonstrations, lipschitz, options, seed))
    fit = Fit(policy, options, seed)
    history = resume(run, fit)

    def checkpoint(record: dict[str, Any]) -> None:
        history.append(record)
        if run is not None:
            run.append(record)
            run.save_state(fit.tensors(), {"fit": fit.values(), "records": len(history)})
        progress(fit.step / options.steps, describe(record), policy)

    completed = True
    with one_thread():
        try:
            fit.run(training, validation, checkpoint)
        except KeyboardInterrupt:
            completed = False
            if validation is not None:
                fit.keep_best()
    if run is not None and completed:
        export_policy(policy, demonstrations.interface, {"algorithm": "behaviour-cloning", "seed": seed}).save(run.path / "policy")
    progress(1.0, f"trained on {demonstrations.steps} samples", policy)
    return TrainingResult(policy, tuple(history), limits, completed)


def split(demonstrations: Demonstrations, fraction: float, seed: int, policy: Any) -> tuple[Samples, Samples | None]:
    """Whole episodes for training and for validation, drawn with ``seed``; no validation where the share rounds to no episode."""
    dtype = next(policy.parameters()).dtype
    episodes = demonstrations.episodes
    held_out = min(round(fraction * len(episodes)), len(episodes) - 1)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))).permutation(len(episodes))

    def samples(indices: np.ndarray) -> Samples:
        chosen = dataclasses.replace(demonstrations, episodes=tuple(episodes[i] for i in sorted(indices)))
        return Samples.of(*chosen.samples(), dtype)

    return samples(order[held_out:]), samples(order[:held_out]) if held_out else None


def resume(run: RunFolder | None, fit: Fit) -> list[dict[str, Any]]:
    """Restore the fit from the run's last checkpoint, and return the records that led to it."""
    saved = None if run is None else run.load_state()
    if run is None or saved is None:
        if run is not None:
            run.keep_records(0)
        return []
    tensors, values = saved
    run.keep_records(values["records"])
    fit.restore(tensors, values["fit"])
    return run.records()


def describe(record: dict[str, Any]) -> str:
    """One line about a record of the journal."""
    losses = [f"{name.replace('_', ' ')} {record[name]:.2e}" for name in ("training_loss", "validation_loss") if name in record]
    return f"step {record['step']}: {', '.join(losses)}"


def _config(demonstrations: Demonstrations, lipschitz: float, options: TrainingOptions, seed: int) -> dict[str, Any]:
    return {
        "algorithm": "behaviour-cloning",
        "environment": demonstrations.interface.environment,
        "plant_digest": demonstrations.interface.plant_digest,
        "expert": demonstrations.expert,
        "demonstrations": demonstrations.digest(),
        "lipschitz": float(lipschitz),
        "seed": seed,
        "options": options.table(),
    }
