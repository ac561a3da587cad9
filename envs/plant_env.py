"""A plant as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lipctrl.core.errors import InputError
from lipctrl.core.rationals import floats
from lipctrl.envs.plant import Plant
from lipctrl.envs.registry import load_plant

Observation = np.ndarray


class PlantEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Steps the recorded equations of a plant in float64; observations are float32, the reward is minus the stage cost.

    ``plant`` is a Plant, the name or id of a shipped one, or a file that defines ``plant()``. Actions are in physical
    units, and clipped to the action box by the plant; float64 actions are used as they are. An episode terminates outside
    the plant's termination box (or where the state is no longer finite); ``gymnasium.make`` adds the time limit.

    ``reset(options={"state": [...]})`` starts in that state, ``{"low": [...], "high": [...]}`` draws from that box.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (Gymnasium's convention)

    def __init__(self, plant: Plant | str = "pendulum", render_mode: str | None = None) -> None:
        self.plant = plant if isinstance(plant, Plant) else load_plant(plant)
        if self.plant.dynamics is None:
            raise InputError(f"plant {self.plant.name!r} has no equations to step")
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode is {render_mode!r}, expected 'rgb_array' or None")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(1, round(1 / self.plant.dt))}
        self.render_mode = render_mode
        compiled = self.plant.compiled
        self._dynamics, self._observe = compiled["dynamics"], compiled["observe"]
        self._cost = self.plant.scalar_cost or self.plant.stage_cost
        self._reset_low, self._reset_high = floats(self.plant.reset_low), floats(self.plant.reset_high)
        self._ends = self.plant.termination_low is not None
        self.action_space = spaces.Box(_float32(self.plant.action_low), _float32(self.plant.action_high), dtype=np.float32)
        self.observation_space = _observation_space(self.plant)
        self._state: np.ndarray | None = None
        self._history: list[np.ndarray] = []
        self._action = floats(self.plant.equilibrium_action)

    @property
    def dt(self) -> float:
        """Sampling time in seconds."""
        return float(self.plant.dt)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Draw an initial state; see the class for ``options``. Raises InputError for options that do not fit."""
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"state", "low", "high"}
        if unknown:
            raise InputError(f"reset has the options {sorted(unknown)}, expected 'state', or 'low' and 'high'")
        if "state" in options:
            self.set_state(options["state"])
        else:
            low = self._vector(options.get("low", self._reset_low), "low")
            high = self._vector(options.get("high", self._reset_high), "high")
            if not (low <= high).all():
                raise InputError(f"reset options low {low.tolist()} and high {high.tolist()}, expected low <= high")
            self.set_state(self.np_random.uniform(low=low, high=high))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance by ``dt``. Raises InputError for an action of another size or not finite, or before the first reset."""
        state = self._current()
        action = np.asarray(action, np.float64)
        if action.shape != self._action.shape or not np.isfinite(action).all():
            raise InputError(f"action is {action.tolist()}, expected {self._action.size} finite numbers")
        self._action = self.plant.clip_action(action)
        cost = float(self._cost(state, self._action))
        self._state = state = self._dynamics(state=state, action=self._action)
        if self.render_mode is not None:
            self._history.append(state)
        terminated = bool(self.plant.terminated(state)) if self._ends else not np.isfinite(state).all()
        return self._observation(), -cost, bool(terminated), False, {}

    def get_state(self) -> np.ndarray:
        """The state (n,), float64, as a copy. Raises InputError before the first reset."""
        return self._current().copy()

    def set_state(self, state: Any) -> None:
        """Continue from a state (n,). Raises InputError where it does not fit or is not finite."""
        self._state = self._vector(state, "state")
        self._history = [self._state]
        self._action = floats(self.plant.equilibrium_action)

    def render(self) -> np.ndarray | None:
        """An RGB picture (400, 400, 3), uint8, of the current state; ``None`` without a render mode."""
        if self.render_mode is None:
            return None
        from lipctrl.envs.rendering import draw

        self._current()
        return draw(self.plant, np.stack(self._history), self._action)

    def _current(self) -> np.ndarray:
        if self._state is None:
            raise InputError("the environment has no state yet, expected reset() or set_state() first")
        return self._state

    def _observation(self) -> Observation:
        return self._observe(state=self._state).astype(np.float32)

    def _vector(self, value: Any, what: str) -> np.ndarray:
        try:
            vector = np.array(value, np.float64)
        except (TypeError, ValueError):
            vector = np.array(np.nan)
        if vector.shape != (len(self.plant.state),) or not np.isfinite(vector).all():
            names = ", ".join(f"{c.name} [{c.unit}]" for c in self.plant.state)
            raise InputError(f"{what} is {value!r}, expected {len(self.plant.state)} finite numbers: {names}")
        return vector


def _float32(values: Any) -> np.ndarray:
    return floats(values).astype(np.float32)


def _observation_space(plant: Plant) -> spaces.Box:
    size = len(plant.observation)
    if plant.observation_low is None or plant.observation_high is None:
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)
    return spaces.Box(_float32(plant.observation_low), _float32(plant.observation_high), dtype=np.float32)
