"""Gains of families of matrices, and of expansions: against members of the families, pairs of points, and attacks."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker import jacobian as module
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.jacobian import Family, family_gains, family_row_sums, gain_is_at_most, gain_of, nonnegative_gains

F = Fraction


pytestmark = pytest.mark.usefixtures("quiet")


# --- families -----------------------------------------------------------------------------------------------------------------------


def spread_of(*radii: float) -> Any:
    """Of the box |d_k| <= radii_k, for arrays (k, B, e)."""

    def spread(size: Any) -> Any:
        assert size.ndim == 3
        return np.tensordot(np.array(radii), size, 1) * (1 + 1e-14)

    return spread


def family(centre: Any, parts: Any, error: Any, *radii: float) -> Family:
    centre, error = np.array(centre, float)[None], np.array(error, float)[None]
    return Family(iv.point(centre), None if parts is None else iv.point(np.array(parts, float)[:, None]), error, spread_of(*radii))


def members(random: Any, one: Family, radii: Any, count: int) -> Any:
    """Matrices of a family: corners of the box with errors of any signs, and others."""
    for i in range(count):
        share = random.choice([-1.0, 1.0], len(radii)) if i % 2 else random.uniform(-1, 1, len(radii))
        sign = random.choice([-1.0, 1.0], one.error[0].shape)
        yield one.centre.low[0] + np.tensordot(share * radii, one.parts.low[:, 0], 1) + sign * one.error[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 3), (5, 5), (6, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_members_have_no_greater_gain(shape: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    k, radii = 3, random.random(3) * 10.0 ** random.integers(-3, 1)
    one = family(random.standard_normal(shape), random.standard_normal((k, *shape)), 0.1 * random.random(shape), *radii)
    gain, rows = family_gains(one)[0], family_row_sums(one, hull(one))[0]
    for matrix in members(random, one, radii, 60):
        assert np.linalg.norm(matrix, 2) <= gain and (np.abs(matrix).sum(1) <= rows).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (4, 2)])
@pytest.mark.parametrize("affine", [False, True])
def test_members_that_are_quadratic_in_d_have_no_greater_gain(shape: Any, affine: bool) -> None:
    random, k = np.random.default_rng(7), 3
    radii = random.random(k)
    plain = family(random.standard_normal(shape), random.standard_normal((k, *shape)) if affine else None, np.zeros(shape), *radii)
    curves = random.standard_normal((k, k, 1, *shape))
    one = dataclasses.replace(plain, curves=iv.point(curves))
    gain, rows = family_gains(one)[0], family_row_sums(one, hull(one))[0]
    best, most = 0.0, np.zeros(shape[0])
    for i in range(200):
        d = radii * (random.choice([-1.0, 1.0], k) if i % 2 else random.uniform(-1, 1, k))
        matrix = one.centre.low[0] + 0.5 * np.einsum("i,j,ij...->...", d, d, curves[:, :, 0])
        if one.parts is not None:
            matrix = matrix + np.tensordot(d, one.parts.low[:, 0], 1)
        assert np.linalg.norm(matrix, 2) <= gain and (np.abs(matrix).sum(1) <= rows).all()
        best, most = max(best, float(np.linalg.norm(matrix, 2))), np.maximum(most, np.abs(matrix).sum(1))
    assert gain < 2.5 * best and (rows < 2.5 * most + 1).all()


def test_quadratic_parts_by_hand() -> None:
    """2 + d / 4 + (3 d d - d e + 5 e e) / 2 for |d| <= 1/2 and |e| <= 2, and intervals at their worse ends."""
    curves = np.array([[3.0, -1], [0, 5]]).reshape(2, 2, 1, 1, 1)
    one = dataclasses.replace(family([[2]], [[[0.25]], [[0]]], [[0]], 0.5, 2.0), curves=iv.point(curves))
    assert family_gains(one)[0] == pytest.approx(2 + 0.125 + 0.5 * (0.75 + 1 + 20), rel=1e-12)
    assert family_row_sums(one, iv.point(np.ones((1, 1, 1))))[0, 0] == pytest.approx(2 + 0.125 + 0.5 * (0.75 + 1 + 20), rel=1e-12)
    assert one.most()[0, 0, 0] == pytest.approx(0.125 + 0.5 * (0.75 + 1 + 20), rel=1e-12)
    assert one.most(lambda x: Interval(3 * x.low, 3 * x.high))[0, 0, 0] == pytest.approx(3 * (0.125 + 0.5 * (0.75 + 1 + 20)), rel=1e-12)
    for low, high in ((0, 1), (-1, 0)):
        wide = dataclasses.replace(one, curves=Interval(curves + low, curves + high))
        across = max(3 + high, -3 - low) * 0.25 + max(1 - low, high - 1) + max(high, -low) + (5 + high) * 4
        assert wide.most()[0, 0, 0] == pytest.approx(0.125 + 0.5 * across, rel=1e-12)


def test_quadratic_parts_of_several_families() -> None:
    """Each with its own: d d b / 2 for b = 0, 1, 2 and |d| <= 1/2."""
    centre = iv.point(np.ones((3, 1, 2)))
    curves = np.zeros((1, 1, 3, 1, 2))
    curves[0, 0, :, 0, 0] = range(3)
    several = Family(centre, None, np.zeros((3, 1, 2)), spread_of(0.5), iv.point(curves))
    assert np.allclose(several.most()[:, 0], [[0, 0], [0.125, 0], [0.25, 0]])


def hull(one: Family) -> Interval:
    reach = one.error + one.most()
    return Interval(one.centre.low - reach, one.centre.high + reach)


def test_gains_of_families_by_hand() -> None:
    assert family_gains(family([[2]], [[[1]]], [[0.25]], 0.5))[0] == pytest.approx(2.75, rel=1e-12)
    assert family_gains(family([[3, 4]], None, [[0, 0]]))[0] == pytest.approx(5, rel=1e-12)
    assert family_gains(family([[0, 0], [0, 0]], None, [[3, 0], [0, 4]]))[0] == pytest.approx(4, rel=1e-9)
    # across the singular vector a deviation counts in second order only
    across = family_gains(family([[1, 0]], [[[0, 1]]], [[0, 0]], 1e-3))[0]
    assert 1 + 4.9e-7 < across < 1 + 5.1e-7
    # two deviations that cancel along it
    assert family_gains(family([[1, 1]], [[[1, -1]]], [[0, 0]], 1e-3))[0] == pytest.approx(2**0.5 * (1 + 0.5e-6), rel=1e-8)
    assert family_row_sums(family([[1, 1]], [[[1, -1]]], [[0, 0]], 1e-3), Interval(*2 * (np.ones((1, 1, 2)),)))[0, 0] == pytest.approx(2)


def test_several_families_keep_to_themselves() -> None:
    """Diagonal matrices diag(b, 1) with b = 1, 2, 3 that move by d b, |d| <= 1/4, and errors of 1 / b."""
    steps = np.arange(1.0, 4)[:, None, None] * np.diag([1.0, 0.0])
    several = Family(
        iv.point(steps + np.diag([0.0, 1.0])), iv.point(steps[None]), np.diag([1.0, 0]) / np.arange(1.0, 4)[:, None, None], spread_of(0.25)
    )
    assert family_gains(several) == pytest.approx([2.25, 3, 3.75 + 1 / 3], rel=1e-9)
    rows = family_row_sums(several, several.centre)
    assert rows[:, 0] == pytest.approx([2.25, 3, 3.75 + 1 / 3], rel=1e-9) and rows[:, 1] == pytest.approx(1)


def test_rows_with_entries_of_unknown_sign() -> None:
    one = family([[1, 0.1, -2]], [[[0.5, 0.5, 0.5]]], [[0.1, 0.2, 0.3]], 1.0)
    found = family_row_sums(one, hull(one))[0, 0]  # 1 + 2 + |0.5 - 0.5| + 0.1 + 0.3, and 0.1 + 0.5 + 0.2 for the one in the middle
    assert found == pytest.approx(3.4 + 0.8, rel=1e-12)


@pytest.mark.parametrize("factor", [1.001, 0.9, 0.5])
def test_bases_that_are_not_orthogonal_only_cost(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    random, svd = np.random.default_rng(0), np.linalg.svd

    def crooked(matrix: Any) -> Any:
        u, s, v = svd(matrix)
        return factor * u + 1e-3 * random.standard_normal(u.shape), s, factor * v + 1e-3 * random.standard_normal(v.shape)

    one = family(random.standard_normal((4, 3)), None, np.zeros((4, 3)))
    monkeypatch.setattr(np.linalg, "svd", crooked)
    gain = family_gains(one)[0]
    assert not gain < np.linalg.norm(one.centre.low[0], 2)


def test_what_is_not_finite_has_no_gain() -> None:
    for value in (np.nan, np.inf):
        bad = np.array([[[1.0, value], [0, 1]]])
        good, zero = iv.point(np.ones((1, 2, 2))), np.zeros((1, 2, 2))
        for one in (
            Family(iv.point(bad), None, zero, spread_of()),
            Family(good, iv.point(bad[None]), zero, spread_of(1.0)),
            Family(good, None, bad, spread_of()),
        ):
            assert not family_gains(one)[0] < np.inf
            assert not family_row_sums(one, good).max() < np.inf
        assert not gain_of(iv.point(bad[0])) < np.inf and not nonnegative_gains(bad)[0] < np.inf
    for lost in (np.full((2, 2), np.nan), np.array([[1, np.nan], [0, 1]])):
        two = np.stack([lost, np.eye(2)])  # others are not spoilt
        assert family_gains(Family(iv.point(two), None, np.zeros_like(two), spread_of()))[1] == pytest.approx(1)


def test_a_failure_of_the_factorisation_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise np.linalg.LinAlgError

    monkeypatch.setattr(np.linalg, "svd", fail)
    assert family_gains(family([[1]], None, [[0]]))[0] == np.inf


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60)
def test_gains_of_matrices_without_negative_entries(seed: int, m: int, n: int) -> None:
    random = np.random.default_rng(seed)
    size = random.random((3, m, n)) * 10.0 ** random.integers(-3, 3, (3, m, n)) * (random.random((3, m, n)) < 0.7)
    exact = np.linalg.norm(size, 2, axis=(1, 2))
    found = nonnegative_gains(size)
    assert (found >= exact * (1 - 1e-14)).all() and (found <= 1.2 * exact + 1e-100).all()


def test_the_vector_of_a_matrix_of_rank_one_is_found_at_once() -> None:
    x = np.array([1, 0.4, 0.4, 0.3])
    assert nonnegative_gains(np.outer(x, x)[None])[0] == pytest.approx(x @ x, rel=1e-12)


def test_small_numbers_and_zeros_have_gains() -> None:
    assert nonnegative_gains(np.zeros((1, 3, 2)))[0] == 0
    assert nonnegative_gains(np.full((1, 1, 1), 2.0**-560))[0] >= 2.0**-560
    assert gain_of(iv.point(np.full((1, 1), 2.0**-560))) >= 2.0**-560
    assert gain_of(Interval(np.array([[-1.0, 2]]), np.array([[1.0, 4]]))) >= 17**0.5  # (1, 4)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 5), (5, 1), (6, 6)])
def test_gains_of_single_matrices(shape: Any) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape)
    exact = np.linalg.norm(matrix, 2)
    assert exact * (1 - 1e-14) <= gain_of(iv.point(matrix)) <= exact * (1 + 1e-9)
    radius = 1e-3 * np.ones(shape)
    assert gain_of(Interval(matrix - radius, matrix + radius)) >= np.linalg.norm(matrix + 1e-3 * np.sign(matrix), 2)


def test_products_leave_room_for_roundings() -> None:
    random = np.random.default_rng(2)
    left, x = random.standard_normal((3, 7)), random.standard_normal((7, 2))
    found = module._product(left, iv.point(x))
    for i, j in itertools.product(range(3), range(2)):
        exact = sum(F(float(left[i, k])) * F(float(x[k, j])) for k in range(7))
        assert F(float(found.low[i, j])) < exact < F(float(found.high[i, j])) and found.high[i, j] - found.low[i, j] < 1e-13


def test_products_lose_what_their_bound_says() -> None:
    """Zero centres and rows that cancel leave the radius alone, which is the formula's and 16 roundings of reserve."""
    g, u = F(iv.gamma(2 * 2 + 16)), F(1, 2**53)
    for low, high, expected in ((3, 3, 6 * g), (2, 4, 2 * (1 + 4 * g))):
        y = module._product(np.array([[[1.0, -1.0]]]), Interval(np.full((2, 1), float(low)), np.full((2, 1), float(high))))
        assert y.high[0, 0, 0] == -y.low[0, 0, 0]
        assert expected * (1 + 10 * u) <= F(float(y.high[0, 0, 0])) <= expected * (1 + 26 * u)
    zero = module._product(np.zeros((1, 1, 3)), iv.point(np.zeros((3, 1))))
    assert 5 * 2.0**-1070 <= zero.high[0, 0, 0] == -zero.low[0, 0, 0] <= 5.5 * 2.0**-1070


@pytest.mark.parametrize(("low", "high"), [(-3, 1), (-1, 3), (2, 3)])
def test_matrices_that_are_not_known_exactly_count_at_their_worst(low: float, high: float) -> None:
    wide, known = Interval(np.full((1, 1, 1), float(low)), np.full((1, 1, 1), float(high))), iv.point(np.full((1, 1, 1), 7.0))
    zero = np.zeros((1, 1, 1))
    assert family_gains(Family(wide, None, zero, spread_of()))[0] == pytest.approx(3, rel=1e-9)
    moving = Family(known, Interval(wide.low[None], wide.high[None]), zero, spread_of(2.0))
    assert family_gains(moving)[0] == pytest.approx(7 + 6, rel=1e-9)
    assert family_row_sums(moving, known)[0, 0] == pytest.approx(7 + 6, rel=1e-9)
    assert gain_of(Interval(wide.low[0], wide.high[0])) == pytest.approx(3, rel=1e-9)


def test_signed_sums_lose_what_their_bound_says() -> None:
    g, u = F(iv.gamma(2 + 8)), F(1, 2**53)
    for low, high, expected in ((3, 3, 6 * g), (2, 4, 2 * (1 + 4 * g))):
        x = Interval(np.full((1, 1, 2), float(low)), np.full((1, 1, 2), float(high)))
        y = module._signed_sum(np.array([[[1.0, -1.0]]]), x)
        assert y.high[0, 0] == -y.low[0, 0]
        assert expected * (1 + 30 * u) <= F(float(y.high[0, 0])) <= expected * (1 + 50 * u)


def test_nothing_is_taken_from_a_row_sum() -> None:
    zero = iv.point(np.zeros((1, 1, 1)))
    assert family_row_sums(Family(zero, None, np.full((1, 1, 1), 2.0**-510), spread_of()), iv.point(np.ones((1, 1, 1))))[0, 0] >= 2.0**-510


def test_a_basis_that_is_too_short_costs_no_less_than_its_length() -> None:
    for length in (0.5, 0.75, 0.875):
        for basis in (np.array([[length]]), np.diag([1.0, length]), np.diag([length, 1])):
            assert F(float(module._defect(basis))) >= 1 / F(length)


def test_a_square_is_not_known_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    row, seen = np.full((1, 1000), 0.7), []
    monkeypatch.setattr(module, "family_gains", lambda family: seen.append(family.centre) or family_gains(family))
    gain = gain_of(iv.point(row))
    exact = 1000 * F(0.7) ** 2
    assert F(float(seen[0].low[0, 0, 0])) < exact < F(float(seen[0].high[0, 0, 0])) and F(gain) ** 2 >= exact


def test_entries_near_zero_are_zero_for_the_exact_proof() -> None:
    golden = iv.point(np.array([[1.0, -1], [1, 0]]))  # where 1 stands for 0 the gain is the root of 2
    assert not gain_is_at_most(golden, 1.5) and gain_is_at_most(golden, 1.6181)
