"""Lipschitz bounds of random networks, with proof, beside other programs on the same machine in the same run.

    python examples/benchmarks/lipschitz_bounds.py cells --out cells.jsonl
    python examples/benchmarks/lipschitz_bounds.py policies --run-peers --peers FOLDER --limit 120 --out policies.jsonl
    python examples/benchmarks/lipschitz_bounds.py verification

``cells``: the networks of the ECLipsE experiments, 4 inputs, 1 output, seed 7 width + 13 layers, spectral norms uniform in
[0.4, 1.8]. ``policies``: He-initialised and trained networks of control sizes. ``verification``: the checker's proof at 600
variables beside one Cholesky factorisation (``numpy.linalg.cholesky``) of the same matrix, the least of many repetitions.

Peers run in processes of their own with a limit of CPU time, and not on a network after one that is no larger was not finished;
every network has a row for every peer that was asked for. A study goes on where it was: rows that are in ``--out`` are not made
again. cvxpy solves the same program with Clarabel and SCS; ``--peers`` is a folder with ``eclipse_nn`` in it (``pip install
--no-deps --target FOLDER eclipse-nn``). What a solver claims is not a bound; where it hands over multipliers, *repaired* is the
smallest bound that the checker accepts for them, up to a common factor. Times are CPU seconds, one thread: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.certificates.checker.bundle import floats
from lipctrl.certificates.checker.definite import exact, is_semidefinite
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.core.errors import LipctrlError

Weights = list[np.ndarray]
STOPPED = "not finished in"
PEERS = ("eclipse-nn fast", "eclipse-nn", "cvxpy Clarabel", "cvxpy SCS")


def published(layers: int, width: int) -> Weights:
    """One network of the ECLipsE experiments with this number of weight matrices."""
    state = np.random.RandomState(7 * width + 13 * layers)
    weights = []
    for n, m in pairwise([4, *[width] * (layers - 1), 1]):
        norm, weight = state.uniform(0.4, 1.8), state.randn(m, n)
        weights.append(weight * norm / np.linalg.norm(weight, 2))
    return weights


def he(*sizes: int) -> Weights:
    """He-initialised weights, seed 0."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal((m, n)) * math.sqrt(2 / n) for n, m in pairwise(sizes)]


def trained(*sizes: int) -> Weights:
    """Weights after 300 steps of Adam towards a smooth function, in float32."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.tensor(weight, dtype=torch.float32).requires_grad_() for weight in he(*sizes)]
    biases = [torch.zeros(m, requires_grad=True) for m in sizes[1:]]
    x, mix = torch.randn(4096, sizes[0], generator=generator), torch.randn(sizes[0], sizes[-1], generator=generator)
    y = torch.tanh(x @ mix) + 0.3 * torch.sin(3 * x[:, :1])
    optimiser = torch.optim.Adam([*weights, *biases], 1e-3)
    for _ in range(300):
        batch = torch.randint(0, 4096, (256,), generator=generator)
        z = x[batch]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            z = torch.relu(z @ weight.T + bias)
        loss = (z @ weights[-1].T + biases[-1] - y[batch]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return [weight.detach().double().numpy() for weight in weights]


def relu_network(weights: Weights) -> Graph:
    """Affine maps without biases and ReLU between them: no bound here depends on biases."""
    nodes = [Node("input", (), {"name": "x", "size": weights[0].shape[1]})]
    for k in range(len(weights)):
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
        if k < len(weights) - 1:
            nodes.append(Node("relu", (len(nodes) - 1,)))
    return Graph(tuple(nodes), {"y": len(nodes) - 1}, {f"w{k}": weight for k, weight in enumerate(weights)})


# --- this library ---------------------------------------------------------------------------------------------------------


def measure(name: str, weights: Weights) -> dict[str, Any]:
    """Search, then the checker's verdict on the certificate's bytes."""
    graph, product = relu_network(weights), math.prod(float(np.linalg.norm(weight, 2)) for weight in weights)
    started, wall = time.process_time(), time.perf_counter()
    found = certify_lipschitz(graph, splits=0, witness=False, tolerance=1e-5)
    searched, wall = time.process_time() - started, time.perf_counter() - wall
    started = time.process_time()
    level = found.check().level
    checked = time.process_time() - started
    return {
        "network": name,
        "variables": sum(weight.shape[1] for weight in weights),
        "bound": found.upper.value,
        "level": level,
        "method": found.upper.method,
        "gap": found.upper.gap,
        "search_seconds": round(searched, 3),
        "search_wall_seconds": round(wall, 3),
        "check_seconds": round(checked, 4),
        "norm_product": product / found.upper.value,
    }


# --- peers ----------------------------------------------------------------------------------------------------------------


def run_peer(peer: str, weights: Weights, limit: float, folder: Path | None) -> dict[str, Any]:
    """What a peer answers within ``limit`` seconds of CPU time, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "weights.npz"
        np.savez(file, *weights)
        path = os.pathsep.join([str(folder or ""), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, __file__, "peer", "--peer", peer, "--limit", str(limit), "--weights", str(file)]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == -signal.SIGXCPU:
        return {"peer": peer, "reason": f"{STOPPED} {limit:g} s of CPU time"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"peer": peer, "reason": "not run, because: " + (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]}
    answer: dict[str, Any] = {"peer": peer, **json.loads(lines[-1])}
    return answer


def no_larger(first: Weights, second: Weights) -> bool:
    """Whether the first network has neither more layers, nor wider ones, nor more variables."""
    sizes = [[len(w), max(max(m.shape) for m in w), sum(m.shape[1] for m in w)] for w in (first, second)]
    return all(a <= b for a, b in zip(*sizes, strict=True))


def study(names: list[str], networks: dict[str, Weights], options: argparse.Namespace, show: Callable[[dict[str, Any]], None]) -> None:
    """A row for each network, and one for each network and peer."""
    earlier = options.out.read_text(encoding="utf-8").splitlines() if options.out is not None and options.out.exists() else []
    rows = {(row["network"], row.get("peer")): row for row in map(json.loads, earlier)}
    for name in names:
        weights = networks[name]
        if (name, None) not in rows:
            show(measure(name, weights))
        for peer in PEERS if options.run_peers == [] else options.run_peers or []:
            if (name, peer) in rows:
                continue
            reasons = {other: rows.get((other, peer), {}).get("reason", "") for other in networks}
            stopped = next((o for o, why in reasons.items() if why.startswith(STOPPED) and no_larger(networks[o], weights)), None)
            if stopped is None:
                row = repaired(weights, run_peer(peer, weights, options.limit, options.peers))
            else:
                row = {"peer": peer, "reason": f"not run, because {stopped}, which is no larger, was {reasons[stopped]}"}
            rows[name, peer] = {"network": name, **row}
            show(rows[name, peer])


def peer_main(peer: str, weights: Weights, limit: float) -> dict[str, Any]:
    """Runs in the peer's process."""
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
    solve: Callable[[], dict[str, Any]]
    if peer.startswith("eclipse-nn"):
        import torch
        from eclipse_nn.LipConstEstimator import LipConstEstimator

        estimator = LipConstEstimator(weights=[torch.tensor(weight, dtype=torch.float64) for weight in weights])
        method = "ECLipsE_Fast" if peer.endswith("fast") else "ECLipsE"

        def solve() -> dict[str, Any]:
            return {"claimed": float(estimator.estimate(method))}

    else:

        def solve() -> dict[str, Any]:
            return solve_with_cvxpy(weights, peer.split()[1].upper())

    started, wall = time.process_time(), time.perf_counter()
    answer = solve()
    return {**answer, "seconds": round(time.process_time() - started, 3), "wall_seconds": round(time.perf_counter() - wall, 3)}


def solve_with_cvxpy(weights: Weights, solver: str) -> dict[str, Any]:
    """min rho^2 with the same matrix positive semidefinite, one multiplier for each ReLU."""
    import cvxpy

    square, sizes = cvxpy.Variable(), [weight.shape[0] for weight in weights[:-1]]
    multipliers = [cvxpy.Variable(size, nonneg=True) for size in sizes]
    blocks = [[np.zeros((m, n)) for n in (weights[0].shape[1], *sizes)] for m in (weights[0].shape[1], *sizes)]
    blocks[0][0] = square * np.eye(weights[0].shape[1])
    for k, (weight, values) in enumerate(zip(weights, multipliers, strict=False), start=1):
        blocks[k][k] = cvxpy.diag(values)
        blocks[k][k - 1] = -0.5 * cvxpy.diag(values) @ weight
        blocks[k - 1][k] = blocks[k][k - 1].T
    blocks[-1][-1] = blocks[-1][-1] - weights[-1].T @ weights[-1]
    problem = cvxpy.Problem(cvxpy.Minimize(square), [cvxpy.bmat(blocks) >> 0])
    problem.solve(solver=solver, **({"eps": 1e-6, "max_iters": 100_000} if solver == "SCS" else {}))
    values = [np.maximum(v.value, 0).tolist() for v in multipliers]
    return {"claimed": math.sqrt(max(float(square.value), 0.0)), "status": problem.status, "multipliers": values}


def repaired(weights: Weights, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with its multipliers replaced by the bound that the checker accepts for them."""
    multipliers = answer.pop("multipliers", None)
    if multipliers is not None:
        try:
            known = [np.array(values) for values in multipliers]
            found = certify_lipschitz(relu_network(weights), multipliers=known, splits=0, witness=False)
            answer["repaired"] = found.upper.value if found.upper.method == "multipliers" else None
        except LipctrlError:
            answer["repaired"] = None
    return answer


# --- verification ---------------------------------------------------------------------------------------------------------


def least_seconds(function: Callable[[], object], repetitions: int) -> float:
    seconds = []
    for _ in range(repetitions):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure_verification(repetitions: int = 40) -> dict[str, Any]:
    """17-194-194-195-6 has 600 variables: the proof from its matrix with counted roundings, and the whole verdict."""
    weights = he(17, 194, 194, 195, 6)
    found = certify_lipschitz(relu_network(weights), splits=0, witness=False, tolerance=1e-3)
    multipliers = [floats(values, len(values), "multipliers") for values in found.upper.evidence["multipliers"]]
    form = assemble(weights, multipliers, found.upper.value)
    matrix = np.tril(form.value) + np.tril(form.value, -1).T
    if not is_semidefinite(form):
        raise SystemExit("the matrix was not proved positive semidefinite")
    cholesky = least_seconds(lambda: np.linalg.cholesky(matrix), repetitions)
    proof = least_seconds(lambda: is_semidefinite(assemble(weights, multipliers, found.upper.value)), repetitions)
    verdict = least_seconds(found.check, 5)
    return {
        "variables": len(matrix),
        "cholesky_ms": round(1e3 * cholesky, 2),
        "assembly_and_proof_ms": round(1e3 * proof, 2),
        "multiple": round(proof / cholesky, 2),
        "verdict_from_bytes_ms": round(1e3 * verdict, 1),
    }


def assemble(weights: Weights, multipliers: list[np.ndarray], rho: float) -> Any:
    """The checker's matrix with counted roundings, for a chain of ReLU layers."""
    from lipctrl.certificates.checker.increments import multiplier_form, scaled_output, unroll
    from lipctrl.certificates.checker.network import read_network

    network = read_network(relu_network(weights))
    unrolled = unroll(network, exact)
    bound = exact(np.full(network.inputs, rho))
    return multiplier_form(unrolled, bound * bound, scaled_output(unrolled, np.ones(network.outputs)), multipliers)


# --- command --------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cells", "policies", "verification", "peer"])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 5, 10, 20, 30])
    parser.add_argument("--widths", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--names", nargs="*", default=[], help="only these networks, such as 17-64-64-6")
    peers = f"all, or these of {', '.join(PEERS)}"
    parser.add_argument("--run-peers", nargs="*", default=None, choices=PEERS, metavar="PEER", help=peers)
    parser.add_argument("--peers", type=Path, default=None, help="folder with eclipse_nn")
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds for each peer and network")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    def show(row: dict[str, Any]) -> None:
        text = json.dumps(row)
        print(text, flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    if options.what == "peer":
        with np.load(options.weights) as file:
            show(peer_main(options.peer, [file[f"arr_{k}"] for k in range(len(file.files))], options.limit))
    elif options.what == "verification":
        show(measure_verification())
    else:
        if options.what == "cells":
            networks = {f"{layers}x{width}": published(layers, width) for layers in options.layers for width in options.widths}
        else:
            sizes = ((3, 64, 64, 1), (17, 64, 64, 6), (17, 256, 256, 6), (27, 256, 256, 256, 8))
            networks = {"-".join(map(str, shape)): he(*shape) for shape in sizes}
            networks |= {"-".join(map(str, shape)) + " trained": trained(*shape) for shape in sizes[:3]}
        study(options.names or [*networks], networks, options, show)


if __name__ == "__main__":
    main()
