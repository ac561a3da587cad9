"""From a derivative to a sampled plant, exactly: each scheme turns ``derivative(state, action)`` into the next state.

The functions run on recording symbols, so that the discretised equations are one Graph over the rationals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.core.errors import InputError
from lipctrl.core.rationals import rationals

Equations = Callable[[Any, Any], Any]  #: maps state and action (symbols) to a derivative or a next state
Matrix = list[list[Fraction]]


def euler(derivative: Equations, dt: Fraction) -> Equations:
    """x+ = x + dt f(x, u): every coordinate from the old state."""
    return lambda state, action: state + dt * derivative(state, action)


def semi_implicit_euler(derivative: Equations, dt: Fraction) -> Equations:
    """v+ = v + dt a(q, v, u), then q+ = q + dt v+; the state is (q, v), positions first."""

    def update(state: Any, action: Any) -> Any:
        position, velocity = halves(state)
        velocity = velocity + dt * halves(derivative(state, action))[1]
        return np.concatenate([position + dt * velocity, velocity])

    return update


def trapezoid(derivative: Equations, dt: Fraction) -> Equations:
    """v+ = v + dt a(q, v, u), then q+ = q + dt (v + v+) / 2; the state is (q, v), positions first."""

    def update(state: Any, action: Any) -> Any:
        position, velocity = halves(state)
        faster = velocity + dt * halves(derivative(state, action))[1]
        return np.concatenate([position + dt / 2 * (velocity + faster), faster])

    return update


def rk4(derivative: Equations, dt: Fraction) -> Equations:
    """The classical Runge-Kutta method of order four, the action held."""

    def update(state: Any, action: Any) -> Any:
        first = derivative(state, action)
        second = derivative(state + dt / 2 * first, action)
        third = derivative(state + dt / 2 * second, action)
        fourth = derivative(state + dt * third, action)
        return state + dt / 6 * (first + 2 * second + 2 * third + fourth)

    return update


#: The schemes by name. ``discrete`` is none: the equations give the next state themselves.
SCHEMES: dict[str, Callable[[Equations, Fraction], Equations]] = {
    "euler": euler,
    "semi-implicit euler": semi_implicit_euler,
    "trapezoid": trapezoid,
    "rk4": rk4,
    "discrete": lambda equations, dt: equations,
}

#: Schemes for which the first half of the state is positions and the second half their velocities.
SECOND_ORDER = ("semi-implicit euler", "trapezoid")


def halves(state: Any) -> tuple[Any, Any]:
    """Positions and velocities of a state of even length."""
    half = len(state) // 2
    return state[:half], state[half:]


def zero_order_hold(state_matrix: Sequence[Sequence[Any]], input_matrix: Sequence[Sequence[Any]], dt: Any) -> tuple[np.ndarray, np.ndarray]:
    """A_d = e^{A dt} and B_d = (integral of e^{A s} over [0, dt]) B, exactly, as object arrays of Fractions.

    Exact rationals exist where A is nilpotent (chains of integrators). Raises InputError for any other A: use ``rk4``.
    """
    a = np.array([rationals(row) for row in state_matrix], dtype=object)
    b = np.array([rationals(row, what="input matrix") for row in input_matrix], dtype=object)
    (step,) = rationals(dt)
    n = len(a)
    if a.shape != (n, n) or b.ndim != 2 or len(b) != n:
        raise InputError(f"matrices have shapes {a.shape} and {b.shape}, expected (n, n) and (n, m)")
    power = np.array([[Fraction(int(i == j)) for j in range(n)] for i in range(n)], dtype=object)
    flow, integral = power * 0, power * 0
    for k in range(n):
        flow, integral = flow + power, integral + power * (step / (k + 1))
        power = (power @ a) * (step / (k + 1))
    if np.any(power != 0):
        raise InputError("the state matrix is not nilpotent, its exact zero-order hold is not rational: use the scheme 'rk4'")
    return flow, integral @ b
