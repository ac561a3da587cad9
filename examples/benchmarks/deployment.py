"""What an exported Lipschitz policy costs: beside plain layers with the same weights, normaliser and clip, and beside eager torch.

    python examples/benchmarks/deployment.py

CPU time of one call, one thread, the least of fifteen rounds in which all candidates take turns. *torch*: the exported graph
compiled with ``compile_torch`` against ``nn.Sequential`` between the same division and clamp. *NumPy*: ``Policy.predict``
against the same lines written by hand. *eager*: ``Policy.predict`` against torch called from NumPy data, as an agent would.
Outputs are compared bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lipctrl.core.torch_evaluation import compile_torch
from lipctrl.nn import lipschitz_policy

SIZES = ((3, 64, 64, 1), (17, 256, 256, 6))
ROUNDS = 15


def cpu_microseconds(candidates: list[Callable[[], object]], calls: int) -> list[float]:
    """The least CPU time of one call, for each candidate."""
    least = [float("inf")] * len(candidates)
    for _ in range(ROUNDS):
        for k, candidate in enumerate(candidates):
            started = time.process_time()
            for _ in range(calls):
                candidate()
            least[k] = min(least[k], (time.process_time() - started) / calls * 1e6)
    return least


def measure(sizes: tuple[int, ...], batch: int | None) -> str:
    """One row of the table; ``batch`` ``None`` is a single observation."""
    n_in, *hidden, n_out = sizes
    generator = torch.Generator().manual_seed(0)
    scales = {"observation_scale": ["8"] * n_in}
    trained = lipschitz_policy(n_in, [-2] * n_out, [2] * n_out, 10.0, hidden=hidden, generator=generator, **scales)
    policy = trained.export()
    weights = [(policy.graph.tensors[f"weight_{k}"], policy.graph.tensors[f"bias_{k}"]) for k in range(len(sizes) - 1)]
    shape = (n_in,) if batch is None else (batch, n_in)
    observation = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    layers: list[nn.Module] = []
    for weight, bias in weights:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        layers += [linear, nn.ReLU()]
    plain, scale = nn.Sequential(*layers[:-1]), torch.full((n_in,), 8.0)
    low, high = torch.full((n_out,), -2.0), torch.full((n_out,), 2.0)
    tensor, compiled = torch.from_numpy(observation), compile_torch(policy.graph, torch.float32)
    transposed = [(np.ascontiguousarray(weight.T), bias) for weight, bias in weights]
    scale_n, low_n, high_n, zero = scale.numpy(), low.numpy(), high.numpy(), np.float32(0)

    @torch.no_grad()
    def torch_plain() -> torch.Tensor:
        return torch.clamp(plain(tensor / scale), low, high)

    @torch.no_grad()
    def torch_exported() -> torch.Tensor:
        return compiled(observation=tensor)["action"]

    @torch.no_grad()
    def eager() -> np.ndarray:
        return torch.clamp(plain(torch.from_numpy(observation) / scale), low, high).numpy()

    def numpy_plain() -> np.ndarray:
        x = observation / scale_n
        for weight, bias in transposed[:-1]:
            x = np.maximum(x @ weight + bias, zero)
        weight, bias = transposed[-1]
        return np.minimum(np.maximum(x @ weight + bias, low_n), high_n)

    def predict() -> np.ndarray:
        return policy.predict(observation)[0]

    equal = torch.equal(torch_plain(), torch_exported()) and np.array_equal(numpy_plain(), predict())
    calls = 1000 // max(1, (batch or 1) * hidden[0] // 2000)
    times = cpu_microseconds([torch_plain, torch_exported, numpy_plain, predict, eager], max(10, calls))
    name = "-".join(map(str, sizes))
    ratios = times[1] / times[0], times[3] / times[2], times[4] / times[3]
    cells = [name, str(batch or 1), "yes" if equal else "NO", *(f"{t:.1f}" for t in times), *(f"{r:.2f}" for r in ratios)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    heads = ["net", "batch", "equal bits", "torch plain", "torch exported", "NumPy plain", "predict", "eager"]
    heads += ["torch ratio", "NumPy ratio", "eager / predict"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for sizes in SIZES:
        for batch in (None, 256):
            print(measure(sizes, batch), flush=True)


if __name__ == "__main__":
    main()
