"""The energy expert for pendulums: pump energy until the pendulum is near its upright position, then LQR."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.core.errors import InputError
from lipctrl.envs.plant import Plant
from lipctrl.mpc.riccati import quadratic_cost, riccati
from lipctrl.mpc.state_recovery import StateRecovery

Array = NDArray[np.float64]

_CAPTURE_ANGLE = 0.35  #: rad, where LQR takes over
_CAPTURE_SPEED = 3.0  #: rad/s for gravity over inertia 15 1/s^2 (Pendulum-v1); it grows with the square root
_AT_REST = 1e-3  #: rad/s, below which the sign of the speed is not used


class EnergyExpert:
    """Energy pumping, then LQR to the nearest upright, for a plant with acceleration a sin(angle) - d speed + u / inertia.

    ``EnergyExpert(plant)`` identifies a, d and the inertia from the plant's own step and checks that it is such a pendulum
    (angle 0 upright); the pump also cancels the damping. Raises InputError for other plants.
    """

    def __init__(self, plant: Plant) -> None:
        self._recover = StateRecovery.of_plant(plant)
        self.gravity, self.damping, self.inertia = _identify(plant)
        self.torque = float(plant.action_high[0])
        a, b = plant.linearise()
        self.gain = riccati(a, b, *quadratic_cost(plant))[0][0]

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[np.ndarray, ...] | None]:
        """Torques (..., 1), float64, for observations (..., p); no memory."""
        recovered = self._recover(observation)
        angle, speed = (recovered[..., 0] + np.pi) % (2 * np.pi) - np.pi, recovered[..., 1]
        fall = self.inertia * self.gravity
        energy = self.inertia * speed**2 / 2 + fall * (np.cos(angle) - 1)
        strength = min(self.torque, fall)  # more would overshoot the upright energy within one step
        pump = self.damping * self.inertia * speed - np.clip(50 * strength / fall * energy, -strength, strength) * np.sign(speed)
        start = strength * np.sign(-np.sin(angle) + 1e-9)
        catch = -(self.gain[0] * angle + self.gain[1] * speed)
        near = (np.abs(angle) < _CAPTURE_ANGLE) & (np.abs(speed) < _CAPTURE_SPEED * np.sqrt(self.gravity / 15))
        torque = np.where(near, catch, np.where(np.abs(speed) < _AT_REST, start, pump))
        return np.clip(torque, -self.torque, self.torque)[..., None], state


def _identify(plant: Plant) -> tuple[float, float, float]:
    """Gravity over inertia (1/s^2), damping (1/s) and inertia (kg m^2), read off the plant's step."""
    if len(plant.state) != 2 or len(plant.action) != 1 or plant.dynamics is None or any(plant.equilibrium_state):
        raise InputError(f"the plant {plant.name} is no pendulum with torque control, expected one for the energy expert")
    dt, torque = float(plant.dt), float(plant.action_high[0]) / 2

    def acceleration(angle: float | Array, speed: float | Array, action: float | Array) -> Array:
        angle, speed, action = np.broadcast_arrays(angle, speed, action)
        following = plant.step(np.stack([angle, speed], -1), np.asarray(action, dtype=np.float64)[..., None])
        return (following[..., 1] - speed) / dt

    gravity = float(acceleration(np.pi / 2, 0.0, 0.0))
    damping = -float(acceleration(0.0, 1.0, 0.0))
    input_gain = float(acceleration(0.0, 0.0, torque)) / torque
    angle, speed, action = np.random.default_rng(0).uniform(-1, 1, (3, 16)) * np.array([[3.0], [3.0], [torque]])
    expected = gravity * np.sin(angle) - damping * speed + input_gain * action
    if gravity <= 0 or input_gain <= 0 or not np.allclose(acceleration(angle, speed, action), expected, rtol=1e-8, atol=1e-8):
        raise InputError(f"the plant {plant.name} does not accelerate like a pendulum, expected one for the energy expert")
    return gravity, damping, 1 / input_gain
