"""The ``lipschitz-bound`` verifier: oracles with known constants, and attacks that must be rejected."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.definite import exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.increments import multiplier_form, scaled_output, unroll
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales, prove_lipschitz, rounded_up, verify
from lipctrl.certificates.checker.writing import certificate_bytes


def network(weights, op="relu", biases=None, dtype=np.float64, **attributes) -> Graph:
    nodes = [Node("input", (), {"name": "observation", "size": np.shape(weights[0])[1]})]
    tensors = {}
    for k, weight in enumerate(weights):
        tensors[f"w{k}"] = np.array(weight, dtype=dtype)
        if biases is not None:
            tensors[f"b{k}"] = np.array(biases[k], dtype=dtype)
        bias = None if biases is None else f"b{k}"
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": bias}))
        if k < len(weights) - 1:
            nodes.append(Node(op, (len(nodes) - 1,), attributes))
    return Graph(tuple(nodes), {"action": len(nodes) - 1}, tensors)


def claim_of(value, **changes):
    return {"property": "lipschitz", "norm": "l2", "input_scale": None, "output_scale": None, "bound": float(value).hex(), **changes}


def multipliers(*layers):
    return {"method": "multipliers", "multipliers": [[v if isinstance(v, str) else float(v).hex() for v in layer] for layer in layers]}


def form_of(net, scale_in, scale_out, rho, values):
    """The matrix that is judged for an l2 bound."""
    unrolled, side = unroll(net, exact), exact(np.array([rho])) * exact(scale_in)
    return multiplier_form(unrolled, side * side, scaled_output(unrolled, scale_out), values)


PRODUCT = {"method": "norm-product"}
DIFFERENCE = network([[[1], [1]], [[1, -1]]])  # relu(x) - relu(x - c) for some biases


def proves(graph, bound, evidence, **changes):
    try:
        return prove_lipschitz(graph, claim_of(bound, **changes), evidence) == bound
    except Rejected:
        return False


# --- oracles ------------------------------------------------------------------------------------------------------------


def test_difference_of_two_units_needs_multipliers():
    """Oracle A: LipSDP 1, product 2; both ends are sharp."""
    assert proves(DIFFERENCE, 1 + 1e-6, multipliers([2 + 2e-6, 2 + 2e-6]))
    assert not proves(DIFFERENCE, 1 - 1e-9, multipliers([2, 2]))
    assert not proves(DIFFERENCE, 1.9999999, PRODUCT)
    assert proves(DIFFERENCE, 2 + 1e-9, PRODUCT)


def test_all_ones_by_the_product():
    """Oracle B: 20 sqrt(6); the value that solvers print is below the truth and must be refused."""
    graph = network([np.ones((4, 3)), np.ones((5, 4)), np.ones((2, 5))])
    assert proves(graph, 20 * math.sqrt(6) * (1 + 1e-11), PRODUCT)
    assert not proves(graph, 48.98979446, PRODUCT)


@pytest.mark.parametrize("op", ["relu", "tanh"])
def test_closed_form_multipliers_of_positive_weights(op):
    """Oracle K: for positive weights the exact constant is the norm of the product, with multipliers in closed form."""
    generator = np.random.default_rng(4)
    weights = [generator.uniform(0.1, 1, shape) for shape in ((5, 3), (6, 5), (4, 6), (2, 4))]
    product = weights[3] @ weights[2] @ weights[1] @ weights[0]
    truth = np.linalg.norm(product, 2)
    forward = [np.linalg.svd(product)[2][0]]
    forward[0] = np.abs(forward[0])
    for weight in weights[:-1]:
        forward.append(weight @ forward[-1])
    last = 2 * weights[3].T @ weights[3] @ forward[3] / forward[3]
    middle = weights[2].T @ (last * forward[3]) / forward[2]
    first = weights[1].T @ (middle * forward[2]) / forward[1]
    grade = 1.0001
    graded = multipliers(first * grade**3, middle * grade**2, last * grade)
    assert proves(network(weights, op), truth * grade**2, graded)
    assert not proves(network(weights, op), truth * (1 - 1e-9), multipliers(first, middle, last))


def test_graded_multipliers_of_a_singular_form():
    """Oracle 21: rho = 1, Lambda = 2 is singular and refused; graded by 1.01 it leaves 0.005 and is accepted."""
    graph = network([[[1.0]], [[1.0]]])
    assert not proves(graph, 1.0, multipliers([2.0]))
    form = form_of(read_network(graph), np.ones(1), np.ones(1), 1.01, [np.array([2.02])]).value
    assert np.allclose(form, [[1.0201, -1.01], [-1.01, 1.02]])
    assert np.linalg.eigvalsh(form)[0] >= 0.005
    assert proves(graph, 1.01, multipliers([2.02]))


def test_scalar_chain_and_linear_network():
    """Oracles M and D."""
    assert proves(network([[[2.0]], [[-3.0]], [[0.5]]]), 3 * (1 + 1e-12), PRODUCT)
    assert not proves(network([[[2.0]], [[-3.0]], [[0.5]]]), 3 * (1 - 1e-12), PRODUCT)
    weight = np.random.default_rng(0).standard_normal((3, 5))
    norm = np.linalg.norm(weight, 2)
    for evidence in (PRODUCT, multipliers()):
        assert proves(network([weight]), norm * (1 + 1e-9), evidence)
        assert not proves(network([weight]), norm * (1 - 1e-9), evidence)


def test_maxmin_has_constant_one():
    """Oracles L and N: identity - MaxMin - identity, and orthonormal layers of any depth."""
    graph = network([np.eye(2), np.eye(2)], "group_sort", group_size=2)
    assert proves(graph, 1 + 1e-7, multipliers([1 + 1e-8]))
    assert not proves(graph, 1 - 1e-7, multipliers([1]))
    generator = np.random.default_rng(5)
    deep = network([np.linalg.qr(generator.standard_normal((8, 8)))[0] for _ in range(6)], "group_sort", group_size=2)
    assert proves(deep, 1 + 1e-9, PRODUCT)


def test_sorted_groups_of_every_size():
    """The sums of groups pass: a network that only looks at them has the constant of a linear one."""
    for size, group in ((4, 2), (5, 2), (6, 3), (7, 4), (3, 9)):
        member = (np.arange(-(-size // group))[:, None] == np.arange(size) // group).astype(float)
        graph = network([np.eye(size), member], "group_sort", group_size=group)
        truth = math.sqrt(min(size, group))
        assert proves(graph, truth * (1 + 1e-9), multipliers(np.full(len(member), 0.5)))
        assert not proves(graph, truth * (1 - 1e-9), multipliers(np.full(len(member), 0.5)))


def test_leaky_units_that_are_linear_and_unusual_slopes():
    identity = network([[[1.0]], [[1.0]]], "leaky_relu", slope=Fraction(1))
    assert proves(identity, 1 + 1e-9, multipliers([])) and not proves(identity, 1 - 1e-9, multipliers([]))
    assert not proves(identity, 1 + 1e-5, multipliers([1e6]))  # linear units have no multipliers
    steep = network([[[1.0]], [[1.0]]], "leaky_relu", slope=Fraction(3))
    assert not proves(steep, 2.99, PRODUCT) and proves(steep, 3 + 1e-9, PRODUCT)
    gelu = network([[[1.0]], [[1.0]]], "gelu")
    assert not proves(gelu, 1.0, PRODUCT) and not proves(gelu, 1.1289041, PRODUCT) and proves(gelu, 1.128905, PRODUCT)


def test_units_and_weighted_norms():
    """Oracle 24: u = diag(3, 1) diag(2, 1)^-1 x: raw 1.5, weighted 1; the formula max / min would say 3."""
    nodes = [Node("input", (), {"name": "observation", "size": 2})]
    for op, values in (("div", (2, 1)), ("mul", (3, 1))):
        nodes += [Node("constant", (), {"values": tuple(map(Fraction, values))})]
        nodes += [Node(op, (max(0, len(nodes) - 2), len(nodes) - 1))]
        if op == "div":
            nodes += [Node("affine", (len(nodes) - 1,), {"weight": "w", "bias": None})]
    graph = Graph(tuple(nodes), {"action": len(nodes) - 1}, {"w": np.eye(2)})
    for evidence in (PRODUCT, multipliers()):
        assert proves(graph, 1.5 + 1e-9, evidence) and not proves(graph, 1.5 - 1e-9, evidence)
        weights = {"input_scale": ["1/2", "1"], "output_scale": ["1/3", "1"]}
        assert proves(graph, 1 + 1e-9, evidence, **weights) and not proves(graph, 1 - 1e-9, evidence, **weights)
    assert proves(graph, 0.75 + 1e-9, PRODUCT, input_scale=["2", "2"])


def test_scales_that_are_no_binary_fractions_are_rounded_safely():
    """x / (3/10): the constant is 10/3, and no float below it is accepted."""
    nodes = (
        Node("input", (), {"name": "observation", "size": 1}),
        Node("constant", (), {"values": (Fraction(3, 10),)}),
        Node("div", (0, 1)),
    )
    graph = Graph(nodes, {"action": 2})
    below = math.nextafter(10 / 3, 0) if Fraction(10 / 3) >= Fraction(10, 3) else 10 / 3
    assert not proves(graph, below, PRODUCT) and not proves(graph, below, multipliers())
    assert proves(graph, 10 / 3 * (1 + 1e-12), PRODUCT)


def test_a_zero_network_has_bound_zero():
    graph = network([np.zeros((3, 2)), np.ones((1, 3))])
    assert proves(graph, 0.0, PRODUCT)
    assert not proves(graph, 0.0, multipliers([1, 1, 1]))


def test_numbers_beyond_float64_proofs_go_to_balls():
    graph = network([[[1.0]], [[1.0]]])
    tiny = 2.0**-210
    assert proves(network([[[1.0]], [[2.0**-205]]]), 2.0**-204, multipliers([2.0**-409]))
    assert not proves(network([[[1.0]], [[2.0**-205]]]), 2.0**-206, multipliers([2.0**-409]))
    assert not proves(graph, 1 - 1e-9, multipliers([tiny]))


def test_sorted_networks_whose_products_underflow_are_judged_in_balls():
    """Six layers of 2^-200 and six of 2^200: the constant is 1 (the sums pass), although float products vanish."""
    scales = [2.0**-200] * 6 + [2.0**200] * 6
    graph = network([scale * np.eye(2) for scale in scales], "group_sort", group_size=2)
    norms = np.cumsum(np.log2(scales))
    # lambda of layer k is (gain after it)^2 beyond float64: no multipliers of this network can be filed
    for exponents in (-2 * norms[:-1], np.zeros(11)):
        values = [[2.0 ** max(-1000.0, min(1000.0, e))] for e in exponents]
        assert not proves(graph, 0.5, multipliers(*values))


def test_scales_are_rounded_to_the_side_that_is_harder_to_prove():
    nodes = (
        Node("input", (), {"name": "observation", "size": 1}),
        Node("constant", (), {"values": (Fraction(3, 10),)}),
        Node("div", (0, 1)),
        Node("affine", (2,), {"weight": "w", "bias": None}),
        Node("mul", (3, 1)),
    )
    chain = read_network(Graph(nodes, {"action": 4}, {"w": np.eye(1)}))
    for scale in (Fraction(1), Fraction(1, 7), Fraction(10, 3)):
        scale_in, scale_out = effective_scales(chain, (scale,), (scale,))
        assert 0 < scale * Fraction(3, 10) - Fraction(float(scale_in[0])) < Fraction(1, 10**14)
        assert 0 < Fraction(float(scale_out[0])) - scale * Fraction(3, 10) < Fraction(1, 10**14)


def test_a_scale_of_two_counts_and_a_scale_of_zero_fixes_a_coordinate():
    def scaled(*factors):
        nodes = [Node("input", (), {"name": "observation", "size": len(factors)})]
        nodes += [Node("constant", (), {"values": tuple(map(Fraction, factors))}), Node("mul", (0, 1))]
        weight = {"weight": "w", "bias": None}
        ahead = [*nodes, Node("affine", (2,), weight)]
        behind = [nodes[0], Node("affine", (0,), weight), nodes[1], Node("mul", (1, 2))]
        return [Graph(tuple(made), {"action": 3}, {"w": np.eye(len(factors))}) for made in (ahead, behind)]

    for graph in scaled(2, 2):
        assert not proves(graph, 1.5, PRODUCT) and proves(graph, 2 + 1e-9, PRODUCT)
    for graph in scaled(1, 0):
        assert proves(graph, 1 + 1e-9, PRODUCT) and not proves(graph, 1 - 1e-9, PRODUCT)
    first = scaled(Fraction(1, 2), 0)[0]
    assert proves(first, 0.5 + 1e-9, multipliers([])) and not proves(first, 0.5 - 1e-9, multipliers([]))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from(["relu", "tanh", "abs", "gelu", "sin", "group_sort"]))
def test_accepted_bounds_hold_on_random_pairs(seed, depth, op):
    """Random networks, scales and multipliers near the acceptance limit: what is accepted is never below a sampled slope."""
    from lipctrl.core.numpy_evaluation import compile_numpy

    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 7, depth + 2)
    weights = [generator.standard_normal((m, n)) * 10.0 ** generator.uniform(-3, 3) for n, m in pairwise(sizes)]
    graph = network(weights, op, [generator.standard_normal(m) for m in sizes[1:]], **({"group_size": 2} if op == "group_sort" else {}))
    evaluate = compile_numpy(graph)
    x = generator.standard_normal((500, sizes[0]))
    y = x + generator.standard_normal((500, sizes[0])) * 1e-2
    rise = np.linalg.norm(evaluate(observation=x)["action"] - evaluate(observation=y)["action"], axis=1)
    slope = float((rise / np.linalg.norm(x - y, axis=1)).max())
    layers = read_network(graph).layers
    spread = 10.0 ** generator.uniform(-2, 2) * float(np.prod([np.linalg.norm(w, 2) for w in weights])) ** 2
    evidence = multipliers(*(np.full(layer.multipliers, spread) for layer in layers))
    for bound in slope * np.array([0.5, 0.9, 0.99, 1 - 1e-6]):
        if bound > 0:
            assert not proves(graph, bound, evidence) and not proves(graph, bound, PRODUCT)


# --- attacks ------------------------------------------------------------------------------------------------------------


GOOD = multipliers([2.5, 2.5])


@pytest.mark.parametrize(
    "evidence",
    [
        multipliers([-2, 2]),
        multipliers([2, "nan"]),
        multipliers([2, "inf"]),
        multipliers([2, "-0x1.0000000000000p-1"]),
        multipliers([2]),
        multipliers([2, 2, 2]),
        multipliers([2, 2], [1]),
        multipliers(),
        {"method": "multipliers", "multipliers": "2"},
        {"method": "multipliers", "multipliers": [2.0, 2.0]},
        {"method": "multipliers", "multipliers": [[2, 2]]},
        {"method": "multipliers"},
        {**GOOD, "low": [["0x0.0p+0"] * 2]},
        {**GOOD, "couplings": [["0x1.0000000000000p+0"]]},
        {**PRODUCT, "norms": ["0x1.0000000000000p+0"]},
        {"method": "trust"},
        {"method": None},
        {},
    ],
)
def test_malformed_or_false_evidence_is_rejected(evidence):
    assert proves(DIFFERENCE, 1.5, GOOD)
    with pytest.raises(Rejected):
        prove_lipschitz(DIFFERENCE, claim_of(1.5), evidence)


@pytest.mark.parametrize(
    "changes",
    [
        {"bound": "nan"},
        {"bound": "inf"},
        {"bound": "-0x1.8000000000000p+0"},
        {"bound": "0x0.0p+0"},
        {"bound": 1.5},
        {"bound": None},
        {"bound": "0x1.8p+0"},
        {"bound": "4/3"},
        {"norm": "linf"},
        {"property": "contraction"},
        {"input_scale": ["0"]},
        {"input_scale": ["-1"]},
        {"input_scale": ["1", "1"]},
        {"input_scale": "1"},
        {"output_scale": []},
        {"slopes": []},
    ],
)
def test_malformed_or_false_claims_are_rejected(changes):
    with pytest.raises(Rejected):
        prove_lipschitz(DIFFERENCE, claim_of(1.5, **changes), GOOD)
    claim = claim_of(1.5)
    del claim["norm"]
    with pytest.raises(Rejected, match="norm"):
        prove_lipschitz(DIFFERENCE, claim, GOOD)


@pytest.mark.parametrize("scale", [["1", "0"], ["0", "1"], ["1", "-1"]])
@pytest.mark.parametrize("side", ["input_scale", "output_scale"])
def test_scales_of_the_norm_are_positive(side, scale):
    for evidence in (PRODUCT, multipliers()):
        with pytest.raises(Rejected, match="not positive"):
            prove_lipschitz(network([np.eye(2)]), claim_of(9.0, **{side: scale}), evidence)


def test_negative_multipliers_are_refused_even_where_they_do_not_matter():
    graph = network([np.ones((3, 1)), np.ones((1, 3))], "group_sort", group_size=2)
    assert proves(graph, 3 + 1e-6, multipliers([1, 0]))
    for values in ([1, -1], [-1, 1], [-1, -1]):
        with pytest.raises(Rejected, match="negative"):
            prove_lipschitz(graph, claim_of(9.0), multipliers(values))


def test_systems_that_are_too_large_are_refused_at_once():
    graph = network([np.ones((4096, 1)), np.ones((1, 4096))])
    with pytest.raises(Rejected, match="4097 rows, at most 4096"):
        prove_lipschitz(graph, claim_of(9.0), multipliers(np.ones(4096)))


def test_one_ulp_below_the_product_is_rejected():
    """The norm of a 1x1 weight is proved to a few ulp; what is below the truth by one ulp is not."""
    graph = network([[[1.5]]])
    assert not proves(graph, math.nextafter(1.5, 0), PRODUCT)
    assert not proves(graph, math.nextafter(1.5, 0), multipliers())
    assert proves(graph, 1.5 * (1 + 1e-13), PRODUCT)


def test_changed_weights_are_rejected():
    """The certificate of one network proves nothing about another with larger weights or swapped signs."""
    for weights in ([[[1], [1]], [[1, 1]]], [[[1], [-1.5]], [[1, -1]]], [[[2], [1]], [[1, -1]]]):
        assert not proves(network(weights), 1 + 1e-7, GOOD)


def test_flushed_subnormals_are_rejected():
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        for evidence in (GOOD, PRODUCT):
            with pytest.raises(Rejected, match="IEEE"):
                prove_lipschitz(DIFFERENCE, claim_of(3.0), evidence)
    finally:
        torch.set_flush_denormal(False)


def test_gain_two_of_maxmin_in_a_sandwich_is_not_called_one():
    """Oracle 17: A = diag(1, 0), B = diag(0, 1), which is 1-Lipschitz with ReLU, swaps with MaxMin and has gain 2."""
    weights = [math.sqrt(2) * np.diag([0.0, 1.0]), math.sqrt(2) * np.diag([1.0, 0.0])]
    assert proves(network(weights), 1 + 1e-6, multipliers([2 + 1e-6, 2 + 1e-6]))
    for value in (1e-3, 0.5, 1, 2, 8, 1e6):
        assert not proves(network(weights, "group_sort", group_size=2), 1.99, multipliers([value]))


# --- through the file ---------------------------------------------------------------------------------------------------


def certificate(graph=DIFFERENCE, bound=1.5, evidence=GOOD, **parts):
    return check(
        parse_certificate(*certificate_bytes(kind="lipschitz-bound", claim=claim_of(bound), policy=graph, evidence=evidence, **parts))
    )


def test_the_verdict_says_what_was_proved():
    verdict = certificate()
    assert (verdict.status, verdict.level, verdict.property, verdict.numbers["lipschitz"]) == ("verified", "proved", "lipschitz", 1.5)
    assert "1.5 |x - y|" in verdict.claim and "units of the policy" in verdict.claim
    assert verdict.subject == {"policy": DIFFERENCE.digest()}


def test_a_certificate_with_more_than_a_policy_is_refused():
    made = parse_certificate(*certificate_bytes(kind="lipschitz-bound", claim=claim_of(1.5), policy=DIFFERENCE, evidence=GOOD))
    assert verify(made).status == "verified"
    for change, word in (({"requires": ("0" * 64,)}, "no other"), ({"subject": {**made.subject, "plant": None}}, "nothing else")):
        with pytest.raises(Rejected, match=word):
            verify(replace(made, **change))


def test_the_real_network_only():
    verdict = certificate(arithmetic="float32")
    assert verdict.status == "rejected" and "real" in verdict.reason
    assert certificate(requires=["0" * 64]).status == "rejected"


@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "1.5"), (1.0, "1"), (1.0000001, "1.00001"), (123456.7, "123457"), (1234567.2, "1234570"), (0, "0")]
)
def test_printed_bounds_are_rounded_up(value, text):
    assert rounded_up(value) == text
    assert Fraction(text) >= Fraction(value)
