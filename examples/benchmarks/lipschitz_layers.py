"""Families of Lipschitz layers measured: cost of a training step, tightness on a square wave, gain at the start.

    python examples/benchmarks/lipschitz_layers.py step          # beside torchlip and orthogonium where they are installed
    python examples/benchmarks/lipschitz_layers.py gain
    python examples/benchmarks/lipschitz_layers.py wave --layers ldlt sandwich --epochs 4000 --out wave.jsonl

``step``: CPU time of one optimiser step of 17-256-256-6 at batch 256, one thread, all families in turn in one process, as a
multiple of a plain network; the least and the median over the repetitions. CPU time, because other programs may run beside.
``gain``: mean spectral norm of the Jacobian at Gaussian inputs, claimed bound 1, biases 0, over five seeds.
``wave``: fit a square wave whose jump wants infinite slope under a bound of 10. The slope is that of two points evaluated in
ball arithmetic, a proved lower bound; the upper bound is proved by the checker for the float32 weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lipctrl.certificates.lipschitz.witness import slope_between
from lipctrl.nn import LAYERS, LinearPlusMLP, LipschitzMLP, LipschitzNetwork, LipschitzPolicy, ResidualMLP

FAMILIES = [*LAYERS, "sll", "cpl", "linear_plus"]
GAIN = 10.0  #: the bound of the square wave
PEERS = {"torchlip SpectralLinear": ("deel.torchlip", "SpectralLinear"), "orthogonium OrthoLinear": ("orthogonium.layers", "OrthoLinear")}
RATES = {"ldlt": 0.1}  #: greatest learning rates of the square wave; 0.02 for the others


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(layer: str, sizes: tuple[int, ...], lipschitz: float, activation: str, seed: int) -> LipschitzNetwork:
    n_in, *hidden, n_out = sizes
    if layer == "linear_plus":
        return LinearPlusMLP(n_in, hidden, n_out, lipschitz, activation, generator=generator(seed))
    if layer in ("sll", "cpl"):
        return ResidualMLP(n_in, hidden, n_out, lipschitz, layer, activation, width=hidden[0], generator=generator(seed))
    return LipschitzMLP(n_in, hidden, n_out, lipschitz, layer, activation, generator=generator(seed))


# --- cost of a step -------------------------------------------------------------------------------------------------------


def stepper(layer: str) -> Callable[[], None]:
    sizes = (17, 256, 256, 6)
    x, y = torch.randn(256, 17, generator=generator(0)), torch.randn(256, 6, generator=generator(1))
    net: nn.Module
    if layer == "plain" or layer in PEERS:
        linear = nn.Linear if layer == "plain" else getattr(importlib.import_module(PEERS[layer][0]), PEERS[layer][1])
        net = nn.Sequential(linear(17, 256), nn.ReLU(), linear(256, 256), nn.ReLU(), linear(256, 6))
    else:
        net = network(layer, sizes, 1.0, "relu", 0)
    optimiser = torch.optim.Adam(net.parameters())

    def learn() -> None:
        optimiser.zero_grad()
        (net(x) - y).square().mean().backward()

    def step() -> None:
        if isinstance(net, LipschitzNetwork):
            with net.materialised():
                learn()
        else:
            learn()
        optimiser.step()

    return step


def measure_steps(repetitions: int) -> list[dict[str, object]]:
    steps: dict[str, Callable[[], None]] = {}
    absent: list[dict[str, object]] = []
    for layer in ["plain", *FAMILIES, *PEERS]:
        try:
            steps[layer] = stepper(layer)
        except ImportError as error:
            absent.append({"layer": layer, "not_run_because": str(error)})
    seconds: dict[str, list[float]] = {layer: [] for layer in steps}
    for _ in range(repetitions):
        for layer, step in steps.items():
            started = time.process_time()
            step()
            seconds[layer].append(time.process_time() - started)
    plain = seconds["plain"]
    return [
        {
            "layer": layer,
            "least_ms": round(1e3 * min(values), 2),
            "ratio_of_least": round(min(values) / min(plain), 2),
            "ratio_of_medians": round(statistics.median(values) / statistics.median(plain), 2),
        }
        for layer, values in seconds.items()
    ] + absent


# --- gain at the start ----------------------------------------------------------------------------------------------------


def initial_gain(layer: str, activation: str, depth: int, seeds: int = 5) -> float:
    norms = []
    for seed in range(seeds):
        net = network(layer, (17, *(64,) * depth, 6), 1.0, activation, seed).double()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "bias" in name:
                    parameter.zero_()
        x = torch.randn(20, 17, dtype=torch.float64, generator=generator(seed + 9)).requires_grad_()
        with net.materialised():
            rows = [torch.autograd.grad(net(x)[:, k].sum(), x, retain_graph=True)[0] for k in range(6)]
        norms.append(float(torch.linalg.matrix_norm(torch.stack(rows, dim=1), 2).mean()))
    return statistics.mean(norms)


def measure_gains() -> list[dict[str, object]]:
    pairs = [(layer, "relu") for layer in FAMILIES] + [(layer, "maxmin") for layer in ("cayley", "bjorck", "aol")]
    return [
        {"layer": layer, "activation": name, **{f"depth_{d}": round(initial_gain(layer, name, d), 3) for d in (2, 4, 8)}}
        for layer, name in pairs
    ]


# --- square wave ----------------------------------------------------------------------------------------------------------


def wave(x: Tensor) -> Tensor:
    return ((x <= -1) | ((x > 0) & (x <= 1))).to(x.dtype)


def steepest(policy: LipschitzPolicy) -> float:
    """The slope between two points of a fine grid, proved in ball arithmetic."""
    graph = policy.graph()
    x = torch.linspace(-2, 2, 40_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        rounded = {name: tensor.float().double() for name, tensor in policy.network.tensors().items()}
        rise = policy.network.apply_tensors(x, rounded).diff(dim=0).abs()
    k = int(rise.argmax())
    first, second = (Fraction(float(x[i])) for i in (k, k + 1))
    return slope_between(graph, (first,), (second,), (Fraction(1),), (Fraction(1),))


def fit_wave(layer: str, hidden: tuple[int, ...], activation: str, epochs: int, seed: int = 0) -> dict[str, object]:
    net = network(layer, (1, *hidden, 1), GAIN, activation, seed)
    x = 4 * torch.rand(300, 1, generator=generator(seed)) - 2
    rate, batches = RATES.get(layer, 0.02), 6
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * batches)
    shuffle, started = generator(seed + 1), time.process_time()
    for _ in range(epochs):
        for batch in torch.randperm(300, generator=shuffle).split(50):
            with net.materialised():
                loss = (net(x[batch]) - wave(x[batch])).square().mean()
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            schedule.step()
    seconds = time.process_time() - started
    policy = LipschitzPolicy(net, action_low=[-1000], action_high=[1000])
    with torch.no_grad():
        grid = torch.linspace(-2, 2, 2001)[:, None]
        error = float((net(grid) - wave(grid)).square().mean())
    slope, bound = steepest(policy), policy.lipschitz()
    return {
        "layer": layer,
        "activation": activation,
        "hidden": list(hidden),
        "epochs": epochs,
        "rate": rate,
        "cpu_seconds": round(seconds, 1),
        "test_error": round(error, 5),
        "slope": round(slope, 4),
        "bound": bound,
        "tightness_percent": round(100 * slope / bound, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "gain", "wave"])
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--layers", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def show(rows: list[dict[str, object]]) -> None:
        for row in rows:
            text = json.dumps(row)
            print(text, flush=True)
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    file.write(text + "\n")

    if arguments.what == "step":
        show(measure_steps(arguments.repetitions))
    elif arguments.what == "gain":
        show(measure_gains())
    else:
        for layer in arguments.layers:
            show([fit_wave(layer, tuple(arguments.hidden), arguments.activation, arguments.epochs)])


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
