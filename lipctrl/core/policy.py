"""Deployed policies: a Graph from observation to action, evaluated in float32 with NumPy alone, and their folders."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lipctrl.certificates.checker.bundle import POLICY, WEIGHTS, read_policy_folder
from lipctrl.certificates.checker.graph import Graph, graph_to_json, rational_to_text
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.writing import put_in_place
from lipctrl.core.coordinates import Coordinate, coordinates
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import rational


class Policy:
    """A policy as deployed: what is simulated, saved and certified.

    ``graph`` maps ``observation`` (p) to ``action`` (m), in physical units; ``observation`` and ``action`` name each
    coordinate and its unit; ``dt`` is the sampling time in seconds (``None``: not known); ``provenance`` is free JSON data
    (how it was made). Raises InputError where the graph and the coordinates do not fit.
    """

    def __init__(
        self,
        graph: Graph,
        observation: Mapping[str, str] | Iterable[tuple[str, str]],
        action: Mapping[str, str] | Iterable[tuple[str, str]],
        dt: Fraction | str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.graph = graph
        self.observation: tuple[Coordinate, ...] = coordinates(observation, "observation")
        self.action: tuple[Coordinate, ...] = coordinates(action, "action")
        self.dt = None if dt is None else rational(dt, "dt")
        self.provenance = dict(provenance or {})
        shape = {"observation": len(self.observation)}, {"action": len(self.action)}
        if (graph.input_sizes, graph.output_sizes) != shape:
            raise InputError(f"the policy graph maps {graph.input_sizes} to {graph.output_sizes}, expected {shape[0]} to {shape[1]}")
        self._function = compile_numpy(graph, np.float32)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """float32 action (..., m) for an observation (..., p), which is rounded to float32 first; ``state`` is handed through.

        The policy has no memory and is deterministic. Raises InputError where the observation has another size.
        """
        return self._function(observation=observation)["action"], state

    @property
    def digest(self) -> str:
        """SHA-256 of the graph, weights included: what certificates name."""
        return self.graph.digest()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the policy folder (``policy.json``, ``weights.safetensors``); an earlier policy there is replaced as a whole.

        Returns the folder. Raises InputError where the folder holds other files, or where this policy could not be read back.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or {entry.name for entry in target.iterdir()} - {POLICY, WEIGHTS}):
            raise InputError(f"{target} exists and is no policy folder; give a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            fresh = scratch / "new"
            fresh.mkdir()
            self._write(fresh)
            put_in_place(target, fresh, scratch / "old")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    def _write(self, folder: Path) -> None:
        data = {
            "format": "lipctrl-policy",
            "version": 1,
            "graph": graph_to_json(self.graph),
            "observation": [list(coordinate) for coordinate in self.observation],
            "action": [list(coordinate) for coordinate in self.action],
            "dt": None if self.dt is None else rational_to_text(self.dt),
            "provenance": self.provenance,
        }
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in self.graph.tensors.items()}
        try:
            text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False)
            (folder / POLICY).write_text(text + "\n", encoding="utf-8")
            (folder / WEIGHTS).write_bytes(safetensors.numpy.save(tensors))
            read_policy_folder(folder)
        except (TypeError, ValueError, Rejected) as error:
            raise InputError(f"this policy cannot be saved: {error}") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Policy:
        """Read a policy folder. Raises InputError, saying what is wrong, for anything else; executes nothing."""
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"{path} is not a folder, expected a policy folder with {POLICY} and {WEIGHTS}")
        try:
            graph, data = read_policy_folder(path)
        except Rejected as error:
            raise InputError(f"{path} is not a policy folder: {error}") from error
        if not isinstance(data["provenance"], dict):
            raise InputError(f"{path / POLICY}: provenance is {type(data['provenance']).__name__}, expected a table")
        return cls(graph, data["observation"], data["action"], data["dt"], data["provenance"])

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(c.name for c in group) for group in (self.observation, self.action))
        return f"Policy({inputs} -> {outputs}, {len(self.graph.nodes)} nodes, digest {self.digest[:12]})"
