"""What a policy sees and does in an environment: names, units, sampling time, action box, equilibrium.

Stored with demonstrations and compared on load, so that a policy is never trained on data of another plant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit

from lipctrl.certificates.checker.exact import Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import GraphError, rational_from_text, rational_to_text
from lipctrl.core.coordinates import Coordinate
from lipctrl.core.errors import InputError
from lipctrl.core.rationals import floats
from lipctrl.envs import make_plant
from lipctrl.envs.plant import Plant

Environment = gymnasium.Env[Any, Any]
Rationals = tuple[Fraction, ...]
Coordinates = tuple[Coordinate, ...]

#: Wrappers that leave observations, actions and rewards as they are.
_NEUTRAL = (TimeLimit, OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics)

UNSTATED = "unstated"  #: the unit of a coordinate of which the environment says nothing


@dataclass(frozen=True)
class Interface:
    """The contract between an environment and a policy.

    ``observation`` and ``action`` are (name, unit) pairs; ``dt`` in seconds, boxes in the units of the actions. Entries that the
    environment does not state are None: ``plant_digest`` and the equilibrium outside shipped plants, the box of unbounded
    actions.
    """

    environment: str
    observation: Coordinates
    action: Coordinates
    dt: Fraction | None = None
    action_low: Rationals | None = None
    action_high: Rationals | None = None
    plant_digest: str | None = None
    equilibrium_observation: Rationals | None = None
    equilibrium_action: Rationals | None = None

    @classmethod
    def of(cls, env: Environment) -> Interface:
        """Read it off a Gymnasium environment with vectors as observations and actions.

        Raises InputError for other spaces (pictures, discrete actions, ...).
        """
        observations, _ = box_of(env.observation_space, "observation")
        low, high = box_of(env.action_space, "action")
        plant = plant_of(env)
        own_name = type(env.unwrapped).__name__ if plant is None else plant.name
        name = env.spec.id if env.spec is not None else own_name
        if plant is not None:
            return cls._of_plant(name, plant)
        return cls.unnamed(name, observations.size, low, high, _sampling_time(env))

    @classmethod
    def unnamed(cls, environment: str, observations: int, low: np.ndarray, high: np.ndarray, dt: Fraction | None = None) -> Interface:
        """Numbered coordinates whose units nobody stated; ``low`` and ``high`` are the ends of the action box."""
        bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
        return cls(
            environment=environment,
            observation=tuple(Coordinate(f"observation {i}", UNSTATED) for i in range(observations)),
            action=tuple(Coordinate(f"action {i}", UNSTATED) for i in range(low.size)),
            dt=dt,
            action_low=tuple(Fraction(float(v)) for v in low) if bounded else None,
            action_high=tuple(Fraction(float(v)) for v in high) if bounded else None,
        )

    @classmethod
    def _of_plant(cls, name: str, plant: Plant) -> Interface:
        try:
            observed = evaluate_exact(plant.observe, {"state": plant.equilibrium_state})["observation"]
        except Inexact:
            observed = None
        return cls(
            environment=name,
            observation=tuple(plant.observation),
            action=tuple(plant.action),
            dt=plant.dt,
            action_low=tuple(plant.action_low),
            action_high=tuple(plant.action_high),
            plant_digest=plant.digest,
            equilibrium_observation=observed,
            equilibrium_action=tuple(plant.equilibrium_action),
        )

    def check_matches(self, other: Interface, what: str = "the demonstrations") -> None:
        """Raise InputError, naming the first entry that differs; entries that either side leaves unstated are not compared."""
        for name in ("observation", "action"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if len(mine) != len(theirs):
                raise InputError(f"{what} have {len(mine)} {name} coordinates, expected {len(theirs)} as in {other.environment}")
            for one, another in zip(mine, theirs, strict=True):
                if UNSTATED not in (one.unit, another.unit) and one != another:
                    raise InputError(f"{what} have {name} {_named(one)}, expected {_named(another)} as in {other.environment}")
        for name in ("dt", "action_low", "action_high", "plant_digest"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if None not in (mine, theirs) and not _equal(mine, theirs):
                raise InputError(
                    f"{what} have {name.replace('_', ' ')} {_shown(mine)}, expected {_shown(theirs)} as in {other.environment}"
                )

    def to_json(self) -> dict[str, Any]:
        """As JSON data; rationals become text."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, data: object) -> Interface:
        """Read what :meth:`to_json` wrote. Raises InputError for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            raise InputError(f"an interface needs exactly the entries {', '.join(sorted(names))}")
        try:
            return cls(
                environment=_text(data["environment"]),
                observation=_coordinates(data["observation"]),
                action=_coordinates(data["action"]),
                dt=None if data["dt"] is None else rational_from_text(data["dt"]),
                plant_digest=None if data["plant_digest"] is None else _text(data["plant_digest"]),
                **{name: _rationals(data[name]) for name in names if name.startswith(("action_", "equilibrium_"))},
            )
        except (GraphError, TypeError, ValueError) as error:
            raise InputError(f"an interface is damaged: {error}") from error


def plant_of(env: Environment) -> Plant | None:
    """The plant whose equations the environment steps: its own, or ``gym-pendulum`` for an unchanged Pendulum-v1.

    None for other environments, and below wrappers that may change observations, actions or rewards.
    """
    inner: Any = env
    while isinstance(inner, gymnasium.Wrapper):
        if not isinstance(inner, _NEUTRAL):
            return None
        inner = inner.env
    plant = getattr(inner, "plant", None)
    if isinstance(plant, Plant):
        return plant
    if type(inner) is PendulumEnv and (inner.g, inner.m, inner.l, inner.dt, inner.max_torque, inner.max_speed) == (10, 1, 1, 0.05, 2, 8):
        return make_plant("gym-pendulum")
    return None


def episode_steps(env: Environment, plant: Plant) -> int:
    """Steps after which the environment truncates an episode of its plant."""
    inner: Any = env
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, TimeLimit):
            return int(inner._max_episode_steps)
        inner = inner.env
    return plant.max_episode_steps


def box_of(space: object, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of a space of vectors. Raises InputError for any other space."""
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise InputError(f"the {what} space is {space}, expected a box of floating-point vectors")
    return space.low, space.high


def _sampling_time(env: Environment) -> Fraction | None:
    dt = getattr(env.unwrapped, "dt", None)
    if isinstance(dt, int | float) and math.isfinite(dt) and dt > 0:
        return Fraction(str(dt)).limit_denominator(10**9)
    return None


def _named(coordinate: Coordinate) -> str:
    return f"'{coordinate.name}' in {coordinate.unit}"


def _equal(mine: object, theirs: object) -> bool:
    """Equal; boxes up to the rounding to float32 that Gymnasium's spaces apply."""
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        return len(mine) == len(theirs) and np.allclose(floats(mine), floats(theirs), rtol=1e-6, atol=0)
    return mine == theirs


def _shown(value: object) -> str:
    return "(" + ", ".join(str(v) for v in value) + ")" if isinstance(value, tuple) else str(value)


def _to_json(value: object) -> object:
    if isinstance(value, Fraction):
        return rational_to_text(value)
    return [_to_json(v) for v in value] if isinstance(value, tuple) else value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError(f"expected a short text, got {str(value)[:60]!r}")
    return value


def _coordinates(value: object) -> Coordinates:
    if not isinstance(value, list) or not value or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError(f"expected a list of [name, unit], got {str(value)[:60]!r}")
    return tuple(Coordinate(_text(name), _text(unit)) for name, unit in value)


def _rationals(value: object) -> Rationals | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"expected a list of rationals, got {str(value)[:60]!r}")
    return tuple(rational_from_text(v) for v in value)
