"""Mutated local certificates: every one that the checker still accepts makes a claim that is true."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from mutations import accepted
from test_local_lipschitz import claim_of, network

from lipctrl.certificates.checker.bundle import Certificate, number, parse_certificate
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verifiers.local_lipschitz import read_problem
from lipctrl.certificates.checker.writing import write_certificate
from lipctrl.certificates.lipschitz import Budget, certify_local_lipschitz
from lipctrl.certificates.lipschitz.local_search import Search
from lipctrl.certificates.lipschitz.unit_search import UnitSearch
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A box with a split tree and proofs of leaves, a ball, and a tree that splits by units."""
    folder = tmp_path_factory.mktemp("valid")
    generator = np.random.default_rng(4)
    weights = [np.round(generator.standard_normal(shape) * 16) / 16 for shape in ((4, 2), (3, 4), (2, 3))]
    graph = network((weights[0], [0.25, -0.5, 0, 0.125]), "relu", (weights[1], [0.1, 0, -0.25]), "tanh", (weights[2], None), size=2)
    box = certify_local_lipschitz(graph, low=[-1, 0], high=["1/2", "1/3"], budget=Budget(1.0, 8, 1e-3))
    ball = certify_local_lipschitz(graph, "linf", centre=["1/7", 0], radius="1/8", input_scale=[1, "1/2"], budget=Budget(1.0, 8, 1e-3))
    round_ = certify_local_lipschitz(graph, centre=["1/7", 0], radius="1/8", budget=Budget(1.0, 4, 1e-3))
    found = {"box": box, "maximum": ball, "ball": round_}
    for name, certificate in found.items():
        certificate.write(folder / name)
        assert certificate.check().level == "proved"
    assert len(box.upper.evidence["tree"]) > 1 and box.upper.evidence["proofs"]
    write_by_units(
        folder / "units", network((weights[0], [0.25, -0.5, 0, 0.125]), "relu", (weights[1], None), "relu", (weights[2], None), size=2)
    )
    return {name: folder / name for name in [*found, "units"]}


def write_by_units(folder: Path, graph: Graph) -> None:
    """A certificate for the box [-1, 1]^2 whose tree splits by units alone, with ranges and proofs in its leaves."""
    claim = claim_of([-1, -1], [1, 1], 1.0)
    search = UnitSearch(read_problem(graph, claim)[0])
    while not search.exhausted:
        search.step(0.0, 1.0)
    bound = search.upper * (1 + 1e-9)
    tree, proofs = search.tree(bound)
    evidence = {"method": "cells", "tree": tree, "proofs": proofs}
    write_certificate(folder, kind="lipschitz-bound", claim={**claim, "bound": bound.hex()}, policy=graph, evidence=evidence)
    assert any(isinstance(entry, list) and len(entry) == 3 for entry in tree) and any(isinstance(entry, dict) for entry in tree)
    assert check(folder).level == "proved"


def claim_is_true(certificate: Certificate, seed: int = 0) -> bool:
    """Attacked with pairs of points in the domain, then proved again without the evidence (up to one part in a thousand)."""
    claim, graph = certificate.claim, certificate.policy
    bound = float(number(claim["bound"]))
    domain = {key: [number(v) for v in value] if isinstance(value, list) else number(value) for key, value in claim["domain"].items()}
    scales = {name: None if claim[name] is None else [number(v) for v in claim[name]] for name in ("input_scale", "output_scale")}
    if not _survives_pairs(graph, claim["norm"], domain, scales, bound, seed):
        return False
    return _proved_again(certificate, bound * (1 + 1e-3) + 1e-12)


def _proved_again(certificate: Certificate, enough: float) -> bool:
    problem, _ = read_problem(certificate.policy, certificate.claim)
    if not len(problem.domain.free):
        return True
    searches = [Search(problem, True), Search(problem, False), UnitSearch(problem)]
    for turn in range(60):
        if min(search.upper for search in searches) <= enough:
            return True
        searches[turn % 3].step(enough, 1.0)
    return False


def _survives_pairs(graph: Graph, norm: str, domain: dict, scales: dict, bound: float, seed: int) -> bool:
    generator = np.random.default_rng(seed)
    ((name, size),) = graph.input_sizes.items()
    (output,) = graph.outputs
    scale_in, scale_out = (np.array([float(v) for v in scales[key] or [F(1)]]) for key in ("input_scale", "output_scale"))
    if "low" in domain:
        low, high = (np.array([float(v) for v in domain[key]]) for key in ("low", "high"))
        draw = [generator.uniform(low, high, (5_000, size)) for _ in range(2)]
    else:
        steps = generator.standard_normal((2, 5_000, size))
        order = 2 if norm == "l2" else np.inf
        steps *= generator.random((2, 5_000, 1)) / np.linalg.norm(steps, order, axis=-1, keepdims=True)
        draw = list(np.array([float(v) for v in domain["centre"]]) + steps * float(domain["radius"]) / scale_in)
    x, y = draw[0], draw[0] + (draw[1] - draw[0]) * 10.0 ** generator.uniform(-4, 0, (5_000, 1))
    run = compile_numpy(graph)
    order = 2 if norm == "l2" else np.inf
    rise = np.linalg.norm((run(**{name: x})[output] - run(**{name: y})[output]) * scale_out, order, axis=1)
    return bool((rise <= bound * np.linalg.norm((x - y) * scale_in, order, axis=1) + 1e-12).all())


def test_the_second_opinion_knows_true_from_false(valid: dict[str, Path]) -> None:
    for folder in valid.values():
        certificate = parse_certificate((folder / "certificate.json").read_bytes(), (folder / "weights.safetensors").read_bytes())
        assert claim_is_true(certificate)
        certificate.claim["bound"] = (float(number(certificate.claim["bound"])) * 0.9).hex()  # type: ignore[index]
        assert not claim_is_true(certificate)


@pytest.mark.parametrize(("name", "count"), [("box", 300), ("maximum", 100), ("ball", 100), ("units", 80)])
def test_accepted_mutants_are_true(valid: dict[str, Path], name: str, count: int) -> None:
    judged = list(accepted(valid[name], count, seed=7))
    for change, certificate in judged:
        assert claim_is_true(certificate, seed=len(change)), change
    assert 3 < len(judged) < count // 2
