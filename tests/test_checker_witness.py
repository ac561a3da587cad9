"""Counterexamples, rule by rule: which sentence a verdict carries, what is refused with which reason, and the limits of the work."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb
from loops import Sketch, gain, identity, linear_plant, saturated_scalar, subject

from lipctrl.certificates.checker.bundle import graph_cost, parse_certificate, parse_plant
from lipctrl.certificates.checker.graph import Graph, Node, evaluate
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Rejected, Verdict
from lipctrl.certificates.checker.verifiers import counterexample
from lipctrl.certificates.checker.verifiers.counterexample import Jet, _Derivatives
from lipctrl.certificates.checker.writing import certificate_bytes

DOUBLING = {"plant": linear_plant([[2]], [[1]]), "policy": gain([0.0])}
PAIR = {"plant": linear_plant([[2, 0], [0, "1/2"]], [[0], [0]]), "policy": gain([0.0, 0.0])}


def refute(property: str, region: Any, evidence: Any, **parts: Any) -> Verdict:
    claim = {"property": property, "region": region}
    return check(parse_certificate(*certificate_bytes(kind="counterexample", claim=claim, evidence=evidence, **parts)))


def leaves(state: Any, region: Any, **loop: Any) -> Verdict:
    return refute("forward_invariant", region, {"state": state}, **(loop or DOUBLING))


def ellipse(low: Any, high: Any, P: Any, rho: str) -> dict[str, Any]:
    return {"low": low, "high": high, "P": P, "rho": rho}


def stretches(policy: Graph, bound: str, first: Any, second: Any, norm: str = "l2", scales: Any = (None, None)) -> Verdict:
    region = {"norm": norm, "bound": bound, "input_scale": scales[0], "output_scale": scales[1]}
    return refute("lipschitz", region, {"first": first, "second": second}, policy=policy)


# --- what a verdict says ------------------------------------------------------------------------------------------------


def test_verdicts_name_the_property_and_the_subject() -> None:
    verdict = leaves(["1"], ellipse(["-4"], ["4"], [["1"]], "3"))
    assert (verdict.status, verdict.level, verdict.kind) == ("verified", "falsified", "counterexample")
    assert (verdict.property, verdict.arithmetic, verdict.assumptions) == ("forward_invariant", "real", ())
    digests = {"policy": DOUBLING["policy"].digest(), "plant": parse_plant(DOUBLING["plant"]).digest}  # type: ignore[union-attr]
    assert dict(verdict.subject) == digests and dict(verdict.numbers) == {}
    what = "the sublevel set of level 3 within the claim's box is not forward invariant: its state (1) leaves it in one step"
    assert verdict.claim == what


def test_the_sentences_of_the_other_properties() -> None:
    verdict = stretches(gain([3.0, 4.0]), "49999999/10000000", ["0", "0"], ["3", "4"])
    assert verdict.claim == "4.99999 is not a Lipschitz constant of the network in the l2 norm: two inputs are stretched by more"
    assert verdict.property == "lipschitz" and verdict.level == "falsified"
    verdict = refute("asymptotically_stable", {}, {}, **PAIR)
    what = "the equilibrium (0, 0) of the closed loop is unstable: the linearisation has an eigenvalue of modulus above 1"
    assert (verdict.claim, verdict.property, verdict.level) == (what, "asymptotically_stable", "falsified")


def test_claims_and_evidence_have_exactly_their_keys() -> None:
    region = ellipse(["-4"], ["4"], [["1"]], "3")
    claims: list[Any] = [{}, {"property": "forward_invariant"}, {"property": "forward_invariant", "region": region, "volume": "1"}]
    for claim in claims:
        data = certificate_bytes(kind="counterexample", claim=claim, evidence={"state": ["1"]}, **DOUBLING)
        assert "claim: missing keys" in check(parse_certificate(*data)).reason
    assert "region: missing keys ['rho']" in leaves(["1"], {key: region[key] for key in ("low", "high", "P")}).reason
    assert "evidence: missing keys ['state']" in refute("forward_invariant", region, {}, **DOUBLING).reason
    assert "unknown keys ['more']" in refute("forward_invariant", region, {"state": ["1"], "more": 1}, **DOUBLING).reason
    assert "needs a plant" in leaves(["1"], region, policy=gain([0.0])).reason
    assert "no counterexample is known" in refute("stable", region, {"state": ["1"]}, **DOUBLING).reason
    for name, evidence in (("forward_invariant", {"state": ["1"]}), ("asymptotically_stable", {})):
        reason = refute(name, region if evidence else {}, evidence, arithmetic="float32", **DOUBLING).reason
        assert "arithmetic must be 'real'" in reason
    assert "region: missing keys [], unknown keys ['rho']" in refute("asymptotically_stable", {"rho": "1"}, {}, **DOUBLING).reason
    assert "evidence: missing keys [], unknown keys ['x']" in refute("asymptotically_stable", {}, {"x": "1"}, **DOUBLING).reason


# --- forward_invariant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "low", "high", "rho", "reason"),
    [
        ("1", "-1", "1", "1", None),
        ("-1", "-1", "1", "1", None),
        ("1", "-1", "3", "1", None),
        ("1", "-2", "2", "4", "was not shown to lie outside"),
        ("-1", "-2", "2", "4", "was not shown to lie outside"),
        ("1", "-2", "2", "399/100", None),
        ("1", "-2", "199/100", "4", None),
        ("-1", "-199/100", "2", "4", None),
        ("1", "-2", "99/100", "4", "is not in the set"),
        ("-1", "-99/100", "2", "4", "is not in the set"),
        ("1", "-2", "2", "99/100", "is not in the set"),
    ],
)
def test_witnesses_start_inside_and_end_outside(state: str, low: str, high: str, rho: str, reason: str | None) -> None:
    verdict = leaves([state], ellipse([low], [high], [["1"]], rho))
    assert verdict.level == "falsified" if reason is None else reason in verdict.reason


def test_the_quadratic_form_runs_over_all_pairs() -> None:
    """For P = [[1, 2], [-1, 1]] the form is x^2 + x y + y^2: 3 at (1, 1), and 21/4 at its successor (2, 1/2)."""
    P = [["1", "2"], ["-1", "1"]]
    for rho, reason in (("3", None), ("299/100", "is not in the set"), ("21/4", "was not shown"), ("131/25", None)):
        verdict = leaves(["1", "1"], ellipse(["-9", "-9"], ["9", "9"], P, rho), **PAIR)
        assert verdict.level == "falsified" if reason is None else reason in verdict.reason


@pytest.mark.parametrize(("P", "length"), [([["1"]], 2), ([["1", "0"]], 2), ([["1", "0"], ["0"]], 2), ([], 2), ("12", 2), (None, 2)])
def test_the_matrix_of_the_form_is_square(P: Any, length: int) -> None:
    assert f"P must be a list of {length} numbers" in leaves(["1", "1"], ellipse(["-9"] * 2, ["9"] * 2, P, "100"), **PAIR).reason


def test_exact_multiplication_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(states: int, bits: int, state: str = "1", P: str = "1") -> str:
        monkeypatch.setattr(counterexample, "MAX_STATES", states)
        monkeypatch.setattr(counterexample, "MAX_BITS", bits)
        return leaves([state], ellipse(["-10"], ["10"], [[P]], "300")).reason

    assert "was not shown" in limited(1, 1)
    assert "multiplied out exactly" in limited(0, 1)
    for number in ("4", "1/4"):
        assert "was not shown" in limited(1, 3, state=number) and "was not shown" in limited(1, 3, P=number)
        assert "multiplied out exactly" in limited(1, 2, state=number)
        assert "multiplied out exactly" in limited(1, 2, P=number)
    monkeypatch.setattr(counterexample, "MAX_BITS", 2)
    for P in ([["1", "0"], ["4", "1"]], [["1", "4"], ["0", "1"]]):
        assert "multiplied out exactly" in leaves(["1", "1"], ellipse(["-9"] * 2, ["9"] * 2, P, "100"), **PAIR).reason


# --- lipschitz ----------------------------------------------------------------------------------------------------------


def test_distances_are_weighted_sums_or_maxima() -> None:
    """The network (x, y) -> (x, 3 y), from (0, 0) to (4, 1): 4 and 1 become 4 and 3."""
    policy = gain([1.0, 0.0], [0.0, 3.0])
    for norm, scales, square in (
        ("l2", (None, None), Fraction(25, 17)),
        ("linf", (None, None), Fraction(1)),
        ("l2", (["1/2", "2"], None), Fraction(25, 8)),
        ("linf", (["1/2", "3"], None), Fraction(16, 9)),
        ("l2", (None, ["1/2", "1"]), Fraction(13, 17)),
        ("linf", (None, ["1/2", "2"]), Fraction(36, 16)),
    ):
        root = square.limit_denominator()
        above, below = (Fraction(float(root) ** 0.5) + sign * Fraction(1, 10**6) for sign in (1, -1))
        assert stretches(policy, str(below), ["0", "0"], ["4", "1"], norm, scales).level == "falsified", (norm, scales)
        assert "not shown to be further apart" in stretches(policy, str(above), ["0", "0"], ["4", "1"], norm, scales).reason
        assert stretches(policy, str(below), ["-3", "0"], ["-7", "-1"], norm, scales).level == "falsified"


def test_equal_distances_refute_nothing() -> None:
    for norm in ("l2", "linf"):
        assert "not shown" in stretches(gain([2.0]), "2", ["0"], ["1"], norm).reason
        assert "not shown" in stretches(gain([2.0]), "1", ["1"], ["1"], norm).reason
        assert "not shown" in stretches(gain([2.0]), "-1", ["1"], ["1"], norm).reason
        assert stretches(gain([2.0]), "-1", ["0"], ["1"], norm).level == "falsified"  # no network has a negative one


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"norm": "l1"}, "and the norm 'l2' or 'linf'"),
        ({"norm": None}, "and the norm 'l2' or 'linf'"),
        ({"scales": (["1", "0"], None)}, "not positive"),
        ({"scales": (None, ["-1"])}, "not positive"),
        ({"scales": (["1"], None)}, "scale must be a list of 2 numbers"),
        ({"scales": (None, ["1", "1"])}, "scale must be a list of 1 numbers"),
        ({"first": ["0"]}, "first must be a list of 2 numbers"),
        ({"second": ["0"] * 3}, "second must be a list of 2 numbers"),
        ({"bound": "0.5"}, "bound: expected a rational"),
    ],
)
def test_every_rule_of_a_stretched_pair(options: dict[str, Any], reason: str) -> None:
    parts: dict[str, Any] = {"bound": "1", "first": ["0", "0"], "second": ["1", "1"]}
    assert stretches(gain([3.0, 4.0]), **parts).level == "falsified"
    assert reason in stretches(gain([3.0, 4.0]), **{**parts, **options}).reason


def test_networks_have_one_input_and_one_output() -> None:
    x, two = Node("input", (), {"name": "x", "size": 1}), Node("input", (), {"name": "y", "size": 1})
    for policy in (Graph((x, two), {"a": 0}), Graph((x, two), {"a": 0, "b": 1}), Graph((x,), {"a": 0, "b": 0})):
        assert "one input and one output" in stretches(policy, "1/2", ["0"], ["1"]).reason
    constant = Graph((Node("constant", (), {"values": (Fraction(1),)}),), {"a": 0})
    assert "one input and one output" in stretches(constant, "1/2", ["0"], ["1"]).reason


# --- asymptotically_stable ----------------------------------------------------------------------------------------------


def test_differentiation_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work counts plant and policy, once a state: at the limit it is done, one beyond it is refused."""
    certificate = parse_certificate(*certificate_bytes(kind="k", claim={}, **PAIR))
    parts = (certificate.plant.observe, certificate.policy, certificate.plant.dynamics)
    values, products = (2 * sum(graph_cost(graph)[k] for graph in parts) for k in (0, 1))
    assert (values, products) == (2 * (4 + 3 + 12), 2 * 2)
    limits = {"MAX_STATES": 2, "MAX_SLOPES": values, "MAX_PRODUCTS": products}
    for name, value in limits.items():
        monkeypatch.setattr(counterexample, name, value)
    assert refute("asymptotically_stable", {}, {}, **PAIR).level == "falsified"
    for name, value in limits.items():
        monkeypatch.setattr(counterexample, name, value - 1)
        assert "too large to differentiate" in refute("asymptotically_stable", {}, {}, **PAIR).reason
        monkeypatch.setattr(counterexample, name, value)


def jets(*values: Any) -> Jet:
    """One seed a coordinate."""
    return Jet([arb(v) for v in values], [[arb(int(i == j)) for j in range(len(values))] for i in range(len(values))])


def slopes(op: str, x: Jet, *more: Jet, **attributes: Any) -> list[list[float]]:
    made = getattr(_Derivatives(len(x.slopes[0])), op)(x, *more, **attributes)
    return [[float(v) for v in row] for row in made.slopes]


def test_slopes_on_both_sides_of_a_kink() -> None:
    three = jets(-2, 3, "0.5")
    assert slopes("abs", three) == [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert slopes("relu", three) == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert slopes("leaky_relu", three, slope=Fraction(1, 4)) == [[0.25, 0, 0], [0, 1, 0], [0, 0, 1]]
    bounds = {"low": (Fraction(-1),) * 3, "high": (Fraction(1),) * 3}
    assert slopes("clip", three, **bounds) == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert slopes("group_sort", three, group_size=2) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert slopes("group_sort", three, group_size=3) == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    other = Jet([arb(0)], [[arb(5), arb(6), arb(7)]])
    assert slopes("max", three, other) == [[5, 6, 7], [0, 1, 0], [0, 0, 1]]
    assert slopes("min", three, other) == [[1, 0, 0], [5, 6, 7], [5, 6, 7]]
    assert slopes("max", other, three) == slopes("max", three, other)
    assert slopes("sub", other, three) == [[4, 6, 7], [5, 5, 7], [5, 6, 6]]


@pytest.mark.parametrize(
    ("op", "values", "attributes"),
    [
        ("abs", (1, 0), {}),
        ("relu", (0, 1), {}),
        ("leaky_relu", (1, 0), {"slope": Fraction(1, 2)}),
        ("clip", (1, 0), {"low": (Fraction(0),) * 2, "high": (Fraction(2),) * 2}),
        ("clip", (1, 2), {"low": (Fraction(0),) * 2, "high": (Fraction(2),) * 2}),
        ("group_sort", (3, 3), {"group_size": 2}),
        ("group_sort", (1, 2, 2), {"group_size": 3}),
        ("group_sort", (2, 2, 1), {"group_size": 3}),
        ("group_sort", (2, 1, 2), {"group_size": 3}),
        ("group_sort", (1, 2, 3, 4, 4), {"group_size": 3}),
    ],
)
def test_kinks_are_refused(op: str, values: Any, attributes: Any) -> None:
    with pytest.raises(Rejected, match="lies on a kink"):
        slopes(op, jets(*values), **attributes)
    wide = [arb(v, 1e-30) for v in values]
    with pytest.raises(Rejected, match="lies on a kink"):  # what may touch a kink is refused as well
        slopes(op, Jet(wide, jets(*values).slopes), **attributes)


def test_ties_in_different_groups_are_no_kink() -> None:
    assert slopes("group_sort", jets(2, 1, 2, 1), group_size=2) == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]


@pytest.mark.parametrize(("op", "value"), [("sqrt", 0), ("log", 0), ("sqrt", -1)])
def test_slopes_are_finite(op: str, value: int) -> None:
    with pytest.raises(Rejected, match="not finite"):
        slopes(op, jets(1, value))
    with pytest.raises(Rejected, match="not finite"):
        slopes("div", jets(1, 1), jets(1, 0))


def test_affine_and_recentred_slopes() -> None:
    weight = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    x = Jet([arb(1), arb(2)], [[arb(1), arb(0), arb(2)], [arb(0), arb(1), arb(3)]])
    made = _Derivatives(3).affine(x, weight, np.array([0.5, 0.0, 0.0]))
    assert [float(v) for v in made.values] == [5.5, 11, 17]
    assert [[float(v) for v in row] for row in made.slopes] == [[1, 2, 8], [3, 4, 18], [5, 6, 28]]
    inner = Graph((Node("input", (), {"name": "z", "size": 2}), Node("power", (0,), {"exponent": 2})), {"v": 1}, {}, 1)
    made = _Derivatives(3).recentre(x, inner, (Fraction(3), Fraction(-1)), np.zeros(2))
    assert [float(v) for v in made.values] == [1 - 9, 4 - 1]
    assert [[float(v) for v in row] for row in made.slopes] == [[2, 0, 4], [0, 4, 12]]


def test_only_operations_of_the_list_are_differentiated() -> None:
    with pytest.raises(AttributeError, match="sinh"):
        _ = _Derivatives(1).sinh
    s = Sketch()
    y = s("concatenate", s("select", s.input("x", 2), indices=(1,)), s.constant(7))
    made = evaluate(s.graph(y=y), {"x": jets(1, 2)}, _Derivatives(2))["y"]
    assert [[float(v) for v in row] for row in made.slopes] == [[0, 1], [0, 0]] and [float(v) for v in made.values] == [2, 7]


def scalar(make: Any, rest: Any = 0) -> dict[str, Any]:
    s = Sketch()
    x = s.input("state", 1)
    s.input("action", 1)
    return {"plant": subject(s.graph(next_state=make(s, x)), 1, 1, rest=(rest,)), "policy": gain([0.0])}


def test_equilibria_are_exact() -> None:
    assert "differs from x*" in refute("asymptotically_stable", {}, {}, **scalar(lambda s, x: s("mul", x, s.constant(2)), 1)).reason
    assert "not shown exactly" in refute("asymptotically_stable", {}, {}, **scalar(lambda s, x: s("sin", x), 1)).reason
    assert "no eigenvalue" in refute("asymptotically_stable", {}, {}, **scalar(lambda s, x: s("sin", x))).reason
    assert "needs a plant" in refute("asymptotically_stable", {}, {}, policy=identity(1)).reason
    assert refute("asymptotically_stable", {}, {}, **scalar(lambda s, x: s("mul", x, s.constant(-2)))).level == "falsified"
    assert leaves(["500999/100000"], ellipse(["-6"], ["6"], [["1"]], "251/10"), **saturated_scalar()).level == "falsified"
