"""The verifier of closed-loop proofs, step by step: small loops by hand, and each inequality just inside and just outside."""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flint import arb, arb_mat
from test_checker_attacks import HOLE, constant_policy, practical, resting_plant, scalar_plant

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import Certificate, parse_certificate, parse_plant
from lipctrl.certificates.checker.cells import Loop, keep_factor, level_range
from lipctrl.certificates.checker.graph import GraphError
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import closed_loop_lyapunov_bab as bab
from lipctrl.certificates.checker.work import work_of_step
from lipctrl.certificates.checker.writing import certificate_bytes
from tests.loops import Sketch, gain, linear_plant

OUT, OK = 0, 1  #: added to the dimension, like HOLE: symbols of leaves
KEEP_NOTHING = "999/1000"


def packed(*symbols: int) -> str:
    return base64.b64encode(zlib.compress(bytes(symbols))).decode()


def texts(*values: float) -> list[str]:
    return [float(v).hex() for v in values]


def reason(certificate: Certificate) -> str:
    """Why it is rejected; empty if it is not."""
    return check(certificate).reason or ""


# --- leaves -----------------------------------------------------------------------------------------------------------


def test_leaves_follow_the_tree_in_preorder() -> None:
    tree = packed(0, 1, 2 + OUT, 2 + HOLE, 2 + OK)
    low, high = np.array([-2.0, -1.0]), np.array([4.0, 3.0])
    found = {code: (a.tolist(), b.tolist()) for code, a, b in bab.derive_leaves(tree, low, high, 2)}
    assert found == {
        "out": ([[-2.0, -1.0]], [[1.0, 1.0]]),
        "hole": ([[-2.0, 1.0]], [[1.0, 3.0]]),
        "ok": ([[1.0, -1.0]], [[4.0, 3.0]]),
    }


def test_leaves_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bab, "BATCH", 3)
    ends = np.array([0.0]), np.array([1.0])
    for leaf, sizes in ((OK, [2, 2, 1]), (HOLE, [2, 2, 1]), (OUT, [3, 2])):
        tree = packed(*[0, 1 + leaf] * 4, 1 + leaf)
        batches = list(bab.derive_leaves(tree, *ends, 1, 2))
        assert [len(low) for _, low, _ in batches] == sizes and {code for code, _, _ in batches} == {bab.LEAVES[leaf]}
        assert np.concatenate([low for _, low, _ in batches])[:, 0].tolist() == [0, 0.5, 0.75, 0.875, 0.9375]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (packed(1 + OK, 1 + OK), "left over"),
        (packed(0, 1 + OK), "too early"),
        (packed(), "too early"),
        (packed(4), "unknown symbol 4"),
        (packed(0, 1 + OK, 255), "unknown symbol 255"),
        (7, "must be a base64 text"),
        ("*" + packed(1 + OK), "cannot be unpacked"),
        (packed(1 + OK)[:-4] + "*" + packed(1 + OK)[-4:], "cannot be unpacked"),
        (base64.b64encode(b"nothing").decode(), "cannot be unpacked"),
        (base64.b64encode(zlib.compress(bytes([1 + OK]))[:-2]).decode(), "truncated"),
        (base64.b64encode(zlib.compress(bytes([1 + OK])) + b"x").decode(), "truncated"),
        (packed(*[0, 1 + OK] * 20, 1 + OK), "more than 30 nodes"),
    ],
)
def test_trees_that_are_not_trees(monkeypatch: pytest.MonkeyPatch, tree: object, words: str) -> None:
    monkeypatch.setattr(bab, "MAX_NODES", 30)
    with pytest.raises(Rejected, match=words):
        list(bab.derive_leaves(tree, np.array([0.0]), np.array([1.0]), 1))


def test_boxes_too_thin_to_split() -> None:
    for low, high in ((1.0, np.nextafter(1, 2)), (np.nextafter(1, 0), 1.0), (0.0, 5e-324)):
        with pytest.raises(Rejected, match="too thin"):
            list(bab.derive_leaves(packed(0, 1 + OK, 1 + OK), np.array([low]), np.array([high]), 1))
    assert len(list(bab.derive_leaves(packed(0, 1 + OK, 1 + OK), np.array([0.0]), np.array([1e-323]), 1))) == 1


def claim(low: Any = (-1.0,), high: Any = (1.0,), P: Any = ((1.0,),), rho: float = 1.0, kappa: Any = "1/2", **extra: Any) -> bab.Claim:
    return bab.Claim(np.array(low), np.array(high), np.array(P), rho, Fraction(kappa), Fraction(0), extra)


def test_leaves_are_out_only_beyond_the_level() -> None:
    centre, radius = np.array([[0.75]]), np.array([[0.125]])
    lowest = float(level_range(np.eye(1), centre, radius)[0][0])
    assert lowest == pytest.approx(0.75**2 - 2 * 0.75 * 0.125)
    for rho, out in ((lowest, False), (np.nextafter(lowest, 0), True), (1.0, False)):
        assert bab.is_out(claim(rho=rho), centre, radius).tolist() == [out]


def test_leaves_are_ok_where_the_step_stays_inside_and_decreases() -> None:
    def inside(low: Any, high: Any) -> Any:
        assert (low, high) == (-1.0, 2.0)
        return np.array([True, True, False, True])

    def decrease(P: Any, keep: Any) -> Any:
        assert P == 1.0 and keep == keep_factor(Fraction(1, 3))
        return np.array([0.0, -5e-324, 1.0, np.nan])

    step: Any = SimpleNamespace(inside=inside, decrease=decrease)
    assert bab.is_ok(claim(high=(2.0,), kappa="1/3"), step).tolist() == [True, False, False, False]


def kinked(below: Any, above: Any) -> dict[str, Any]:
    """x+ = below * min(x, 0) + above * max(x, 0)."""

    def build(s: Any, x: int, u: int) -> int:
        right = s("relu", x)
        left = s("neg", s("relu", s("neg", x)))
        return s("add", s("mul", s.constant(below), left), s("mul", s.constant(above), right))

    return scalar_plant(build)


@pytest.mark.parametrize(("below", "above", "good"), [("1/2", "1/2", True), ("3/4", "1/2", False), ("1/2", "3/4", False)])
def test_both_ends_of_every_leaf_have_to_decrease(below: str, above: str, good: bool) -> None:
    """V = x^2 decreases by the factor 1/4 or 9/16; 1/2 is asked for. The holes are what the second level of splits leaves around 0."""
    tree = [0, 0, 1 + OK, 1 + HOLE, 0, 1 + HOLE, 1 + OK]
    found = reason(practical(kinked(below, above), constant_policy(), [-1], [1], [[1]], 1.0, tree=tree, decrease_rate="1/2"))
    assert (found == "") == good and ("leaf 'ok'" in found) != good


@pytest.mark.parametrize(("low", "high"), [(-1.0, 4.0), (-4.0, 1.0)])
def test_every_point_of_every_leaf_has_to_be_what_it_says(low: float, high: float) -> None:
    """V <= 1 on [-1, 1]: the longer half of the box is out but for one end."""
    inner, outer = (1 + HOLE, 1 + OUT) if low == -1 else (1 + OUT, 1 + HOLE)
    splits = [0, 0, inner, outer, 1 + OUT] if low == -1 else [0, 1 + OUT, 0, inner, outer]
    parts = (resting_plant(1, 9), constant_policy(), [low], [high], [[1]])
    assert reason(practical(*parts, 1.0, tree=splits, reached_level=(1.0).hex())) != ""  # a hole [-1, 1/4] or so, V > 1 beyond
    found = check(practical(*parts, 0.0625, tree=splits, reached_level=(0.0625).hex(), volume="0"))
    assert "hole" in found.reason
    assert "leaf 'out'" in reason(practical(*parts, 1.0, tree=[0, 1 + OUT, 1 + OUT]))


# --- reading ----------------------------------------------------------------------------------------------------------

TREE = [1 + HOLE]


def box(low: Any = (-0.75,), high: Any = (0.75,), P: Any = ((1.0,),), rho: float = 1.0, **changes: Any) -> Certificate:
    n = len(P[0])
    tree = changes.pop("tree", [n + HOLE])
    return practical(resting_plant(n, 2), constant_policy(observations=n), low, high, P, rho, tree=tree, **changes)


EDGE = 2.0**200


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (box, ""),
        (lambda: box(rho=0.0), "rho > 0"),
        (lambda: box(rho=-1.0), "rho > 0"),
        (lambda: box(low=[0.0]), "low < 0"),
        (lambda: box(high=[0.0]), "low < 0 < high"),
        (lambda: box(low=[0.5]), "low < 0"),
        (lambda: box(high=[-0.5], low=[-1.0]), "low < 0 < high"),
        (lambda: box(low=[-1.0, 0.5], high=[1.0, 1.0], P=np.eye(2)), "low < 0"),
        (lambda: box(low=[-1.0, -1.0], high=[1.0, -0.5], P=np.eye(2)), "low < 0 < high"),
        (lambda: box(decrease_rate="0"), "decrease_rate"),
        (lambda: box(decrease_rate="1"), "decrease_rate"),
        (lambda: box(decrease_rate="-1/2"), "decrease_rate"),
        (lambda: box(decrease_rate="3/2"), "decrease_rate"),
        (lambda: box(low=[-1 / EDGE]), "magnitudes"),
        (lambda: box(low=[-EDGE]), "magnitudes"),
        (lambda: box(high=[1 / EDGE]), "magnitudes"),
        (lambda: box(high=[EDGE], tree=[0, 1 + HOLE, 1 + OUT]), "magnitudes"),
        (lambda: box(P=[[1 / EDGE]]), "magnitudes"),
        (lambda: box(P=[[EDGE]], tree=[0, 1 + OUT, 1 + OUT]), "magnitudes"),
        (lambda: box(rho=1 / EDGE), "magnitudes"),
        (lambda: box(rho=EDGE), "magnitudes"),
        (lambda: box(rho=EDGE / 2), ""),
        (lambda: box(rho=2 / EDGE, low=[-(2.0**-100)], high=[2.0**-100]), ""),
        (lambda: box(low=[-1.0] * 2, high=[1.0] * 2, P=[[1.0, 0.5], [0.25, 1.0]], rho=4.0), "symmetric"),
        (lambda: box(low=[-1.0] * 2, high=[1.0] * 2, P=[[1.0, 2.0], [2.0, 1.0]], rho=9.0), "definite"),
        (lambda: box(low=[-1.0] * 2, high=[1.0] * 2, P=[[1.0, 1.0], [1.0, 1.0]], rho=9.0), "definite"),
        (lambda: box(low=[-1.0] * 2, high=[1.0] * 2, P=[[1.0, 0.5], [0.5, 1.0]], rho=9.0), ""),
        (lambda: practical(resting_plant(2, 2), constant_policy(observations=2), [-1] * 2, [1] * 2, [[1, 0]], 1.0, tree=[4]), "2 rows"),
        (lambda: box(volume="-1/10"), "negative"),
        (lambda: box(volume="-1"), "negative"),
        (lambda: practical(resting_plant(1, 2), constant_policy(observations=2), [-1], [1], [[1]], 1.0, tree=TREE), "the policy maps"),
        (lambda: box(property="exponentially_stable", local_rate="1/2"), "claim"),
        (lambda: box(property="asymptotically_stable"), "supports the properties"),
        (lambda: box(activation_ulp=None), "claim"),
    ],
)
def test_what_a_claim_must_satisfy(certificate: Callable[[], Certificate], words: str) -> None:
    found = reason(certificate())
    assert words in found and (found == "") == (words == "")


def region_of(n: int, P: Any = None, side: float = 1.0) -> dict[str, Any]:
    unit = [texts(*row) for row in np.eye(n)]
    return {"low": texts(*[-side] * n), "high": texts(*[side] * n), "P": unit if P is None else P, "rho": (1.0).hex()}


def test_matrices_are_lists_of_rows() -> None:
    for P in ("0x1p0", {"0": texts(1.0)}, [texts(1.0), texts(1.0)], []):
        assert "1 rows" in reason(box(region=region_of(1, P)))


def test_dimensions_are_limited() -> None:
    n = bab.MAX_DIMENSION
    assert n == 12
    for size, words in ((n, ""), (n + 1, "at most 12")):
        found = reason(box(low=[-1.0] * size, high=[1.0] * size, P=np.eye(size), rho=100.0))
        assert words in found and (found == "") == (words == "")


def deployed(**claim: Any) -> Certificate:
    """The float32 reading of x+ = 0, with a policy of one activation."""
    s = Sketch()
    policy = s.graph(action=s("tanh", s.input("observation", 1)))
    data = {"property": "practically_stable", "region": region_of(1, side=0.75), "decrease_rate": "1/2", "volume": "0"}
    data |= {"ball": (2.0).hex(), "reached_level": (1.0).hex(), "activation_ulp": 4, **claim}
    parts = {"kind": bab.KIND, "arithmetic": "float32", "policy": policy, "plant": resting_plant(1, 2)}
    return parse_certificate(*certificate_bytes(claim=data, evidence={"tree": packed(1 + HOLE)}, **parts))


@pytest.mark.parametrize(("ulp", "good"), [(1, True), (1024, True), (0, False), (1025, False), (-1, False), ("4", False), (True, False)])
def test_assumed_accuracies_are_small_integers(ulp: object, good: bool) -> None:
    found = check(deployed(activation_ulp=ulp))
    assert found.level == ("proved-for-model" if good else "unknown") and ("1 to 1024" in (found.reason or "")) != good


def test_float32_claims_are_practical_and_name_their_assumption() -> None:
    verdict = check(deployed())
    assert verdict.assumptions == ("float32 tanh and sigmoid are accurate to 4 units in the last place",)
    assert "any IEEE float32 evaluation of the policy" in verdict.claim and verdict.arithmetic == "float32"
    assert "activation_ulp" in reason(deployed(activation_ulp=None))
    with_rate = {"property": "exponentially_stable", "local_rate": "1/2"}
    assert "claim" in reason(deployed(**with_rate))


# --- work and volume in the whole -----------------------------------------------------------------------------------------


def test_the_processor_is_tested_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsafe(order: int) -> None:
        raise iv.UnsafeArithmetic(f"probe of matrix products of order {order}")

    monkeypatch.setattr(bab, "require_ieee_products", unsafe)
    with pytest.raises(iv.UnsafeArithmetic):
        bab.verify(box())


def test_work_is_counted_over_leaves_that_take_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = practical(
        resting_plant(1, 2), constant_policy(), [-4], [4], [[1]], 1.0, tree=[0, 0, 1 + OUT, 1 + HOLE, 1 + HOLE], reached_level=(1.0).hex()
    )
    loop, read, evidence = bab.read(certificate)
    leaves = list(bab.derive_leaves(evidence["tree"], read.low, read.high, 1))
    units = sum(work_of_step(loop).total(len(low)) for code, low, _ in leaves if code == "hole")
    assert units == work_of_step(loop).total(2)
    for limit, refused in ((units, False), (units - 1, True)):
        monkeypatch.setattr(bab, "MAX_WORK", limit)
        assert ("units of work" in reason(certificate)) == refused


def test_volumes_up_to_the_bound_may_be_claimed() -> None:
    tree = [0, 0, 1 + OK, 0, 1 + OK, 1 + HOLE, 0, 0, 1 + HOLE, 1 + OK, 1 + OK]
    parts: dict[str, Any] = {"low": [-1.0], "high": [1.0], "P": [[4.0]], "tree": tree}
    _, read, evidence = bab.read(box(**parts))
    bound = bab.volume_bound(read, list(bab.derive_leaves(evidence["tree"], read.low, read.high, 1)))
    assert Fraction(1) - Fraction(1, 2**50) < bound <= 1
    assert reason(box(**parts, volume=str(bound))) == ""
    assert "volume" in reason(box(**parts, volume=str(bound + Fraction(1, 2**60))))


# --- reaching a small set -----------------------------------------------------------------------------------------------


def reaching(build: Any, **claim: Any) -> Certificate:
    """Every leaf is a hole: [-1/2, 1/2] is the set that is reached, unless ``claim`` says otherwise."""
    parts = {"reached_level": (0.25).hex(), "ball": (0.5 + 2.0**-40).hex(), "tree": [1 + HOLE], **claim}
    return practical(scalar_plant(build), constant_policy(), [-0.5], [0.5], [[1]], parts.pop("rho", 0.25), **parts)


def test_what_is_reached_stays_below_the_level_and_inside_the_box() -> None:
    slack = 1 + 2.0**-40
    for name, build, good in (
        ("falls", lambda s, x, u: s("mul", x, s.constant("1/2")), True),
        ("rises", lambda s, x, u: s("mul", x, s.constant("5/4")), False),
        ("jumps", lambda s, x, u: s("add", s("mul", x, s.constant(0)), s.constant("3/4")), False),
    ):
        found = reason(reaching(build, rho=0.25 * slack, reached_level=(0.25 * slack).hex(), ball=(0.5 * slack).hex()))
        assert (found == "") == good and ("hole leaf leads" in found) != good, name
    still = lambda s, x, u: s("mul", x, s.constant(0))  # noqa: E731
    assert "hole leaf leads" in reason(reaching(still, rho=0.25, reached_level=(0.2).hex()))  # V(y) itself is above


@pytest.mark.parametrize(("low", "high", "target"), [(-1.0, 0.25, "1/2"), (-0.25, 1.0, "-1/2")])
def test_what_is_reached_may_not_leave_the_box_on_either_side(low: float, high: float, target: str) -> None:
    plant = scalar_plant(lambda s, x, u: s("add", s("mul", x, s.constant(0)), s.constant(target)))
    found = reason(practical(plant, constant_policy(), [low], [high], [[1]], 2.0, tree=[1 + HOLE]))
    assert "hole leaf leads" in found


def test_highest_levels_count_up_to_equality() -> None:
    def check_level(top: float, inside: bool) -> None:
        step = SimpleNamespace(inside=lambda low, high: np.array([inside]), highest=lambda P: np.array([top]))
        loop: Any = SimpleNamespace(step=lambda *cells: step)
        bab.check_reached(loop, claim(), 0.75, np.array([[-0.5]]), np.array([[0.5]]))

    check_level(0.75, True)
    for top, inside in ((np.nextafter(0.75, 1), True), (0.5, False), (np.nan, True)):
        with pytest.raises(Rejected, match="hole leaf leads"):
            check_level(top, inside)


@pytest.mark.parametrize(
    ("reached", "ball", "words"),
    [
        (1.0, 1 + 2.0**-40, ""),
        (1 + 2.0**-40, 2.0, "0 < reached_level <= rho"),
        (0.0, 1.0, "0 < reached_level"),
        (-1.0, 1.0, "0 < reached_level"),
        (1.0, 0.0, "positive ball"),
        (1.0, -2.0, "positive ball"),
        (1.0, 1.0, "not inside the claimed ball"),
        (1.0, 0.5, "not inside the claimed ball"),
    ],
)
def test_levels_and_balls(reached: float, ball: float, words: str) -> None:
    """{x^2 <= reached} inside a ball, on a loop that rests on the box [-3/4, 3/4] whatever the level."""
    found = reason(box(low=[-0.75], high=[0.75], reached_level=reached.hex(), ball=ball.hex()))
    assert words in found and (found == "") == (words == "")


@pytest.mark.parametrize(("ball", "good"), [(0.5 + 1e-9, True), (0.5 - 1e-9, False)])
def test_balls_around_slanted_ellipses(ball: float, good: bool) -> None:
    """P has the eigenvalues 1 and 3: {V <= 1/4} reaches out to 1/2."""
    P = [[2.0, -1.0], [-1.0, 2.0]]
    found = reason(box(low=[-0.125] * 2, high=[0.125] * 2, P=P, rho=0.25, reached_level=(0.25).hex(), ball=ball.hex()))
    assert (found == "") == good and ("claimed ball" in found) != good


# --- the origin -------------------------------------------------------------------------------------------------------


def exponential(**changes: Any) -> Certificate:
    """x+ = x/2 with V = x^2 <= 1 on [-1, 1]; holes of width 1/8, and the contraction on the same interval."""
    half = [0, 0, 1 + OK, 0, 1 + OK, 0, 1 + OK, 1 + HOLE]
    tree = packed(*half, *[0, 0, 0, 1 + HOLE, 1 + OK, 1 + OK, 1 + OK])
    origin = {"domain": texts(0.125), "hole": texts(0.125), "L": [texts(1.0)], "c0": (2.0**-6).hex(), **changes.pop("origin", {})}
    data = {"property": "exponentially_stable", "region": region_of(1), "decrease_rate": "1/2", "local_rate": "1/2", "volume": "0"}
    parts = {"plant": linear_plant([["1/2"]], [[1]]), "policy": gain([0.0]), **changes.pop("parts", {})}
    evidence = {"tree": changes.pop("tree", tree), "origin": origin}
    return parse_certificate(*certificate_bytes(kind=bab.KIND, claim=data | changes, evidence=evidence, **parts))


def test_an_equilibrium_without_an_exact_value_is_refused() -> None:
    """sin 1 - sin 1 is 0, but not by the rules of exact evaluation."""
    s = Sketch()
    shifted = s("sin", s("add", s.input("observation", 1), s.constant(1)))
    policy = s.graph(action=s("sub", shifted, shifted))
    assert "cannot be evaluated exactly" in reason(exponential(parts={"policy": policy}))


def test_a_contraction_closes_the_hole() -> None:
    verdict = check(exponential(volume="1"))
    assert verdict.level == "proved", verdict.reason
    assert verdict.numbers == {"volume": 1.0, "rho": 1.0, "decrease_rate": 0.5, "local_rate": 0.5}
    assert verdict.claim == (
        "every trajectory of the stated plant under the policy's real-valued reading that starts in {y: y'Py <= 1.0} within "
        "the claim's box, volume at least 1, stays there and converges to the equilibrium exponentially; "
        "V shrinks by the factor 0.5 each step away from it"
    )
    assert check(exponential(local_rate="1/3")).numbers["local_rate"] == pytest.approx(1 / 3, abs=1e-16)
    assert Fraction(check(exponential(local_rate="1/3")).numbers["local_rate"]) < Fraction(1, 3)
    assert "factor 0.75 each" in check(exponential(decrease_rate="1/4")).claim


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_rate": "3/4"}, "not proved a contraction"),
        ({"local_rate": "749/1000"}, ""),
        ({"local_rate": "0"}, "0 < local_rate < 1"),
        ({"local_rate": "1"}, "0 < local_rate < 1"),
        ({"local_rate": "-1/2"}, "0 < local_rate < 1"),
        ({"origin": {"c0": (0.0).hex()}}, "c0 > 0"),
        ({"origin": {"c0": (-1.0).hex()}}, "c0 > 0"),
        ({"origin": {"hole": texts(0.0)}}, "hole > 0"),
        ({"origin": {"hole": texts(-0.125)}}, "hole > 0"),
        ({"origin": {"domain": texts(0.0)}}, "a domain inside the box"),
        ({"origin": {"domain": texts(1 + 1e-9)}}, "a domain inside the box"),
        ({"origin": {"domain": texts(1.0)}}, ""),
        ({"origin": {"hole": texts(0.125 - 1e-9)}}, "outside the hole box"),
        ({"origin": {"hole": texts(0.125 + 1e-9)}}, "hole box is not inside the contraction ellipsoid"),
        ({"origin": {"domain": texts(0.125 - 1e-9)}}, "ellipsoid is not inside its domain"),
        ({"origin": {"L": [texts(0.0)]}}, "not invertible"),
        ({"origin": {"L": [texts(1.0)] * 2}}, "1 rows"),
        ({"origin": {"L": (1.0).hex()}}, "1 rows"),
        ({"origin": {"L": {"first": texts(1.0)}}}, "1 rows"),
        ({"origin": {"c0": (1 + 1e-9).hex(), "domain": texts(1.0)}}, "ellipsoid is not inside its domain"),
        ({"origin": {"c0": (1.0).hex(), "domain": texts(1.0)}}, "not inside the sublevel set"),
        ({"origin": {"c0": (1 - 1e-9).hex(), "domain": texts(1.0)}}, ""),
        ({"origin": {"extra": 1}}, "origin"),
        ({"parts": {"policy": gain([0.0], bias=[2.0**-30])}}, "does not map the equilibrium to itself"),
    ],
)
def test_what_a_contraction_must_satisfy(changes: dict[str, Any], words: str) -> None:
    found = reason(exponential(**changes))
    assert words in found and (found == "") == (words == "")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", [-1, 1])
def test_holes_are_inside_the_hole_box_on_every_side(axis: int, side: int) -> None:
    hole = np.array([0.125, 0.25])
    low, high = -hole[None], hole[None].copy()
    checked: list[Any] = []

    def contraction(*arguments: Any) -> Any:
        checked.append(arguments[2:])
        return hole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bab, "check_contraction", contraction)
        parts: Any = (None, claim(local_rate="1/3"), {"origin": "table"})
        assert bab._origin(*parts, [("hole", low, high), ("ok", 9 * low, 9 * high)]) == {"local_rate": Fraction(1, 3)}
        assert checked == [("table", Fraction(1, 3))]
        (low if side < 0 else high)[0, axis] += side * 1e-12
        with pytest.raises(Rejected, match="outside the hole box"):
            bab._origin(*parts, [("hole", low, high)])


@pytest.mark.parametrize(("low", "high"), [((-1.0, -0.5), (1.0, 1.0)), ((-1.0, -1.0), (0.5, 1.0))])
def test_domains_are_inside_the_nearer_end_of_every_side(low: Any, high: Any) -> None:
    loop: Any = SimpleNamespace(dimension=2)
    origin = {"domain": texts(0.75, 0.75), "hole": texts(0.1, 0.1), "L": [texts(1.0, 0.0), texts(0.0, 1.0)], "c0": (0.1).hex()}
    for key, value in (
        ("domain", texts(0.75, 0.75)),
        ("domain", texts(0.25, -0.25)),
        ("hole", texts(0.1, -0.1)),
        ("hole", texts(-0.1, 0.1)),
    ):
        with pytest.raises(Rejected, match="a domain inside the box"):
            bab.check_contraction(loop, claim(low, high, np.eye(2)), {**origin, "domain": texts(0.25, 0.25), key: value}, Fraction(1, 2))


def contracts(L: Any, slope: Any, spread: Any, rate: Fraction) -> bool:
    try:
        bab._check_contraction(arb_mat([[arb(v) for v in row] for row in L]), np.array(slope, float), np.array(spread, float), rate)
    except Rejected:
        return False
    return True


@pytest.mark.parametrize(
    ("L", "slope", "spread", "norm"),
    [
        ([[1, 0], [0, 1]], [[0.5, 0], [0, 0.25]], [[0, 0], [0, 0]], 0.5),
        ([[1, 0], [0, 1]], [[0, 0], [0, 0]], [[0.3, 0], [0.4, 0]], 0.5),
        ([[1, 0], [0, 1]], [[0, 0], [0.25, 0]], [[0.15, 0], [0, 0.2]], 0.5),
        ([[1, 0], [0, 2]], [[0, 0.5], [0, 0]], [[0, 0], [0, 0]], 0.25),
        ([[1, 0], [0, 2]], [[0, 0], [0.25, 0]], [[0, 0], [0, 0]], 0.5),
        ([[1, 0], [0, 2]], [[0, 0], [0, 0]], [[0, 0.6], [0.2, 0]], 0.5),
        ([[1, -1], [0, 1]], [[0.5, 0], [0, 0]], [[0, 0], [0, 0]], math.sqrt(0.5)),  # middle = (1/2, 1/2; 0, 0)
        ([[1, -1], [0, 1]], [[0, 0], [0, 0]], [[0.3, 0], [0, 0.2]], math.sqrt(0.3**2 + 0.5**2 + 0.2**2)),  # the same in absolute values
        ([[1, 1], [0, 1]], [[0, 0], [0, 0]], [[0.3, 0], [0, 0.2]], math.sqrt(0.3**2 + 0.5**2 + 0.2**2)),  # with a negative inverse
        ([[0.5, 0], [0, 0.5]], [[0.3, 0.4], [-0.4, 0.3]], [[0, 0], [0, 0]], 0.5),
    ],
)
def test_contraction_rates_up_to_the_norm(L: Any, slope: Any, spread: Any, norm: float) -> None:
    """|L S L^-1| + | |L| S_r |L^-1| |_F <= sqrt(1 - rate), where both terms are known."""
    for factor, good in ((1 + 1e-9, True), (1 - 1e-9, False)):
        assert contracts(L, slope, spread, 1 - Fraction(norm * factor) ** 2) == good


def test_slopes_that_vary_by_more_than_the_rate_allows() -> None:
    assert not contracts([[1]], [[0]], [[0.5]], Fraction(3, 4))  # nothing is left: not even for slope 0
    assert not contracts([[1]], [[0.25]], [[2]], Fraction(3, 4))  # 1/2 - 2, whose square would be enough
    assert not contracts([[1, 1], [1, 1]], np.zeros((2, 2)), np.zeros((2, 2)), Fraction(1, 2))


def included(L: Any, domain: Any, hole: Any, c0: float) -> str:
    try:
        bab._check_inclusions(arb_mat([[arb(v) for v in row] for row in L]), np.array(domain), np.array(hole), arb(c0))
    except Rejected as error:
        return str(error)
    return ""


def test_ellipsoids_between_the_hole_and_the_domain() -> None:
    """L^-1 = (1, -1/2; 0, 1/2): {|L y|^2 <= 4} reaches to sqrt(5) and 1; |L| (h, h) = (2 h, 2 h)."""
    L, root, tiny = [[1, 1], [0, 2]], math.sqrt(5), 1e-9
    assert included(L, [root + tiny, 1 + tiny], [0.7, 0.7], 4) == ""
    for domain in ([root - tiny, 9], [9, 1 - tiny]):
        assert "not inside its domain" in included(L, domain, [0.1, 0.1], 4)
    edge = math.sqrt(0.5)
    assert included([[1, -1], [0, 2]], [9, 9], [edge - tiny] * 2, 4) == ""
    assert "hole box" in included([[1, -1], [0, 2]], [9, 9], [edge + tiny] * 2, 4)
    assert "hole box" in included(L, [9, 9], [2.0 + tiny, 0], 4) and included(L, [9, 9], [2.0, 0], 4) == ""


def test_ellipsoids_inside_slanted_sublevel_sets() -> None:
    """{|L y|^2 <= c0} in {y'Py <= rho} if and only if L'L rho / c0 - P is positive semidefinite."""
    s = Sketch()
    s.input("observation", 2)
    loop: Any = SimpleNamespace(dimension=2)
    L, wide = [[1.0, 1.0], [0.0, 2.0]], claim([-9.0, -9.0], [9.0, 9.0], [[0.5, 0.5], [0.5, 2.5]], rho=2.0)  # P = L'L / 2
    origin = {"domain": texts(8, 8), "hole": texts(0.1, 0.1), "L": [texts(*row) for row in L]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bab, "check_equilibrium", lambda loop: None)
        patch.setattr(bab, "_slopes_at_origin", lambda loop, domain: (np.zeros((2, 2)), np.zeros((2, 2))))
        for c0, good in ((4 - 1e-9, True), (4 + 1e-9, False)):
            try:
                hole = bab.check_contraction(loop, wide, {**origin, "c0": c0.hex()}, Fraction(1, 2))
                assert good and hole.tolist() == [0.1, 0.1]
            except Rejected as error:
                assert not good and "not inside the sublevel set" in str(error)


def test_slopes_at_the_origin_are_over_the_domain_and_finite() -> None:
    domain, asked = np.array([0.5, 0.25]), []

    def loop(**changes: Any) -> Any:
        parts = {"slope": np.ones((1, 2, 2)), "slope_radius": np.zeros((1, 2, 2)), "magnitude": np.ones((1, 2))}
        for name, value in changes.items():
            parts[name] = parts[name].copy()
            parts[name].flat[0] = value
        step = SimpleNamespace(
            slope=parts["slope"], slope_radius=parts["slope_radius"], value=SimpleNamespace(magnitude=parts["magnitude"])
        )

        def take(*cells: Any) -> Any:
            asked.append([c.tolist() for c in cells])
            return step

        return SimpleNamespace(step=take)

    slope, spread = bab._slopes_at_origin(loop(), domain)
    assert slope.shape == spread.shape == (2, 2) and slope[0, 0] == 1 and spread[0, 0] == 0
    assert asked == [[[[0, 0]], [[0.5, 0.25]], [[-0.5, -0.25]], [[0.5, 0.25]]]]
    for name in ("slope", "slope_radius", "magnitude"):
        for value in (np.nan, np.inf):
            with pytest.raises(Rejected, match="not finite"):
                bab._slopes_at_origin(loop(**{name: value}), domain)


def test_operations_that_the_checker_does_not_know_are_a_rejection() -> None:
    def refuse(*cells: Any) -> Any:
        raise GraphError("no such accuracy")

    loop: Any = SimpleNamespace(step=refuse)
    cell = np.array([[-0.5]]), np.array([[0.5]])
    for attempt in (
        lambda: bab._check_leaves("ok", loop, claim(), *cell),
        lambda: bab.check_reached(loop, claim(), 1.0, *cell),
        lambda: bab._slopes_at_origin(loop, np.array([0.5])),
    ):
        with pytest.raises(Rejected, match="no such accuracy"):
            attempt()


# --- linear algebra and volumes -----------------------------------------------------------------------------------------


def test_pivots_must_be_surely_positive() -> None:
    F = Fraction
    assert bab.determinant([[F(2), F(1), F(0)], [F(1), F(3), F(1)], [F(0), F(1), F(4)]]) == 18
    assert bab.determinant([[F(1, 2)]]) == F(1, 2) and bab.determinant([]) == 1
    assert bab.determinant([[F(0)]]) is None and bab.determinant([[F(1), F(1)], [F(1), F(1)]]) is None
    assert bab.determinant([[arb(0, 1e-30)]]) is None and bab.determinant([[arb("nan")]]) is None
    assert bab.determinant([[arb(2), arb(1)], [arb(1), arb(2)]]).overlaps(arb(3))


def test_volumes_of_ellipsoids() -> None:
    """Just below pi^(n/2) rho^(n/2) / Gamma(n/2 + 1) / sqrt(det P), if the box holds all of it."""
    for n, exact in ((1, 2 * math.sqrt(3)), (2, 3 * math.pi), (3, 4 / 3 * math.pi * 3**1.5), (4, math.pi**2 / 2 * 9)):
        P = np.diag([1.0] * (n - 1) + [4.0])
        bound = bab.volume_bound(claim([-2.0] * n, [3.0] * n, P, 3.0), [])
        assert exact / 2 * (1 - 1e-14) < bound < exact / 2 * (1 + 1e-15)
    slanted = claim([-1.0, -2.0], [9.0, 9.0], [[1.5, 0.5], [0.5, 0.5]], 0.5)  # det 1/2; |y0| <= 1/2, |y1| <= sqrt(3)/... of 3/2
    assert bab.volume_bound(slanted, []) == pytest.approx(math.pi * 0.5 / math.sqrt(0.5), rel=1e-13)
    upright = [[1.0, 0.0], [0.0, 4.0]]  # reaches to 1 and 1/2
    assert bab.volume_bound(claim([-1.0, -0.5], [1.0, 0.5], upright), []) == pytest.approx(math.pi / 2, rel=1e-13)
    for high in ((1 - 1e-9, 0.5), (1.0, 0.5 - 1e-9)):
        assert bab.volume_bound(claim([-1.0, -0.5], high, upright), []) == 0  # of no cells at all
    assert bab.volume_bound(claim([-2.0, -1.0], [2.0, 1.0], upright, 4.0), []) == pytest.approx(2 * math.pi, rel=1e-13)
    for high in ((2 - 1e-9, 1.0), (2.0, 1 - 1e-9)):
        assert bab.volume_bound(claim([-2.0, -1.0], high, upright, 4.0), []) == 0
    assert bab.volume_bound(claim([-1.0], [9.0]), []) == pytest.approx(2, rel=1e-14)  # touching the box on one side


@pytest.mark.parametrize("side", range(4))
def test_ellipsoids_that_leave_the_box_on_any_side_are_measured_cell_by_cell(side: int) -> None:
    """The unit disc without a segment beyond 0.75 on one side."""
    ends = np.array([-2.0, -2.0, 2.0, 2.0])
    ends[side] = math.copysign(0.75, ends[side])
    low, high = ends[:2], ends[2:]
    middle = 0.5 * low[0] + 0.5 * high[0]
    left, right = np.array([middle, high[1]]), np.array([middle, low[1]])
    leaves = [("ok", low[None], left[None]), ("hole", right[None], high[None]), ("out", low[None], high[None])]
    exact = math.pi - (math.acos(0.75) - 0.75 * math.sqrt(1 - 0.75**2))
    bound = bab.volume_bound(claim(low, high, np.eye(2)), leaves)
    assert 0.995 * exact < bound < exact


def test_cells_are_split_where_the_level_varies_most() -> None:
    low, high = np.array([[0.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 1.0], [2.0, 1.0]])
    (a, b), (c, d) = bab._halves(low, high, np.array([[1.0, 2.0], [2.0, 1.0]]))
    assert (a == low).all() and (d == high).all()
    assert b.tolist() == [[2.0, 0.5], [1.0, 1.0]] and c.tolist() == [[0.0, 0.5], [1.0, 0.0]]
    assert high[0].tolist() == [2, 1] and low[1].tolist() == [0, 0]  # the operands stay


def test_splitting_for_the_volume_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of [-2, 2] with V <= 1, thirds of what is crossed stay crossed for ever; the count of cells or of rounds ends it."""
    cells = [(np.array([[-2.0]]), np.array([[2.0]]))]
    interval = claim([-2.0], [2.0], rho=1.5)
    exact = 2 * math.sqrt(1.5)
    rounds = []
    for limit, rounds_allowed in ((1 << 15, 1), (1 << 15, 2), (1 << 15, 4), (1 << 15, 60), (0, 60), (1, 60), (2, 60)):
        monkeypatch.setattr(bab, "VOLUME_CELLS", limit), monkeypatch.setattr(bab, "VOLUME_ROUNDS", rounds_allowed)
        rounds.append(float(bab._volume_of_cells(interval, cells)))
    assert rounds[:3] == pytest.approx([0, 0, 2], abs=1e-9) and rounds[3] == pytest.approx(exact, rel=1e-10)
    assert rounds[4:6] == [0, 0] and rounds[6] == pytest.approx(exact, rel=1e-10) and rounds[3] <= exact
    assert bab._volume_of_cells(interval, [(np.array([[-0.5]]), np.array([[0.25]]))]) == pytest.approx(0.75, abs=1e-12)
    assert bab._volume_of_cells(interval, [(np.array([[1.5]]), np.array([[2.0]]))]) == 0


def test_volumes_of_boxes_are_rounded_down() -> None:
    count, n = 100, 12
    whole = np.full(n, 0.75)
    volume = bab._volume_of_boxes(whole, np.full((count, n), 0.5)) / (count * Fraction(1, 2**n))
    assert 205 <= (1 - volume) * 2**53 <= 216  # 12 times 4 roundings, and 100 + 4 * 12 + 16
    assert bab._volume_of_boxes(np.ones(2), np.zeros((5, 2))) == 0
    sides = np.full((3, 2), 2.0**-530)
    expected = 3 * Fraction(1, 2**1060) - 9 * 4 * Fraction(1, 2**1070)
    assert abs(bab._volume_of_boxes(np.ones(2), sides) - expected) < Fraction(1, 2**1069)
    unequal = bab._volume_of_boxes(np.array([3.0, 2.0**-300]), np.array([[1.0, 2.0**-301], [2.0, 2.0**-302]]))
    assert float(unequal * 2**301) == pytest.approx(2, rel=1e-14)


def test_sides_are_measured_by_those_of_the_whole_box() -> None:
    """The first six sides multiply to 0.6 * 2^-1074, which float64 rounds up to 2^-1074; the other six bring that back."""
    sides = np.array([0.6 * 2.0**-179, *[2.0**-179] * 5, *[2.0**190] * 6])
    P = np.diag([2.0**100] * 6 + [2.0**-199] * 6)
    exact = math.prod((Fraction(float(side)) for side in sides), start=Fraction(1))
    found = bab._volume_of_cells(claim(-sides / 2, sides / 2, P, 2.0**199), [(-sides[None] / 2, sides[None] / 2)])
    assert exact * Fraction(99, 100) < found < exact


def test_sentences_of_practical_stability() -> None:
    verdict = check(box(low=[-0.75], high=[0.75], reached_level=(1.0).hex(), ball=(1.5).hex(), decrease_rate="1/3", volume="1/3"))
    assert re.search(r"volume at least 0\.3+, stays there and reaches .* inside the ball of radius 1\.5$", verdict.claim)
    assert verdict.numbers["ball"] == 1.5 and Fraction(verdict.numbers["volume"]) < Fraction(1, 3)
    assert verdict.assumptions == () and verdict.property == "practically_stable" and verdict.arithmetic == "real"


@pytest.mark.parametrize("side", [1, -1])
def test_leaves_are_checked_over_their_whole_width(side: int) -> None:
    """x+ = 4 max(3/4 - x, 0) and its mirror image: 0 beyond 3/4, 2 at the end of the leaf that is next to 0."""

    def build(s: Any, x: int, u: int) -> int:
        beyond = s("relu", s("sub", s.constant("3/4"), s("mul", s.constant(side), x)))
        return s("mul", s.constant(4 * side), beyond)

    loop = Loop(parse_plant(scalar_plant(build)), constant_policy())
    extra = {"reached_level": (1.25).hex(), "ball": (8.0).hex()}
    wide = claim([-5.0], [5.0], rho=2.0, kappa="1/10", **extra)
    for far, good in ((0.7, True), (0.25, False)):
        low, high = np.sort(np.array([[far], [1.0]]) * side, 0)[:, :, None].reshape(2, 1, 1)
        beside = np.array([[0.8], [0.9]]) * side
        both = np.concatenate([np.sort(beside, 0)[:1], low]), np.concatenate([np.sort(beside, 0)[1:], high])
        for ends in ((low, high), both):
            for attempt in (
                lambda ends=ends: bab._check_leaves("ok", loop, wide, *ends),
                lambda ends=ends: bab.check_reached(loop, wide, 1.25, *ends),
                lambda ends=ends: bab._origin(loop, wide, {}, [("hole", *ends), ("ok", -5 + 0 * ends[0], 5 + 0 * ends[1])]),
            ):
                if good:
                    attempt()
                else:
                    with pytest.raises(Rejected, match="leaf 'ok'|hole leaf leads"):
                        attempt()


def test_levels_of_holes_count_at_both_ends() -> None:
    loop = Loop(parse_plant(resting_plant(1, 9)), constant_policy())
    for ends, good in (((-0.5, 0.5), True), ((-0.7, 0.1), False), ((-0.1, 0.7), False)):
        cells = np.array([[0.0], [ends[0]]]), np.array([[0.0], [ends[1]]])
        if good:
            bab.check_reached(loop, claim(), 0.3, *cells)
        else:
            with pytest.raises(Rejected, match="hole leaf leads"):
                bab.check_reached(loop, claim(), 0.3, *cells)


@pytest.mark.parametrize("side", [1, -1])
def test_slopes_of_leaves_are_taken_over_their_whole_width(side: int) -> None:
    """x+ = |x - 9/10| on [1/4, 1], or its mirror image: continued from its far end V would shrink, but 1/4 moves to 0.65."""

    def build(s: Any, x: int, u: int) -> int:
        return s("mul", s.constant(side), s("abs", s("sub", x, s.constant(Fraction(9 * side, 10)))))

    loop = Loop(parse_plant(scalar_plant(build)), constant_policy())
    far, near = np.array([[1.0 * side]]), np.array([[0.25 * side]])
    with pytest.raises(Rejected, match="leaf 'ok'"):
        bab._check_leaves("ok", loop, claim(kappa="1/10"), np.minimum(near, far), np.maximum(near, far))
    bab._check_leaves("ok", loop, claim(kappa="1/10"), np.minimum(3 * near, far), np.maximum(3 * near, far))


def test_leaves_that_are_called_out_have_to_be_out() -> None:
    """x+ = 0: V falls to 0 everywhere, so a leaf inside the set is ok, but not out; and one outside is both."""
    loop = Loop(parse_plant(resting_plant(1, 9)), constant_policy())
    inside, outside = (np.array([[0.5]]), np.array([[0.75]])), (np.array([[2.0]]), np.array([[3.0]]))
    wide = claim([-5.0], [5.0])
    bab._check_leaves("ok", loop, wide, *inside)
    bab._check_leaves("out", loop, wide, *outside)
    with pytest.raises(Rejected, match="leaf 'out' with y in \\[0.5\\] .. \\[0.75\\] does not hold"):
        bab._check_leaves("out", loop, wide, *inside)
    bab._check_leaves("out", None, wide, *outside)  # the loop plays no part in it
