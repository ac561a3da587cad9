"""The search for Lipschitz bounds: known optima, soundness on random networks, records that are no truth values."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.bundle import read_certificate
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.lipschitz import certify_lipschitz, rounded_down, slope_between
from lipctrl.certificates.lipschitz.newton import least_square, solve, start
from lipctrl.certificates.lipschitz.patterns import pattern_floor
from lipctrl.certificates.lipschitz.system import build_system
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction
FIRST = [[1, 2], [-1, 1], [2, -1]]


def network(weights, op="relu", biases=None, dtype=np.float64, **attributes) -> Graph:
    nodes = [Node("input", (), {"name": "observation", "size": np.shape(weights[0])[1]})]
    tensors = {}
    for k, weight in enumerate(weights):
        tensors[f"w{k}"] = np.array(weight, dtype=dtype)
        tensors[f"b{k}"] = np.array(np.zeros(len(weight)) if biases is None else biases[k], dtype=dtype)
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": f"b{k}"}))
        if k < len(weights) - 1:
            nodes.append(Node(op, (len(nodes) - 1,), attributes))
    return Graph(tuple(nodes), {"action": len(nodes) - 1}, tensors)


def he_weights(*sizes):
    generator = np.random.default_rng(0)
    return [generator.standard_normal((m, n)) * math.sqrt(2 / n) for n, m in pairwise(sizes)]


def published_weights(layers, width):
    """The generator of the ECLipsE experiments: 4 inputs, 1 output, spectral norms uniform in [0.4, 1.8]."""
    state = np.random.RandomState(7 * width + 13 * layers)
    weights = []
    for n, m in pairwise([4, *[width] * (layers - 1), 1]):
        norm, weight = state.uniform(0.4, 1.8), state.randn(m, n)
        weights.append(weight * norm / np.linalg.norm(weight, 2))
    return weights


# --- optima -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "optimum"),
    [
        ([[[1], [1]], [[1, -1]]], 1),  # A
        ([np.ones((4, 3)), np.ones((5, 4)), np.ones((2, 5))], 20 * math.sqrt(6)),  # B
        ([[[1], [-1]], [[1, 1]]], 1),  # C
        ([[[1, 1], [1, -1]], [[1, 1]]], 2),  # E
        ([np.eye(2), [[1, 1]]], math.sqrt(2)),  # F
        ([FIRST, [[1, -1, 2]]], math.sqrt(37)),  # G
        ([FIRST, [[1, -1, 0], [2, 1, -1], [0, 1, 1]], [[1, -2, 1]]], 12.4131552),  # H
        ([FIRST, [[1, -1, 2], [0, 1, 1]]], 3 + math.sqrt(10)),  # I
        ([[[0, 2], [0, -2], [0, 1]], [[-2, 0, -1], [1, 1, -2], [-2, -2, 1]], [[-2, 2, 2]]], 14.0421),  # J
        ([[[2]], [[3]], [[0.5]], [[4]]], 12),  # M
        (published_weights(2, 20), 0.383981),
        (published_weights(5, 20), 0.568873),
        (he_weights(3, 64, 64, 1), 9.35125),
        (he_weights(17, 64, 64, 6), 6.99724),
    ],
)
def test_known_optima(weights, optimum):
    upper = certify_lipschitz(network(weights), splits=0, witness=False).upper
    tolerance = 3e-6 if optimum == round(optimum, 5) else 1e-6
    assert optimum * (1 - tolerance) <= upper.value <= optimum * (1 + tolerance)


def test_floors_and_witnesses_of_the_oracles():
    h = [FIRST, [[1, -1, 0], [2, 1, -1], [0, 1, 1]], [[1, -2, 1]]]
    ones = np.ones(2), np.ones(1)
    assert pattern_floor(read_network(network(h)), *ones) == pytest.approx(math.sqrt(153), rel=1e-9)
    j = [[[0, 2], [0, -2], [0, 1]], [[-2, 0, -1], [1, 1, -2], [-2, -2, 1]], [[-2, 2, 2]]]
    assert pattern_floor(read_network(network(j)), *ones) == pytest.approx(12, rel=1e-9)
    g = certify_lipschitz(network([FIRST, [[1, -1, 2]]], biases=[[10, 10, 10], [0]]))
    assert g.lower.value == pytest.approx(math.sqrt(37), rel=1e-9) and g.lower.value <= math.sqrt(37) <= g.upper.value
    a = certify_lipschitz(network([[[1], [1]], [[1, -1]]], biases=[[0, -10], [0]]))
    assert 1 - 1e-9 <= a.lower.value <= 1


def test_autodiff_at_a_kink_is_no_lower_bound():
    """relu(x + 10) - 10 - relu(x) + relu(-x) is 0 on [-10, ...): around 0 no pair of points has a slope, and none is claimed."""
    graph = network([[[1], [1], [-1]], [[1, -1, 1]]], biases=[[10, 0, 0], [-10]])
    for x, y in ((-1, 1), (0, F(1, 1000)), (-5, 5)):
        assert slope_between(graph, (F(x),), (F(y),), (F(1),), (F(1),)) == 0
    result = certify_lipschitz(graph)
    assert result.lower.value <= 1 <= result.upper.value


def test_sorted_groups_are_bounded_far_below_the_product():
    generator = np.random.default_rng(3)
    for group_size in (2, 3, 5):
        weights = [generator.standard_normal(shape) for shape in ((8, 4), (8, 8), (3, 8))]
        result = certify_lipschitz(network(weights, "group_sort", group_size=group_size), splits=0)
        product = np.prod([np.linalg.norm(weight, 2) for weight in weights])
        assert result.upper.method == "multipliers"
        assert result.lower.value <= result.floor <= result.upper.value < 0.95 * product
        assert result.upper.value <= 1.15 * result.floor


def test_orthonormal_maxmin_is_bounded_by_its_product():
    generator = np.random.default_rng(1)
    weights = [np.linalg.qr(generator.standard_normal((8, 8)))[0] for _ in range(5)]
    result = certify_lipschitz(network(weights, "group_sort", group_size=2))
    assert result.upper.method == "norm-product"
    assert result.upper.value <= 1 + 1e-11 and result.lower.value >= 1 - 1e-6


# --- invariances --------------------------------------------------------------------------------------------------------


def test_invariances_of_the_optimum():
    generator = np.random.default_rng(7)
    weights = [generator.standard_normal(shape) for shape in ((6, 3), (5, 6), (2, 5))]

    def optimum(*matrices, **options):
        return certify_lipschitz(network(matrices), witness=False, tolerance=1e-8, **options).upper.value

    base = optimum(*weights)
    order = generator.permutation(6)
    assert optimum(weights[0][order], weights[1][:, order], weights[2]) == pytest.approx(base, rel=1e-7)
    assert optimum(1e4 * weights[0], weights[1], weights[2]) == pytest.approx(1e4 * base, rel=1e-7)
    double = np.vstack([weights[0], weights[0][:1]])
    halved = np.hstack([weights[1], weights[1][:, :1] / 2])
    halved[:, 0] /= 2
    assert optimum(double, halved, weights[2]) == pytest.approx(base, rel=1e-6)
    assert optimum(weights[0][1:], weights[1][:, 1:], weights[2]) <= base * (1 + 1e-7)
    assert optimum(*weights, input_scale=2) == pytest.approx(base / 2, rel=1e-7)
    assert optimum(*weights, output_scale="0.1") == pytest.approx(base / 10, rel=1e-7)


def test_units_that_are_constant_or_reach_no_output():
    weights = [np.array([[1.0, 2], [0, 0], [3, -1], [0, 0]]), np.array([[1.0, 5, 0, 0], [0, 2, 0, 0]])]
    result = certify_lipschitz(network(weights))
    assert result.upper.value == pytest.approx(math.sqrt(5), rel=1e-5)
    zero = certify_lipschitz(network([np.zeros((3, 2)), np.ones((1, 3))]))
    assert zero.upper.value == 0 and zero.lower.value == 0


def test_networks_that_are_constant_although_no_layer_is_zero():
    """The optimum is 0, which no strictly feasible multipliers reach: there is a bound, if a loose one, and no failure."""
    weights = [np.array([[1.0, 2], [0, 0]]), np.array([[0, 1.0], [0, 0], [0, 2]]), np.array([[1.0, 1, 1]])]
    for op in ("relu", "neg"):
        result = certify_lipschitz(network(weights, op))
        assert result.lower.value == 0 and result.check().level == "proved"


# --- soundness ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.sampled_from(["relu", "tanh", "sigmoid", "softplus", "abs", "gelu", "silu", "leaky_relu", "group_sort", "clip"]),
    st.floats(-6, 6),
)
def test_upper_bounds_are_above_everything_found(seed, depth, op, scale):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 17, depth + 2)
    weights = [generator.standard_normal((m, n)) * math.sqrt(2 / n) for n, m in pairwise(sizes)]
    weights[generator.integers(depth + 1)] *= 10**scale
    attributes = {"leaky_relu": {"slope": F(-1, 3)}, "group_sort": {"group_size": 3}}.get(op, {})
    biases = [generator.standard_normal(m) for m in sizes[1:]]
    if op == "clip":
        weights = weights[:2]
        biases, attributes = biases[:2], {"low": (F(-1),) * int(sizes[1]), "high": (F(1, 2),) * int(sizes[1])}
    graph = network(weights, op, biases, np.float32, **attributes)
    result = certify_lipschitz(graph, splits=seed % 3, seed=seed)
    assert result.check().level == "proved"
    assert result.upper.value >= result.floor * (1 - 1e-12) and result.floor >= result.lower.value
    evaluate = compile_numpy(graph)
    x = generator.standard_normal((400, sizes[0])) * 10 ** generator.uniform(-1, 1, (400, 1))
    y = x + 1e-2 * generator.standard_normal(x.shape)
    rise = np.linalg.norm(evaluate(observation=x)["action"] - evaluate(observation=y)["action"], axis=1)
    assert (rise <= result.upper.value * np.linalg.norm(x - y, axis=1) * (1 + 1e-9) + 1e-9 * 10**scale).all()


def test_every_iterate_is_feasible_and_the_start_is_strict():
    weights = he_weights(4, 12, 9, 3)
    chain = read_network(network(weights))
    system = build_system(chain, np.ones(4), np.ones(3))
    values = start(system)
    square = least_square(system, values)
    assert np.linalg.eigvalsh(system.matrix(1.01 * square, values))[0] > 0
    assert np.linalg.eigvalsh(system.matrix(0.99 * square, values))[0] < 0
    squares = []
    found = solve(system, 1e-7, lambda value, gap: squares.append(value))
    assert np.linalg.eigvalsh(system.matrix(found.square, found.values))[0] > 0
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(squares))
    assert found.gap <= 1e-7 * found.square


def test_an_interrupt_keeps_the_best_so_far():
    chain = read_network(network(he_weights(4, 12, 9, 3)))
    system = build_system(chain, np.ones(4), np.ones(3))

    def interrupt(value, gap):
        raise KeyboardInterrupt

    early, full = solve(system, 1e-7, interrupt), solve(system, 1e-7)
    assert full.square < early.square and early.steps < full.steps
    assert np.linalg.eigvalsh(system.matrix(early.square, early.values))[0] > 0


def test_multipliers_go_to_the_file_and_back():
    chain = read_network(network(he_weights(3, 7, 5, 2), "group_sort", group_size=3))
    system = build_system(chain, np.ones(3), np.ones(2))
    values = np.arange(1.0, 5.0)
    filed = system.filed(values)
    assert [len(v) for v in filed] == [layer.multipliers for layer in chain.layers] == [3, 2]
    assert np.count_nonzero(filed[0]) == 2  # the leftover group of one needs no multiplier
    assert np.allclose(system.normalised(filed), values)


# --- arguments, records, files ------------------------------------------------------------------------------------------


def test_known_multipliers_are_used_and_checked():
    weights = he_weights(3, 16, 16, 2)
    found = certify_lipschitz(network(weights), witness=False)
    known = [np.array([float.fromhex(v) for v in layer]) for layer in found.upper.evidence["multipliers"]]
    again = certify_lipschitz(network(weights), multipliers=known, witness=False)
    assert again.upper.value == pytest.approx(found.upper.value, rel=1e-5) and again.upper.gap is None
    with pytest.raises(InputError, match=r"lengths \[16\], expected \[16, 16\]"):
        certify_lipschitz(network(weights), multipliers=known[:1])
    with pytest.raises(InputError, match="no bound"):
        certify_lipschitz(network(weights), multipliers=[0 * v for v in known])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm is 'l1', expected one of l2, linf"),
        ({"input_scale": [1]}, "input_scale has 1 numbers, expected 2"),
        ({"output_scale": 0}, "output_scale is 0, expected positive"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        certify_lipschitz(network([FIRST, [[1, -1, 2]]]), **options)


def test_networks_that_are_no_chain_are_refused_by_the_operation():
    nodes = (Node("input", (), {"name": "observation", "size": 1}), Node("exp", (0,)))
    with pytest.raises(InputError, match="'exp'"):
        certify_lipschitz(Graph(nodes, {"action": 1}))


def test_records_are_no_truth_values_and_are_written_as_certificates(tmp_path):
    result = certify_lipschitz(network([FIRST, [[1, -1, 2]]], dtype=np.float32))
    with pytest.raises(TypeError, match="truth value"):
        bool(result)
    folder = result.write(tmp_path / "bound", provenance={"seed": 0})
    assert check(folder).numbers["lipschitz"] == result.upper.value
    assert read_certificate(folder).digests == {"policy": result.graph.digest()}


@pytest.mark.parametrize(("value", "text"), [(1.5, "1.5"), (0.99999999, "0.999999"), (123456.7, "123456"), (0, "0"), (1e-9, "0.000000001")])
def test_printed_lower_bounds_are_rounded_down(value, text):
    assert rounded_down(value) == text
    assert F(text) <= F(value)


def test_equal_seeds_give_equal_results():
    graph = network(he_weights(3, 16, 2))
    first, second = certify_lipschitz(graph, seed=5), certify_lipschitz(graph, seed=5)
    assert (first.upper, first.lower, first.floor) == (second.upper, second.lower, second.floor)


def test_progress_reports_a_falling_bound():
    lines = []
    certify_lipschitz(network(he_weights(3, 16, 16, 2)), progress=lambda fraction, message, best: lines.append((fraction, message)))
    fractions = [fraction for fraction, _ in lines]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any("not yet proved" in message for _, message in lines)
