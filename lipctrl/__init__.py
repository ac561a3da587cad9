"""lipctrl: Lipschitz policies learnt from experts, with proofs of closed-loop stability that others can check.

The parts load on first use (``lipctrl.nn``, ``lipctrl.envs``, ...): ``import lipctrl`` itself costs nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = ("agents", "certificates", "cli", "core", "envs", "mpc", "nn", "readers", "report")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_SUBPACKAGES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
