"""Vertex splits: with all of them a bound is the largest vertex, found here by enumeration; with fewer it is never below."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, permutations, product
from pathlib import Path
from random import Random

import numpy as np
import pytest
from feedforward import layered
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import accepted

from lipctrl.certificates.checker.bundle import Certificate, number
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.certificates.lipschitz import certify_lipschitz, vertex_splits
from lipctrl.certificates.lipschitz.patterns import pattern_floor
from lipctrl.core.errors import InputError

A = [[[1], [1]], [[1, -1]]]  # relu(x) - relu(x - 10)
C = [[[1], [-1]], [[1, 1]]]
J = [[[0, 2], [0, -2], [0, 1]], [[-2, 0, -1], [1, 1, -2], [-2, -2, 1]], [[-2, 2, 2]]]
SLOPES = {"relu": (0, 1), "tanh": (0, 1), "abs": (-1, 1), "sigmoid": (0, 0.25)}


def random_graph(sizes, seed, op="relu", **attributes) -> Graph:
    generator = np.random.default_rng(seed)
    return layered([generator.standard_normal((m, n)) for n, m in pairwise(sizes)], op, **attributes)


def largest_vertex(graph: Graph, norm: str = "l2", scale_in=1.0, scale_out=1.0) -> float:
    """The greatest norm of the slope matrix over all ends of slopes, all orders of groups: written apart from the network form."""
    values: list[np.ndarray] = []
    for node, size in zip(graph.nodes, graph.sizes, strict=True):
        before = [values[i] for i in node.inputs]
        if node.op == "input":
            values.append(np.eye(size)[None] / scale_in)
        elif node.op == "affine":
            values.append(graph.tensors[node.attributes["weight"]].astype(float) @ before[0])
        elif node.op == "add":  # of a signal and one that was made of it
            repeats = len(before[1]) // len(before[0])
            values.append(np.tile(before[0], (repeats, 1, 1)) + before[1])
        elif node.op == "group_sort":
            width = node.attributes["group_size"]
            groups = [permutations(range(begin, min(begin + width, size))) for begin in range(0, size, width)]
            orders = [[i for group in order for i in group] for order in product(*groups)]
            values.append(np.concatenate([before[0][:, order] for order in orders]))
        else:
            low, high = SLOPES.get(node.op) or sorted((1.0, float(node.attributes["slope"])))
            values.append(np.concatenate([np.array(ends)[:, None] * before[0] for ends in product((low, high), repeat=size)]))
    (output,) = graph.outputs.values()
    scaled = np.broadcast_to(scale_out, values[output].shape[1])[:, None] * values[output]
    return float(np.linalg.norm(scaled, 2 if norm == "l2" else np.inf, axis=(1, 2)).max())


# --- oracles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "truth"), [(A, 1), (C, 1), (J, 12)], ids="ACJ")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_oracles(weights, truth, norm):
    graph = layered(weights)
    found = certify_lipschitz(graph, norm, tolerance=1e-7, splits=100)
    assert largest_vertex(graph, norm) == pytest.approx(truth, rel=1e-12)
    assert found.floor == pytest.approx(largest_vertex(graph, norm), rel=1e-9)
    assert found.floor * (1 - 1e-12) <= found.upper.value <= found.floor * (1 + 1e-6)
    assert found.check().level == "proved"


def test_one_multiplier_for_each_unit_proves_less():
    graph = layered(J)
    assert certify_lipschitz(graph, splits=0, witness=False).upper.value == pytest.approx(14.0421, rel=1e-5)
    by_default = certify_lipschitz(graph, witness=False).upper  # more than 10 % above the floor
    assert by_default.method == "vertices" and by_default.value == pytest.approx(12, rel=1e-5)
    near = random_graph((3, 8, 2), 3)
    assert certify_lipschitz(near, witness=False).upper.method == "multipliers"
    assert certify_lipschitz(near, splits=8, witness=False).upper.method == "vertices"


CASES = [
    ("relu", {}, (2, 3, 2, 2)),
    ("relu", {}, (3, 6, 1)),
    ("abs", {}, (2, 3, 3, 1)),
    ("tanh", {}, (1, 3, 3, 2)),
    ("sigmoid", {}, (2, 4, 3)),
    ("leaky_relu", {"slope": Fraction(-1, 2)}, (2, 3, 2, 2)),
    ("leaky_relu", {"slope": Fraction(3, 2)}, (2, 4, 2)),
    ("group_sort", {"group_size": 2}, (2, 4, 3, 2)),
    ("group_sort", {"group_size": 3}, (3, 5, 2)),
    ("group_sort", {"group_size": 4}, (2, 4, 1)),
]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("op", "attributes", "sizes"), CASES)
def test_all_splits_find_the_largest_vertex(op, attributes, sizes, norm):
    graph = random_graph(sizes, 3, op, **attributes)
    truth = largest_vertex(graph, norm)
    found = certify_lipschitz(graph, norm, tolerance=1e-7, splits=1000, witness=False).upper
    assert truth * (1 - 1e-12) <= found.value <= truth * (1 + 1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_weighted_norms_and_skips(norm):
    generator = np.random.default_rng(5)
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("affine", (0,), {"weight": "in", "bias": None}),
        Node("relu", (1,)),
        Node("affine", (2,), {"weight": "out", "bias": None}),
        Node("add", (0, 3)),
        Node("affine", (4,), {"weight": "last", "bias": None}),
        Node("abs", (5,)),
        Node("affine", (6,), {"weight": "end", "bias": None}),
    )
    shapes = {"in": (4, 2), "out": (2, 4), "last": (3, 2), "end": (2, 3)}
    graph = Graph(nodes, {"y": 7}, {name: generator.standard_normal(shape) for name, shape in shapes.items()})
    scales = {"input_scale": [2, "1/3"], "output_scale": ["1/5", 7]}
    truth = largest_vertex(graph, norm, np.array([2, 1 / 3]), np.array([0.2, 7]))
    found = certify_lipschitz(graph, norm, **scales, tolerance=1e-7, splits=300)
    assert truth * (1 - 1e-12) <= found.upper.value <= truth * (1 + 1e-6)
    assert found.lower.value <= found.upper.value and found.check().level == "proved"


def test_bounds_fall_with_more_splits():
    graph = random_graph((3, 9, 9, 2), 1, "group_sort", group_size=3)
    bounds = [certify_lipschitz(graph, splits=splits, witness=False, tolerance=1e-4).upper.value for splits in (0, 1, 4, 16)]
    assert all(after <= before * (1 + 1e-4) for before, after in pairwise(bounds)) and bounds[-1] < 0.985 * bounds[0]
    assert bounds[-1] >= certify_lipschitz(graph, splits=0).floor


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(["l2", "linf"]))
def test_bounds_are_never_below_the_largest_vertex(seed, norm):
    rng = Random(seed)
    op, attributes, _ = rng.choice(CASES)
    sizes = [rng.randint(1, 3), *[rng.randint(1, 4) for _ in range(rng.randint(1, 2))], rng.randint(1, 3)]
    graph = random_graph(sizes, seed, op, **attributes)
    found = certify_lipschitz(graph, norm, splits=rng.randint(1, 6), tolerance=1e-3, witness=False).upper
    truth = largest_vertex(graph, norm)
    assert found.value >= truth * (1 - 1e-12)
    with pytest.raises(Rejected):
        prove_lipschitz(graph, {**found.claim, "bound": (0.999 * truth).hex()}, found.evidence)


# --- what a file may not say ----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_whatever_the_checker_accepts_is_true(seed):
    """Random trees, multipliers and bounds near the truth."""
    rng = Random(seed)
    op, attributes, sizes = rng.choice(CASES[:9])
    graph = random_graph(sizes, seed, op, **attributes)
    truth = largest_vertex(graph)
    form = vertex_splits.read_network(vertex_splits.without_sorts(graph))
    units = [[layer, unit] for layer, signal in enumerate(form.layers) for unit in signal.free.tolist()]
    tree, proofs = _random_tree(rng, units, form, truth)
    bound = truth * rng.choice([0.5, 0.9, 0.999, 1.0, 1.001, 1.2, 1.5, 3.0])
    claim = {"property": "lipschitz", "norm": "l2", "input_scale": None, "output_scale": None, "bound": bound.hex()}
    try:
        prove_lipschitz(graph, claim, {"method": "vertices", "tree": tree, "proofs": proofs})
    except Rejected:
        return
    assert bound >= truth * (1 - 1e-12)


def _random_tree(rng, units, form, truth):
    tree, proofs, waiting = [], [], [(units, form)]
    while waiting:
        left, here = waiting.pop()
        if left and rng.random() < (0.8 if len(tree) < 40 else 0.1):
            chosen = rng.choice(left)
            low, high = vertex_splits.split(here, chosen)
            tree.append(chosen)
            waiting += [([unit for unit in left if unit != chosen], half) for half in (high, low)]
        else:
            tree.append(len(proofs))
            scale = truth**2 * 2.0 ** rng.uniform(-3, 3)
            values = [[(scale * 2.0 ** rng.uniform(-1, 1)).hex() for _ in layer.free] for layer in here.layers]
            proofs.append({"method": "multipliers", "multipliers": values})
    return tree, proofs


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vertices")
    made = {
        "units": (random_graph((2, 3, 2, 2), 6, "leaky_relu", slope=Fraction(-1, 4)), "l2"),
        "sorts": (random_graph((2, 3, 2), 7, "group_sort", group_size=3), "l2"),
        "maximum": (random_graph((2, 4, 2), 24), "linf"),
    }
    for name, (graph, norm) in made.items():
        found = certify_lipschitz(graph, norm, splits=6, tolerance=1e-4, witness=False, input_scale=[2, "1/2"])
        assert found.upper.method == "vertices" and check(found.write(folder / name)).level == "proved"
    return {name: folder / name for name in made}


def claim_is_true(certificate: Certificate) -> bool:
    """The bound is at least the largest vertex of the certificate's own graph."""
    claim = certificate.claim
    scales = [1.0 if claim[name] is None else np.array([float(number(v)) for v in claim[name]]) for name in ("input_scale", "output_scale")]
    return float(number(claim["bound"])) >= largest_vertex(certificate.policy, claim["norm"], *scales) * (1 - 1e-12)


@pytest.mark.parametrize("name", ["units", "sorts", "maximum"])
def test_accepted_mutants_are_true(valid: dict[str, Path], name: str) -> None:
    judged = list(accepted(valid[name], 300, seed=7))
    for change, certificate in judged:
        assert claim_is_true(certificate), change
    assert 5 < len(judged) < 120


@pytest.mark.parametrize("splits", [-1, 2.5, "3"])
def test_splits_that_are_no_number(splits):
    with pytest.raises(InputError, match="splits is"):
        certify_lipschitz(layered(J), splits=splits)


# --- the search -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_proved(monkeypatch):
    graph = random_graph((3, 8, 8, 2), 4)
    whole = certify_lipschitz(graph, splits=0, witness=False).upper.value
    calls = []

    def interrupted(network, entry):
        calls.append(entry)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(network, entry)

    original = vertex_splits.split
    monkeypatch.setattr(vertex_splits, "split", interrupted)
    found = certify_lipschitz(graph, splits=50, witness=False)
    assert found.upper.value <= whole and len(found.upper.evidence["proofs"]) == 3 and found.check().level == "proved"


def test_progress_and_equal_results():
    graph, lines = random_graph((3, 8, 8, 2), 4), []
    first = certify_lipschitz(graph, splits=2, witness=False, progress=lambda fraction, message, best: lines.append(message))
    assert sum("splits (not yet proved)" in line for line in lines) == 2
    assert certify_lipschitz(graph, splits=2, witness=False).upper == first.upper


def test_large_sorts_are_left_alone():
    """As absolute values these groups are beyond what the checker takes."""
    graph = random_graph((1, 600, 1), 0, "group_sort", group_size=300)
    found = certify_lipschitz(graph, splits=3, witness=False, tolerance=1e-2).upper
    assert found.method != "vertices"


def test_the_floor_of_small_networks_is_the_largest_vertex():
    """Many restarts find it: hundreds of patterns of a network that few ascents climb to the top of."""
    graph = random_graph((3, 6, 5, 1), 12, "group_sort", group_size=3)
    floors = [pattern_floor(read_network(graph), np.ones(3), np.ones(1), restarts=1000, seed=seed) for seed in range(3)]
    assert floors == pytest.approx([largest_vertex(graph)] * 3, rel=1e-9)
