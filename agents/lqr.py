"""The LQR expert: linear feedback around an equilibrium, clipped to the action box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.agents.interface import Environment, box_of
from lipctrl.core.errors import InputError
from lipctrl.core.rationals import floats
from lipctrl.envs.plant import Plant
from lipctrl.mpc.riccati import quadratic_cost, riccati

Array = NDArray[np.float64]


class LQRExpert:
    """u = clip(u* - K (y - y*)) for an observation y; ``gain`` K (m, p) in action units per observation unit.

    Raises InputError where the sizes do not fit.
    """

    def __init__(
        self,
        gain: ArrayLike,
        equilibrium_observation: ArrayLike,
        equilibrium_action: ArrayLike,
        action_low: ArrayLike,
        action_high: ArrayLike,
    ) -> None:
        self.gain = np.asarray(gain, dtype=np.float64)
        self.equilibrium_observation = np.asarray(equilibrium_observation, dtype=np.float64)
        self.equilibrium_action = np.asarray(equilibrium_action, dtype=np.float64)
        self.action_low, self.action_high = np.asarray(action_low, dtype=np.float64), np.asarray(action_high, dtype=np.float64)
        if self.gain.shape != (self.equilibrium_action.size, self.equilibrium_observation.size):
            expected = (self.equilibrium_action.size, self.equilibrium_observation.size)
            raise InputError(f"the gain has shape {self.gain.shape}, expected {expected} (actions, observations)")

    @classmethod
    def of_plant(cls, plant: Plant, state_cost: ArrayLike | None = None, input_cost: ArrayLike | None = None) -> LQRExpert:
        """From the plant's linearisation and, unless given, the weights of its own stage cost.

        Raises InputError where the plant cannot be stabilised linearly or observed fully near its equilibrium.
        """
        a, b = plant.linearise()
        own = quadratic_cost(plant)
        q, r = own[0] if state_cost is None else state_cost, own[1] if input_cost is None else input_cost
        gain, _ = riccati(a, b, q, r)
        x = floats(plant.equilibrium_state)
        through = gain @ _inverse(_central_difference(plant.observation_of, x, 1e-5), plant.name)
        return cls(through, plant.observation_of(x), floats(plant.equilibrium_action), floats(plant.action_low), floats(plant.action_high))

    @classmethod
    def of_mujoco(cls, env: Environment, state_cost: ArrayLike | None = None, input_cost: ArrayLike | None = None) -> LQRExpert:
        """For a Gymnasium MuJoCo environment whose equilibrium is the zero state with zero action (the inverted pendulums).

        The whole environment step, frame skip included, is linearised by central differences; weights default to identities.
        The environment's state is changed. Raises InputError for other environments.
        """
        from gymnasium.envs.mujoco import MujocoEnv  # slow to import

        if not isinstance(env.unwrapped, MujocoEnv):
            name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
            raise InputError(f"the environment {name} has neither a plant's equations nor a MuJoCo model, expected one of them for LQR")
        inner: Any = env.unwrapped
        positions, velocities, actions = inner.model.nq, inner.model.nv, inner.model.nu
        if positions != velocities:
            raise InputError(f"the model has {positions} positions and {velocities} velocities, expected equally many for LQR")

        def step(point: Array) -> Array:
            inner.reset(seed=0)
            inner.set_state(point[:positions], point[positions : 2 * positions])
            inner.do_simulation(point[2 * positions :], inner.frame_skip)
            return np.concatenate([inner.data.qpos, inner.data.qvel])

        def observation(state: Array) -> Array:
            inner.set_state(state[:positions], state[positions:])
            return np.asarray(inner._get_obs(), dtype=np.float64)

        zero = np.zeros(2 * positions + actions)
        jacobian = _central_difference(step, zero, 1e-6)
        n = 2 * positions
        q, r = np.eye(n) if state_cost is None else state_cost, np.eye(actions) if input_cost is None else input_cost
        gain, _ = riccati(jacobian[:, :n], jacobian[:, n:], q, r)
        low, high = box_of(env.action_space, "action")
        through = gain @ _inverse(_central_difference(observation, zero[:n], 1e-6), "of this environment")
        return cls(through, observation(zero[:n]), zero[n:], low, high)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[np.ndarray, ...] | None]:
        """Actions (..., m), float64, for observations (..., p); no memory."""
        deviation = np.asarray(observation, dtype=np.float64) - self.equilibrium_observation
        return np.clip(self.equilibrium_action - deviation @ self.gain.T, self.action_low, self.action_high), state


def _central_difference(function: Callable[[Array], Array], point: Array, step: float) -> Array:
    """Jacobian (rows: outputs) by central differences."""
    columns = [(function(point + step * e) - function(point - step * e)) / (2 * step) for e in np.eye(len(point))]
    return np.stack(columns, axis=1).astype(np.float64)


def _inverse(observed: Array, name: str) -> Array:
    """State deviation from observation deviation, to first order."""
    if np.linalg.matrix_rank(observed, tol=1e-8) < observed.shape[1]:
        raise InputError(
            f"the state of the plant {name} cannot be recovered from its observation near the equilibrium, expected it for LQR"
        )
    return np.linalg.pinv(observed).astype(np.float64)
