"""Demonstrations: episodes of an expert, in memory and as Minari data sets on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.agents.interface import Environment, Interface
from lipctrl.agents.minari_format import Box, Episode, box_from_space, environment_id, read_dataset, write_dataset
from lipctrl.agents.rollouts import rollout
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.core.progress import Progress, no_progress

Array = NDArray[np.float64]

_FORMAT = 1  #: version of our own entry in the metadata


@dataclass(frozen=True)
class Demonstrations:
    """Episodes of one expert in one environment.

    ``interface`` says what the numbers mean (names, units, sampling time, plant); ``expert`` is a name for people;
    ``fallbacks`` counts the actions that an optimising expert gave without having found a plan.
    Raises InputError where an episode does not fit the interface or holds a value that is not finite.
    """

    episodes: tuple[Episode, ...]
    interface: Interface
    observation_box: Box
    action_box: Box
    expert: str = "unknown"
    fallbacks: int = 0

    def __post_init__(self) -> None:
        if not self.episodes:
            raise InputError("demonstrations hold no episode, expected at least one")
        n, m = len(self.interface.observation), len(self.interface.action)
        for index, episode in enumerate(self.episodes):
            steps = len(episode.rewards)
            shapes = {"observations": (steps + 1, n), "actions": (steps, m), "terminations": (steps,), "truncations": (steps,)}
            for name, shape in shapes.items():
                if getattr(episode, name).shape != shape or steps == 0:
                    raise InputError(f"episode {index} has {name} of shape {getattr(episode, name).shape}, expected {shape}")
            for name in ("observations", "actions", "rewards"):
                if not np.isfinite(getattr(episode, name)).all():
                    raise InputError(f"episode {index} has {name} that are not finite (NaN or infinity), expected finite numbers")

    @property
    def steps(self) -> int:
        """Number of steps of all episodes together."""
        return sum(len(episode.rewards) for episode in self.episodes)

    @property
    def returns(self) -> Array:
        """Sum of rewards of each episode, undiscounted."""
        return np.array([episode.rewards.sum() for episode in self.episodes], dtype=np.float64)

    def samples(self) -> tuple[Array, Array]:
        """All observations that have an action (N, n) and these actions (N, m), float64, in physical units."""
        observations = np.concatenate([episode.observations[:-1] for episode in self.episodes])
        return observations.astype(np.float64), np.concatenate([episode.actions for episode in self.episodes]).astype(np.float64)

    def digest(self) -> str:
        """SHA-256 (hex) of all numbers of all episodes, in order."""
        data = hashlib.sha256()
        for episode in self.episodes:
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                values = np.ascontiguousarray(getattr(episode, name))
                data.update(f"{name} {values.dtype.str} {values.shape} ".encode() + values.tobytes())
        return data.hexdigest()

    def save(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write a Minari data set (``FOLDER/data/...``); the folder appears whole or not at all.

        With a folder named like ``.../pendulum-lqr-v0``, ``minari.load_dataset("pendulum-lqr-v0")`` finds it once
        MINARI_DATASETS_PATH names its parent. Raises InputError where the folder exists already (unless ``overwrite``).
        """
        folder = Path(folder)
        metadata = {"algorithm_name": self.expert, "lipctrl": self._entry()}
        write_dataset(folder, self.episodes, self.observation_box, self.action_box, metadata=metadata, overwrite=overwrite)
        return folder

    def _entry(self) -> dict[str, Any]:
        """Our own entry in the metadata."""
        return {"format": _FORMAT, "interface": self.interface.to_json(), "fallbacks": self.fallbacks, "digest": self.digest()}

    @classmethod
    def load(cls, folder: Path | str, env: Environment | None = None) -> Demonstrations:
        """Read a Minari data set, ours or one that Minari wrote, and compare it with ``env`` where one is given.

        Nothing from the files is executed, no environment is built from them. Raises InputError, naming both values, where names,
        units, sampling time, action box or plant differ from the environment's, and for files that cannot be used.
        """
        metadata, observation_box, action_box, episodes = read_dataset(Path(folder))
        expert = metadata.get("algorithm_name")
        interface, fallbacks = _stored(metadata, observation_box, action_box)
        loaded = cls(episodes, interface, observation_box, action_box, expert if isinstance(expert, str) else "unknown", fallbacks)
        if "lipctrl" in metadata and metadata["lipctrl"]["digest"] != loaded.digest():
            raise InputError(f"the demonstrations in {folder} are damaged: their numbers do not have the digest in the metadata")
        if env is not None:
            interface.check_matches(Interface.of(env), f"the demonstrations in {folder}")
        return loaded


def collect(
    env: Environment,
    controller: Controller,
    episodes: int,
    seed: int = 0,
    *,
    expert: str | None = None,
    initial_states: Array | None = None,
    progress: Progress = no_progress,
) -> Demonstrations:
    """Let a controller act for whole episodes; episode i starts from ``env.reset(seed=seed + i)``.

    Environments that step a plant run all episodes side by side, others one after another. ``initial_states`` (episodes, state
    size) replaces the reset law, for plants. Raises InputError for a number of episodes below 1.
    """
    if episodes < 1:
        raise InputError(f"the number of episodes is {episodes}, expected at least 1")
    interface = Interface.of(env)
    before = getattr(controller, "fallbacks", 0)
    rolled = rollout(env, controller, range(seed, seed + episodes), initial_states=initial_states, progress=progress)
    name = expert if expert is not None else type(controller).__name__
    spaces: tuple[Any, Any] = env.observation_space, env.action_space
    boxes = box_from_space(spaces[0]), box_from_space(spaces[1])
    return Demonstrations(rolled, interface, *boxes, name, getattr(controller, "fallbacks", 0) - before)


def _stored(metadata: dict[str, Any], observation_box: Box, action_box: Box) -> tuple[Interface, int]:
    """The stored interface and number of fallbacks, or what the boxes alone say for a data set that others wrote."""
    stored = metadata.get("lipctrl")
    if stored is None:
        name = environment_id(metadata) or "unknown"
        return Interface.unnamed(name, observation_box.low.size, action_box.low, action_box.high), 0
    if not isinstance(stored, dict) or set(stored) != {"format", "interface", "fallbacks", "digest"} or stored["format"] != _FORMAT:
        raise InputError(f"the metadata's entry 'lipctrl' is not of format {_FORMAT}; expected what this version of lipctrl writes")
    fallbacks = stored["fallbacks"]
    if type(fallbacks) is not int or fallbacks < 0:
        raise InputError(f"the metadata say {fallbacks!r} fallbacks, expected a whole number")
    interface = Interface.from_json(stored["interface"])
    for name, box in (("observation", observation_box), ("action", action_box)):
        if len(getattr(interface, name)) != box.low.size:
            raise InputError(f"the metadata name {len(getattr(interface, name))} {name} coordinates, their space has {box.low.size}")
    return interface, fallbacks
