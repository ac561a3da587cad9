"""Smooth operations by their definitions, for balls and power series of balls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flint import arb

SERIES: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda x: 1 - 2 / ((2 * x).exp() + 1),
    "sigmoid": lambda x: 1 / ((-x).exp() + 1),
    "softplus": lambda x: (x.exp() + 1).log(),
    "erf": lambda x: x.erf(),
    "gelu": lambda x: x * ((x * (1 / arb(2).sqrt())).erf() + 1) / 2,
    "silu": lambda x: x / ((-x).exp() + 1),
}
