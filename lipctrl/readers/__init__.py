"""Foreign networks and policies brought into canonical form: ONNX files, torch modules, Stable-Baselines3 zips.

Readers are outside the trusted base: a proof is about the graph that they return, which the certificate carries. Nothing
in a file is ever executed, and what cannot be expressed exactly is refused by its name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipctrl.readers.network import Network, read_network
    from lipctrl.readers.onnx import read_onnx
    from lipctrl.readers.sb3 import read_sb3
    from lipctrl.readers.torch_modules import read_torch

_HOMES = {"Network": "network", "read_network": "network", "read_onnx": "onnx", "read_sb3": "sb3", "read_torch": "torch_modules"}

__all__ = ["Network", "read_network", "read_onnx", "read_sb3", "read_torch"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
