"""What every reader returns, and the one function that reads any of the files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy

Units = Literal["physical", "normalized", "unstated"]


@dataclass(frozen=True)
class Network:
    """A network in canonical form.

    ``graph`` maps ``observation`` to ``action``; ``source`` says what was read. ``units`` is ``physical`` where observations
    and actions are those of sensors and actuators, ``normalized`` where a normaliser in front of the network is unknown, and
    ``unstated`` where the file does not say what its numbers mean. ``notes`` are sentences on what was assumed.
    """

    graph: Graph
    source: str
    units: Units
    notes: tuple[str, ...] = ()


def read_network(path: str | os.PathLike[str], **flags: Any) -> Network:
    """Read a policy folder, an ``.onnx`` file or a Stable-Baselines3 ``.zip``.

    ``flags`` are the keyword arguments of ``read_sb3``, and belong to zips alone. Raises InputError, in one sentence, for
    whatever cannot be read; nothing in the file is executed.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}; expected a policy folder, an .onnx file or a Stable-Baselines3 .zip")
    given = {name: value for name, value in flags.items() if value is not None}
    if path.suffix.lower() == ".zip" and path.is_file():
        from lipctrl.readers.sb3 import read_sb3

        return read_sb3(path, **given)
    if given:
        raise InputError(f"{', '.join(sorted(given))} can be given for a Stable-Baselines3 .zip only, {path} is none")
    if path.is_dir():
        return Network(Policy.load(path).graph, "lipctrl policy folder", "physical")
    if path.suffix.lower() == ".onnx":
        from lipctrl.readers.onnx import read_onnx

        return read_onnx(path)
    raise InputError(f"{path} is neither a policy folder nor an .onnx file nor a Stable-Baselines3 .zip")


def file_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file. Raises InputError where it cannot be read or holds more than ``limit`` bytes."""
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        if path.stat().st_size > limit:
            raise InputError(f"{path} holds {path.stat().st_size} bytes, the largest file that is read has {limit}")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise InputError(f"{path} holds more than {limit} bytes, the largest file that is read has {limit}")
    return data
