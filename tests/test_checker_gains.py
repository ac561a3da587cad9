"""Gains of interval matrices against exact values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipctrl.certificates.checker import definite
from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.intervals import UNIT, Interval
from lipctrl.certificates.checker.jacobian import gain_is_at_most, quick_gains, row_gains, scaled

F = Fraction


def exactly(*rows):
    return iv.point(np.array(rows, dtype=float))


def batch(*matrices):
    return iv.point(np.array(matrices, dtype=float))


def test_matrices_are_scaled_on_both_sides():
    """S_out A S_in^-1 of one cell of two, entry by entry, for slopes and scales that are intervals."""
    low = np.array([[[1.0, 2, -3], [0, 0, 1]], [[-4.0, 5, 6], [7, 0, 2]]])  # (n_in, B, n_out) = (2, 2, 3)
    slope = Interval(low, low + 0.5)
    scale_in, scale_out = (iv.from_fractions(tuple(map(F, part))) for part in (("1/3", "7"), ("1/10", "2", "1/7")))
    found = scaled(slope, scale_in, scale_out)
    assert found.low.shape == found.high.shape == (2, 3, 2)
    for b in range(2):
        for i, out in enumerate((F(1, 10), F(2), F(1, 7))):
            for j, into in enumerate((F(1, 3), F(7))):
                ends = F(slope.low[j, b, i]) * out / into, F(slope.high[j, b, i]) * out / into
                room = F(1e-14) * (1 + max(map(abs, ends)))
                assert ends[0] - room <= F(found.low[b, i, j]) <= ends[0]
                assert ends[1] <= F(found.high[b, i, j]) <= ends[1] + room


def test_scales_are_intervals_too():
    wide = scaled(iv.point(np.ones((1, 1, 1))), Interval(np.array([2.0]), np.array([4.0])), Interval(np.array([3.0]), np.array([5.0])))
    assert 0.75 - 1e-15 <= wide.low[0, 0, 0] <= 0.75 and 2.5 <= wide.high[0, 0, 0] <= 2.5 + 2e-15


def test_row_gains_are_the_greatest_row_sums():
    found = row_gains(batch([[1, -2], [3, 0.5], [1, 1]], [[-4, -4], [3, 0], [0, 7]]))
    assert found.shape == (2,) and (found >= [3.5, 8]).all() and (found <= np.array([3.5, 8]) * (1 + 1e-13)).all()
    assert row_gains(Interval(np.array([[[-3.0, 0]]]), np.array([[[1.0, 5]]]))) == pytest.approx(8, rel=1e-13)


def test_quick_gains_are_exact_for_a_row_or_a_column_and_the_lesser_of_two_norms():
    for matrices, norms in (
        (batch([[3, -4]], [[5, 12]]), [5, 13]),
        (batch([[3], [-4]], [[5], [12]]), [5, 13]),
        (batch(np.eye(3), np.zeros((3, 3))), [1, 0]),
        (batch([[4, 0, 1], [0, 5, 0]]), [26**0.5]),  # by rows and columns: sqrt(5 * 5)
    ):
        found = quick_gains(matrices)
        assert found.shape == (len(norms),)
        assert (found <= np.array(norms) * (1 + 1e-13)).all()
    assert quick_gains(batch([[3, -4]])) >= 5 and quick_gains(batch([[8, 0, 0, 1], [0, 2, 6, 0]])) == pytest.approx(72**0.5, rel=1e-13)
    assert quick_gains(batch([[1, 2, 0], [2, 5, 1]])) == pytest.approx(35**0.5, rel=1e-13)


def test_zeros_have_no_gain_and_what_underflows_has():
    tiny = 2.0**-540
    for gains in (row_gains, quick_gains):
        found = gains(batch([[0, 0], [0, 0]], [[0, tiny], [0, 0]], [[tiny, tiny], [tiny, tiny]]))
        assert found[0] == 0 and (found[1:] >= 2 * tiny).all() and (found[1:] < 2.0**-499).all()
    assert quick_gains(batch([[2.0**-560]])) >= 2.0**-560


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (16, 16), (1, 256), (256, 1)])
def test_gains_leave_room_for_any_order_of_summation(shape):
    count = shape[0] * shape[1]
    ones = batch(np.ones(shape))
    assert F(row_gains(ones)[0]) >= shape[1] * (1 + F(count * UNIT))
    assert F(quick_gains(ones)[0]) ** 2 >= count * (1 + F(count * UNIT))


@pytest.mark.parametrize("seed", range(3))
def test_row_gains_are_not_below_exact_sums(seed):
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((5, 40)) * 10.0 ** generator.integers(-12, 12, (5, 40))
    exact = max(sum(abs(F(v)) for v in row) for row in matrix.tolist())
    assert exact <= F(row_gains(iv.point(matrix[None]))[0]) <= exact * (1 + F(1e-12))
    column = generator.standard_normal((30, 1))
    square = sum(F(v) ** 2 for v in column[:, 0].tolist())
    assert square <= F(quick_gains(iv.point(column[None]))[0]) ** 2 <= square * (1 + F(1e-12))


# --- proofs of one gain -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "gain"),
    [
        (exactly([3, 0], [0, -4]), 4.0),
        (exactly([1, 1], [1, -1]), 2**0.5),  # its absolute values: 2
        (exactly([3, 4]), 5.0),
        (exactly([3], [4]), 5.0),
        (exactly([1, 2, 2], [0, 0, 0]), 3.0),
        (exactly([0.25, 0], [0, 0.125], [0, 0]), 0.25),
        (Interval(-np.array([[2.0, 1], [1, 1]]), np.array([[2.0, 1], [1, 1]])), (3 + 5**0.5) / 2),  # by absolute values only
        (Interval(np.array([[1.0, 1], [1, -1]]) - 2.0**-40, np.array([[1.0, 1], [1, -1]]) + 2.0**-40), 2**0.5 + 2.0**-39),
    ],
)
def test_gains_are_proved_above_the_norm_and_not_below(matrix, gain):
    assert gain_is_at_most(matrix, gain * (1 + 1e-11)) is True
    assert gain_is_at_most(matrix, gain * (1 - 1e-11)) is False


def test_the_radius_counts():
    """A wide interval around little: both proofs must see what the radius adds."""
    matrix = Interval(np.array([[-0.9, -1], [-1, -0.9]]), np.array([[1.1, 1], [1, 1.1]]))
    assert not gain_is_at_most(matrix, 2.05) and gain_is_at_most(matrix, 2.1 + 1e-9)
    assert not gain_is_at_most(Interval(np.full((2, 2), -0.9), np.full((2, 2), 1.1)), 0.5)  # bound - spread is negative, its square large


def test_nothing_is_at_most_a_bound_that_is_not_positive():
    for bound in (-5.0, 0.0, np.nan):
        assert gain_is_at_most(exactly([3, 0], [0, 4]), bound) is False


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf, 2.0**201])
def test_what_is_not_finite_or_out_of_range_is_not_proved(entry):
    """The bound would be right for the last one, but float64 proofs are not made for such numbers."""
    with np.errstate(all="ignore"):
        assert gain_is_at_most(exactly([1, entry], [0, 1]), 2.0**190) is False
        assert gain_is_at_most(exactly([entry]), 2.0**190) is False


@pytest.mark.parametrize("entry", [2.0**-149, 2.0**-151, -(2.0**-201), 5e-324])
def test_tiny_entries_count_as_errors(entry):
    assert gain_is_at_most(exactly([1, entry], [0, 1]), 1 + 1e-9) and not gain_is_at_most(exactly([1, entry], [0, 1]), 1 - 1e-9)
    around_zero = Interval(np.array([[-1.0, -abs(entry)], [0, -1]]), np.array([[1.0, abs(entry)], [1, 1]]))
    golden = (1 + 5**0.5) / 2
    assert gain_is_at_most(around_zero, golden * (1 + 1e-9)) and not gain_is_at_most(around_zero, golden * (1 - 1e-9))
    assert gain_is_at_most(exactly([entry, 0], [0, entry]), 2.0**-140) and not gain_is_at_most(exactly([entry], [0]), abs(entry) / 2)


def test_the_smaller_side_is_judged(monkeypatch):
    monkeypatch.setattr(definite, "MAX_ORDER", 2)
    assert gain_is_at_most(exactly([3, 4, 0, 0], [0, 0, 1, 0]), 5.0001) and gain_is_at_most(exactly([3, 0], [4, 0], [0, 1]), 5.0001)
