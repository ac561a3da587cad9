"""Plants: equations written once, recorded as Graphs, with names, units, boxes, equilibrium, cost, reset and termination."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from lipctrl.certificates.checker.bundle import parse_plant
from lipctrl.certificates.checker.exact import Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import Graph, canonical_json, graph_to_json, rational_to_text
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.core.coordinates import Coordinate, coordinates
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats, rational, rationals
from lipctrl.core.recording import RecordingWarning, record
from lipctrl.envs.building import Range, about, clipped, quadratic, ranges, sampled
from lipctrl.envs.discretisation import Equations

Rationals = tuple[Fraction, ...]

EPISODE_SECONDS = 10  #: where a plant does not say otherwise


@dataclass(frozen=True, eq=False)
class Plant:
    """A sampled plant. States have n, actions m, observations p coordinates; numbers are exact rationals, in the units named.

    ``dynamics`` maps ``state``, ``action`` to ``next_state`` and contains the actuator's clip; it is ``None`` for a plant
    that exists only in a simulator. ``observe`` maps ``state`` to ``observation``, ``cost`` maps ``state``, ``action`` to
    ``cost`` (size 1). The state box is where certificates are sought. ``wrapped_angles`` are state coordinates that are
    brought to [-pi, pi) before the cost is computed. A state outside the termination box ends an episode.
    ``scalar_cost`` replaces the cost graph in environments where the rounding of single operations matters.
    ``experts`` are names of suitable experts, the default first. ``observation_low``, ``observation_high`` bound the observations.

    Build one with :meth:`from_equations`, vary it with ``dataclasses.replace``. Raises InputError where the parts do not fit;
    warns (RecordingWarning) where the equilibrium is not exact, because then only practical stability can be proved.
    """

    name: str
    state: tuple[Coordinate, ...]
    action: tuple[Coordinate, ...]
    observation: tuple[Coordinate, ...]
    dt: Fraction
    scheme: str
    state_low: Rationals
    state_high: Rationals
    action_low: Rationals
    action_high: Rationals
    equilibrium_state: Rationals
    equilibrium_action: Rationals
    dynamics: Graph | None
    observe: Graph
    cost: Graph
    reset_low: Rationals
    reset_high: Rationals
    termination_low: Rationals | None = None
    termination_high: Rationals | None = None
    max_episode_steps: int = 200
    wrapped_angles: tuple[int, ...] = ()
    observation_low: Rationals | None = None
    observation_high: Rationals | None = None
    experts: tuple[str, ...] = ("lqr",)
    scalar_cost: Callable[[np.ndarray, np.ndarray], float] | None = None

    def __post_init__(self) -> None:
        n, m = len(self.state), len(self.action)
        for group, length in (("reset", n), ("termination", n), ("observation", len(self.observation))):
            self._check_range(group, length)
        if (self.cost.input_sizes, self.cost.output_sizes) != ({"state": n, "action": m}, {"cost": 1}):
            raise InputError(f"plant {self.name!r}: the cost maps {self.cost.input_sizes} to {self.cost.output_sizes}, expected one number")
        if self.max_episode_steps < 1 or not all(0 <= index < n for index in self.wrapped_angles):
            raise InputError(f"plant {self.name!r}: max_episode_steps or wrapped_angles do not fit a state of {n} coordinates")
        if self.dynamics is not None:
            try:
                parse_plant(self.subject())
            except Rejected as error:
                raise InputError(f"plant {self.name!r}: {error}") from error
            self._warn_unless_equilibrium(self.dynamics)

    def _check_range(self, group: str, length: int) -> None:
        low, high = getattr(self, f"{group}_low"), getattr(self, f"{group}_high")
        if low is None and high is None and group != "reset":
            return
        if low is None or high is None or {len(low), len(high)} != {length} or not all(a <= b for a, b in zip(low, high, strict=True)):
            ends = " to ".join(str([float(v) for v in end or ()]) for end in (low, high))
            raise InputError(f"plant {self.name!r}: {group} range {ends}, expected low <= high for {length} coordinates")

    def _warn_unless_equilibrium(self, dynamics: Graph) -> None:
        rest = {"state": self.equilibrium_state, "action": self.equilibrium_action}
        try:
            exact = evaluate_exact(dynamics, rest)["next_state"] == self.equilibrium_state
        except Inexact:
            exact = False
        if not exact:
            after = compile_numpy(dynamics)(**{k: floats(v) for k, v in rest.items()})["next_state"]
            off = float(np.abs(after - floats(self.equilibrium_state)).max())
            warnings.warn(
                RecordingWarning(
                    f"plant {self.name!r}: one step from the equilibrium moves by {off:.3g}, expected exactly 0; "
                    "write constants as Fraction(3, 20) or '0.15', otherwise only practical stability can be proved"
                ),
                stacklevel=4,
            )

    @classmethod
    def from_equations(
        cls,
        name: str,
        equations: Equations,
        *,
        state: Mapping[str, Range],
        action: Mapping[str, Range],
        dt: Any,
        scheme: str = "euler",
        equilibrium: tuple[Sequence[Any], Sequence[Any]] | None = None,
        observe: tuple[Callable[[Any], Any], Mapping[str, str]] | None = None,
        cost: tuple[Sequence[Any], Sequence[Any]] | Equations | None = None,
        reset: Sequence[Any] | None = None,
    ) -> Plant:
        """A plant from ``equations(state, action)``, recorded once: the derivative, or the next state for scheme ``discrete``.

        ``state`` and ``action`` give each coordinate its unit and box, ``{"angle": ("rad", 12)}`` for [-12, 12] or
        ``{"thrust": ("N", 0, 6)}``; actions are clipped to theirs. ``dt`` in seconds. ``scheme`` is one of ``euler``,
        ``semi-implicit euler``, ``trapezoid`` (both: positions first, then their velocities), ``rk4``, ``discrete``.
        ``equilibrium`` is (state, action), default zero. ``observe`` is (function of the state, {name: unit}), default the
        state. ``cost`` is the diagonals of Q and R for (x-x*)'Q(x-x*) + (u-u*)'R(u-u*), or a function; by default a coordinate
        at the edge of its box costs 1. ``reset`` is a half-width about the equilibrium or a pair (low, high) per state
        coordinate, default half the box. Numbers as in :func:`lipctrl.core.rationals.rational`.

        Raises InputError where something does not fit, RecordingError where the equations cannot be recorded.
        """
        x_names, x_low, x_high = ranges(state, "state")
        u_names, u_low, u_high = ranges(action, "action")
        n, m = len(x_names), len(u_names)
        rest = equilibrium or ((0,) * n, (0,) * m)
        x_rest, u_rest = rationals(rest[0], n, "equilibrium state"), rationals(rest[1], m, "equilibrium action")
        step = rational(dt, "dt")
        if step <= 0:
            raise InputError(f"plant {name!r}: dt is {step}, expected a positive number of seconds")
        sizes = {"state": n, "action": m}
        widths = [(high - low) / 2 for low, high in zip((*x_low, *u_low), (*x_high, *u_high), strict=True)]
        if cost is None:
            cost = [1 / w**2 for w in widths[:n]], [1 / w**2 for w in widths[n:]]
        if not callable(cost):
            cost = quadratic(rationals(cost[0], n, "Q"), rationals(cost[1], m, "R"), x_rest, u_rest)
        reset_low, reset_high = about(x_rest, [w / 2 for w in widths[:n]] if reset is None else reset)
        function, seen = observe or (lambda x: x, {c.name: c.unit for c in x_names})
        dynamics = record(clipped(sampled(equations, scheme, step, sizes), u_low, u_high), sizes, "next_state", exact=True)
        return cls(
            name=name,
            state=x_names,
            action=u_names,
            observation=coordinates(seen, "observation"),
            dt=step,
            scheme=scheme,
            state_low=x_low,
            state_high=x_high,
            action_low=u_low,
            action_high=u_high,
            equilibrium_state=x_rest,
            equilibrium_action=u_rest,
            dynamics=dynamics,
            observe=record(function, {"state": n}, "observation", exact=True),
            cost=record(cost, sizes, "cost", exact=True),
            reset_low=reset_low,
            reset_high=reset_high,
            max_episode_steps=math.ceil(EPISODE_SECONDS / step),
        )

    def subject(self) -> dict[str, Any]:
        """The plant as certificates carry it (JSON data). Raises InputError where it has no equations."""
        if self.dynamics is None:
            raise InputError(f"plant {self.name!r} has no equations, so nothing can be proved about it")
        return {
            "state": [list(c) for c in self.state],
            "action": [list(c) for c in self.action],
            "observation": [list(c) for c in self.observation],
            "dt": rational_to_text(self.dt),
            "scheme": self.scheme,
            "state_box": [_texts(self.state_low), _texts(self.state_high)],
            "action_box": [_texts(self.action_low), _texts(self.action_high)],
            "equilibrium": {"state": _texts(self.equilibrium_state), "action": _texts(self.equilibrium_action)},
            "dynamics": graph_to_json(self.dynamics),
            "observe": graph_to_json(self.observe),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of :meth:`subject`."""
        return hashlib.sha256(canonical_json(self.subject()).encode()).hexdigest()

    @cached_property
    def compiled(self) -> dict[str, Callable[..., np.ndarray]]:
        """The graphs in float64: ``dynamics(state=, action=)``, ``observe(state=)``, ``cost(state=, action=)``, each one array."""
        graphs = {"dynamics": (self.dynamics, "next_state"), "observe": (self.observe, "observation"), "cost": (self.cost, "cost")}
        return {name: _single(compile_numpy(graph), output) for name, (graph, output) in graphs.items() if graph is not None}

    def step(self, state: Any, action: Any) -> np.ndarray:
        """Next state (..., n), float64, of states (..., n) under actions (..., m), which the plant clips to their box.

        Raises InputError where the plant has no equations.
        """
        if self.dynamics is None:
            raise InputError(f"plant {self.name!r} has no equations to step")
        return self.compiled["dynamics"](state=state, action=action)

    def observation_of(self, state: Any) -> np.ndarray:
        """Observation (..., p), float64, of states (..., n)."""
        return self.compiled["observe"](state=state)

    def stage_cost(self, state: Any, action: Any) -> np.ndarray:
        """Cost (...) of states (..., n) and actions (..., m), after clipping the actions and wrapping the angles."""
        state = np.asarray(state, np.float64)
        if self.wrapped_angles:
            state = state.copy()
            angles = list(self.wrapped_angles)
            state[..., angles] = wrapped(state[..., angles])
        cost: np.ndarray = self.compiled["cost"](state=state, action=self.clip_action(action))[..., 0]
        return cost

    def clip_action(self, action: Any) -> np.ndarray:
        """Actions (..., m) clipped to the action box, float64."""
        low, high = self._action_box
        clipped_action: np.ndarray = np.minimum(np.maximum(np.asarray(action, np.float64), low), high)
        return clipped_action

    @cached_property
    def _action_box(self) -> tuple[np.ndarray, np.ndarray]:
        return floats(self.action_low), floats(self.action_high)

    @cached_property
    def _termination_box(self) -> tuple[np.ndarray, np.ndarray]:
        if self.termination_low is None or self.termination_high is None:
            return np.full(len(self.state), -np.inf), np.full(len(self.state), np.inf)
        return floats(self.termination_low), floats(self.termination_high)

    def terminated(self, state: np.ndarray) -> Any:
        """Whether states (..., n) lie outside the termination box, or are not finite; shape (...)."""
        low, high = self._termination_box
        return ~((state >= low) & (state <= high) & np.isfinite(state)).all(axis=-1)

    def initial_states(self, generator: np.random.Generator, count: int | None = None) -> np.ndarray:
        """States drawn uniformly from the reset box, (n,) or (count, n)."""
        size = None if count is None else (count, len(self.state))
        return generator.uniform(floats(self.reset_low), floats(self.reset_high), size)

    def linearise(self) -> tuple[np.ndarray, np.ndarray]:
        """Jacobians A (n, n) and B (n, m) of the dynamics at the equilibrium, by exact differentiation in float64.

        Raises InputError where the plant has no equations.
        """
        if self.dynamics is None:
            raise InputError(f"plant {self.name!r} has no equations to linearise")
        from lipctrl.core.casadi_evaluation import casadi_function

        jacobian = casadi_function(self.dynamics).jacobian()
        rest = floats(self.equilibrium_state), floats(self.equilibrium_action)
        blocks = jacobian(*rest, np.zeros(len(self.state)))
        return np.array(blocks[0]), np.array(blocks[1])

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # compiled closures do not travel

    def __repr__(self) -> str:
        return f"Plant({self.name!r}, {len(self.state)} states, {len(self.action)} actions, dt {self.dt} s, {self.scheme})"


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Angles brought to [-pi, pi), with the rounding of Gymnasium's Pendulum-v1."""
    result: np.ndarray = ((angle + np.pi) % (2 * np.pi)) - np.pi
    return result


def _single(function: Callable[..., dict[str, np.ndarray]], output: str) -> Callable[..., np.ndarray]:
    return lambda **inputs: function(**inputs)[output]


def _texts(values: Rationals) -> list[str]:
    return [rational_to_text(value) for value in values]
