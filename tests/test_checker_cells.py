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
