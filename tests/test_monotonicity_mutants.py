"""Mutated certificates of monotonicity: every one that the checker still accepts makes a claim that is true."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loops import Sketch
from mutations import accepted

from lipctrl.certificates.checker.bundle import Certificate, number, parse_certificate
from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.lipschitz import Budget, NotProved, certify_monotone
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction


def rising() -> Graph:
    """Weights that are not negative, with MaxMin, tanh and exact scales: the second input counts the other way."""
    s, rng = Sketch(), np.random.default_rng(0)
    x = s("mul", s.input("x", 2), s.constant(F(3, 2), F(-1, 3)))
    h = s("group_sort", s.affine(x, rng.integers(0, 5, (4, 2)) / 4, rng.standard_normal(4)), group_size=2)
    h = s("tanh", s.affine(h, rng.integers(0, 5, (3, 4)) / 4, rng.standard_normal(3)))
    return s.graph(y=s.affine(h, rng.integers(0, 5, (2, 3)) / 4))


def bent() -> Graph:
    """Units that open and close on the box, and a square: signs need its cells."""
    s = Sketch()
    x = s.input("x", 2)
    h = s("relu", s.affine(x, [[1, 0.5], [1, -0.5], [-1, 0.25]], [0.25, -0.125, 0.5]))
    y = s.affine(h, [[1, -0.5, -0.25], [0.5, 0.25, 1]])
    return s.graph(y=s("add", y, s("power", s("select", x, indices=(1,)), exponent=2)))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Signs everywhere, signs on a box with a split tree, and a pair of points that refutes one."""
    folder = tmp_path_factory.mktemp("valid")
    box = {"low": [-1, 0], "high": [1, "1/3"]}
    found = {
        "everywhere": certify_monotone(rising()),
        "box": certify_monotone(bent(), [[1, 0], [0, 1]], **box),
        "counterexample": certify_monotone(bent(), [[1, 0], [1, 1]], **box),
    }
    assert len(found["box"].evidence["tree"]) > 1
    for name, certificate in found.items():
        certificate.write(folder / name)
        assert certificate.check().level == ("falsified" if name == "counterexample" else "proved")
    return {name: folder / name for name in found}


def domain_of(table: Any) -> dict[str, list[Fraction]]:
    return {} if table is None else {end: [number(v) for v in table[end]] for end in ("low", "high")}


def claim_is_true(certificate: Certificate, seed: int = 0) -> bool:
    """Attacked with pairs of points, then proved again without the evidence; a counterexample is evaluated exactly."""
    graph, claim = certificate.policy, certificate.claim
    if certificate.kind == "counterexample":
        return _refutes(certificate)
    domain = domain_of(claim["domain"])
    return _survives_pairs(graph, np.array(claim["signs"]), domain, seed) and _proved_again(graph, claim["signs"], domain)


def _proved_again(graph: Graph, signs: Any, domain: Any) -> bool:
    try:
        found = certify_monotone(graph, signs, **domain, budget=Budget(seconds=20.0, cells=20_000, seed=5))
    except NotProved:
        return False
    return found.check().level == "proved"


def _survives_pairs(graph: Graph, signs: np.ndarray, domain: Any, seed: int) -> bool:
    rng, run = np.random.default_rng(seed), compile_numpy(graph)
    ((name, size),), (output,) = graph.input_sizes.items(), graph.outputs
    low, high = (np.array([float(v) for v in domain[end]]) if domain else np.full(size, s * 4.0) for end, s in (("low", -1), ("high", 1)))
    x = rng.uniform(low, high, (2000, size))
    for j in range(size):
        y = x.copy()
        y[:, j] = rng.uniform(x[:, j], high[j])
        rise = run(**{name: y})[output] - run(**{name: x})[output]
        if not (rise * signs[:, j] >= -1e-12).all():
            return False
    return True


def _refutes(certificate: Certificate) -> bool:
    region, (output,) = certificate.claim["region"], certificate.policy.outputs
    first, second = (tuple(number(v) for v in certificate.evidence[key]) for key in ("first", "second"))
    domain = domain_of(region["domain"])
    inside = not domain or all(a <= v <= b for x in (first, second) for a, v, b in zip(domain["low"], x, domain["high"], strict=True))
    (moved,) = [j for j in range(len(first)) if first[j] != second[j]]
    (name,) = certificate.policy.input_sizes
    before, after = (evaluate_exact(certificate.policy, {name: x})[output] for x in (first, second))
    against = any(row[moved] * (b - a) < 0 for row, a, b in zip(region["signs"], before, after, strict=True))
    return inside and first[moved] < second[moved] and against


def read(folder: Path) -> Certificate:
    return parse_certificate((folder / "certificate.json").read_bytes(), (folder / "weights.safetensors").read_bytes())


def test_the_second_opinion_knows_true_from_false(valid: dict[str, Path]) -> None:
    for folder in valid.values():
        assert claim_is_true(read(folder))
    for name in ("everywhere", "box"):
        wrong = read(valid[name])
        wrong.claim["signs"][0][0] *= -1
        assert not claim_is_true(wrong)
    wrong = read(valid["counterexample"])
    wrong.claim["region"]["signs"][1][0] *= -1
    assert not claim_is_true(wrong)


@pytest.mark.parametrize(("name", "count"), [("everywhere", 350), ("box", 400), ("counterexample", 250)])
def test_accepted_mutants_are_true(valid: dict[str, Path], name: str, count: int) -> None:
    judged = list(accepted(valid[name], count, seed=7))
    for change, certificate in judged:
        assert claim_is_true(certificate, seed=len(change)), change
    assert 3 < len(judged) < count // 2
