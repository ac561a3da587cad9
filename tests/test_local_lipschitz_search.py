"""Branch and bound for local Lipschitz constants: what comes back is proved, inside the domain, tight on small boxes and repeatable."""

import json
import random
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_local_lipschitz import ACTIVATIONS, STEP_UP, ZERO, network, random_network

from lipctrl.certificates.checker.balls import ball, evaluate_balls
from lipctrl.certificates.checker.bundle import number
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.verifiers import local_lipschitz
from lipctrl.certificates.checker.verifiers.local_lipschitz import prove_local, read_problem
from lipctrl.certificates.lipschitz import Budget, affordable, certify_lipschitz, certify_local_lipschitz
from lipctrl.certificates.lipschitz.local_search import Search
from lipctrl.certificates.lipschitz.local_witness import contains
from lipctrl.cli.command import main
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.nn import lipschitz_policy

F = Fraction
SHORT = Budget(0.4, 300, 1e-3)


def steepest_excess(graph, low, high, norm, bound, generator, count=4000):
    """The most by which |f(x) - f(y)| exceeds bound |x - y| and rounding, for random points of a box, near and far ones."""
    order = 2 if norm == "l2" else np.inf
    x = generator.uniform(low, high, (count, len(low)))
    other = generator.uniform(low, high, (count, len(low)))
    y = x + (other - x) * 10.0 ** generator.uniform(-5, 0, (count, 1))
    run = compile_numpy(graph)
    fx, fy = run(x=x)["u"], run(x=y)["u"]
    rise, size = np.linalg.norm(fx - fy, order, axis=1), np.abs(fx).max() + np.abs(fy).max()
    return float((rise - bound * np.linalg.norm(x - y, order, axis=1)).max()) - 1e-13 * size


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(14))
def test_random_networks_on_random_boxes(seed, norm):
    """All activations, depth to 6, scales from 1e-6 to 1e6: no sampled pair is steeper than the proved bound."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    scale = 10.0 ** rng.choice([-6, -1, 0, 0, 0, 1, 6])
    graph = random_network(rng, generator, ACTIVATIONS, rng.randint(1, 6), scale)
    (size,) = graph.input_sizes.values()
    centre, radius = generator.standard_normal(size), 10.0 ** rng.uniform(-3, 0.7)
    low, high = centre - radius, centre + radius * generator.random(size)
    found = certify_local_lipschitz(graph, norm, low=low, high=high, budget=replace(SHORT, seed=seed))
    assert found.check().level == "proved"
    assert found.lower is None or found.lower.value <= found.upper.value
    assert steepest_excess(graph, low, high, norm, found.upper.value, generator) <= 0
    if found.lower is not None:
        problem, _ = read_problem(graph, found.upper.claim)
        assert contains(problem.domain, found.lower.x) and contains(problem.domain, found.lower.y)
        assert found.lower.value <= float(exact_slope(graph, found.lower, norm)) * (1 + 1e-9) + 1e-300


def exact_slope(graph, pair, norm):
    x, y = ([ball(v) for v in point] for point in (pair.x, pair.y))
    rise = [float((a - b).mid()) for a, b in zip(evaluate_balls(graph, {"x": x})["u"], evaluate_balls(graph, {"x": y})["u"], strict=True)]
    run = [float(a - b) for a, b in zip(pair.x, pair.y, strict=True)]
    order = 2 if norm == "l2" else np.inf
    return np.linalg.norm(rise, order) / np.linalg.norm(run, order)


@pytest.mark.parametrize("activation", ["relu", "maxmin", "tanh"])
def test_small_boxes_are_bounded_within_five_percent(activation):
    generator = np.random.default_rng(5)
    sizes = (3, 32, 32, 1)
    layers = []
    for before, after in pairwise(sizes):
        layers += [(generator.standard_normal((after, before)) * np.sqrt(2 / before), None), activation]
    graph = network(*layers[:-1], size=3)
    centre = generator.standard_normal(3)
    found = certify_local_lipschitz(graph, low=centre - 0.01, high=centre + 0.01, budget=Budget(6, 20_000, 0.04))
    assert found.upper.value <= 1.05 * found.lower.value
    assert found.upper.value < 0.8 * certify_lipschitz(graph, tolerance=1e-2).upper.value


def test_a_ball_is_bounded_within_its_box():
    """A ball lies in a box: its constant is smaller, and so is the bound; both are above the pairs in the ball."""
    rng, generator = random.Random(3), np.random.default_rng(3)
    graph = random_network(rng, generator, ["relu", "tanh"], 2)
    (size,) = graph.input_sizes.values()
    scale = [F(1, 2)] * size
    centre = [F(1, 3)] * size
    found = certify_local_lipschitz(graph, centre=centre, radius="1/10", input_scale=scale, budget=SHORT)
    assert found.check().level == "proved"
    box = certify_local_lipschitz(graph, low=[F(1, 3) - F(1, 5)] * size, high=[F(1, 3) + F(1, 5)] * size, input_scale=scale, budget=SHORT)
    assert found.lower.value <= found.upper.value <= box.upper.value * (1 + 1e-3)
    offset = [a - c for a, c in zip(found.lower.x, centre, strict=True)]
    assert sum((v / 2) ** 2 for v in offset) <= F(1, 100)


@pytest.mark.parametrize(("low", "high", "constant"), [([1], [5], 1.0), ([11], [20], 0.0), ([5], [15], 1.0)])
def test_known_constants(low, high, constant):
    found = certify_local_lipschitz(STEP_UP, low=low, high=high, budget=SHORT)
    assert constant <= found.upper.value <= constant * (1 + 1e-6) + 1e-9
    assert found.lower.value == pytest.approx(constant, rel=1e-9)


def test_a_kink_gives_no_lower_bound():
    """Automatic differentiation of 0 = relu(x + 10) - 10 - relu(x) + relu(-x) says 1 at x = 0; pairs of points say 0."""
    found = certify_local_lipschitz(ZERO, low=[-5], high=[5], budget=SHORT)
    assert found.lower.value == 0 and 0 <= found.upper.value <= 1 + 1e-6


def test_one_point_and_flat_directions():
    assert certify_local_lipschitz(STEP_UP, low=[3], high=[3]).upper.value == 0
    graph = network(([[3.0, 4.0]], None), "tanh", size=2)
    found = certify_local_lipschitz(graph, low=[0, "1/3"], high=[0.5, "1/3"], budget=SHORT)
    assert found.lower.value <= found.upper.value <= 3 * (1 - np.tanh(4 / 3) ** 2) * 1.01
    assert found.lower.x[1] == found.lower.y[1] == F(1, 3)


def test_equal_seeds_give_equal_certificates_when_the_search_ends_by_itself():
    found = [certify_local_lipschitz(STEP_UP, low=[1], high=[5], budget=Budget(60, 10_000, 1e-3, seed=1)) for _ in range(2)]
    assert found[0].upper == found[1].upper and found[0].lower == found[1].lower


def test_an_interrupt_returns_what_is_proved_so_far():
    generator = np.random.default_rng(0)
    graph = network((generator.standard_normal((8, 3)), None), "tanh", (generator.standard_normal((1, 8)), None), size=3)

    def interrupt(fraction, message, best):
        if "cells" in message and " 1 cells" not in message:
            raise KeyboardInterrupt

    found = certify_local_lipschitz(graph, low=[-3] * 3, high=[3] * 3, budget=Budget(60, 10**6, 1e-6), progress=interrupt)
    assert found.check().level == "proved"
    assert found.lower.value <= found.upper.value


def test_more_time_gives_no_worse_a_bound():
    generator = np.random.default_rng(2)
    weights = [generator.standard_normal(shape) for shape in ((12, 2), (12,), (2, 12))]
    graph = network((weights[0], weights[1]), "tanh", (weights[2], None), size=2)
    values = [certify_local_lipschitz(graph, low=[-1, -1], high=[1, 1], budget=Budget(s, 10**5, 1e-3)).upper.value for s in (0.01, 0.5, 2)]
    assert values[2] <= values[1] * (1 + 1e-6) and values[1] <= values[0] * (1 + 1e-6)


def test_search_bounds_are_what_the_checker_proves():
    """The root's bound by slopes alone, a hair larger, is accepted; a hair smaller is not."""
    rng, generator = random.Random(8), np.random.default_rng(8)
    graph = random_network(rng, generator, ["relu", "tanh", "maxmin"], 3)
    (size,) = graph.input_sizes.values()
    claim = {"property": "local_lipschitz", "norm": "l2", "input_scale": None, "output_scale": None}
    claim |= {"domain": {"low": ["-1/10"] * size, "high": ["1/10"] * size}}
    problem, _ = read_problem(graph, {**claim, "bound": "0"})
    own = Search(problem, False).root.own
    evidence = {"method": "cells", "tree": [None], "proofs": []}
    assert prove_local(graph, {**claim, "bound": (own * (1 + 1e-9)).hex()}, evidence)
    with pytest.raises(Exception, match="not proved"):
        prove_local(graph, {**claim, "bound": (own * (1 - 1e-6)).hex()}, evidence)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "needs low and high"),
        ({"low": [0]}, "needs low and high"),
        ({"low": [0], "high": [1], "radius": 1}, "needs low and high"),
        ({"low": [2], "high": [1]}, r"low\[0\] is 2 and high\[0\] is 1"),
        ({"low": [0, 0], "high": [1, 1]}, "has 2 numbers, expected 1"),
        ({"low": [float("nan")], "high": [1]}, "expected a finite number"),
        ({"centre": [0], "radius": -1}, "not negative"),
        ({"low": [0], "high": [1], "norm": "l1"}, "expected 'l2' or 'linf'"),
        ({"low": [0], "high": [1], "input_scale": [0]}, "expected positive numbers"),
    ],
)
def test_mistakes_are_named(arguments, reason):
    with pytest.raises(InputError, match=reason):
        certify_local_lipschitz(STEP_UP, **{"norm": "l2", **arguments})


def test_what_is_not_finite_is_refused_in_words():
    graph = network(([[1e200]], None), "exp", ([[1e200]], None), size=1)
    with pytest.raises(LipctrlError):
        certify_local_lipschitz(graph, low=[0], high=[1e300], budget=SHORT)


@pytest.mark.parametrize("activation", ["maxmin", "tanh"])
def test_policies_on_the_command_line(activation, tmp_path: Path, capsys):
    layer = "cayley" if activation == "maxmin" else "sandwich"
    generator = torch.Generator().manual_seed(0)
    policy = lipschitz_policy(2, [-2], [2], 5.0, hidden=(8, 8), layer=layer, activation=activation, generator=generator)
    policy.export().save(tmp_path / "policy")
    words = ["--low", "-0.1", "0.2", "--high", "0.1", "1/3", "--budget-s", "1", "--out", str(tmp_path / "out"), "--json"]
    assert main(["lipschitz", str(tmp_path / "policy"), *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["level"] == "proved" and said["method"] == "cells"
    assert said["lower"] <= said["upper"] <= 5.0 * (1 + 1e-6)
    assert said["results"][0]["property"] == "local_lipschitz"
    assert "in the box -0.1 <= x1 <= 0.1, 0.2 <= x2 <= 0.333333" in said["claim"]
    assert main(["check", str(tmp_path / "out" / "certificate"), "--about", str(tmp_path / "policy"), "--json"]) == 0
    written = json.loads((tmp_path / "out" / "certificate" / "certificate.json").read_text())
    assert number(written["claim"]["domain"]["high"][1]) == F(1, 3)


def test_inputs_that_are_fixed_at_no_float_leave_the_witness_whole():
    """The difference of such an input is a ball around 0; so is that of an output that does not move."""
    nodes = (Node("input", (), {"name": "x", "size": 2}), Node("affine", (0,), {"weight": "w", "bias": None}))
    graph = Graph(nodes, {"u": 1}, {"w": np.array([[1.0, 2.0], [1.0, 0.0]])})
    found = certify_local_lipschitz(graph, low=[Fraction(1, 3), 0], high=[Fraction(1, 3), 1], budget=Budget(seconds=0.5))
    assert 1.999 < found.lower.value <= 2.0 <= found.upper.value < 2.001


@pytest.mark.parametrize("domain", [{"low": [0, 0], "high": [1, 10**309]}, {"centre": [0, 0], "radius": 10**200}])
def test_domains_beyond_float64_are_refused_in_words(domain):
    nodes = (Node("input", (), {"name": "x", "size": 2}), Node("relu", (0,)))
    with pytest.raises(InputError, match="too large for float64"):
        certify_local_lipschitz(Graph(nodes, {"u": 1}), budget=Budget(seconds=0.5), **domain)


@dataclass
class Part:
    """A part of a search tree as the checker's limits see it."""

    own: float
    parts: tuple | None = None
    products: float = 1.0
    work: float = 0.0
    has_proof: bool = True


def halved(bound: float, depth: int) -> Part:
    """A tree in which every split lowers the bound by a tenth in one part, by a twentieth in the other."""
    return Part(bound, (halved(0.9 * bound, depth - 1), halved(0.95 * bound, depth - 1)) if depth else None)


@pytest.mark.parametrize("limit", ["MAX_PRODUCTS", "MAX_WORK", "MAX_PROOFS", "MAX_LEAVES"])
def test_what_the_checker_will_not_judge_to_the_end_is_claimed_less_tightly(monkeypatch, limit):
    """The least bound whose tree is small enough, so that nothing of a long search is lost."""
    problem, root = SimpleNamespace(work=lambda: SimpleNamespace(total=lambda count: count)), halved(1.0, 6)
    upper = 0.95**6
    assert affordable.affordable(problem, root, upper) == upper
    monkeypatch.setattr(affordable, limit, 20 / affordable.SHARE)
    bound = affordable.affordable(problem, root, upper)
    bounds = sorted(part.own for part in affordable._all(root))
    tighter = bounds[bounds.index(bound) - 1]
    assert len(list(affordable._leaves(root, bound))) <= 20 < len(list(affordable._leaves(root, tighter)))


def test_a_long_search_that_the_checker_would_refuse_is_proved(monkeypatch):
    generator = np.random.default_rng(5)
    first, second = generator.standard_normal((8, 4)), generator.standard_normal((8, 8)) / 2
    graph = network((first, generator.standard_normal(8)), "tanh", (second, None), "relu", (np.ones((2, 8)), None), size=4)
    domain = {"low": [-1] * 4, "high": [1] * 4}
    for module in (affordable, local_lipschitz):
        monkeypatch.setattr(module, "MAX_PROOFS", 2)
    found = certify_local_lipschitz(graph, **domain, budget=Budget(1.5, 400, 1e-6))
    assert len(found.upper.evidence["proofs"]) <= 2 and found.check().level == "proved"
