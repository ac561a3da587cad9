"""Closed-loop simulation of many episodes at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.envs.plant import Plant


@dataclass(frozen=True)
class Rollout:
    """Episodes side by side: N episodes, T steps, in physical units.

    ``states`` (N, T+1, n), ``observations`` (N, T+1, p) float32, ``actions`` (N, T, m) as applied (clipped), ``costs`` (N, T).
    An episode that terminated has ``lengths[i] < T`` steps or ended with the last; after its end the state is held and costs are 0.
    """

    states: np.ndarray
    observations: np.ndarray
    actions: np.ndarray
    costs: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """Sum of rewards of each episode (N,)."""
        total: np.ndarray = -self.costs.sum(axis=1)
        return total


def rollout(plant: Plant, controller: Controller, initial_states: np.ndarray, steps: int | None = None) -> Rollout:
    """Run ``controller`` from each of the ``initial_states`` (N, n) for ``steps`` (default: the plant's episode).

    The controller sees float32 observations, all episodes in one batch. Raises InputError where shapes do not fit.
    """
    state = np.array(initial_states, np.float64)
    if state.ndim != 2 or state.shape[1] != len(plant.state):
        raise InputError(f"initial states have shape {state.shape}, expected (N, {len(plant.state)})")
    steps = plant.max_episode_steps if steps is None else steps
    count, actions_size = len(state), len(plant.action)
    alive, lengths = np.ones(count, bool), np.zeros(count, int)
    memory, start = None, np.ones(count, bool)
    observation = plant.observation_of(state).astype(np.float32)
    states: list[np.ndarray] = [state]
    observations: list[np.ndarray] = [observation]
    actions: list[np.ndarray] = []
    costs: list[np.ndarray] = []
    for _ in range(steps):
        action, memory = controller.predict(observation, memory, start, True)
        action = plant.clip_action(action)
        if action.shape != (count, actions_size):
            raise InputError(f"the controller returned actions of shape {action.shape}, expected {(count, actions_size)}")
        costs.append(np.where(alive, plant.stage_cost(state, action), 0.0))
        state = np.where(alive[:, None], plant.step(state, action), state)
        lengths += alive
        alive = alive & ~plant.terminated(state)
        observation, start = plant.observation_of(state).astype(np.float32), np.zeros(count, bool)
        states.append(state)
        observations.append(observation)
        actions.append(action)
    return Rollout(
        states=np.stack(states, axis=1),
        observations=np.stack(observations, axis=1),
        actions=np.stack(actions, axis=1) if actions else np.zeros((count, 0, actions_size)),
        costs=np.stack(costs, axis=1) if costs else np.zeros((count, 0)),
        lengths=lengths,
        terminated=~alive,
    )
