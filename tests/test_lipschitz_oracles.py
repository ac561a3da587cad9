"""Networks whose Lipschitz bounds are known, and mistakes in published code that must not be repeated here.

The table of global bounds (A to N) is whole in this file: optimum, ECLipsE-Fast, product of norms and pattern floor. Others:

- closed-form multipliers of positive weights (K), graded ones, Hilbert matrix: test_lipschitz_bound, test_definite
- floors and witnesses of H, J, G, kinks at the origin, invariances (scale, order, duplicates): test_lipschitz_search
- attacks on the checker's numbers: test_lipschitz_bound, test_lipschitz_attacks, test_lipschitz_mutants, test_definite
- layers: scalar LDL^T (1), known multipliers (2), mixed roots (18), graded and flat multipliers (21), Bjorck (8), finite gradients
  (22), stale weights (19), slopes (10), illegal activations (17): test_nn_layers_chain; joint inequality, its published form and
  amplification (3, 4, 23), SLL and small numbers in quotients (6, 7), LQR start (20): test_nn_layers_skip; sandwich (5), gains at
  the start (13): test_nn_networks; RMS norm (15): docs/layers.md; units and weights (24): test_lipschitz_bound
- here: MaxMin by one and by two ReLUs (11), pruning (12), softmax (14), deleted units (16). There are no capped singular values
  (9) and no circular padding (22) in this library.
"""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from lipctrl.certificates.checker.chain import read_chain
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.products import norm_product
from lipctrl.certificates.checker.slopes import SLOPES
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.certificates.lipschitz import certify_lipschitz, slope_between
from lipctrl.certificates.lipschitz.eclipse import eclipse
from lipctrl.certificates.lipschitz.patterns import pattern_floor

F = Fraction
FIRST = [[1, 2], [-1, 1], [2, -1]]
SECOND = [[1, -1, 0], [2, 1, -1], [0, 1, 1]]
J = ([[0, 2], [0, -2], [0, 1]], [[-2, 0, -1], [1, 1, -2], [-2, -2, 1]], [[-2, 2, 2]])


def network(weights, op="relu", **attributes) -> Graph:
    nodes = [Node("input", (), {"name": "x", "size": np.shape(weights[0])[1]})]
    for k in range(len(weights)):
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
        if k < len(weights) - 1:
            nodes.append(Node(op, (len(nodes) - 1,), attributes))
    return Graph(tuple(nodes), {"y": len(nodes) - 1}, {f"w{k}": np.array(w, dtype=np.float64) for k, w in enumerate(weights)})


def claim_of(bound):
    return {"property": "lipschitz", "norm": "l2", "input_scale": None, "output_scale": None, "bound": float(bound).hex()}


def proves(graph, bound, *multipliers, **more):
    evidence = {"method": "multipliers", "multipliers": [[float(v).hex() for v in values] for values in multipliers], **more}
    try:
        return prove_lipschitz(graph, claim_of(bound), evidence) == bound
    except Rejected:
        return False


def bound_of(graph, **options):
    return certify_lipschitz(graph, witness=False, **options).upper.value


# --- the table ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "floor", "optimum", "fast", "product"),
    [
        pytest.param([[[1], [1]], [[1, -1]]], 1, 1, math.sqrt(2), 2, id="A"),
        pytest.param([np.ones((4, 3)), np.ones((5, 4)), np.ones((2, 5))], *4 * [20 * math.sqrt(6)], id="B"),
        pytest.param([[[1], [-1]], [[1, 1]]], 1, 1, math.sqrt(2), 2, id="C"),
        pytest.param([[[3, 4], [0, 5]]], *4 * [math.sqrt(45)], id="D"),
        pytest.param([[[1, 1], [1, -1]], [[1, 1]]], 2, 2, 2, 2, id="E"),
        pytest.param([np.eye(2), [[1, 1]]], *4 * [math.sqrt(2)], id="F"),
        pytest.param([FIRST, [[1, -1, 2]]], math.sqrt(37), math.sqrt(37), 6.17341973, 6.4807407, id="G"),
        pytest.param([FIRST, SECOND, [[1, -2, 1]]], math.sqrt(153), 12.4131552, 13.6880861, 16.2007377, id="H"),
        pytest.param([FIRST, [[1, -1, 2], [0, 1, 1]]], 3 + math.sqrt(10), 3 + math.sqrt(10), 6.27100482, 6.60700203, id="I"),
        pytest.param(J, 12, 14.0421, 20.2299152, 39.3031562, id="J"),
        pytest.param([[[2]], [[3]], [[0.5]], [[4]]], 12, 12, 12, 12, id="M"),
    ],
)
def test_the_table_of_global_bounds(weights, floor, optimum, fast, product):
    graph, ones = network(weights), (np.ones(np.shape(weights[0])[1]), np.ones(len(weights[-1])))
    chain = read_chain(graph)
    assert bound_of(graph, splits=0) == pytest.approx(optimum, rel=1e-5 if optimum == 14.0421 else 2e-6)
    assert eclipse(chain, *ones).bound == pytest.approx(fast, rel=1e-8)
    assert norm_product(read_network(graph), *ones) == pytest.approx(product, rel=1e-8)
    assert pattern_floor(read_network(graph), *ones) == pytest.approx(floor, rel=1e-8)
    found = eclipse(chain, *ones)
    if chain.hidden:
        assert proves(graph, found.bound * (1 + 1e-6), *(values * (1 + 1e-6) ** 2 for values in found.multipliers))


@pytest.mark.parametrize("seed", range(3))
def test_positive_weights_are_linear(seed):
    """K: the largest slope has every unit active, and one multiplier for each unit proves it."""
    generator = np.random.default_rng(seed)
    weights = [generator.random(shape) for shape in ((5, 3), (4, 5), (6, 4), (2, 6))]
    truth = np.linalg.norm(np.linalg.multi_dot(weights[::-1]), 2)
    result = certify_lipschitz(network(weights))
    assert truth <= result.upper.value <= truth * (1 + 2e-6)
    assert result.lower.value == pytest.approx(truth, rel=1e-6)


def test_pairs_of_maxmin():
    """L: the pair itself, and between orthonormal maps of any depth (N)."""
    assert bound_of(network([np.eye(2), np.eye(2)], "group_sort", group_size=2)) == pytest.approx(1, abs=1e-9)
    generator = np.random.default_rng(0)
    for depth in (2, 7, 20):
        weights = [np.linalg.qr(generator.standard_normal((6, 6)))[0] for _ in range(depth)]
        assert bound_of(network(weights, "group_sort", group_size=2)) <= 1 + 1e-9


def test_twenty_layers_of_the_published_generator():
    """One solver's "optimal" answer for this network is 1.8746e-5; some activation pattern has slope 2.2e-4 or more."""
    state = np.random.RandomState(7 * 20 + 13 * 20)
    weights = []
    for n, m in pairwise([4, *[20] * 19, 1]):
        norm, weight = state.uniform(0.4, 1.8), state.randn(m, n)
        weights.append(weight * norm / np.linalg.norm(weight, 2))
    graph, ones = network(weights), (np.ones(4), np.ones(1))
    chain = read_chain(graph)
    assert 2.2e-4 < pattern_floor(read_network(graph), *ones, restarts=300) < 4.727e-4
    assert eclipse(chain, *ones).bound == pytest.approx(19.03 * 4.727e-4, rel=1e-3)
    stages = eclipse(chain, *ones, order=1)  # one hidden layer a stage: ECLipsE
    assert stages.bound == pytest.approx(3.53 * 4.727e-4, rel=1e-2)
    assert not proves(graph, 1.8746e-5, *stages.multipliers)
    assert 4.727e-4 * (1 - 1e-5) <= bound_of(graph, tolerance=1e-2) <= 4.727e-4 * 1.01


# --- structure ------------------------------------------------------------------------------------------------------------


def minmax(units):
    """(max(a, b), min(a, b)) by one ReLU that both outputs share, or by one for each."""
    plus = [[1.0]] if units == 1 else [[1.0, 0.0]]
    minus = [[-1.0]] if units == 1 else [[0.0, -1.0]]
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("affine", (0,), {"weight": "difference", "bias": None}),
        Node("relu", (1,)),
        Node("affine", (2,), {"weight": "mix", "bias": None}),
        Node("affine", (0,), {"weight": "swap", "bias": None}),
        Node("add", (4, 3)),
    )
    tensors = {"difference": np.array([[1.0, -1.0]] * units), "mix": np.array([plus[0], minus[0]]), "swap": np.eye(2)[::-1].copy()}
    return Graph(nodes, {"y": 5}, tensors)


def test_one_unit_proves_more_than_two():
    """11: with one ReLU the pair is 1-Lipschitz; a method that sees two cannot know that they are open together."""
    assert proves(minmax(1), 1 + 1e-6, [2 + 1e-6])
    assert bound_of(minmax(1)) == pytest.approx(1, rel=2e-6)
    assert bound_of(minmax(2)) == pytest.approx(math.sqrt(2), rel=2e-6)
    for value in np.linspace(0.5, 4, 36):
        assert not proves(minmax(2), math.sqrt(2) - 1e-6, [value, value])


@pytest.mark.parametrize("seed", range(3))
def test_deleted_units_need_no_new_multipliers(seed):
    """16: slopes from 0 on allow a unit to be dead."""
    generator = np.random.default_rng(seed)
    weights = [generator.standard_normal(shape) for shape in ((6, 3), (5, 6), (2, 5))]
    found = certify_lipschitz(network(weights), witness=False).upper
    first, second = ([float.fromhex(v) for v in layer] for layer in found.evidence["multipliers"])
    pruned = network([np.delete(weights[0], 2, axis=0), np.delete(weights[1], 2, axis=1), weights[2]])
    assert proves(network(weights), found.value, first, second)
    assert proves(pruned, found.value, np.delete(first, 2), second)


def test_deletion_may_increase_the_constant_where_slopes_exclude_zero():
    """leaky(x) - x has slopes in [-1/2, 0]; without the leaky unit it is -x."""
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("leaky_relu", (0,), {"slope": F(1, 2)}), Node("sub", (1, 0)))
    alone = Graph((nodes[0], Node("neg", (0,))), {"y": 1})
    assert bound_of(Graph(nodes, {"y": 2})) == pytest.approx(0.5, rel=2e-6)
    assert bound_of(alone) == pytest.approx(1, rel=2e-6)


def test_a_pruned_weight_may_have_a_larger_norm():
    """12"""
    assert norm_product(read_network(network([[[1, 1], [1, -1]]])), np.ones(2), np.ones(2)) == pytest.approx(math.sqrt(2), rel=1e-9)
    pruned = norm_product(read_network(network([[[1, 1], [1, 0]]])), np.ones(2), np.ones(2))
    assert pruned == pytest.approx((1 + math.sqrt(5)) / 2, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_any_multipliers_are_above_the_optimum(seed):
    """What some multipliers prove is never below what the best prove, nor below a pattern."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 8, 4)
    weights = [generator.standard_normal((m, n)) for n, m in pairwise(sizes)]
    graph, ones = network(weights), (np.ones(sizes[0]), np.ones(sizes[-1]))
    floor = pattern_floor(read_network(graph), *ones)
    for values in ([np.exp(generator.normal(size=m)) for m in sizes[1:-1]] for _ in range(10)):
        assert not proves(graph, floor * (1 - 1e-6), *values)


# --- mistakes in published code -------------------------------------------------------------------------------------------


def test_multipliers_that_couple_two_units_are_unsound_and_refused():
    """relu(x) - relu(x - 10) has slope 1 on [0, 1]. With the extra term c (dz_1 - dz_2)(dv_1 - dv_2 - dz_1 + dz_2) >= 0, which does
    not hold for units at different points, a matrix that "proves" almost 0 is positive semidefinite.
    """
    dx, dz1, dz2 = np.eye(3)

    def sector(dz, dv):
        return (np.outer(dz, dz - dv) + np.outer(dz - dv, dz)) / 2

    rho, coupling = 1e-3, 1.0
    honest = rho**2 * np.outer(dx, dx) - np.outer(dz1 - dz2, dz1 - dz2)
    coupled = honest + coupling * sector(dz1 - dz2, dx - dx)
    assert np.linalg.eigvalsh(coupled + 1e-9 * (sector(dz1, dx) + sector(dz2, dx)))[0] > -1e-8
    graph = network([[[1], [1]], [[1, -1]]])
    assert not proves(graph, rho, [1.0, 1.0]) and not proves(graph, 1.1, [2.0, 2.0], coupling=[["0x1.0p+0"]])
    biased = Graph(
        (
            Node("input", (), {"name": "x", "size": 1}),
            Node("affine", (0,), {"weight": "w0", "bias": "b0"}),
            Node("relu", (1,)),
            Node("affine", (2,), {"weight": "w1", "bias": None}),
        ),
        {"y": 3},
        {**graph.tensors, "b0": np.array([0.0, -10.0])},
    )
    assert slope_between(biased, (F(0),), (F(1),), (F(1),), (F(1),)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("op", "published", "at"),
    [
        ("gelu", (0.0, 1.0), F(14142, 10_000)),
        ("gelu", (-0.12890, 1.12890), F(14142, 10_000)),  # five digits, rounded inwards
        ("silu", (0.0, 1.0), F(23994, 10_000)),
        ("silu", (-0.0734, 1.0998), F(23994, 10_000)),
    ],
)
def test_published_slopes_of_smooth_activations_are_exceeded(op, published, at):
    """The slope between two near points lies outside; the checker's own constants are outside of it."""
    graph = network([[[1.0]], [[1.0]]], op)
    step = F(1, 2**20)
    steepest = slope_between(graph, (at - step,), (at + step,), (F(1),), (F(1),))
    least = 1 - steepest  # the slopes at x and -x add to 1
    low, high = SLOPES[op]
    assert least < published[0] and low <= F(least) and F(steepest) <= high
    assert not proves(graph, max(-published[0], published[1]) * 0.99999, [1.0])
    assert steepest <= bound_of(graph) <= float(high) * (1 + 1e-6)


def test_slopes_of_both_signs_need_their_product():
    """x through slopes in [-1/2, 1] and weights 1 has constant 1. A recursion without the term lambda a b dv^2 answers 1/2 (as
    eclipse-nn 0.1.7 does for such slopes)."""
    graph = network([[[1.0]], [[1.0]]], "leaky_relu", slope=F(-1, 2))
    middle = (1 - 0.5) / 2
    multiplier = 1 / (2 * middle**2)
    storage = multiplier - (middle * multiplier) ** 2
    wrong = math.sqrt(1 / storage)
    assert wrong == 0.5 and not proves(graph, wrong, [multiplier / storage])
    for order in (0, 1):
        assert eclipse(read_chain(graph), np.ones(1), np.ones(1), order=order).bound >= 1
    assert bound_of(graph) == pytest.approx(1, rel=1e-6)


def test_power_iteration_is_below_the_norm_and_its_value_is_rejected():
    generator = np.random.default_rng(5)
    weight, vector = generator.standard_normal((40, 30)), generator.standard_normal(30)
    for _ in range(30):
        vector = weight.T @ (weight @ vector)
        vector /= np.linalg.norm(vector)
    estimate = float(np.linalg.norm(weight @ vector))
    graph = network([weight])
    assert estimate < np.linalg.norm(weight, 2)
    with pytest.raises(Rejected, match="not at most"):
        prove_lipschitz(graph, claim_of(estimate), {"method": "norm-product"})


def test_solvers_answers_just_below_the_optimum_are_rejected():
    """All weights 1: one solver's accurate answer is 48.98979446, below the truth 20 sqrt(6)."""
    graph = network([np.ones((4, 3)), np.ones((5, 4)), np.ones((2, 5))])
    found = certify_lipschitz(graph, witness=False, tolerance=1e-10).upper
    assert found.value >= 20 * math.sqrt(6) > 48.98979446
    ones = certify_lipschitz(graph, multipliers=[np.full(4, 100.0 * 4.9), np.full(5, 4.1)], witness=False).upper
    assert ones.value >= 20 * math.sqrt(6)


def test_negative_parts_of_an_infeasible_answer_do_not_help():
    """A solver that stops early leaves M indefinite by -d: the bound then is sqrt(rho^2 + d (1 + sum of squared layer gains))."""
    generator = np.random.default_rng(2)
    for _ in range(20):
        weights = [generator.standard_normal(shape) for shape in ((5, 3), (4, 5), (2, 4))]
        graph, rho = network(weights), float(np.exp(generator.normal()))
        values = [np.exp(generator.normal(size=m)) for m in (5, 4)]
        blocks = np.zeros((12, 12))
        blocks[:3, :3] = rho**2 * np.eye(3)
        for rows, before, weight, own in (
            (slice(3, 8), slice(0, 3), weights[0], values[0]),
            (slice(8, 12), slice(3, 8), weights[1], values[1]),
        ):
            blocks[rows, rows] = np.diag(own)
            blocks[rows, before] = -own[:, None] * weight / 2
            blocks[before, rows] = blocks[rows, before].T
        blocks[8:, 8:] -= weights[2].T @ weights[2]
        missing = max(0.0, -float(np.linalg.eigvalsh(blocks)[0]))
        norms = [float(np.linalg.norm(weight, 2)) for weight in weights]
        bound = math.sqrt(rho**2 + missing * (1 + norms[0] ** 2 + (norms[0] * norms[1]) ** 2))
        assert bound >= pattern_floor(read_network(graph), np.ones(3), np.ones(2)) * (1 - 1e-12)


def test_softmax_of_two_reaches_one_in_the_sum_norm():
    """14: from the maximum norm to the sum of absolute values the Jacobian at equal odds has norm exactly 1, not less."""
    p = 0.5
    jacobian = np.array([[p - p * p, -p * p], [-p * p, p - p * p]])
    assert max(np.abs(jacobian @ signs).sum() for signs in ([1, 1], [1, -1])) == 1
