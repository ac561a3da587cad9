"""Proved region of attraction of quickstart policies, beside what simulation and a textbook level set say.

    python examples/benchmarks/region_of_attraction.py --seeds 0 1 2 --out runs/roa

For each seed: run `lipctrl quickstart`, read the certificate back, let the checker judge it again (timed), count the box cells
whose trajectories arrive (200 x 200 grid, numerical), and check one million random one-step transitions from inside the proved
set: none may leave it or fail to decrease. The last row is the saturated LQR with the level set of its own Riccati matrix on a
grid, which proves nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import solve_discrete_are

from lipctrl.certificates.checker.bundle import read_certificate
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verifiers.closed_loop_lyapunov_bab import read
from lipctrl.certificates.stability.simulation import step_function
from lipctrl.core.rationals import floats
from lipctrl.envs import make_plant
from lipctrl.quickstart import quickstart


def one_step_failures(path: Path, count: int = 1_000_000, seed: int = 0) -> int:
    """How many of ``count`` random states of the proved set step out of it or decrease too little (float64 simulation)."""
    certificate = read_certificate(path)
    loop, claim, _ = read(certificate)
    step, random, failures = step_function(loop.plant, loop.policy), np.random.default_rng(seed), 0
    while count > 0:
        y = random.uniform(claim.low, claim.high, (400_000, len(claim.low)))
        level = (y @ claim.P * y).sum(1)
        y, level = y[level <= claim.rho][:count], level[level <= claim.rho][:count]
        count -= len(y)
        after = step(y)
        inside = ((after >= claim.low) & (after <= claim.high)).all(1)
        decreases = (after @ claim.P * after).sum(1) <= (1 - float(claim.kappa)) * level + 1e-12
        failures += int((~(inside & decreases)).sum())
    return failures


def riccati_level_area(size: int = 400) -> float:
    """Area of the largest decreasing level set of the Riccati matrix under the saturated LQR, on a grid."""
    plant = make_plant("pendulum")
    A, B = plant.linearise()
    Q, R = np.diag([1.0, 3.0]), np.eye(1)
    P = solve_discrete_are(A, B, Q, R)
    K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
    low, high = floats(plant.state_low), floats(plant.state_high)
    x = np.stack(np.meshgrid(*(np.linspace(a, b, size) for a, b in zip(low, high, strict=True))), -1).reshape(-1, 2)
    after = plant.step(x, plant.clip_action(-x @ K.T))
    level, level_after = ((v @ P * v).sum(1) for v in (x, after))
    failing = ~(((after >= low) & (after <= high)).all(1) & (level_after <= (1 - 1e-3) * level))
    return float((level < level[failing & (level > 1e-9)].min()).mean() * np.prod(high - low))


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """One row of the table."""
    started = time.perf_counter()
    result = quickstart(folder, seed=seed)
    wall = time.perf_counter() - started
    path = folder / "certificates" / "stability-real"
    started = time.perf_counter()
    verdict = check(path)
    checking = time.perf_counter() - started
    return {
        "seed": seed,
        "levels": [finding.level for finding in result.findings],
        "lipschitz": result.results["lipschitz"]["upper"],
        "area": verdict.numbers.get("volume"),
        "simulated": result.results["region"]["simulated_in_box"],
        "ball": result.findings[2].numbers.get("ball"),
        "failures": one_step_failures(path),
        "check_seconds": checking,
        "seconds": wall,
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/region_of_attraction"))
    options = parser.parse_args()
    rows = [measure(options.out / str(seed), seed) for seed in options.seeds]
    print("| seed | levels | Lipschitz bound | proved area | area in simulation | float32 ball | failures in 1e6 steps | check s | run s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['seed']} | {', '.join(r['levels'])} | {r['lipschitz']:.4f} | {r['area']:.1f} | {r['simulated']:.1f} | "
            f"{r['ball']:.2g} | {r['failures']} | {r['check_seconds']:.2f} | {r['seconds']:.1f} |"
        )
    textbook = riccati_level_area()
    print(f"| LQR, Riccati level set on a grid | numerical | | {textbook:.1f} | | | | | |")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.json").write_text(json.dumps({"rows": rows, "riccati": textbook}, indent=1))


if __name__ == "__main__":
    main()
