"""Verified definiteness and norms: nothing false is accepted, and what has room for rounding is accepted."""

import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx, fmpq, fmpq_mat
from hypothesis import given
from hypothesis import strategies as st

from lipctrl.certificates.checker.definite import (
    LEAST_MONOMIAL,
    MAX_ORDER,
    Counted,
    OutOfRange,
    _residual_dominates,
    _unit_diagonal_scale,
    balls,
    exact,
    is_definite_in_balls,
    is_semidefinite,
    is_semidefinite_within,
    norm_upper_bound,
    require_ieee_products,
    stack,
    symmetric,
)
from lipctrl.certificates.checker.intervals import UnsafeArithmetic

seeds = st.integers(0, 2**32 - 1)


def rational_matrix(matrix: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(float(v)) for v in row] for row in matrix]


def is_psd_exactly(rows: list[list[Fraction]]) -> bool:
    """LDL^T over the rationals; a zero pivot needs a zero row."""
    rows = [list(row) for row in rows]
    n = len(rows)
    for k in range(n):
        pivot = rows[k][k]
        if pivot < 0 or (pivot == 0 and any(rows[i][k] for i in range(k + 1, n))):
            return False
        for i in range(k + 1, n):
            if pivot:
                factor = rows[i][k] / pivot
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return True


def spectrum(generator: np.random.Generator, values: np.ndarray) -> np.ndarray:
    q = np.linalg.qr(generator.standard_normal((len(values), len(values))))[0]
    matrix = (q * values) @ q.T
    return (matrix + matrix.T) / 2


def test_accepts_what_has_room_and_refuses_what_is_indefinite():
    generator = np.random.default_rng(0)
    for n in (1, 2, 7, 40, 145):
        values = np.linspace(1e-9, 1.0, n)
        good, bad = spectrum(generator, values), spectrum(generator, np.append(values[1:], -1e-12) if n > 1 else np.array([-1e-12]))
        assert is_semidefinite_within(good, np.zeros((n, n)))
        assert not is_semidefinite_within(bad, np.zeros((n, n)))
        assert not is_semidefinite_within(good, np.full((n, n), 2e-9))


def test_singular_matrices_are_never_proved():
    assert not is_semidefinite_within(np.ones((2, 2)), np.zeros((2, 2)))
    assert not is_semidefinite_within(np.zeros((3, 3)), np.zeros((3, 3)))
    assert is_semidefinite_within(np.ones((2, 2)) + 1e-9 * np.eye(2), np.zeros((2, 2)))


@given(seeds, st.integers(1, 6), st.floats(-17, -10), st.floats(-40, 40))
def test_nothing_accepted_is_false(seed, n, margin, scale):
    """Hostile matrices: nearly singular, badly scaled, either sign of the smallest eigenvalue."""
    generator = np.random.default_rng(seed)
    values = np.append(generator.uniform(0, 1, n - 1), generator.choice([-1, 1]) * 10.0**margin)
    d = 2.0 ** np.rint(generator.uniform(-abs(scale), abs(scale), n))
    matrix = spectrum(generator, values) * d[:, None] * d
    if is_semidefinite_within(matrix, np.zeros((n, n))):
        assert is_psd_exactly(rational_matrix(matrix))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (2, 2)])
def test_what_is_not_finite_is_refused(value, place):
    matrix = 4 * np.eye(3)
    radius = np.zeros((3, 3))
    assert is_semidefinite_within(matrix, radius)
    for target in (matrix, radius):
        kept = target[place]
        target[place] = value
        assert not is_semidefinite_within(matrix, radius)
        target[place] = kept


def test_negative_radius_and_huge_orders_are_refused():
    assert not is_semidefinite_within(np.eye(2), -np.eye(2))
    with pytest.raises(OutOfRange, match=str(MAX_ORDER)):
        is_semidefinite_within(np.broadcast_to(1.0, (MAX_ORDER + 1, MAX_ORDER + 1)), np.zeros((1, 1)))


def test_a_bogus_factor_changes_nothing(monkeypatch):
    """The proof is the residual, not the routine that supplied the factor."""
    generator = np.random.default_rng(1)
    bad = spectrum(generator, np.array([1.0, 0.5, -1e-6]))
    for factor in (np.eye(3), np.full((3, 3), np.nan), np.full((3, 3), np.inf), generator.standard_normal((3, 3))):
        monkeypatch.setattr(np.linalg, "cholesky", lambda matrix, factor=factor: factor)
        assert not is_semidefinite_within(bad, np.zeros((3, 3)))


U = 2.0**-53


@pytest.mark.parametrize(
    ("matrix", "factor", "radius", "accepted"),
    [
        # one row: (n + 8) u |L|^2, and 1 % of it, must be left
        ([[1 + 8 * U]], [[1]], [0], False),
        ([[1 + 10 * U]], [[1]], [0], True),
        # the radius comes on top
        ([[1 + 28 * U]], [[1]], [20 * U], False),
        ([[1 + 30 * U]], [[1]], [20 * U], True),
        # so do off-diagonal entries of the residual, in both rows that they belong to
        ([[1 + 110 * U, 100 * U], [100 * U, 2]], np.eye(2), [0, 0], False),
        ([[2, 100 * U], [100 * U, 1 + 110 * U]], np.eye(2), [0, 0], False),
        ([[1 + 112 * U, 100 * U], [100 * U, 1 + 112 * U]], np.eye(2), [0, 0], True),
        ([[1 + 112 * U, 0], [-100 * U, 1 + 112 * U]], np.eye(2), [0, 0], True),
        # the size of the product that was rounded: |L| |L|^T 1 is (2, 3)
        ([[1 + 20 * U, 1], [1, 3]], [[1, 0], [1, 1]], [0, 0], False),
        ([[1 + 22 * U, 1], [1, 3]], [[1, 0], [1, 1]], [0, 0], True),
        ([[2, 1], [1, 2 + 28 * U]], [[1, 0], [1, 1]], [0, 0], False),
        ([[2, 1], [1, 2 + 32 * U]], [[1, 0], [1, 1]], [0, 0], True),
        # the rounding of the residual itself, and of the sums: 26 u below the diagonal
        ([[1, 1 - 24 * U], [1 - 24 * U, 1]], np.zeros((2, 2)), [0, 0], False),
        ([[1, 1 - 28 * U], [1 - 28 * U, 1]], np.zeros((2, 2)), [0, 0], True),
        # many rows: 58 u
        ((1 + 58 * U) * np.eye(50), np.eye(50), np.zeros(50), False),
        ((1 + 60 * U) * np.eye(50), np.eye(50), np.zeros(50), True),
        # underflow: n^2 2^-500 is always asked for
        ([[0.99 * 2.0**-500]], [[0]], [0], False),
        ([[1.01 * 2.0**-500]], [[0]], [0], True),
        (3.99 * 2.0**-500 * np.eye(2), np.zeros((2, 2)), [0, 0], False),
        (4.01 * 2.0**-500 * np.eye(2), np.zeros((2, 2)), [0, 0], True),
        ([[math.nan]], [[1]], [0], False),
        ([[4]], [[math.inf]], [0], False),
        ([[4]], [[1]], [math.inf], False),
    ],
)
def test_the_criterion_asks_for_every_rounding(matrix, factor, radius, accepted):
    """Numbers whose products are exact, so that the threshold is known to a unit in the last place."""
    arrays = (np.array(values, dtype=np.float64) for values in (matrix, factor, radius))
    with np.errstate(invalid="ignore"):
        assert _residual_dominates(*arrays) is accepted


def test_scales_bring_the_diagonal_near_one():
    """Powers of two, for positive diagonals between 2^-500 and 2^500 alone."""
    least, greatest = 2.0**-500, 2.0**500
    diagonal = [1, 4, 0.25, 1.9, 3, greatest, least]
    assert _unit_diagonal_scale(np.diag(diagonal)).tolist() == [1, 0.5, 2, 1, 0.5, 2.0**-250, 2.0**250]
    for bad in (0, -1, math.nan, math.inf, -math.inf, np.nextafter(greatest, math.inf), np.nextafter(least, 0)):
        assert _unit_diagonal_scale(np.diag([1, bad])) is None
        assert not is_semidefinite_within(np.diag([1, bad]), np.zeros((2, 2)))
        assert not is_semidefinite_within(np.diag([bad, 1]), np.zeros((2, 2)))


@pytest.mark.parametrize("inverse", ["raises", np.nan, np.inf, 0.0])
def test_a_bogus_inverse_proves_nothing_in_balls(monkeypatch, inverse):
    def bogus(matrix):
        if inverse == "raises":
            raise np.linalg.LinAlgError
        return np.full(matrix.shape, inverse)

    monkeypatch.setattr(np.linalg, "inv", bogus)
    assert not is_definite_in_balls(balls(np.eye(2)))


def test_balls_refuse_what_has_no_factor():
    assert not is_definite_in_balls(balls(-np.eye(2)))
    assert not is_definite_in_balls(balls(np.array([[1.0, 2.0], [2.0, 1.0]])))
    undefined = balls(np.eye(2))
    undefined[0, 1] = undefined[1, 0] = arb.nan()
    assert not is_definite_in_balls(undefined)
    wide = balls(np.eye(2))
    wide[1, 1] = arb(1, 2)
    assert not is_definite_in_balls(wide)


@given(seeds)
def test_counted_roundings_bound_the_error(seed):
    """A polynomial in random matrices, in floats with counting, against the same over the rationals."""
    generator = np.random.default_rng(seed)
    leaves = [generator.standard_normal((3, 3)) * 10.0 ** generator.integers(-9, 9, (3, 3)) for _ in range(4)]
    vector = generator.standard_normal(3) * 10.0 ** generator.integers(-5, 5, 3)

    def expression(lift):
        a, b, c, d = (lift(leaf) for leaf in leaves)
        v = lift(vector)
        return (a @ b - c * d) @ (v[:, None] * a).T + (-(c / lift(np.array([3.0])))) * d

    def fractions(values):
        result = np.empty(values.shape, dtype=object)
        result.ravel()[:] = [Fraction(float(x)) for x in values.ravel()]
        return result

    counted, truth = expression(exact), expression(fractions)
    error = np.array([[abs(Fraction(float(x)) - y) for x, y in zip(r, s, strict=True)] for r, s in zip(counted.value, truth, strict=True)])
    assert (error <= fractions(counted.radius())).all()
    with ctx.workprec(128):
        enclosures = expression(balls).ravel()
    with ctx.workprec(2000):
        assert all(t.contains(arb(fmpq(y.numerator, y.denominator))) for t, y in zip(enclosures, truth.ravel(), strict=True))


def test_roundings_and_least_monomials_are_counted():
    """One rounding for each operation, one for each term of a product; sums take the larger count and the lesser monomial."""
    a, b = exact(np.array([[2.0, -0.5, 0.0]])), exact(np.array([[4.0], [8.0], [0.25]]))
    row = exact(np.array([3.0, 5.0, 7.0]))
    expected = [
        (a, 0, 0.5),
        (b, 0, 0.25),
        (exact(np.zeros(2)), 0, 2.0**200),
        (-a, 0, 0.5),
        (a.T, 0, 0.5),
        (a[0], 0, 0.5),
        (a + row, 1, 0.5),
        (row - a, 1, 0.5),
        (a * row, 1, 1.5),
        (a * row * row, 2, 4.5),
        (row * (a * row), 2, 4.5),
        (row * (a * row) + a, 3, 0.5),
        (a - row * (a * row), 3, 0.5),
        (a @ b, 3, 0.125),
        ((a * row) @ b, 4, 0.375),
        (a @ (b * b), 4, 0.03125),
        ((a * row) @ (b * b), 5, 0.09375),
        (a / row, 1, 0.5 / 7),
        ((a * row) / row, 2, 1.5 / 7),
        (a / exact(np.array([0.5, 0.25, 0.5])), 1, 0.5),
        (exact(np.ones((2, 1, 3))) @ exact(np.ones((2, 3, 4))), 3, 1.0),
        (stack([a, a * row]), 1, 0.5),
        (stack([a]), 0, 0.5),
        (stack([a * row * row, row[None]]), 2, 3.0),
        (symmetric({(0, 0): exact(np.eye(1)), (1, 0): b @ a[:, :1], (1, 1): exact(2.0**-9 * np.eye(3))}, [1, 3]), 1, 2.0**-9),
        (symmetric({(0, 0): exact(np.eye(1)) * exact(np.ones(1)), (1, 1): exact(2.0**9 * np.eye(3))}, [1, 3]), 1, 1.0),
    ]
    for counted, count, least in expected:
        assert (counted.count, counted.least) == (count, pytest.approx(least, rel=1e-15))
    assert np.array_equal((a - row).magnitude, [[5, 5.5, 7]]) and np.array_equal((a @ b).magnitude, [[12]])
    assert np.array_equal((a / row).magnitude, [[2 / 3, 0.5 / 5, 0]]) and np.array_equal((a / row).value, [[2 / 3, -0.5 / 5, 0]])
    product = a @ b
    assert np.array_equal(product.radius(), (3 + 8) * 2.0**-53 * product.magnitude)


def test_counts_that_are_too_large_are_refused():
    one = Counted(np.ones(1), np.ones(1), 2**20 - 1, 1.0)
    assert one.radius() > 0
    with pytest.raises(OutOfRange, match="roundings"):
        (one + one).radius()


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0**201, 2.0**-201, 5e-324])
def test_numbers_out_of_range_are_refused(value):
    with pytest.raises(OutOfRange):
        exact(np.array([1.0, value]))


def test_products_that_underflow_are_refused():
    """2^-1200 is lost, and 2^1200 times it would be 1: the value is 0, and nothing may be said about it."""
    small, large = exact(np.full((1, 1), 2.0**-200)), exact(np.full((1, 1), 2.0**200))
    product = small
    for factor in [small] * 5 + [large] * 6:
        product = product @ factor
    assert product.value == 0
    with pytest.raises(OutOfRange, match="underflow"):
        product.radius()
    assert (small @ small @ large @ large).radius() < 1e-14


def test_digits_that_underflow_took_stay_lost():
    """1.25 * 2^-1074 is rounded to 2^-1074; five times 2^200 bring the size back, but not the quarter."""
    small, large = exact(np.full((1, 1), 2.0**-200)), exact(np.full((1, 1), 2.0**200))
    for product in (lambda a, b: a * b, lambda a, b: a @ b, lambda a, b: a / exact(1 / b.value)):
        number = exact(np.full((1, 1), 1.25 * 2.0**-74))
        for factor in [small] * 5 + [large] * 5:
            number = product(number, factor)
        assert number.value == 2.0**-74
        with pytest.raises(OutOfRange, match="underflow"):
            number.radius()


def test_monomials_may_be_as_small_as_their_limit():
    small = exact(np.full(1, 2.0**-200))
    product = small * small * small * small * exact(np.full(1, 2.0**-160))
    assert product.least == LEAST_MONOMIAL == 2.0**-960 and product.radius() > 0
    for smaller in (product * exact(np.full(1, 0.75)), product / exact(np.full(1, 1.5))):
        assert smaller.least == 0
        with pytest.raises(OutOfRange, match="underflow"):
            smaller.radius()
    assert (product / exact(np.full(1, 0.5))).least == LEAST_MONOMIAL
    with pytest.raises(OutOfRange, match="underflow"):
        Counted(np.ones(1), np.ones(1), 0, math.nan).radius()


def test_division_needs_exact_divisors():
    with pytest.raises(TypeError, match="exact"):
        exact(np.ones(2)) / (exact(np.ones(2)) + exact(np.ones(2)))


def test_blocks_make_the_symmetric_matrix():
    corner = exact(np.array([[2.0]]))
    form = symmetric({(0, 0): exact(4 * np.eye(2)), (1, 0): exact(np.array([[1.0, -1.0]])), (1, 1): corner}, [2, 1])
    assert isinstance(form, Counted)
    assert np.array_equal(form.value, [[4, 0, 1], [0, 4, -1], [1, -1, 2]])
    assert is_semidefinite(form)
    with pytest.raises(ValueError, match="above the diagonal"):
        symmetric({(0, 1): corner}, [1, 1])


@given(seeds, st.integers(1, 6), st.floats(-30, -8))
def test_balls_agree_with_exact_rationals(seed, n, margin):
    generator = np.random.default_rng(seed)
    matrix = spectrum(generator, np.append(generator.uniform(0.1, 1, n - 1), generator.choice([-1, 1]) * 10.0**margin))
    if is_definite_in_balls(balls(matrix)):
        determinant = fmpq_mat(n, n, [fmpq(v.numerator, v.denominator) for row in rational_matrix(matrix) for v in row]).det()
        assert determinant > 0 and is_psd_exactly(rational_matrix(matrix))


def test_balls_decide_what_floats_cannot_hold():
    matrix = np.array([[2.0**-300, 2.0**-1], [2.0**-1, 2.0**300]])
    lifted = balls(matrix)
    assert is_definite_in_balls(lifted * arb(2) - balls(np.array([[0, 2.0**-1], [2.0**-1, 0]])))
    assert not is_definite_in_balls(balls(np.array([[2.0**-300, 2.0], [2.0, 2.0**300]])))
    with pytest.raises(OutOfRange):
        balls(np.array([math.nan, 1.0]))
    with pytest.raises(OutOfRange, match="300"):
        is_definite_in_balls(np.zeros((301, 301)))


# --- norms --------------------------------------------------------------------------------------------------------------


def test_norm_of_the_hilbert_matrix():
    hilbert = np.array([[1 / (i + j + 1) for j in range(8)] for i in range(8)])
    bound = norm_upper_bound(hilbert)
    assert 1.695938996921949436 <= bound <= 1.695938996921949436 * (1 + 1e-12)


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(-60, 60), st.booleans(), st.booleans())
def test_norms_are_upper_bounds_and_tight(seed, rows, columns, exponent, scaled_in, scaled_out):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((rows, columns)) * 2.0**exponent
    scale_in = generator.uniform(0.1, 10, columns) if scaled_in else None
    scale_out = generator.uniform(0.1, 10, rows) if scaled_out else None
    bound = norm_upper_bound(weight, scale_in, scale_out)
    plain = (1 if scale_out is None else scale_out[:, None]) * weight / (1 if scale_in is None else scale_in)
    assert bound <= np.linalg.norm(plain, 2) * (1 + 1e-10)
    # rigorous: bound^2 S_in^2 - W^T S_out^2 W is positive semidefinite over the rationals
    s, t = (np.ones(columns) if scale_in is None else scale_in), (np.ones(rows) if scale_out is None else scale_out)
    w = [[Fraction(float(a)) * Fraction(float(b)) for a in row] for row, b in zip(weight, t, strict=True)]
    square = Fraction(bound) ** 2
    gram = [[-sum(r[i] * r[j] for r in w) for j in range(columns)] for i in range(columns)]
    for i in range(columns):
        gram[i][i] += square * Fraction(float(s[i])) ** 2
    assert is_psd_exactly(gram)


@pytest.mark.parametrize("factor", [0.5, 0.999, 1 - 1e-9, 1 - 1e-14])
def test_an_estimate_that_is_too_small_gives_no_bound(monkeypatch, factor):
    """The estimate is only where the search begins: the bound is what could be proved, or infinity."""
    estimate = np.linalg.norm
    monkeypatch.setattr(np.linalg, "norm", lambda *arguments: factor * estimate(*arguments))
    assert norm_upper_bound(np.array([[3.0, 0], [0, 1]])) >= 3
    assert norm_upper_bound(np.array([[3.0, 4.0]]), np.array([1.0, 2.0])) >= math.sqrt(13) * (1 - 1e-15)

    def diverges(*arguments):
        raise np.linalg.LinAlgError

    monkeypatch.setattr(np.linalg, "norm", diverges)
    assert norm_upper_bound(np.eye(2)) == math.inf


def test_norms_of_special_matrices():
    assert norm_upper_bound(np.zeros((3, 2))) == 0
    for weight, norm in ((np.eye(5), 1), (np.ones((3, 4)), math.sqrt(12)), (np.array([[3.0, 4.0]]), 5)):
        assert norm <= norm_upper_bound(weight) <= norm * (1 + 1e-12)
    orthogonal = np.linalg.qr(np.random.default_rng(2).standard_normal((64, 64)))[0]
    assert 1 - 1e-15 <= norm_upper_bound(orthogonal) <= 1 + 1e-11
    with pytest.raises(OutOfRange):
        norm_upper_bound(np.array([[math.nan]]))
    with pytest.raises(OutOfRange, match="columns"):
        norm_upper_bound(np.ones((1, 3000)), np.ones(3000))
    assert norm_upper_bound(np.ones((1, 3000))) == pytest.approx(math.sqrt(3000))


# --- the floating-point environment -------------------------------------------------------------------------------------


def test_flushed_subnormals_are_noticed():
    torch = pytest.importorskip("torch")
    require_ieee_products(8)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        with pytest.raises(UnsafeArithmetic):
            is_semidefinite_within(np.eye(2), np.zeros((2, 2)))
        with pytest.raises(UnsafeArithmetic):
            norm_upper_bound(np.eye(2))
    finally:
        torch.set_flush_denormal(False)
    assert is_semidefinite_within(np.eye(2), np.zeros((2, 2)))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs extended precision to imitate directed rounding")
@pytest.mark.parametrize("rows", [slice(None), slice(-1, None)])
@pytest.mark.parametrize("direction", [-np.inf, np.inf, 0.0])
def test_products_that_round_in_one_direction_are_noticed(monkeypatch, direction, rows):
    """A library whose products round otherwise than the process does, be it in one row: downwards, upwards or towards zero."""

    class Directed(np.ndarray):
        def __matmul__(self, other):
            exact_product = np.asarray(self, dtype=np.longdouble) @ np.asarray(other, dtype=np.longdouble)
            near = exact_product.astype(np.float64)
            wrong = near < exact_product if direction > 0 else near > exact_product  # all products here are positive
            near[rows] = np.where(wrong, np.nextafter(near, direction), near)[rows]
            return near

    zeros = np.zeros
    monkeypatch.setattr(np, "zeros", lambda *shape, **options: zeros(*shape, **options).view(Directed))
    with pytest.raises(UnsafeArithmetic, match="products"):
        require_ieee_products(8)


@pytest.mark.parametrize("order", [1, 2, 3, 40, 256, 1000])
def test_honest_products_are_accepted(order):
    require_ieee_products(order)
