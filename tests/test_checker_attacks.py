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

from lipctrl.certificates.checker import exact
from lipctrl.certificates.checker import graph as graph_module
from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.bundle import Certificate, parse_certificate, parse_plant
from lipctrl.certificates.checker.cells import Loop
from lipctrl.certificates.checker.exact import Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import Graph, Node, graph_from_json, graph_to_json
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Verdict
from lipctrl.certificates.checker.work import MAX_FLOATS, work_of_step
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
    volume = Fraction(1)
    for side in sides:
        volume *= Fraction(side)
    box = [-side / 2 for side in sides], [side / 2 for side in sides]
    parts = (resting_plant(12, Fraction(2) ** 195), constant_policy(observations=12), *box, P, 2.0**199)
    accepted(*parts, tree=[12 + HOLE], volume=str(volume * Fraction(99, 100)))
    assert check(practical(*parts, tree=[12 + HOLE], volume=str(volume * Fraction(101, 100)))).status == "rejected"


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


def test_exact_evaluation_is_a_bounded_amount_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of denominators without common factors, and a long program of long rationals: refused early, not computed."""
    s = Sketch()
    x = s.constant(*(Fraction(1, 3**8000 + 2 * k) for k in range(2000)))
    wide = s.graph(y=s.affine(x, np.ones((1, 2000))))
    s = Sketch()
    x = s.constant(*[Fraction(3**5000, 2**8000)] * 10_000)
    for _ in range(50):
        x = s("max", x, x)
    monkeypatch.setattr(exact, "MAX_TOTAL_BITS", 1 << 24)
    start = time.process_time()
    for graph in (wide, s.graph(y=x)):
        with pytest.raises(Inexact):
            evaluate_exact(graph, {})
    assert time.process_time() - start < 5


def select_and_repeat(size: int, nodes: int) -> Graph:
    """A policy that computes ``nodes`` vectors of the given size for nothing."""
    s = Sketch()
    x = s("select", s.input("observation", 1), indices=(0,) * size)
    for _ in range(nodes):
        x = s("neg", x)
    return s.graph(action=s("clip", s("select", x, indices=(0,)), low=(Fraction(-1),), high=(Fraction(1),)))


def full_tree(depth: int, leaf: int) -> bytes:
    """Symbols of a scalar box that is halved ``depth`` times everywhere."""
    return bytes([leaf]) if depth == 0 else bytes([0]) + 2 * full_tree(depth - 1, leaf)


def test_wide_policies_are_enclosed_in_small_batches() -> None:
    """2048 cells of half a million numbers each at a time would fill 100 GB."""
    policy = select_and_repeat(16_000, 30)
    plant = resting_plant(1, 2)
    work = work_of_step(Loop(parse_plant(plant), policy))
    assert 1 <= work.cells_at_once <= MAX_FLOATS / (16_000 * 30) and work.floats > 16_000 * 30
    accepted(plant, policy, [-1], [1], [[1]], 2.0, tree=full_tree(3, 1 + HOLE))


def joined(parts: int, nodes: int) -> Graph:
    """A policy that joins its observation ``parts`` times, again and again."""
    s = Sketch()
    x = s.input("observation", 1)
    for _ in range(nodes):
        s("concatenate", *[x] * parts)
    return s.graph(action=x)


@pytest.mark.parametrize(
    ("policy", "depth"), [(select_and_repeat(16_000, 30), 9), (select_and_repeat(1, 10_000), 15), (joined(9_000, 60), 8)]
)
def test_more_work_than_a_minute_or_two_is_refused_at_once(policy: Graph, depth: int) -> None:
    verdict = check(practical(resting_plant(1, 2), policy, [-1], [1], [[1]], 2.0, tree=full_tree(depth, 1 + HOLE)))
    assert verdict.status == "rejected" and "units of work" in verdict.reason


def test_a_cell_that_does_not_fit_into_memory_is_refused() -> None:
    s = Sketch()
    x = s("group_sort", s("select", s.input("observation", 1), indices=(0,) * 16_000), group_size=16_000)
    policy = s.graph(action=s("select", x, indices=(0,)))
    verdict = check(practical(resting_plant(1, 2), policy, [-1], [1], [[1]], 2.0, tree=[1 + HOLE]))
    assert verdict.status == "rejected" and "numbers" in verdict.reason


def test_numbers_of_thousands_of_digits_are_refused_where_they_would_be_eliminated_with() -> None:
    """A 12 x 12 matrix of 4000-digit rationals takes hours to factorise exactly: L and c0 must be floats."""
    n, long = 12, str(Fraction(3**4000, 3**4000 + 2))
    region = {"low": [(-1.0).hex()] * n, "high": [(1.0).hex()] * n, "P": [[float(i == j).hex() for j in range(n)] for i in range(n)]}
    claim = {"property": "exponentially_stable", "region": {**region, "rho": (0.5).hex()}, "decrease_rate": "1/1000", "volume": "0"}
    origin = {"domain": [(0.5).hex()] * n, "hole": [(0.1).hex()] * n, "L": [[long] * n] * n, "c0": "1"}
    tree = base64.b64encode(zlib.compress(bytes([n + HOLE]))).decode()
    data = certificate_bytes(
        kind="closed-loop-lyapunov-bab", claim={**claim, "local_rate": "1/10"}, policy=constant_policy(observations=n),
        plant=resting_plant(n, 2), evidence={"tree": tree, "origin": origin},
    )  # fmt: skip
    assert "float64" in check(parse_certificate(*data)).reason


def test_tensors_are_looked_through_once_however_many_graphs_are_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 nested graphs beside 256 MB of weights: once each, an hour."""
    looked: list[str] = []
    monkeypatch.setattr(graph_module, "_check_tensor", lambda name, tensor: looked.append(name))
    inner = Graph((Node("input", (), {"name": "z", "size": 1}),), {"o": 0}, {}, 1)
    s = Sketch()
    x, s.tensors["offset"] = s.input("observation", 1), np.zeros(1, np.float32)
    for _ in range(50):
        x = s("recentre", x, graph=inner, point=(Fraction(0),), offset="offset")
    policy = s.graph(action=x)
    looked.clear()
    graph_from_json(graph_to_json(policy), policy.tensors)
    assert len(looked) <= 2


def test_levels_with_thousands_of_long_denominators_are_not_added_up() -> None:
    """A quadratic form of 126 x 126 rationals of 4000 digits, each with its own denominator: hours of exact addition."""
    n = 40
    P = [[str(Fraction(1, 3**2000 + 2 * (i * n + j))) for j in range(n)] for i in range(n)]
    region = {"low": ["-1"] * n, "high": ["1"] * n, "P": P, "rho": "1000"}
    claim = {"property": "forward_invariant", "region": region}
    parts = {"policy": constant_policy(observations=n), "plant": resting_plant(n, 2), "evidence": {"state": ["1/2"] * n}}
    start = time.process_time()
    verdict = check(parse_certificate(*certificate_bytes(kind="counterexample", claim=claim, **parts)))
    assert "multiplied out exactly" in verdict.reason and time.process_time() - start < 5
