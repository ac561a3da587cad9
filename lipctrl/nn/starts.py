"""Where free matrices start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def uniform(sizes: Sequence[int], generator: torch.Generator | None = None, gain: float = 1.0) -> nn.ParameterList:
    """Matrices (n_k+1, n_k), uniform in +-gain / sqrt(n_k): the start of ``nn.Linear``, times ``gain``."""
    return nn.ParameterList(
        (2 * torch.rand(n_out, n_in, generator=generator) - 1) * (gain / math.sqrt(n_in)) for n_in, n_out in pairwise(sizes)
    )


def glorot(sizes: Sequence[int], generator: torch.Generator | None = None) -> nn.ParameterList:
    """Matrices (n_k+1, n_k), uniform with variance 2 / (n_k + n_k+1)."""
    return nn.ParameterList(
        (2 * torch.rand(n_out, n_in, generator=generator) - 1) * math.sqrt(6 / (n_in + n_out)) for n_in, n_out in pairwise(sizes)
    )
