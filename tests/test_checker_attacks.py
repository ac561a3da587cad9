"""Attacks on closed-loop proofs: forged files and hostile numbers, each of which once gave a false or an endless answer."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.bundle import Certificate, parse_certificate, parse_plant
from lipctrl.certificates.checker.cells import Loop
from lipctrl.certificates.checker.exact import Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Verdict
from lipctrl.certificates.checker.writing import certificate_bytes
from tests.loops import Sketch, subject

HOLE = 2  #: added to the dimension: the symbol of a hole leaf in a split tree


def constant_policy(value: Any = 0, observations: int = 1) -> Graph:
    s = Sketch()
    s.input("observation", observations)
    return s.graph(action=s.constant(value))


def resting_plant(n: int, box: Any) -> dict[str, Any]:
    """x+ = 0."""
    s = Sketch()
    s.input("state", n), s.input("action", 1)
    return subject(s.graph(next_state=s.constant(*[0] * n)), n, 1, box=box)


def scalar_plant(build: Any, box: Any = 2, limit: Any = 1) -> dict[str, Any]:
    """x+ = build(sketch, x, u) for one state and one action."""
    s = Sketch()
    x, u = s.input("state", 1), s.input("action", 1)
    return subject(s.graph(next_state=build(s, x, u)), 1, 1, box=box, limit=limit)


def practical(
    plant: dict[str, Any], policy: Graph, low: Sequence[float], high: Sequence[float], P: Any, rho: float, *, tree: Any, **claim: Any
) -> Certificate:
    """A certificate of practical stability, put together by hand; the whole set is the reached set unless ``claim`` says otherwise."""

    def texts(values: Any) -> list[str]:
        return [float(v).hex() for v in values]

    region = {"low": texts(low), "high": texts(high), "P": [texts(row) for row in P], "rho": float(rho).hex()}
    reached = {"reached_level": float(rho).hex(), "ball": (2.0**300).hex(), "volume": "0", "decrease_rate": "1/1000"}
    packed = base64.b64encode(zlib.compress(bytes(tree))).decode()
    data = {"property": "practically_stable", "region": region, **reached, **claim}
    parts = {"kind": "closed-loop-lyapunov-bab", "claim": data, "policy": policy, "plant": plant, "evidence": {"tree": packed}}
    return parse_certificate(*certificate_bytes(**parts))


def accepted(*arguments: Any, **options: Any) -> Verdict:
    verdict = check(practical(*arguments, **options))
    assert verdict.level == "proved", verdict.reason
    return verdict


# --- rounding ---------------------------------------------------------------------------------------------------------


def test_products_of_huge_disturbances_and_tiny_slopes_are_not_lost() -> None:
    """x+ = 2^-538 (u - c), where float32 misses the constant action c by 2^100: the square of 2^-438 is lost in S'PS, not in r'S'PSr."""
    c = Fraction(2) ** 125 * (1 + Fraction(1, 2**25))
    plant = scalar_plant(lambda s, x, u: s("mul", s("sub", u, s.constant(c)), s.constant(Fraction(1, 2**538))), limit=Fraction(2) ** 126)
    low, high = np.full((1, 1), -(2.0**-460)), np.full((1, 1), 2.0**-460)
    step = Loop(parse_plant(plant), constant_policy(c), "float32").step(np.zeros((1, 1)), high, low, high)
    deployed = (Fraction(float(np.float32(float(c)))) - c) / 2**538
    assert deployed**2 <= Fraction(float(step.highest(np.eye(1))[0]))


def test_nothing_has_no_zeroth_power() -> None:
    """1/0 has no value, so (1/0)^0 is not 1."""
    s = Sketch()
    x = s.input("x", 1)
    graph = s.graph(y=s("power", s("div", x, s("sub", x, x)), exponent=0))
    assert not evaluate_balls(graph, {"x": [arb(1)]})["y"][0].is_finite()
    assert np.isnan(iv.integer_power(iv.Interval(np.array([np.nan, 1.0]), np.array([1.0, np.nan])), 0).low).all()
    plant = scalar_plant(lambda s, x, u: s("mul", s.constant(0), s("power", s("div", s.constant(1), s.constant(0)), exponent=0)))
    assert check(practical(plant, constant_policy(), [-1], [1], [[1]], 1.0, tree=[1 + HOLE])).status == "rejected"


# --- volumes and sentences --------------------------------------------------------------------------------------------


def test_volumes_of_boxes_with_tiny_and_huge_sides_are_not_rounded_up() -> None:
    """The first six sides multiply to 0.6 * 2^-1074, which float64 rounds to 2^-1074; the other six bring that back to 1e19."""
    sides = [0.6 * 2.0**-179, *[2.0**-179] * 5, *[2.0**190] * 6]
    P = np.diag([2.0**100] * 6 + [2.0**-199] * 6)
    exact = Fraction(1)
    for side in sides:
        exact *= Fraction(side)
    box = [-side / 2 for side in sides], [side / 2 for side in sides]
    parts = (resting_plant(12, Fraction(2) ** 195), constant_policy(observations=12), *box, P, 2.0**199)
    accepted(*parts, tree=[12 + HOLE], volume=str(exact * Fraction(99, 100)))
    assert check(practical(*parts, tree=[12 + HOLE], volume=str(exact * Fraction(101, 100)))).status == "rejected"


def test_printed_numbers_are_rounded_to_the_safe_side() -> None:
    """The sentence never says more than was proved."""
    volume, rho = Fraction(1_000_016, 10**6), 0.250099607
    verdict = accepted(resting_plant(1, 2), constant_policy(), [-0.50001], [0.50001], [[1]], rho, tree=[1 + HOLE], volume=str(volume))
    words = verdict.claim.replace(",", "").replace("}", "").split()
    assert Fraction(words[words.index("least") + 1]) <= volume and verdict.numbers["volume"] <= volume
    assert float(words[words.index("<=") + 1]) == rho and verdict.numbers["decrease_rate"] <= Fraction(1, 1000)
    assert Fraction(words[-1]) >= Fraction(2) ** 300 and verdict.numbers["ball"] >= 2.0**300


def test_negative_volumes_are_refused() -> None:
    assert (
        "negative" in check(practical(resting_plant(1, 2), constant_policy(), [-1], [1], [[1]], 4.0, tree=[1 + HOLE], volume="-1")).reason
    )


# --- work and memory --------------------------------------------------------------------------------------------------


def test_exact_evaluation_is_a_bounded_amount_of_work() -> None:
    """Thousands of denominators without common factors, and a long program of long rationals: refused early, not computed."""
    s = Sketch()
    x = s.constant(*(Fraction(1, 3**8000 + 2 * k) for k in range(4000)))
    wide = s.graph(y=s.affine(x, np.ones((1, 4000))))
    s = Sketch()
    x = s.constant(*[Fraction(3**5000, 2**8000)] * 10_000)
    for _ in range(50):
        x = s("max", x, x)
    start = time.process_time()
    for graph in (wide, s.graph(y=x)):
        with pytest.raises(Inexact):
            evaluate_exact(graph, {})
    assert time.process_time() - start < 10
