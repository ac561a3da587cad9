"""The smallest Lipschitz constant with which a static policy could stabilise an equilibrium.

For x+ = A x + B u, observed through y = C x near the equilibrium, with det(I - A) < 0 (an odd number of real eigenvalues
above 1): with a policy u = pi(y) whose Lipschitz constant is below 1 / ||C (I - A)^-1 B|| the equilibrium keeps the fixed-point
index -1 that it has without control, while an asymptotically stable fixed point has index +1. So no such policy stabilises
*that* equilibrium, differentiable or not; nothing is said about others, about policies with memory, or about a learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from flint import arb, arb_mat
from numpy.typing import NDArray

from lipctrl.certificates.checker.enclosure import EnclosureAlgebra, seeds
from lipctrl.certificates.checker.graph import evaluate
from lipctrl.certificates.checker.intervals import Interval, from_fractions
from lipctrl.core.errors import InputError
from lipctrl.envs.plant import Plant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StabilisationFloor:
    """``lipschitz``: every static policy that stabilises the equilibrium has at least this constant (action units per
    observation unit); ``None`` where the argument does not apply, and ``reason`` says why."""

    lipschitz: float | None
    reason: str


def stabilisation_floor(
    state_matrix: object, input_matrix: object, output_matrix: object = None, *, uncertainty: float | None = None
) -> StabilisationFloor:
    """The floor from matrices A (n, n), B (n, m) and C (p, n), by default the identity.

    Entries may be Fractions (exact) or floats, taken as known up to ``uncertainty`` (absolute; default 1e-9 max(1, |entry|)):
    that det(I - A) < 0 must hold for all matrices in that range, so an integrator gives "not applicable" and never a number.
    Raises InputError for shapes that do not fit together and entries that are not finite.
    """
    a, b = _balls(state_matrix, uncertainty), _balls(input_matrix, uncertainty)
    n = a.nrows()
    if a.ncols() != n or b.nrows() != n:
        raise InputError(f"A is {n}x{a.ncols()} and B is {b.nrows()}x{b.ncols()}, expected n x n and n x m")
    identity = arb_mat(n, n, [arb(int(i == j)) for i in range(n) for j in range(n)])
    return _floor(a, b, identity if output_matrix is None else _balls(output_matrix, uncertainty))


def plant_stabilisation_floor(plant: Plant) -> StabilisationFloor:
    """The floor for a plant at its equilibrium: A, B and C are enclosed rigorously from the plant's equations.

    Units: action units per observation unit (l2). "Not applicable" for a plant without equations.
    """
    if plant.dynamics is None:
        return StabilisationFloor(None, f"not applicable: the plant {plant.name} has no equations")
    point = (*plant.equilibrium_state, *plant.equilibrium_action)
    n = len(plant.equilibrium_state)
    centre = from_fractions(point)
    state = Interval(centre.low[None, :n], centre.high[None, :n])
    action = Interval(centre.low[None, n:], centre.high[None, n:])
    algebra = EnclosureAlgebra(np.zeros((len(point), 1, 1)))
    inputs = {"state": seeds(state, state, 0, len(point)), "action": seeds(action, action, n, len(point))}
    jacobian = evaluate(plant.dynamics, inputs, algebra)["next_state"].slope
    observed = evaluate(plant.observe, {"state": inputs["state"]}, algebra)["observation"].slope
    if jacobian is None or observed is None:
        return StabilisationFloor(None, "not applicable: the next state or the observation does not depend on the state")
    matrices = _interval_matrix(jacobian), _interval_matrix(observed)
    a = arb_mat([row[:n] for row in matrices[0]])
    b = arb_mat([row[n:] for row in matrices[0]])
    return _floor(a, b, arb_mat([row[:n] for row in matrices[1]]))


def _floor(a: arb_mat, b: arb_mat, c: arb_mat) -> StabilisationFloor:
    n = a.nrows()
    identity = arb_mat(n, n, [arb(int(i == j)) for i in range(n) for j in range(n)])
    residual = identity - a
    if not residual.det() < 0:
        return StabilisationFloor(None, "not applicable: det(I - A) < 0 is not proved, so the index argument says nothing")
    try:
        response = c * residual.solve(b)
    except ZeroDivisionError:
        return StabilisationFloor(None, "not applicable: I - A is too close to singular to invert")
    # The Frobenius norm bounds the l2 norm from above, and equals it for one input.
    square: arb = sum((entry * entry for entry in response.entries()), arb(0))
    floor = _below(1 / square.sqrt())
    if floor <= 0:
        return StabilisationFloor(None, "not applicable: the response of the equilibrium to a constant action is not bounded")
    return StabilisationFloor(floor, "det(I - A) < 0: an odd number of real eigenvalues above 1")


def _below(value: arb) -> float:
    """A double that is not above the ball (0 where the ball has no finite positive lower end)."""
    lower = value.lower()
    if not (lower.is_finite() and lower > 0):
        return 0.0
    nearest = float(lower)
    return nearest if arb(nearest) <= lower else float(np.nextafter(nearest, 0.0))


def _balls(matrix: object, uncertainty: float | None) -> arb_mat:
    """A matrix of balls around exact or floating-point entries."""
    rows: Sequence[Sequence[object]] = matrix.tolist() if isinstance(matrix, np.ndarray) else matrix  # type: ignore[assignment]
    return arb_mat([[_ball(entry, uncertainty) for entry in row] for row in rows])


def _ball(entry: object, uncertainty: float | None) -> arb:
    if isinstance(entry, Fraction | int):
        return arb(entry.numerator) / arb(entry.denominator)
    value = float(entry)  # type: ignore[arg-type]
    if not np.isfinite(value):
        raise InputError(f"a system matrix holds {value}, expected finite numbers")
    return arb(value, 1e-9 * max(1.0, abs(value)) if uncertainty is None else uncertainty)


def _interval_matrix(slope: Interval) -> list[list[arb]]:
    """Slopes (k, 1, rows) as a rows x k matrix of balls."""
    low, high = slope.low[:, 0, :].T, slope.high[:, 0, :].T
    return [[arb(lo).union(arb(hi)) for lo, hi in zip(*ends, strict=True)] for ends in zip(low, high, strict=True)]
