"""Values and slopes of single operations over boxes: they hold the exact ranges, and are as tight as their formulas."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from loops import Sketch

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.enclosure import Enclosed, EnclosureAlgebra, Remembered, seeds, value_at_point
from lipctrl.certificates.checker.graph import Graph, evaluate
from lipctrl.certificates.checker.intervals import Interval

INFINITE = (-math.inf, math.inf)


def box(*ends: tuple[float, float]) -> tuple[EnclosureAlgebra, list[Enclosed]]:
    """One box, and each of its coordinates as a vector of length 1."""
    low, high = np.array([[a for a, _ in ends]], float), np.array([[b for _, b in ends]], float)
    centre, radius = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    total, values = len(ends), Interval(low, high)
    parts = [seeds(iv.point(centre[:, [i]]), values.take([i]), i, total) for i in range(total)]
    return EnclosureAlgebra(radius.T[:, :, None]), parts


def assert_ends(found: Interval, expected: Any, accuracy: float = 1e-13) -> None:
    """Every entry contains the expected interval and is hardly wider."""
    for low, high, (a, b) in zip(found.low.ravel(), found.high.ravel(), expected, strict=True):
        assert low <= a + 1e-15 * abs(a) and high >= b - 1e-15 * abs(b), (low, high, a, b)
        assert low >= a - accuracy and high <= b + accuracy, (low, high, a, b)


def normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


th, sg = math.tanh, sigmoid
CASES = {  # operation, box, range of values, range of slopes
    "neg": ((1, 2), (-2, -1), (-1, -1)),
    "sin": ((0.25, 0.5), (math.sin(0.25), math.sin(0.5)), (math.cos(0.5), math.cos(0.25))),
    "cos": ((0.25, 0.5), (math.cos(0.5), math.cos(0.25)), (-math.sin(0.5), -math.sin(0.25))),
    "exp": ((0, 1), (1, math.e), (1, math.e)),
    "log": ((1, 2), (0, math.log(2)), (0.5, 1)),
    "sqrt": ((1, 4), (1, 2), (0.25, 0.5)),
    "erf": ((0.5, 1), (math.erf(0.5), math.erf(1)), (2 / math.sqrt(math.pi) * math.exp(-1), 2 / math.sqrt(math.pi) * math.exp(-0.25))),
    "tanh": ((0.5, 1), (th(0.5), th(1)), ((1 - th(1)) * (1 + th(0.5)), (1 - th(0.5)) * (1 + th(1)))),
    "sigmoid": ((1, 2), (sg(1), sg(2)), (sg(1) * (1 - sg(2)), sg(2) * (1 - sg(1)))),
    "softplus": ((1, 2), (math.log1p(math.e), math.log1p(math.e**2)), (sg(1), sg(2))),
    "silu": ((1, 2), (sg(1), 2 * sg(2)), (sg(1) * (1 + 1 - sg(2)), sg(2) * (1 + 2 * (1 - sg(1))))),
    "gelu": ((1, 2), (normal(1), 2 * normal(2)), (normal(1) + density(2), normal(2) + 2 * density(1))),
    "relu": ((1, 2), (1, 2), (1, 1)),
    "abs": ((-2, -1), (1, 2), (-1, -1)),
}


@pytest.mark.parametrize("name", CASES)
def test_smooth_operations(name: str) -> None:
    ends, values, slopes = CASES[name]
    algebra, (x,) = box(ends)
    result = getattr(algebra, name)(x)
    middle, half = 0.5 * ends[0] + 0.5 * ends[1], 0.5 * ends[1] - 0.5 * ends[0]
    at_middle = getattr(algebra, name)(seeds(iv.point(np.full((1, 1), middle)), iv.point(np.full((1, 1), middle)), 0, 1)).value
    assert_ends(result.centre, [(at_middle.low[0, 0], at_middle.high[0, 0])])
    reach = max(map(abs, slopes)) * half
    low, high = max(values[0], at_middle.low[0, 0] - reach), min(values[1], at_middle.high[0, 0] + reach)
    assert_ends(result.slope, [slopes])
    assert_ends(result.value, [(low, high)])


def test_slopes_of_bounded_functions_stay_between_their_extremes() -> None:
    algebra, (x,) = box((-80, 80))
    assert_ends(algebra.tanh(x).slope, [(0, 1)])
    assert_ends(algebra.sigmoid(x).slope, [(0, 0.25)])
    assert algebra.tanh(x).slope.high[0, 0, 0] <= np.nextafter(1, 2) and algebra.sigmoid(x).slope.high[0, 0, 0] <= np.nextafter(0.25, 1)
    assert algebra.tanh(x).slope.low[0, 0, 0] >= -1e-300 and algebra.sigmoid(x).slope.low[0, 0, 0] >= -1e-300


@pytest.mark.parametrize(
    ("ends", "relu", "absolute", "leaky", "clipped"),
    [
        ((-1, 3), (0, 1), (-1, 1), (0.25, 1), (0, 1)),
        ((0, 3), (1, 1), (1, 1), (1, 1), (0, 1)),
        ((-1, 0), (0, 0), (-1, -1), (0.25, 0.25), (0, 1)),
        ((-0.5, 1), (0, 1), (-1, 1), (0.25, 1), (1, 1)),
        ((-0.25, 2), (0, 1), (-1, 1), (0.25, 1), (0, 1)),
        ((1, 3), (1, 1), (1, 1), (1, 1), (0, 0)),
        ((-2, -0.5), (0, 0), (-1, -1), (0.25, 0.25), (0, 0)),
    ],
)
def test_kinks(ends: Any, relu: Any, absolute: Any, leaky: Any, clipped: Any) -> None:
    """The kinks of the last operation are at -1/2 and 1."""
    algebra, (x,) = box(ends)
    a, b = ends
    assert_ends(algebra.relu(x).slope, [relu])
    assert_ends(algebra.abs(x).slope, [absolute])
    assert_ends(algebra.leaky_relu(x, Fraction(1, 4)).slope, [leaky])
    assert_ends(algebra.clip(x, (Fraction(-1, 2),), (Fraction(1),)).slope, [clipped])
    assert_ends(algebra.relu(x).value, [(max(a, 0), max(b, 0))])
    assert_ends(algebra.abs(x).value, [(max(a, -b, 0), max(-a, b))])
    assert_ends(algebra.leaky_relu(x, Fraction(1, 4)).value, [(max(a, 0) + min(a, 0) / 4, max(b, 0) + min(b, 0) / 4)])
    assert_ends(algebra.clip(x, (Fraction(-1, 2),), (Fraction(1),)).value, [(min(max(a, -0.5), 1), min(max(b, -0.5), 1))])


def test_slopes_of_steep_and_falling_leaks() -> None:
    algebra, (x,) = box((-1, 1))
    assert_ends(algebra.leaky_relu(x, Fraction(3)).slope, [(1, 3)])
    assert_ends(algebra.leaky_relu(x, Fraction(-1, 2)).slope, [(-0.5, 1)])
    third = algebra.leaky_relu(box((-2, -1))[1][0], Fraction(1, 3)).slope
    assert Fraction(third.low[0, 0, 0]) < Fraction(1, 3) < Fraction(third.high[0, 0, 0])


def test_kinks_at_numbers_between_two_floats() -> None:
    """1/3 lies between two floats: a box that ends at either of them is taken to reach across the kink, or not to reach it."""
    third = iv.from_fractions((Fraction(1, 3),))
    below, above = float(third.low[0]), float(third.high[0])
    for ends, low, high, slopes in (
        ((0, below), -1, Fraction(1, 3), (1, 1)),
        ((0, above), -1, Fraction(1, 3), (0, 1)),
        ((below, 1), -1, Fraction(1, 3), (0, 1)),
        ((above, 1), -1, Fraction(1, 3), (0, 0)),
        ((above, 1), Fraction(1, 3), 2, (1, 1)),
        ((below, 1), Fraction(1, 3), 2, (0, 1)),
        ((0, below), Fraction(1, 3), 2, (0, 0)),
        ((0, above), Fraction(1, 3), 2, (0, 1)),
    ):
        algebra, (x,) = box(ends)
        assert_ends(algebra.clip(x, (Fraction(low),), (Fraction(high),)).slope, [slopes])
    edges = (Fraction(1, 3),), (Fraction(2, 3),)
    for low, high, ends in ((-9.0, 9.0, edges[0] + edges[1]), (-9.0, -5.0, edges[0] * 2), (5.0, 9.0, edges[1] * 2)):
        value = Interval(np.full((1, 1), low), np.full((1, 1), high))
        clipped = algebra.clip(Enclosed(value, value, None), *edges).value
        assert clipped.low[0, 0] == iv.from_fractions(ends[:1]).low[0] and clipped.high[0, 0] == iv.from_fractions(ends[1:]).high[0]


def test_operations_on_two_operands() -> None:
    algebra, (x, y) = box((1, 3), (2, 4))
    total, difference = algebra.add(x, y), algebra.sub(x, y)
    assert_ends(total.value, [(3, 7)]), assert_ends(total.slope, [(1, 1), (1, 1)]), assert_ends(total.centre, [(5, 5)])
    assert_ends(difference.value, [(-3, 1)]), assert_ends(difference.slope, [(1, 1), (-1, -1)])
    product = algebra.mul(x, y)  # xy - cd = x (y - d) + d (x - c), with d = 3
    assert_ends(product.slope, [(3, 3), (1, 3)]), assert_ends(product.centre, [(6, 6)])
    assert_ends(product.value, [(2, 12)])  # 6 +- (3 + 3) cut off at 2
    quotient = algebra.div(x, y)  # (x - c) / y - c/d (y - d) / y, with c/d = 2/3
    assert_ends(quotient.slope, [(1 / 4, 1 / 2), (-1 / 3, -1 / 6)]), assert_ends(quotient.centre, [(2 / 3, 2 / 3)])
    assert_ends(quotient.value, [(1 / 4, 3 / 2)])  # 2/3 +- 5/6 cut off at 1/4
    tangent = algebra.tan(box((0.25, 0.5))[1][0])
    assert tangent.slope.low[0, 0, 0] <= 1 / math.cos(0.25) ** 2 and 1 / math.cos(0.5) ** 2 <= tangent.slope.high[0, 0, 0]
    constant = algebra.constant((Fraction(5),))
    for result, slopes in (
        (algebra.mul(x, constant), (5, 0)), (algebra.mul(constant, x), (5, 0)), (algebra.add(constant, x), (1, 0)),
        (algebra.sub(constant, x), (-1, 0)), (algebra.div(x, constant), (0.2, 0)),
    ):  # fmt: skip
        assert_ends(result.slope, [(s, s) for s in slopes])
    assert algebra.mul(constant, constant).slope is None and algebra.neg(constant).slope is None
    assert_ends(algebra.neg(constant).value, [(-5, -5)]), assert_ends(algebra.neg(constant).centre, [(-5, -5)])


def test_powers() -> None:
    algebra, (x,) = box((-1, 3))
    for exponent, value, slope in ((0, (1, 1), (0, 0)), (1, (-1, 3), (1, 1)), (2, (0, 9), (-2, 6)), (3, (-9, 27), (0, 27))):
        result = algebra.power(x, exponent)
        assert_ends(result.slope, [slope])
        assert_ends(result.value, [value])
    assert algebra.power(algebra.constant((Fraction(2),)), 3).slope is None


def test_the_greater_and_the_smaller() -> None:
    for a, b, larger, smaller in (
        ((0, 1), (2, 3), (0, 1), (1, 0)),
        ((2, 3), (0, 1), (1, 0), (0, 1)),
        ((0, 2), (1, 3), None, None),
        ((1, 3), (0, 2), None, None),
        ((1, 2), (0, 1), (1, 0), (0, 1)),
        ((0, 1), (1, 2), (0, 1), (1, 0)),
    ):
        algebra, (x, y) = box(a, b)
        for result, slopes, pick in ((algebra.max(x, y), larger, max), (algebra.min(x, y), smaller, min)):
            assert_ends(result.slope, [(0, 1), (0, 1)] if slopes is None else [(s, s) for s in slopes])
            assert_ends(result.value, [(pick(a[0], b[0]), pick(a[1], b[1]))])
            assert_ends(result.centre, [(pick(sum(a) / 2, sum(b) / 2),) * 2])
    algebra, (x,) = box((0, 4))
    for constant, slope in ((-1, (1, 1)), (1, (0, 1)), (5, (0, 0)), (0, (1, 1)), (4, (0, 0))):
        for operands in ((x, algebra.constant((Fraction(constant),))), (algebra.constant((Fraction(constant),)), x)):
            assert_ends(algebra.max(*operands).slope, [slope])
    both = algebra.max(algebra.constant((Fraction(1),)), algebra.constant((Fraction(2),)))
    assert both.slope is None and both.value.low.tolist() == [[2]]


def sorted_group(*ends: tuple[float, float], size: int) -> Enclosed:
    algebra, parts = box(*ends)
    return algebra.group_sort(algebra.concatenate(*parts), size)


def test_sorting() -> None:
    """Members that overlap may swap; the others keep their ranks, and their slopes."""
    result = sorted_group((4, 5), (0, 2), (1, 3), (9, 9.5), (7, 8), size=3)
    assert_ends(result.value, [(0, 2), (1, 3), (4, 5), (7, 8), (9, 9.5)])
    assert_ends(result.centre, [(1, 1), (2, 2), (4.5, 4.5), (7.5, 7.5), (9.25, 9.25)])
    expected = np.array([[0, 0, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0]])  # seed, rank
    assert (result.slope.high[:, 0] == expected).all()
    expected[1:3] = 0
    assert (result.slope.low[:, 0] == expected).all()
    touching = sorted_group((1, 2), (0, 1), size=2)
    assert (touching.slope.high == 1).all() and (touching.slope.low == 0).all()
    algebra, _ = box((0, 1))
    constants = algebra.group_sort(algebra.constant((Fraction(3), Fraction(1), Fraction(2))), 2)
    assert constants.slope is None and constants.value.low.tolist() == [[1, 3, 2]]


def test_sorting_what_is_not_a_number_spoils_its_group_only() -> None:
    values = Interval(np.array([[3.0, np.nan, 1.0, 7.0, 6.0]]), np.array([[4.0, 2.0, 2.0, 8.0, 7.0]]))
    for found in (
        EnclosureAlgebra(np.zeros((0, 1, 1))).group_sort(Enclosed(ends, ends, None), 3).value
        for ends in (values, Interval(np.where(np.isnan(values.low), 0, values.low), np.where(np.isnan(values.low), np.nan, values.high)))
    ):
        assert np.isnan(found.low[0]).tolist() == np.isnan(found.high[0]).tolist() == [True, True, True, False, False]
        assert found.low[0, 3:].tolist() == [6, 7] and found.high[0, 3:].tolist() == [7, 8]

    rows = np.arange(9.0).reshape(3, 3)[:, ::-1].copy()
    rows[0, 1] = np.nan
    found = EnclosureAlgebra(np.zeros((0, 3, 1))).group_sort(Enclosed(iv.point(rows), iv.point(rows), None), 3).value
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert found.low[1:].tolist() == found.high[1:].tolist() == [[3, 4, 5], [6, 7, 8]]


def test_slopes_that_are_intervals_are_chosen_whole() -> None:
    """Slopes of [1, 2] and [-3, 5] in one seed: either as it is, or both."""
    algebra = EnclosureAlgebra(np.full((1, 1, 1), 100.0))
    slopes = {"x": (1.0, 2.0), "y": (-3.0, 5.0)}

    def operand(name: str, low: float, high: float) -> Enclosed:
        ends = (np.full((1, 1), v) for v in (low, high))
        slope = Interval(*(np.full((1, 1, 1), v) for v in slopes[name]))
        value = Interval(*ends)
        return Enclosed(value, value, slope)

    for x, y, larger, smaller in (((0, 1), (2, 3), "y", "x"), ((2, 3), (0, 1), "x", "y"), ((0, 2), (1, 3), "", "")):
        a, b = operand("x", *x), operand("y", *y)
        ranks = algebra.group_sort(algebra.concatenate(a, b), 2).slope
        for name, found in (
            (larger, algebra.max(a, b).slope),
            (smaller, algebra.min(a, b).slope),
            (smaller, ranks.take([0])),
            (larger, ranks.take([1])),
        ):
            assert_ends(found, [slopes.get(name, (-3.0, 5.0))])


def test_joining_and_selecting() -> None:
    algebra, (x, y) = box((0, 1), (2, 4))
    joined = algebra.concatenate(algebra.constant((Fraction(7), Fraction(8))), y, x)
    assert_ends(joined.value, [(7, 7), (8, 8), (2, 4), (0, 1)])
    assert_ends(joined.centre, [(7, 7), (8, 8), (3, 3), (0.5, 0.5)])
    assert joined.slope.low[:, 0].tolist() == joined.slope.high[:, 0].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]
    assert algebra.concatenate(algebra.constant((Fraction(7),)), algebra.constant((Fraction(8),))).slope is None
    chosen = algebra.select(joined, (3, 0, 3))
    assert_ends(chosen.value, [(0, 1), (7, 7), (0, 1)])
    assert chosen.slope.low[:, 0].tolist() == [[1, 0, 1], [0, 0, 0]]


def test_parts_of_different_batches_are_joined_to_the_larger() -> None:
    algebra = EnclosureAlgebra(np.ones((1, 3, 1)))
    many = seeds(iv.point(np.zeros((3, 1))), Interval(-np.ones((3, 1)), np.ones((3, 1))), 0, 1)
    for parts in ((algebra.constant((Fraction(2),)), many), (many, algebra.constant((Fraction(2),)))):
        joined = algebra.concatenate(*parts)
        assert joined.value.low.shape == joined.value.high.shape == (3, 2) and joined.slope.low.shape == joined.slope.high.shape == (
            1,
            3,
            2,
        )


def test_affine_maps() -> None:
    algebra, (x, y) = box((0, 2), (-1, 1))
    weight, bias = np.array([[2.0, -3.0], [0.0, 0.5]]), np.array([1.0, -1.0])
    result = algebra.affine(algebra.concatenate(x, y), weight, bias)
    assert_ends(result.value, [(-2, 8), (-1.5, -0.5)])
    assert_ends(result.centre, [(3, 3), (-1, -1)])
    assert_ends(result.slope, [(2, 2), (0, 0), (-3, -3), (0.5, 0.5)])
    assert algebra.affine(algebra.constant((Fraction(1), Fraction(2))), weight, bias).slope is None


def test_recentring_subtracts_the_exact_value_at_the_point() -> None:
    """f(z) = z^2 + 1/3, recentred at 2: the stored offset plays no part in the real reading."""
    s = Sketch()
    inner = Graph(s.graph(o=s("add", s("power", s.input("z", 1), exponent=2), s.constant("1/3"))).nodes, {"o": 3}, {}, 1)
    algebra, (x,) = box((1, 3))
    result = algebra.recentre(x, inner, (Fraction(2),), np.array([99.0]))
    assert_ends(result.value, [(-3, 5)]), assert_ends(result.slope, [(2, 6)]), assert_ends(result.centre, [(0, 0)])
    at = value_at_point(inner, (Fraction(1, 3),))
    assert Fraction(at.low[0]) <= Fraction(4, 9) <= Fraction(at.high[0]) and at.high[0] - at.low[0] < 1e-15


def test_values_are_cut_with_what_the_slopes_give() -> None:
    """x - x is 0 though the natural range is [-1, 1]; two seeds of radii 1/2 and 2 move x + 3 y by 13/2 together."""
    algebra, (x, y) = box((0, 1), (-2, 2))
    assert_ends(algebra.sub(x, x).value, [(0, 0)], accuracy=1e-12)
    wide = Interval(np.array([[-100.0]]), np.array([[100.0]]))
    total = algebra.add(Enclosed(wide, x.centre, x.slope), algebra.mul(algebra.constant((Fraction(3),)), y))
    assert_ends(total.value, [(0.5 - 6.5, 0.5 + 6.5)], accuracy=1e-12)
    assert total.value.low[0, 0] < -6 and total.value.high[0, 0] > 7


def test_constants_and_leaks_between_two_floats() -> None:
    """Numbers that are no floats, the nearest one above or below: none may be taken for its neighbour, nor multiplied with it."""
    for number in (Fraction(1, 3), Fraction(1, 10), Fraction(7, 5), Fraction(11, 10)):
        value = EnclosureAlgebra(np.zeros((0, 1, 1))).constant((number,)).value
        assert Fraction(value.low[0, 0]) < number < Fraction(value.high[0, 0])
        for low, high in ((-2.0, -1.0), (-2.0, 1.0)):
            algebra, (x,) = box((low, high))
            for factor in range(1, 100):
                slope = algebra.leaky_relu(Enclosed(x.value, x.centre, iv.point(np.full((1, 1, 1), float(factor)))), number).slope
                assert Fraction(slope.low[0, 0, 0]) <= factor * number <= Fraction(slope.high[0, 0, 0])


def test_what_slopes_give_is_rounded_outwards() -> None:
    """Centre +- 16 times 1, and 4 (16 + 4) roundings; at slope 0 one step outwards."""
    ones, wide = np.ones((16, 1, 1)), Interval(np.full((1, 1), -99.0), np.full((1, 1), 99.0))
    centre = Interval(np.zeros((1, 1)), np.ones((1, 1)))
    value = EnclosureAlgebra(ones)._tightened(wide, centre, Interval(-ones, 0 * ones)).value
    assert 16 * (1 + 80 * iv.UNIT) <= -value.low[0, 0] < 16 * (1 + 85 * iv.UNIT)
    assert 17 * (1 + 60 * iv.UNIT) <= value.high[0, 0] < 17 * (1 + 85 * iv.UNIT)
    still = EnclosureAlgebra(ones)._tightened(wide, centre, Interval(0 * ones, 0 * ones)).value
    assert (still.low[0, 0], still.high[0, 0]) == (iv.down(-(2.0**-1000)), iv.up(1.0))


def test_underflow_of_the_radius_is_covered() -> None:
    """Slope and radius of 2^-600: their product is 0 in float64, not over the reals."""
    tiny, wide = np.full((1, 1, 1), 2.0**-600), Interval(-np.ones((1, 1)), np.ones((1, 1)))
    value = EnclosureAlgebra(tiny)._tightened(wide, iv.point(np.zeros((1, 1))), iv.point(tiny)).value
    assert 2.0**-1001 < value.high[0, 0] < 2.0**-999 and -(2.0**-999) < value.low[0, 0] < -(2.0**-1001)


def test_results_are_remembered_by_identity_and_their_constants_kept() -> None:
    calls: list[object] = []

    def seen(*values: object) -> int:
        calls.append(values)
        return len(calls)

    remembered, first, second = Remembered(), (1, 2), (3, 4)
    assert [remembered(seen, first), remembered(seen, first), remembered(seen, second), remembered(seen, first, second)] == [1, 1, 2, 3]
    assert all(constants in ((first,), (second,), (first, second)) for constants, _ in remembered._results.values())
    shared = Remembered()
    assert EnclosureAlgebra(np.zeros((0, 1, 1)), shared)._remembered is shared
    s = Sketch()
    graph = s.graph(y=s("mul", s.input("x", 1), s.constant("1/3")))
    algebra, (x,) = box((0, 3))
    assert_ends(evaluate(graph, {"x": x}, algebra)["y"].value, [(0, 1)])
