"""Proofs that a symmetric matrix is positive semidefinite, and proved upper bounds of matrix norms.

A matrix to be judged is written as a polynomial in exact numbers, with ``+ - * / @ .T`` on arrays. The same expression runs
in two arithmetics: :class:`Counted`, float64 with counted roundings, and object arrays of ``arb`` (see :func:`balls`). In
float64 the proof is a residual: M = L L^T + D with D diagonally dominant, whatever routine supplied L. In balls it is an
approximate inverse R of the factor: R M R^T close to the identity. Both accept nothing that is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx

from lipctrl.certificates.checker.intervals import UNIT, Array, UnsafeArithmetic, gamma, require_ieee

RANGE = 2.0**200  #: numbers that enter a proof are 0 or of magnitude within [1/RANGE, RANGE]
LEAST_MONOMIAL = 2.0**-960  #: monomials stay normal numbers
MAX_COUNT = 2**20  #: roundings on the way to one entry
MAX_ORDER = 4096  #: rows of a matrix that is judged in float64
MAX_NORM_ORDER = 2048  #: smaller side of a weight whose norm is sought, or its columns where they are scaled
MAX_BALL_ORDER = 300  #: rows of a matrix that is judged in balls
BALL_PRECISION = 128  #: bits; set ``ctx.workprec`` to it while a matrix of balls is computed


class OutOfRange(ArithmeticError):
    """A number, or the size of a matrix, is outside what float64 proofs are made for."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Float64 values of polynomials in exact numbers, with what is needed to bound their rounding error.

    Every monomial of an entry has gone through at most ``count`` roundings, and ``magnitude`` is the computed sum of the
    absolute values of its monomials, so ``|value - exact| <= gamma(count) * exact magnitude`` for any order of summation,
    fused or not. ``least`` bounds the absolute value of every monomial that is not zero from below, against underflow.
    Operands broadcast as NumPy arrays do.
    """

    value: Array
    magnitude: Array
    count: int
    least: float

    def __add__(self, other: Counted) -> Counted:
        return self._sum(other, self.value + other.value)

    def __sub__(self, other: Counted) -> Counted:
        return self._sum(other, self.value - other.value)

    def _sum(self, other: Counted, value: Array) -> Counted:
        magnitude, count = self.magnitude + other.magnitude, max(self.count, other.count) + 1
        return Counted(value, magnitude, count, min(self.least, other.least))

    def __mul__(self, other: Counted) -> Counted:
        count = self.count + other.count + 1
        return Counted(self.value * other.value, self.magnitude * other.magnitude, count, _least(self.least * other.least))

    def __matmul__(self, other: Counted) -> Counted:
        count = self.count + other.count + self.value.shape[-1]
        return Counted(self.value @ other.value, self.magnitude @ other.magnitude, count, _least(self.least * other.least))

    def __truediv__(self, other: Counted) -> Counted:
        """Division by exact floats that are not zero."""
        if other.count:
            raise TypeError("a Counted array is divided by exact floats only")
        least = _least(self.least / float(other.magnitude.max(initial=1.0)))
        return Counted(self.value / other.value, self.magnitude / other.magnitude, self.count + 1, least)

    def __neg__(self) -> Counted:
        return Counted(-self.value, self.magnitude, self.count, self.least)

    def __getitem__(self, index: Any) -> Counted:
        return Counted(self.value[index], self.magnitude[index], self.count, self.least)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.value.shape

    @property
    def T(self) -> Counted:
        """The transpose."""
        return Counted(self.value.T, self.magnitude.T, self.count, self.least)

    def radius(self) -> Array:
        """R with ``|value - exact| <= R``, entry by entry. Raises OutOfRange where the formula does not apply."""
        if self.count >= MAX_COUNT:
            raise OutOfRange(f"{self.count} roundings for one entry, at most {MAX_COUNT} are allowed")
        if not self.least >= LEAST_MONOMIAL:
            raise OutOfRange("a product of numbers may underflow")
        # count*u/(1 - 2*count*u) covers the rounding of the magnitude too; the extra 8 covers this product.
        return (self.count + 8) * UNIT * self.magnitude


def _least(product: float) -> float:
    """0 for what may have underflowed: larger factors do not bring lost digits back."""
    return product if product >= LEAST_MONOMIAL else 0.0


def exact(values: Array) -> Counted:
    """Floats as they are. Raises OutOfRange for NaN, infinity or a non-zero magnitude outside [1/RANGE, RANGE]."""
    values = np.asarray(values, dtype=np.float64)
    magnitude = np.abs(values)
    if not bool(np.all((magnitude == 0) | ((magnitude >= 1 / RANGE) & (magnitude <= RANGE)))):
        raise OutOfRange("a number is not finite, or its magnitude is outside 2^-200..2^200")
    return Counted(values, magnitude, 0, float(magnitude[magnitude > 0].min(initial=RANGE)))


def balls(values: Array) -> Array:
    """Floats as an object array of exact ``arb`` numbers. Raises OutOfRange for NaN or infinity."""
    if not bool(np.isfinite(values).all()):
        raise OutOfRange("a number is not finite")
    result = np.empty(np.shape(values), dtype=object)
    result.ravel()[:] = [arb(v) for v in np.asarray(values, dtype=np.float64).ravel().tolist()]
    return result


def stack(parts: Sequence[Any]) -> Any:
    """The rows of several arrays, one below the other: all Counted, and so is the result, or all object or float arrays."""
    if not isinstance(parts[0], Counted):
        return np.concatenate(parts)
    value, magnitude = (np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "magnitude"))
    return Counted(value, magnitude, max(part.count for part in parts), min(part.least for part in parts))


def symmetric(blocks: Mapping[tuple[int, int], Any], sizes: list[int]) -> Any:
    """The symmetric matrix with the given blocks (row, column), row >= column; blocks that are not named are zero.

    Blocks are all Counted, and so is the result, or all object arrays.
    """
    some = next(iter(blocks.values()))
    if not isinstance(some, Counted):
        return _assemble(blocks, sizes, object)
    value = _assemble({k: b.value for k, b in blocks.items()}, sizes, np.float64)
    magnitude = _assemble({k: b.magnitude for k, b in blocks.items()}, sizes, np.float64)
    return Counted(value, magnitude, max(b.count for b in blocks.values()), min(b.least for b in blocks.values()))


def _assemble(blocks: Mapping[tuple[int, int], Array], sizes: list[int], dtype: Any) -> Array:
    ends = np.cumsum([0, *sizes])
    matrix = np.zeros((ends[-1], ends[-1]), dtype=dtype)
    for (row, column), block in blocks.items():
        if row < column:
            raise ValueError(f"block {(row, column)} is above the diagonal")
        rows, columns = slice(ends[row], ends[row + 1]), slice(ends[column], ends[column + 1])
        matrix[rows, columns] = block
        if row != column:
            matrix[columns, rows] = block.T
    return matrix


def require_ieee_products(order: int) -> None:
    """Probe the arithmetic, also inside matrix products of this size: their threads have modes of their own. Raises UnsafeArithmetic."""
    require_ieee()
    size = max(2, min(order, 256))
    left, right = np.zeros((size, size)), np.ones((size, size))
    for half, total in ((2.0**-53, 1.0), (2.0**-53 + 2.0**-105, 1 + 2.0**-52)):  # not upwards; neither downwards nor towards zero
        left[:, 0], left[:, -1] = 1.0, half
        if not bool(np.all(left @ right == total)):
            raise UnsafeArithmetic("matrix products in this process do not round to nearest; proofs need IEEE 754 arithmetic")


def is_semidefinite(form: Counted) -> bool:
    """Whether the symmetric matrix that ``form`` stands for is *proved* positive semidefinite; False means not proved.

    Reads the lower triangle. Singular matrices are never proved. Raises UnsafeArithmetic or OutOfRange.
    """
    return is_semidefinite_within(form.value, form.radius())


def is_semidefinite_within(matrix: Array, radius: Array) -> bool:
    """Whether every symmetric matrix within ``radius`` (entry by entry, lower triangles) of ``matrix`` is proved positive semidefinite."""
    order = len(matrix)
    if order > MAX_ORDER:
        raise OutOfRange(f"matrix of order {order}, at most {MAX_ORDER} is judged in float64")
    require_ieee_products(order)
    with np.errstate(all="ignore"):  # what overflows or is NaN is refused below, in silence
        return _is_semidefinite(_without_upper(np.array(matrix, np.float64)), _without_upper(np.array(radius, np.float64)))


def _is_semidefinite(matrix: Array, radius: Array) -> bool:
    """For lower triangles, which are this function's own to change."""
    order = len(matrix)
    scale = _unit_diagonal_scale(matrix)
    if scale is None or not bool(radius.min() >= 0):
        return False
    for array in (matrix, radius):  # in place: at these sizes fresh memory costs as much as the arithmetic
        array *= scale[:, None]
        array *= scale
    row_radius = _taken_diagonal(radius) + _row_sums(radius)
    shift = 2 * float(row_radius.max()) + 8 * (order + 16) ** 1.5 * UNIT
    for _ in range(6):  # a larger shift leaves more room in the residual, a smaller one is nearer to the matrix
        factor = _factor(matrix, shift)
        if factor is None:
            return False
        if _residual_dominates(matrix, factor, row_radius):
            return True
        shift *= 2
    return False


def _without_upper(matrix: Array) -> Array:
    """The same array, zero above the diagonal from now on."""
    for i, row in enumerate(matrix):
        row[i + 1 :] = 0
    return matrix


def _taken_diagonal(lower: Array) -> Array:
    """The diagonal, which becomes zero."""
    diagonal = np.diagonal(lower).copy()
    np.fill_diagonal(lower, 0)
    return diagonal


def _row_sums(lower: Array) -> Array:
    """Row sums of the symmetric matrix with this lower triangle, its diagonal being zero."""
    sums: Array = lower.sum(axis=0) + lower.sum(axis=1)
    return sums


def _unit_diagonal_scale(matrix: Array) -> Array | None:
    """Powers of two that bring the diagonal near 1; ``None`` where it is not positive and finite, or too extreme."""
    diagonal = np.diagonal(matrix)
    if not bool(np.all((diagonal >= 2.0**-500) & (diagonal <= 2.0**500))):
        return None
    scale: Array = np.ldexp(1.0, -np.rint(0.5 * np.log2(diagonal)).astype(np.int64))
    return scale


def _factor(matrix: Array, shift: float) -> Array | None:
    """A candidate factor; any finite or infinite array may come back, the residual decides."""
    try:
        shifted = matrix.copy()
        shifted[np.arange(len(matrix)), np.arange(len(matrix))] -= shift
        return np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return None


def _residual_dominates(matrix: Array, factor: Array, row_radius: Array) -> bool:
    """Whether M - L L^T is diagonally dominant for every M within the radius; written so that NaN says no."""
    order = len(matrix)
    residual = factor @ factor.T
    residual = _without_upper(np.subtract(matrix, residual, out=residual))
    diagonal = _taken_diagonal(residual)
    others = _row_sums(np.abs(residual, out=residual))
    size = np.abs(factor)
    error = gamma(order + 8) * (size @ size.sum(axis=0)) + row_radius + UNIT * (others + np.abs(diagonal))
    # 1 %: roundings within the bound, the row sums of radii among them. The last term: underflow, also where it is flushed.
    error = 1.01 * error + order**2 * 2.0**-500
    return bool(np.all(diagonal >= (others + error) * (1 + 4 * (order + 4) * UNIT)))


def is_definite_in_balls(matrix: Array) -> bool:
    """Whether a symmetric object array of ``arb`` is proved positive definite: slower, for any range, independent of float64 rounding.

    Raises OutOfRange above MAX_BALL_ORDER rows.
    """
    order = len(matrix)
    if order > MAX_BALL_ORDER:
        raise OutOfRange(f"matrix of order {order}, at most {MAX_BALL_ORDER} is judged in balls")
    with ctx.workprec(BALL_PRECISION):
        middle = np.array([[float(arb(v).mid()) for v in row] for row in matrix])
        scale = _unit_diagonal_scale(middle)
        if scale is None:
            return False
        factor = _factor(middle * scale[:, None] * scale, 0.0)
        if factor is None:
            return False
        try:
            left = arb_mat((np.linalg.inv(factor) * scale).tolist())
        except np.linalg.LinAlgError:
            return False
        product = left * arb_mat(matrix.tolist()) * left.transpose()
        rows = [sum((abs(product[i, j] - (1 if i == j else 0)) for j in range(order)), arb(0)) for i in range(order)]
        return all(bool(row < 1) for row in rows)


def norm_upper_bound(weight: Array, input_scale: Array | None = None, output_scale: Array | None = None) -> float:
    """A proved upper bound r of ``|S_out W x| <= r |S_in x|`` (Euclidean norms, positive diagonal scales), about 1e-12 above the truth.

    ``weight`` (n_out, n_in); scales are exact floats. Returns infinity where nothing could be proved.
    Raises UnsafeArithmetic or OutOfRange.
    """
    scaled = exact(weight)
    if output_scale is not None:
        scaled = exact(output_scale)[:, None] * scaled
    if not scaled.value.any():
        return 0.0
    if input_scale is None and scaled.value.shape[0] < scaled.value.shape[1]:
        scaled = scaled.T
    if scaled.value.shape[1] > MAX_NORM_ORDER:
        raise OutOfRange(f"norm of a matrix {weight.shape}, at most {MAX_NORM_ORDER} columns are allowed")
    columns = np.ones(scaled.value.shape[1]) if input_scale is None else np.asarray(input_scale, dtype=np.float64)
    gram = scaled.T @ scaled
    diagonal = exact(np.diag(columns))
    try:
        estimate = float(np.linalg.norm(scaled.value / columns, 2))
    except np.linalg.LinAlgError:
        return math.inf
    for bits in range(47, 5, -2):
        bound = estimate * (1 + 2.0**-bits)
        side = exact(np.array(bound)) * diagonal
        if is_semidefinite(side * side - gram):
            return bound
    return math.inf
