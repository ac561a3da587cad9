"""Residual networks of blocks x - 2 W^T D^-1 phi(W x + b) with D >= W W^T, each 1-Lipschitz (Araujo et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.certificates.checker.graph import Node
from lipctrl.core.errors import InputError
from lipctrl.nn.activations import Activation, activation
from lipctrl.nn.bjorck import norm_bound
from lipctrl.nn.cayley import CayleyMatrix
from lipctrl.nn.network import AddNode, LipschitzNetwork, Tensors
from lipctrl.nn.scales import MAX_LOG_SCALE

ROOM = 1e-4  #: D is enlarged by this share, for rounding to float32
SMALLEST = 1e-9  #: added to D, which only makes a block's correction smaller: a unit with weights 0 stays harmless


def dominant_diagonal(weight: Tensor, log_scale: Tensor) -> Tensor:
    """D (h,) with D >= W W^T for W (h, n), by diagonal dominance: D_ii = sum_j |W W^T|_ij q_j / q_i with q = exp(log_scale)."""
    scale = log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    return (weight @ weight.mT).abs() @ scale / scale


def norm_diagonal(weight: Tensor) -> Tensor:
    """D (h,) with D = s^2 I >= W W^T, s an upper bound of the norm of W."""
    return norm_bound(weight).square().expand(len(weight))


class ResidualMLP(LipschitzNetwork):
    """x -> sqrt(L) Q_out (block_k o ... o block_1)(sqrt(L) Q_in x) + b, ``lipschitz``-Lipschitz in the Euclidean norm.

    ``hidden`` lists the units of each block; the state of the blocks has ``width`` coordinates, the larger of input and output
    size unless given. Q_in and Q_out have orthonormal rows or columns, and are the identity where sizes agree. ``layer`` is
    ``"sll"`` (D by diagonal dominance with free scales) or ``"cpl"`` (D a multiple of the identity). Activations need slopes in
    [0, 1]. Raises InputError for sizes, bounds, layers or activations that do not fit together.
    """

    def __init__(
        self,
        input_size: int,
        hidden: Sequence[int],
        output_size: int,
        lipschitz: float = 1.0,
        layer: str = "sll",
        activation: str | Activation = "relu",
        *,
        width: int | None = None,
        lipschitz_range: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__((input_size, *hidden, output_size), lipschitz, lipschitz_range)
        if layer not in ("sll", "cpl"):
            raise InputError(f"layer is {layer!r}, expected 'sll' or 'cpl'")
        self.layer, self.activation = layer, restricted(f"residual layer {layer!r}", activation)
        self.width = max(input_size, output_size) if width is None else width
        self.enter, self.leave = (
            None if size == self.width else CayleyMatrix(max(size, self.width), min(size, self.width), generator)
            for size in (input_size, output_size)
        )
        bound = (6 / (self.width + max(hidden, default=1))) ** 0.5
        self.raw_weight = nn.ParameterList(bound * (2 * torch.rand(h, self.width, generator=generator) - 1) for h in hidden)
        self.raw_log_scale = nn.ParameterList(torch.zeros(h) for h in hidden if layer == "sll")
        self.hidden_bias = nn.ParameterList(2 * torch.rand(h, generator=generator) - 1 for h in hidden)
        self.output_bias = nn.Parameter(torch.zeros(output_size))

    def _diagonals(self) -> list[Tensor]:
        weights = [raw.double() for raw in self.raw_weight]
        if self.layer == "cpl":
            bounds = [norm_diagonal(weight) for weight in weights]
        else:
            bounds = [dominant_diagonal(weight, raw.double()) for weight, raw in zip(weights, self.raw_log_scale, strict=True)]
        return [bound * (1 + ROOM) + SMALLEST for bound in bounds]

    def _ends(self) -> tuple[Tensor, Tensor]:
        frames = []
        for frame, size in ((self.enter, self.sizes[0]), (self.leave, self.sizes[-1])):
            if frame is None:
                frames.append(torch.eye(size, dtype=torch.float64, device=self.output_bias.device))
            else:
                frames.append(frame() if size < self.width else frame().mT)
        return frames[0], frames[1].mT

    def tensors(self) -> Tensors:
        """``enter``, ``leave``, ``output_bias``; for each block k ``inner_k`` W, ``bias_k`` b, ``outer_k`` -2 W^T D^-1."""
        side = self._gain() ** 0.5
        enter, leave = self._ends()
        tensors = {"enter": (side * enter).contiguous(), "leave": (side * leave).contiguous(), "output_bias": self.output_bias.double()}
        for k, (raw, diagonal, bias) in enumerate(zip(self.raw_weight, self._diagonals(), self.hidden_bias, strict=True)):
            weight = raw.double()
            tensors |= {f"inner_{k}": weight, f"bias_{k}": bias.double(), f"outer_{k}": (-2 * weight.mT / diagonal).contiguous()}
        return tensors

    def apply_tensors(self, x: Tensor, tensors: Tensors) -> Tensor:
        """Blocks between two affine maps."""
        x = functional.linear(x, tensors["enter"])
        for k in range(len(self.raw_weight)):
            inner = self.activation.apply(functional.linear(x, tensors[f"inner_{k}"], tensors[f"bias_{k}"]))
            x = x + functional.linear(inner, tensors[f"outer_{k}"])
        return functional.linear(x, tensors["leave"], tensors["output_bias"])

    def add_nodes(self, add: AddNode, operand: int) -> int:
        """Affine, activation, affine and add for each block."""
        x = add(Node("affine", (operand,), {"weight": "enter", "bias": None}))
        for k in range(len(self.raw_weight)):
            inner = self.activation.add_nodes(add, add(Node("affine", (x,), {"weight": f"inner_{k}", "bias": f"bias_{k}"})))
            x = add(Node("add", (x, add(Node("affine", (inner,), {"weight": f"outer_{k}", "bias": None})))))
        return add(Node("affine", (x,), {"weight": "leave", "bias": "output_bias"}))

    @torch.no_grad()
    def multipliers(self) -> list[np.ndarray]:
        """4 L / D_jj for the units of each block: over the reals they prove the bound block by block."""
        factor = 4 * self.lipschitz * self.activation.multiplier_factor
        return [(factor / diagonal).cpu().numpy() for diagonal in self._diagonals()]


def restricted(layer: str, choice: str | Activation) -> Activation:
    """The activation if its slopes are in [0, 1]; ``layer`` names what needs it. Raises InputError otherwise."""
    chosen = activation(choice)
    if not chosen.slope_restricted:
        raise InputError(
            f"{layer} needs an activation that acts coordinate by coordinate with slopes in [0, 1] (relu, tanh), "
            f"got {chosen.name!r}: use LipschitzMLP(layer='cayley') for it"
        )
    return chosen
