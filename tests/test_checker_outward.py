"""Interval arithmetic to the last digit: one step outwards and no more, tables against power series, every limit at its edge."""

from __future__ import annotations

import ctypes
import math
import platform
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, arb_series, ctx

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.intervals import Interval

U = 2.0**-53


def interval(low: float, high: float) -> Interval:
    return Interval(np.array([low]), np.array([high]))


def ends(x: Interval) -> tuple[float, float]:
    (low,), (high,) = x.low, x.high
    return float(low), float(high)


def wider(low: float, high: float) -> tuple[float, float]:
    """One float further out on both sides."""
    return math.nextafter(low, -math.inf), math.nextafter(high, math.inf)


def test_arithmetic_takes_one_step_outwards() -> None:
    x, y = interval(-2, 3), interval(-5, 7)
    assert ends(x + y) == wider(-7, 10) and ends(x - y) == wider(-9, 8) and ends(-y) == (-7, 5)
    products = {(-2, 3, -5, 7): (-15, 21), (-2, 3, -7, 5): (-21, 15), (2, 3, -5, 7): (-15, 21), (-3, -2, -5, 7): (-21, 15)}
    products |= {(-3, 1, -5, 1): (-5, 15), (2, 3, 5, 7): (10, 21), (-3, -2, -7, -5): (10, 21), (-3, -2, 5, 7): (-21, -10)}
    for (a, b, c, d), expected in products.items():
        assert ends(interval(a, b) * interval(c, d)) == wider(*expected)
    low, high = wider(1 / 8, 1 / 4)
    assert ends(interval(2, 4) / interval(4, 8)) == wider(2 * low, 4 * high)
    assert ends(interval(2, 4) / interval(-8, -4)) == wider(-4 * high, -2 * low)


def test_quotients_by_zero_have_no_value() -> None:
    for low, high in ((-1, 1), (0, 1), (-1, 0), (0, 0), (np.nan, 1)):
        assert np.isnan(ends(interval(1, 2) / interval(low, high))).all()
    assert np.isfinite(ends(interval(1, 2) / interval(0.5, 1))).all()


def test_parts_of_intervals() -> None:
    x, y = interval(-2, 3), interval(-1, 7)
    assert x.magnitude.tolist() == [3] and (-y).magnitude.tolist() == [7] and interval(-4, 3).magnitude.tolist() == [4]
    assert ends(x.intersect(y)) == (-1, 3) == ends(y.intersect(x)) and ends(x.hull(y)) == (-2, 7) == ends(y.hull(x))
    assert iv.down(1.0) == 1 - U and iv.up(1.0) == 1 + 2 * U
    assert ends(iv.around(np.array([2.0]), np.array([0.5]))) == wider(1.5, 2.5)
    both = Interval(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[4.0, 5.0], [6.0, 7.0]])).take([1])
    assert both.low.tolist() == [[1], [3]] and both.high.tolist() == [[5], [7]]
    assert iv.point(np.array([2.0])).low[0] == iv.point(np.array([2.0])).high[0] == 2


def test_centres_and_radii_hold_both_ends() -> None:
    for low, high in (
        (-2.0, 4.0),
        (1.0, 1 + 2 * U),
        (1 - U, 1 + 2 * U),
        (-(1 + 2 * U), -1 + U),
        (0.1, 1e16),
        (-1e16, 0.1),
        (-1e308, 1e308),
    ):
        (centre,), (radius,) = interval(low, high).centre_radius()
        c, r = Fraction(float(centre)), Fraction(float(radius))
        assert c - r <= Fraction(low) and Fraction(high) <= c + r
        assert r <= (Fraction(high) - Fraction(low)) * (1 + Fraction(1, 2**50))
    assert interval(-2, 4).centre_radius() == (1, math.nextafter(3, 4))


def test_accumulated_roundings() -> None:
    for n in (1, 7, 10**6, 10**11):
        assert Fraction(n) / (2**53 - n) <= Fraction(iv.gamma(n)) <= Fraction(n, 2**53) * (1 + Fraction(2, 10**4))
        assert iv.gamma(n) == pytest.approx(n * U * 1.0001, rel=1e-15)


def test_rationals_have_neighbouring_floats_as_ends() -> None:
    for value in (Fraction(1, 3), Fraction(2, 3), Fraction(-1, 3), Fraction(-2, 3), Fraction(1, 2**1075), Fraction(-1, 2**1080)):
        low, high = ends(iv.from_fractions((value,)))
        assert Fraction(low) < value < Fraction(high) and math.nextafter(low, 1) == high
    assert ends(iv.from_fractions((Fraction(-3, 4),))) == (-0.75, -0.75)


def test_balls_are_enclosed_within_a_few_floats() -> None:
    for text in ("0.1 +/- 1e-30", "-0.1 +/- 1e-30", "1e-320 +/- 1e-330", "3 +/- 0.5", "-7 +/- 1e-17"):
        ball = arb(text)
        low, high = ends(iv.from_balls([ball]))
        below, above = ball.lower().fmpq(), ball.upper().fmpq()
        exact = Fraction(int(below.p), int(below.q)), Fraction(int(above.p), int(above.q))
        assert Fraction(low) <= exact[0] and exact[1] <= Fraction(high)
        outer = low, high
        for _ in range(3):
            outer = math.nextafter(outer[0], math.inf), math.nextafter(outer[1], -math.inf)
        assert Fraction(outer[0]) >= exact[0] and Fraction(outer[1]) <= exact[1]
    for ball in (arb("nan"), arb(0, math.inf), 1 / arb(0)):
        assert np.isnan(ends(iv.from_balls([ball]))).all()
    assert len(iv.from_balls([arb(1), arb(2)]).low) == 2


def test_affine_maps_lose_what_their_bound_says() -> None:
    """x - 1 at x = 1: value and bias add up to 2, so 2 gamma(2 n + 16) is lost, and hardly more."""
    for n in (1, 50):
        weight, x = np.zeros((1, n)), np.zeros((1, n))
        weight[0, 0], x[0, 0] = 1.0, 1.0
        for bias, lost in ((np.array([-1.0]), 2), (None, 1)):
            y = iv.affine(iv.point(x), weight, bias)
            middle = 0.0 if bias is not None else 1.0
            assert y.high[0, 0] - middle == pytest.approx(lost * iv.gamma(2 * n + 16), rel=1e-3 if middle == 0 else 0.2, abs=0)
            assert middle - y.low[0, 0] == pytest.approx(lost * iv.gamma(2 * n + 16), rel=1e-3 if middle == 0 else 0.2, abs=0)
    weight = np.eye(50)[:1]
    y = iv.affine(Interval(0 * weight, 2 * weight), weight, np.array([-1.0]))  # c = r = 1: 2 for both, and 1 for the bias
    assert y.high[0, 0] - 1 == pytest.approx(3 * iv.gamma(116), rel=0.1) == -1 - y.low[0, 0]
    y = iv.affine(iv.point(2 * weight), weight, np.array([-2.0]))
    assert y.high[0, 0] == pytest.approx(4 * iv.gamma(116), rel=1e-3, abs=0)
    y = iv.affine(interval(-1, 1), np.ones((1, 1)), None)  # the radius is 1 + gamma(18), and grows by 16 roundings
    assert 1 + 33 * U <= y.high[0] <= 1 + 39 * U and -1 - 39 * U <= y.low[0] <= -1 - 33 * U
    zero = iv.affine(iv.point(np.zeros((1, 3))), np.zeros((1, 3)), None)
    assert 5 * 2.0**-1070 <= zero.high[0, 0] == -zero.low[0, 0] <= 6 * 2.0**-1070
    wide = iv.affine(Interval(np.array([[0.0, -1.0]]), np.array([[2.0, 1.0]])), np.array([[2.0, -3.0]]), np.array([0.5]))
    assert wide.low[0, 0] == pytest.approx(-2.5, abs=1e-13) and wide.high[0, 0] == pytest.approx(7.5, abs=1e-13)


def test_powers_over_both_signs() -> None:
    expected = {0: (1, 1), 1: (-2, 3), 2: (0, 9), 3: (-18, 27), 4: (0, 81)}
    for exponent, (low, high) in expected.items():
        assert ends(iv.integer_power(interval(-2, 3), exponent)) == pytest.approx((low, high), abs=1e-12)
    assert ends(iv.integer_power(interval(-3, 2), 2)) == pytest.approx((0, 9))
    assert ends(iv.integer_power(interval(2, 3), 2)) == pytest.approx((4, 9)) == ends(iv.integer_power(interval(-3, -2), 2))
    assert ends(iv.integer_power(interval(-3, -2), 3)) == pytest.approx((-27, -8))
    for broken in (interval(np.nan, 1), interval(1, np.nan)):
        assert np.isnan(ends(iv.integer_power(broken, 0))).all()


def test_roots() -> None:
    assert ends(iv.sqrt(interval(4, 9))) == wider(2, 3) and ends(iv.sqrt(interval(0, 4))) == (0, math.nextafter(2, 3))
    assert np.isnan(ends(iv.sqrt(interval(-1e-300, 4)))[0])
    assert ends(iv.sqrt(interval(5e-324, 1)))[0] > 0


def test_increasing_functions_of_balls_keep_shape_and_order() -> None:
    x = Interval(np.array([[0.0, 1.0], [-1.0, np.inf]]), np.array([[1.0, 2.0], [np.nan, np.inf]]))
    y = iv.by_balls(lambda v: v.exp(), x)
    assert y.low[0].tolist() == pytest.approx([1, math.e]) and y.high[0].tolist() == pytest.approx([math.e, math.e**2])
    assert (y.low[0] < [1, math.e]).all() and (y.high[0] > [math.e, math.e**2]).all()
    assert y.low[1, 0] == pytest.approx(1 / math.e) and np.isnan([y.high[1, 0], y.low[1, 1], y.high[1, 1]]).all()


@pytest.mark.parametrize("direction", [0x400, 0x800, 0xC00])
def test_other_rounding_modes_are_refused(direction: int) -> None:
    """Downwards, upwards and towards zero."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        pytest.skip("the numbers of the rounding modes are those of another processor")
    libm = ctypes.CDLL("libm.so.6")
    try:
        assert libm.fesetround(direction) == 0
        with pytest.raises(iv.UnsafeArithmetic, match="round to nearest"):
            iv.require_ieee()
    finally:
        libm.fesetround(0)
    iv.require_ieee()


@pytest.mark.parametrize("flag", [0x8000, 0x0040])
def test_flushing_results_or_operands_is_refused(flag: int) -> None:
    """Either flag of the processor's control word alone."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        pytest.skip("the control word is that of another processor")
    libm = ctypes.CDLL("libm.so.6")
    saved, changed = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    libm.fegetenv(saved), libm.fegetenv(changed)
    changed[7] |= flag
    try:
        libm.fesetenv(changed)
        with pytest.raises(iv.UnsafeArithmetic, match="flushes subnormals"):
            iv.require_ieee()
    finally:
        libm.fesetenv(saved)
    iv.require_ieee()


# --- elementary functions -----------------------------------------------------------------------------------------------


def series(name: str, t: arb) -> list[arb]:
    with ctx.workprec(200):
        x = arb_series([t, 1], 9)
        one = arb_series([1], 9)
        if name in ("sin", "cos"):
            return getattr(x, name)().coeffs()
        if name == "tanh":
            return (((2 * x).exp() - one) / ((2 * x).exp() + one)).coeffs()
        return (one + (-x).exp()).log().coeffs()


@pytest.mark.parametrize("name", iv._REACH)
def test_tables_hold_taylor_coefficients(name: str) -> None:
    table = iv._table(name)
    reach = {"sin": 32, "cos": 32, "tanh": 20, "softplus_tail": 40}[name]
    assert table.shape == (64 * reach + 1, 9)
    precision = ctx.prec
    for k in (0, 1, 40, 64, 200, 64 * reach):
        exact = [*series(name, arb(k) / 64), *[arb(0)] * 9][:9]
        for found, wanted in zip(table[k], exact, strict=True):
            with ctx.workprec(200):
                assert abs(arb(float(found)) - wanted) <= abs(wanted).upper() * 2.0**-53 + arb(2) ** -150
    assert ctx.prec == precision  # what the tables are made with does not stay


@pytest.mark.parametrize("name", iv._REACH)
def test_kernels_know_their_accuracy_and_their_reach(name: str) -> None:
    reach = float(iv._REACH[name])
    x = np.array([0.0, 2.0**-30, 0.3, 1.7, reach, math.nextafter(reach, 100), math.inf, math.nan])
    signed = np.concatenate([x, -x]) if name in ("sin", "tanh") else x
    value, error = iv._kernel(name, signed)
    assert np.isfinite(value).tolist() == [True] * 5 + [False] * 3 + ([True] * 5 + [False] * 3) * (len(signed) > 8)
    for v, y, e in zip(signed, value, error, strict=True):
        if np.isfinite(y):
            with ctx.workprec(200):
                exact = series(name, arb(float(v)))[0] if v else arb({"sin": 0, "tanh": 0, "cos": 1}.get(name, arb(2).log()))
                assert abs(arb(float(y)) - exact) <= arb(float(e))
            odd = name in ("sin", "tanh")
            assert e == (min(2.0**-51, 2.0**-49 * abs(v) + 2.0**-1020) if odd else 2.0**-51)


def test_tanh_beyond_its_table() -> None:
    almost, more = 1 - U, math.nextafter(20, 30)
    assert ends(iv.tanh(interval(21, 22))) == (almost, 1) == ends(iv.tanh(interval(more, math.inf)))
    assert ends(iv.tanh(interval(-22, -21))) == (-1, -almost) and ends(iv.tanh(interval(-math.inf, math.inf))) == (-1, 1)
    low, high = ends(iv.tanh(interval(-20, 20)))
    assert low == -1 and high == 1
    low, high = ends(iv.tanh(interval(0.5, 0.5)))
    assert low <= math.tanh(0.5) <= high and 2.0**-51 <= high - low <= 2.0**-49
    assert ends(iv.tanh(interval(19, 19)))[1] == 1.0 and ends(iv.tanh(interval(-19, -19)))[0] == -1.0


def test_sigmoid_between_0_and_1() -> None:
    assert ends(iv.sigmoid(interval(-1000, 1000))) == (0, 1)
    low, high = ends(iv.sigmoid(interval(-1, 2)))
    assert low == pytest.approx(1 / (1 + math.e), abs=1e-15) and high == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-15)
    half = iv.tanh(interval(*wider(-0.5, 1)))
    assert ends(iv.sigmoid(interval(-1, 2))) == wider(0.5 + 0.5 * half.low[0], 0.5 + 0.5 * half.high[0])


def test_softplus_beyond_its_table() -> None:
    more = math.nextafter(40, 50)
    assert ends(iv.softplus(interval(41, 42))) == wider(41, 42) and ends(iv.softplus(interval(more, more))) == wider(more, more)
    assert ends(iv.softplus(interval(-100, -50))) == (0, math.nextafter(2.0**-57, 1)) == ends(iv.softplus(interval(-math.inf, -more)))
    assert Fraction(2) ** -57 > Fraction(math.exp(-40))
    low, high = ends(iv.softplus(interval(-40, 40)))
    assert 0 <= low <= math.exp(-40) and 40 < high < 40 + 2e-14
    low, high = ends(iv.softplus(interval(-1, 1)))
    assert low == pytest.approx(math.log1p(math.exp(-1)), abs=2.0**-50) and high == pytest.approx(math.log1p(math.e), abs=2.0**-50)


@pytest.mark.parametrize(("function", "top", "bottom"), [(iv.sin, 0.25, 0.75), (iv.cos, 0.0, 0.5)])
def test_maxima_and_minima_are_found_where_they_are(function: object, top: float, bottom: float) -> None:
    for turn in (-4, -1, 0, 3):
        for phase, value in ((top, 1.0), (bottom, -1.0)):
            at = 2 * math.pi * (turn + phase)
            low, high = ends(function(interval(at - 0.25, at + 0.5)))
            assert (high == 1.0) if value > 0 else (low == -1.0)
            other = math.cos(0.5) * value
            assert (low if value > 0 else high) == pytest.approx(other, abs=1e-14)
        rising = 2 * math.pi * (turn + top - 0.25)
        low, high = ends(function(interval(rising - 1, rising + 1)))
        assert (low, high) == pytest.approx((-math.sin(1), math.sin(1)), abs=1e-13)
        whole = 2 * math.pi * (turn + 0.1)
        assert ends(function(interval(whole, whole + 2 * math.pi))) == (-1, 1)
    for low, high in ((31, 32.5), (-32.5, -31), (1.2, 1.1), (40, 41), (-math.inf, math.inf)):
        assert ends(function(interval(low, high))) == (-1, 1)
    assert ends(function(interval(31.9, 32.0))) != (-1, 1)
    for broken in (interval(np.nan, 1), interval(1, np.nan)):
        assert np.isnan(ends(function(broken))).all()


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sines_are_the_values_at_the_ends_less_their_errors(name: str) -> None:
    function, extremum = getattr(iv, name), {"sin": math.pi / 2, "cos": 0.0}[name]
    for low, high in ((extremum + 0.3, extremum + 0.4), (extremum - 0.4, extremum - 0.3), (extremum + 1, extremum + 1)):
        (a, ea), (b, eb) = iv._kernel(name, np.array([low])), iv._kernel(name, np.array([high]))
        assert ends(function(interval(low, high))) == (iv.down(min(a[0] - ea[0], b[0] - eb[0])), iv.up(max(a[0] + ea[0], b[0] + eb[0])))
    beside = 1e-8  # the extremum is not inside, but cos 1e-8 rounds to 1
    assert ends(function(interval(extremum + beside, extremum + 0.1)))[1] == 1.0
    assert ends(function(interval(extremum + math.pi + beside, extremum + math.pi + 0.1)))[0] == -1.0


# --- what only a changed line would show ----------------------------------------------------------------------------------


def test_one_wrong_number_in_the_probe_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vector units differ from the scalar one: each of the numbers must round to nearest."""

    class LastRoundsUp(np.ndarray):
        def __add__(self, other: object) -> np.ndarray:
            total = np.asarray(self) + np.asarray(other)
            total[-1] = np.nextafter(total[-1], np.inf)
            return total

    ones = np.ones
    monkeypatch.setattr(np, "ones", lambda *shape: ones(*shape).view(LastRoundsUp))
    with pytest.raises(iv.UnsafeArithmetic):
        iv.require_ieee()


def test_affine_maps_of_many_axes_are_those_of_their_rows() -> None:
    random = np.random.default_rng(0)
    weight, middle = random.normal(size=(5, 3)), random.normal(size=(2, 4, 3))
    found = iv.affine(Interval(middle - 0.1, middle + 0.1), weight, np.arange(5.0))
    assert found.low.shape == (2, 4, 5)
    for index in np.ndindex(2, 4):
        row = iv.affine(Interval(middle[index][None] - 0.1, middle[index][None] + 0.1), weight, np.arange(5.0))
        assert np.allclose(found.low[index], row.low[0], rtol=1e-14) and np.allclose(found.high[index], row.high[0], rtol=1e-14)


def test_affine_maps_add_up_every_share_of_their_bound() -> None:
    """Zero centres and weights that cancel leave the radius alone, which is the formula's and 16 roundings of reserve."""
    g, u = Fraction(iv.gamma(2 * 2 + 16)), Fraction(1, 2**53)
    point, box = iv.point(np.array([[3.0, 3.0]])), Interval(np.array([[2.0, 2.0]]), np.array([[4.0, 4.0]]))
    cases = [
        (point, [1.0, -1.0], None, 6 * g),  # |c| |W|; the radius of a point is 5e-324
        (box, [1.0, -1.0], None, 2 * (1 + 4 * g)),  # |W| (r + g (|c| + r))
        (point, [1.0, 0.0], -3.0, 6 * g),  # half of it is the bias's
        (point, [0.5, 0.0], -1.5, 3 * g),
    ]
    for x, weight, bias, exact in cases:
        y = iv.affine(x, np.array([weight]), None if bias is None else np.array([bias]))
        assert y.high[0, 0] == -y.low[0, 0]
        assert exact * (1 + 10 * u) <= Fraction(float(y.high[0, 0])) <= exact * (1 + 26 * u)


def test_sums_that_overflow_on_the_way_are_unknown() -> None:
    """1e308 + 1e308 - 1.25e308 - 1.25e308 is finite and negative; summed from the left it is infinite and positive."""
    weight = np.array([[1e308, 1e308, -1.25e308, -1.25e308]])
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [2, 3, 0, 1]):
        for sign in (1, -1):
            for bias in (None, np.array([0.0])):
                with np.errstate(all="ignore"):
                    y = iv.affine(iv.point(np.ones((1, 4))), sign * weight[:, order], bias)
                exact = -sign * 0.5e308
                assert not (y.low[0, 0] > exact or y.high[0, 0] < exact)


def test_affine_maps_of_subnormal_numbers() -> None:
    """What underflows in the bound is made good by the constant that is added and by the radius of a point."""
    random = np.random.default_rng(0)
    for scale, size in ((5e-324, 1e308), (1e-310, 1e300), (1e-308, 1e-3), (1e-160, 1e-160), (1.0, 5e-324)):
        x = random.integers(-9, 9, (1, 5)) * scale
        weight, bias = random.uniform(-1, 1, (3, 5)) * size, random.integers(-3, 3, 3) * scale
        y = iv.affine(iv.point(x), weight, bias)
        for row, b, low, high in zip(weight, bias, y.low[0], y.high[0], strict=True):
            exact = sum((Fraction(float(w)) * Fraction(float(v)) for w, v in zip(row, x[0], strict=True)), Fraction(float(b)))
            assert Fraction(float(low)) <= exact <= Fraction(float(high))


def test_series_have_eight_terms_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of powers of two, at a distance of 2^-7 from its node, so that each term is seen in the sum."""
    for j in range(9):
        table = np.zeros((4, 9))
        table[1, j] = 2.0 ** (7 * j)
        monkeypatch.setattr(iv, "_table", lambda name, table=table: table)
        value, error = iv._kernel("cos", np.array([1 / 64 + 2.0**-7, -1 / 64 + 2.0**-8]))
        assert value.tolist() == [0, (-0.5) ** j]  # 1.5 / 64 is nearer to the even node
        assert error.tolist() == [2.0**-51, 2.0**-51]


@pytest.mark.parametrize(("function", "name"), [(iv.sin, "sin"), (iv.cos, "cos")])
def test_ends_of_sine_and_cosine_carry_their_error(function: object, name: str) -> None:
    """Where no extremum lies inside, the lesser end less its error, one step down, and the greater end alike."""
    for low, high in ((0.25, 0.5), (2.0, 2.5), (-0.75, -0.25), (4.0, 4.25)):
        values, errors = iv._kernel(name, np.array([low, high]))
        expected = wider(min(values - errors), max(values + errors))
        assert ends(function(interval(low, high))) == expected
        least, greatest = sorted((getattr(math, name)(low), getattr(math, name)(high)))
        assert expected[0] < least and greatest < expected[1]


def test_values_beyond_one_are_cut() -> None:
    """So near to an extremum that the error bound reaches beyond 1, and so far that the extremum is surely outside."""
    for at in (math.pi / 2 + 1e-9, math.pi / 2 - 1e-9):
        assert ends(iv.sin(interval(at, at)))[1] == 1 and ends(iv.sin(interval(-at, -at)))[0] == -1
        assert ends(iv.cos(interval(at + math.pi / 2, at + math.pi / 2)))[0] == -1
    assert ends(iv.cos(interval(1e-9, 1e-9)))[1] == 1 and ends(iv.sin(interval(1e-9, 1e-9)))[1] < 1e-8


def test_the_least_numbers_have_one_step_outwards_too() -> None:
    least = 2.0**-1020
    assert ends(iv.tanh(interval(0, 0))) == wider(-least, least) == ends(iv.sin(interval(0, 0)))
    assert ends(iv.sigmoid(interval(0, 0))) == wider(0.5, 0.5)
    half = math.log(2)  # the first entry of the table
    assert ends(iv.softplus(interval(0, 0))) == wider(half - 2.0**-51, half + 2.0**-51)
    assert ends(iv.cos(interval(0.5, 0.5))) == wider(iv._table("cos")[32, 0] - 2.0**-51, iv._table("cos")[32, 0] + 2.0**-51)


def test_nan_stays_in_every_operation() -> None:
    one, half = interval(1, 2), Interval(np.array([np.nan, 1.0]), np.array([2.0, np.nan]))
    for x in (one + half, one - half, one * half, one / half, half / one, -half, half.hull(one), half.intersect(one), iv.sqrt(half)):
        assert np.isnan(x.low + x.high).all()
    assert np.isnan(half.magnitude).all() and np.isnan(half.centre_radius()).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(ends(interval(0, 1) * interval(1, np.inf))).any() or ends(interval(0, 1) * interval(1, np.inf))[1] == np.inf
    for x in (iv.tanh(half), iv.sigmoid(half), iv.softplus(half)):
        assert np.isnan([x.low[0], x.high[1]]).all() and np.isfinite([x.low[1], x.high[0]]).all()
