"""Outward rounding: every interval holds the exact image, at points and in between, near zero, kinks, extrema and overflow."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from flint import arb, ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.intervals import Interval

REFERENCE: dict[str, Callable[[arb], arb]] = {
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
}


def hostile_points(seed: int = 0) -> np.ndarray:
    """Uniform, tiny, table nodes and midpoints, multiples of pi/2 and their neighbours, and the ends of the tables."""
    random = np.random.default_rng(seed)
    multiples = np.arange(-24, 25) * np.pi / 2
    parts = [
        random.uniform(-45, 45, 300),
        random.uniform(-1, 1, 300) * 10.0 ** random.integers(-320, 1, 300),
        np.arange(-130, 130) / 64,
        np.nextafter(np.arange(-130, 130) / 128, 9),
        *(np.nextafter(multiples, direction) for direction in (-9e9, 9e9)),
        multiples,
        np.array([0.0, -0.0, 20, -20, np.nextafter(20, 30), 32, np.nextafter(32, 40), 40, -40, 1e300, -1e300, 5e-324]),
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", REFERENCE)
def test_elementary_functions_hold_the_true_value(name: str) -> None:
    x = hostile_points()
    y = getattr(iv, name)(iv.point(x))
    with ctx.workprec(256):
        for value, low, high in zip(x.tolist(), y.low.tolist(), y.high.tolist(), strict=True):
            exact = REFERENCE[name](arb(value))
            if exact.is_finite():
                assert arb(low) <= exact.upper() and arb(high) >= exact.lower(), (value, low, high, exact)
            else:
                assert abs(value) > 1e200


@pytest.mark.parametrize("name", REFERENCE)
def test_elementary_functions_are_tight(name: str) -> None:
    x = np.linspace(-15, 15, 2001)
    y = getattr(iv, name)(iv.point(x))
    assert (y.high - y.low).max() < 2e-14


@pytest.mark.parametrize("name", ["sin", "tanh"])
def test_relative_accuracy_near_zero(name: str) -> None:
    x = 10.0 ** -np.arange(2, 280)
    y = getattr(iv, name)(iv.point(x))
    assert ((y.high - y.low) / x).max() < 1e-14


@pytest.mark.parametrize("name", REFERENCE)
@given(st.floats(-34, 34), st.floats(0, 10), st.floats(0, 1))
@settings(max_examples=150)
def test_elementary_functions_over_intervals(name: str, low: float, width: float, share: float) -> None:
    high = low + width
    x = min(max(low + share * width, low), high)
    y = getattr(iv, name)(Interval(np.array([low]), np.array([high])))
    exact = REFERENCE[name](arb(x))
    assert arb(float(y.low[0])) <= exact.upper() and arb(float(y.high[0])) >= exact.lower()


@pytest.mark.parametrize("name", REFERENCE)
def test_nan_and_infinity_stay_visible(name: str) -> None:
    y = getattr(iv, name)(Interval(np.array([np.nan, 0.0]), np.array([1.0, np.nan])))
    assert not (np.isfinite(y.low) & np.isfinite(y.high)).any()


def test_extrema_between_the_ends_are_not_missed() -> None:
    y = iv.sin(Interval(np.array([1.5, -1.6, 4.7]), np.array([1.6, -1.5, 4.72])))
    assert y.high[0] == 1 and y.low[1] == -1 and y.low[2] == -1


numbers = st.floats(-1e6, 1e6, allow_subnormal=True)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=5), st.sampled_from(["add", "sub", "mul", "div"]))
@settings(max_examples=200)
def test_arithmetic_holds_the_exact_result(rows: list[tuple[float, ...]], operation: str) -> None:
    a, b, c, d = (np.array(column) for column in zip(*rows, strict=True))
    x, y = Interval(np.minimum(a, b), np.maximum(a, b)), Interval(np.minimum(c, d), np.maximum(c, d))
    with np.errstate(all="ignore"):
        z = {"add": x + y, "sub": x - y, "mul": x * y, "div": x / y}[operation]
    for i in range(len(a)):
        for p, q in ((a[i], c[i]), (a[i], d[i]), (b[i], c[i]), (b[i], d[i])):
            if operation == "div" and y.low[i] <= 0 <= y.high[i]:
                assert np.isnan(z.low[i])
                continue
            p, q = Fraction(float(p)), Fraction(float(q))
            exact = {"add": p + q, "sub": p - q, "mul": p * q, "div": p / q if q else None}[operation]
            if np.isfinite(z.low[i]) and np.isfinite(z.high[i]):
                assert Fraction(float(z.low[i])) <= exact <= Fraction(float(z.high[i]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6), st.integers(-150, 140))
@settings(max_examples=60)
def test_affine_holds_the_exact_result(seed: int, n: int, rows: int, exponent: int) -> None:
    """Cancelling sums at every scale, against exact rationals."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(rows, n)) * 10.0 ** random.integers(-8, 8, size=(rows, n))
    bias = random.normal(size=rows)
    low = random.normal(size=(1, n)) * 10.0**exponent
    high = low + np.abs(low) * random.choice([0, 1e-12, 1], size=(1, n))
    y = iv.affine(Interval(low, high), weight, bias)
    for row in range(rows):
        ends = [
            (Fraction(float(w * 0 + lo)), Fraction(float(hi)), Fraction(float(w)))
            for w, lo, hi in zip(weight[row], low[0], high[0], strict=True)
        ]
        smallest = sum(min(w * lo, w * hi) for lo, hi, w in ends) + Fraction(float(bias[row]))
        largest = sum(max(w * lo, w * hi) for lo, hi, w in ends) + Fraction(float(bias[row]))
        assert Fraction(float(y.low[0, row])) <= smallest and Fraction(float(y.high[0, row])) >= largest


def test_rationals_are_enclosed_tightly() -> None:
    y = iv.from_fractions((Fraction(1, 10), Fraction(1, 2), Fraction(-1, 3)))
    assert Fraction(float(y.low[0])) < Fraction(1, 10) < Fraction(float(y.high[0]))
    assert y.low[1] == y.high[1] == 0.5
    assert np.nextafter(y.low[2], 1) == y.high[2]


@given(numbers, numbers, st.integers(0, 9))
@settings(max_examples=100)
def test_powers(a: float, b: float, exponent: int) -> None:
    x = Interval(np.array([min(a, b)]), np.array([max(a, b)]))
    y = iv.integer_power(x, exponent)
    for v in (a, b, 0.5 * a + 0.5 * b):
        assert Fraction(float(y.low[0])) <= Fraction(v) ** exponent <= Fraction(float(y.high[0]))
    assert exponent % 2 or y.low[0] >= 0


def test_flushing_subnormals_is_refused() -> None:
    iv.require_ieee()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        with pytest.raises(iv.UnsafeArithmetic, match="subnormals"):
            iv.require_ieee()
    finally:
        torch.set_flush_denormal(False)
