"""Local Lipschitz bounds measured: boxes around random states, one processor thread, a fixed time for each box.

    python examples/benchmarks/local_lipschitz.py --seconds 5 --out local.jsonl

Networks are He-initialised, with a state drawn from the standard normal distribution as the middle of the box, and one policy is
fitted to a saturated linear law, around its equilibrium. ``slopes_alone`` is branch and bound on interval Jacobians, without
multipliers, for the same processor time less that of the proof. A search may overrun its seconds by one factorisation.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.verifiers.local_lipschitz import read_problem
from lipctrl.certificates.lipschitz import Budget, certify_local_lipschitz
from lipctrl.certificates.lipschitz.local_search import Search

SHAPES = [
    *[(3, 64, 64, 1), (3, 256, 256, 1), (3, 256, 256, 256, 1), (17, 64, 64, 6), (17, 256, 256, 6), (17, 256, 256, 256, 6)],
    *[(27, 64, 64, 8), (27, 256, 256, 8), (27, 256, 256, 256, 8)],
]
SIZES = {"-".join(map(str, shape)): shape for shape in SHAPES}
ACTIVATIONS = {"relu": "relu", "maxmin": "group_sort", "tanh": "tanh"}
RADII = (0.01, 0.1, 1.0)


def he_network(sizes: tuple[int, ...], activation: str, seed: int) -> Graph:
    """Gaussian weights of variance 2 / n_in in float32, biases of deviation 0.1."""
    generator = np.random.default_rng(seed)
    nodes, tensors = [Node("input", (), {"name": "observation", "size": sizes[0]})], {}
    for k, (before, after) in enumerate(pairwise(sizes)):
        tensors[f"w{k}"] = (generator.standard_normal((after, before)) * np.sqrt(2 / before)).astype(np.float32)
        tensors[f"b{k}"] = (0.1 * generator.standard_normal(after)).astype(np.float32)
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": f"b{k}"}))
        if k < len(sizes) - 2:
            nodes.append(Node(activation, (len(nodes) - 1,), {"group_size": 2} if activation == "group_sort" else {}))
    return Graph(tuple(nodes), {"action": len(nodes) - 1}, tensors)


def trained_policy() -> tuple[Graph, np.ndarray, np.ndarray]:
    """A policy fitted to a saturated linear law on a pendulum's box; its graph, equilibrium and spread of the states."""
    from lipctrl.nn import lipschitz_policy

    generator = torch.Generator().manual_seed(0)
    policy = lipschitz_policy(2, [-6], [6], 25.0, hidden=(32, 32), generator=generator)
    states = 3 * torch.randn(512, 2, generator=generator)
    actions = torch.clip(-15 * states[:, :1] - 5 * states[:, 1:], -6, 6)
    optimiser = torch.optim.Adam(policy.parameters(), 1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        with policy.materialised():
            (policy(states) - actions).square().mean().backward()
        optimiser.step()
    return policy.graph(), np.zeros(2), np.full(2, 3.0)


def slopes_alone(graph: Graph, claim: dict, seconds: float) -> float:
    """The bound of branch and bound by interval slopes, neither to first order nor with multipliers, after the time given."""
    problem, _ = read_problem(graph, {**claim, "bound": "0"})
    search = Search(replace(problem, curved=False), False)
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        search.plain()
    return search.upper


def measure(name: str, graph: Graph, centre: np.ndarray, spread: np.ndarray, radius: float, norm: str, seconds: float) -> dict:
    begun, used = time.perf_counter(), time.process_time()
    low, high = ([Fraction(float(v)) for v in centre + sign * radius * spread] for sign in (-1, 1))
    found = certify_local_lipschitz(graph, norm, low=low, high=high, budget=Budget(seconds))
    wall, processor = time.perf_counter() - begun, time.process_time() - used
    used = time.process_time()
    level = found.check().level
    checking = time.process_time() - used
    lower = 0.0 if found.lower is None else found.lower.value
    return {
        "network": name,
        "norm": norm,
        "radius": radius,
        "lower": lower,
        "upper": found.upper.value,
        "ratio": found.upper.value / lower if lower else None,
        "slopes_alone": slopes_alone(graph, dict(found.upper.claim), min(seconds, processor - checking)),
        "leaves": sum(not isinstance(entry, list) for entry in found.upper.evidence["tree"]),
        "level": level,
        "seconds": round(wall, 2),
        "processor_seconds": round(processor, 2),
        "check_seconds": round(checking, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--norms", nargs="+", default=["l2"])
    parser.add_argument("--radii", nargs="+", type=float, default=list(RADII))
    parser.add_argument("--only", default="", help="networks whose names hold this text")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = []
    for name, sizes in SIZES.items():
        for label, activation in ACTIVATIONS.items():
            centre = np.random.default_rng(1).standard_normal(sizes[0])
            cases.append((f"{name} {label}", he_network(sizes, activation, 0), centre, np.ones(sizes[0])))
    cases.append(("2-32-32-1 trained", *trained_policy()))
    for norm in options.norms:
        for name, graph, centre, spread in [case for case in cases if options.only in case[0]]:
            for radius in options.radii:
                row = measure(name, graph, centre, spread, radius, norm, options.seconds)
                print(json.dumps(row), flush=True)
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
