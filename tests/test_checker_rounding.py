"""Errors of float32 evaluation, operation by operation, against formulas over the rationals; overflow and what is not known."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from loops import Sketch

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.enclosure import Enclosed, seeds
from lipctrl.certificates.checker.graph import Graph, GraphError
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.rounding import Rounded, RoundingAlgebra, float32_error

U, ETA = Fraction(1, 2**24), Fraction(1, 2**149)
ALGEBRA = RoundingAlgebra(np.zeros((0, 1, 1)), 3)


def rounded(*entries: tuple[float, float, float]) -> Rounded:
    """One row: (low, high, error) for each entry."""
    low, high, error = (np.array([column], float) for column in zip(*entries, strict=True))
    return Rounded(Enclosed(Interval(low, high), iv.point(0.5 * low + 0.5 * high), None), error)


def once_more(size: Fraction, error: Fraction) -> Fraction:
    """One rounding of a value of at most this size that is already off."""
    return error + U * (size + error) + ETA


def assert_just_above(result: Rounded, expected: list[Fraction]) -> None:
    """The bound exceeds its formula by the factor 1 + 2^-36, in which float64's rounding is contained."""
    assert result.error.shape == result.exact.value.low.shape == (1, len(expected))
    for bound, exact in zip(result.error[0], expected, strict=True):
        assert exact * (1 + Fraction(3, 2**38)) <= Fraction(float(bound)) <= exact * (1 + Fraction(3, 2**37))


def F(*values: float) -> tuple[Fraction, ...]:
    return tuple(Fraction(v) for v in values)


TINY, SMALL, FLAT = 2.0**-160, 2.0**-12, Fraction(1, 2**200)
X, Y = (-3.0, 2.0, 2 * SMALL), (-5.0, -4.0, SMALL)
x, y, dx, dy = F(3, 5, X[2], Y[2])


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda: ALGEBRA.add(rounded(X), rounded(Y)), [once_more(x + y, dx + dy)]),
        (lambda: ALGEBRA.sub(rounded(X), rounded(Y)), [once_more(Fraction(7), dx + dy)]),
        (lambda: ALGEBRA.mul(rounded(X), rounded(Y)), [once_more(x * y, x * dy + y * dx + dx * dy)]),
        (lambda: ALGEBRA.div(rounded(X), rounded(Y)), [once_more(x / 4, (dx + x / 4 * dy) / (4 - dy))]),
        (lambda: ALGEBRA.div(rounded(X), rounded((4.0, 5.0, SMALL))), [once_more(x / 4, (dx + x / 4 * dy) / (4 - dy))]),
        (lambda: ALGEBRA.leaky_relu(rounded(X), Fraction(1, 4)), [once_more(Fraction(2), dx + (2 * U / 4 + ETA) * (x + dx))]),
        (lambda: ALGEBRA.leaky_relu(rounded(X), Fraction(-4)), [once_more(Fraction(14), 4 * dx + (8 * U + ETA) * (x + dx))]),
        (lambda: ALGEBRA.clip(rounded(X, X), F(-4, -1), F(1, 2)), [dx, dx]),
        (lambda: ALGEBRA.clip(rounded((-3, 2, TINY), (-3, 2, TINY)), F(-4, -1), F(1, 2)), [8 * U + ETA, 4 * U + ETA]),
        (lambda: ALGEBRA.add(rounded((0, 0, 0)), rounded((0, 0, 0))), [ETA]),
        (lambda: ALGEBRA.clip(rounded((0, 0, 0)), F(0), F(0)), [ETA]),
        (lambda: ALGEBRA.leaky_relu(rounded((-(2.0**99), 0, 0)), FLAT), [once_more(2**99 * FLAT, (2 * U * FLAT + ETA) * 2**99)]),
        (lambda: ALGEBRA.tanh(rounded((0, 0, 0))), [3 * ETA]),
    ],
)  # fmt: skip
def test_errors_of_operations(operation: Callable[[], Rounded], expected: list[Fraction]) -> None:
    assert_just_above(operation(), expected)


def test_clipped_values_are_those_of_the_real_network() -> None:
    value = ALGEBRA.clip(rounded((-9, -8, 1), (-3, 0, 1), (8, 9, 1)), F(-4, -4, -4), F(1, 1, 1)).exact.value
    assert value.low.tolist() == [[-4, -3, 1]] and value.high.tolist() == [[-4, 0, 1]]


def test_errors_of_assumed_functions_grow_with_their_slopes() -> None:
    for name, steepest in (("tanh", Fraction(1)), ("sigmoid", Fraction(1, 4))):
        result = getattr(ALGEBRA, name)(rounded((-30.0, 30.0, SMALL)))
        error = steepest * Fraction(SMALL)
        assert_just_above(result, [error + 3 * (2 * U * (1 + error) + ETA)])
        assert_just_above(getattr(ALGEBRA, name)(rounded((-30.0, 30.0, 0.0))), [3 * (2 * U + ETA)])


def test_values_below_zero_are_as_inaccurate_as_those_above() -> None:
    """tanh between -1 and -1 + 2^-53, and a constant and an operand of -2^126."""
    assert_just_above(ALGEBRA.tanh(rounded((-30.0, -25.0, SMALL))), [dy + 3 * (2 * U * (1 + dy) + ETA)])
    assert np.isnan(ALGEBRA.constant((Fraction(-(2**126)),)).error).all()
    s = Sketch()
    for value in (-(2.0**126), 2.0**126):
        at = iv.point(np.full((1, 1), value))
        assert np.isnan(float32_error(s.graph(y=s.input("x", 1)), seeds(at, at, 0, 1), np.zeros((1, 1, 1)), None)).all()
        s = Sketch()


def test_functions_of_unknown_accuracy_need_an_assumption() -> None:
    for name in ("tanh", "sigmoid"):
        with pytest.raises(GraphError, match="activation_ulp"):
            getattr(RoundingAlgebra(np.zeros((0, 1, 1)), None), name)(rounded(X))


def test_errors_that_are_only_passed_on() -> None:
    a, b = rounded((-1, 1, 1.0), (0, 1, 2.0), (0, 2, 0.5)), rounded((-1, 1, 3.0), (0, 1, 0.25), (0, 2, 0.5))
    for result in (ALGEBRA.neg(a), ALGEBRA.relu(a), ALGEBRA.abs(a)):
        assert result.error.tolist() == [[1.0, 2.0, 0.5]]
    low, high = ALGEBRA.min(a, rounded((2, 3, 3.0), (0, 1, 0.25), (0, 2, 0.5))), ALGEBRA.max(a, b)
    assert low.error.tolist() == high.error.tolist() == [[3.0, 2.0, 0.5]]
    assert low.exact.value.high[0, 0] == 1 and high.exact.value.low[0, 0] == -1
    assert ALGEBRA.max(a, rounded((2, 3, 3.0), (0, 1, 0.25), (0, 2, 0.5))).exact.value.low[0, 0] == 2
    assert ALGEBRA.select(a, (2, 0, 0)).error.tolist() == [[0.5, 1.0, 1.0]]
    two = Rounded(Enclosed(iv.point(np.zeros((2, 3))), iv.point(np.zeros((2, 3))), None), np.array([[1.0, 2.0, 0.5], [4.0, 3.0, 8.0]]))
    assert ALGEBRA.group_sort(two, 2).error.tolist() == [[2.0, 2.0, 0.5], [4.0, 4.0, 8.0]]


def test_constants_pay_for_their_cast() -> None:
    third, tiny = Fraction(1, 3), Fraction(1, 2**150)
    errors = ALGEBRA.constant((third, -third, Fraction(3, 2), tiny, Fraction(0))).error[0]
    for error, value in zip(errors, (third, -third, Fraction(3, 2), tiny, Fraction(0)), strict=True):
        assert abs(Fraction(float(np.float32(float(value)))) - value) <= Fraction(error)
    assert errors.tolist() == [errors[0], errors[0], 0.0, float(2 * U * tiny + ETA), 0.0]
    assert Fraction(errors[0]) == pytest.approx(2 * third * U, rel=1e-12)


def test_joined_parts_share_the_batch_of_the_widest() -> None:
    many = Rounded(Enclosed(iv.point(np.zeros((4, 1))), iv.point(np.zeros((4, 1))), None), np.arange(4.0)[:, None])
    for parts, column in (((ALGEBRA.constant(F(1, 2)), many), 2), ((many, ALGEBRA.constant(F(1, 2))), 0)):
        error = ALGEBRA.concatenate(*parts).error
        assert error.shape == (4, 3) and error[:, column].tolist() == [0, 1, 2, 3] and error.sum() == 6


@pytest.mark.parametrize("biased", [True, False])
def test_errors_of_affine_maps(biased: bool) -> None:
    """x W^T + b for any order of summation: (n + 2) roundings of the sum of absolute values, n = 2."""
    weight, bias = np.array([[2.0, -3.0], [0.5, 0.0], [0.0, 0.0]], np.float32), np.array([-1.0, 8.0, 0.0], np.float32)
    unit, wide = 4 * U / (1 - 4 * U), ALGEBRA.affine(rounded(X, (0.0, 1.0, SMALL)), weight, bias if biased else None)
    sizes = [(x + dx) * a + (1 + dy) * b + c * biased for a, b, c in ((2, 3, 1), (Fraction(1, 2), 0, 8), (0, 0, 0))]
    passed_on = [2 * dx + 3 * dy, dx / 2, Fraction(0)]
    assert_just_above(wide, [e + unit * s + 6 * ETA for e, s in zip(passed_on, sizes, strict=True)])


@pytest.mark.parametrize("sign", [1, -1])
def test_errors_of_recentred_values(sign: int) -> None:
    """Subtracting a stored offset costs its distance to the exact one, and one rounding."""
    s = Sketch()
    inner = Graph(s.graph(o=s("mul", s.input("z", 1), s.constant(2))).nodes, {"o": 2}, {}, 1)
    offset = np.array([sign * (1.0 + SMALL)], np.float32)
    result = ALGEBRA.recentre(rounded(X), inner, (Fraction(sign, 2),), offset)
    before = once_more(2 * x, 2 * dx) * (1 + Fraction(1, 2**36))
    assert_just_above(result, [once_more(7 if sign > 0 else Fraction(5), before + Fraction(SMALL))])
    with pytest.raises(GraphError, match="float32 offset"):
        ALGEBRA.recentre(rounded(X), inner, (Fraction(1),), offset.astype(np.float64))


def test_operands_are_cast() -> None:
    s = Sketch()
    graph = s.graph(y=s.input("x", 1))
    for value in (0.0, 0.7, -3.0):
        at = iv.point(np.full((1, 1), value))
        error = float32_error(graph, seeds(at, at, 0, 1), np.zeros((1, 1, 1)), None)
        assert_just_above(Rounded(Enclosed(at, at, None), error), [U * abs(Fraction(value)) + 2 * ETA])


def test_values_that_may_overflow_have_no_bound() -> None:
    """From 2^126 on, value and error together; in affine maps twice the sum of absolute values, whatever cancels in it."""
    assert np.isfinite(ALGEBRA.constant((2**126 - Fraction(2**102),)).error).all()
    assert np.isnan(ALGEBRA.constant((Fraction(2**126),)).error).all()
    assert np.isnan(ALGEBRA.add(rounded((0, 2.0**125, 2.0**125)), rounded((0, 0, 0))).error).all()
    assert np.isfinite(ALGEBRA.add(rounded((0, 2.0**125, 2.0**124)), rounded((0, 0, 0))).error).all()
    assert np.isnan(ALGEBRA.clip(rounded((0, 1, 0)), F(-(2**126)), F(1)).error).all()
    assert np.isnan(ALGEBRA.clip(rounded((0, 1, 0)), F(1), F(2**126)).error).all()
    weight = np.array([[1.0, -1.0]], np.float32)
    for size, finite in ((1.5 * 2.0**123, True), (2.0**124, False)):
        error = ALGEBRA.affine(rounded((size, size, 0), (size, size, 0)), weight, None).error
        assert np.isfinite(error).all() == finite, size


def test_denominators_that_float32_may_take_to_zero_have_no_bound() -> None:
    for low, high, error in ((1.0, 2.0, 1.0), (-2.0, -1.0, 1.5), (-1.0, 1.0, 0.0), (0.0, 1.0, 0.0)):
        assert np.isnan(ALGEBRA.div(rounded(X), rounded((low, high, error))).error).all()
    assert np.isfinite(ALGEBRA.div(rounded(X), rounded((1.0, 2.0, 0.875))).error).all()


def test_float64_weights_and_biases_are_refused() -> None:
    weight, bias = np.ones((1, 1), np.float32), np.ones(1, np.float32)
    ALGEBRA.affine(rounded(X), weight, bias)
    for w, b in ((weight.astype(np.float64), bias), (weight, bias.astype(np.float64)), (weight.astype(np.float64), None)):
        with pytest.raises(GraphError, match="float32 weights"):
            ALGEBRA.affine(rounded(X), w, b)
    for name in ("exp", "sqrt", "sin", "power"):
        with pytest.raises(GraphError, match=name):
            getattr(ALGEBRA, name)
