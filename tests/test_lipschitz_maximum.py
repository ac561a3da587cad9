"""Bounds in the l-infinity norm: known values, exact enumerations, another solver, and numbers that were tampered with."""

import copy
import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest

from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.certificates.checker.writing import certificate_bytes
from lipctrl.certificates.lipschitz import certify_lipschitz, slope_between
from lipctrl.certificates.lipschitz.newton import least_shares, solve, start
from lipctrl.certificates.lipschitz.system import build_system
from lipctrl.core.errors import InputError

F = Fraction
ABSOLUTE = {"method": "absolute-product"}


def network(*weights, op="relu", **attributes) -> Graph:
    nodes = [Node("input", (), {"name": "observation", "size": np.shape(weights[0])[1]})]
    for k in range(len(weights)):
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
        if k < len(weights) - 1:
            nodes.append(Node(op, (len(nodes) - 1,), attributes))
    return Graph(tuple(nodes), {"action": len(nodes) - 1}, {f"w{k}": np.array(w, dtype=np.float64) for k, w in enumerate(weights)})


def claim_of(value, **changes):
    return {"property": "lipschitz", "norm": "linf", "input_scale": None, "output_scale": None, "bound": float(value).hex(), **changes}


def proves(graph, bound, evidence, **changes):
    try:
        return prove_lipschitz(graph, claim_of(bound, **changes), evidence) == bound
    except Rejected:
        return False


def greatest_pattern(*weights):
    """The exact optimum over all patterns of relu units, by enumeration."""
    best = 0.0
    for choice in product((0, 1), repeat=sum(len(weight) for weight in weights[:-1])):
        matrix, begin = np.array(weights[0], dtype=float), 0
        for weight in weights[1:]:
            matrix = np.array(weight) @ (np.array(choice[begin : begin + len(matrix)])[:, None] * matrix)
            begin += np.shape(weight)[1]
        best = max(best, float(np.abs(matrix).sum(axis=1).max()))
    return best


# --- values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "exact", "absolute"),
    [
        (([[1], [1]], [[1, -1]]), 1, 2),  # A
        (([[1], [-1]], [[1, 1]]), 1, 2),  # C
        (([[1, 1], [1, -1]], [[1, 1]]), 2, 4),  # E: multipliers prove 1 + sqrt(2)
        ((np.eye(2), [[1, 1]]), 2, 2),  # F
        (([[1, 2], [-1, 1], [2, -1]], [[1, -1, 2]]), 8, 11),  # G: the last two units
        (([[2]], [[-3]], [[0.5]]), 3, 3),  # M
        ((np.ones((4, 3)), np.ones((5, 4)), np.ones((2, 5))), 60, 60),  # B: three inputs, 20 from each
    ],
)
def test_oracles(weights, exact, absolute):
    graph = network(*weights)
    assert proves(graph, absolute * (1 + 1e-12), ABSOLUTE) and not proves(graph, absolute * (1 - 1e-12), ABSOLUTE)
    found = certify_lipschitz(graph, "linf")
    assert found.check().level == "proved" and found.check().numbers == {"lipschitz_linf": found.upper.value}
    assert "maximum norm" in found.check().claim
    assert found.lower.value <= found.floor <= found.upper.value
    assert exact * (1 - 1e-9) <= found.upper.value <= 1.21 * exact
    if exact == 60 or len(weights) == 2:
        assert found.floor == pytest.approx(greatest_pattern(*weights) if exact != 60 else 60, rel=1e-9)


def test_a_linear_network_is_the_greatest_sum_of_absolute_values():
    weight = np.random.default_rng(0).standard_normal((3, 5))
    exact = float(np.abs(weight).sum(axis=1).max())
    upper = certify_lipschitz(network(weight), "linf").upper
    assert upper.method == "absolute-product" and exact <= upper.value <= exact * (1 + 1e-12)
    assert certify_lipschitz(network(np.zeros((3, 2)), np.ones((1, 3))), "linf").upper.value == 0


@pytest.mark.parametrize("seed", range(8))
def test_small_networks_against_every_pattern(seed):
    generator = np.random.default_rng(seed)
    sizes = (3, 4, 2) if seed % 2 else (2, 3, 3, 2)
    weights = [generator.standard_normal((m, n)) * 10 ** generator.uniform(-3, 3) for n, m in pairwise(sizes)]
    exact = greatest_pattern(*weights)
    found = certify_lipschitz(network(*weights), "linf", seed=seed)
    assert exact * (1 - 1e-9) <= found.upper.value <= 1.15 * exact
    assert found.floor == pytest.approx(exact, rel=1e-9)


def test_scales_weight_the_norm():
    generator = np.random.default_rng(3)
    weights = [generator.standard_normal(shape) for shape in ((5, 3), (2, 5))]
    base = certify_lipschitz(network(*weights), "linf", tolerance=1e-8).upper.value
    scaled = [weights[0] / [2, 4, 0.5], np.array([[3.0], [1]]) * weights[1]]
    folded = certify_lipschitz(network(*scaled), "linf", tolerance=1e-8).upper.value
    weighted = certify_lipschitz(network(*weights), "linf", input_scale=[2, 4, "1/2"], output_scale=[3, 1], tolerance=1e-8)
    assert weighted.upper.value == pytest.approx(folded, rel=1e-7) and weighted.lower.value <= weighted.upper.value
    assert certify_lipschitz(network(*weights), "linf", input_scale=2, output_scale=8).upper.value == pytest.approx(4 * base, rel=1e-5)


def test_the_sum_of_shares_is_minimised():
    """Every centred point is feasible, and another solver finds no smaller sum."""
    cvxpy = pytest.importorskip("cvxpy")
    generator = np.random.default_rng(5)
    graph = network(*(generator.standard_normal(shape) for shape in ((4, 3), (3, 4), (1, 3))))
    whole = build_system(read_network(graph), np.ones(3), np.ones(1))
    system = whole.of_output(0, 1.0)
    found = solve(system, 1e-8)
    assert np.linalg.eigvalsh(system.matrix(found.shares, found.values))[0] > 0
    inside = start(system)
    assert np.linalg.eigvalsh(system.matrix(1.001 * least_shares(system, inside), inside))[0] > 0
    shares, values = cvxpy.Variable(3, nonneg=True), cvxpy.Variable(len(system.rows), nonneg=True)
    own = np.eye(system.size)
    matrix = -system.output.T @ system.output + sum(shares[k] * np.outer(own[k], own[k]) for k in range(3))
    for j, row in enumerate(system.rows):
        p, q = own[3 + j] - system.low[j] * row, own[3 + j] - system.high[j] * row
        matrix = matrix + values[j] * (np.outer(p, q) + np.outer(q, p)) / 2
    optimum = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(shares)), [(matrix + matrix.T) / 2 >> 0]).solve(solver="CLARABEL")
    assert found.square == pytest.approx(optimum, rel=1e-5)


def test_sorted_groups_in_the_maximum_norm():
    graph = network(np.eye(4), np.ones((1, 4)), op="group_sort", group_size=2)
    found = certify_lipschitz(graph, "linf")
    assert found.upper.value == pytest.approx(4, rel=1e-6) and found.lower.value == pytest.approx(4, rel=1e-6)


def test_witnesses_are_pairs_in_the_same_norm():
    graph = network([[1, 1], [0, 0]])
    pair = (F(0), F(0)), (F(1), F(1)), (F(1), F(1)), (F(1), F(1))
    assert slope_between(graph, *pair, "linf") == pytest.approx(2) and slope_between(graph, *pair) == pytest.approx(math.sqrt(2))
    assert slope_between(graph, *pair, "linf") <= 2


# --- attacks --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid():
    generator = np.random.default_rng(7)
    graph = network(*(generator.standard_normal(shape) for shape in ((6, 3), (5, 6), (3, 5))))
    found = certify_lipschitz(graph, "linf", splits=0, witness=False)
    rows = found.upper.evidence["rows"]
    assert found.upper.method == "multipliers" and rows.count(None) < 3
    return graph, found.upper.value, found.upper.evidence


def changed(evidence, action):
    copied = copy.deepcopy(evidence)
    action(copied, next(row for row in copied["rows"] if row is not None))
    return copied


@pytest.mark.parametrize(
    "action",
    [
        lambda e, row: row["shares"].__setitem__(0, float("nan").hex()),
        lambda e, row: row["shares"].__setitem__(0, "inf"),
        lambda e, row: row["shares"].__setitem__(0, "-1"),
        lambda e, row: row["shares"].__setitem__(0, (float.fromhex(row["shares"][0]) * 1.001).hex()),
        lambda e, row: row["shares"].__setitem__(0, "0"),
        lambda e, row: row["shares"].append("1"),
        lambda e, row: row.__setitem__("shares", row["shares"][::-1]),
        lambda e, row: row.pop("shares"),
        lambda e, row: row.__setitem__("slopes", []),
        lambda e, row: row["multipliers"].pop(),
        lambda e, row: row["multipliers"][0].__setitem__(0, "-1"),
        lambda e, row: row["multipliers"][0].__setitem__(0, float("nan").hex()),
        lambda e, row: row.__setitem__("multipliers", [["0"] * len(v) for v in row["multipliers"]]),
        lambda e, row: e["rows"].pop(),
        lambda e, row: e["rows"].append(None),
        lambda e, row: e.__setitem__("rows", [None] * len(e["rows"])),
        lambda e, row: e.__setitem__("rows", [row] * len(e["rows"])),
        lambda e, row: e.__setitem__("rows", "rows"),
        lambda e, row: e.__setitem__("method", "norm-product"),
        lambda e, row: e.__setitem__("multipliers", e.pop("rows")),
    ],
)
def test_what_was_tampered_with_is_rejected(valid, action):
    graph, bound, evidence = valid
    assert proves(graph, bound, evidence)
    assert not proves(graph, bound, changed(evidence, action))


def test_smaller_bounds_other_norms_and_other_weights_are_rejected(valid):
    graph, bound, evidence = valid
    assert not proves(graph, bound * (1 - 1e-9), evidence) and not proves(graph, bound, evidence, norm="l2")
    assert not proves(graph, bound, evidence, norm="l1")
    rows = [row and {**row, "shares": [(float.fromhex(v) * (1 - 1e-6)).hex() for v in row["shares"]]} for row in evidence["rows"]]
    assert not proves(graph, bound * (1 - 4e-7), {**evidence, "rows": rows})
    for index in range(3):
        tensors = {**graph.tensors, f"w{index}": graph.tensors[f"w{index}"] * 1.001}
        assert not proves(Graph(graph.nodes, graph.outputs, tensors), bound, evidence)
    swapped = Graph(graph.nodes, graph.outputs, {**graph.tensors, "w2": graph.tensors["w2"][[1, 2, 0]]})
    assert not proves(swapped, bound, evidence)
    # the l2 form of one row is no proof for the others, nor is a bound below a pattern
    assert not proves(graph, greatest_pattern(*graph.tensors.values()) * (1 - 1e-9), evidence)


def test_claims_below_a_pattern_are_never_proved():
    generator = np.random.default_rng(11)
    for _ in range(30):
        weights = [generator.standard_normal(shape) * 10 ** generator.uniform(-2, 2) for shape in ((3, 2), (3, 3), (2, 3))]
        graph, exact = network(*weights), greatest_pattern(*weights)
        evidence = certify_lipschitz(graph, "linf", splits=0, witness=False).upper.evidence
        for factor in (1 - 1e-9, 0.999, 0.5):
            rows = [
                row and {**row, "shares": [(float.fromhex(v) * (factor * exact) ** 2 / total(row)).hex() for v in row["shares"]]}
                for row in evidence.get("rows", [])
            ]
            assert not proves(graph, exact * factor, {**evidence, "rows": rows} if rows else evidence)


def total(row):
    return sum(map(float.fromhex, row["shares"]))


def test_many_rows_and_orders_are_refused_at_once():
    wide = network(np.ones((3000, 1)), np.ones((3000, 3000)))
    rows = [{"multipliers": [["1"] * 3000], "shares": ["1"]}] * 3000
    with pytest.raises(Rejected, match="more than are judged"):
        prove_lipschitz(wide, claim_of(1e9), {"method": "multipliers", "rows": rows})


def test_known_multipliers_are_for_the_euclidean_norm():
    with pytest.raises(InputError, match="'l2' only"):
        certify_lipschitz(network([[1]], [[1]]), "linf", multipliers=[np.ones(1)])


def test_certificates_go_through_files(valid):
    graph, bound, evidence = valid
    data = certificate_bytes(kind="lipschitz-bound", claim=claim_of(bound), policy=graph, evidence=evidence)
    assert check(parse_certificate(*data)).numbers == {"lipschitz_linf": bound}
