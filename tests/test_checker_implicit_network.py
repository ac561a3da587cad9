"""Implicit layers in the network form: the quadratic form, products of norms, windows, and what must be refused."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb
from implicit_graphs import mixed, random_network, scalar

from lipctrl.certificates.checker import increments
from lipctrl.certificates.checker.definite import balls, exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.increments import multiplier_form, scaled_output, unroll
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.network import Affine, Implicit, Input, Network, read_network
from lipctrl.certificates.checker.products import absolute_product, norm_product
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz, prove_network
from lipctrl.certificates.checker.windows import window
from lipctrl.certificates.checker.writing import write_certificate


def test_windows_may_hold_whole_layers() -> None:
    network = read_network(mixed())
    place = next(i for i, signal in enumerate(network.signals) if isinstance(signal, Implicit))
    part = window(network, place - 1, place)
    assert isinstance(part.signals[1], Implicit) and part.signals[1].operand == 0
    one = np.ones(part.inputs)
    prove_network(part, "l2", one, one, norm_product(part, one, one) * (1 + 1e-9), {"method": "norm-product"})


# --- what the checker must refuse -------------------------------------------------------------------------------------


def claim_of(bound: float, norm: str = "l2") -> dict[str, Any]:
    return {"property": "lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "bound": float(bound).hex()}


def evidence_of(*multipliers: float) -> dict[str, Any]:
    return {"method": "multipliers", "multipliers": [[float(value).hex() for value in multipliers]]}


def test_the_trap_is_refused() -> None:
    """z = relu(2 z + x), y = z / 10: M is positive definite with lambda = -1 and bound^2 = 10, but there is no function."""
    for metric in (1.0, -1.0):
        tensors = {"D": np.array([[2.0]]), "m": np.array([metric]), "w": np.array([[0.1]])}
        nodes = (
            Node("input", (), {"name": "x", "size": 1}),
            Node("implicit", (0,), {"weight": "D", "metric": "m", "activation": "relu"}),
            Node("affine", (1,), {"weight": "w", "bias": None}),
        )
        graph = Graph(nodes, {"y": 2}, tensors)
        for multiplier in (-1.0, 0.0, 1.0):
            with pytest.raises(Rejected, match="not proved to be well-posed|not positive"):
                prove_lipschitz(graph, claim_of(math.sqrt(10)), evidence_of(multiplier))
    trap = Implicit(0, np.array([[2.0]]), np.ones(1), 1.0, np.zeros(1), np.ones(1))  # as if it were proved
    network = Network((Input(1), trap), 1, np.ones(1), np.ones(1))
    form = multiplier_form(unroll(network, exact), exact(np.array([10.0])), {1: exact(np.array([[0.1]]))}, [np.array([-1.0])])
    assert np.linalg.eigvalsh(form.value)[0] > 0  # so the sign of the multiplier has to be tested
    with pytest.raises(Rejected, match="negative"):
        prove_network(network, "l2", np.ones(1), np.array([0.1]), math.sqrt(10), evidence_of(-1.0))


@pytest.mark.parametrize("multiplier", ["nan", "-0x1.0p+0", "inf", "1/0"])
def test_multipliers_that_are_no_positive_numbers(multiplier: str) -> None:
    with pytest.raises(Rejected):
        prove_lipschitz(scalar(-1.0), claim_of(1.0), {"method": "multipliers", "multipliers": [[multiplier]]})


def test_bounds_that_are_too_small() -> None:
    """For z = relu(-z + x), lambda (dz) (2 dz - dx) + rho^2 dx^2 - dz^2 >= 0 has its best lambda at 1, rho = 1/2."""
    graph = scalar(-1.0)
    prove_lipschitz(graph, claim_of(0.5 * (1 + 1e-9)), evidence_of(1.0))
    for bound, multiplier in ((0.5 * (1 - 1e-9), 1.0), (0.5 * (1 + 1e-9), 1.01), (0.5 * (1 + 1e-9), 0.99), (0.6, 0.0)):
        with pytest.raises(Rejected, match="could not be shown"):
            prove_lipschitz(graph, claim_of(bound), evidence_of(multiplier))
    with pytest.raises(Rejected, match="product of norms"):
        prove_lipschitz(graph, claim_of(0.4999), {"method": "norm-product"})
    with pytest.raises(Rejected, match="product of absolute values"):
        prove_lipschitz(graph, claim_of(0.4999, "linf"), {"method": "absolute-product"})


def test_a_changed_weight_is_another_network(tmp_path: Any) -> None:
    graph = scalar(-1.0)
    folder = write_certificate(tmp_path / "a", kind="lipschitz-bound", claim=claim_of(0.51), policy=graph, evidence=evidence_of(1.0))
    assert check(folder).level == "proved"
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert check(folder).level == "unknown"
    changed = Graph(graph.nodes, graph.outputs, {**graph.tensors, "tensor0": np.array([[2.0]])})
    with pytest.raises(Rejected, match="well-posed"):
        write_certificate(tmp_path / "b", kind="lipschitz-bound", claim=claim_of(0.51), policy=changed, evidence=evidence_of(1.0))


def test_rounding_is_counted_where_terms_cancel() -> None:
    """1 - b D_jj may cancel: the matrix in floats stays within its radius of the one in balls."""
    generator = np.random.default_rng(11)
    for n in (2, 4, 6):
        skew = generator.standard_normal((n, n))
        weight = np.eye(n) * (1 - 2.0**-30) + 2.0**-32 * (skew - skew.T)
        layer = Implicit(0, weight, np.ones(n), 1e-10, np.full(n, 0.0), np.ones(n))
        curved = Implicit(0, weight, np.ones(n), 1e-10, generator.uniform(0.1, 0.4, n), generator.uniform(0.5, 1, n))
        for signal in (layer, curved):
            network = Network((Input(n), signal), 1, np.ones(n), np.ones(n))
            multipliers = [10.0 ** generator.uniform(-3, 3, n)]
            forms = []
            for lift in (exact, balls):
                unrolled = unroll(network, lift)
                forms.append(multiplier_form(unrolled, lift(np.full(n, 2.0)), scaled_output(unrolled, np.ones(n)), multipliers))
            radius = forms[0].radius()
            for i in range(2 * n):
                for j in range(i + 1):
                    assert abs(forms[1][i][j] - arb(float(forms[0].value[i, j]))) <= arb(float(radius[i, j]))


def test_the_form_is_the_quadratic_form_it_stands_for() -> None:
    network = read_network(random_network(12, 4, "sigmoid"))
    unrolled = unroll(network, exact)
    generator = np.random.default_rng(13)
    multipliers = [generator.uniform(0, 2, 4)]
    form = multiplier_form(unrolled, exact(np.full(3, 2.0)), scaled_output(unrolled, np.array([1.0, 3.0])), multipliers).value
    entering, implicit_layer, leaving = network.signals[1].weight, network.signals[2], network.signals[3].weight
    assert np.array_equal(form, form.T)
    for _ in range(20):
        dx, dz = generator.standard_normal(3), generator.standard_normal(4)
        w = implicit_layer.weight @ dz + entering @ dx
        terms = multipliers[0] * (dz - implicit_layer.low * w) * (dz - implicit_layer.high * w)
        expected = 2 * dx @ dx - np.sum((np.array([1, 3]) * (leaving @ dz)) ** 2) + terms.sum()
        assert np.concatenate([dx, dz]) @ form @ np.concatenate([dx, dz]) == pytest.approx(expected, rel=1e-12)


def test_slopes_on_a_set_narrow_a_layer() -> None:
    graph = scalar(-1.0, "tanh")
    narrow = read_network(graph, {1: Interval(np.array([0.25]), np.array([0.5]))})
    assert narrow.layers[0].low.tolist() == [0.25] and narrow.layers[0].high.tolist() == [0.5]
    with pytest.raises(Rejected, match="contradict"):
        read_network(graph, {1: Interval(np.array([1.25]), np.array([1.5]))})


def layer_of(weight: Any, metric: Any, margin: float) -> Implicit:
    weight = np.array(weight, dtype=np.float64)
    return Implicit(0, weight, np.array(metric, dtype=np.float64), margin, np.zeros(len(weight)), np.ones(len(weight)))


def test_a_layer_and_its_variables() -> None:
    layer = layer_of([[0.5, 0.0], [0.0, 0.5]], [1, 4], 0.5)
    network = Network((Input(2), layer, Affine(1, np.ones((1, 2)))), 2, np.ones(2), np.ones(1))
    assert (layer.size, layer.multipliers, layer.variables, layer.free.tolist()) == (2, 2, 2, [0, 1])
    assert network.layers == (layer,) and network.variables == [2, 2] and network.outputs == 1
    unrolled = unroll(network, exact)
    assert [sorted(rows) for rows in unrolled.entering] == [[0, 1]] and unrolled.bases == (None,)
    assert np.array_equal(unrolled.entering[0][1].value, layer.weight) and np.array_equal(unrolled.entering[0][0].value, np.eye(2))


def test_what_is_read_from_a_graph() -> None:
    graph = random_network(1, 3, "sigmoid")
    signals = read_network(graph).signals
    (layer,) = (signal for signal in signals if isinstance(signal, Implicit))
    assert layer.high.tolist() == [0.25] * 3 and layer.low.tolist() == [0.0] * 3
    node = next(node for node in graph.nodes if node.op == "implicit")
    assert np.array_equal(layer.weight, graph.tensors[node.attributes["weight"]]) and layer.metric.tolist() == [1.0] * 3
    assert layer.margin > 0.1 * (1 - 1e-6)
    twice = Graph(
        (*graph.nodes[:-1], Node("implicit", (len(graph.nodes) - 2,), node.attributes)), {"y": len(graph.nodes) - 1}, graph.tensors
    )
    first, second = (signal for signal in read_network(twice).signals if isinstance(signal, Implicit))
    assert first.weight is second.weight  # read once
    bad = Graph(graph.nodes, graph.outputs, {**graph.tensors, node.attributes["metric"]: -np.ones(3)})
    with pytest.raises(Rejected, match="not positive"):
        read_network(bad)
    constant = Graph(
        (Node("input", (), {"name": "x", "size": 3}), Node("constant", (), {"values": (Fraction(0),) * 3}), *_after(node)),
        {"y": 3},
        graph.tensors,
    )
    with pytest.raises(Rejected, match="'implicit' of 0 signals"):
        read_network(constant)


def _after(node: Node) -> tuple[Node, ...]:
    return Node("implicit", (1,), node.attributes), Node("add", (0, 2))


def test_coordinate_wise_maps_before_and_behind_are_their_own() -> None:
    nodes = (
        Node("input", (), {"name": "x", "size": 1}),
        Node("tanh", (0,)),
        Node("implicit", (1,), {"weight": "D", "metric": "m", "activation": "relu"}),
        Node("sigmoid", (2,)),
    )
    network = read_network(Graph(nodes, {"y": 3}, {"D": np.array([[0.5]]), "m": np.ones(1)}))
    assert [type(signal) for signal in network.signals] == [Input, Implicit]
    assert network.input_gain.tolist() == [1.0] and network.output_gain.tolist() == [0.25]
    only = read_network(
        Graph((*nodes[:1], Node("implicit", (0,), nodes[2].attributes)), {"y": 1}, {"D": np.array([[0.5]]), "m": np.ones(1)})
    )
    assert [type(signal) for signal in only.signals] == [Input, Implicit]


def test_products_of_norms() -> None:
    """|dz| <= |dv| / margin in the metric's norm: coordinates with a small weight may move more."""
    layer = layer_of([[0.5, 0.0], [0.0, 0.5]], [2, 32], 0.5)
    network = Network((Input(2), layer), 1, np.ones(2), np.ones(2))
    ones = np.ones(2)
    assert norm_product(network, ones, ones) == pytest.approx(8, rel=1e-12) and norm_product(network, ones, ones) > 8
    expected = [2 * math.sqrt(17), 2 * math.sqrt(17) / 4]
    assert absolute_product(network, ones, ones) == pytest.approx(expected, rel=1e-12)
    assert np.all(absolute_product(network, ones, ones) > expected)
    assert norm_product(network, 2 * ones, 3 * ones) == pytest.approx(12, rel=1e-12)
    before = Network((Input(2), Affine(0, np.diag([3.0, 0.0])), replace(layer, operand=1)), 2, ones, ones)
    assert norm_product(before, ones, ones) == pytest.approx(24, rel=1e-12)
    assert absolute_product(before, ones, ones) == pytest.approx([6, 1.5], rel=1e-12)


def test_linear_forms_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    network = read_network(random_network(2, 4))
    monkeypatch.setattr(
        increments, "LIMITS", (2 * 12 + 16 + 2 * 8, 10**9)
    )  # the matrix that enters, lifted and used, D, the one that leaves
    unroll(network, exact)
    monkeypatch.setattr(increments, "LIMITS", (2 * 12 + 16 + 2 * 8 - 1, 10**9))
    with pytest.raises(Rejected, match="linear forms"):
        unroll(network, exact)
