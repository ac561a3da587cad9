"""Model predictive control of a plant through its own equations, with exact derivatives from CasADi."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import casadi
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.core.casadi_evaluation import casadi_function
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.rationals import floats
from lipctrl.envs.plant import Plant
from lipctrl.mpc.riccati import quadratic_cost, riccati
from lipctrl.mpc.state_recovery import StateRecovery

Array = NDArray[np.float64]

_LOGGER = logging.getLogger("lipctrl")
_TOLERANCE = 1e-6  #: largest violation of the plant's equations and of the action box in a plan that is accepted


class MPCError(LipctrlError):
    """The optimiser returned no plan that satisfies the plant's equations."""


@dataclass(frozen=True)
class Plan:
    """One solved problem over a horizon of N steps.

    ``states`` (N+1, n) and ``actions`` (N, m); ``cost`` with the terminal cost; ``violation`` is the largest error in the
    plant's equations and the action box, computed here from the plan; ``status`` is the optimiser's word, ``seconds`` its time.
    """

    states: Array
    actions: Array
    cost: float
    violation: float
    status: str
    seconds: float

    @property
    def usable(self) -> bool:
        """Whether the optimiser converged and the plan satisfies the equations."""
        return self.status == "Solve_Succeeded" and self.violation <= _TOLERANCE


class MPC:
    """Minimises the plant's stage cost over ``horizon`` steps plus the LQR's cost to go, and applies the first action.

    Multiple shooting with IPOPT; each plan starts from the one before, shifted by a step. The state is recovered from the
    observation (see ``StateRecovery``); angles seen as cosine and sine are unwrapped along the plan. A failed optimisation is
    tried again from scratch; if that fails too, MPCError is raised, or with ``on_failure="fallback"`` the previous plan is
    followed (the equilibrium action without one), counted in ``fallbacks`` and logged.

    Raises InputError for plants without equations, or whose state cannot be recovered from the observation.
    """

    def __init__(
        self, plant: Plant, horizon: int = 30, *, on_failure: Literal["raise", "fallback"] = "raise", max_iterations: int = 200
    ) -> None:
        if plant.dynamics is None:
            raise InputError(f"the plant {plant.name} has no equations, expected them for MPC")
        if horizon < 1:
            raise InputError(f"the horizon is {horizon}, expected at least 1 step")
        self.plant, self.horizon, self.on_failure = plant, horizon, on_failure
        self.fallbacks = 0  #: how often no plan was found and the previous one was followed, since the start
        self._recover = StateRecovery.of_plant(plant)
        self._n, self._m = len(plant.state), len(plant.action)
        self._low, self._high = floats(plant.action_low), floats(plant.action_high)
        self._rest = floats(plant.equilibrium_action)
        self._step = casadi_function(plant.dynamics, "step")
        self._gain, self._cost_to_go = riccati(*plant.linearise(), *quadratic_cost(plant))
        problem = self._problem()
        self._cold = _solver("cold", problem, max_iterations, {})
        self._warm = _solver("warm", problem, max_iterations, {"ipopt.mu_init": 1e-4, "ipopt.warm_start_init_point": "yes"})

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[np.ndarray, ...] | None]:
        """Actions (..., m), float64, for observations (..., p), solved one after another.

        The memory is (plans,): the variables of each plan (batch, N (m + n)), NaN where there is none. ``episode_start`` forgets
        the plan of an episode that begins. Raises MPCError, see the class.
        """
        observed = np.asarray(observation, dtype=np.float64)
        states = np.atleast_2d(self._recover(observed))
        if state is None or state[0].shape[0] != len(states):
            plans = np.full((len(states), self.horizon * (self._m + self._n)), np.nan)
        else:
            plans = state[0].copy()
        if episode_start is not None:
            plans[np.atleast_1d(episode_start)] = np.nan
        actions = np.empty((len(states), self._m))
        for index, x in enumerate(states):
            guess = None if np.isnan(plans[index]).any() else self._shifted(plans[index])
            plan = self.solve(x, guess)
            plans[index] = self._variables(plan) if plan.usable else self._follow(guess, plan)
            actions[index] = plans[index, : self._m]
        actions = np.clip(actions, self._low, self._high)
        return (actions if observed.ndim > 1 else actions[0]), (plans,)

    def solve(self, state: ArrayLike, guess: Array | None = None) -> Plan:
        """Optimise from one state (n,). ``guess`` (N (m + n),) holds actions and following states in turn.

        The result may be unusable (see ``Plan.usable``); nothing is raised for that.
        """
        x = np.asarray(state, dtype=np.float64)
        if guess is not None:
            plan = self._run(self._warm, x, self._unwrapped(guess, x))
            if plan.usable:
                return plan
        plans = [self._run(self._cold, x, guess) for guess in self._cold_guesses(x)]
        return min(plans, key=lambda plan: (not plan.usable, plan.cost))

    # --- the problem --------------------------------------------------------------------------------------------------

    def _problem(self) -> dict[str, Any]:
        cost = casadi_function(self.plant.cost, "cost")
        start = x = casadi.MX.sym("start", self._n)
        variables, defects, objective = [], [], casadi.MX(0)
        for k in range(self.horizon):
            u, following = casadi.MX.sym(f"u{k}", self._m), casadi.MX.sym(f"x{k + 1}", self._n)
            objective += cost(self._wrapped(x), u)
            defects.append(following - self._step(x, u))
            variables += [u, following]
            x = following
        deviation = self._wrapped(x) - casadi.DM(floats(self.plant.equilibrium_state))
        objective += casadi.dot(deviation, casadi.DM(self._cost_to_go) @ deviation)
        return {"x": casadi.vertcat(*variables), "p": start, "f": objective, "g": casadi.vertcat(*defects)}

    def _wrapped(self, x: Any) -> Any:
        """The state as the plant's cost sees it: its wrapped angles in [-pi, pi)."""
        turns = np.zeros(self._n)
        turns[list(self.plant.wrapped_angles)] = 2 * np.pi
        return x - turns * casadi.floor(x / (2 * np.pi) + 0.5)

    def _run(self, solver: Any, x: Array, guess: Array) -> Plan:
        free = np.full(self._n, np.inf)
        low, high = (np.tile(np.concatenate([end, side]), self.horizon) for end, side in ((self._low, -free), (self._high, free)))
        begin = time.perf_counter()
        solution = solver(x0=guess, p=x, lbx=low, ubx=high, lbg=0, ubg=0)
        seconds = time.perf_counter() - begin
        status = str(solver.stats()["return_status"])
        parts = np.asarray(solution["x"]).reshape(self.horizon, self._m + self._n)
        actions, states = parts[:, : self._m], np.vstack([x, parts[:, self._m :]])
        outside = np.maximum(self._low - actions, actions - self._high).max()
        expected = np.asarray(self._step.map(self.horizon)(states[:-1].T, actions.T)).T
        violation = max(float(np.abs(states[1:] - expected).max()), float(outside), 0.0)
        return Plan(states, actions, float(solution["f"]), violation if np.isfinite(violation) else np.inf, status, seconds)

    # --- guesses ------------------------------------------------------------------------------------------------------

    def _cold_guesses(self, x: Array) -> list[Array]:
        """Where to start without a plan: the straight line to the equilibrium, and what the LQR would do.

        Plants that see angles up to full turns have several valleys, so there the extreme actions are tried as well.
        """
        share = np.linspace(1.0, 0.0, self.horizon + 1)[1:, None]
        rest = floats(self.plant.equilibrium_state)
        line = np.hstack([np.tile(self._rest, (self.horizon, 1)), rest + share * (x - rest)]).ravel()
        guesses = [line, self._simulated(x, lambda s: self._rest - self._gain @ (s - rest))]
        if self.plant.wrapped_angles:
            guesses += [self._simulated(x, lambda s: self._low), self._simulated(x, lambda s: self._high)]
        return guesses

    def _simulated(self, x: Array, law: Callable[[Array], Array]) -> Array:
        """Actions of a control law, kept just inside the box, and the states that follow."""
        margin = 0.01 * (self._high - self._low)
        parts = []
        for _ in range(self.horizon):
            action = np.clip(law(x), self._low + margin, self._high - margin)
            x = self.plant.step(x, action)
            parts += [action, x]
        return np.concatenate(parts)

    def _shifted(self, variables: Array) -> Array:
        """One step later: the last action and state are repeated."""
        return np.concatenate([variables[self._m + self._n :], variables[-(self._m + self._n) :]])

    def _unwrapped(self, guess: Array, x: Array) -> Array:
        """The guess with its angles moved by full turns, so that it follows on from ``x``."""
        parts = guess.reshape(self.horizon, self._m + self._n).copy()
        turns = 2 * np.pi * np.round((x - parts[0, self._m :]) / (2 * np.pi))
        parts[:, self._m :] += np.where(self._recover.wrapped, turns, 0.0)
        return parts.ravel()

    def _variables(self, plan: Plan) -> Array:
        return np.hstack([plan.actions, plan.states[1:]]).ravel()

    def _follow(self, guess: Array | None, plan: Plan) -> Array:
        """What to do after a failure: raise, or go on along the previous plan."""
        what = f"MPC of {self.plant.name} found no plan from the state {plan.states[0].tolist()} ({plan.status})"
        if self.on_failure == "raise":
            raise MPCError(what)
        self.fallbacks += 1
        _LOGGER.warning("%s and follows its previous one", what)
        if guess is not None:
            return guess
        rest = np.concatenate([self._rest, floats(self.plant.equilibrium_state)])
        return np.tile(rest, self.horizon)


def _solver(name: str, problem: Mapping[str, Any], max_iterations: int, extra: Mapping[str, Any]) -> Any:
    options = {
        "expand": True,
        "print_time": False,
        "ipopt.print_level": 0,
        "ipopt.sb": "yes",
        "ipopt.max_iter": max_iterations,
        "ipopt.bound_relax_factor": 0.0,
        **extra,
    }
    return casadi.nlpsol(name, "ipopt", dict(problem), options)
