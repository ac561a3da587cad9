"""Random networks against their own bounds: no upper bound may lie below a lower bound, a floor or any slope found.

    python examples/benchmarks/lipschitz_soundness.py run --count 10000 --out soundness.jsonl
    python examples/benchmarks/lipschitz_soundness.py run --count 10000 --shard 1 --shards 2 --out soundness-1.jsonl
    python examples/benchmarks/lipschitz_soundness.py run --count 10000 --most-layers 2 --activations group_sort relu --out part.jsonl
    python examples/benchmarks/lipschitz_soundness.py run --numbers 9629 4927 --out some.jsonl
    python examples/benchmarks/lipschitz_soundness.py summary soundness*.jsonl

Network ``i`` follows from ``i`` alone, so a run that was stopped goes on where it was. Six of ten have 3 to 20 hidden layers of 16
to 32 units (most of them few and narrow), the others 1 to 3 of 1 to 15 units. Every activation that the network form knows,
residual connections, float32 and float64 weights, biases, one weight scaled by 1e-6 to 1e6, both norms, weighted norms. For each
the search runs, the checker judges the certificate's bytes, and random pairs of points are evaluated in float64 beside the bound.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.core.errors import LipctrlError
from lipctrl.core.numpy_evaluation import compile_numpy

DEEP = 3500  #: of the large networks before this number a third have more than 8 hidden layers, behind it an eighth
PLAIN = ("relu", "relu", "tanh", "sigmoid", "softplus", "abs", "gelu", "silu", "erf", "sin", "cos", "neg")
OTHER = ("leaky_relu", "leaky_relu", "group_sort", "group_sort", "clip", "scaled_relu")


def activation(name: str, index: int, size: int, generator: np.random.Generator) -> list[Node]:
    """The nodes of one activation of node ``index``."""
    if name in PLAIN:
        return [Node(name, (index,))]
    if name == "leaky_relu":
        return [Node(name, (index,), {"slope": Fraction(int(generator.integers(-12, 13)), 10)})]
    if name == "group_sort":
        return [Node(name, (index,), {"group_size": int(generator.choice([2, 2, 3, 5]))})]
    if name == "clip":
        low = tuple(Fraction(int(v), 4) for v in generator.integers(-8, 5, size))
        return [Node(name, (index,), {"low": low, "high": tuple(v + Fraction(3, 2) for v in low)})]
    factors = tuple(Fraction(int(v), 7) for v in generator.integers(1, 15, size) * generator.choice([-1, 1], size))
    return [Node("constant", (), {"values": factors}), Node("mul", (index, index + 1)), Node("relu", (index + 2,))]


def random_network(index: int) -> tuple[Graph, dict[str, Any]]:
    """Network number ``index`` and what it is."""
    generator = np.random.default_rng([2026, index])
    large = generator.random() < 0.6
    power = 3 if index < DEEP else 8
    depth = int(3 + 18 * generator.random() ** power) if large else int(generator.integers(1, 4))
    width = int(16 + 17 * generator.random() ** 4) if large else int(generator.integers(1, 16))  # mostly 16 to 20
    inputs, outputs = (int(v) for v in generator.integers(1, 9, 2))
    residual = depth >= 2 and generator.random() < 0.15
    name = str(generator.choice([*PLAIN, *OTHER]))
    dtype = generator.choice([np.float32, np.float64])
    sizes = [inputs, *[width] * depth, outputs]
    scaled, factor = int(generator.integers(depth + 1)), 10 ** generator.uniform(-6, 6)
    gain = generator.choice([1.0, math.sqrt(2)])
    nodes, tensors = [Node("input", (), {"name": "x", "size": inputs})], {}
    for k, (n, m) in enumerate(pairwise(sizes)):
        weight = generator.standard_normal((m, n)) * gain / math.sqrt(n) * (factor if k == scaled else 1)
        tensors[f"w{k}"], tensors[f"b{k}"] = weight.astype(dtype), generator.standard_normal(m).astype(dtype)
        before = len(nodes) - 1
        nodes.append(Node("affine", (before,), {"weight": f"w{k}", "bias": f"b{k}"}))
        if k < depth:
            nodes += activation(name, len(nodes) - 1, m, generator)
            if residual and k > 0:
                nodes.append(Node("add", (before, len(nodes) - 1)))
    norm = "linf" if generator.random() < 0.2 and depth * width <= 120 else "l2"  # linf: one search for each output
    scales = [None, None]
    if generator.random() < 0.2:
        scales = [[Fraction(int(v), 10) for v in generator.integers(1, 40, size)] for size in (inputs, outputs)]
    about = {"large": large, "depth": depth, "width": width, "residual": residual, "op": name, "norm": norm, "factor": factor}
    return Graph(tuple(nodes), {"y": len(nodes) - 1}, tensors), {**about, "scales": scales}


def steepest(graph: Graph, norm: str, scales: list[Any], seed: int) -> float:
    """The largest slope between random pairs of points, in float64, less what rounding may have added to it."""
    generator = np.random.default_rng([seed, 1])
    ((name, size),) = graph.input_sizes.items()
    (output,) = graph.outputs
    first = generator.standard_normal((200, size)) * 10 ** generator.uniform(-2, 2, (200, 1))
    second = first + generator.standard_normal(first.shape) * 10 ** generator.uniform(-4, 1, (200, 1))
    run = compile_numpy(graph)
    with np.errstate(all="ignore"):
        rise, length = run(**{name: first})[output] - run(**{name: second})[output], first - second
        size_of = np.abs(run(**{name: first})[output]).max(axis=1)
    if scales[0] is not None:
        length, rise = length * np.array(scales[0], dtype=float), rise * np.array(scales[1], dtype=float)
    order = 2 if norm == "l2" else np.inf
    slopes = (np.linalg.norm(rise, order, axis=1) - 1e-9 * size_of) / np.linalg.norm(length, order, axis=1)
    return float(np.nanmax(np.where(np.isfinite(slopes), slopes, 0.0)))


def judge(index: int) -> dict[str, Any]:
    """One line of the study."""
    graph, about = random_network(index)
    started = time.process_time()
    scales, tolerance = about.pop("scales"), 1e-3 if about["depth"] <= 2 else 0.1
    row = {"index": index, **about, "weighted": scales[0] is not None}
    try:
        found = certify_lipschitz(graph, about["norm"], input_scale=scales[0], output_scale=scales[1], tolerance=tolerance, seed=index)
    except LipctrlError as error:
        return {**row, "refused": str(error), "seconds": round(time.process_time() - started, 3)}
    upper, lower, floor = found.upper.value, found.lower.value, found.floor
    seen = steepest(graph, about["norm"], scales, index)
    sound = found.check().level == "proved" and upper >= lower and upper >= floor * (1 - 1e-9) and upper >= seen
    row |= {"upper": upper, "lower": lower, "floor": floor, "seen": seen, "method": found.upper.method, "sound": bool(sound)}
    return {**row, "seconds": round(time.process_time() - started, 3)}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and ratios over all rows."""
    judged = [row for row in rows if "upper" in row]
    euclidean = [row for row in judged if row["norm"] == "l2" and row["floor"] > 0]
    shallow = sorted(row["upper"] / row["floor"] for row in euclidean if row["depth"] <= 2)
    return {
        "networks": len(rows),
        "bounded": len(judged),
        "refused": Counter(row["refused"][:60] for row in rows if "refused" in row),
        "unsound": [row["index"] for row in judged if not row["sound"]],
        "of 16 or more units and 3 or more hidden layers": sum(row["large"] for row in judged),
        "norms": Counter(row["norm"] for row in judged),
        "activations": Counter(row["op"] for row in judged),
        "residual": sum(row["residual"] for row in judged),
        "methods": Counter(row["method"] for row in judged),
        "l2, at most 2 hidden layers, upper/floor": _spread(shallow),
        "l2, at most 2 hidden layers, above 1.2": [
            row["index"] for row in euclidean if row["depth"] <= 2 and row["upper"] > 1.2 * row["floor"]
        ],
        "l2, more, upper/floor": _spread([row["upper"] / row["floor"] for row in euclidean if row["depth"] > 2]),
        "l2, at most 2 hidden layers, upper/lower": _spread(
            [row["upper"] / row["lower"] for row in euclidean if row["depth"] <= 2 and row["lower"] > 0]
        ),
        "l2, more, upper/lower": _spread([row["upper"] / row["lower"] for row in euclidean if row["depth"] > 2 and row["lower"] > 0]),
        "linf, upper/lower": _spread([row["upper"] / row["lower"] for row in judged if row["norm"] == "linf" and row["lower"] > 0]),
        "cpu seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = np.quantile(values, [0.5, 0.9, 0.99, 1.0])
    return {
        "networks": len(values),
        **{name: round(float(q), 4) for name, q in zip(("median", "90 %", "99 %", "largest"), quantiles, strict=True)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "summary"])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--numbers", type=int, nargs="*", help="only these networks")
    parser.add_argument("--most-layers", type=int, default=20, help="only networks with at most so many hidden layers")
    parser.add_argument("--activations", nargs="*", default=[*PLAIN, *OTHER], help="only networks with one of these")
    parser.add_argument("--out", type=Path, default=Path("lipschitz_soundness.jsonl"))
    options = parser.parse_args()
    files = options.files if options.what == "summary" else [options.out]
    rows = [
        json.loads(line) for file in files if file.exists() for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")
    ]
    if options.what == "run":
        rows = [row for row in rows if "refused" not in row]  # these are tried again
        done = {row["index"] for row in rows}
        with options.out.open("a", encoding="utf-8") as file:
            for index in options.numbers or range(options.shard, options.count, options.shards):
                about = random_network(index)[1]
                if index not in done and about["depth"] <= options.most_layers and about["op"] in options.activations:
                    rows.append(judge(index))
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
    print(json.dumps(summarise(rows), indent=1))


if __name__ == "__main__":
    main()
