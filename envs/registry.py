"""Plants by name: the shipped ones, their Gymnasium ids, and files that define one."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gymnasium

from lipctrl.core.errors import InputError
from lipctrl.envs import shipped
from lipctrl.envs.plant import Plant

NAMESPACE, VERSION = "lipctrl", "v0"

#: Name of each shipped plant: how to build it, and the steps of an episode.
SHIPPED: dict[str, tuple[Callable[[], Plant], int]] = {
    "double-integrator": (shipped.double_integrator, 100),
    "pendulum": (shipped.pendulum, 200),
    "pendulum-small": (shipped.pendulum_small, 200),
    "gym-pendulum": (shipped.gym_pendulum, 200),
    "cartpole": (shipped.cartpole, 200),
    "quadrotor2d": (shipped.quadrotor2d, 1000),
    "path-tracking": (shipped.path_tracking, 200),
    "path-tracking-small": (shipped.path_tracking_small, 200),
    "path-tracking-physical": (shipped.path_tracking_physical, 200),
    "van-der-pol": (shipped.van_der_pol, 200),
    "van-der-pol-reversed": (shipped.van_der_pol_reversed, 200),
}


def shipped_plants() -> tuple[str, ...]:
    """The names of the shipped plants."""
    return tuple(SHIPPED)


def environment_id(name: str) -> str:
    """The Gymnasium id of a shipped plant: ``lipctrl/DoubleIntegrator-v0`` for ``double-integrator``."""
    return f"{NAMESPACE}/{''.join(part.capitalize() for part in name.split('-'))}-{VERSION}"


def make_plant(name: str) -> Plant:
    """A shipped plant by its name or Gymnasium id (``pendulum``, ``lipctrl/Pendulum-v0``); the same object every time.

    Raises InputError for any other name.
    """
    by_id = {environment_id(plant): plant for plant in SHIPPED}
    plant_name = by_id.get(name, name)
    if plant_name not in SHIPPED:
        raise InputError(f"there is no plant {name!r}, expected one of {', '.join(SHIPPED)}, or a file FILE.py that defines plant()")
    return _built(plant_name)


@cache
def _built(name: str) -> Plant:
    return SHIPPED[name][0]()


def load_plant(name_or_path: str | os.PathLike[str]) -> Plant:
    """A shipped plant by name or id, or the plant that ``plant()`` in a Python file returns. The file is executed.

    Raises InputError where there is no such plant, or the file does not define one.
    """
    text = os.fspath(name_or_path)
    if not text.endswith(".py"):
        return make_plant(text)
    path = Path(text)
    if not path.is_file():
        raise InputError(f"there is no file {text}, expected a Python file that defines plant()")
    module_name = f"lipctrl_plant_{path.stem}"
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{text} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module  # dataclasses and pickling in the user's file look it up
    try:
        specification.loader.exec_module(module)
        function = getattr(module, "plant", None)
        if not callable(function):
            raise InputError(f"{text} defines no function plant(), expected `def plant() -> Plant`")
        plant = function()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{text} failed while making its plant: {type(error).__name__}: {error}") from error
    if not isinstance(plant, Plant):
        raise InputError(f"plant() in {text} returned {type(plant).__name__}, expected a Plant")
    return plant


def register_environments() -> None:
    """Register each shipped plant with Gymnasium; ids that are registered already are left alone."""
    for name, (_, steps) in SHIPPED.items():
        if environment_id(name) not in gymnasium.registry:
            gymnasium.register(
                id=environment_id(name),
                entry_point="lipctrl.envs.plant_env:PlantEnv",
                max_episode_steps=steps,
                kwargs={"plant": name},
            )
