"""Mutated Lipschitz certificates: every one that the checker still accepts makes a claim that is true."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import accepted, mutants

from lipctrl.certificates.checker.bundle import Certificate, number, parse_certificate
from lipctrl.certificates.checker.graph import Graph, evaluate
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.writing import write_certificate
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.nn import LinearPlusMLP, LipschitzPolicy, ResidualMLP, lipschitz_policy

F = Fraction
METHODS = ("multipliers", "product", "residual", "maximum")


class Increments:
    """Exact increments of a graph: each coordinate is a linear form in the inputs and in one new variable for each activation.

    Written from the definition of slopes and apart from the checker's network form: rational numbers, one unit at a time.
    """

    def __init__(self) -> None:
        self.units: list[tuple[dict, dict, F, F, int]] = []  # own variable, pre-activation, slopes, layer
        self.count, self.layer = 0, -1

    def variables(self, size: int) -> list[dict]:
        self.count += size
        return [{self.count - size + i: F(1)} for i in range(size)]

    def constant(self, values):
        return values

    def _scaled(self, x, factors):
        factors = factors * (len(x) // len(factors))
        return [{k: v * f for k, v in form.items()} for form, f in zip(x, factors, strict=True)]

    def sub(self, a, b):
        return a if isinstance(b, tuple) else self.add(a, self._scaled(b, (F(-1),)))

    def add(self, a, b):
        if isinstance(a, tuple) or isinstance(b, tuple):
            return b if isinstance(a, tuple) else a
        return [{k: x.get(k, F(0)) + y.get(k, F(0)) for k in {*x, *y}} for x, y in zip(a, b, strict=True)]

    def mul(self, a, b):
        return self._scaled(a, b) if isinstance(b, tuple) else self._scaled(b, a)

    def div(self, a, b):
        return self._scaled(a, tuple(1 / f for f in b))

    def neg(self, x):
        return self._scaled(x, (F(-1),))

    def affine(self, x, weight, bias):
        rows = []
        for row in weight.tolist():
            form: dict[int, F] = {}
            for entry, w in zip(x, row, strict=True):
                for k, v in entry.items():
                    form[k] = form.get(k, F(0)) + F(w) * v
            rows.append(form)
        return rows

    def _activated(self, x, low, high):
        self.layer += 1
        own = self.variables(len(x))
        self.units += [(o, v, low, high, self.layer) for o, v in zip(own, x, strict=True)]
        return own

    def relu(self, x):
        return self._activated(x, F(0), F(1))

    tanh = softplus = relu

    def sigmoid(self, x):
        return self._activated(x, F(0), F(1, 4))

    def abs(self, x):
        return self._activated(x, F(-1), F(1))

    sin = cos = abs

    def leaky_relu(self, x, slope):
        return self._activated(x, min(slope, F(1)), max(slope, F(1)))

    def clip(self, x, low, high):
        return x  # only the last node here: 1-Lipschitz in every diagonally weighted norm

    def recentre(self, x, graph, point, offset):
        (name,), (output,) = graph.input_sizes, graph.outputs
        return evaluate(graph, {name: x}, self)[output]


def is_psd_exactly(rows: list[list[F]]) -> bool:
    for k in range(len(rows)):
        pivot = rows[k][k]
        if pivot < 0 or (pivot == 0 and any(rows[i][k] for i in range(k + 1, len(rows)))):
            return False
        for i in range(k + 1, len(rows)):
            if pivot and rows[i][k]:
                factor = rows[i][k] / pivot
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return True


def claim_is_true(certificate: Certificate) -> bool:
    """The form of the claim, assembled over the rationals, is positive semidefinite."""
    graph: Graph = certificate.policy
    claim, evidence = certificate.claim, certificate.evidence
    bound = number(claim["bound"])
    if evidence["method"] == "norm-product":
        return bound >= _product(graph, claim) * (1 - F(1, 10**12))
    algebra = Increments()
    ((name, size),) = graph.input_sizes.items()
    outputs = evaluate(graph, {name: algebra.variables(size)}, algebra)[next(iter(graph.outputs))]
    scale_in = [F(1)] * size if claim["input_scale"] is None else [number(v) for v in claim["input_scale"]]
    scale_out = [F(1)] * len(outputs) if claim["output_scale"] is None else [number(v) for v in claim["output_scale"]]
    scaled = [{k: s * v for k, v in form.items()} for form, s in zip(outputs, scale_out, strict=True)]
    if claim["norm"] == "l2":
        return form_is_psd(algebra, [(bound * s) ** 2 for s in scale_in], scaled, evidence["multipliers"])
    for form, row in zip(scaled, evidence["rows"], strict=True):
        if row is None:
            if not bound >= _absolute(algebra, form, scale_in) * (1 - F(1, 10**12)):
                return False
            continue
        shares = [number(v) for v in row["shares"]]
        if min(shares) < 0 or sum(shares) > bound**2:
            return False
        if not form_is_psd(algebra, [d * s**2 for d, s in zip(shares, scale_in, strict=True)], [form], row["multipliers"]):
            return False
    return True


def form_is_psd(algebra: Increments, heads: list[F], outputs: list[dict], filed: list[list[str]]) -> bool:
    rows = [[F(0)] * algebra.count for _ in range(algebra.count)]

    def add(left: dict[int, F], right: dict[int, F], factor: F) -> None:
        for i, a in left.items():
            for j, b in right.items():
                rows[i][j] += factor * a * b / 2
                rows[j][i] += factor * a * b / 2

    def minus(a: dict[int, F], b: dict[int, F], factor: F) -> dict[int, F]:
        return {k: a.get(k, F(0)) - factor * b.get(k, F(0)) for k in {*a, *b}}

    for i, head in enumerate(heads):
        add({i: F(1)}, {i: F(1)}, head)
    for form in outputs:
        add(form, form, F(-1))
    taken = [iter([number(v) for v in layer]) for layer in filed]
    for own, before, low, high, layer in algebra.units:
        multiplier = next(taken[layer])
        if multiplier < 0:
            return False
        add(minus(own, before, low), minus(own, before, high), multiplier)
    return is_psd_exactly(rows)


def _absolute(algebra: Increments, output: dict[int, F], scale_in: list[F]) -> F:
    """The greatest value of a linear form where inputs and slopes are as large as they can be, unit by unit."""
    largest = {i: 1 / s for i, s in enumerate(scale_in)}
    for own, before, low, high, _ in algebra.units:
        (variable,) = own
        largest[variable] = max(abs(low), abs(high)) * sum((abs(v) * largest[k] for k, v in before.items()), F(0))
    return sum((abs(v) * largest[k] for k, v in output.items()), F(0))


def _product(graph: Graph, claim) -> F:
    """The product of the layers' norms by SVD, the scales put where they belong (for the small graphs of this file)."""
    assert claim["input_scale"] is None and claim["output_scale"] is None
    weights, before, after, index = [], [F(1)], [F(1)], next(iter(graph.outputs.values()))
    while (node := graph.nodes[index]).op != "input":
        constants = [graph.nodes[i].attributes["values"] for i in node.inputs if graph.nodes[i].op == "constant"]
        for inner in node.attributes["graph"].nodes[::-1] if node.op == "recentre" else [node]:  # from the output backwards
            if inner.op == "affine":
                weights.append(graph.tensors[inner.attributes["weight"]].astype(float))
        if node.op in ("mul", "div"):
            factors = [f if node.op == "mul" else 1 / f for f in constants[0]]
            if weights:
                before = [a * b for a, b in zip(before * len(factors), factors, strict=False)]
            else:
                after = [a * b for a, b in zip(after * len(factors), factors, strict=False)]
        index = next(i for i in node.inputs if graph.nodes[i].op != "constant")
    weights[-1] = weights[-1] @ np.diag(np.broadcast_to(np.array([float(f) for f in before]), weights[-1].shape[1]))
    weights[0] = np.diag(np.broadcast_to(np.array([float(f) for f in after]), len(weights[0]))) @ weights[0]
    return F(float(np.prod([np.linalg.norm(weight, 2) for weight in weights])))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lipschitz")
    generator = torch.Generator().manual_seed(0)
    scales = {"observation_scale": ["0.3", 2], "action_scale": "1.5", "equilibrium_observation": [0, 0]}
    sandwich = lipschitz_policy(2, [-2], [2], 3.0, hidden=(4, 3), generator=generator, **scales).export()
    certify_lipschitz(sandwich, splits=0, witness=False).write(folder / "multipliers")
    cayley = lipschitz_policy(2, [-2], [2], 3.0, hidden=(3,), layer="cayley", activation="maxmin", generator=generator, **scales)
    graph = cayley.graph()
    claim, evidence = cayley.lipschitz_proof(graph)
    write_certificate(folder / "product", kind="lipschitz-bound", claim=claim, policy=graph, evidence=evidence)
    skips = {"action_low": [-2, -2], "action_high": [2, 2], "observation_scale": ["0.3", 2]}
    residual = LipschitzPolicy(ResidualMLP(2, (3, 2), 2, generator=generator), **skips)
    graph = residual.graph()
    claim, evidence = residual.lipschitz_proof(graph)
    write_certificate(folder / "residual", kind="lipschitz-bound", claim=claim, policy=graph, evidence=evidence)
    beside = LipschitzPolicy(LinearPlusMLP(2, (3, 2), 2, generator=generator), **skips)
    certify_lipschitz(beside, "linf", input_scale=["1/2", 3], splits=0, witness=False).write(folder / "maximum")
    assert [check(folder / name).level for name in METHODS] == ["proved"] * len(METHODS)
    return {name: folder / name for name in METHODS}


@pytest.mark.parametrize("method", ["multipliers", "maximum"])
def test_the_exact_form_agrees_with_known_truths(valid: dict[str, Path], method: str) -> None:
    """The second implementation accepts the valid certificate and refuses a bound that is a hair too small."""
    data = (valid[method] / "certificate.json").read_bytes(), (valid[method] / "weights.safetensors").read_bytes()
    certificate = parse_certificate(*data)
    assert claim_is_true(certificate)
    smaller = float(number(certificate.claim["bound"])) * (1 - 1e-6)
    certificate.claim["bound"] = smaller.hex()  # type: ignore[index]
    assert not claim_is_true(certificate)


@pytest.mark.parametrize("method", METHODS)
def test_accepted_mutants_are_true(valid: dict[str, Path], method: str) -> None:
    judged = list(accepted(valid[method], 500, seed=11))
    for change, certificate in judged:
        assert claim_is_true(certificate), change
    assert 10 < len(judged) < 200


def test_mutants_through_the_command_line(valid: dict[str, Path], tmp_path: Path) -> None:
    """The same verdicts from the console command as in this process: every rejection has a reason and status 1 or 2."""
    folders = []
    for index, mutant in enumerate(mutants(valid["multipliers"], 25, seed=3)):
        folders.append(mutant.write(tmp_path / str(index)))
    command = [sys.executable, "-m", "lipctrl.certificates.checker", "--json", *map(str, folders)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode in (0, 1, 2, 3) and "Traceback" not in done.stderr
    import json

    results = json.loads(done.stdout)["results"]
    assert len(results) == 25
    for folder, result in zip(folders, results, strict=True):
        verdict = check(folder)
        assert result["status"] == verdict.status and result["reason"] == verdict.reason
        assert verdict.status == "verified" or result["reason"]
