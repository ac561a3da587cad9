"""Networks with a known upper bound on their Lipschitz constant."""

from lipctrl.nn.activations import ACTIVATIONS, Activation, group_sort, leaky_relu
from lipctrl.nn.blocks import block_gains
from lipctrl.nn.calculus import lipschitz_constant
from lipctrl.nn.convex import InputConvexMLP, MonotoneMLP
from lipctrl.nn.equilibrium import EquilibriumLayer
from lipctrl.nn.householder import householder
from lipctrl.nn.linear_plus import LinearPlusMLP
from lipctrl.nn.mlp import LAYERS, LipschitzMLP
from lipctrl.nn.network import LipschitzNetwork
from lipctrl.nn.policy import LipschitzPolicy, lipschitz_policy
from lipctrl.nn.residual import ResidualMLP
from lipctrl.nn.stack import Stack

__all__ = [
    "ACTIVATIONS",
    "LAYERS",
    "Activation",
    "EquilibriumLayer",
    "InputConvexMLP",
    "LinearPlusMLP",
    "LipschitzMLP",
    "LipschitzNetwork",
    "LipschitzPolicy",
    "MonotoneMLP",
    "ResidualMLP",
    "Stack",
    "block_gains",
    "group_sort",
    "householder",
    "leaky_relu",
    "lipschitz_constant",
    "lipschitz_policy",
]
