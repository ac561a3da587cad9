"""Linear and nonlinear control under one bound: u = A x + B phi(... phi(C_1 x + b_1)) + b."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.nn.activations import Activation
from lipctrl.nn.contraction import MAX_CONDITION, cholesky, conditioned, contraction, free_of_contraction
from lipctrl.nn.network import AddNode, LipschitzNetwork, Tensors, graded
from lipctrl.nn.residual import restricted
from lipctrl.nn.scales import MAX_LOG_SCALE
from lipctrl.nn.starts import uniform

LARGEST_REACH = 1e12  #: above this, the identity in the stacked matrix below is lost to rounding

HALVINGS = 40  #: how often the hidden layers are made smaller to leave room for a linear start


class LinearPlusMLP(LipschitzNetwork):
    """x (..., input_size) -> A x + B h + b with h the last hidden layer, jointly ``lipschitz``-Lipschitz.

    An LDL^T parametrisation: complete for what one multiplier per unit strictly proves of such networks. ``hidden`` lists at
    least one width; activations need slopes in [0, 1]. Start it at a linear controller with :meth:`start_at`. Raises InputError
    for what does not fit together, and LipctrlError while materialising where many ill-conditioned layers amplify beyond float64.
    """

    def __init__(
        self,
        input_size: int,
        hidden: Sequence[int],
        output_size: int,
        lipschitz: float = 1.0,
        activation: str | Activation = "relu",
        *,
        lipschitz_range: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = (input_size, *hidden, output_size)
        super().__init__(sizes, lipschitz, lipschitz_range)
        if not hidden:
            raise InputError("hidden is empty, expected at least one width")
        self.activation = restricted("a linear map beside a network", activation)
        self.raw_weight = uniform(sizes[:-1], generator)
        self.raw_output = uniform((hidden[-1] + input_size, output_size), generator)[0]
        self.raw_log_scale = nn.ParameterList(torch.zeros(n) for n in hidden)
        self.hidden_bias = nn.ParameterList(2 * torch.rand(n, generator=generator) - 1 for n in hidden)
        self.output_bias = nn.Parameter(torch.zeros(output_size))

    def _scales(self) -> list[Tensor]:
        return [raw.double().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() for raw in self.raw_log_scale]

    def _hidden(self) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """For gain 1: hidden weights C_i, the last M, and T and F with [B A] [[M, 0], [T, F]] the output's contraction."""
        weights: list[Tensor] = []
        stacked: list[Tensor] = []
        reach = side = torch.eye(self.sizes[0], dtype=torch.float64, device=self.output_bias.device)
        for raw in self.raw_weight:
            free = conditioned(raw.double())
            root = cholesky(free)
            small = torch.linalg.solve_triangular(root, free, upper=False)
            weights.append(math.sqrt(2) * torch.linalg.solve_triangular(side, small, upper=True, left=False))
            stacked.append(reach.mT)
            side = root.mT / math.sqrt(2)
            reach = math.sqrt(2) * reach @ small.mT @ side
            if not float(reach.detach().norm()) <= LARGEST_REACH:
                raise LipctrlError("the hidden layers amplify beyond what float64 resolves: use fewer layers or smaller parameters")
        return weights, side, reach, torch.linalg.qr(torch.cat(stacked)).R.mT

    def tensors(self) -> Tensors:
        """``weight_0``, ``bias_0``, ... of the hidden layers, then ``linear`` A, ``weight_l`` B, ``bias_l`` b."""
        gain = self._gain()
        weights, side, reach, factor = self._hidden()
        output = contraction(conditioned(self.raw_output.double()))
        split = self.sizes[-2]
        linear = torch.linalg.solve_triangular(factor, output[:, split:], upper=False, left=False)
        last = torch.linalg.solve_triangular(side, output[:, :split] - linear @ reach, upper=True, left=False)
        scales = self._scales()
        weights = [weight / scale[:, None] for weight, scale in zip(weights, scales, strict=True)]
        weights = [gain**0.5 * weights[0], *(weight * scale for weight, scale in zip(weights[1:], scales[:-1], strict=True))]
        weights.append(gain**0.5 * last * scales[-1])
        biases = [*self.hidden_bias, self.output_bias]
        tensors = {"linear": (gain * linear).contiguous()}
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            tensors |= {f"weight_{k}": weight.contiguous(), f"bias_{k}": bias.double()}
        return tensors

    @torch.no_grad()
    def start_at(self, gain: Tensor) -> None:
        """Set the parameters so that the network is exactly x -> ``gain`` x, (n_out, n_in), with norm below the bound.

        The hidden layers keep random weights and biases, smaller where they must be, and B = 0: training moves it first.
        Parameters are as precise as their dtype. Raises InputError where the norm is too large.
        """
        wanted = gain.to(self.raw_output.device, torch.float64) / self.built_for
        norm = float(torch.linalg.matrix_norm(wanted, 2))
        for _ in range(HALVINGS if norm < 1 else 0):
            _, _, reach, factor = self._hidden()
            output = torch.cat([wanted @ reach, wanted @ factor], dim=1)
            if float(torch.linalg.matrix_norm(output, 2)) < 1:
                free = free_of_contraction(output)
                if float(free.norm()) ** 2 <= MAX_CONDITION:  # else materialising would shrink it
                    self.raw_output.copy_(free)
                    self.output_bias.zero_()
                    return
            for raw in self.raw_weight:
                raw.mul_(0.5)
        raise InputError(f"gain has norm {norm * self.built_for:.6g}, expected less than {self.built_for:.6g}, the network's bound")

    def apply_tensors(self, x: Tensor, tensors: Tensors) -> Tensor:
        """The linear map plus the network."""
        hidden, last = x, len(self.hidden_bias)
        for k in range(last):
            hidden = self.activation.apply(functional.linear(hidden, tensors[f"weight_{k}"], tensors[f"bias_{k}"]))
        return functional.linear(x, tensors["linear"]) + functional.linear(hidden, tensors[f"weight_{last}"], tensors[f"bias_{last}"])

    def add_nodes(self, add: AddNode, operand: int) -> int:
        """Affine nodes with activations, and the linear map added at the end."""
        hidden, last = operand, len(self.hidden_bias)
        for k in range(last):
            hidden = self.activation.add_nodes(add, add(Node("affine", (hidden,), {"weight": f"weight_{k}", "bias": f"bias_{k}"})))
        linear = add(Node("affine", (operand,), {"weight": "linear", "bias": None}))
        return add(Node("add", (linear, add(Node("affine", (hidden,), {"weight": f"weight_{last}", "bias": f"bias_{last}"})))))

    @torch.no_grad()
    def multipliers(self) -> list[np.ndarray]:
        """2 L Psi_k^2 for each hidden layer, graded: they prove the joint bound of the rounded weights."""
        known = [2 * self.built_for * scale**2 for scale in self._scales()]
        return [self.activation.multiplier_factor * values for values in graded(known, self.lipschitz, self.built_for)]
