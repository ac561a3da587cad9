"""Exact and ball evaluation of graphs: exact values are exact, balls hold the truth, neither ever guesses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx, fmpq
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Sketch
from strategies import graphs_with_inputs

from lipctrl.certificates.checker.balls import ball, evaluate_balls
from lipctrl.certificates.checker.exact import MAX_BITS, Inexact, evaluate_exact, exact_tensor
from lipctrl.certificates.checker.graph import ELEMENTWISE, Graph

small = st.fractions(min_value=-30, max_value=30, max_denominator=1000)


def one(op, *values, **attributes):
    """The graph that applies one operation to its input (or to two, for two operands)."""
    s = Sketch()
    operands = [s.input(name, len(value)) for name, value in zip("ab", values, strict=False)]
    return s.graph(y=s(op, *operands, **attributes)), {name: tuple(map(Fraction, value)) for name, value in zip("ab", values, strict=False)}


def exactly(op, *values, **attributes):
    graph, inputs = one(op, *values, **attributes)
    return evaluate_exact(graph, inputs)["y"]


def in_balls(op, *values, precision=192, **attributes):
    graph, inputs = one(op, *values, **attributes)
    with ctx.workprec(precision):
        balls = {name: [ball(v) for v in value] for name, value in inputs.items()}
    return evaluate_balls(graph, balls, precision)["y"]


def holds(balls, values):
    return all(abs(b.mid().fmpq() - fmpq(v.numerator, v.denominator)) <= b.rad().fmpq() for b, v in zip(balls, values, strict=True))


# --- exact --------------------------------------------------------------------------------------------------------------

AT_ZERO = {"sin": 0, "cos": 1, "tan": 0, "exp": 1, "erf": 0, "tanh": 0, "sigmoid": Fraction(1, 2), "gelu": 0, "silu": 0}


@pytest.mark.parametrize("op", AT_ZERO)
def test_values_at_zero(op):
    assert exactly(op, [0, 0]) == (AT_ZERO[op],) * 2
    for value in ([Fraction(1, 10**30)], [0, 1]):
        with pytest.raises(Inexact):
            exactly(op, value)


def test_rules_of_other_operations():
    third = Fraction(1, 3)
    assert exactly("log", [1]) == (0,)
    assert exactly("sqrt", [0, Fraction(4, 9), 25]) == (0, Fraction(2, 3), 5)
    assert exactly("neg", [third]) == (-third,)
    assert exactly("abs", [-third, 2]) == (third, 2)
    assert exactly("relu", [-third, 2]) == (0, 2)
    assert exactly("leaky_relu", [-third, 2], slope=Fraction(1, 10)) == (-third / 10, 2)
    assert exactly("clip", [-5, 0, 5], low=(Fraction(-1),) * 3, high=(third,) * 3) == (-1, 0, third)
    assert exactly("power", [third, 0], exponent=0) == (1, 1)
    assert exactly("power", [-third], exponent=3) == (-(third**3),)
    assert exactly("group_sort", [3, 1, 2, 5, 4], group_size=2) == (1, 3, 2, 5, 4)
    assert exactly("group_sort", [3, 1, 2, 5, 4], group_size=3) == (1, 2, 3, 4, 5)
    assert exactly("select", [1, 2], indices=(1, 1, 0)) == (2, 2, 1)
    assert exactly("concatenate", [1], [2, 3]) == (1, 2, 3)
    assert exactly("add", [1, 2], [third]) == (1 + third, 2 + third)
    assert exactly("sub", [third], [1, 2]) == (third - 1, third - 2)
    assert exactly("mul", [3, 6], [third, third]) == (1, 2)
    assert exactly("div", [1, 2], [3]) == (third, 2 * third)
    assert exactly("min", [1, 2], [2, 1]) == (1, 1)
    assert exactly("max", [1, 2], [2, 1]) == (2, 2)


@pytest.mark.parametrize(
    ("op", "values"), [("log", [[2]]), ("log", [[1, 2]]), ("sqrt", [[2]]), ("sqrt", [[-4]]), ("softplus", [[0]]), ("div", [[1], [0]])]
)
def test_no_rational_value(op, values):
    with pytest.raises(Inexact):
        exactly(op, *values)


def test_numbers_that_grow_too_long_are_refused():
    s = Sketch()
    x = s.input("a", 1)
    for _ in range(60):
        x = s("mul", x, x)
    for graph in (s.graph(y=x), one("power", [3], exponent=64)[0]):
        with pytest.raises(Inexact, match="bits"):
            evaluate_exact(graph, {"a": (Fraction(3**200, 7),)})
    long = Fraction(1, 2**MAX_BITS + 1)
    s = Sketch()
    with pytest.raises(Inexact, match="bits"):
        evaluate_exact(s.graph(y=s.affine(s.input("a", 1), [[1.0]])), {"a": (long,)})


def test_inputs_must_fit():
    graph, _ = one("sin", [0])
    for inputs in ({}, {"a": (0, 0)}, {"a": (0,), "b": (0,)}):
        with pytest.raises(ValueError, match="names and lengths"):
            evaluate_exact(graph, inputs)
        with pytest.raises(ValueError, match="names and lengths"):
            evaluate_balls(graph, inputs)


weights = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(weights, weights, small), min_size=1, max_size=6), st.tuples(weights, weights), st.booleans())
def test_affine_maps_are_exact_to_the_last_bit(columns, bias, biased):
    weight, x = np.array([c[:2] for c in columns]).T, tuple(c[2] for c in columns)
    s = Sketch()
    graph = s.graph(y=s.affine(s.input("x", len(x)), weight, bias if biased else None, dtype=np.float64))
    expected = [
        sum((Fraction(w) * v for w, v in zip(row.tolist(), x, strict=True)), Fraction(b if biased else 0))
        for row, b in zip(weight, bias, strict=True)
    ]
    assert list(evaluate_exact(graph, {"x": x})["y"]) == expected
    assert holds(evaluate_balls(graph, {"x": [ball(v) for v in x]})["y"], expected)


def test_exact_tensors_keep_row_order_and_every_bit():
    assert exact_tensor(np.array([[0.1, 5e-324], [1e308, -2.0]])) == [Fraction(0.1), Fraction(5e-324), Fraction(1e308), -2]
    assert exact_tensor(np.array([0.1], np.float32)) == [Fraction(13421773, 2**27)]


def recentred(point, inner_op):
    s = Sketch()
    inner_sketch = Sketch()
    inner = inner_sketch.graph(v=inner_sketch(inner_op, inner_sketch.input("z", 1)))
    inner = Graph(inner.nodes, inner.outputs, {"offset": np.array([0.75], np.float32)}, nesting=1)
    s.tensors["offset"] = np.array([0.75], np.float32)
    return s.graph(y=s("recentre", s.input("x", 1), graph=inner, point=(Fraction(point),), offset="offset"))


def test_recentre_is_zero_at_its_point_by_rule_and_never_the_stored_offset():
    point = Fraction(1, 3)
    assert evaluate_exact(recentred(point, "sin"), {"x": (point,)})["y"] == (0,)
    with pytest.raises(Inexact):
        evaluate_exact(recentred(point, "sin"), {"x": (point + Fraction(1, 10**40),)})
    assert evaluate_exact(recentred(point, "abs"), {"x": (Fraction(-2),)})["y"] == (2 - point,)
    (value,) = evaluate_balls(recentred(point, "sin"), {"x": [ball(Fraction(2))]})["y"]
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        expected = mpmath.sin(2) - mpmath.sin(mpmath.mpf(1) / 3)
    assert value.overlaps(arb(mpmath.nstr(expected, 45)) + arb(0, 1e-40))


def test_rounding_trap():
    """((1e16 + 3) - 1e16) - 3.5: float64 says +1/2, the truth is -1/2."""
    assert ((1e16 + 3) - 1e16) - 3.5 == 0.5
    s = Sketch()
    x = s.input("x", 1)
    y = s("sub", s("sub", s("add", x, s.constant(3)), s.constant(10**16)), s.constant("7/2"))
    assert evaluate_exact(s.graph(y=y), {"x": (Fraction(10**16),)})["y"] == (Fraction(-1, 2),)
    (value,) = evaluate_balls(s.graph(y=y), {"x": [arb(10**16)]})["y"]
    assert value < 0


# --- balls --------------------------------------------------------------------------------------------------------------


def _reference(op, x, mpmath):
    sigmoid = 1 / (1 + mpmath.exp(-x))
    table = {
        "neg": -x,
        "abs": abs(x),
        "sigmoid": sigmoid,
        "softplus": mpmath.log1p(mpmath.exp(x)),
        "relu": max(x, 0),
        "silu": x * sigmoid,
        "gelu": x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2,
    }
    return table[op] if op in table else getattr(mpmath, op)(x)


@settings(max_examples=300)
@given(st.sampled_from(ELEMENTWISE), small, st.sampled_from([30, 53, 192]))
def test_elementwise_operations_agree_with_mpmath(op, x, precision):
    mpmath = pytest.importorskip("mpmath")
    if op in ("log", "sqrt"):
        x = abs(x) + Fraction(1, 100)
    (value,) = in_balls(op, [x], precision=precision)
    with mpmath.workdps(500):
        expected = mpmath.nstr(_reference(op, mpmath.mpf(x.numerator) / x.denominator, mpmath), 100)
    with ctx.workprec(300):
        assert value.overlaps(arb(expected))
        assert value.rad() <= (1 + abs(arb(expected))) * arb(2) ** (12 - precision)


@pytest.mark.parametrize(("op", "value"), [("log", [0]), ("log", [-1]), ("sqrt", [-1]), ("div", [[1], [0]])])
def test_values_outside_the_domain_are_not_finite(op, value):
    values = value if isinstance(value[0], list) else [value]
    assert not in_balls(op, *values)[0].is_finite()


@pytest.mark.parametrize("op", ["tanh", "sigmoid", "erf"])
def test_bounded_operations_stay_bounded_on_wide_balls(op):
    graph, _ = one(op, [0])
    (value,) = evaluate_balls(graph, {"a": [arb(0, 1e10)]})["y"]
    assert abs(value) < 1.01


def test_sorting_not_a_number_gives_not_a_number():
    graph, _ = one("group_sort", [0, 0, 0], group_size=2)
    values = evaluate_balls(graph, {"a": [arb(1), arb.nan(), arb(3)]})["y"]
    assert [v.is_finite() for v in values] == [False, False, True]


vectors = st.lists(small, min_size=3, max_size=3)


@settings(max_examples=30)
@given(vectors, vectors, small.filter(bool), st.integers(0, 5))
def test_balls_of_rational_operations_are_tight_around_the_exact_value(a, b, c, exponent):
    high = tuple(v + 1 for v in b)
    cases = [
        *((op, [a], {}) for op in ("neg", "abs", "relu")),
        *((op, [a, b], {}) for op in ("add", "sub", "mul", "min", "max", "concatenate")),
        *((op, [a, [c]], {}) for op in ("add", "sub", "mul", "min", "max", "div")),
        *((op, [[c], a], {}) for op in ("add", "sub", "mul", "min", "max")),
        ("power", [a], {"exponent": exponent}),
        ("leaky_relu", [a], {"slope": c}),
        ("clip", [a], {"low": tuple(b), "high": high}),
        ("select", [a], {"indices": (2, 0, 0)}),
        ("group_sort", [a], {"group_size": 2}),
        ("constant", [], {"values": tuple(a)}),
    ]
    for op, operands, attributes in cases:
        exact, balls = exactly(op, *operands, **attributes), in_balls(op, *operands, **attributes)
        assert holds(balls, exact)
        assert all(v.rad() < 1e-40 for v in balls)


@settings(max_examples=200)
@given(graphs_with_inputs())
def test_balls_hold_exact_values_of_random_graphs(case):
    graph, inputs = case
    balls = evaluate_balls(graph, {name: [ball(v) for v in value] for name, value in inputs.items()})["output"]
    assert all(b.is_finite() for b in balls)
    try:
        exact = evaluate_exact(graph, inputs)["output"]
    except Inexact:
        return
    assert holds(balls, exact)


@settings(max_examples=200)
@given(graphs_with_inputs(), st.data())
def test_wide_balls_hold_the_values_inside(case, data):
    graph, inputs = case
    radius = data.draw(st.sampled_from([1e-9, 1e-3, 0.1, 3.0]))
    places = {name: [data.draw(st.sampled_from([-1, -0.5, 0, 0.25, 1])) for _ in value] for name, value in inputs.items()}
    with ctx.workprec(192):
        wide = evaluate_balls(graph, {name: [arb(ball(v), radius) for v in value] for name, value in inputs.items()})
        points = {name: [ball(v) + ball(radius) * place for v, place in zip(inputs[name], places[name], strict=True)] for name in inputs}
        for outer, inner in zip(wide["output"], evaluate_balls(graph, points)["output"], strict=True):
            assert outer.overlaps(inner)


@given(st.lists(small, min_size=1, max_size=9), st.integers(2, 4), st.sampled_from([0, 1, 10]))
def test_sorted_balls_hold_sorted_values(values, group_size, radius):
    graph, _ = one("group_sort", values, group_size=group_size)
    balls = evaluate_balls(graph, {"a": [arb(ball(v), radius) for v in values]})["y"]
    moved = [v + (radius if i % 2 else -radius) for i, v in enumerate(values)]
    for inside in (values, moved):
        assert holds(balls, exactly("group_sort", inside, group_size=group_size))
