"""Controllers that optimise through a model."""

from lipctrl.mpc.controller import MPC, MPCError, Plan
from lipctrl.mpc.riccati import quadratic_cost, riccati
from lipctrl.mpc.state_recovery import StateRecovery

__all__ = ["MPC", "MPCError", "Plan", "StateRecovery", "quadratic_cost", "riccati"]
