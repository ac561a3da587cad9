"""Files of certificates and policies as tests write them: right ones, with one thing changed, and such as no writer makes."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy

from lipctrl.certificates.checker.bundle import WEIGHTS
from lipctrl.certificates.checker.graph import Graph, graph_to_json

NAMES = {"observation": [["x", "1"]], "action": [["u", "1"]]}  #: of a policy with one input and one output

Change = Callable[[Any], Any]  #: of what a JSON file holds; gives it back


def put(path: str, value: Any) -> Change:
    """The change that puts ``value`` at a dotted path."""

    def change(data: Any) -> Any:
        place, last = _place(data, path)
        place[last] = value
        return data

    return change


def drop(path: str) -> Change:
    """The change that deletes what is at a dotted path."""

    def change(data: Any) -> Any:
        place, last = _place(data, path)
        del place[last]
        return data

    return change


def _place(data: Any, path: str) -> tuple[Any, Any]:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        data = data[step]
    return data, last


def safetensors_file(header: Any, body: bytes = b"") -> bytes:
    """A weights file with this header, given as bytes or as what its JSON holds."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    """A tensor in the header of a weights file."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def policy_folder(folder: Path, policy: Graph, names: Mapping[str, Any] = NAMES, change: Change = lambda data: data) -> Path:
    """A policy folder with these names and units of its ends; dt and the provenance too may be among ``names``."""
    data = {"format": "lipctrl-policy", "version": 1, "graph": graph_to_json(policy), "dt": "1/20", "provenance": {"seconds": 1.5}, **names}
    folder.mkdir()
    (folder / "policy.json").write_text(json.dumps(change(data)))
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(dict(policy.tensors)))
    return folder


def zipped(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A zip with these members in order."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path
