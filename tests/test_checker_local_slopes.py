"""Affine forms and slopes of single operations on cells against known numbers and exact rationals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb, arb_series
from loops import Sketch
from smooth import SERIES

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker import local_slopes as module
from lipctrl.certificates.checker.graph import Graph, GraphError, Node
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.local_slopes import SMOOTH, Cells, Local, LocalAlgebra, LocalSlopes, entering, local_slopes

F = Fraction
INFINITE = Interval(np.full((1, 1), -np.inf), np.full((1, 1), np.inf))
NEXT = 1 + 2.0**-52  # the float after 1; its square is not a float


pytestmark = pytest.mark.usefixtures("quiet")


def cells(*boxes: Any, free: Any = None, reach: Any = None, scale: Any = None) -> Cells:
    """Each box is a list of pairs (low, high)."""
    low, high = (np.array([[pair[end] for pair in box] for box in boxes], float) for end in (0, 1))
    free = np.arange(low.shape[1]) if free is None else np.array(free, int)
    return Cells(low, high, free, None if reach is None else np.array(reach, float), None if scale is None else np.array(scale, float))


def single(op: str, a: float, b: float, **attributes: Any) -> LocalSlopes:
    """One operation on one interval."""
    s = Sketch()
    return local_slopes(s.graph(u=s(op, s.input("x", 1), **attributes)), cells([(a, b)]))


def holds(found: Interval | None, low: Any, high: Any, accuracy: float = 1e-11) -> None:
    """Contains the expected intervals (of the expected shape) and is hardly wider."""
    assert found is not None
    low, high = np.array(low, float), np.array(high, float)
    assert found.low.shape == low.shape and found.high.shape == high.shape
    assert (found.low <= low + 1e-15 * np.abs(low)).all() and (found.high >= high - 1e-15 * np.abs(high)).all(), (found, low, high)
    assert (found.low >= low - accuracy).all() and (found.high <= high + accuracy).all(), (found, low, high)


def near(found: Interval | None, expected: Any, accuracy: float = 1e-11) -> None:
    """Has the expected shape and numbers, which any float near them may replace."""
    assert found is not None and found.low.shape == np.shape(expected)
    assert np.abs(found.low - expected).max() <= accuracy and np.abs(found.high - expected).max() <= accuracy, (found, expected)


def reaches(error: Array, expected: Any, accuracy: float = 1e-11) -> None:
    """Is not below the expected numbers and hardly above."""
    expected = np.array(expected, float)
    assert error.shape == expected.shape
    assert (error >= expected * (1 - 1e-15)).all() and (error <= expected + accuracy).all(), (error, expected)


def steps(x: float, count: int) -> float:
    """The float so many steps above."""
    for _ in range(count):
        x = math.nextafter(x, math.inf)
    return x


def of(value: Any, centre: Any, error: Any, linear: Any = None) -> Local:
    """A form of one value in one cell of one input; the slope equals ``linear``."""
    values = [iv.point(np.full((1, 1), float(v))) if not isinstance(v, Interval) else v for v in (value, centre)]
    slope = None if linear is None else iv.point(np.full((1, 1, 1), float(linear)))
    return Local(values[0], values[1], slope, slope, np.full((1, 1), float(error)))


# --- the numbers of the table -----------------------------------------------------------------------------------------------


def second_derivative(name: str, x: float) -> arb:
    return 2 * SERIES[name](arb_series([x, 1], prec=4))[2]


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_change_sign_where_the_table_says_and_nowhere_else(name: str) -> None:
    extrema, _ = SMOOTH[name]
    for a, b in extrema:
        if a == b:
            assert a == 0 and second_derivative(name, a).contains(0)  # by symmetry
        else:
            assert a < b < a + 1e-6 and second_derivative(name, a) * second_derivative(name, b) < 0
    signs = [(x, second_derivative(name, x) > 0) for x in (i / 16 + 1 / 64 for i in range(-96, 96))]
    changes = [(p, q) for (p, before), (q, after) in itertools.pairwise(signs) if before != after]
    assert len(changes) == len(extrema)
    assert all(any(p < a <= b < q for p, q in changes) for a, b in extrema)


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives_have_the_bound_of_the_table(name: str) -> None:
    _, bound = SMOOTH[name]
    sampled = [abs(second_derivative(name, i / 256)) for i in range(-512, 513)]
    assert all(value < bound * (1 + 1e-12) for value in sampled)
    assert max(float(value) for value in sampled) > bound - 3e-5


# --- smooth functions ---------------------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


SILU_TOP = 2.3993572805154675  # v tanh(v / 2) = 2
FUNCTIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float], tuple[float, ...]]] = {  # f, f', extrema of f'
    "tanh": (math.tanh, lambda x: 1 - math.tanh(x) ** 2, (0.0,)),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x), (0.0,)),
    "softplus": (lambda x: math.log1p(math.exp(x)), sigmoid, ()),
    "erf": (math.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x), (0.0,)),
    "gelu": (lambda x: x * normal(x), lambda x: normal(x) + x * density(x), (-math.sqrt(2), math.sqrt(2))),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x)), (-SILU_TOP, SILU_TOP)),
    "exp": (math.exp, math.exp, ()),
    "log": (math.log, lambda x: 1 / x, ()),
    "sqrt": (math.sqrt, lambda x: 0.5 / math.sqrt(x), ()),
    "sin": (math.sin, math.cos, (0.0, math.pi)),
    "cos": (math.cos, lambda x: -math.sin(x), (math.pi / 2,)),
    "tan": (math.tan, lambda x: 1 + math.tan(x) ** 2, ()),
}
CURVATURE = {name: bound for name, (_, bound) in SMOOTH.items()}
CASES = [
    *[("tanh", -1, 0.5), ("tanh", 0.625, 0.6875), ("tanh", -3, -2), ("sigmoid", -1, 2), ("sigmoid", 1.25, 1.5), ("softplus", -1, 2)],
    *[("softplus", -0.25, 0.25), ("softplus", 3, 8), ("erf", -0.5, 1), ("erf", 0.625, 0.75), ("gelu", 1, 2), ("gelu", -2, -1)],
    *[("gelu", -0.125, 0.125), ("silu", 2, 3), ("silu", -3, -2), ("silu", -0.125, 0.125), ("exp", 0, 1), ("log", 1, 2)],
    *[("sqrt", 1, 4), ("sin", 0.25, 0.5), ("sin", -0.5, 1), ("cos", 0.25, 0.5), ("cos", 1, 2), ("tan", 0.25, 0.75)],
]


@pytest.mark.parametrize(("name", "a", "b"), CASES)
def test_smooth_functions_have_the_range_of_their_derivative_as_slopes(name: str, a: float, b: float) -> None:
    f, derivative, extrema = FUNCTIONS[name]
    slopes = [derivative(t) for t in (a, b, *(p for p in extrema if a <= p <= b))]
    low, high = min(slopes), max(slopes)
    middle, radius, bent = (a + b) / 2, (b - a) / 2, CURVATURE.get(name, math.inf) * (b - a) / 4
    tangent = bent < (high - low) / 2
    factor = derivative(middle) if tangent else (low + high) / 2
    error = min(bent, (high - low) / 2) * radius
    found = single(name, a, b)
    out, accuracy = found.output, 3e-8 if name in ("gelu", "silu") else 1e-11  # as the extrema of their derivatives are known
    holds(out.slope, [[[low]]], [[[high]]], accuracy)
    assert list(found.nodes) == [1]
    holds(found.nodes[1], [[low]], [[high]], accuracy)
    near(out.linear, [[[factor]]], accuracy)
    near(out.centre, [[f(middle)]], accuracy)
    assert error <= out.error <= error + accuracy and out.error.shape == (1, 1)
    values = [f(a + i / 64 * (b - a)) for i in range(65)]
    assert out.value.low <= min(values) + 1e-15 and out.value.high >= max(values) - 1e-15
    if name not in ("gelu", "silu", "cos"):  # increasing, or the derivative bounds it
        holds(out.value, [[f(a)]], [[f(b)]])


def test_powers() -> None:
    found = single("power", -1, 2, exponent=2)
    holds(found.output.slope, [[[-2]]], [[[4]]])
    near(found.output.linear, [[[1]]])
    near(found.output.centre, [[0.25]])
    reaches(found.output.error, [[4.5]])
    holds(found.output.value, [[0]], [[4]])
    holds(found.nodes[1], [[-2]], [[4]])
    holds(single("power", -1, 2, exponent=3).output.slope, [[[0]]], [[[12]]])


# --- kinks --------------------------------------------------------------------------------------------------------------------

CLIP = {"low": (F(-1, 2),), "high": (F(3, 4),)}
KINKS = [  # operation, attributes, interval, slopes, chord, extremes of f(t) - chord t, range
    ("relu", {}, (0, 2), (1, 1), 1, (0, 0), (0, 2)),
    ("relu", {}, (-2, 0), (0, 0), 0, (0, 0), (0, 0)),
    ("relu", {}, (-1, 3), (0, 1), 0.75, (0, 0.75), (0, 3)),
    ("relu", {}, (-2, 2**-20), (0, 1), 2**-20 / (2 + 2**-20), (0, 2 * 2**-20 / (2 + 2**-20)), (0, 2**-20)),
    ("abs", {}, (0, 2), (1, 1), 1, (0, 0), (0, 2)),
    ("abs", {}, (-2, 0), (-1, -1), -1, (0, 0), (0, 2)),
    ("abs", {}, (-1, 3), (-1, 1), 0.5, (0, 1.5), (0, 3)),
    ("leaky_relu", {"slope": F(1, 8)}, (0, 2), (1, 1), 1, (0, 0), (0, 2)),
    ("leaky_relu", {"slope": F(1, 8)}, (-2, 0), (0.125, 0.125), 0.125, (0, 0), (-0.25, 0)),
    ("leaky_relu", {"slope": F(1, 8)}, (-1, 3), (0.125, 1), 0.78125, (0, 0.65625), (-0.125, 3)),
    ("leaky_relu", {"slope": F(-1, 2)}, (-2, 2), (-0.5, 1), 0.25, (0, 1.5), None),
    ("leaky_relu", {"slope": F(3)}, (-1, 3), (1, 3), 1.5, (-1.5, 0), (-3, 3)),
    ("leaky_relu", {"slope": F(1, 10)}, (-2, -1), (0.1, 0.1), 0.1, (0, 0), (-0.2, -0.1)),
    ("clip", CLIP, (0, 0.5), (1, 1), 1, (0, 0), (0, 0.5)),
    ("clip", CLIP, (-0.5, 0.75), (1, 1), 1, (0, 0), (-0.5, 0.75)),
    ("clip", CLIP, (-1, -0.5), (0, 0), 0, (-0.5, -0.5), (-0.5, -0.5)),
    ("clip", CLIP, (0.75, 2), (0, 0), 0, (0.75, 0.75), (0.75, 0.75)),
    ("clip", CLIP, (0, 1.5), (0, 1), 0.5, (0, 0.375), (0, 0.75)),
    ("clip", CLIP, (-1, 0), (0, 1), 0.5, (-0.25, 0), (-0.5, 0)),
    ("clip", CLIP, (-1.5, 1), (0, 1), 0.5, (-0.25, 0.375), (-0.5, 0.75)),
    ("clip", {"low": (F(-1, 3),), "high": (F(1, 3),)}, (-1, 1), (0, 1), 1 / 3, (-2 / 9, 2 / 9), (-1 / 3, 1 / 3)),
]


@pytest.mark.parametrize(("op", "attributes", "ends", "slopes", "chord", "rest", "values"), KINKS)
def test_a_kink_counts_where_the_cell_lies_on_both_sides(
    op: str, attributes: Any, ends: Any, slopes: Any, chord: float, rest: Any, values: Any
) -> None:
    found = single(op, *ends, **attributes)
    out, middle = found.output, chord * sum(ends) / 2 + sum(rest) / 2
    holds(out.slope, [[[slopes[0]]]], [[[slopes[1]]]])
    holds(found.nodes[1], [[slopes[0]]], [[slopes[1]]], 1e-16)
    near(out.linear, [[[chord]]])
    near(out.centre, [[middle]])
    deviation = (rest[1] - rest[0]) / 2
    assert deviation - 1e-17 <= out.error <= deviation + 1e-14
    if values is not None:
        holds(out.value, [[values[0]]], [[values[1]]])


def test_several_signals_in_several_cells_keep_to_themselves() -> None:
    s = Sketch()
    found = local_slopes(s.graph(u=s("relu", s.input("x", 2))), cells([(-1, 3), (1, 2)], [(-2, -1), (-1, 1)], [(0, 1), (-1, 0)]))
    holds(found.nodes[1], [[0, 1], [0, 0], [1, 0]], [[1, 1], [0, 1], [1, 0]])
    holds(found.output.value, [[0, 1], [0, 0], [0, 0]], [[3, 2], [0, 1], [1, 0]])
    near(found.output.linear, [[[0.75, 0], [0, 0], [1, 0]], [[0, 1], [0, 0.5], [0, 0]]])


def test_at_a_point_the_slope_of_the_node_serves() -> None:
    for op, factor in (("relu", 1), ("tanh", 1 - math.tanh(2) ** 2)):
        out = single(op, 2, 2).output
        near(out.linear, [[[factor]]])
        assert out.error < 1e-14


TWO = [  # operation, x, y, range, slopes in the first signal
    ("max", (0, 1), (2, 3), (2, 3), (0, 0)),
    ("max", (2, 3), (0, 1), (2, 3), (1, 1)),
    ("max", (-1, 2), (0.25, 4), (0.25, 4), (0, 1)),
    ("max", (0.25, 4), (-1, 2), (0.25, 4), (0, 1)),
    ("max", (0, 1), (1, 3), (1, 3), (0, 1)),  # where the values touch the difference is rounded across 0
    ("min", (0, 1), (2, 3), (0, 1), (1, 1)),
    ("min", (2, 3), (0, 1), (0, 1), (0, 0)),
    ("min", (-1, 2), (0.25, 4), (-1, 2), (0, 1)),
    ("min", (0.25, 4), (-1, 2), (-1, 2), (0, 1)),
]


@pytest.mark.parametrize(("op", "x", "y", "values", "step"), TWO)
def test_minimum_and_maximum_of_two_signals(op: str, x: Any, y: Any, values: Any, step: Any) -> None:
    s = Sketch()
    i = s.input("x", 2)
    found = local_slopes(s.graph(u=s(op, s("select", i, indices=(0,)), s("select", i, indices=(1,)))), cells([x, y]))
    holds(found.output.value, [[values[0]]], [[values[1]]])
    assert list(found.nodes) == [3]
    holds(found.nodes[3], [[step[0]]], [[step[1]]])
    holds(found.output.slope, [[[step[0]]], [[1 - step[1]]]], [[[step[1]]], [[1 - step[0]]]])


BESIDE = [("max", (1, 2), (1, 1)), ("max", (-1, 1), (0, 1)), ("max", (-2, -1), (0, 0)), ("min", (1, 2), (0, 0)), ("min", (-2, -1), (1, 1))]


@pytest.mark.parametrize(("op", "ends", "slopes"), BESIDE)
@pytest.mark.parametrize("first", [True, False])
def test_at_a_constant_the_slope_noted_is_the_one_in_the_signal(op: str, ends: Any, slopes: Any, first: bool) -> None:
    s = Sketch()
    i, c = s.input("x", 1), s.constant(0)
    found = local_slopes(s.graph(u=s(op, *((c, i) if first else (i, c)))), cells([ends]))
    holds(found.output.slope, [[[slopes[0]]]], [[[slopes[1]]]])
    holds(found.nodes[2], [[slopes[0]]], [[slopes[1]]])


# --- sums, products, quotients ------------------------------------------------------------------------------------------------


def two_of(op: str, x: Any, y: Any, **options: Any) -> Local:
    s = Sketch()
    i = s.input("x", 2)
    return local_slopes(s.graph(u=s(op, s("select", i, indices=(0,)), s("select", i, indices=(1,)))), cells([x, y], **options)).output


def test_sums_and_differences() -> None:
    out = two_of("add", (1, 3), (5, 13))
    holds(out.value, [[6]], [[16]])
    near(out.centre, [[11]])
    near(out.linear, [[[1]], [[1]]])
    out = two_of("sub", (1, 3), (5, 13))
    holds(out.value, [[-12]], [[-2]])
    near(out.centre, [[-7]])
    holds(out.slope, *[[[[1]], [[-1]]]] * 2)
    assert out.error < 1e-300


def test_what_cancels_is_seen_in_the_affine_form() -> None:
    s = Sketch()
    i = s.input("x", 1)
    out = local_slopes(s.graph(u=s("sub", s("add", i, i), i)), cells([(1, 3)])).output  # naturally in [-1, 5]
    holds(out.value, [[1]], [[3]])


def test_products() -> None:
    out = two_of("mul", (1, 3), (5, 13))
    holds(out.value, [[5]], [[39]])
    near(out.centre, [[18]])
    holds(out.slope, [[[5]], [[1]]], [[[13]], [[3]]])
    near(out.linear, [[[9]], [[2]]])
    reaches(out.error, [[4]])


def test_quotients() -> None:
    out = two_of("div", (4, 8), (1, 4))
    # 1 / y on [1, 4]: slopes [-1, -1/16], s = -17/32, at the middle 2/5, error 15/32 * 3/2
    centre, error, x = 0.4, 15 / 32 * 1.5, 6.0
    near(out.centre, [[x * centre]])
    holds(out.slope, [[[0.25]], [[-8]]], [[[1]], [[-0.25]]])
    near(out.linear, [[[centre]], [[-17 / 32 * x]]])
    whole = x * error + 2 * (17 / 32 * 1.5 + error)
    reaches(out.error, [[whole]])
    holds(out.value, [[1]], [[8]])
    out = two_of("div", (1, 1.0), (2, 2), free=[0, 1])
    holds(out.value, [[0.5]], [[0.5]])


def test_a_constant_over_a_signal_and_a_signal_over_a_constant() -> None:
    s = Sketch()
    i = s.input("x", 1)
    out = local_slopes(s.graph(u=s("div", s.constant(6), i)), cells([(2, 3)])).output
    holds(out.slope, [[[-1.5]]], [[[-2 / 3]]])
    holds(out.value, [[2]], [[3]])
    t = Sketch()
    found = local_slopes(t.graph(u=t("div", t.input("x", 1), t.constant(4))), cells([(2, 3)]))
    holds(found.output.slope, [[[0.25]]], [[[0.25]]])
    holds(found.output.value, [[0.5]], [[0.75]])
    assert found.nodes == {}  # not of one signal


def test_constants_combine_without_slopes() -> None:
    s = Sketch()
    s.input("x", 1)
    a, b = s.constant(F(1, 3)), s.constant(3)
    for op, value in (("add", F(10, 3)), ("sub", F(-8, 3)), ("mul", F(1)), ("div", F(1, 9)), ("max", F(3)), ("min", F(1, 3))):
        t = Sketch()
        t.nodes = list(s.nodes)
        out = local_slopes(t.graph(u=t("neg", t(op, a, b))), cells([(0, 1)])).output
        assert out.slope is None and out.linear is None
        assert F(float(out.value.low[0, 0])) <= -value <= F(float(out.value.high[0, 0]))
        assert out.value.high - out.value.low < 1e-14
    out = local_slopes(s.graph(u=a), cells([(0, 1)])).output
    assert F(float(out.value.low[0, 0])) < F(1, 3) < F(float(out.value.high[0, 0])) and out.error == 0
    holds(local_slopes(s.graph(u=s("tanh", a)), cells([(0, 1)])).output.value, [[math.tanh(1 / 3)]], [[math.tanh(1 / 3)]])
    holds(local_slopes(s.graph(u=s.affine(a, [[2], [-4]], [1, 0])), cells([(0, 1)])).output.value, *[[[5 / 3, -4 / 3]]] * 2, 1e-6)
    assert local_slopes(s.graph(u=s("select", s("concatenate", a, b), indices=(1, 0))), cells([(0, 1)])).output.slope is None


def test_a_constant_beside_a_signal() -> None:
    s = Sketch()
    i, c = s.input("x", 1), s.constant(F(1, 3), 5)
    bent = s("relu", i)
    joined = s("concatenate", c, bent, i)
    out = local_slopes(s.graph(u=s("select", joined, indices=(3, 2, 1))), cells([(-1, 1)], [(1, 2)])).output
    holds(out.value, [[-1, 0, 5], [1, 1, 5]], [[1, 1, 5], [2, 2, 5]])
    near(out.centre, [[0, 0.25, 5], [1.5, 1.5, 5]])
    holds(out.slope, [[[1, 0, 0], [1, 1, 0]]], [[[1, 1, 0], [1, 1, 0]]])
    near(out.linear, [[[1, 0.5, 0], [1, 1, 0]]])
    reaches(out.error, [[0, 0.25, 0], [0, 0, 0]])
    both = local_slopes(s.graph(u=s("sub", s("mul", c, i), c)), cells([(-1, 1)])).output  # size 1 repeated
    near(both.linear, [[[1 / 3, 5]]])
    near(both.centre, [[-1 / 3, -5]])


def test_affine_maps_carry_the_error_with_absolute_weights() -> None:
    s = Sketch()
    i = s.input("x", 1)
    both = s("concatenate", s("relu", i), s("abs", i))  # errors 3/8 and 3/4 on [-1, 3]
    out = local_slopes(s.graph(u=s.affine(both, [[2, -1], [0, 4]], [0.5, -1])), cells([(-1, 3)])).output
    reaches(out.error, [[1.5, 3]])
    near(out.linear, [[[1, 2]]])
    near(out.centre, [[2 * 1.125 - 1.25 + 0.5, 4]])
    holds(out.slope, [[[-1, -4]]], [[[3, 4]]])
    t = Sketch()
    holds(local_slopes(t.graph(u=t.affine(t.input("x", 1), [[-3]])), cells([(1, 2)])).output.value, [[-6]], [[-3]])


# --- inputs, places, recentred graphs -------------------------------------------------------------------------------------------


def test_inputs_that_do_not_vary() -> None:
    third = iv.from_fractions((F(1, 3),))
    x = entering(cells([(third.low[0], third.high[0]), (1, 5)], free=[1]))
    assert x.centre.low[0, 0] == third.low[0] and x.centre.high[0, 0] == third.high[0]
    near(x.centre, [[1 / 3, 3]])
    near(x.linear, [[[0, 1]]])
    assert x.slope is x.linear and (x.error == 0).all() and x.error.shape == (1, 2)
    nothing = entering(cells([(2, 2)], free=[]))
    assert nothing.slope is None and nothing.linear is None
    near(nothing.centre, [[2]])
    s = Sketch()
    assert local_slopes(s.graph(u=s("tanh", s.input("x", 1))), cells([(2, 2)], free=[])).output.slope is None


def test_parts_of_cells() -> None:
    many = cells([(0, 1)], [(2, 4)], [(5, 8)], reach=[1, 2, 3], scale=[7])
    part = many.batch(slice(1, 3))
    assert part.low.tolist() == [[2], [5]] and part.high.tolist() == [[4], [8]]
    assert part.reach is not None and part.reach.tolist() == [2, 3] and part.scale is many.scale and part.free is many.free
    assert cells([(0, 1)], [(2, 4)]).batch(slice(0, 1)).reach is None


def recentred(inner: Graph, *point: Any) -> Graph:
    (size,) = inner.output_sizes.values()
    s = Sketch()
    i = s.input("x", len(point))
    s.tensors["offset"] = np.zeros(size)
    u = s("recentre", i, graph=inner, point=tuple(map(F, point)), offset="offset")
    return s.graph(u=s("tanh", u))


def test_recentred_graphs_and_the_places_in_them() -> None:
    inner = Graph((Node("input", (), {"name": "y", "size": 1}), Node("relu", (0,)), Node("exp", (1,))), {"v": 2}, {}, 1)
    found = local_slopes(recentred(inner, 1), cells([(-1, 2)]))
    assert list(found.nodes) == [(1, 1), (1, 2), 2]
    holds(found.nodes[1, 1], [[0]], [[1]])
    holds(found.nodes[1, 2], [[1]], [[math.exp(2)]])
    holds(found.output.value, [[math.tanh(1 - math.e)]], [[math.tanh(math.exp(2) - math.e)]])
    middle = Graph(
        (Node("input", (), {"name": "y", "size": 1}), Node("select", (0,), {"indices": (0,)}), Node("relu", (1,))), {"v": 2}, {}, 2
    )
    attributes = {"graph": middle, "point": (F(3),), "offset": "offset"}
    outer = Graph((Node("input", (), {"name": "y", "size": 1}), Node("recentre", (0,), attributes)), {"v": 1}, {"offset": np.zeros(1)}, 1)
    deep = local_slopes(recentred(outer, 3), cells([(4, 6)]))
    assert list(deep.nodes) == [(1, 1, 2), 2]
    holds(deep.output.value, [[math.tanh(1)]], [[math.tanh(3)]])


def test_recentring_moves_centre_and_value_alike() -> None:
    inner = Graph((Node("input", (), {"name": "y", "size": 1}), Node("relu", (0,))), {"v": 1}, {}, 1)
    s = Sketch()
    i = s.input("x", 1)
    s.tensors["offset"] = np.zeros(1)
    out = local_slopes(s.graph(u=s("recentre", i, graph=inner, point=(F(5),), offset="offset")), cells([(-1, 3)])).output
    holds(out.value, [[-5]], [[-2]])
    near(out.centre, [[1.125 - 5]])
    near(out.linear, [[[0.75]]])
    reaches(out.error, [[0.375]])


def test_nodes_behind_the_output_are_left_out() -> None:
    s = Sketch()
    i = s("tanh", s.input("x", 2))
    s("group_sort", i, group_size=2)
    assert list(local_slopes(s.graph(u=i), cells([(0, 1), (0, 1)])).nodes) == [1]
    with pytest.raises(GraphError, match="absolute values"):
        local_slopes(s.graph(u=2), cells([(0, 1), (0, 1)]))


def test_negation_and_sums_are_not_noted() -> None:
    s = Sketch()
    i = s.input("x", 1)
    found = local_slopes(s.graph(u=s("add", s("neg", i), s("power", i, exponent=2))), cells([(1, 2)]))
    assert list(found.nodes) == [2]
    holds(found.output.slope, [[[1]]], [[[3]]])


# --- balls ----------------------------------------------------------------------------------------------------------------------


def test_in_a_ball_the_sum_of_two_inputs_varies_by_a_norm() -> None:
    s = Sketch()
    total = s.graph(u=s.affine(s.input("x", 2), [[3, 4]]))
    box = [(-1, 1), (-1, 1)]
    holds(local_slopes(total, cells(box)).output.value, [[-7]], [[7]])
    holds(local_slopes(total, cells(box, reach=[1], scale=[1, 1])).output.value, [[-5]], [[5]])
    holds(local_slopes(total, cells(box, reach=[1], scale=[2, 1])).output.value, *[[[sign * math.hypot(1.5, 4)]] for sign in (-1, 1)])
    holds(local_slopes(total, cells(box, box, reach=[0.5, 9], scale=[1, 1])).output.value, [[-2.5], [-7]], [[2.5], [7]])


def algebra(*radii: float, reach: Any = None, scale: Any = None) -> LocalAlgebra:
    made = LocalAlgebra(cells([(-r, r) for r in radii], reach=None if reach is None else [reach], scale=scale))
    made._radius = np.array(radii)[:, None, None]  # without the rounding of a radius
    return made


def spread(made: LocalAlgebra, *size: float) -> Fraction:
    return F(float(made._spread(np.array(size)[:, None, None])[0, 0]))


def test_spreads_are_not_below_the_exact_ones() -> None:
    assert spread(algebra(1), 1) >= 1 and spread(algebra(1), 1) < 1 + F(1, 10**12)
    assert spread(algebra(NEXT), NEXT) >= F(NEXT) ** 2
    assert spread(algebra(2.0**-540), 2.0**-540) >= F(2) ** -1080  # products below float64's range
    assert 0 < spread(algebra(1), 0) < F(2) ** -900
    generator = np.random.default_rng(0)
    for _ in range(100):
        k = int(generator.integers(1, 5))
        size, radius = generator.uniform(0, 2, k), generator.uniform(0, 2, k)
        assert sum(F(a) * F(b) for a, b in zip(size, radius, strict=True)) <= spread(algebra(*radius), *size)


def test_spreads_in_balls_are_not_below_the_exact_ones() -> None:
    far = 2.0**600
    assert spread(algebra(far, reach=1, scale=[1]), 2.0**-540) >= F(2) ** -540  # its square is below float64's range
    assert spread(algebra(far, reach=1, scale=[1]), 0) < F(2) ** -400
    assert spread(algebra(1, reach=2.0**-700, scale=[1]), 2.0**-400) >= F(2) ** -1100  # as is the norm times the reach
    generator = np.random.default_rng(1)
    for _ in range(200):
        k = int(generator.integers(1, 4))
        size, scale, reach = generator.uniform(0.5, 2, k), generator.uniform(0.5, 2, k), float(generator.uniform(0.5, 2))
        exact = F(reach) ** 2 * sum((F(a) / F(b)) ** 2 for a, b in zip(size, scale, strict=True))
        found = spread(algebra(*[9.0] * k, reach=reach, scale=scale), *size)
        assert exact <= found**2 <= exact * (1 + F(1, 10**12))


# --- one step outwards for each rounding ------------------------------------------------------------------------------------------


def test_values_of_forms_are_rounded_outwards() -> None:
    made, small = algebra(1), 2.0**-60
    for linear in (None, iv.point(np.zeros((1, 1, 1)))):
        out = made._formed(INFINITE, iv.point(np.ones((1, 1))), linear, linear, np.full((1, 1), small))
        assert F(float(out.value.low[0, 0])) <= 1 - F(small) and F(float(out.value.high[0, 0])) >= 1 + F(small)
        holds(out.value, [[1]], [[1]])
        out = made._formed(INFINITE, Interval(np.full((1, 1), -small), np.full((1, 1), small)), linear, linear, np.ones((1, 1)))
        assert F(float(out.value.low[0, 0])) <= -1 - F(small) and F(float(out.value.high[0, 0])) >= 1 + F(small)
        holds(out.value, [[-1]], [[1]])
    wide = made._formed(INFINITE, Interval(np.full((1, 1), 2.0), np.full((1, 1), 5.0)), None, None, np.ones((1, 1)))
    holds(wide.value, [[1]], [[6]])
    slope = iv.point(np.full((1, 1, 1), -3.0))
    wide = made._formed(INFINITE, Interval(np.full((1, 1), 2.0), np.full((1, 1), 5.0)), slope, slope, np.ones((1, 1)))
    holds(wide.value, [[-2]], [[9]])


def test_errors_of_sums_and_products_are_rounded_upwards() -> None:
    made, square = algebra(1), NEXT * NEXT
    assert F(float(made.add(of(0, 0, 1), of(0, 0, 2.0**-60)).error[0, 0])) >= 1 + F(2) ** -60
    assert made.mul(of(0, NEXT, 0), of(0, 0, NEXT)).error == steps(square, 3)
    assert made.mul(of(0, 0, NEXT), of(0, NEXT, 0)).error == steps(square, 3)
    assert made.mul(of(0, 0, NEXT), of(0, 0, NEXT)).error == steps(square, 2)
    assert made._departure(of(0, 0, 1, 0)) == steps(1, 1) and made._departure(of(0, 0, 1)) == 1
    reaches(made._departure(of(0, 0, 1, -3)), [[4]])


def test_errors_of_scalar_functions_are_rounded_upwards() -> None:
    made = algebra(1)
    factor, nothing = np.full((1, 1), NEXT), iv.point(np.zeros((1, 1)))
    out = made._mapped(of(INFINITE, 0, NEXT, 1), lambda v: INFINITE, iv.point(factor), lambda: (factor, nothing))
    assert out.error == steps(NEXT * NEXT, 2)
    out = made._mapped(of(INFINITE, 0, 1, 1), lambda v: INFINITE, iv.point(factor), lambda: (-2 * factor / NEXT, nothing))
    assert 2 <= out.error <= 2 + 1e-12
    out = made._mapped(of(INFINITE, 3, 0, 1), lambda v: INFINITE, iv.point(factor), lambda: (factor, Interval(factor, 3 * factor)))
    near(out.centre, [[5]])
    assert 1 <= out.error <= 1 + 1e-12


def line(slopes: tuple[float, float], curvature: float, tangent: tuple[float, float] = (0, 0)) -> tuple[Array, Interval]:
    """On [-1, 1], for a function that is 0 at 0."""
    made = algebra(1)
    made._node = Node("exp")
    v, (low, high) = Interval(-np.ones((1, 1)), np.ones((1, 1))), slopes
    zero = iv.point(np.zeros((1, 1)))
    given = Interval(np.full((1, 1), tangent[0]), np.full((1, 1), tangent[1]))
    return made._line(v, lambda t: zero, lambda t: given, Interval(np.full((1, 1), low), np.full((1, 1), high)), curvature)


def test_remainders_are_rounded_upwards() -> None:
    factor, rest = line((-1, 1), math.inf)
    assert factor == 0 and rest.high == steps(NEXT * NEXT, 2) == -rest.low  # deviation and radius a step above 1, product, sum
    factor, rest = line((-3, 3), 2)  # the radius a step above 1, half the curvature times it, the sum with the tangent's width
    assert factor == 0 and rest.high == steps(steps(1, 3) * NEXT, 2) == -rest.low
    factor, rest = line((-1, 9), 2, (0.5, 1.5))
    assert factor == 1
    holds(rest, [[-1.5]], [[1.5]])


@pytest.mark.parametrize(("low", "factor"), [(1, 1), (NEXT, steps(1, 2))])
def test_a_middle_that_is_rounded_to_one_end_of_the_slopes_leaves_the_other_end_in_reach(low: float, factor: float) -> None:
    found, rest = line((low, steps(low, 1)), math.inf)
    assert found == factor and rest.high >= 2.0**-52 and rest.low <= -(2.0**-52)


def test_ranges_between_breakpoints() -> None:
    def away(t: Interval) -> Interval:  # |t - 1.5|
        low, high = t.low - 1.5, t.high - 1.5
        return Interval(np.maximum(np.maximum(low, -high), 0), np.maximum(-low, high))

    def over(a: float, b: float, *points: tuple[float, float]) -> tuple[float, float]:
        found = module._over_breakpoints(away, Interval(np.array([a]), np.array([b])), [Interval(*map(np.array, p)) for p in points])
        return float(found.low[0]), float(found.high[0])

    assert over(1, 2) == (0.5, 0.5)
    assert over(1, 2, (1.5, 1.5)) == over(1, 2, (1.375, 1.5)) == over(1, 2, (1.5, 1.625)) == over(1, 2, (-1, 5)) == (0, 0.5)
    assert over(0, 2, (1.25, 1.375)) == (0.125, 1.5) and over(0, 2, (1.625, 1.75)) == (0.125, 1.5)
    assert over(2, 3, (1.5, 1.5)) == (0.5, 1.5) and over(0, 1, (1.5, 1.5)) == (0.5, 1.5)


# --- implicit layers ----------------------------------------------------------------------------------------------------------


def implicit(weight: Any, x: Local, activation: str = "relu") -> tuple[Local, Interval]:
    """The layer z = phi(D z + v) for v in a form on one cell of one input, |x - c| <= 1, and the slopes that it notes."""
    made, weight = algebra(1.0), np.array(weight, float)
    z = made.implicit(x, weight, np.ones(len(weight)), activation)
    return z, made.nodes[0]


def form(low: Any, high: Any, centre: Any, linear: Any, error: Any) -> Local:
    slope = iv.point(np.array(linear, float)[None, None])
    value = Interval(np.array([low], float), np.array([high], float))
    return Local(value, iv.point(np.array([centre], float)), slope, slope, np.array([error], float))


def test_a_layer_of_active_units_is_linear() -> None:
    z, slopes = implicit([[0, 1], [-1, 0]], form([2, 6], [4, 8], [3, 7], [0.875, 0.5], [0.125, 0.5]))  # (v1 + v2, v2 - v1) / 2
    holds(slopes, [[1, 1]], [[1, 1]])
    near(z.centre, [[5, 2]])
    near(z.slope, [[[0.6875, -0.1875]]])
    near(z.linear, [[[0.6875, -0.1875]]])
    reaches(z.error, [[0.3125, 0.3125]])
    holds(z.value, [[4, 1.5]], [[6, 2.5]])


def test_a_unit_at_its_kink_leaves_half_of_its_step_and_all_of_the_error() -> None:
    z, slopes = implicit([[0]], form([-2], [2], [0], [1], [0.125]))
    holds(slopes, [[0]], [[1]])
    near(z.linear, [[[0.5]]])
    holds(z.slope, [[[0]]], [[[1]]])
    reaches(z.error, [[0.625]])


def test_slopes_between_the_centre_of_a_form_and_its_values_count() -> None:
    z, slopes = implicit([[0]], form([2], [4], [-10], [13], [1]))
    holds(slopes, [[0]], [[1]])
    near(z.linear, [[[6.5]]])
    near(z.centre, [[0]])
    reaches(z.error, [[7.5]])


def test_what_enters_a_layer_at_one_point_leaves_at_one_point() -> None:
    z, _ = implicit([[0.5]], of(3, 3, 0))
    assert z.slope is None and z.linear is None
    near(z.value, [[6]])


def test_signals_of_length_one_are_repeated() -> None:
    found = module.sized(Interval(np.full((2, 1), 1.0), np.full((2, 1), 2.0)), 2)
    assert found.low.tolist() == [[1, 1], [1, 1]] and found.high.tolist() == [[2, 2], [2, 2]]
    s = Sketch()
    graph = s.graph(u=s.affine(s("add", s.constant(1, 5), s.input("x", 1)), [[1, 2]], [0]))
    found = local_slopes(graph, cells([(0, 1)], [(2, 4)])).output
    holds(found.value, [[11], [17]], [[14], [23]])
    holds(found.slope, [[[3], [3]]], [[[3], [3]]])
