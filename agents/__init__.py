"""Experts, demonstrations and training of Lipschitz policies.

Names load on first use: collecting demonstrations does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipctrl.agents.behaviour_cloning import train_behaviour_cloning
    from lipctrl.agents.dagger import DaggerOptions, train_dagger
    from lipctrl.agents.demonstrations import Demonstrations, collect
    from lipctrl.agents.energy import EnergyExpert
    from lipctrl.agents.envelope import MidpointEnvelope
    from lipctrl.agents.experts import EXPERTS, make_expert
    from lipctrl.agents.interface import Interface
    from lipctrl.agents.limits import DataLimits, data_limits
    from lipctrl.agents.lqr import LQRExpert
    from lipctrl.agents.minari_format import Episode
    from lipctrl.agents.rollouts import label, rollout
    from lipctrl.agents.stabilisation import StabilisationFloor, plant_stabilisation_floor, stabilisation_floor
    from lipctrl.agents.training import TrainingOptions, TrainingResult

_HOMES = {
    "behaviour_cloning": ("train_behaviour_cloning",),
    "dagger": ("DaggerOptions", "train_dagger"),
    "limits": ("DataLimits", "data_limits"),
    "demonstrations": ("Demonstrations", "collect"),
    "energy": ("EnergyExpert",),
    "envelope": ("MidpointEnvelope",),
    "experts": ("EXPERTS", "make_expert"),
    "interface": ("Interface",),
    "lqr": ("LQRExpert",),
    "minari_format": ("Episode",),
    "rollouts": ("label", "rollout"),
    "stabilisation": ("StabilisationFloor", "plant_stabilisation_floor", "stabilisation_floor"),
    "training": ("TrainingOptions", "TrainingResult"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "EXPERTS",
    "DaggerOptions",
    "DataLimits",
    "Demonstrations",
    "EnergyExpert",
    "Episode",
    "Interface",
    "LQRExpert",
    "MidpointEnvelope",
    "StabilisationFloor",
    "TrainingOptions",
    "TrainingResult",
    "collect",
    "data_limits",
    "label",
    "make_expert",
    "plant_stabilisation_floor",
    "rollout",
    "stabilisation_floor",
    "train_behaviour_cloning",
    "train_dagger",
]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
