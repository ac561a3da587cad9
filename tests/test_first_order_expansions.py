"""Expansions: their numbers by hand and in exact arithmetic, against pairs of points, and attacks."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Sketch
from test_first_order_slopes import Maker, balls, cells, pairs, smooth_network

from lipctrl.certificates.checker import expansion
from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker import work as counting
from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.bundle import graph_cost
from lipctrl.certificates.checker.curved import Curved, CurvedAlgebra, all_entries
from lipctrl.certificates.checker.expansion import (
    Errors,
    Recorder,
    Source,
    Step,
    _errors,
    _part,
    _weighted,
    expanded_gain,
    record,
    remainder,
    row_remainders,
)
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.jacobian import Family
from lipctrl.certificates.checker.local_slopes import Cells, LocalSlopes
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import local_lipschitz as verifier
from lipctrl.certificates.checker.verifiers.local_lipschitz import EXPANSION, Problem, prove_local, read_problem

F = Fraction


pytestmark = pytest.mark.usefixtures("quiet")


def spread_of(*radii: float) -> Any:
    """Of the box |d_k| <= radii_k."""
    return lambda size: np.tensordot(np.array(radii), size, 1) * (1 + 1e-14)


def ones(count: int) -> Interval:
    return iv.point(np.ones(count))


def alone(errors: Errors) -> Step:
    """One multiplication of something that is known."""
    return Step(1, [Source(0, 1.0, 1.0, errors)])


def errors_of(steps: list[Step] | None) -> list[Errors]:
    """Of all multiplications, in their order."""
    assert steps is not None
    return [source.errors for step in steps for source in step.sources if source.errors is not None]


# --- the numbers of an expansion, exactly -------------------------------------------------------------------------------------------


def single(random: Any) -> Errors:
    """One multiplication of one signal of one input; some of its numbers are 0."""
    number = [float(random.uniform(0.5, 2) * random.choice([-1, 1]) * (random.random() < 0.8)) for _ in range(8)]
    after, before, bend = (iv.point(np.full(shape, x)) for shape, x in zip(((1, 1), (1, 1), (1, 1, 1)), number[:3], strict=True))
    swing, play = np.abs(number[3:5])[:, None, None]
    return Errors(after, before, bend, swing, play, np.abs(np.array(number[5:])[:, None]))


@pytest.mark.parametrize("seed", range(80))
def test_remainders_of_one_multiplication_in_exact_numbers(seed: int) -> None:
    random = np.random.default_rng(seed)
    errors, radius, scale = single(random), float(random.uniform(0.5, 2)), random.uniform(0.5, 2, 2)
    arrays = errors.after.low, errors.before.low, errors.bend.low, errors.swing, errors.play, *errors.left_out
    n, p, b, w, z, *e = (abs(F(float(np.ravel(x)[0]))) for x in arrays)
    made, more = (n * F(float(scale[1])) * x / F(float(scale[0])) for x in (e[0] * p + e[1] * b * F(radius) + e[2] * w, e[2] * z))
    scales, steps = (iv.point(scale[:1]), iv.point(scale[1:])), [alone(errors)]
    found, rows = remainder(steps, *scales, spread_of(radius)), row_remainders(steps, *scales, spread_of(radius))[0]
    for bound, exact in ((found, made), (rows, made + more)):
        assert exact <= F(float(bound)) <= exact * (1 + F(1, 10**10)) + F(2) ** -240


def numbers(*values: float) -> Errors:
    """One multiplication of one signal of one input: N, P'_1, P'_2, P'_3, Z, e_1, e_2 and e_3."""
    after, before, bend, swing, play = (np.full((1, 1), value) for value in values[:5])
    return Errors(iv.point(after), iv.point(before), iv.point(bend[None]), swing, play, np.array(values[5:])[:, None])


def test_scales_that_are_not_known_exactly_count_at_their_worst() -> None:
    errors = numbers(3, 3, 5, 7, 11, 0.5, 0.25, 0.125)
    wide = Interval(np.full(1, 1.0), np.full(1, 2.0))
    made, more = 0.5 * 3 + 0.25 * 5 * 2 + 0.125 * 7, 0.125 * 11
    assert np.isclose(remainder([alone(errors)], wide, wide, spread_of(2.0)), 2 * 3 * made)
    assert np.isclose(row_remainders([alone(errors)], wide, wide, spread_of(2.0)), 2 * 3 * (made + more))
    for low, high in ((-5.0, 1.0), (-1.0, 5.0)):
        errors = dataclasses.replace(errors, bend=Interval(np.full((1, 1, 1), low), np.full((1, 1, 1), high)))
        assert np.isclose(remainder([alone(errors)], ones(1), ones(1), spread_of(2.0)), 3 * made)
        assert np.isclose(row_remainders([alone(errors)], ones(1), ones(1), spread_of(2.0)), 3 * (made + more))


def test_errors_of_operands_are_multiplied_on_their_way() -> None:
    """By hand: A is made from what is known, B from A by a gain of 3, C from A and B, and the output is a product with C, repeated."""
    first, last = numbers(7, 1, 0, 0, 0, 0.5, 0, 0.25), numbers(2, 1, 0, 0, 0, 0.125, 0, 0.0625)
    links = [[Source(0, 8.0, 9.0, first)], [Source(1, 1.0, 3.0)], [Source(1, 1.0, 5.0), Source(2, 1.0, 11.0)], [Source(3, 2.0, 13.0, last)]]
    steps, before = [Step(result, sources) for result, sources in enumerate(links, 1)], 2 * 0.5 * (5 + 3 * 11)
    known = remainder(steps, ones(1), ones(1), spread_of(1.0))
    assert np.isclose(known, 7 * 0.5 + 2 * (0.125 + 0.0625 * before))
    after = 0.125 + 13 * before
    further = [*steps, Step(5, [Source(4, 3.0, 1.0, last)])]
    assert np.isclose(remainder(further, ones(1), ones(1), spread_of(1.0)), known + 2 * (0.125 + 0.0625 * 3 * after))


def test_errors_that_are_no_numbers_are_not_forgotten() -> None:
    """Also where they come from an operand."""
    good, bad = numbers(1, 1, 1, 1, 1, 1, 1, 1), numbers(0, 1, 0, 0, 0, np.nan, 0, 0)
    for steps in ([alone(bad)], [alone(good), Step(2, [Source(1, 1.0, 1.0, bad)])], [alone(bad), Step(2, [Source(1, 1.0, 1.0, good)])]):
        assert np.isnan(remainder(steps, ones(1), ones(1), spread_of(1.0)))


def test_what_multiplies_errors_has_the_norm_of_all_rows_together() -> None:
    """Of two units with E = (1, 1), N = (1, 4) and D = (1, 1/2): |Z| <= max(D) |D^-1 E|, and a later N w = (3, 4) has the norm 5."""
    rows = iv.point(np.array([[1.0], [1.0]]))
    zero = np.zeros((2, 1))
    first = Errors(iv.point(np.array([[1.0, 4.0]])), rows, iv.point(zero[:, :, None]), zero, zero, np.array([[1.0, 1], [0, 0], [0, 0]]))
    last = Errors(iv.point(np.ones((1, 2))), iv.point(zero), iv.point(zero[:, :, None]), zero, zero, np.array([[0.0, 0], [0, 0], [3, 4]]))
    assert np.isclose(remainder([alone(first), Step(2, [Source(1, 1.0, 1.0, last)])], ones(1), ones(1), spread_of(1.0)), 5 + 5 * 5**0.5)


def test_sums_leave_room_for_their_roundings() -> None:
    """Each sum is of 1 and numbers below half of the distance to the next float, which all get lost in it."""
    k, little = 128, 0.99 * iv.UNIT
    long = np.full(k, little)
    long[0] = 1.0
    exact = sum(map(F, long.tolist()))
    rows = np.zeros((2, k, k))
    rows[0, 0] = long
    after, flat = iv.point(np.array([[1.0, 0.0]])), iv.point(np.asfortranarray(rows[:, 0]))
    bend, nothing = iv.point(rows.transpose(1, 2, 0).copy().transpose(2, 0, 1)), iv.point(np.zeros((2, k, k)))
    many = np.full(4096, little)
    many[0] = 1.0
    lone = iv.point(np.ones((4096, 1)))
    none, units = np.zeros((2, k)), np.eye(3)[:, :, None] * np.ones(2)
    empty, first, row = np.zeros((4096, 1)), units[0, :, :1] * np.ones(4096), np.asfortranarray(rows[:, 0])
    for errors, inputs, most in (
        (Errors(after, flat, nothing, none, none, units[0]), k, exact),
        (Errors(after, iv.point(none), bend, none, none, units[1]), k, exact),
        (Errors(after, iv.point(none), nothing, row, none, units[2]), k, exact),
        (Errors(after, iv.point(none), nothing, none, row, units[2]), k, exact),
        (Errors(iv.point(many[None]), lone, iv.point(empty[:, :, None]), empty, empty, first), 1, sum(map(F, many.tolist()))),
    ):
        found = row_remainders([alone(errors)], ones(inputs), ones(1), lambda size: size[0])[0]
        assert most <= F(float(found)) <= most + F(1, 10**10)


def test_nothing_is_taken_from_a_remainder() -> None:
    errors = numbers(1, 0, 0, 0, 0, 0, 2.0**1010, 0)
    assert row_remainders([alone(errors), alone(errors)], ones(1), ones(1), spread_of(1.0))[0] >= 0
    nothing = alone(numbers(1, 0, 0, 0, 0, 0, 0, 0))
    assert row_remainders([nothing, nothing], ones(1), ones(1), spread_of(1.0))[0] >= 2.0**-500


def test_weights_are_all_that_they_may_be() -> None:
    found = _weighted(Interval(np.array([1.0]), np.array([2.0])), iv.point(np.array([[3.0, -5.0]])))
    assert np.allclose(found.low, [[3, -10]]) and np.allclose(found.high, [[6, -5]])


def test_both_ends_of_what_is_multiplied_are_kept() -> None:
    linear = Interval(np.full((1, 1, 1), -1.0), np.full((1, 1, 1), 2.0))
    bend = Interval(np.full((1, 1, 1, 1), -3.0), np.full((1, 1, 1, 1), 5.0))
    model = CurvedAlgebra(cells([-1], [1]))._model(iv.point(np.zeros((1, 1))), linear, bend, np.zeros((1, 1)), np.zeros((1, 1, 1)))
    after = Interval(np.array([[7.0, 1]]), np.array([[8.0, 2]]))
    made = _errors(after, model, (np.full((1, 1), 0.5), np.full((1, 1), 0.25)))
    assert made.left_out.tolist() == [[0.5, 0.5], [0.25, 0.25], [0.25, 0.25]] and made.swing.tolist() == [[0], [0]]  # of order 2
    made = _errors(after, dataclasses.replace(model, swings=(*model.swings, np.full((1, 1, 1), 9.0))), (np.ones((1, 1)),) * 3)
    assert made.swing.tolist() == [[9], [9]]
    made = _errors(after, dataclasses.replace(model, play=np.full((1, 1, 1), 5.0)), tuple(np.full((1, 1), x) for x in (1.0, 2.0, 3.0)))
    assert made.play.tolist() == [[5], [5]] and made.left_out.tolist() == [[1, 1], [2, 2], [3, 3]]
    assert made.before.low.tolist() == [[-1], [-1]] and made.before.high.tolist() == [[2], [2]]  # repeated
    assert made.bend.low.tolist() == [[[-3]], [[-3]]] and made.bend.high.tolist() == [[[5]], [[5]]]
    part = _part(slice(1, 2))(after)
    assert part.low.tolist() == [[1]] and part.high.tolist() == [[2]]


def test_gains_of_expansions_by_hand() -> None:
    """The polynomial's gain and what the errors add, 3 (0.5 * 3 + 0.25 * 5 * 2 + 0.125 * 8) = 15; errors of the family are among those."""
    rest = alone(numbers(3, 3, 5, 8, 0, 0.5, 0.25, 0.125))
    one = iv.point(np.ones((1, 1, 1, 1)))
    curve = iv.point(np.ones((1, 1, 1, 1, 1)))
    for parts, curves, exact in ((None, None, 2), (one, None, 4), (None, curve, 4), (one, curve, 6)):
        family = Family(iv.point(np.full((1, 1, 1), 2.0)), parts, np.full((1, 1, 1), 7.0), spread_of(2.0), curves)
        for euclidean in (True, False):
            assert np.isclose(expanded_gain(family, [rest], ones(1), ones(1), euclidean), exact + 15)


@pytest.mark.parametrize(
    ("low", "high", "part", "expected"),
    [
        ([3, 4], [3, 4], None, 7),
        ([-4, 10], [3, 10], None, 14),
        ([-10, -3], [-10, 4], None, 14),
        ([0.1, 1], [0.1, 1], [0.5, -0.5], 2.1),  # 0.6 and 1.5
        ([0.1, 1], [0.1, 1], [0.5, 0.5], 2.1),
        ([-0.1, 1], [-0.1, 1], [0.5, 0.5], 2.1),
        ([2, 1], [2, 1], [0.5, -0.5], 3),  # both signs are known
        ([-2, 1], [-2, 1], [0.5, 0.5], 3),
    ],
)
def test_rows_of_expansions_by_hand(low: list[float], high: list[float], part: list[float] | None, expected: float) -> None:
    parts = None if part is None else iv.point(np.array([[[part], [[0, 0]]]], float).reshape(2, 1, 1, 2))
    family = Family(Interval(np.array([[low]], float), np.array([[high]], float)), parts, np.zeros((1, 1, 2)), spread_of(1.0, 1.0))
    assert np.isclose(expanded_gain(family, [], ones(2), ones(1), False), expected)


def test_no_multiplications_leave_nothing() -> None:
    nothing = record(Graph((Node("input", (), {"name": "x", "size": 2}),), {"u": 0}), cells([0, 0], [1, 1]))[1]
    assert nothing == []
    assert remainder(nothing, ones(2), ones(2), spread_of(1.0, 1.0)) == 0
    assert (row_remainders(nothing, ones(2), ones(2), spread_of(1.0, 1.0)) < 1e-100).all()


def test_the_errors_of_a_chain_by_hand() -> None:
    s = Sketch()
    x = s.input("x", 1)
    inner = s("tanh", s.affine(x, [[3]]))
    graph = s.graph(u=s.affine(s("neg", s("tanh", s.affine(inner, [[2]]))), [[5], [7]]))
    inside, outside = errors_of(record(graph, cells([0.29], [0.31]))[1])
    first, second = np.tanh(0.9), np.tanh(2 * np.tanh(0.9))
    slope, exact = 1 - first**2, np.array([-10, -14]) * (1 - second**2)
    assert np.allclose(outside.after.low[:, 0], [-5, -7]) and np.allclose(inside.after.low[:, 0], exact)
    assert np.isclose(outside.before.low, 6 * slope, rtol=5e-2).all() and np.isclose(inside.before.low, 3).all()
    curve, third, fourth = -2 * first * slope, slope * (6 * first**2 - 2), slope * first * (16 - 24 * first**2)
    assert np.isclose(outside.bend.low, 2 * 9 * curve, rtol=5e-2).all() and np.isclose(inside.bend.low, 0).all()
    assert np.isclose(outside.swing, abs(2 * 27 * third) * 0.01**2 / 2, rtol=5e-2).all() and np.isclose(inside.swing, 0).all()
    left = inside.left_out[:, 0]
    assert 0.5 < left[0] / (abs(fourth) * 0.03**3 / 6) < 2
    assert np.isclose(left[1] - left[0], abs(third) * 0.03**2 / 2, rtol=5e-2) and np.isclose(
        left[2] - left[1], abs(curve) * 0.03, rtol=5e-2
    )
    assert np.isclose(outside.play, 2 * left[0] * 3, rtol=5e-2).all() and (inside.play < 1e-100).all()


def test_parts_that_are_taken_pass_their_derivatives_on() -> None:
    s = Sketch()
    y = s("tanh", s.input("x", 2))
    graph = s.graph(u=s.affine(s("select", s("concatenate", s.constant(1), y), indices=(2, 0, 1, 2)), [[1, 10, 100, 1000]]))
    (errors,) = errors_of(record(graph, cells([0.1, 0.2], [0.2, 0.3]))[1])
    assert np.allclose(errors.after.low, [[100, 1001]]) and np.allclose(errors.after.high, [[100, 1001]])


@pytest.mark.parametrize("order", [2, 3])
def test_multipliers_are_all_that_they_may_be(order: int) -> None:
    tiny = 2.0**-60
    for low, high, first, second, doubt in (
        (1.0, 2.0, 0.25, 0.5, 0.125),
        (-3.0, 2.0, 0.0, 0.0, 0.5),
        (1.0, 1.0, tiny, 0.0, 1.0),
        (1.0, 1.0, 0.0, 0.0, tiny),
        (-1.0, -1.0, tiny, 0.0, 0.0),
        (-1.0, -1.0, 0.0, tiny, 0.0),
    ):
        recorder = Recorder(cells([-1], [1]))
        recorder.order = order
        x = recorder.entering()
        assert isinstance(x, Curved) and x.model is not None
        ends = (np.full((1, 1), end) for end in (low, high))
        recorder._gained(x.model, Interval(*ends), (np.full((1, 1), first), np.full((1, 1), second)), np.full((1, 1), doubt))
        (link,) = recorder._gains
        back, most = link.back(iv.point(np.ones((1, 1)))), max(abs(F(low)), abs(F(high))) + F(first) + F(second) + F(doubt)
        assert F(low) - F(1, 10**14) <= F(float(back.low[0, 0])) <= F(low) and F(high) <= F(float(back.high[0, 0]))
        assert most <= F(link.gain) <= most + F(1, 10**14)
    recorder = Recorder(cells([-1, -1], [1, 1]))
    both = recorder.entering()
    assert isinstance(both, Curved) and both.model is not None
    recorder._gained(both.model, iv.point(np.array([[2.0, -3.0]])), (np.zeros((1, 2)),) * 2, np.zeros((1, 2)))
    assert np.isclose(recorder._gains[0].gain, 3)  # the greatest of its units


def test_the_errors_of_products_sums_and_parts_by_hand() -> None:
    s = Sketch()
    x = s.input("x", 3)
    a, b = s("select", x, indices=(2, 0)), s("select", x, indices=(1,))
    product = s("mul", s("mul", a, s.constant(3, 4)), b)  # b is repeated
    joined = s("concatenate", s("sub", s.constant(1), product), a)
    graph = s.graph(u=s.affine(joined, [[1, 10, 100, 1000]]))
    errors = errors_of(record(graph, cells([1, 2, 4], [3, 6, 10]))[1])
    assert len(errors) == 2  # of either factor, both with two coordinates; x1 is repeated
    for made in errors:
        assert np.allclose(made.after.low, [[-1, -10]]) and (made.left_out[:2] < 1e-12).all() and (made.swing < 1e-12).all()
    rows = {tuple(row): whole for made in errors for row, whole in zip(made.before.low.round(9), made.left_out[2], strict=True)}
    assert {row: round(whole, 9) for row, whole in rows.items()} == {(0, 0, 3): 2, (4, 0, 0): 2, (0, 1, 0): rows[0, 1, 0].round(9)}
    assert np.allclose(sorted(errors[0].left_out[2]), [4, 9]) or np.allclose(sorted(errors[1].left_out[2]), [4, 9])
    twice = s.graph(u=s("add", s("mul", b, b), b))
    errors = errors_of(record(twice, cells([1, 2, 4], [3, 6, 10]))[1])
    assert len(errors) == 2
    assert all(np.allclose(made.after.low, 1) and np.allclose(made.before.low, [[0, 1, 0]]) for made in errors)


def test_the_norms_of_all_that_is_done() -> None:
    """Of a signal of length 1 where it is repeated, of weights, factors, parts and sums."""
    s = Sketch()
    y = s("tanh", s.affine(s.input("x", 2), [[3, 4]]))
    z = s("affine", y, weight="weight", bias=None)
    s.tensors["weight"] = np.array([[1.0], [2], [2]], np.float32)
    parts = [s("mul", y, s.constant(2, -5, 3, 4)), s("add", s.constant(*range(9)), y), s("mul", z, y), s("neg", z)]
    parts.append(s("select", z, indices=(1, 2, 2, 1, 1)))
    joined = s("concatenate", *parts)
    s.tensors["sum"] = np.ones((1, sum((4, 9, 3, 3, 5))))
    _, steps = record(s.graph(u=s("affine", joined, weight="sum", bias=None)), cells([0.0, 0.0], [1e-9, 1e-9]))
    assert steps is not None
    norms = [[(source.copies, source.gain) for source in step.sources] for step in steps]
    assert norms[0] == [(1.0, pytest.approx(5))] and norms[-1] == [(1.0, pytest.approx(24**0.5))] and norms[-2] == [(1.0, 1.0)] * 5
    assert np.allclose(norms[1], [(1, 1)], atol=1e-6)  # tanh near 0, of a signal of length 1
    assert sorted(len(norm) for norm in norms[2:-2]) == [1, 1, 1, 1, 1, 2]
    (weight,), (factor,), (total,), product, (negative,), (part,) = norms[2], *norms[3:-2]
    assert np.allclose(weight, (3**0.5, 3)) and np.allclose(factor, (2, 5)) and np.allclose(total, (3, 1))
    assert np.allclose(sorted(product), [(1, 1e-8), (3**0.5, 1e-8)], atol=1e-6)
    assert np.allclose(negative, (1, 1)) and np.allclose(part, (1, 3**0.5))


@pytest.mark.parametrize("op", ["add", "sub", "min", "max"])
def test_derivatives_of_what_is_read_twice_add_up(op: str) -> None:
    s = Sketch()
    y = s("tanh", s.input("x", 1))
    other = s("mul", y, s.constant(3))
    errors = errors_of(record(s.graph(u=s(op, other, y)), cells([0.2], [0.3]))[1])
    expected = {"add": 4, "sub": 2, "min": 1, "max": 3}[op]
    last = errors[0].after.take(-1)
    assert last.low[0] <= expected <= last.high[0] and last.high[0] - last.low[0] < 1e-9


def test_a_graph_with_implicit_layers_is_not_expanded() -> None:
    s = Sketch()
    s.tensors.update(D=np.array([[0.25]]), metric=np.ones(1))
    graph = s.graph(u=s("tanh", s("implicit", s.input("x", 1), weight="D", metric="metric", activation="tanh")))
    assert record(graph, cells([0.1], [0.3]))[1] is None
    assert not problem_of(graph, np.array([0.0]), 1.0)[0].curved


# --- bounds and certificates ---------------------------------------------------------------------------------------------------------


def problem_of(graph: Graph, centre: Any, radius: float, norm: str = "l2", **changes: Any) -> tuple[Problem, dict[str, Any]]:
    domain = {"low": [str(F(float(v))) for v in centre - radius], "high": [str(F(float(v))) for v in centre + radius]}
    claim = {"property": "local_lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "bound": "1", "domain": domain}
    claim.update(changes)
    return read_problem(graph, claim)[0], claim


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_expansions_approach_the_gain_at_a_point_and_are_above_it(norm: str) -> None:
    graph, centre = smooth_network("tanh", (6, 48, 48, 3)), 0.3 * np.arange(6.0) - 1
    order = 2 if norm == "l2" else np.inf
    problem, _ = problem_of(graph, centre, 1e-9, norm)
    found, _ = problem.slopes(*(end[None] for end in problem.domain.box()))
    gain = np.linalg.norm(problem.matrices(found, 1).low[0], order)
    excess = []
    for radius in (1e-3, 1e-2):
        problem, _ = problem_of(graph, centre, radius, norm)
        box = problem.domain.box()
        found, errors = record(problem.graph, cells(*box))
        assert errors is not None and found.spread is not None
        excess.append(remainder(errors, ones(6), ones(3), found.spread))
        slopes, _ = problem.slopes(*(end[None] for end in box))
        assert gain * (1 - 1e-7) <= problem.expanded(*box) < problem.gains(slopes, 1)[0] < 2 * gain
    assert 600 < excess[1] / excess[0] < 1400


def test_a_ball_reaches_less_far_than_its_box() -> None:
    graph, centre = smooth_network("tanh", (6, 32, 2)), 0.3 * np.arange(6.0) - 1
    ball = {"centre": [str(F(float(v))) for v in centre], "radius": "1/100"}
    box = problem_of(graph, centre, 0.01)[0]
    inside = problem_of(graph, centre, 0.01, domain=ball)[0]
    assert inside.expanded(*inside.domain.box()) < box.expanded(*box.domain.box())
    corner = centre + 0.009, centre + 0.01
    assert inside.expanded(*corner) == 0 < box.expanded(*corner)  # no point of the ball is in it


@pytest.mark.parametrize("centre", [-0.3, 0.3])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_expansion_is_of_the_whole_box(norm: str, centre: float) -> None:
    s = Sketch()
    problem = problem_of(s.graph(u=s("tanh", s.input("x", 1))), np.array([centre]), 0.2, norm)[0]
    assert 1 - np.tanh(0.1) ** 2 <= problem.expanded(*problem.domain.box()) < 1.1


def test_scales_are_taken_into_account() -> None:
    graph, centre = smooth_network("tanh", (3, 16, 2)), np.array([0.3, -0.2, 0.1])
    for norm in ("l2", "linf"):
        plain = problem_of(graph, centre, 0.01, norm)[0]
        scaled = problem_of(graph, centre, 0.01, norm, input_scale=["2"] * 3, output_scale=["1/3"] * 2)[0]
        assert scaled.expanded(*scaled.domain.box()) == pytest.approx(plain.expanded(*plain.domain.box()) / 6, rel=1e-9)


# --- certificates -------------------------------------------------------------------------------------------------------------------

TREE = {"method": "cells", "tree": [0], "proofs": [{"method": EXPANSION}]}


def test_an_expansion_proves_its_bound_and_nothing_below() -> None:
    graph, centre = smooth_network("tanh", (4, 24, 24, 2)), np.array([0.3, -0.2, 0.1, 0.0])
    for norm in ("l2", "linf"):
        problem, claim = problem_of(graph, centre, 0.02, norm)
        bound = problem.expanded(*problem.domain.box())
        assert bound < problem.gains(problem.slopes(*(end[None] for end in problem.domain.box()))[0], 1)[0]
        assert prove_local(graph, {**claim, "bound": bound.hex()}, TREE) == bound
        with pytest.raises(Rejected, match="does not prove"):
            prove_local(graph, {**claim, "bound": (bound * (1 - 1e-9)).hex()}, TREE)


def test_what_an_expansion_is_refused_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, centre = smooth_network("tanh", (2, 8, 2)), np.array([0.3, -0.2])
    problem, claim = problem_of(graph, centre, 0.02, bound="1000")
    assert prove_local(graph, claim, TREE) == 1000
    with pytest.raises(Rejected, match="proof"):
        prove_local(graph, claim, {**TREE, "proofs": [{"method": EXPANSION, "bend": []}]})
    cut = {**TREE, "tree": [[2, 0, "0x0.0p+0"], {"ranges": [[]], "proof": 0}, None]}
    with pytest.raises(Rejected, match="whole boxes"):
        prove_local(graph, claim, cut)
    straight = smooth_network("relu", (2, 8, 2))
    with pytest.raises(Rejected, match="smooth networks"):
        prove_local(straight, claim, TREE)
    monkeypatch.setattr(verifier, "MAX_PRODUCTS", problem.expansion_products())
    assert prove_local(graph, claim, TREE) == 1000
    monkeypatch.setattr(verifier, "MAX_PRODUCTS", problem.expansion_products() - 1)
    with pytest.raises(Rejected, match="more work"):
        prove_local(graph, claim, TREE)


def test_an_expansion_without_numbers_proves_nothing() -> None:
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("exp", (0,)), Node("exp", (1,)))
    graph = Graph(nodes, {"u": 2})
    _, claim = problem_of(graph, np.array([0.0]), 10.0, bound=(1e300).hex())
    with pytest.raises(Rejected):
        prove_local(graph, claim, TREE)


def test_an_output_that_does_not_vary_has_no_model() -> None:
    s = Sketch()
    s("tanh", s.input("x", 1))
    problem = problem_of(s.graph(u=s.constant(3)), np.array([0.0]), 1.0)[0]
    slopes, _ = problem.slopes(*(end[None] for end in problem.domain.box()))
    assert problem.curved and problem.family(slopes, 1) is None and problem.gains(slopes, 1)[0] < 1e-100


def test_a_family_has_the_numbers_of_a_model() -> None:
    """Two cells of two inputs: the parts are the rows of ``bend``, with both ends."""
    graph = smooth_network("tanh", (2, 3, 1))
    problem = problem_of(graph, np.zeros(2), 1.0)[0]
    boxes = Cells(np.array([[-1.0, -1], [0, 0]]), np.array([[0.0, 0], [1, 1]]), np.arange(2))
    bend = np.random.default_rng(0).standard_normal((2, 2, 2, 1))
    bend = bend + bend.swapaxes(0, 1)
    algebra = CurvedAlgebra(boxes)
    linear, error = np.arange(4.0).reshape(2, 2, 1), np.zeros((2, 1))
    play = np.arange(4.0).reshape(2, 2, 1) + 0.5
    model = algebra._model(iv.point(error), iv.point(linear), Interval(bend - 0.25, bend + 0.5), error, play)
    value = iv.point(error)
    found = LocalSlopes(Curved(value, value, iv.point(linear), iv.point(linear), error, model), {}, algebra.spread)
    family = problem.family(found, 2)
    assert family is not None and family.parts is not None
    expected = bend.transpose(0, 2, 3, 1)
    assert np.allclose(family.parts.low, expected - 0.25) and np.allclose(family.parts.high, expected + 0.5)
    assert np.allclose(family.centre.low, linear.transpose(1, 2, 0)) and np.allclose(family.error, play.transpose(1, 2, 0))


def test_many_inputs_are_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, centre = smooth_network("tanh", (3, 4, 1)), np.zeros(3)
    assert problem_of(graph, centre, 1.0)[0].curved
    monkeypatch.setattr(verifier, "MAX_CURVED_INPUTS", 2)
    assert not problem_of(graph, centre, 1.0)[0].curved
    monkeypatch.setattr(verifier, "MAX_CURVED_INPUTS", 3)
    work = problem_of(graph, centre, 1.0)[0].work().cell
    for limit, curved in ((work, True), (work - 1, False)):
        monkeypatch.setattr(verifier, "MAX_CURVED_WORK", limit)
        assert problem_of(graph, centre, 1.0)[0].curved is curved
    monkeypatch.setattr(counting, "MAX_FLOATS", problem_of(graph, centre, 1.0)[0].work().floats)
    assert not problem_of(graph, centre, 1.0)[0].curved
    assert not problem_of(smooth_network("relu", (2, 4, 1)), np.zeros(2), 1.0)[0].curved


@pytest.mark.parametrize(("norm", "careful"), [("linf", 0), ("l2", 30_000)])
def test_the_work_on_a_leaf_to_first_order(norm: str, careful: int) -> None:
    """The enclosure three times over in 2 k + 8 and k (k + 2) coordinates, the matrices, their bases and products with those."""
    graph = smooth_network("tanh", (3, 4, 2))
    cell, batch, kept = counting.work_of_graph(graph, 14 + 15)
    work = problem_of(graph, np.zeros(3), 1.0, norm)[0].work()
    assert work == counting.Work(3 * cell + 120 + careful + 2000 + 15 * 2 * 41, 4 * batch, 2 * kept + 27 * 6 + 16)


def test_the_work_on_a_leaf_of_many_outputs() -> None:
    graph = smooth_network("tanh", (3, 4, 20))
    cell, batch, kept = counting.work_of_graph(graph, 14 + 15)
    work = problem_of(graph, np.zeros(3), 1.0, "linf")[0].work()
    assert work == counting.Work(3 * cell + 1200 + 2000 + 15 * 20 * (40 + 5) + 80, 4 * batch, 2 * kept + 27 * 60 + 1600)


def test_the_price_of_an_expansion(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = smooth_network("tanh", (3, 4, 5))
    values, weights = graph_cost(graph)
    square = values * (50_000 + 500 * 9 + 2 * 27 + 2 * 25) + 10 * 9 * weights
    assert problem_of(graph, np.zeros(3), 1.0)[0].expansion_products() == square + 10 * (100 * values + weights)
    monkeypatch.setattr(expansion, "MAX_ENTRIES", 10 * 5 - 1)
    assert problem_of(graph, np.zeros(3), 1.0)[0].expansion_products() == square


def test_interval_slopes_and_first_order_agree_where_both_are_asked() -> None:
    graph, centre = smooth_network("gelu", (3, 12, 12, 2)), np.array([0.3, -0.2, 0.1])
    problem, _ = problem_of(graph, centre, 0.1)
    box = tuple(end[None] for end in problem.domain.box())
    plain = dataclasses.replace(problem, curved=False)
    assert problem.gains(problem.slopes(*box)[0], 1)[0] < 0.8 * plain.gains(plain.slopes(*box)[0], 1)[0]
    assert plain.family(plain.slopes(*box)[0], 1) is None


# --- pairs of points ---------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 7), st.sampled_from([1e-3, 0.03, 0.3, 2.0]))
@settings(max_examples=60)
def test_all_that_the_polynomial_leaves_is_within_the_remainder(seed: int, inputs: int, steps: int, radius: float) -> None:
    maker = Maker(seed)
    graph, random = maker.graph(inputs, steps), np.random.default_rng(seed)
    centre = random.standard_normal(inputs)
    low, high = centre - radius * (0.1 + random.random(inputs)), centre + radius * random.random(inputs)
    found, errors = record(graph, cells(low, high))
    if found.output.slope is None:
        return
    assert isinstance(found.output, Curved) and found.output.model is not None and errors is not None and found.spread is not None
    scale_in, scale_out = random.uniform(0.5, 2, inputs), random.uniform(0.5, 2, 2)
    rest = remainder(errors, iv.point(scale_in), iv.point(scale_out), found.spread)
    rows = row_remainders(errors, iv.point(scale_in), iv.point(scale_out), found.spread)
    model = found.output.model
    bend = np.zeros((inputs, inputs, 2)) if model.bend is None else 0.5 * (model.bend.low + model.bend.high)[:, :, 0]
    twist = np.zeros((inputs,) * 3 + (2,))
    if model.twist is not None:
        whole = all_entries(model.twist, inputs)
        twist = 0.5 * (whole.low + whole.high)[:, :, :, 0]
    linear = 0.5 * (model.linear.low + model.linear.high)[:, 0]
    for x, y in pairs(random, low, high, 12):
        values = [evaluate_balls(graph, {"x": balls(p)}, 200)["u"] for p in (x, y)]
        if not all(v.is_finite() for value in values for v in value):
            continue
        moved = np.array([float(a - b) for a, b in zip(*values, strict=True)])
        d = (x + y) / 2 - (low + high) / 2
        squares = np.outer(d, d) + np.outer(x - y, x - y) / 12  # in the mean over the segment
        slopes = linear + np.einsum("kij,k->ij", bend, d) + 0.5 * np.einsum("klij,kl->ij", twist, squares)
        left = scale_out * (moved - np.einsum("ij,i->j", slopes, x - y))
        noise = 1e-12 * (1 + np.abs(linear).sum() + np.abs(moved).max())
        assert not np.linalg.norm(left) > rest * np.linalg.norm(scale_in * (x - y)) + noise
        assert not (np.abs(left) > rows * np.abs(scale_in * (x - y)).max() + noise).any()
