"""The closed loop: plant, policy and observation map put together by the checker, in any algebra."""

from __future__ import annotations

from typing import Any

from lipctrl.certificates.checker.bundle import PlantSubject
from lipctrl.certificates.checker.graph import Graph, evaluate
from lipctrl.certificates.checker.verdict import Rejected


def closed_loop_evaluate(plant: PlantSubject, policy: Graph, state: Any, algebra: Any) -> Any:
    """The next state F(x) = dynamics(x, policy(observe(x))) for a value ``state`` of the algebra.

    Raises Rejected where the policy does not map the plant's observation to its action.
    """
    if (policy.input_sizes, policy.output_sizes) != ({"observation": len(plant.observation)}, {"action": len(plant.action)}):
        raise Rejected(f"policy maps {policy.input_sizes} to {policy.output_sizes}, which does not fit the plant")
    observation = evaluate(plant.observe, {"state": state}, algebra)["observation"]
    action = evaluate(policy, {"observation": observation}, algebra)["action"]
    return evaluate(plant.dynamics, {"state": state, "action": action}, algebra)["next_state"]
