"""Bounds of large networks: stages of multipliers, windows and their products, and files that claim too much of them."""

import copy
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from feedforward import random_graph, steepest_sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import accepted

from lipctrl.certificates.checker.chain import read_chain
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import lipschitz_bound
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales, prove_lipschitz, scale_of_norm
from lipctrl.certificates.checker.windows import window
from lipctrl.certificates.checker.writing import write_certificate
from lipctrl.certificates.lipschitz import certify, certify_lipschitz
from lipctrl.certificates.lipschitz import eclipse as eclipse_module
from lipctrl.certificates.lipschitz.eclipse import eclipse
from lipctrl.certificates.lipschitz.patterns import pattern_floor
from lipctrl.certificates.lipschitz.windows import bound_by_windows, cuts

seeds = st.integers(0, 2**32 - 1)


def network(sizes, op="relu", seed=0, scale=1.0, **attributes) -> Graph:
    generator = np.random.default_rng(seed)
    nodes, tensors = [Node("input", (), {"name": "observation", "size": sizes[0]})], {}
    for k, (n, m) in enumerate(pairwise(sizes)):
        tensors[f"w{k}"] = scale * generator.standard_normal((m, n)) / math.sqrt(n)
        tensors[f"b{k}"] = generator.standard_normal(m)
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": f"b{k}"}))
        if k < len(sizes) - 2:
            nodes.append(Node(op, (len(nodes) - 1,), attributes))
    return Graph(tuple(nodes), {"action": len(nodes) - 1}, tensors)


def claim_of(bound):
    return {"property": "lipschitz", "norm": "l2", "input_scale": None, "output_scale": None, "bound": float(bound).hex()}


def proves(graph, bound, evidence):
    try:
        return prove_lipschitz(graph, claim_of(bound), evidence) == bound
    except Rejected:
        return False


def ones_of(graph):
    """The scales of plain Euclidean norms at the ends of the network form."""
    net = read_network(graph)
    return effective_scales(net, (Fraction(1),) * net.inputs, (Fraction(1),) * net.outputs)


# --- stages ---------------------------------------------------------------------------------------------------------------

CHAINS = [
    ("relu", {}),
    ("abs", {}),
    ("gelu", {}),
    ("leaky_relu", {"slope": Fraction(-1, 2)}),
    ("leaky_relu", {"slope": Fraction(1, 5)}),
    ("group_sort", {"group_size": 2}),
    ("group_sort", {"group_size": 3}),
]


@pytest.mark.parametrize(("op", "attributes"), CHAINS, ids=str)
def test_stages_are_proved_and_grow_better(op, attributes):
    """Larger stages see more; one that holds the whole chain finds the optimum."""
    graph = network((4, 9, 10, 8, 7, 3), op, **attributes)
    chain, ones = read_chain(graph), ones_of(graph)
    optimum = certify_lipschitz(graph, splits=0, witness=False).upper.value
    bounds = []
    for order in (0, 1, 25, 200):
        found = eclipse(chain, *ones, order=order, tolerance=1e-4)
        filed = [[float(v * (1 + 1e-6) ** 2).hex() for v in values] for values in found.multipliers]
        assert proves(graph, found.bound * (1 + 1e-6), {"method": "multipliers", "multipliers": filed})
        bounds.append(found.bound)
    assert all(b <= a * (1 + 1e-4) for a, b in pairwise(bounds))
    assert optimum * (1 - 1e-9) <= bounds[-1] <= optimum * 1.001


def test_closed_form_stages_are_below_the_product_of_norms():
    for seed in range(20):
        graph = network((3, 12, 12, 12, 12, 2), seed=seed)
        product = math.prod(float(np.linalg.norm(graph.tensors[f"w{k}"], 2)) for k in range(5))
        assert eclipse(read_chain(graph), *ones_of(graph)).bound <= product * (1 + 1e-9)


def test_wide_layers_get_their_multipliers_in_closed_form(monkeypatch):
    """A stage of one layer that is too wide for Newton steps, between others that are not."""
    graph = network((3, 8, 30, 30, 8, 2))
    chain, ones = read_chain(graph), ones_of(graph)
    closed, whole = eclipse(chain, *ones).bound, eclipse(chain, *ones, order=200).bound
    monkeypatch.setattr(eclipse_module, "MAX_STAGE", 40)
    found = eclipse(chain, *ones, order=1000)
    filed = [[float(v * (1 + 1e-6) ** 2).hex() for v in values] for values in found.multipliers]
    assert proves(graph, found.bound * (1 + 1e-6), {"method": "multipliers", "multipliers": filed})
    assert whole < found.bound < closed


def test_scales_of_norms_enter_the_first_and_last_stage():
    graph = network((3, 8, 8, 2))
    chain = read_chain(graph)
    plain = eclipse(chain, np.ones(3), np.ones(2), order=100, tolerance=1e-6).bound
    assert eclipse(chain, np.full(3, 2.0), np.full(2, 6.0), order=100, tolerance=1e-6).bound == pytest.approx(3 * plain, rel=1e-5)


# --- windows --------------------------------------------------------------------------------------------------------------


def test_a_window_is_the_network_between_two_signals():
    """Composed again from the graph: slopes of the whole are at most products of slopes of the parts."""
    net = read_network(network((3, 8, 8, 8, 2), "tanh"))
    places = cuts(net)
    assert places == [0, 2, 4, 6, 7]
    part = window(net, 2, 6)
    assert part.inputs == 8 and part.outputs == 8 and len(part.layers) == 1
    assert bool(np.all(part.output_gain == 1)) and part.variables == [8, 8]


@given(seeds)
def test_cuts_separate_the_network(seed):
    """Nothing behind a cut reads anything before it, in networks with skips and branches."""
    net = read_network(random_graph(seed, steps=10, width=4))
    for first, last in pairwise(cuts(net)):
        part = window(net, first, last)
        assert part.inputs == net.signals[first].size
    refused = 0
    for first in set(range(net.output)) - {*cuts(net)}:
        try:
            window(net, first, net.output)
        except Rejected:
            refused += 1
    assert refused or len(cuts(net)) > 1


@settings(max_examples=30)
@given(seeds, st.sampled_from([1, 20, 40]))
def test_products_of_windows_hold_on_random_pairs(seed, order):
    graph = random_graph(seed, steps=10, width=5)
    net, ones = read_network(graph), ones_of(graph)
    with np.errstate(all="ignore"):
        found = bound_by_windows(net, *ones, 1e-2, order=order)
    if found is not None:
        bound, evidence = found
        assert proves(graph, bound, evidence)
        assert steepest_sampled(graph, seed) <= bound * (1 + 1e-9)


@pytest.mark.parametrize(("op", "attributes"), CHAINS, ids=str)
def test_windows_of_every_activation(op, attributes):
    graph = network((3, 10, 10, 10, 10, 2), op, **attributes)
    net, ones = read_network(graph), ones_of(graph)
    optimum = certify_lipschitz(graph, splits=0, witness=False).upper.value
    bounds = [bound_by_windows(net, *ones, 1e-4, order=order) for order in (1, 24, 36)]
    for bound, evidence in bounds:
        assert proves(graph, bound, evidence) and not proves(graph, bound * (1 - 1e-9), evidence)
        assert bound >= optimum
    assert bounds[2][0] <= bounds[0][0]


# --- files ----------------------------------------------------------------------------------------------------------------

GRAPH = network((3, 6, 6, 6, 2), seed=4)
BOUND, EVIDENCE = bound_by_windows(read_network(GRAPH), *ones_of(GRAPH), 1e-3, order=12)


def changed(index, **changes):
    evidence = copy.deepcopy(EVIDENCE)
    evidence["windows"][index] |= changes
    return evidence


def test_the_windows_of_these_files():
    assert proves(GRAPH, BOUND, EVIDENCE) and len(EVIDENCE["windows"]) >= 2
    assert any(entry["evidence"]["method"] == "multipliers" for entry in EVIDENCE["windows"])
    assert not proves(GRAPH, math.nextafter(BOUND, 0), EVIDENCE)


@pytest.mark.parametrize(
    "evidence",
    [
        {"method": "windows"},
        {"method": "windows", "windows": []},
        {"method": "windows", "windows": EVIDENCE["windows"][:1]},
        {"method": "windows", "windows": EVIDENCE["windows"][1:]},
        {"method": "windows", "windows": EVIDENCE["windows"][:-1]},
        {"method": "windows", "windows": EVIDENCE["windows"] * 200},
        {"method": "windows", "windows": EVIDENCE["windows"][::-1]},
        {"method": "windows", "windows": [EVIDENCE["windows"][0], *EVIDENCE["windows"]]},
        {"method": "windows", "windows": {"0": EVIDENCE["windows"][0]}},
        {"method": "windows", "windows": EVIDENCE["windows"], "slopes": []},
        changed(0, bound=(0.5).hex()),
        changed(0, bound=(-1.0).hex()),
        changed(0, bound="nan"),
        changed(0, last=0),
        changed(0, last=-1),
        changed(0, last=True),
        changed(0, last=99),
        changed(0, last="2"),
        changed(-1, last=None),
        changed(0, scale=[(0.5).hex()] * 6),  # the windows before and behind it must both hold with it
        changed(0, scale=[(2.0).hex()] * 6),
        changed(0, scale=[(1.0).hex()] * 5),
        changed(0, scale=[(-1.0).hex()] * 6),
        changed(0, scale=[(0.0).hex()] * 6),
        changed(-1, scale=[(1.0).hex()] * 2),
        changed(0, evidence=EVIDENCE),
        changed(0, evidence={"method": "norm-product"}, bound=(1e-3).hex()),
        changed(0, evidence=None),
        changed(0, slopes=[]),
    ],
)
def test_malformed_or_false_windows_are_rejected(evidence):
    assert not proves(GRAPH, BOUND, evidence)


def test_scales_between_windows_are_counted_on_both_sides():
    """A hidden layer in other units: the first window's bound is larger by what the second one's is smaller."""
    graph = network((3, 6, 2), seed=1)
    first, second = (float(np.linalg.norm(graph.tensors[name], 2)) * (1 + 1e-9) for name in ("w0", "w1"))

    def evidence(factor, scale):
        windows = [
            {"last": 2, "scale": [float(scale).hex()] * 6, "bound": float(first * factor).hex(), "evidence": {"method": "norm-product"}},
            {"last": 3, "scale": None, "bound": float(second / factor).hex(), "evidence": {"method": "norm-product"}},
        ]
        return {"method": "windows", "windows": windows}

    whole = first * second * (1 + 1e-9)
    assert all(proves(graph, whole, evidence(factor, factor)) for factor in (1, 4, 1 / 8))
    assert not any(proves(graph, whole, evidence(factor, scale)) for factor, scale in ((1, 2), (4, 1), (1 / 8, 1), (1, 1 / 2)))


def test_what_goes_around_a_cut_is_seen():
    """y = W1 relu(W0 x) + x cannot be cut behind its hidden layer."""
    nodes = (
        Node("input", (), {"name": "observation", "size": 2}),
        Node("affine", (0,), {"weight": "w", "bias": None}),
        Node("relu", (1,)),
        Node("affine", (2,), {"weight": "w", "bias": None}),
        Node("add", (3, 0)),
    )
    graph = Graph(nodes, {"action": 4}, {"w": np.eye(2) / 10})
    assert cuts(read_network(graph)) == [0, 4]
    windows = [
        {"last": 2, "scale": None, "bound": (0.2).hex(), "evidence": {"method": "norm-product"}},
        {"last": 4, "scale": None, "bound": (0.2).hex(), "evidence": {"method": "norm-product"}},
    ]
    with pytest.raises(Rejected, match="from before its window"):
        prove_lipschitz(graph, claim_of(2.0), {"method": "windows", "windows": windows})


def test_windows_that_would_take_hours_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(lipschitz_bound, "MAX_ROW_WORK", 100.0)
    with pytest.raises(Rejected, match="more than are judged"):
        prove_lipschitz(GRAPH, claim_of(BOUND), EVIDENCE)


def test_accepted_mutants_of_windows_are_true(tmp_path):
    """Their bounds are above every activation pattern of the network that they are about."""
    folder = write_certificate(tmp_path / "valid", kind="lipschitz-bound", claim=claim_of(BOUND), policy=GRAPH, evidence=EVIDENCE)
    assert check(folder).level == "proved"
    judged = list(accepted(folder, 400, seed=3))
    for change, certificate in judged:
        net, claim = read_network(certificate.policy), certificate.claim
        assert claim["norm"] == "l2", change
        scales = (scale_of_norm(claim[name], size) for name, size in (("input_scale", net.inputs), ("output_scale", net.outputs)))
        floor = pattern_floor(net, *effective_scales(net, *scales))
        assert float.fromhex(claim["bound"]) >= floor * (1 - 1e-9), change
    assert 0 < len(judged) < 200


# --- the rule -------------------------------------------------------------------------------------------------------------


def test_large_networks_are_searched_in_parts(monkeypatch):
    """The same network as if it were large, larger than one matrix, and no chain."""
    graph = network((3, 12, 12, 12, 12, 12, 2), seed=2)
    small = certify_lipschitz(graph, splits=0, witness=False).upper
    product = math.prod(float(np.linalg.norm(graph.tensors[f"w{k}"], 2)) for k in range(6))
    monkeypatch.setattr(certify, "MAX_NEWTON_ORDER", 20)
    monkeypatch.setattr(certify, "WINDOW_ORDER", 30)
    stages = certify_lipschitz(graph, splits=0, witness=False)
    assert stages.upper.method == "multipliers" and small.value <= stages.upper.value < 0.5 * product
    monkeypatch.setattr(certify, "MAX_ORDER", 20)
    lines = []
    windows = certify_lipschitz(graph, splits=0, witness=False, progress=lambda fraction, message, best: lines.append(message))
    assert windows.upper.method == "norm-product" or windows.upper.value < product
    assert stages.check().level == windows.check().level == "proved"


def test_wide_networks_have_bounds_by_windows():
    graph = network((4, *[40] * 20, 2), seed=3)
    net, ones = read_network(graph), ones_of(graph)
    bound, evidence = bound_by_windows(net, *ones, 1e-2, order=130)
    product = math.prod(float(np.linalg.norm(graph.tensors[f"w{k}"], 2)) for k in range(21))
    assert len(evidence["windows"]) > 3 and bound < product / 50
    assert proves(graph, bound, evidence)


def test_deep_sorted_networks_fall_back_to_windows():
    """Sums pass through every sort, so that roundings of one matrix add up over twenty layers; windows have few of them."""
    graph = network((4, *[12] * 18, 2), "group_sort", seed=5, group_size=2)
    upper = certify_lipschitz(graph, witness=False, tolerance=1e-2).upper
    product = math.prod(float(np.linalg.norm(graph.tensors[f"w{k}"], 2)) for k in range(19))
    assert upper.method in ("multipliers", "windows") and upper.value < product / 5
