"""The shipped plants, exactly: equations, constants, boxes, reset and cost of each. The angle 0 is upright.

Stage costs are (x-x*)' diag(Q) (x-x*) + (u-u*)' diag(R) (u-u*) with the Q and R written here; ``gym-pendulum`` has the
reward of Gymnasium's Pendulum-v1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.core.rationals import Number
from lipctrl.envs.discretisation import zero_order_hold
from lipctrl.envs.plant import Plant

F = Fraction
PI = Fraction(math.pi)  #: the double nearest to pi, exactly; reset laws need no more


def double_integrator(dt: Number = "1/10") -> Plant:
    """A point mass on a line, driven by its acceleration; sampled exactly (zero-order hold)."""
    a, b = zero_order_hold([[0, 1], [0, 0]], [[0], [1]], dt)
    plant = Plant.from_equations(
        "double-integrator",
        lambda state, action: a @ state + b @ action,
        state={"position": ("m", 5), "velocity": ("m/s", 5)},
        action={"acceleration": ("m/s^2", 1)},
        dt=dt,
        scheme="discrete",
        cost=([1, 1], [1]),
        reset=[1, 1],
    )
    return replace(plant, scheme="zero-order hold", termination_low=plant.state_low, termination_high=plant.state_high)


def pendulum(name: str = "pendulum", torque: Number = 6, velocity_cost: Number = 3) -> Plant:
    """A damped pendulum whose torque can hold it anywhere; the angle is not wrapped."""
    m, length, b, g = F(3, 20), F(1, 2), F(1, 10), F(981, 100)

    def derivative(state: Any, action: Any) -> Any:
        theta, omega = state
        return np.stack([omega, g / length * np.sin(theta) - b / (m * length**2) * omega + action[0] / (m * length**2)])

    plant = Plant.from_equations(
        name,
        derivative,
        state={"angle": ("rad", 12), "angular velocity": ("rad/s", 12)},
        action={"torque": ("N m", torque)},
        dt=F(1, 20),
        cost=([1, velocity_cost], [1]),
        reset=[PI, 4],
    )
    return replace(plant, experts=("lqr", "mpc"))


def pendulum_small() -> Plant:
    """The pendulum with a torque just above its weight's: it must swing up; the cost sees the wrapped angle."""
    plant = pendulum("pendulum-small", F(3, 4), F(1, 10))
    return replace(plant, reset_low=(-PI, F(-1)), reset_high=(PI, F(1)), wrapped_angles=(0,), experts=("energy", "mpc"))


def gym_pendulum() -> Plant:
    """Gymnasium's Pendulum-v1, bit for bit under float64 actions."""
    m, length, g, dt, top_speed = F(1), F(1), F(10), F(1, 20), 8

    def update(state: Any, action: Any) -> Any:
        theta, omega = state
        faster = np.clip(omega + (3 * g / (2 * length) * np.sin(theta) + 3 / (m * length**2) * action[0]) * dt, -top_speed, top_speed)
        return np.stack([theta + faster * dt, faster])

    def observe(state: Any) -> Any:
        return np.stack([np.cos(state[0]), np.sin(state[0]), state[1]])

    plant = Plant.from_equations(
        "gym-pendulum",
        update,
        state={"angle": ("rad", F(16, 5)), "angular velocity": ("rad/s", top_speed)},
        action={"torque": ("N m", 2)},
        dt=dt,
        scheme="discrete",
        observe=(observe, {"cos angle": "1", "sin angle": "1", "angular velocity": "rad/s"}),
        cost=([1, F(1, 10)], [F(1, 1000)]),
        reset=[PI, 1],
    )
    ends = (F(1), F(1), F(top_speed))
    return replace(
        plant,
        scheme="semi-implicit euler",
        wrapped_angles=(0,),
        observation_low=tuple(-v for v in ends),
        observation_high=ends,
        experts=("energy", "mpc"),
        scalar_cost=pendulum_v1_cost,
    )


def pendulum_v1_cost(state: np.ndarray, action: np.ndarray) -> float:
    """Pendulum-v1's cost with its rounding: there ``x**2`` on numbers is the C library's pow, which may differ from x * x."""
    theta, omega = state.tolist()
    (torque,) = action.tolist()
    angle: float = ((theta + math.pi) % (2 * math.pi)) - math.pi
    cost: float = angle**2 + 0.1 * omega**2 + 0.001 * (torque**2)
    return cost


def cartpole() -> Plant:
    """A pole on a cart that is pushed by a force."""
    cart, pole, length, g = F(1), F(1, 10), F(1), F(98, 10)

    def derivative(state: Any, action: Any) -> Any:
        _, theta, speed, omega = state
        (force,) = action
        sin, cos = np.sin(theta), np.cos(theta)
        mass = cart + pole * sin**2
        acceleration = (force + pole * sin * (length * omega**2 - g * cos)) / mass
        rotation = (-force * cos - pole * length * omega**2 * cos * sin + (cart + pole) * g * sin) / (length * mass)
        return np.stack([speed, omega, acceleration, rotation])

    plant = Plant.from_equations(
        "cartpole",
        derivative,
        state={"position": ("m", 1), "angle": ("rad", 1), "velocity": ("m/s", 1), "angular velocity": ("rad/s", 1)},
        action={"force": ("N", 30)},
        dt=F(1, 20),
        cost=([1, 1, F(1, 10), F(1, 10)], [F(1, 100)]),
        reset=[F(1, 4)] * 4,
    )
    return replace(plant, termination_low=(F(-2),) * 4, termination_high=(F(2),) * 4, experts=("lqr", "mpc"))


def quadrotor2d() -> Plant:
    """A planar quadrotor hovering with two propellers."""
    m, length, inertia, g = F(486, 1000), F(1, 4), F(383, 100_000), F(981, 100)

    def derivative(state: Any, action: Any) -> Any:
        _, _, theta, *velocities = state
        right, left = action
        thrust = right + left
        acceleration = [-np.sin(theta) * thrust / m, np.cos(theta) * thrust / m - g, length * (right - left) / inertia]
        return np.stack([*velocities, *acceleration])

    half_weight, most = m * g / 2, F(5, 4) * m * g
    bounds = {"x": ("m", "0.75"), "y": ("m", "0.75"), "angle": ("rad", "1.57")}
    rates = {"x velocity": ("m/s", 4), "y velocity": ("m/s", 4), "angular velocity": ("rad/s", 3)}
    plant = Plant.from_equations(
        "quadrotor2d",
        derivative,
        state={**bounds, **rates},
        action={"right thrust": ("N", 0, most), "left thrust": ("N", 0, most)},
        dt=F(1, 100),
        scheme="trapezoid",
        equilibrium=([0] * 6, [half_weight] * 2),
        cost=([1, 1, 1, F(1, 10), F(1, 10), F(1, 10)], [F(1, 10)] * 2),
    )
    quarter = tuple(v / 4 for v in plant.state_high)
    return replace(
        plant,
        reset_low=tuple(-v for v in quarter),
        reset_high=quarter,
        termination_low=plant.state_low,
        termination_high=plant.state_high,
        experts=("lqr", "mpc"),
    )


def path_tracking(name: str = "path-tracking", steering: Number = "0.84", physical: bool = False) -> Plant:
    """A car following a circle: distance and heading error, steered by the tangent of its steering angle.

    ``physical`` uses the consistent curvature term v kappa cos / (1 - kappa d) in place of the published one.
    """
    v, length, radius = F(2), F(1), F(10)

    def derivative(state: Any, action: Any) -> Any:
        d, theta = state
        sin, cos = np.sin(theta), np.cos(theta)
        turn = v / radius * cos / (1 - d / radius) if physical else cos / (radius / v - sin)
        return np.stack([v * sin, v * action[0] / length - turn])

    plant = Plant.from_equations(
        name,
        derivative,
        state={"distance": ("m", 3), "heading": ("rad", 3)},
        action={"steering": ("1", steering)},
        dt=F(1, 20),
        equilibrium=([0, 0], [length / radius]),
        cost=([1, 1], [10]),
        reset=[F(3, 2), F(3, 2)],
    )
    return replace(plant, experts=("lqr", "mpc"))


def path_tracking_small() -> Plant:
    """Path tracking with less steering."""
    return path_tracking("path-tracking-small", F(1, 2))


def path_tracking_physical() -> Plant:
    """Path tracking with the dimensionally consistent equation."""
    return path_tracking("path-tracking-physical", physical=True)


def van_der_pol() -> Plant:
    """The van der Pol oscillator, mu = 1: its origin is unstable without control."""
    mu = F(1)
    return Plant.from_equations(
        "van-der-pol",
        lambda state, action: np.stack([state[1], mu * (1 - state[0] ** 2) * state[1] - state[0] + action[0]]),
        state={"x1": ("1", "2.5"), "x2": ("1", "3.5")},
        action={"input": ("1", 1)},
        dt=F(1, 20),
        scheme="rk4",
        cost=([1, 1], [1]),
        reset=[1, 1],
    )


def van_der_pol_reversed(dt: Number = "1/20") -> Plant:
    """The van der Pol oscillator in reversed time, mu = 1: the limit cycle bounds the region of attraction of the origin."""
    mu = F(1)
    return Plant.from_equations(
        "van-der-pol-reversed",
        lambda state, action: np.stack([-state[1], state[0] + mu * (state[0] ** 2 - 1) * state[1] + action[0]]),
        state={"x1": ("1", 3), "x2": ("1", 3)},
        action={"input": ("1", 1)},
        dt=dt,
        cost=([1, 1], [1]),
        reset=[1, 1],
    )
