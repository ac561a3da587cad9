"""Policies that Stable-Baselines3 saved: the deterministic action as a function of the observation.

The weights do not say which activation, squashing, box and normaliser the policy runs with. What the zip's plain text says
is read and compared with the weights and with the flags; what neither says is refused, never guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.core.errors import InputError
from lipctrl.core.rationals import floats, rationals
from lipctrl.readers.building import Builder, exact
from lipctrl.readers.network import Network, Units
from lipctrl.readers.sb3_files import PRINTED_DIGITS, class_name, printed_numbers, read_statistics, read_zip

_LAYER = r"(weight|bias)"
_CRITICS = rf"critic(_target)?\.qf\d+\.\d+\.{_LAYER}"


@dataclass(frozen=True)
class _Family:
    """What is known of the algorithms that share a policy class: the stock keys of their weights, and their defaults."""

    name: str
    keys: str  # a pattern that every key matches
    hidden: str  # prefix of the numbered layers
    last: str | None  # the output layer; None: the last numbered one
    activation: str
    net_arch: tuple[int, ...]
    squash: bool | None  # None: policy_kwargs say it


_FAMILIES = {
    "stable_baselines3.common.policies": _Family(
        "PPO or A2C",
        rf"log_std|(mlp_extractor\.(policy|value)_net\.\d+|action_net|value_net)\.{_LAYER}",
        *("mlp_extractor.policy_net", "action_net", "tanh", (64, 64), None),
    ),
    "stable_baselines3.sac.policies": _Family(
        "SAC",
        rf"actor\.log_std|actor\.(latent_pi\.\d+|mu|mu\.0|log_std)\.{_LAYER}|{_CRITICS}",
        *("actor.latent_pi", "actor.mu", "relu", (256, 256), True),
    ),
    "stable_baselines3.td3.policies": _Family(
        "TD3 or DDPG",
        rf"actor(_target)?\.mu\.\d+\.{_LAYER}|{_CRITICS}",
        *("actor.mu", None, "relu", (400, 300), True),
    ),
}

_TORCH = "torch.nn.modules.activation."
_CLASSES = {"Tanh": "tanh", "ReLU": "relu", "LeakyReLU": "leaky_relu", "Sigmoid": "sigmoid", "SiLU": "silu", "GELU": "gelu"}
_CLASSES |= {"Softplus": "softplus"}  #: class in torch -> operation, all with torch's own parameters

#: Arguments of a policy that change nothing, or that are looked at below.
_KNOWN_KWARGS = (
    "net_arch activation_fn ortho_init optimizer_class optimizer_kwargs log_std_init use_sde full_std use_expln squash_output clip_mean"
    " n_critics share_features_extractor normalize_images features_extractor_class features_extractor_kwargs"
).split()
_FLATTEN = "stable_baselines3.common.torch_layers.FlattenExtractor"
_BOXES = ("gymnasium.spaces.box.Box", "gym.spaces.box.Box")


def read_sb3(
    path: str | os.PathLike[str],
    *,
    squash: bool | None = None,
    activation: str | None = None,
    observation_normaliser: str | os.PathLike[str] | None = None,
    action_low: Any = None,
    action_high: Any = None,
) -> Network:
    """The deterministic policy in a zip that ``save`` of PPO, A2C, SAC, TD3 or DDPG wrote.

    Only stock multilayer perceptrons on a ``Box`` of one dimension, with ``Box`` actions, are read. The flags say what the
    zip leaves open, and must agree with what it says: ``squash`` (tanh, then scaled to the action box, in place of clipped to
    it), ``activation`` (``tanh``, ``relu``, ``leaky_relu``, ``sigmoid``, ``softplus``, ``silu``, ``gelu``), ``action_low`` and
    ``action_high`` (one number for each action, or one for all). ``observation_normaliser`` is a VecNormalize's statistics, an
    npz with ``mean``, ``var``, ``epsilon`` and ``clip_obs``; ``"none"`` where the environment was not normalised;
    ``"unknown"``, the default, gives a network in ``normalized`` units.

    Raises InputError, in one sentence, for what is unknown, contradictory, not stock, damaged or too large. No pickle in the
    zip is opened but ``policy.pth``, and that by torch's restricted reader.
    """
    path = Path(path)
    try:
        data, tensors = read_zip(path)
        family, kwargs = _family(data), _policy_kwargs(data)
        layers, clip_mean = _layers(family, kwargs, tensors)
        _check_spaces(data, layers[0][0].shape[1], len(layers[-1][0]))
        operation, notes = _activation(family, kwargs, activation)
        squashed = _squash(family, kwargs, squash)
        low, high, said = _action_box(data["action_space"], len(layers[-1][0]), action_low, action_high)
        builder = Builder(layers[0][0].shape[1])
        x, units, seen = _normalised(builder, data, family, observation_normaliser)
        for weight, bias in layers[:-1]:
            x = _activated(builder, builder.affine(x, weight, bias), operation, weight.dtype)
        x = builder.affine(x, *layers[-1])
        if clip_mean is not None:
            x = builder.clip(x, np.array(-clip_mean), np.array(clip_mean))
        if squashed:
            half, middle = (tuple((b + sign * a) / 2 for a, b in zip(low, high, strict=True)) for sign in (-1, 1))
            x = builder.shift(builder.scale(builder.apply("tanh", x), half), middle)
        else:
            x = builder.apply("clip", x, low=low, high=high)
        return Network(builder.finish(x), f"Stable-Baselines3 {family.name} policy", units, (*notes, *said, *seen))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _family(data: Mapping[str, Any]) -> _Family:
    policy = data.get("policy_class")
    module = policy.get("__module__") if isinstance(policy, dict) else None
    if module == "stable_baselines3.dqn.policies":
        raise InputError("a DQN acts by the largest of its outputs, which is no continuous function of the observation")
    if module not in _FAMILIES:
        what = f"the policy class lies in the module {str(module)[:80]!r}"
        raise InputError(f"{what} and may compute anything from its weights; expected a stock class from one of {', '.join(_FAMILIES)}")
    return _FAMILIES[module]


def _policy_kwargs(data: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's arguments as far as they are plain text. Raises InputError for those that may change the map."""
    table = data.get("policy_kwargs")
    if not isinstance(table, dict):
        raise InputError(f"the zip's policy_kwargs are {str(table)[:40]!r}, expected a table")
    kwargs = {name: value for name, value in table.items() if name not in (":type:", ":serialized:")}
    unknown = sorted(set(kwargs) - set(_KNOWN_KWARGS))
    if unknown:
        raise InputError(f"the policy was made with {unknown[0][:60]!r}, which may change what it computes and is not read")
    extractor = kwargs.get("features_extractor_class")
    if (extractor is not None and class_name(extractor) != _FLATTEN) or kwargs.get("features_extractor_kwargs"):
        raise InputError(f"the policy has the feature extractor {str(extractor)[:80]!r}, expected the stock {_FLATTEN}")
    return kwargs


def _layers(
    family: _Family, kwargs: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float | None]:
    """Weights and biases of the actor, in order, and where its output is clipped (gSDE of SAC), else ``None``."""
    strange = next((name for name in tensors if not re.fullmatch(family.keys, name)), None)
    if strange is not None:
        raise InputError(f"the weights hold {strange[:80]!r}, which no stock {family.name} policy on vectors has")
    prefix = re.escape(family.hidden)
    numbers = sorted({int(match[1]) for name in tensors if (match := re.fullmatch(rf"{prefix}\.(\d+)\.{_LAYER}", name))})
    clip_mean = None
    names = [f"{family.hidden}.{number}" for number in numbers]
    if family.last is not None:
        clipped = family.last == "actor.mu" and "actor.mu.0.weight" in tensors
        clip_mean = _clip_mean(kwargs, "actor.log_std" in tensors, clipped) if family.last == "actor.mu" else None
        names.append(f"{family.last}.0" if clipped else family.last)
    missing = [f"{name}.{part}" for name in names for part in ("weight", "bias") if f"{name}.{part}" not in tensors]
    if missing or not names or numbers != list(range(0, 2 * len(numbers), 2)):
        raise InputError(f"the actor's layers are numbered {numbers} and lack {missing[:2]}, which no stock {family.name} policy does")
    layers = [(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names]
    if {array.dtype for layer in layers for array in layer} not in ({np.dtype("float32")}, {np.dtype("float64")}):
        raise InputError("the actor's layers have different types, expected float32 or float64 throughout")
    if any(weight.ndim != 2 or bias.ndim != 1 for weight, bias in layers):
        raise InputError("an actor's weight is no matrix, or its bias no vector")
    widths, stated = tuple(len(weight) for weight, _ in layers[:-1]), _net_arch(kwargs.get("net_arch"), family)
    if widths != stated:
        raise InputError(f"the actor's hidden layers have the widths {list(widths)}, but the zip's net_arch says {list(stated)}")
    return layers, clip_mean


def _clip_mean(kwargs: Mapping[str, Any], has_sde: bool, clipped: bool) -> float | None:
    """SAC with gSDE clips the mean before the tanh; keys and arguments must say the same."""
    bound = kwargs.get("clip_mean", 2.0)
    if bool(kwargs.get("use_sde", False)) != has_sde or isinstance(bound, bool) or not isinstance(bound, int | float):
        raise InputError("the zip's use_sde or clip_mean do not fit its weights")
    if clipped != (has_sde and bound > 0):
        raise InputError(f"the zip's clip_mean is {bound}, which does not fit its weights")
    return float(bound) if clipped else None


def _net_arch(stated: Any, family: _Family) -> tuple[int, ...]:
    """Widths of the actor's hidden layers as the zip says them."""
    if stated is None:
        return family.net_arch
    if isinstance(stated, list) and len(stated) == 1 and isinstance(stated[0], dict):
        stated = stated[0]  # as saved by old versions
    widths = stated.get("pi") if isinstance(stated, dict) else stated
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        raise InputError(f"the zip's net_arch is {str(stated)[:80]!r}, expected a list of widths or a table with 'pi'")
    return tuple(widths)


def _check_spaces(data: Mapping[str, Any], inputs: int, outputs: int) -> None:
    for name, size in (("observation_space", inputs), ("action_space", outputs)):
        space = data.get(name)
        kind = class_name(space.get(":type:")) if isinstance(space, dict) else None
        if not isinstance(space, dict) or kind not in _BOXES:
            raise InputError(f"the {name} is a {kind or 'thing of unknown type'}, expected a Box")
        if space.get("dtype") not in ("float32", "float64") or space.get("_shape") != [size]:
            shape = f"type {str(space.get('dtype'))[:20]} and shape {str(space.get('_shape'))[:40]}"
            raise InputError(f"the {name} has {shape}, but the weights need a float Box of shape [{size}]")


def _activation(family: _Family, kwargs: Mapping[str, Any], flag: str | None) -> tuple[str, list[str]]:
    """The operation between the layers, and what to say about it."""
    known = sorted(_CLASSES.values())
    if flag is not None and flag not in known:
        raise InputError(f"activation is {flag!r}, expected one of {', '.join(known)}")
    text = kwargs.get("activation_fn")
    name = family.activation if text is None else class_name(text)
    if text is not None and name is not None and name.startswith(_TORCH):
        name = _CLASSES.get(name.removeprefix(_TORCH))
        if name is None:
            raise InputError(f"the activation is {str(text)[:80]}, which is not read; read are {', '.join(known)}")
    elif text is not None:
        if flag is None:
            raise InputError(
                f"the activation is {str(text)[:80]!r}, which says not what it computes; give activation, one of {', '.join(known)}"
            )
        return flag, [f"that the activation {str(text)[:80]} is {flag} was said by whoever read the file"]
    if name is None or flag not in (None, name):
        raise InputError(f"activation is {flag!r}, but the zip says {name!r}")
    notes = ["Softplus is read as log(1 + exp(x)); PyTorch drops at most exp(-20) beyond 20"] if name == "softplus" else []
    return name, notes


def _activated(builder: Builder, x: int, operation: str, dtype: np.dtype[Any]) -> int:
    if operation == "leaky_relu":
        return builder.leaky_relu(x, np.array([0.01], dtype))  # torch's slope, as it is rounded when it runs
    return builder.apply(operation, x)


def _squash(family: _Family, kwargs: Mapping[str, Any], flag: bool | None) -> bool:
    stated = kwargs.get("squash_output", False) if family.squash is None else family.squash
    if not isinstance(stated, bool) or flag not in (None, stated):
        raise InputError(f"squash is {flag}, but the zip says {str(stated)[:20]}")
    return stated


_Vector = tuple[Fraction, ...]


def _action_box(space: Mapping[str, Any], size: int, low: Any, high: Any) -> tuple[_Vector, _Vector, list[str]]:
    """The exact ends of the action box, as the floats that the space holds, and what to say about them."""
    dtype = np.dtype(space["dtype"])
    ends = [_end(space.get(name), size, flag, dtype, f"action_{name}") for name, flag in (("low", low), ("high", high))]
    if not all(a < b for a, b in zip(*ends, strict=True)):
        raise InputError("the action box is empty: action_low must be less than action_high")
    printed = [name for name, flag in (("low", low), ("high", high)) if flag is None]
    notes = [f"the action box's {' and '.join(printed)} are the numbers that the zip prints"] if printed else []
    return ends[0], ends[1], notes


def _end(text: object, size: int, flag: Any, dtype: np.dtype[Any], what: str) -> _Vector:
    found = printed_numbers(text, size)
    if flag is None:
        if found is None or (found[1] >= PRINTED_DIGITS).any():
            raise InputError(f"the zip prints {what} as {str(text)[:60]!r}, elided or rounded; give {what}")
        return exact(found[0].astype(dtype), what)
    given = floats(rationals(flag, size, what)).astype(dtype)
    if found is not None:
        values, digits = found
        unit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(values), 1.0))) - digits)  # generous: one of the last digit, scaled
        rounded = (digits >= 3) & (np.abs(given - values) <= unit)
        if not (rounded | (values.astype(dtype) == given)).all():
            raise InputError(f"{what} is {given.tolist()}, but the zip prints {str(text)[:60]!r}")
    return exact(given, what)


def _normalised(
    builder: Builder, data: Mapping[str, Any], family: _Family, normaliser: str | os.PathLike[str] | None
) -> tuple[int, Units, list[str]]:
    """The observation as the network sees it, the units of the whole, and what to say about it."""
    x = builder.observation
    # algorithms on policy keep the last raw observation only where a VecNormalize is around the environment
    claimed = family.squash is None and data.get("_last_original_obs") is not None
    if normaliser is None and claimed:
        options = "an npz with mean, var, epsilon and clip_obs, or 'unknown' for a network in normalized units"
        raise InputError(
            f"the policy was trained behind a VecNormalize, whose statistics are not in the zip; give observation_normaliser, {options}"
        )
    if normaliser in (None, "unknown"):
        return x, "normalized", ["whether a VecNormalize stood before the network is unknown, so observations are those that it was fed"]
    if normaliser == "none":
        return x, "physical", ["that observations were not normalised was said by whoever read the file"]
    try:
        mean, scale, limit = read_statistics(Path(str(normaliser)), builder.size(x))
    except InputError as error:
        raise InputError(f"observation_normaliser: {error}") from error
    x = builder.combine("sub", x, builder.constant(mean))
    x = builder.combine("div", x, builder.constant(scale))
    return (
        builder.clip(x, np.array(-limit), np.array(limit)),
        "physical",
        ["the normaliser's statistics were given by whoever read the file"],
    )
