"""Minari's data sets on disk, `FOLDER/data/{metadata.json, main_data.hdf5}`, written and read directly with h5py.

Reading treats the files as untrusted data: every metadata key must be on a list, an environment specification is never turned
into an environment, links that leave the file are refused, and sizes are checked before anything is read.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from numpy.typing import NDArray

from lipctrl.core.errors import InputError

METADATA, DATA = "metadata.json", "main_data.hdf5"
MINARI_VERSION = "0.5.4"  #: the version of the format that is written

_KEYS = frozenset(
    "action_space algorithm_name author author_email code_permalink combined_datasets data_format dataset_id dataset_size description "
    "env_spec eval_env_spec jpeg_encoding lipctrl minari_version num_episodes_average_score observation_space ref_max_score "
    "ref_min_score requirements total_episodes total_steps".split()
)
_MAX_METADATA_BYTES = 4_000_000
_MAX_NUMBERS = 200_000_000  #: in one data set
_MAX_EPISODES = 1_000_000

Values = NDArray[Any]


@dataclass(frozen=True)
class Episode:
    """One episode of T steps: ``observations`` (T+1, n), ``actions`` (T, m), ``rewards``, ``terminations``, ``truncations`` (T,).

    ``seed`` is the one that the environment was reset with, if any.
    """

    observations: Values
    actions: Values
    rewards: Values
    terminations: Values
    truncations: Values
    seed: int | None = None


@dataclass(frozen=True)
class Box:
    """Bounds of the observations or actions of a data set, as Minari stores them."""

    low: Values
    high: Values


def dataset_id(folder: Path) -> str:
    """The id in the metadata: the folder's own name where it is one (``name-v0``), else one made from it."""
    name = re.sub(r"[^\w-]", "-", folder.resolve().name)
    return name if re.fullmatch(r"[\w-]+-v\d+", name) else f"{name or 'demonstrations'}-v0"


def write_dataset(
    folder: Path,
    episodes: Sequence[Episode],
    observation_box: Box,
    action_box: Box,
    *,
    metadata: Mapping[str, object],
    overwrite: bool = False,
) -> None:
    """Write a data set; the folder appears whole or not at all.

    ``metadata``: further entries (Minari's keys, and ``lipctrl`` for ours). Raises InputError where the folder exists and is not
    empty, unless ``overwrite``, or cannot be written.
    """
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already; choose another folder or delete it")
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    try:
        (partial / "data").mkdir(parents=True)
        _write_episodes(partial / "data" / DATA, episodes)
        content = {
            "total_episodes": len(episodes),
            "total_steps": sum(len(episode.rewards) for episode in episodes),
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": _space_text(observation_box),
            "action_space": _space_text(action_box),
            "dataset_id": dataset_id(folder),
            "minari_version": MINARI_VERSION,
            "dataset_size": round((partial / "data" / DATA).stat().st_size / 1e6, 1),
            **metadata,
        }
        (partial / "data" / METADATA).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        _swap(partial, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_dataset(folder: Path) -> tuple[dict[str, Any], Box, Box, tuple[Episode, ...]]:
    """Metadata, observation and action box, episodes. Nothing from the files is executed.

    Raises InputError for missing, damaged or inconsistent files, values that are not finite, and forms that are not supported
    (pictures, nested spaces, Arrow files).
    """
    data = folder if (folder / METADATA).is_file() else folder / "data"
    if not (data / METADATA).is_file():
        raise InputError(f"{folder} holds no data set, expected {data / METADATA}")
    metadata = _read_metadata(data / METADATA)
    observation_box, action_box = (_box(metadata, f"{kind}_space") for kind in ("observation", "action"))
    if not (data / DATA).is_file():
        raise InputError(f"the data set {folder} is damaged: {data / DATA} is missing")
    try:
        with h5py.File(data / DATA, "r") as file:
            episodes = tuple(_read_episodes(file, metadata, observation_box, action_box))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"the data set {folder} is not usable: {error}") from error
        raise InputError(f"the data set {folder} is damaged: {data / DATA} cannot be read ({error})") from error
    steps = sum(len(episode.rewards) for episode in episodes)
    if steps != metadata["total_steps"]:
        raise InputError(f"the data set {folder} is damaged: it holds {steps} steps, its metadata say {metadata['total_steps']}")
    return metadata, observation_box, action_box, episodes


def environment_id(metadata: Mapping[str, Any]) -> str | None:
    """The id in the stored environment specification, as text; the specification itself is never used."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        name = json.loads(metadata["env_spec"]).get("id") if "env_spec" in metadata else None
        return name[:200] if isinstance(name, str) else None
    return None


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    with h5py.File(path, "w", track_order=True) as file:
        for index, episode in enumerate(episodes):
            group = file.create_group(f"episode_{index}")
            group.attrs["id"] = index
            if episode.seed is not None:
                group.attrs["seed"] = episode.seed
            group.attrs["total_steps"] = len(episode.rewards)
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                values = getattr(episode, name)
                group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))


def _space_text(box: Box) -> str:
    space = {"type": "Box", "dtype": str(box.low.dtype), "shape": list(box.low.shape), "low": box.low.tolist(), "high": box.high.tolist()}
    return json.dumps(space)


def _swap(partial: Path, folder: Path) -> None:
    """Put the finished folder in place; an old one is moved aside first and deleted last."""
    old = folder.with_name(f"{partial.name}.old")
    if folder.exists():
        folder.replace(old)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes, at most {_MAX_METADATA_BYTES} are read")
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected the metadata of a Minari data set") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path} holds {type(metadata).__name__}, expected the metadata of a Minari data set")
    unknown = sorted(set(metadata) - _KEYS)
    if unknown:
        raise InputError(f"{path} has the entry {unknown[0]!r}, expected only {', '.join(sorted(_KEYS))}")
    if metadata.get("data_format") != "hdf5":
        raise InputError(f"{path} has data_format {metadata.get('data_format')!r}, expected 'hdf5'")
    for key, limit in (("total_episodes", _MAX_EPISODES), ("total_steps", _MAX_NUMBERS)):
        value = metadata.get(key)
        if type(value) is not int or not 1 <= value <= limit:
            raise InputError(f"{path} has {key} {value!r}, expected a whole number from 1 to {limit}")
    return metadata


def _box(metadata: Mapping[str, Any], key: str) -> Box:
    """A stored space; a data set without one is refused, since the only way to get it is to build its environment."""
    text = metadata.get(key)
    if not isinstance(text, str):
        raise InputError(f"the metadata have no {key}; expected it there, since environments are never built from a file")
    try:
        space = json.loads(text)
        if space["type"] != "Box" or space["dtype"] not in ("float32", "float64") or len(space["shape"]) != 1:
            raise InputError(f"the {key} is {text[:100]!r}, expected a Box of float32 or float64 vectors")
        low, high = (np.array(space[end], dtype=space["dtype"]) for end in ("low", "high"))
        whole = low.shape == high.shape == tuple(space["shape"]) and low.size >= 1 and bool((low <= high).all())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the {key} is {text[:100]!r}, expected a Box of vectors in JSON") from error
    if not whole:
        raise InputError(f"the {key} is {text[:100]!r}, expected ends of its shape with low <= high")
    return Box(low, high)


def _read_episodes(file: h5py.File, metadata: Mapping[str, Any], observation_box: Box, action_box: Box) -> Iterator[Episode]:
    count, budget = metadata["total_episodes"], _MAX_NUMBERS
    if len(file) != count:
        raise InputError(f"it holds {len(file)} episodes, its metadata say {count}")
    for index in range(count):
        where = f"episode {index}"
        group = _member(file, f"episode_{index}", h5py.Group, where)
        rewards = _array(group, "rewards", (None,), where, budget)
        steps = len(rewards)
        if steps == 0:
            raise InputError(f"{where} has no steps")
        episode = Episode(
            observations=_array(group, "observations", (steps + 1, observation_box.low.size), where, budget),
            actions=_array(group, "actions", (steps, action_box.low.size), where, budget),
            rewards=rewards,
            terminations=_array(group, "terminations", (steps,), where, budget).astype(bool),
            truncations=_array(group, "truncations", (steps,), where, budget).astype(bool),
            seed=_seed(group),
        )
        budget -= episode.observations.size + episode.actions.size + 3 * steps
        yield episode


def _member(group: h5py.Group, name: str, kind: type, where: str) -> Any:
    """A group or data set that lies in this very file."""
    link = group.get(name, getlink=True)
    member = group[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(member, kind):
        raise InputError(f"{where} has no {name} of its own, expected a {kind.__name__.lower()} in the same file")
    return member


def _array(group: h5py.Group, name: str, shape: tuple[int | None, ...], where: str, budget: int) -> Values:
    stored = _member(group, name, h5py.Dataset, where)
    if stored.external or stored.is_virtual:
        raise InputError(f"{where} keeps its {name} in another file, expected them in this one")
    fits = len(stored.shape) == len(shape) and all(want in (None, got) for want, got in zip(shape, stored.shape, strict=True))
    if not fits:
        wanted = " x ".join("T" if size is None else str(size) for size in shape)
        raise InputError(f"{where} has {name} of shape {stored.shape}, expected {wanted}")
    if stored.dtype.kind not in "fiub" or stored.size > budget:
        raise InputError(f"{where} has {stored.size} {name} of type {stored.dtype}, expected at most {budget} numbers")
    values: Values = stored[()]
    if not np.isfinite(values).all():
        row = np.argwhere(~np.isfinite(values))[0]
        raise InputError(f"{where} has {name} {values[tuple(row)]} at step {row[0]}, expected finite numbers")
    return values


def _seed(group: h5py.Group) -> int | None:
    seed = group.attrs.get("seed")
    return int(seed) if isinstance(seed, int | np.integer) else None


def box_from_space(space: gymnasium.spaces.Box) -> Box:
    """The bounds of a Gymnasium box."""
    return Box(space.low, space.high)
