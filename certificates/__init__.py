"""Certificates: claims that a stranger can check.

The search side finds evidence and may be clever, fast and wrong; :mod:`lipctrl.certificates.checker` verifies it with
rigorous arithmetic and imports nothing of the search side. This module loads its parts on first use, so that importing
the checker runs nothing else.
"""

import importlib
from types import ModuleType

_SUBPACKAGES = ("checker", "lipschitz", "stability")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_SUBPACKAGES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
