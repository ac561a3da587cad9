"""Policies, plants and folders for tests of the command line and of reports."""

from __future__ import annotations

import json
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.cli import main
from lipctrl.core.policy import Policy

PENDULUM = (("angle", "rad"), ("angular velocity", "rad/s"))
GOOD_GAIN = (-1.2, -0.6)
PLANT_FILE = """
from fractions import Fraction
from lipctrl.envs import Plant

def plant() -> Plant:
    return Plant.from_equations(
        "cart", lambda x, u: [x[1], u[0]],
        state={"position": ("m", 2), "velocity": ("m/s", 2)}, action={"force": ("N", 1)}, dt=Fraction(1, 10),
    )
"""


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def linear_graph(gain: Any, limit: Any = 6) -> Graph:
    """u = clip(gain x) with float32 weights, recentred by being zero at zero."""
    weight = np.array([gain], np.float32)
    nodes = (
        Node("input", (), {"name": "observation", "size": len(gain)}),
        Node("affine", (0,), {"weight": "weight", "bias": None}),
        Node("clip", (1,), {"low": (-Fraction(limit),), "high": (Fraction(limit),)}),
    )
    return Graph(nodes, {"action": 2}, {"weight": weight})


def linear_policy(folder: Path, gain: Any = GOOD_GAIN, observation: Any = PENDULUM) -> Path:
    """The folder of a linear policy for the pendulum."""
    return Policy(linear_graph(gain), observation, (("torque", "N m"),), Fraction(1, 20)).save(folder)


def lipctrl_json(capsys: Any, *words: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON object of a command run with ``--json``."""
    code = main([*map(str, words), "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)
