"""The ``lipschitz-bound`` verifier, rule by rule: each is met exactly and missed by the least amount."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from verifying import unsafe_arithmetic

from lipctrl.certificates.checker.bundle import Certificate
from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.products import absolute_product, norm_product
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import lipschitz_bound
from lipctrl.certificates.checker.verifiers.lipschitz_bound import (
    effective_scales,
    norm_in_words,
    prove_lipschitz,
    prove_network,
    rounded_down,
    rounded_up,
    scale_of_norm,
    verify,
)

ONE, TWO = np.ones(1), np.ones(2)
PRODUCT, ABSOLUTE = {"method": "norm-product"}, {"method": "absolute-product"}


def layers(*weights, op="relu", **attributes):
    """Weights with an activation between them."""
    nodes = [Node("input", (), {"name": "x", "size": np.shape(weights[0])[1]})]
    for k in range(len(weights)):
        nodes += [Node(op, (len(nodes) - 1,), attributes)] if k else []
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
    return Graph(tuple(nodes), {"u": len(nodes) - 1}, {f"w{k}": np.array(weight, np.float64) for k, weight in enumerate(weights)})


def hexes(values):
    return [float(value).hex() for value in values]


def claim_of(bound, norm="l2", **changes):
    return {"property": "lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "bound": float(bound).hex(), **changes}


def multipliers(*entries):
    return {"method": "multipliers", "multipliers": [hexes(entry) for entry in entries]}


def row(shares, *entries):
    return {"shares": hexes(shares), "multipliers": [hexes(entry) for entry in entries]}


def proves(graph, bound, evidence, norm="l2", **changes):
    try:
        return prove_lipschitz(graph, claim_of(bound, norm, **changes), evidence) == bound
    except Rejected:
        return False


def below(value):
    return math.nextafter(value, 0)


SIX = layers([[3.0]], [[2.0]])  # 2 relu(3 x): the constant is 6, with the multiplier 8
SIX_EVIDENCE = multipliers([8.0])
ABOVE = 6 * (1 + 1e-6)


# --- the certificate ----------------------------------------------------------------------------------------------------


def certificate(**changes):
    made = Certificate("lipschitz-bound", "real", claim_of(ABOVE), {"policy": SIX}, SIX_EVIDENCE, (), {}, "")
    return dataclasses.replace(made, **changes)


def test_verdicts_name_the_norm_and_the_number():
    verdict = verify(certificate())
    assert (verdict.status, verdict.level, verdict.kind, verdict.property) == ("verified", "proved", "lipschitz-bound", "lipschitz")
    assert verdict.claim.startswith("|f(x) - f(y)| <= 6.00001 |x - y| for all x and y, in the Euclidean norm, in the units")
    assert verdict.numbers == {"lipschitz": ABOVE} and verdict.arithmetic == "real" and verdict.subject == {"policy": SIX.digest()}
    maximum = verify(certificate(claim=claim_of(7.0, "linf"), evidence=ABSOLUTE))
    assert maximum.numbers == {"lipschitz_linf": 7.0} and "maximum norm" in maximum.claim


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"arithmetic": "float32"}, "real-valued"),
        ({"requires": ("0" * 64,)}, "no other certificate"),
        ({"subject": {"policy": SIX, "plant": None}}, "nothing else"),
        ({"claim": {**claim_of(ABOVE), "domain": {}}}, "local_lipschitz"),
        ({"claim": claim_of(5.9)}, "do not prove"),
    ],
)
def test_certificates_about_anything_else_are_refused(changes, word):
    with pytest.raises(Rejected, match=word):
        verify(certificate(**changes))


def test_words_for_norms_and_their_weights():
    assert norm_in_words(claim_of(1)) == "the Euclidean norm, in the units of the policy's input and output"
    assert norm_in_words(claim_of(1, "linf", input_scale=["1"])) == "the maximum norm, weighted by the claim's input_scale"
    both = claim_of(1, input_scale=["1"], output_scale=["1"])
    assert norm_in_words(both) == "the Euclidean norm, weighted by the claim's input_scale and output_scale"


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"property": "gain"}, "expected property"), ({"norm": "l1"}, "expected property"), ({"norm": ["l2"]}, "expected property")]
    + [({"bound": value}, "bound") for value in ("nan", "inf", None, 6.0, "0x1.8p+0", ["0x1.8000000000000p+2"])]
    + [({"other": 1}, "unknown"), ({"input_scale": ["1", "1"]}, "scale"), ({"output_scale": ["0"]}, "not positive")],
)  # fmt: skip
def test_claims_are_read_strictly(changes, word):
    with pytest.raises(Rejected, match=word):
        prove_lipschitz(SIX, {**claim_of(ABOVE), **changes}, SIX_EVIDENCE)


def test_arithmetic_that_is_not_safe_proves_nothing(monkeypatch):
    orders = unsafe_arithmetic(monkeypatch, lipschitz_bound)
    for graph, evidence in ((SIX, SIX_EVIDENCE), (SIX, PRODUCT), (layers([[3.0]]), multipliers())):
        with pytest.raises(Rejected, match="rounds upwards"):
            prove_lipschitz(graph, claim_of(9.0), evidence)
    assert orders == [256] * 3


def test_scales_of_the_norm_are_exact_and_positive():
    assert scale_of_norm(None, 2) == (1, 1) and scale_of_norm(["1/3", "0x1.8000000000000p+0"], 2) == (Fraction(1, 3), Fraction(3, 2))
    for values in (["1", "0"], ["-1", "1"], ["1"], "1", ["1", "1", "1"]):
        with pytest.raises(Rejected, match="scale"):
            scale_of_norm(values, 2)


def test_effective_scales_are_rounded_to_the_harder_side():
    network = dataclasses.replace(read_network(SIX), input_gain=np.array([3.0]), output_gain=np.array([0.1]))
    (low,), (high,) = effective_scales(network, (Fraction(2),), (Fraction(1, 7),))
    truth = Fraction(2, 3), Fraction(1, 7) * Fraction(0.1)
    assert Fraction(low) < truth[0] < Fraction(math.nextafter(low, 1)) and Fraction(below(high)) < truth[1] < Fraction(high)

    for scales in (((1, 1), (1,)), ((1,), (1, 1)), ((), (1,)), ((1,), ())):
        with pytest.raises(ValueError, match="zip"):
            effective_scales(network, *(tuple(map(Fraction, scale)) for scale in scales))


# --- bounds without numbers ---------------------------------------------------------------------------------------------

PAIR = layers(np.diag([3.0, 1.0]), np.diag([2.0, 5.0]))  # outputs 2 relu(3 x) and 5 relu(y)


def test_products_are_accepted_where_they_are_reached_and_not_below():
    network = read_network(PAIR)
    for norm, evidence, least in (("l2", PRODUCT, norm_product(network, TWO, TWO)), ("linf", ABSOLUTE, 0.0)):
        least = least or float(absolute_product(network, TWO, TWO).max())
        assert proves(PAIR, least, evidence, norm) and not proves(PAIR, below(least), evidence, norm)
    assert 6 <= absolute_product(network, TWO, TWO).max() < 6 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("norm", "evidence", "word"),
    [
        ("l2", ABSOLUTE, "'norm-product'"), ("linf", PRODUCT, "'absolute-product'"), ("l2", {}, "method"),
        ("l2", {"method": None}, "method"),
        ("linf", {"method": "windows", "windows": []}, "list with 2"), ("l2", {**PRODUCT, "norms": []}, "unknown"),
        ("linf", {**ABSOLUTE, "norms": []}, "unknown"), ("l2", {**SIX_EVIDENCE, "low": []}, "unknown"),
        ("linf", {"method": "multipliers", "rows": [None], "low": []}, "unknown"), ("linf", SIX_EVIDENCE, "missing"),
        ("l2", {"method": "multipliers", "rows": [None]}, "missing"), ("l2", {"method": "windows", "windows": [], "low": 1}, "unknown"),
    ],
)  # fmt: skip
def test_evidence_is_for_its_norm_and_has_nothing_more(norm, evidence, word):
    with pytest.raises(Rejected, match=word):
        prove_lipschitz(SIX, claim_of(9.0, norm), evidence)


def test_products_that_are_no_numbers_prove_nothing(monkeypatch):
    monkeypatch.setattr(lipschitz_bound, "norm_product", lambda *_: math.nan)
    monkeypatch.setattr(lipschitz_bound, "absolute_product", lambda *_: np.array([math.nan]))
    for norm, evidence in (("l2", PRODUCT), ("linf", ABSOLUTE), ("linf", {"method": "multipliers", "rows": [None]})):
        with pytest.raises(Rejected, match="product of"):
            prove_lipschitz(SIX, claim_of(9.0, norm), evidence)


# --- multipliers --------------------------------------------------------------------------------------------------------


def test_multipliers_prove_the_constant_and_nothing_below():
    assert proves(SIX, ABOVE, SIX_EVIDENCE) and not proves(SIX, 6 * (1 - 1e-6), SIX_EVIDENCE)
    assert proves(layers([[0.5]]), 0.5 * (1 + 1e-9), multipliers()) and not proves(layers([[0.5]]), 0.5 * (1 - 1e-9), multipliers())
    assert not proves(SIX, ABOVE, multipliers([9.0])) and not proves(SIX, ABOVE, multipliers([7.0]))
    scales = {"input_scale": ["2"], "output_scale": ["1/2"]}  # a quarter of it
    assert proves(SIX, ABOVE / 4, multipliers([2.0]), **scales) and not proves(SIX, 1.5 * (1 - 1e-6), multipliers([2.0]), **scales)


@pytest.mark.parametrize("entries", [[[8.0, 8.0]], [[]], [], [[8.0], [8.0]], [[-8.0]]])
def test_multipliers_have_the_shape_of_the_network_and_no_sign(entries):
    with pytest.raises(Rejected, match="multiplier"):
        prove_lipschitz(SIX, claim_of(ABOVE), multipliers(*entries))


@pytest.mark.parametrize("filed", ["8", None, {"0": ["0x1.0000000000000p+3"]}, (["0x1.0000000000000p+3"],), ["0x1.0000000000000p+3"]])
def test_multipliers_are_lists(filed):
    with pytest.raises(Rejected, match="multipliers"):
        prove_lipschitz(SIX, claim_of(ABOVE), {"method": "multipliers", "multipliers": filed})


@pytest.mark.parametrize("entry", [[8.0, -1e-9], [-1e-9, 50.0], [-1.0, -1.0]])
def test_no_multiplier_is_negative(entry):
    for norm, evidence in (("l2", multipliers(entry)), ("linf", maximum(row([36.0, 1.0], entry), None))):
        with pytest.raises(Rejected, match="a multiplier is negative"):
            prove_lipschitz(PAIR, claim_of(99.0, norm), evidence)


def test_multipliers_of_zero_are_numbers_like_others():
    with pytest.raises(Rejected, match="do not prove"):
        prove_lipschitz(SIX, claim_of(ABOVE), multipliers([0.0]))


@pytest.mark.parametrize("bound", [0.0, -6.5, math.inf, math.nan])
def test_bounds_by_multipliers_are_positive_and_finite(bound):
    with pytest.raises(Rejected, match="positive and finite"):
        prove_network(read_network(SIX), "l2", ONE, ONE, bound, SIX_EVIDENCE)


def test_matrices_are_limited_before_they_are_made(monkeypatch):
    monkeypatch.setattr(lipschitz_bound, "MAX_ORDER", 2)
    assert proves(SIX, ABOVE, SIX_EVIDENCE)
    monkeypatch.setattr(lipschitz_bound, "MAX_ORDER", 1)
    with pytest.raises(Rejected, match="2 rows, at most 1"):
        prove_lipschitz(SIX, claim_of(ABOVE), SIX_EVIDENCE)


ROWS = [row([36 * (1 + 1e-6), 1e-6], [8, 1e-6]), row([1e-5, 25 * (1 + 1e-6)], [1e-6, 50])]


def maximum(*rows):
    return {"method": "multipliers", "rows": list(rows)}


def test_each_output_has_a_proof_of_its_own_in_the_maximum_norm():
    assert proves(PAIR, ABOVE, maximum(*ROWS), "linf")
    assert proves(PAIR, ABOVE, maximum(ROWS[0], None), "linf") and proves(PAIR, ABOVE, maximum(None, ROWS[1]), "linf")
    for rows in (ROWS[::-1], [ROWS[0], ROWS[0]], [ROWS[1], ROWS[1]], ROWS[:1], [*ROWS, None], []):
        assert not proves(PAIR, ABOVE, maximum(*rows), "linf")
    weighted = layers(np.diag([3.0, 1.0]), np.diag([2.0, 1.0]))
    rows = [row([9 * (1 + 1e-6), 1e-6], [8, 1e-6]), None]  # with an input scale of 2: half of it
    assert proves(weighted, 3 * (1 + 1e-6), maximum(*rows), "linf", input_scale=["2", "1"])
    assert not proves(weighted, 3 * (1 + 1e-6), maximum(*rows), "linf")
    for filed in (None, "rows", {"0": ROWS[0], "1": ROWS[1]}, tuple(ROWS)):
        with pytest.raises(Rejected, match="rows must be a list"):
            prove_lipschitz(PAIR, claim_of(ABOVE, "linf"), {"method": "multipliers", "rows": filed})


def test_outputs_without_a_proof_need_the_product_of_absolute_values():
    known = absolute_product(read_network(PAIR), TWO, TWO)
    assert proves(PAIR, float(known[0]), maximum(None, None), "linf")
    with pytest.raises(Rejected, match="output 0 is"):
        prove_lipschitz(PAIR, claim_of(below(float(known[0])), "linf"), maximum(None, None))
    swapped = layers(np.diag([1.0, 3.0]), np.diag([5.0, 2.0]))
    with pytest.raises(Rejected, match="output 1 is"):
        prove_lipschitz(swapped, claim_of(5.5, "linf"), maximum(None, None))


def test_shares_are_not_negative_and_add_up_exactly():
    half = layers([[1.0, 1.0]])  # |x + y| <= 2 max
    assert proves(half, 2.0, maximum(row([2.0, 1.9])), "linf") is False  # 1 / 2 + 1 / 1.9 is above 1
    assert proves(half, 2.0 + 2**-20, maximum(row([2.000001, 2.000001])), "linf")
    bound = 2.0 + 2**-20
    square = Fraction(bound) ** 2
    top = float(square - 2)
    top = top if Fraction(top) <= square - 2 else below(top)
    assert proves(half, bound, maximum(row([2.0, top])), "linf")
    for shares in ([2.0, math.nextafter(top, 9)], [-1e-9, 4.0], [4.0, -1e-9], [2.0 + 2**-18, 2.0 + 2**-18]):
        with pytest.raises(Rejected, match="share"):
            prove_lipschitz(half, claim_of(bound, "linf"), maximum(row(shares)))
    for shares in ([2.0], [2.0, 1.0, 1.0]):
        with pytest.raises(Rejected, match="shares"):
            prove_lipschitz(half, claim_of(bound, "linf"), maximum(row(shares)))
    assert not proves(layers([[2.0, 1.0]]), 2.0, maximum(row([4.0, 0.0])), "linf")  # a share of zero is allowed, and proves nothing here
    with pytest.raises(Rejected, match="do not prove"):
        prove_lipschitz(layers([[2.0, 1.0]]), claim_of(2.0, "linf"), maximum(row([4.0, 0.0])))


def test_matrices_of_all_outputs_are_limited_together(monkeypatch):
    for rows, count in ((ROWS, 2), ([ROWS[0], None], 1)):
        monkeypatch.setattr(lipschitz_bound, "MAX_ROW_WORK", count * 64)
        assert proves(PAIR, ABOVE, maximum(*rows), "linf")
        monkeypatch.setattr(lipschitz_bound, "MAX_ROW_WORK", count * 64 - 1)
        with pytest.raises(Rejected, match="2 matrices with 4 rows"):
            prove_lipschitz(PAIR, claim_of(ABOVE, "linf"), maximum(*rows))


def test_increments_are_unrolled_once_for_all_outputs(monkeypatch):
    calls, unroll = [], lipschitz_bound.unroll
    monkeypatch.setattr(lipschitz_bound, "unroll", lambda *given: calls.append(given) or unroll(*given))
    assert proves(PAIR, ABOVE, maximum(*ROWS), "linf") and len(calls) == 1


def out_of_range(_):
    raise OutOfRange("beyond float64")


def test_what_is_beyond_float64_is_judged_in_balls(monkeypatch):
    monkeypatch.setattr(lipschitz_bound, "is_semidefinite", out_of_range)
    assert proves(SIX, ABOVE, SIX_EVIDENCE) and not proves(SIX, 6 * (1 - 1e-6), SIX_EVIDENCE)
    assert proves(PAIR, ABOVE, maximum(*ROWS), "linf")
    monkeypatch.setattr(lipschitz_bound, "MAX_BALL_ROWS", 2)
    assert proves(PAIR, ABOVE, maximum(*ROWS), "linf")
    monkeypatch.setattr(lipschitz_bound, "MAX_BALL_ORDER", 4)
    assert proves(PAIR, ABOVE, maximum(*ROWS), "linf")
    monkeypatch.setattr(lipschitz_bound, "MAX_BALL_ORDER", 3)
    with pytest.raises(Rejected, match="beyond float64"):
        prove_lipschitz(PAIR, claim_of(ABOVE, "linf"), maximum(*ROWS))
    monkeypatch.setattr(lipschitz_bound, "MAX_BALL_ORDER", 300)
    monkeypatch.setattr(lipschitz_bound, "MAX_BALL_ROWS", 1)
    assert proves(SIX, ABOVE, SIX_EVIDENCE)
    with pytest.raises(Rejected, match="beyond float64"):
        prove_lipschitz(PAIR, claim_of(ABOVE, "linf"), maximum(*ROWS))


# --- windows ------------------------------------------------------------------------------------------------------------

DEEP = layers(np.diag([4.0, 1.0]), np.diag([1.0, 4.0]), np.eye(2))  # signals: affine 1, relu 2, affine 3, relu 4, affine 5
CROSSED = layers(np.diag([4.0, 1.0]), np.diag([1.0, 4.0]))
TIGHT = 1 + 1e-9


def part(last, bound, scale=None, evidence=None):
    return {"last": last, "bound": float(bound).hex(), "scale": scale, "evidence": PRODUCT if evidence is None else evidence}


def windows(*entries):
    return {"method": "windows", "windows": list(entries)}


def test_windows_multiply_their_bounds():
    assert proves(CROSSED, 16 * TIGHT**2 * TIGHT, windows(part(2, 4 * TIGHT), part(3, 4 * TIGHT)))
    assert not proves(CROSSED, 15.9, windows(part(2, 4 * TIGHT), part(3, 4 * TIGHT)))
    for first, second in ((3.99, 4.1), (4.1, 3.99)):
        assert not proves(CROSSED, 20.0, windows(part(2, first), part(3, second)))
    three = [part(2, 4 * TIGHT), part(4, 4 * TIGHT), part(5, TIGHT)]
    assert proves(DEEP, 16 * (1 + 1e-8), windows(*three)) and not proves(DEEP, 16 * (1 - 1e-8), windows(*three))


def test_scales_between_windows_hold_at_both_sides():
    scaled = hexes([1.0, 4.0])
    assert proves(CROSSED, 4 * (1 + 1e-8), windows(part(2, 4 * TIGHT, scaled), part(3, TIGHT)))
    assert not proves(CROSSED, 4 * (1 - 1e-8), windows(part(2, 4 * TIGHT, scaled), part(3, TIGHT)))
    assert not proves(CROSSED, 4 * (1 + 1e-8), windows(part(2, 4 * TIGHT), part(3, TIGHT)))
    assert not proves(CROSSED, 4 * (1 + 1e-8), windows(part(2, 4 * TIGHT, hexes([1.0, 4.1])), part(3, TIGHT)))
    outside = {"input_scale": ["4", "1"], "output_scale": ["1", "1/4"]}  # the claim's scales hold at the ends
    assert proves(CROSSED, 1 + 1e-8, windows(part(2, TIGHT), part(3, TIGHT)), **outside)
    assert not proves(CROSSED, 1 - 1e-8, windows(part(2, TIGHT), part(3, TIGHT)), **outside)
    steep = layers([[1.0]], [[1.0]], op="leaky_relu", slope=Fraction(3))
    assert proves(steep, 3 * TIGHT**3, windows(part(2, 3 * TIGHT), part(3, TIGHT)))
    assert not proves(steep, 9.0, windows(part(2, 2.9), part(3, TIGHT)))


def test_windows_in_the_maximum_norm_count_the_inputs():
    """|v| <= sqrt(n) max |v_i|, rounded up: reached by the sum of n inputs, whose l2 constant is sqrt(n) and whose linf constant is n."""
    summed = layers(np.ones((1, 5)), [[1.0]])
    root = math.nextafter(math.sqrt(5.0), math.inf)
    filed = windows(part(2, root * TIGHT), part(3, TIGHT))
    assert proves(summed, 5 * TIGHT**4, filed, "linf") and not proves(summed, 5.0, filed, "linf")
    assert proves(summed, root * TIGHT**3, filed) and not proves(summed, root * TIGHT**3, filed, "linf")
    exact = windows(part(2, 1.0), part(3, 1.0))
    two = layers(np.eye(2) / 2, np.eye(2) / 2)  # each product of norms is below 1: what is claimed is the root alone
    least = math.nextafter(math.nextafter(math.nextafter(math.sqrt(2.0), math.inf), math.inf), math.inf)
    assert proves(two, least, exact, "linf") and not proves(two, below(least), exact, "linf")


def test_windows_may_have_multipliers():
    inner = multipliers([8.0])
    chain = layers([[3.0]], [[2.0]], [[1.0]])  # window 1 holds the unit of SIX
    assert proves(chain, 6 * (1 + 1e-5), windows(part(3, ABOVE, None, inner), part(5, TIGHT)))
    assert not proves(chain, 6 * (1 + 1e-5), windows(part(3, 6 * (1 - 1e-6), None, inner), part(5, TIGHT)))


def test_products_of_windows_are_rounded_up():
    unit = layers([[0.1]], [[0.7]])
    first, second = 0.3, 0.71
    least = math.nextafter(math.nextafter(first, 1) * second, 1)
    assert proves(unit, least, windows(part(2, first), part(3, second)))
    assert not proves(unit, below(least), windows(part(2, first), part(3, second)))
    zero = layers([[0.0]], [[0.7]])
    assert proves(zero, 0.0, windows(part(2, 0.0), part(3, 0.0))) is False and not proves(unit, 0.0, windows(part(2, 0.0), part(3, 0.7)))
    assert proves(layers([[0.7]], [[0.0]]), 0.0, windows(part(2, 0.8), part(3, 0.0)))


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ([], "list with 2"), ([part(3, 20.0)], "list with 2"), ("windows", "list with 2"), (None, "list with 2"),
        ([part(2, 4.1), part(2, 4.1)], "network's output"), ([part(3, 20.0), part(3, 4.1)], "network's output"),
        ([part(2.0, 4.1), part(3, 4.1)], "signal's index"), ([part(True, 4.1), part(3, 4.1)], "signal's index"),
        ([part("2", 4.1), part(3, 4.1)], "signal's index"), ([part(0, 4.1), part(3, 4.1)], "from signal 0 to signal 0"),
        ([part(-1, 4.1), part(3, 4.1)], "to signal -1"), ([part(4, 4.1), part(3, 4.1)], "to signal 4"),
        ([part(2, 4.1, None, windows(part(1, 4.1), part(2, 1.1))), part(3, 4.1)], "without windows inside"),
        ([part(2, 4.1, None, "norm-product"), part(3, 4.1)], "without windows inside"),
        ([part(2, 4.1, None, {"method": "absolute-product"}), part(3, 4.1)], "expected method"),
        ([part(2, 4.1, hexes([1.0, 0.0])), part(3, 4.1)], "must be positive"),
        ([part(2, 9.1, hexes([-1.0, 1.0])), part(3, 4.1)], "must be positive"),
        ([part(2, 4.1, hexes([1.0])), part(3, 4.1)], "scale"), ([part(2, 4.1), part(3, 4.1, hexes([1.0, 1.0]))], "must be positive"),
        ([part(2, math.inf), part(3, 4.1)], "bound"), ([part(2, -4.1), part(3, -4.1)], "not at most"),
        ([{**part(2, 4.1), "first": 0}, part(3, 4.1)], "unknown"), (["2", part(3, 4.1)], "table"),
    ],
)  # fmt: skip
def test_windows_are_read_strictly(entries, word):
    with pytest.raises(Rejected, match=word):
        prove_lipschitz(CROSSED, claim_of(99.0), {"method": "windows", "windows": entries})


def test_windows_are_limited_in_number_and_work(monkeypatch):
    three = windows(part(2, 4 * TIGHT), part(4, 4 * TIGHT), part(5, TIGHT))  # inputs only: 2, 2 and 2 variables
    monkeypatch.setattr(lipschitz_bound, "MAX_WINDOWS", 3)
    monkeypatch.setattr(lipschitz_bound, "MAX_ROW_WORK", 24)
    assert proves(DEEP, 17.0, three)
    monkeypatch.setattr(lipschitz_bound, "MAX_ROW_WORK", 23)
    with pytest.raises(Rejected, match="more than are judged"):
        prove_lipschitz(DEEP, claim_of(17.0), three)
    monkeypatch.setattr(lipschitz_bound, "MAX_WINDOWS", 2)
    with pytest.raises(Rejected, match="2 to 2 entries"):
        prove_lipschitz(DEEP, claim_of(17.0), three)

    def refuse(_):
        raise Rejected("all norms together")

    monkeypatch.setattr(lipschitz_bound, "require_little", refuse)
    with pytest.raises(Rejected, match="all norms together"):
        prove_lipschitz(CROSSED, claim_of(17.0), windows(part(2, 4.1), part(3, 4.1)))


# --- texts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "upper", "lower"),
    [
        (1.5, "1.5", "1.5"), (1.00000049, "1.00001", "1"), (1.000015, "1.00002", "1.00001"), (1234567.2, "1234570", "1234560"),
        (-1.0000001, "-1", "-1.00001"), (0.0, "0", "0"), (math.inf, "inf", "inf"), (0.0012345678, "0.00123457", "0.00123456"),
    ],
)  # fmt: skip
def test_printed_numbers_are_on_the_safe_side(value, upper, lower):
    assert rounded_up(value) == upper and rounded_down(value) == lower
    assert [rounded_up(v) for v in (12345599999999999999.0, 123455999999999999999.0, 2.0**-100)] == [
        "12345600000000000000",
        "1.23456e+20",
        "7.88861e-31",
    ]
    assert rounded_up(1.26, 2) == "1.3" and rounded_down(1.26, 2) == "1.2"
