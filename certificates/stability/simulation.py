"""One float64 step of a closed loop, batched: the fast reading that searches and figures use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lipctrl.certificates.checker.bundle import PlantSubject
from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.numpy_evaluation import compile_numpy

Array = np.ndarray
StepFunction = Callable[[Array], Array]  #: deviations (N, n) -> deviations one step later (N, n)


def step_function(plant: PlantSubject, policy: Graph) -> StepFunction:
    """The loop y -> y+ in deviations from the equilibrium."""
    observe, act, move = compile_numpy(plant.observe), compile_numpy(policy), compile_numpy(plant.dynamics)
    rest = np.array([float(v) for v in plant.equilibrium_state])

    def step(deviation: Array) -> Array:
        state = rest + deviation
        action = act(observation=observe(state=state)["observation"])["action"]
        return np.asarray(move(state=state, action=action)["next_state"] - rest)

    return step
