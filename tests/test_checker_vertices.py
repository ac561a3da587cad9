"""Trees of vertices as the checker reads them: which networks their leaves are, and what a file may not say."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from feedforward import layered

from lipctrl.certificates.checker import vertices as module
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.network import Activation, Affine, Input, Network, Sort, read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.certificates.checker.verifiers.local_lipschitz import products_of
from lipctrl.certificates.checker.vertices import leaves, prove_vertices, split

ONE = 1 + 2.0**-40  # matrices that are singular are never proved
LINEAR = {"method": "multipliers", "multipliers": [[]]}  # every unit is split


ABSOLUTE = layered([[[1], [-1]], [[1, 1]]])  # relu(x) + relu(-x): slopes 1, -1, and 0 if both may be closed
HALF = Network((Input(2), Activation(0, np.array([-1.0, 0.5]), np.array([2.0, 0.5]))), 1, np.ones(2), np.ones(2))


def prove(graph, tree, proofs, bound=ONE, norm="l2", **changes):
    claim = {"property": "lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "bound": float(bound).hex()}
    return prove_lipschitz(graph, claim, {"method": "vertices", "tree": tree, "proofs": proofs, **changes})


def refuses(match, *arguments, **options):
    with pytest.raises(Rejected, match=match):
        prove(*arguments, **options)


# --- leaves ---------------------------------------------------------------------------------------------------------------


def slopes_of(network: Network):
    return [(signal.low.tolist(), signal.high.tolist()) for signal in network.layers]


def test_leaves_have_the_ends_of_slopes_in_preorder():
    network = Network((Input(3), Affine(0, np.eye(3)), *_activations()), 4, np.ones(3), np.ones(3))
    found = list(leaves(network, [[1, 2], [0, 1], "a", {"b": 1}, None]))
    assert [entry for _, entry in found] == ["a", {"b": 1}, None]
    first, second = ([-1.0, 0.0, 0.25], [1.0, 0.5, 0.25]), ([0.0, 0.0, -2.0], [1.0, 1.0, 3.0])
    assert [slopes_of(leaf) for leaf, _ in found] == [
        [([-1.0, 0.0, 0.25], [1.0, 0.0, 0.25]), ([0.0, 0.0, -2.0], [1.0, 1.0, -2.0])],
        [([-1.0, 0.5, 0.25], [1.0, 0.5, 0.25]), ([0.0, 0.0, -2.0], [1.0, 1.0, -2.0])],
        [first, ([0.0, 0.0, 3.0], [1.0, 1.0, 3.0])],
    ]
    assert slopes_of(network) == [first, second]
    for leaf, _ in found:
        assert [type(signal) for signal in leaf.signals] == [type(signal) for signal in network.signals]
        assert (leaf.signals[2].operand, leaf.signals[3].operand, leaf.output) == (1, 2, 4) and leaf.signals[1] is network.signals[1]


def _activations():
    yield Activation(1, np.array([-1.0, 0.0, 0.25]), np.array([1.0, 0.5, 0.25]))
    yield Activation(2, np.array([0.0, 0.0, -2.0]), np.array([1.0, 1.0, 3.0]))
    yield Affine(3, np.ones((3, 3)))


def test_a_tree_may_be_one_leaf():
    assert [(leaf is HALF, entry) for leaf, entry in leaves(HALF, [7])] == [(True, 7)]


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({}, "must be a list"),
        (None, "must be a list"),
        ([], "ends too early"),
        ([[0, 0]], "ends too early"),
        ([[0, 0], 0], "ends too early"),
        ([0, 0], "left over"),
        ([[0, 0], 0, 1, [0, 0]], "left over"),
        ([[0, 0], [0, 0], 0, 1, 2], "no slopes to be split"),  # the same unit again, behind its lower end
        ([[0, 0], 0, [0, 0], 1, 2], "no slopes to be split"),
        ([[0, 1], 0, 1], "no slopes to be split"),  # a linear unit
        ([[0, 2], 0, 1], "no slopes to be split"),
        ([[0, -1], 0, 1], "no slopes to be split"),
        ([[1, 0], 0, 1], "names layer 1, this network has 1"),
        ([[-1, 0], 0, 1], "names layer -1"),
        ([[0], 0, 1], r"\[layer, unit\]"),
        ([[0, 0, 1], 0, 1], r"\[layer, unit\]"),
        ([[0, False], 0, 1], r"\[layer, unit\]"),
        ([["0", 0], 0, 1], r"\[layer, unit\]"),
        ([[None, 0], 0, 1], r"\[layer, unit\]"),
        ([[[0], 0], 0, 1], r"\[layer, unit\]"),
    ],
)
def test_malformed_trees(tree, match):
    with pytest.raises(Rejected, match=match):
        list(leaves(HALF, tree))


def test_only_coordinate_wise_units_are_split():
    sort = Network((Input(4), Sort(0, 4, 2), Activation(1, np.zeros(4), np.ones(4))), 2, np.ones(4), np.ones(4))
    low, high = split(sort, [1, 3])
    assert (low.layers[1].high[3], high.layers[1].low[3]) == (0, 1)
    with pytest.raises(Rejected, match="unit 3 of layer 0 has no slopes"):
        split(sort, [0, 3])


def test_implicit_layers_stay_whole():
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("relu", (0,)),
        Node("affine", (1,), {"weight": "w", "bias": None}),
        Node("implicit", (2,), {"weight": "d", "metric": "m", "activation": "relu"}),
        Node("add", (3, 0)),
    )
    tensors = {"w": np.eye(2), "d": np.array([[0.0, 0.5], [-0.5, 0.0]]), "m": np.ones(2)}
    network = read_network(Graph(nodes, {"y": 4}, tensors))
    with pytest.raises(Rejected, match="unit 0 of layer 1 has no slopes"):
        split(network, [1, 0])
    assert split(network, [0, 0])[0].layers[0].high.tolist() == [0, 1]


def test_limits_of_trees(monkeypatch):
    wide = Network((Input(6), Activation(0, np.zeros(6), np.ones(6))), 1, np.ones(6), np.ones(6))
    chain = [entry for unit in range(5) for entry in ([0, unit], 0)] + [0]  # behind the upper ends
    other = [[0, unit] for unit in range(5)] + 6 * [0]  # behind the lower ones
    monkeypatch.setattr(module, "MAX_DEPTH", 5)
    monkeypatch.setattr(module, "MAX_LEAVES", 6)
    assert len(list(leaves(wide, chain))) == len(list(leaves(wide, other))) == 6
    monkeypatch.setattr(module, "MAX_LEAVES", 5)
    with pytest.raises(Rejected, match="more than 5 leaves"):
        list(leaves(wide, chain))
    monkeypatch.setattr(module, "MAX_DEPTH", 4)
    for tree in (chain, other):
        with pytest.raises(Rejected, match="more than 4 times in a row"):
            list(leaves(wide, tree))


# --- proofs ---------------------------------------------------------------------------------------------------------------


def test_the_greatest_vertex_is_the_bound():
    """relu(x) + relu(-x) = |x|, and with both closed 0: no slope is beyond 1."""
    tree = [[0, 0], [0, 1], 0, 0, [0, 1], 0, 0]
    assert prove(ABSOLUTE, tree, [LINEAR]) == ONE
    refuses("do not prove the bound", ABSOLUTE, tree, [LINEAR], bound=1)  # exactly singular
    refuses("do not prove the bound", ABSOLUTE, tree, [LINEAR], bound=1 - 2.0**-40)


def test_leaves_may_have_different_proofs():
    free = {"method": "multipliers", "multipliers": [["2"]]}  # one unit left, with slopes in [0, 1]
    product = {"method": "norm-product"}
    assert prove(ABSOLUTE, [[0, 0], 0, 1], [product, free], bound=1.5) == 1.5
    assert prove(ABSOLUTE, [0], [{"method": "multipliers", "multipliers": [["9/4", "9/4"]]}], bound=1.5) == 1.5
    refuses("product of norms", ABSOLUTE, [[0, 0], 0, 0], [product], bound=1.4)


def test_a_proof_of_another_vertex_is_none():
    """2 relu(x) - relu(y): each proof holds at its own vertex."""
    graph = layered([np.eye(2), [[2, -1]]])
    low, high = ({"method": "multipliers", "multipliers": [[value]]} for value in ("3/2", "5"))
    assert prove(graph, [[0, 0], 0, 1], [low, high], 2.5) == 2.5
    assert prove(graph, [[0, 0], 1, 1], [low, high], 2.5) == 2.5
    refuses("do not prove", graph, [[0, 0], 1, 0], [low, high], 2.5)
    refuses("do not prove", graph, [[0, 0], 0, 1], [low, high], 2.2)  # below sqrt(5), the truth


def test_the_ends_of_slopes_come_from_the_graph():
    leaky = layered([[[1.0]], [[1.0]]], "leaky_relu", slope=Fraction(-3))
    assert prove(leaky, [[0, 0], 0, 0], [LINEAR], bound=3 * ONE) == 3 * ONE
    refuses("do not prove", leaky, [[0, 0], 0, 0], [LINEAR], bound=2.99)


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_sorted_groups_are_exchanges_of_neighbours(group_size):
    """Sorting and undoing nothing: every vertex is a permutation, of norm 1; outputs weighed by 1, 2, ... have norm sqrt(1 + 4 + ...)."""
    graph = layered([np.eye(group_size), [np.arange(group_size) + 1.0]], "group_sort", group_size=group_size)
    rounds = {2: [[0]], 3: [[0], [0], [0]], 4: [[0, 1], [0], [0, 1], [0]]}[group_size]
    splits = [[layer, unit] for layer, units in enumerate(rounds) for unit in units]
    tree, linear = full_tree(splits), {"method": "multipliers", "multipliers": [[] for _ in rounds]}
    bound = float(np.linalg.norm(np.arange(group_size) + 1.0)) * (1 + 1e-9)
    assert prove(graph, tree, [linear], bound) == bound
    refuses("do not prove", graph, tree, [linear], bound * (1 - 1e-8))


def full_tree(splits):
    """Every unit is split, in this order; all leaves rest on proof 0."""
    return [splits[0], *2 * full_tree(splits[1:])] if splits else [0]


def test_recentred_networks_and_scales_are_split_as_well():
    inner = layered([[[3.0]], [[2.0]]], "abs")
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("recentre", (0,), {"graph": inner, "point": (Fraction(0),), "offset": "o"}))
    graph = Graph(nodes, {"y": 1}, {"o": np.zeros(1), **inner.tensors})
    claim = {"property": "lipschitz", "norm": "l2", "input_scale": ["2"], "output_scale": ["5"], "bound": float(15 * ONE).hex()}
    evidence = {"method": "vertices", "tree": [[0, 0], 0, 0], "proofs": [LINEAR]}
    assert prove_lipschitz(graph, claim, evidence) == 15 * ONE
    with pytest.raises(Rejected, match="do not prove"):
        prove_lipschitz(graph, {**claim, "bound": (14.9).hex()}, evidence)


def test_maximum_norm():
    row = {"multipliers": [[]], "shares": [float(ONE).hex()]}
    proof = {"method": "multipliers", "rows": [row]}
    assert prove(ABSOLUTE, full_tree([[0, 0], [0, 1]]), [proof], ONE, "linf") == ONE
    absolute = {"method": "absolute-product"}
    assert prove(ABSOLUTE, [[0, 0], 0, 1], [absolute, {"method": "absolute-product"}], 2.1, "linf") == 2.1
    refuses("product of absolute values", ABSOLUTE, [[0, 0], 0, 0], [absolute], 1.9, "linf")
    refuses("expected method", ABSOLUTE, [0], [LINEAR | {"method": "norm-product"}], ONE, "linf")


@pytest.mark.parametrize(
    ("entry", "proofs", "match"),
    [
        (1, [LINEAR], "index of a proof"),
        (-1, [LINEAR], "index of a proof"),
        (False, [LINEAR], "index of a proof"),
        (None, [LINEAR], "index of a proof"),
        ("0", [LINEAR], "index of a proof"),
        (0, [[]], "index of a proof"),
        (0, [None], "index of a proof"),
        (0, [], "with 1 to 4096 entries"),
        (0, {}, "with 1 to 4096 entries"),
        (0, [{"method": "windows", "windows": []}], "no windows inside"),
        (0, [{"method": "vertices", "tree": [0], "proofs": [LINEAR]}], "expected method"),
        (0, [LINEAR | {"slopes": []}], "slopes"),
        (0, [{"method": "multipliers", "multipliers": [["1"]]}], "list of 0"),
        (0, [{}], "expected method"),
    ],
)
def test_malformed_proofs(entry, proofs, match):
    refuses(match, ABSOLUTE, [*full_tree([[0, 0], [0, 1]])[:-1], entry], proofs)


def test_malformed_evidence():
    tree = full_tree([[0, 0], [0, 1]])
    for key in ("slopes", "multipliers", "level"):
        refuses("evidence", ABSOLUTE, tree, [LINEAR], **{key: []})
    refuses("expected method", ABSOLUTE, tree, [LINEAR], method="Vertices")
    with pytest.raises(Rejected):
        prove_vertices(read_network(ABSOLUTE), "l2", np.ones(1), np.ones(1), ONE, {"method": "vertices", "tree": tree})
    missing = [[0, 0], [0, 1], 0, 0, 0]  # the half with the first unit open is judged as one leaf
    refuses("multipliers", ABSOLUTE, missing, [LINEAR])


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), 0.0, -1.0])
def test_bounds_that_are_none(bound):
    with pytest.raises(Rejected):
        prove(ABSOLUTE, full_tree([[0, 0], [0, 1]]), [LINEAR], bound)


def test_work_is_counted_before_it_is_done(monkeypatch):
    network, tree = read_network(ABSOLUTE), [[0, 0], 0, 1]
    proofs = [{"method": "multipliers", "multipliers": [["2"]]}] * 2
    ends = split(network, [0, 0])
    work = sum(products_of(leaf, "l2", True) + 4 * module.PER_SIGNAL for leaf in ends)
    monkeypatch.setattr(module, "MAX_PRODUCTS", work)
    monkeypatch.setattr(module, "MAX_LEAVES", 2)
    arguments = (network, "l2", np.ones(1), np.ones(1), 1.5, {"method": "vertices", "tree": tree, "proofs": proofs})
    prove_vertices(*arguments)
    monkeypatch.setattr(module, "MAX_PRODUCTS", work - 1)
    with pytest.raises(Rejected, match="more work"):
        prove_vertices(*arguments)
    monkeypatch.setattr(module, "MAX_LEAVES", 1)
    with pytest.raises(Rejected, match="with 1 to 1 entries"):
        prove_vertices(*arguments)
