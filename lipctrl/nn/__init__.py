"""Networks with a known upper bound on their Lipschitz constant."""

from lipctrl.nn.activations import ACTIVATIONS, Activation, group_sort
from lipctrl.nn.mlp import LAYERS, LipschitzMLP
from lipctrl.nn.policy import LipschitzPolicy, lipschitz_policy
from lipctrl.nn.stack import Stack

__all__ = ["ACTIVATIONS", "LAYERS", "Activation", "LipschitzMLP", "LipschitzPolicy", "Stack", "group_sort", "lipschitz_policy"]
