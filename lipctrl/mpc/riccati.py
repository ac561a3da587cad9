"""Linear-quadratic regulation at a plant's equilibrium: gain, cost to go, and the weights that the plant's own cost implies."""

from __future__ import annotations

import casadi
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, solve_discrete_are

from lipctrl.core.casadi_evaluation import evaluate_casadi
from lipctrl.core.errors import InputError
from lipctrl.envs.plant import Plant

Array = NDArray[np.float64]


def riccati(state_matrix: ArrayLike, input_matrix: ArrayLike, state_cost: ArrayLike, input_cost: ArrayLike) -> tuple[Array, Array]:
    """Gain K (m, n) and cost to go P (n, n) of the discrete-time LQR: u = -K x minimises the sum of x'Qx + u'Ru for x+ = Ax + Bu.

    Raises InputError where no stabilising solution exists (an unstable mode that the input does not reach, R not positive).
    """
    a, b, q, r = (np.atleast_2d(np.asarray(m, dtype=np.float64)) for m in (state_matrix, input_matrix, state_cost, input_cost))
    try:
        p = solve_discrete_are(a, b, q, r)
        k = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
    except (LinAlgError, np.linalg.LinAlgError, ValueError) as error:
        raise InputError(f"the linearised plant has no stabilising LQR gain ({error})") from error
    return k, (p + p.T) / 2


def quadratic_cost(plant: Plant) -> tuple[Array, Array]:
    """Q (n, n) and R (m, m): the stage cost near the equilibrium is (x-x*)'Q(x-x*) + (u-u*)'R(u-u*), from exact second derivatives."""
    n, m = len(plant.state), len(plant.action)
    state, action = casadi.SX.sym("state", n), casadi.SX.sym("action", m)
    cost = evaluate_casadi(plant.cost, {"state": state, "action": action})["cost"]
    point = [float(v) for v in (*plant.equilibrium_state, *plant.equilibrium_action)]
    hessian, _ = casadi.hessian(cost, casadi.vertcat(state, action))
    half = casadi.Function("half", [casadi.vertcat(state, action)], [hessian / 2])(point).full()
    return half[:n, :n], half[n:, n:]
