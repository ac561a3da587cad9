"""One step over boxes: bounds of V and of its decrease hold at corners, centres and in between, compared with exact rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.bundle import PlantSubject, parse_plant
from lipctrl.certificates.checker.cells import Loop, Step, centre_radius, keep_factor, level_range
from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Interval, gamma
from lipctrl.certificates.checker.verifiers.closed_loop_lyapunov_bab import determinant
from tests.loops import Sketch, gain, linear_plant, subject

Vector = tuple[Fraction, ...]


def exactly(values: Any) -> Vector:
    return tuple(Fraction(float(v)) for v in values)


def quadratic(P: np.ndarray, y: Vector) -> Fraction:
    return sum((Fraction(float(P[i, j])) * y[i] * y[j] for i in range(len(y)) for j in range(len(y))), Fraction(0))


def successor(plant: PlantSubject, policy: Graph, y: Vector, disturbance: Vector) -> Vector:
    """The next state over the rationals; the equilibrium is 0."""
    action = evaluate_exact(policy, {"observation": evaluate_exact(plant.observe, {"state": y})["observation"]})["action"]
    disturbed = tuple(u + w for u, w in zip(action, disturbance, strict=True)) if disturbance else action
    return evaluate_exact(plant.dynamics, {"state": y, "action": disturbed})["next_state"]


def random_loop(random: np.random.Generator, n: int, scale: float, arithmetic: str) -> Loop:
    """A saturated linear loop whose clips are active in some cells and cross others."""
    A, B = random.normal(size=(n, n)).round(3), random.normal(size=(n, 1)) * scale
    plant = linear_plant(
        [[Fraction(float(v)) for v in row] for row in A], [[Fraction(float(v)) for v in row] for row in B], limit=1, box=10**9
    )
    policy = gain((random.normal(size=n) / scale).tolist(), low=-2, high=Fraction(1, 3), bias=[float(random.normal() * 0.1)])
    return Loop(parse_plant(plant), policy, arithmetic)


def random_cells(random: np.random.Generator, n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    centre = random.normal(size=(5, n)) * scale * random.choice([0, 1e-9, 1, 5], (5, 1))
    width = np.abs(random.normal(size=(5, n))) * scale * random.choice([0, 1e-13, 1e-3, 2], (5, 1))
    return centre - width, centre + width


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(-8, 8))
@settings(max_examples=40)
def test_bounds_of_the_lyapunov_function_hold(arithmetic: str, seed: int, n: int, exponent: int) -> None:
    random, scale = np.random.default_rng(seed), 10.0**exponent
    loop, (low, high), rate = random_loop(random, n, scale, arithmetic), random_cells(random, n, scale), Fraction(1, 7)
    root = random.normal(size=(n, n)) * 10.0 ** random.integers(-6, 6)
    P = root.T @ root
    P = 0.5 * (P + P.T) + np.eye(n) * 1e-9 * np.abs(P).max()
    centre, radius = centre_radius(low, high)
    with np.errstate(all="ignore"):
        step: Step = loop.step(centre, radius, low, high)
    decrease, highest, (lowest, top) = step.decrease(P, keep_factor(rate)), step.highest(P), level_range(P, centre, radius)
    assert np.isfinite([decrease, highest, lowest, top]).all()
    for b in range(len(low)):
        for share in (*np.eye(n), np.zeros(n), np.ones(n), 0.5 * np.ones(n), random.uniform(size=n)):
            y = exactly(np.clip(low[b] + share * (high[b] - low[b]), low[b], high[b]))
            disturbance = tuple(Fraction(int(random.integers(-1, 2))) * w for w in exactly(step.radius[b, n:]))
            after = successor(loop.plant, loop.policy, y, disturbance)
            before, later = quadratic(P, y), quadratic(P, after)
            assert Fraction(float(lowest[b])) <= before <= Fraction(float(top[b]))
            assert later <= Fraction(float(highest[b])) and Fraction(float(decrease[b])) <= (1 - rate) * before - later
            assert all(
                Fraction(float(lo)) <= v <= Fraction(float(hi))
                for lo, v, hi in zip(step.value.low[b], after, step.value.high[b], strict=True)
            )


def test_bounds_are_tight_on_single_points() -> None:
    """x+ = 0.9 x with V = x^2 at x = 1: rounding is all that is lost."""
    loop, one = Loop(parse_plant(linear_plant([["9/10"]], [[1]])), gain([0.0])), np.ones((1, 1))
    step = loop.step(one, 0 * one, one, one)
    assert 0.09 - 1e-12 < step.decrease(np.eye(1), keep_factor(Fraction(1, 10)))[0] <= 0.09
    assert 0.81 <= step.highest(np.eye(1))[0] < 0.81 + 1e-12


def test_the_factor_that_is_kept_is_enclosed() -> None:
    for rate in (Fraction(1, 1000), Fraction(1, 10**40), 1 - Fraction(1, 10**400)):
        keep = keep_factor(rate)
        assert Fraction(float(keep.low)) <= 1 - rate <= Fraction(float(keep.high))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(max_examples=40)
def test_determinants_of_definite_matrices(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    root = [[Fraction(int(v)) for v in row] for row in random.integers(-9, 10, (n, n))]
    gram = [[sum((root[k][i] * root[k][j] for k in range(n)), Fraction(0)) for j in range(n)] for i in range(n)]
    exact = round(float(np.linalg.det(np.array(root, dtype=float)))) ** 2
    assert determinant(gram) == (exact or None)
    gram[0][0] -= gram[0][0] + 1
    assert determinant(gram) is None


def test_digits_that_cancel_in_the_plant_are_missing_in_the_bounds() -> None:
    """x+ = (x/2 + 10^9) - 10^9: where the cell is a point, the value at its centre is known to 1e-7 only."""
    s = Sketch()
    x, u = s.input("state", 1), s.input("action", 1)
    moved = s("add", s("add", s("mul", x, s.constant(Fraction(1, 2))), s.constant(10**9)), u)
    loop = Loop(parse_plant(subject(s.graph(next_state=s("sub", moved, s.constant(10**9))), 1, 1)), gain([0.0]))
    y = np.random.default_rng(0).uniform(-1, 1, (50, 1))
    step = loop.step(y, 0 * y, y, y)
    highest, decrease = step.highest(np.eye(1)), step.decrease(np.eye(1), keep_factor(Fraction(1, 2)))
    assert all(Fraction(float(v)) ** 2 / 4 <= Fraction(float(h)) for v, h in zip(y[:, 0], highest, strict=True))
    assert all(Fraction(float(v)) ** 2 / 4 >= Fraction(float(d)) for v, d in zip(y[:, 0], decrease, strict=True))


# --- formulas, to the last digit ----------------------------------------------------------------------------------------

P2 = np.array([[2.0, -1.0], [-1.0, 3.0]])


def two_cells(**changes: Any) -> Step:
    """Small integers, so that the formulas below are computed without rounding: n = 2 states, k = 3 seeds."""
    parts: dict[str, Any] = {
        "centre": np.array([[3.0, -2.0], [0.0, 5.0]]),
        "radius": np.array([[1.0, 2.0, 4.0], [0.5, 0.0, 2.0]]),
        "value": Interval(np.array([[-1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 2.0], [0.0, 0.0]])),
        "centre_value": np.array([[1.0, -4.0], [-2.0, 7.0]]),
        "centre_radius": np.array([[0.5, 0.25], [0.0, 2.0]]),
        "slope": np.array([[[0.5, -1.0, 2.0], [0.0, 0.25, -3.0]], [[-1.0, 0.0, 0.5], [2.0, -0.5, 1.0]]]),
        "slope_radius": np.array([[[0.0, 0.5, 0.25], [1.0, 0.0, 0.0]], [[0.25, 2.0, 0.0], [0.0, 0.0, 0.5]]]),
    }
    return Step(**{**parts, **changes})


def by_hand(step: Step, b: int, keep: Fraction) -> tuple[Fraction, Fraction, Fraction]:
    """Decrease, highest level and the size T that rounding is measured by, from their definitions, over the rationals."""
    n, k = step.slope.shape[1:]
    c, a, r = (exactly(part[b]) for part in (step.centre, step.centre_value, step.radius))
    S, spread = [exactly(row) for row in step.slope[b]], [exactly(row) for row in step.slope_radius[b]]
    P = [exactly(row) for row in P2]
    e = [v + sum(x * y for x, y in zip(row, r, strict=True)) for row, v in zip(spread, exactly(step.centre_radius[b]), strict=True)]

    def form(x: Any, y: Any, size: bool = False) -> Fraction:
        return sum((abs(P[i][j]) if size else P[i][j]) * x[i] * y[j] for i in range(n) for j in range(n))

    columns = [[S[i][j] for i in range(n)] for j in range(k)]
    own = [[Fraction(int(i == j)) for i in range(n)] for j in range(k)]  # of y = c + h_1..n
    forms = [[keep * form(own[i], own[j]) - form(columns[i], columns[j]) for j in range(k)] for i in range(k)]
    unit = [[Fraction(int(i == j)) for i in range(n)] for j in range(n)]
    reach = [abs(form(unit[i], a)) + sum(abs(form(unit[i], columns[j])) * r[j] for j in range(k)) for i in range(n)]
    inexact = 2 * sum(x * y for x, y in zip(e, reach, strict=True)) + form(e, e, size=True)
    loss = 2 * sum(abs(keep * form(own[j], c) - form(columns[j], a)) * r[j] for j in range(k))
    loss += sum(r[i] * r[j] * (abs(forms[i][j]) if i != j else max(-forms[i][i], Fraction(0))) for i in range(k) for j in range(k))
    high = form(a, a) + 2 * sum(abs(form(columns[j], a)) * r[j] for j in range(k)) + inexact
    high += sum(r[i] * r[j] * abs(form(columns[i], columns[j])) for i in range(k) for j in range(k))
    size = [abs(a[i]) + sum(abs(S[i][j]) * r[j] for j in range(k)) + e[i] for i in range(n)]
    return keep * form(c, c) - form(a, a) - loss - inexact, high, form(size, size, size=True)


def test_bounds_are_their_definitions_less_what_rounding_may_take() -> None:
    step = two_cells()
    decrease, highest = step.decrease(P2, Interval(np.float64(0.75), np.float64(1.0))), step.highest(P2)
    for b in range(2):
        low, high, size = by_hand(step, b, Fraction(3, 4))
        own = [abs(c) + r for c, r in zip(exactly(step.centre[b]), exactly(step.radius[b]), strict=False)]
        before = sum(abs(Fraction(P2[i, j])) * own[i] * own[j] for i in range(2) for j in range(2))
        assert float(low - Fraction(decrease[b])) == pytest.approx(1.1 * gamma(8 * 2 + 6 * 3 + 100) * float(size + before), rel=0.1, abs=0)
        assert float(Fraction(highest[b]) - high) == pytest.approx(1.1 * gamma(8 * 2 + 6 * 3 + 100) * float(size), rel=0.1, abs=0)


def test_rounding_of_the_level_before_the_step_counts_too() -> None:
    """y+ = 0: what is left is the level on the cell, c'P c = 42 at the centre, whose terms add up to |y|'|P||y| = 112."""
    zero = {"centre_value": (2, 2), "centre_radius": (2, 2), "slope": (2, 2, 3), "slope_radius": (2, 2, 3)}
    step = two_cells(**{name: np.zeros(shape) for name, shape in zero.items()})
    decrease = step.decrease(P2, Interval(np.float64(1.0), np.float64(1.0)))[0]
    assert 42 - 2 * (8 + 2 * 9) - 2 * 2 - decrease == pytest.approx(1.1 * gamma(8 * 2 + 6 * 3 + 100) * 112, rel=0.1, abs=0)


def test_what_rounding_may_take_grows_with_the_dimensions() -> None:
    shape = (1, 12, 18)
    wide = two_cells(slope=np.zeros(shape), slope_radius=np.zeros(shape), radius=np.full((1, 18), 0.5))
    assert wide._lost(np.ones(1))[0] == pytest.approx(1.1 * gamma(8 * 12 + 6 * 18 + 100), rel=1e-12, abs=0)
    assert wide._lost(np.zeros(1))[0] == 2.0**-820 * 10**2


def test_levels_of_a_cell_to_the_last_digit() -> None:
    centre, zero = np.array([[3.0, -2.0]]), np.zeros((1, 2))
    radius = np.array([[1.0, 4.0]])
    assert [v[0] for v in level_range(0 * P2, zero, zero)] == [-(2.0**-820), 2.0**-820]
    (lowest,), (highest,) = level_range(P2, zero, radius)  # of V = 0 at the centre and at most 2 + 2 * 4 + 3 * 16
    slack = 1.1 * gamma(8 * 2 + 100)
    assert lowest == pytest.approx(-slack * 58, rel=1e-12, abs=0) and highest - 58 == pytest.approx(slack * 58, rel=0.1, abs=0)
    (lowest,), (highest,) = level_range(P2, centre, radius)  # V = 18 + 12 + 12, P c = (8, -9), |c| + r = (4, 6)
    assert 42 - 2 * (8 + 36) - lowest == pytest.approx(slack * (32 + 48 + 108), rel=0.2, abs=0)
    assert highest - (42 + 2 * (8 + 36) + 58) == pytest.approx(slack * (32 + 48 + 108), rel=0.2, abs=0)
    (lowest,), (highest,) = level_range(np.eye(12) * 2.0**60, np.ones((1, 12)) * 2.0**-30, np.zeros((1, 12)))
    assert 12 - lowest == pytest.approx(1.1 * gamma(8 * 12 + 100) * 12, rel=0.05, abs=0)


def test_a_step_is_inside_a_box_if_all_of_its_values_are() -> None:
    box = np.array([-1.0, -3.0]), np.array([1.0, 3.0])
    ends = [
        ((-1, -3), (1, 3), True),
        ((0, 0), (0, 0), True),
        ((np.nextafter(-1, -2), 0), (0, 0), False),
        ((0, 0), (0, np.nextafter(3, 4)), False),
        ((0, -4), (0, 3), False),
        ((-1, 0), (2, 0), False),
        ((2, 0), (2, 0), False),
        ((0, -4), (0, -4), False),
        ((0, np.nan), (0, 0), False),
        ((0, 0), (np.nan, 0), False),
    ]
    value = Interval(np.array([low for low, _, _ in ends], float), np.array([high for _, high, _ in ends], float))
    assert two_cells(value=value).inside(*box).tolist() == [holds for _, _, holds in ends]


def shifted_plant(rest: Vector) -> dict[str, Any]:
    """x+ = x* + (1/2, -1/4) (x - x*) + (1, 2) (u0 + 3 u1), around an equilibrium that is not 0."""
    s = Sketch()
    x, u = s.input("state", 2), s.input("action", 2)
    star = s.constant(*rest)
    force = s("add", s("select", u, indices=(0,)), s("mul", s.constant(3), s("select", u, indices=(1,))))
    moved = s("add", star, s("mul", s("sub", x, star), s.constant("1/2", "-1/4")))
    return subject(s.graph(next_state=s("add", moved, s("mul", force, s.constant(1, 2)))), 2, 2, rest=rest)


def test_steps_around_an_equilibrium_that_is_not_zero() -> None:
    """Values are deviations from it; the disturbances of the float32 policy have the plant's columns."""
    rest, bias = (Fraction(5), Fraction(-3)), [0.25, 0.125]
    policy = gain([0.0, 0.0], [0.0, 0.0], bias=bias)
    low, high = np.array([[1.0, -2.0], [0.0, 0.0]]), np.array([[3.0, 2.0], [0.0, 8.0]])
    centre, radius = centre_radius(low, high)
    push = np.array([1, 2]) * (0.25 + 3 * 0.125)
    exact = Interval(np.array([[0.5, -0.5], [0.0, -2.0]]) + push, np.array([[1.5, 0.5], [0.0, 0.0]]) + push)
    steps = {name: Loop(parse_plant(shifted_plant(rest)), policy, name).step(centre, radius, low, high) for name in ("real", "float32")}
    for name, step in steps.items():
        size = np.array([0.0, 0.0]) if name == "real" else step.radius[0, 2:]
        assert name == "real" or ((size > 2.0**-30).all() and (size < 2.0**-20).all())  # of adding the bias
        wide = np.array([1, 2]) * (size[0] + 3 * size[1])
        np.testing.assert_allclose(step.value.low, exact.low - wide, atol=1e-13)
        np.testing.assert_allclose(step.value.high, exact.high + wide, atol=1e-13)
        np.testing.assert_allclose(step.centre_value, np.array([[1.0, 0.0], [0.0, -1.0]]) + push, atol=1e-13)
        assert (step.centre_radius < 1e-13).all() and (step.slope_radius < 1e-13).all()
        columns = [[0.5, 0, 1, 3], [0, -0.25, 2, 6]]
        np.testing.assert_allclose(step.slope[1], np.array(columns)[:, : 2 if name == "real" else 4], atol=1e-13)
    np.testing.assert_array_equal(steps["float32"].radius[:, :2], radius)
    assert (steps["float32"].radius[0] == steps["float32"].radius[1])[2:].all()


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_slopes_across_a_clip_are_intervals_in_both_readings(arithmetic: str) -> None:
    """x+ = x/2 + 4 clip(x, -1, 1) on [0, 2]: slopes from 1/2 to 9/2."""
    policy = gain([1.0], low=-1, high=1)
    low, high = np.zeros((1, 1)), np.full((1, 1), 2.0)
    step = Loop(parse_plant(linear_plant([["1/2"]], [[4]], limit=9)), policy, arithmetic).step(*centre_radius(low, high), low, high)
    ends = step.slope - step.slope_radius, step.slope + step.slope_radius
    np.testing.assert_allclose([end[0, 0, 0] for end in ends], [0.5, 4.5], atol=1e-14)


def test_a_constant_policy_is_disturbed_too() -> None:
    """float32 misses 1/3 by up to 2^-25; without a slope of its own the action still moves with that error."""
    s = Sketch()
    s.input("observation", 1)
    policy = s.graph(action=s.constant(Fraction(1, 3)))
    y = np.full((1, 1), 2.0)
    step = Loop(parse_plant(linear_plant([["1/2"]], [[4]])), policy, "float32").step(y, 0 * y, y, y)
    miss = step.radius[0, 1]
    assert abs(Fraction(float(np.float32(1 / 3))) - Fraction(1, 3)) <= Fraction(miss) and miss < 2.0**-24
    np.testing.assert_allclose(step.slope, [[[0.5, 4.0]]], atol=1e-15)
    assert step.value.high[0, 0] - step.value.low[0, 0] == pytest.approx(8 * miss, rel=1e-6, abs=0)
