"""What behaviour cloning and DAgger share: options, the policy that is trained, the result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from lipctrl.agents.interface import Interface
from lipctrl.agents.limits import DataLimits
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy
from lipctrl.core.rationals import rationals
from lipctrl.nn import LipschitzPolicy, lipschitz_policy

Layer = Literal["sandwich", "cayley", "ldlt", "bjorck", "contraction", "aol", "sll", "cpl", "linear-plus"]
ActivationName = Literal["relu", "tanh", "maxmin", "softplus", "sigmoid", "leaky_relu", "abs", "scaled_gelu", "scaled_silu"]


@dataclass(frozen=True)
class TrainingOptions:
    """How a policy is built and fitted. Losses are in units of half the action box."""

    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers."""
    layer: Layer = "sandwich"
    """Family of the layers, or a residual network (sll, cpl) or a linear map beside a network: see ``lipctrl.nn.lipschitz_policy``."""
    activation: ActivationName = "relu"
    """Activation, see ``lipctrl.nn.ACTIVATIONS``; sandwich, ldlt, sll, cpl and linear-plus need slopes in [0, 1]."""
    steps: int = 3000
    """Gradient steps (in DAgger: per round)."""
    batch_size: int = 256
    """Samples per gradient step."""
    learning_rate: float = 2e-3
    """Adam's first learning rate; it falls along a cosine."""
    final_learning_rate: float = 4e-5
    """Adam's last learning rate."""
    huber: float = 0.25
    """Errors above this count linearly, below it quadratically."""
    validation_fraction: float = 0.1
    """Share of the episodes that is held out (whole episodes); 0 holds none out and never stops early."""
    patience: int = 10
    """Stop after this many evaluations without a better held-out loss and keep the best; 0 runs all steps and keeps the last."""
    evaluate_every: int = 100
    """Steps between evaluations; each one is a checkpoint."""
    recentre: bool = True
    """Make the action at the plant's equilibrium exact, where the plant states one."""
    observation_weights: tuple[str, ...] = ()
    """Weights of the observation coordinates in the network's own metric, decimals or fractions; empty means all 1."""

    def __post_init__(self) -> None:
        ranges = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "evaluate_every": self.evaluate_every >= 1,
            "patience": self.patience >= 0,
            "huber": self.huber > 0,
            "learning_rate": self.learning_rate > 0,
            "final_learning_rate": 0 <= self.final_learning_rate <= self.learning_rate,
            "validation_fraction": 0 <= self.validation_fraction < 1,
            "hidden": all(width >= 1 for width in self.hidden),
        }
        for name, fine in ranges.items():
            if not fine:
                raise InputError(f"the training option {name} is {getattr(self, name)}, which is out of its range")
        # Refuses pairs that do not fit together.
        lipschitz_policy(1, [-1], [1], 1.0, hidden=self.hidden, layer=self.layer, activation=self.activation)

    def table(self) -> dict[str, Any]:
        """As a table for a run's configuration."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class TrainingResult:
    """A trained policy and how it came about.

    ``history`` holds the journal's records, ``limits`` what the data allow at this Lipschitz constant, ``completed`` whether the
    run reached its end (False after Ctrl-C: the policy is then the best so far).
    """

    policy: LipschitzPolicy
    history: tuple[Mapping[str, Any], ...]
    limits: DataLimits
    completed: bool = field(default=True)


def build_policy(interface: Interface, lipschitz: float, options: TrainingOptions, seed: int) -> LipschitzPolicy:
    """An untrained policy whose Lipschitz constant is at most ``lipschitz``, in physical action units per observation unit (l2).

    The observation weights scale the network's input; the constant holds for the raw observation all the same. Raises InputError
    for a constant that is not positive, weights that do not fit, and actions without a box.
    """
    if not 0 < lipschitz < math.inf:
        raise InputError(f"the Lipschitz constant is {lipschitz}, expected a positive number")
    if interface.action_low is None or interface.action_high is None:
        raise InputError(f"the actions of {interface.environment} are unbounded, expected a finite action box")
    n = len(interface.observation)
    weights = rationals(options.observation_weights or (1,) * n, n, "observation_weights")
    if min(weights) <= 0:
        raise InputError(f"the observation weights are {', '.join(map(str, weights))}, expected positive numbers")
    return lipschitz_policy(
        n,
        interface.action_low,
        interface.action_high,
        lipschitz,
        hidden=options.hidden,
        layer=options.layer,
        activation=options.activation,
        generator=torch.Generator().manual_seed(seed),
        observation_scale=tuple(1 / weight for weight in weights),
        action_centre=(interface.equilibrium_action or 0) if options.recentre else 0,
        equilibrium_observation=interface.equilibrium_observation if options.recentre else None,
    )


def export_policy(policy: LipschitzPolicy, interface: Interface, provenance: Mapping[str, Any]) -> Policy:
    """The deployable policy with the interface's names, units and sampling time; its provenance names environment and plant."""
    origin = {"environment": interface.environment, "plant_digest": interface.plant_digest}
    return policy.export(interface.observation, interface.action, interface.dt, {**origin, **provenance})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: faster for small networks, and sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
