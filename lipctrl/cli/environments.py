"""Environments by the names that users give: a shipped plant, its Gymnasium id, or any registered id."""

from __future__ import annotations

from typing import Any

import gymnasium

from lipctrl.core.errors import InputError
from lipctrl.envs import environment_id, shipped_plants


def make_environment(name: str, *, render: bool = False) -> gymnasium.Env[Any, Any]:
    """``pendulum``, ``lipctrl/Pendulum-v0``, ``Pendulum-v1``, ... as an environment; with ``render`` it gives RGB pictures.

    Raises InputError for a name that is not registered or an environment that cannot be made, saying what there is.
    """
    identifier = environment_id(name) if name in shipped_plants() else name
    try:
        return gymnasium.make(identifier, render_mode="rgb_array" if render else None)
    except InputError:
        raise
    except gymnasium.error.Error as error:
        ours = ", ".join(shipped_plants())
        said = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"the environment {name!r} is not known ({said}); expected one of {ours}, or a registered Gymnasium id") from error
    except (ImportError, AttributeError, OSError, TypeError, ValueError) as error:
        raise InputError(f"the environment {name!r} cannot be made: {error}") from error
