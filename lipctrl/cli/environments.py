"""Environments by the names that users give: a shipped plant, its Gymnasium id, any registered id, or a file with a plant."""

from __future__ import annotations

from typing import Any

import gymnasium

from lipctrl.core.errors import InputError
from lipctrl.envs import PlantEnv, environment_id, load_plant, shipped_plants


def make_environment(name: str, *, render: bool = False) -> gymnasium.Env[Any, Any]:
    """``pendulum``, ``lipctrl/Pendulum-v0``, ``Pendulum-v1``, ... as an environment; with ``render`` it gives RGB pictures.

    ``FILE.py`` is executed: its ``plant() -> Plant`` makes the environment, cut after the plant's ``max_episode_steps``.
    Raises InputError for a name that is not registered, a file without a plant, and an environment that cannot be made.
    """
    mode = "rgb_array" if render else None
    if name.endswith(".py"):
        plant = load_plant(name)
        return gymnasium.wrappers.TimeLimit(PlantEnv(plant, mode), plant.max_episode_steps)
    identifier = environment_id(name) if name in shipped_plants() else name
    try:
        return gymnasium.make(identifier, render_mode=mode)
    except InputError:
        raise
    except gymnasium.error.Error as error:
        ours = ", ".join(shipped_plants())
        said = str(error).split("\n")[0].rstrip(".")
        expected = f"one of {ours}, a registered Gymnasium id, or a file FILE.py that defines plant()"
        raise InputError(f"the environment {name!r} is not known ({said}); expected {expected}") from error
    except (ImportError, AttributeError, OSError, TypeError, ValueError) as error:
        raise InputError(f"the environment {name!r} cannot be made: {error}") from error
