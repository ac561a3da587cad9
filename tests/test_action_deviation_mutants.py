"""Mutated certificates of float32 errors: every one that the checker still accepts makes a claim that is true."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from flint import arb
from mutations import accepted
from test_action_deviation import network

from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.bundle import Certificate, number, parse_certificate
from lipctrl.certificates.lipschitz import certify_evaluation
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction
U, LEAST = F(1, 2**24), F(1, 2**149)
CELLS = 6


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = network((2, 3, 3, 2), "relu", 6)
    found = certify_evaluation(graph, "linf", low=["-1", "1/3"], high=["2", "1/2"], cells=1)
    assert found.check().level == "proved"
    return found.write(tmp_path_factory.mktemp("valid") / "certificate")


def domain_of(certificate: Certificate) -> tuple[list[Fraction], list[Fraction]]:
    domain = certificate.claim["domain"]
    if "low" in domain:
        return [number(v) for v in domain["low"]], [number(v) for v in domain["high"]]
    centre, radius = [number(v) for v in domain["centre"]], number(domain["radius"])
    return [c - radius for c in centre], [c + radius for c in centre]


def proved_again(certificate: Certificate) -> Fraction | None:
    """The greatest error of an output, in rationals, by the classical recursion on a grid of cells; ``None`` for other operations."""
    low, high = domain_of(certificate)
    grids = [[a + (b - a) * F(i, CELLS) for i in range(CELLS + 1)] for a, b in zip(low, high, strict=True)]
    pairs = [list(pairwise(grid)) if grid[0] < grid[-1] else [(grid[0], grid[0])] for grid in grids]
    errors = [error_in(certificate, [e[0] for e in cell], [e[1] for e in cell]) for cell in product(*pairs)]
    return None if None in errors else max(e for e in errors if e is not None)


def error_in(certificate: Certificate, low: list[Fraction], high: list[Fraction]) -> Fraction | None:
    """The greatest error of an output on one box."""
    graph = certificate.policy
    cast = [U * max(abs(a), abs(b)) + LEAST for a, b in zip(low, high, strict=True)]
    found = []
    for node in graph.nodes:
        if node.op == "input":
            found.append((low, high, cast))
        elif node.op == "affine":
            weight, bias = (None if name is None else graph.tensors[name] for name in (node.attributes["weight"], node.attributes["bias"]))
            found.append(affine(weight, np.zeros(len(weight)) if bias is None else bias, *found[node.inputs[0]]))
        elif node.op == "relu":
            before = found[node.inputs[0]]
            found.append(([max(v, F(0)) for v in before[0]], [max(v, F(0)) for v in before[1]], before[2]))
        else:
            return None
    scale, (output,) = certificate.claim["output_scale"], graph.outputs.values()
    return max(e * (F(1) if scale is None else number(scale[i])) for i, e in enumerate(found[output][2]))


def affine(weight, bias, low, high, error):
    """Range and error of W x + b from those of x."""
    gamma = (len(low) + 1) * U / (1 - (len(low) + 1) * U)
    lows, highs, errors = [], [], []
    for row, shift in zip(weight.tolist(), bias.tolist(), strict=True):
        ends = [sorted((F(w) * a, F(w) * b)) for w, a, b in zip(row, low, high, strict=True)]
        lows.append(sum(e[0] for e in ends) + F(shift))
        highs.append(sum(e[1] for e in ends) + F(shift))
        sizes = sum(abs(F(w)) * (max(abs(a), abs(b)) + e) for w, a, b, e in zip(row, low, high, error, strict=True)) + abs(F(shift))
        errors.append(sum(abs(F(w)) * e for w, e in zip(row, error, strict=True)) + gamma * sizes)
    return lows, highs, errors


def survives_points(certificate: Certificate, seed: int) -> bool:
    """Deployed values at random points of the domain against balls."""
    low, high = ([float(v) for v in end] for end in domain_of(certificate))
    x = np.random.default_rng(seed).uniform(low, high, (20, len(low)))
    graph, bound = certificate.policy, arb(float(number(certificate.claim["bound"])))
    ((name, _),), (output,) = graph.input_sizes.items(), graph.outputs
    scale = certificate.claim["output_scale"]
    scales = [arb(1)] * graph.output_sizes[output] if scale is None else [arb(float(number(v))) for v in scale]
    with np.errstate(all="ignore"):
        deployed = compile_numpy(graph, np.float32)(**{name: x})[output]
    for row, values in zip(x, deployed, strict=True):
        real = evaluate_balls(graph, {name: [arb(float(v)) for v in row]})[output]
        if any(s * abs(arb(float(d)) - r) > bound for s, d, r in zip(scales, values, real, strict=True)):
            return False
    return True


def test_the_second_opinion_knows_true_from_false(valid: Path) -> None:
    certificate = parse_certificate((valid / "certificate.json").read_bytes(), (valid / "weights.safetensors").read_bytes())
    again = proved_again(certificate)
    assert again is not None
    assert F(1, 2) * number(certificate.claim["bound"]) < again <= number(certificate.claim["bound"])
    certificate.claim["bound"] = (1e-9).hex()  # type: ignore[index]
    assert not survives_points(certificate, 0)


def test_accepted_mutants_are_true(valid: Path) -> None:
    judged = list(accepted(valid, 1000, seed=3))
    for change, certificate in judged:
        again = proved_again(certificate)
        assert again is None or again <= number(certificate.claim["bound"]), change
        assert survives_points(certificate, seed=len(change)), change
    assert 20 < len(judged) < 500
