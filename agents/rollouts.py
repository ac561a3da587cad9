"""Closed-loop episodes: side by side for environments that step a plant, one after another for all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.agents.interface import Environment, episode_steps, plant_of
from lipctrl.agents.minari_format import Episode
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.envs import Rollout
from lipctrl.envs import rollout as batched_rollout

Array = NDArray[Any]


def rollout(
    env: Environment,
    controller: Controller,
    seeds: Sequence[int],
    *,
    initial_states: ArrayLike | None = None,
    progress: Progress = no_progress,
) -> tuple[Episode, ...]:
    """One episode for each seed; each starts from ``env.reset(seed=...)`` and runs to termination or truncation.

    An environment that steps a plant, without wrappers that change it, is rolled out in one batch through the plant's
    equations: the same numbers up to the rounding of batched evaluation.
    ``initial_states`` (episodes, n) replaces the reset law there. Raises InputError for initial states of the wrong shape or of
    an environment without a plant, and for actions that are not finite.
    """
    plant = plant_of(env)
    if plant is None:
        if initial_states is not None:
            raise InputError("initial states are set through a plant's equations, the environment has none")
        return tuple(_single(env, controller, seed, len(seeds), index, progress) for index, seed in enumerate(seeds))
    if initial_states is None:
        states = np.stack([_reset_state(env, seed) for seed in seeds])
    else:
        states = np.asarray(initial_states, dtype=np.float64)
    if states.shape != (len(seeds), len(plant.state)):
        raise InputError(f"the initial states have shape {states.shape}, expected {(len(seeds), len(plant.state))}")
    steps = episode_steps(env, plant)
    rolled = batched_rollout(plant, _Reporting(controller, steps, progress), states, steps)
    starts: Sequence[int | None] = seeds if initial_states is None else [None] * len(seeds)
    return tuple(_episode(rolled, index, seed) for index, seed in enumerate(starts))


def label(controller: Controller, episodes: Sequence[Episode]) -> list[Array]:
    """The controller's actions (T, m) at the observations of each episode, in time order and all episodes side by side.

    A controller with memory (MPC with its last plan) sees every episode as it went.
    """
    longest = max(len(episode.rewards) for episode in episodes)
    padded = np.stack([np.pad(e.observations[:-1], ((0, longest - len(e.rewards)), (0, 0)), mode="edge") for e in episodes])
    memory: tuple[Array, ...] | None = None
    labels = []
    for step in range(longest):
        start = np.full(len(episodes), step == 0)
        action, memory = controller.predict(padded[:, step], state=memory, episode_start=start, deterministic=True)
        labels.append(_finite(action, step, padded[:, step]))
    stacked = np.stack(labels, axis=1)
    return [stacked[index, : len(episode.rewards)] for index, episode in enumerate(episodes)]


def _reset_state(env: Environment, seed: int) -> Array:
    env.reset(seed=int(seed))
    inner: Any = env.unwrapped
    state = inner.get_state() if hasattr(inner, "get_state") else inner.state
    return np.asarray(state, dtype=np.float64)


@dataclass
class _Reporting:
    """A controller that reports each step of a batch of episodes."""

    controller: Controller
    steps: int
    progress: Progress
    done: int = 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, tuple[Array, ...] | None]:
        action, memory = self.controller.predict(observation, state, episode_start, deterministic)
        self.done += 1
        self.progress(self.done / self.steps, f"step {self.done} of {self.steps}", None)
        return _finite(action, self.done - 1, observation), memory


def _episode(rolled: Rollout, index: int, seed: int | None) -> Episode:
    length = int(rolled.lengths[index])
    last = np.arange(length) == length - 1
    terminated = bool(rolled.terminated[index])
    return Episode(
        observations=rolled.observations[index, : length + 1],
        actions=rolled.actions[index, :length],
        rewards=-rolled.costs[index, :length],
        terminations=last & terminated,
        truncations=last & (not terminated),
        seed=None if seed is None else int(seed),
    )


def _single(env: Environment, controller: Controller, seed: int, episodes: int, index: int, progress: Progress) -> Episode:
    observation, _ = env.reset(seed=int(seed))
    observations: list[Array] = [observation]
    actions: list[Array] = []
    rewards: list[float] = []
    ends: list[tuple[bool, bool]] = []
    memory: tuple[Array, ...] | None = None
    while not ends or not any(ends[-1]):
        start = np.array([not ends])
        action, memory = controller.predict(observation, state=memory, episode_start=start, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(_finite(action, len(ends), observation).astype(env.action_space.dtype))
        observations.append(observation)
        actions.append(np.asarray(action))
        rewards.append(float(reward))
        ends.append((terminated, truncated))
    progress((index + 1) / episodes, f"episode {index + 1} of {episodes}, return {sum(rewards):.1f}", None)
    terminations, truncations = np.array(ends, dtype=bool).T
    return Episode(np.stack(observations), np.stack(actions), np.array(rewards), terminations, truncations, int(seed))


def _finite(action: Any, step: int, observation: Any) -> Array:
    """The action; one that is not finite is the controller's fault where the observation was finite."""
    values = np.asarray(action)
    if not np.isfinite(values).all() and np.isfinite(observation).all():
        raise InputError(f"the controller's action at step {step} is {values[~np.isfinite(values)][0]}, expected finite numbers")
    return values
