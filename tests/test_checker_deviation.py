"""The ``action-deviation`` verifier, rule by rule: each is met exactly and missed by the least amount."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from verifying import of_several_ends, unsafe_arithmetic

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker import work as counting
from lipctrl.certificates.checker.bundle import Certificate
from lipctrl.certificates.checker.domain import read_domain
from lipctrl.certificates.checker.enclosure import Remembered
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import action_deviation as module
from lipctrl.certificates.checker.verifiers.action_deviation import Deviation, prove_deviation, read_deviation, verify
from lipctrl.certificates.checker.work import Work, work_of_graph

F = Fraction
U32 = 2.0**-24
PLAIN = {"method": "cells", "tree": [None]}


def identity(size):
    return Graph((Node("input", (), {"name": "x", "size": size}),), {"u": 0}, {})


def claim_of(bound, low=("0", "0"), high=("1", "2"), norm="linf", **changes):
    table = {"property": "float32_evaluation", "norm": norm, "output_scale": None, "activation_ulp": None}
    return {**table, "bound": float(bound).hex(), "domain": {"low": list(low), "high": list(high)}, **changes}


def deviation(graph, low=("0", "0"), high=("1", "2"), norm="linf", **changes):
    return read_deviation(graph, claim_of(1, low, high, norm, **changes))[0]


def error_of(graph, low=("0", "0"), high=("1", "2"), norm="linf", **changes):
    problem = deviation(graph, low, high, norm, **changes)
    a, b = problem.domain.box()
    (error,) = problem.errors(a[None], b[None])
    return float(error)


def refuses(claim, why, evidence=PLAIN, graph=None):
    with pytest.raises(Rejected, match=why):
        prove_deviation(identity(2) if graph is None else graph, claim, evidence)


# --- claims -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"property": "lipschitz"}, "^claim: expected property"),
        ({"norm": "l1"}, "^claim: expected property"),
        ({"norm": None}, "^claim: expected property"),
        ({"bound": "nan"}, "bound"),
        ({"bound": "inf"}, "bound"),
        ({"bound": (-(2.0**-30)).hex()}, "finite and not negative"),
        ({"bound": "-1"}, "finite and not negative"),
        ({"output_scale": ["1", "0"]}, "not positive"),
        ({"output_scale": ["1"]}, "scale"),
        ({"domain": {"low": ["0"], "high": ["1"]}}, "domain"),
        ({"other": 1}, "claim"),
    ],
)
def test_claims_that_are_refused(changes, why):
    refuses({**claim_of(1), **changes}, why)


@pytest.mark.parametrize("ulp", [0, -1, 1025, True, 1.0, "1"])
def test_units_in_the_last_place_are_small_integers(ulp):
    refuses(claim_of(1, activation_ulp=ulp), "activation_ulp must be null or an integer from 1 to 1024")


def test_units_in_the_last_place_that_are_accepted():
    assert [prove_deviation(identity(2), claim_of(1, activation_ulp=ulp), PLAIN) for ulp in (None, 1, 1024)] == [1, 1, 1]


def test_graphs_have_one_input_and_one_output():
    for graph in of_several_ends(2):
        refuses(claim_of(1), "one input and one output", graph=graph)


def test_balls_are_not_weighted():
    problem, bound = read_deviation(identity(2), {**claim_of(0.5, norm="l2"), "domain": {"centre": ["0", "1"], "radius": "3"}})
    assert problem.domain == read_domain({"centre": ["0", "1"], "radius": "3"}, 2, "l2", (F(1), F(1))) and bound == 0.5


# --- evidence -----------------------------------------------------------------------------------------------------------


def test_evidence_that_is_refused(monkeypatch):
    refuses(claim_of(1), "expected method 'cells'", {"method": "leaves", "tree": [None]})
    refuses(claim_of(1), "evidence", {"method": "cells"})
    refuses(claim_of(1), "ends too early", {"method": "cells", "tree": []})
    for tree in ([0], [[0, "1/2"], None, 0], [[0, "1/2"], 0, None]):
        refuses(claim_of(1), "a leaf must be null", {"method": "cells", "tree": tree})
    monkeypatch.setattr(module, "MAX_LEAVES", 2)
    two = {"method": "cells", "tree": [[0, "1/2"], None, None]}
    assert prove_deviation(identity(2), claim_of(1), two) == 1
    monkeypatch.setattr(module, "MAX_LEAVES", 1)
    refuses(claim_of(1), "more than 1 leaves", two)


def test_work_is_counted_before_it_is_done(monkeypatch):
    graph = identity(2)
    problem = deviation(graph)
    cell, batch, kept = work_of_graph(graph, 2)
    assert problem.work() == Work(3 * cell, 3 * batch, 2 * kept)
    two = {"method": "cells", "tree": [[0, "1/2"], None, None]}
    for limit in (problem.work().total(2), problem.work().total(2) - 1):
        monkeypatch.setattr(module, "MAX_WORK", limit)
        if limit == problem.work().total(2):
            assert prove_deviation(graph, claim_of(1), two) == 1
        else:
            refuses(claim_of(1), "2 leaves of this network are more work", two)
    monkeypatch.setattr(module, "MAX_WORK", 10**12)
    monkeypatch.setattr(counting, "MAX_FLOATS", 2 * kept - 1)
    refuses(claim_of(1), "more work")


def test_the_arithmetic_is_probed(monkeypatch):
    orders = unsafe_arithmetic(monkeypatch, module)
    refuses(claim_of(1), "rounds upwards")
    assert orders == [256]


def test_a_bound_is_met_exactly_and_missed_by_the_least_amount():
    error = error_of(identity(2))
    assert prove_deviation(identity(2), claim_of(error), PLAIN) == error
    below = math.nextafter(error, 0)
    refuses(claim_of(below), rf"in the leaf \[0.0, 0.0\] .. \[1.0, 2.0\] the error is at most {error!r}, .* {below!r}$".replace("+", r"\+"))
    refuses(claim_of(0), "which is not proved to be at most 0.0")


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_leaf_is_judged_whatever_the_batch(monkeypatch, batch):
    monkeypatch.setattr(counting, "BATCH", batch)
    tree = [[0, "1/8"], None, [0, "1/4"], None, [0, "1/2"], None, [0, "3/4"], None, None]
    mirrored = [[0, "-1/8"], [0, "-1/4"], [0, "-1/2"], [0, "-3/4"], None, None, None, None, None]
    for low, high, splits in (("0", "1", tree), ("-1", "0", mirrored)):  # the largest values are in the last leaf, and in the first
        claim = claim_of(error_of(identity(1), [low], [high]), [low], [high])
        assert prove_deviation(identity(1), claim, {"method": "cells", "tree": splits})
        refuses({**claim, "bound": (U32 * 0.99).hex()}, "in the leaf", {"method": "cells", "tree": splits}, identity(1))


# --- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [("-2", "1"), ("-1", "2"), ("1", "2"), ("-2", "-1"), ("2", "2")])
def test_the_cast_of_the_input(low, high):
    error = error_of(identity(1), [low], [high])
    assert 2 * U32 <= error <= 2 * U32 * (1 + 1e-9)


def test_norms_and_scales_of_the_output():
    low, high = ["0", "0", "0"], ["1", "4", "2"]
    assert error_of(identity(3), low, high) == pytest.approx(4 * U32, rel=1e-9)
    assert error_of(identity(3), low, high, "l2") == pytest.approx(21**0.5 * U32, rel=1e-9)
    scaled = error_of(identity(3), low, high, output_scale=["7", "1/3", "3"])
    assert scaled == pytest.approx(7 * U32, rel=1e-9)
    for scale in (F(1), F(3), F(1, 10), F(1, 3)):
        each = F(U32) * 4 * (1 + F(2.0**-36))  # the cast, with the verifier's own room
        assert F(error_of(identity(3), low, high, output_scale=[str(scale)] * 3)) > each * scale


def test_weighted_sizes_are_rounded_up(monkeypatch):
    rng = np.random.default_rng(0)
    for each in 2.0 ** rng.uniform(-3, 3, 20):
        for scale in (F(1), F(3), F(1, 10)):
            monkeypatch.setattr(module, "float32_error", lambda *_, each=each: np.array([[each]]))
            assert each * (1 + 1e-15) * scale >= F(error_of(identity(1), ["0"], ["1"], output_scale=[str(scale)])) > F(each) * scale


def test_inner_values_and_slopes_are_those_of_the_cell():
    """The error of a network on a box far from zero, against evaluations in float32 at its corners."""
    weights = {"w": np.array([[1.5, -1], [0.5, 2]], np.float32), "b": np.array([3, -5], np.float32), "v": np.array([[1, -1]], np.float32)}
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("affine", (0,), {"weight": "w", "bias": "b"}),
        Node("tanh", (1,)),
        Node("affine", (2,), {"weight": "v", "bias": None}),
    )
    graph = Graph(nodes, {"u": 3}, weights)
    wide = error_of(graph, ["-2", "-2"], ["2", "2"], activation_ulp=2)
    narrow = error_of(graph, ["-2", "0"], ["-31/16", "1/16"], activation_ulp=2)
    assert 0 < narrow < 0.7 * wide < 1e-5


def test_mirrored_cells_have_the_same_error():
    graph = Graph(
        (Node("input", (), {"name": "x", "size": 1}), Node("affine", (0,), {"weight": "w", "bias": None})),
        {"u": 1},
        {"w": np.array([[3]], np.float32)},
    )
    left, right = error_of(graph, ["-2"], ["1"]), error_of(graph, ["-1"], ["2"])
    assert left == pytest.approx(right, rel=1e-9) and 12 * U32 <= left <= 25 * U32  # cast and product: 6 each


def test_cells_are_enclosed_from_their_middles(monkeypatch):
    seen = []

    def error(graph, operand, radius, *_):
        seen.append((operand, radius))
        return np.zeros((2, 2))

    monkeypatch.setattr(module, "float32_error", error)
    low, high = np.array([[-2.0, 0.1], [-2.0, 0.3]]), np.array([[1.0, 0.7], [0.0, 0.9]])
    assert deviation(identity(2), ["-2", "0"], ["1", "1"]).errors(low, high).shape == (2,)
    ((operand, radius),) = seen
    assert operand.value.low.tolist() == low.tolist() and operand.value.high.tolist() == high.tolist()
    for b in range(2):
        for i in range(2):
            middle, spread = F(operand.centre.low[b, i]), F(radius[i, b, 0])
            assert middle - spread <= F(low[b, i]) and F(high[b, i]) <= middle + spread <= F(high[b, i]) + F(1e-15)


def test_boxes_without_a_point_of_the_ball_have_no_error():
    problem, _ = read_deviation(identity(2), {**claim_of(1, norm="l2"), "domain": {"centre": ["0", "0"], "radius": "1"}})
    found = problem.errors(np.array([[0.9, 0.9], [0, 0.9]]), np.array([[1.0, 1.0], [1.0, 1.0]]))
    assert found[0] == 0 and found[1] == pytest.approx((1 + 0.19) ** 0.5 * U32, rel=1e-6)


def test_euclidean_lengths_are_rounded_up():
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 300):
        sizes = rng.random((3, n)) * 10.0 ** rng.integers(-6, 6, (3, n))
        for row, length in zip(sizes.tolist(), module._euclidean(sizes).tolist(), strict=True):
            square = sum(F(v) ** 2 for v in row)
            assert square * (1 + n * F(iv.UNIT)) <= F(length) ** 2 <= square * (1 + F(1e-12))
    ones = module._euclidean(np.ones((1, 256)))
    assert F(ones[0]) ** 2 >= 256 * (1 + 256 * F(iv.UNIT))
    tiny = module._euclidean(np.array([[2.0**-540, 2.0**-540], [0, 0]]))
    assert (tiny >= 2.0**-539).all() and (tiny <= 2.0**-499).all()


def test_what_is_not_known_is_refused():
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("tanh", (0,)))
    refuses(claim_of(1, ["0"], ["1"]), "activation_ulp", graph=Graph(nodes, {"u": 1}, {}))
    refuses(claim_of(1, output_scale=[str(10**400), "1"]), "too large for float64")
    huge = prove_deviation, identity(1), claim_of(2.0**1000, ["0"], [str(2**127)]), PLAIN
    with pytest.raises(Rejected, match="error is at most nan"):
        huge[0](*huge[1:])


# --- the certificate ----------------------------------------------------------------------------------------------------


def certificate(**changes):
    parts = {"kind": "action-deviation", "arithmetic": "float32", "claim": claim_of(0.5), "subject": {"policy": identity(2)}}
    return Certificate(**{**parts, "evidence": PLAIN, "requires": (), "tensors": {}, "sha256": "", **changes})


def test_the_verdict_says_what_was_proved():
    verdict = verify(certificate())
    assert (verdict.level, verdict.kind, verdict.property) == ("proved", "action-deviation", "float32_evaluation")
    assert verdict.claim == (
        "evaluated in IEEE binary32, the policy differs from its value over the reals by at most 0.5 "
        "for all x in the box 0 <= x1 <= 1, 0 <= x2 <= 2, in the maximum norm, in the units of the policy's output"
    )
    assert verdict.numbers == {"evaluation_error_linf": 0.5} and verdict.arithmetic == "float32" and verdict.assumptions == ()
    weighted = verify(certificate(claim=claim_of(0.5, norm="l2", output_scale=["1", "1"], activation_ulp=3)))
    assert weighted.claim.endswith("in the Euclidean norm, weighted by the claim's output_scale")
    assert weighted.level == "proved-for-model"
    assert weighted.assumptions == ("float32 tanh and sigmoid are accurate to 3 units in the last place",)
    assert weighted.numbers == {"evaluation_error_l2": 0.5}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"arithmetic": "real"}, "is about the policy in float32"),
        ({"requires": ("0" * 64,)}, "rests on no other certificate"),
        ({"subject": {"policy": identity(2), "plant": None}}, "a policy as its subject and nothing else"),
        ({"subject": {"plant": None}}, "a policy as its subject and nothing else"),
        ({"claim": claim_of(0)}, "not proved"),
    ],
)
def test_certificates_that_are_refused(changes, why):
    with pytest.raises(Rejected, match=why):
        verify(certificate(**changes))


def test_problems_are_made_of_what_the_claim_says():
    problem = deviation(identity(2), output_scale=["2", "3"], activation_ulp=7)
    assert isinstance(problem, Deviation) and isinstance(problem.remembered, Remembered)
    assert (problem.scale, problem.activation_ulp, problem.norm) == ((F(2), F(3)), 7, "linf")
