"""Experts by name: ``lqr``, ``energy``, ``mpc``, or the path of a policy folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lipctrl.agents.energy import EnergyExpert
from lipctrl.agents.interface import Environment, Interface, plant_of
from lipctrl.agents.lqr import LQRExpert
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy
from lipctrl.envs.plant import Plant


def make_expert(name: str | Path, env: Environment) -> Controller:
    """The expert of that name for an environment: ``lqr``, ``energy`` (pumping, then LQR), ``mpc``, or a policy folder's path.

    A Stable-Baselines3 model is an expert as it is, once loaded; a path to its zip is refused, because loading one runs code
    from it. Raises InputError for unknown names, listing those there are, and for experts that do not fit the environment.
    """
    maker = EXPERTS.get(str(name))
    if maker is not None:
        return maker(env)
    path = Path(name)
    if path.is_dir():
        return _policy(path, env)
    if path.is_file():
        hint = "a Stable-Baselines3 model must be loaded by you (that runs code from the file) and passed as it is"
        raise InputError(f"{path} is a file, expected a policy folder; {hint}")
    raise InputError(f"the expert {str(name)!r} is unknown, expected one of {', '.join(EXPERTS)}, or the path of a policy folder")


def _lqr(env: Environment) -> Controller:
    plant = plant_of(env)
    return LQRExpert.of_mujoco(env) if plant is None else LQRExpert.of_plant(plant)


def _energy(env: Environment) -> Controller:
    return EnergyExpert(_plant(env, "energy"))


def _mpc(env: Environment) -> Controller:
    from lipctrl.mpc import MPC

    return MPC(_plant(env, "mpc"), on_failure="fallback")


EXPERTS: dict[str, Callable[[Environment], Controller]] = {"lqr": _lqr, "energy": _energy, "mpc": _mpc}  #: those with a name


def _plant(env: Environment, name: str) -> Plant:
    plant = plant_of(env)
    if plant is None:
        raise InputError(f"the expert {name!r} needs a plant with equations, {Interface.of(env).environment} has none")
    return plant


def _policy(path: Path, env: Environment) -> Policy:
    policy, interface = Policy.load(path), Interface.of(env)
    sizes = len(policy.observation), len(policy.action)
    wanted = len(interface.observation), len(interface.action)
    if sizes != wanted:
        raise InputError(f"the policy in {path} maps {sizes[0]} observations to {sizes[1]} actions, expected {wanted[0]} to {wanted[1]}")
    return policy
