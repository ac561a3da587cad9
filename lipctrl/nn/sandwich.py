"""Sandwich layers (Wang and Manchester, ICML 2023): complete for what one multiplier per unit can prove."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lipctrl.nn.cayley import CayleyMatrix
from lipctrl.nn.stack import MAX_LOG_SCALE, Gain, Stack


class SandwichStack(Stack):
    """Layers h -> sqrt(2) A^T Psi phi(sqrt(2) Psi^-1 B h + b) with A A^T + B B^T = I, merged into plain weights.

    Each layer is 1-Lipschitz for any phi with slopes in [0, 1], and only for such phi. Merged:
    W_k = 2 Psi_k^-1 B_k A_(k-1)^T Psi_(k-1), the first sqrt(2 gain) Psi_0^-1 B_0, the last sqrt(2 gain) B_out A^T Psi.
    """

    needs_slope_restriction = True

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        self.frames = nn.ModuleList(CayleyMatrix(n_out + n_in, n_out, generator) for n_in, n_out in pairwise(sizes))
        self.raw_log_scale = nn.ParameterList(torch.zeros(n) for n in sizes[1:-1])

    def _scales(self) -> list[Tensor]:
        return [raw.double().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() for raw in self.raw_log_scale]

    def materialise(self, gain: Gain) -> list[Tensor]:
        """The merged weights, float64."""
        frames = [frame() for frame in self.frames]
        left = [frame[:n] for frame, n in zip(frames, self.sizes[1:], strict=True)]  # A^T, (n, n)
        right = [frame[n:].mT for frame, n in zip(frames, self.sizes[1:], strict=True)]  # B, (n, n_in)
        if len(frames) == 1:
            return [gain * right[0]]
        scales = self._scales()
        weights = [(2 * gain) ** 0.5 * right[0] / scales[0][:, None]]
        for k in range(1, len(scales)):
            weights.append(2 * (right[k] / scales[k][:, None]) @ (left[k - 1] * scales[k - 1]))
        weights.append((2 * gain) ** 0.5 * right[-1] @ (left[-2] * scales[-1]))
        return weights

    def multipliers(self, gain: float) -> list[Tensor]:
        """2 gain Psi_k^2 for each hidden layer: they prove ``gain`` over the reals."""
        return [2 * gain * scale**2 for scale in self._scales()]
