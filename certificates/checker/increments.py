"""Increments of a network as linear forms, and the quadratic form that multipliers make of them.

Two inputs give an increment dx and, in each layer, increments dz_k of those outputs that are not linear in what enters: these
are the variables. Everything else is a matrix times variables, computed in one of three arithmetics (``lift``): counted float64
(``exact``) and ``balls`` for proofs, plain floats for searches. A unit's row reads earlier variables only, by construction; in an
implicit layer also those of its own layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipctrl.certificates.checker.definite import balls, stack, symmetric
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Affine, Concatenation, Implicit, Input, Network, Selection, Signal, Sort, Sum
from lipctrl.certificates.checker.verdict import Rejected

LIMITS = 30_000_000, 400_000_000_000  #: numbers in all weights and linear forms together, and multiplications
BALL_LIMITS = 2_000_000, 40_000_000  #: the same in balls

Lift = Callable[[Array], Any]  #: from floats to numbers of an arithmetic, with ``+ - * / @ .T`` and indexing
Linear = dict[int, Any]  #: rows over all variables, by blocks; ``None`` stands for the variables of that block themselves


@dataclass(frozen=True)
class Unrolled:
    """A network's increments: for each layer what enters its units (or sorted groups), and what leaves the network.

    ``sizes`` are those of the blocks of variables: 0 the input, k the k-th layer. Of an Activation, ``entering`` holds the
    coordinates that are not linear. A sorted group is mean + T r with r its variables; ``bases`` holds T for each Sort.
    """

    network: Network
    lift: Lift
    sizes: list[int]
    entering: tuple[Linear, ...]
    bases: tuple[Array | None, ...]
    output: Linear


def differences(width: int) -> Array:
    """T (width, width - 1), whose column i is e_i - e_(i+1): orthogonal to the sum, and exact."""
    return np.eye(width)[:, : width - 1] - np.eye(width, k=-1)[:, : width - 1]


def unroll(network: Network, lift: Lift, basis: Callable[[int], Array] = differences) -> Unrolled:
    """The increments of a network in the arithmetic of ``lift``.

    ``basis(width)`` gives, for sorted groups of that width, columns that are orthogonal to the sum. Raises Rejected where the
    linear forms would be too large.
    """
    walk = _Walk(network, lift, basis)
    for signal in network.signals:
        walk.values.append(walk.value(signal))
    output = walk.full(walk.values[network.output])
    return Unrolled(network, lift, walk.sizes, tuple(walk.entering), tuple(walk.bases), output)


class _Walk:
    """Linear forms of the signals so far."""

    def __init__(self, network: Network, lift: Lift, basis: Callable[[int], Array]) -> None:
        self.network, self.lift, self.basis, self.sizes = network, lift, basis, network.variables
        self.values: list[Linear] = []
        self.entering: list[Linear] = []
        self.bases: list[Array | None] = []
        self.cells = self.products = 0

    def value(self, signal: Signal) -> Linear:
        """The linear form of one more signal."""
        match signal:
            case Input():
                return {0: None}
            case Affine():
                return self._times(signal.weight, self.values[signal.operand])
            case Sum():
                return self._sum(self.values[signal.first], self.values[signal.second], signal)
            case Selection():
                return self._taken(self.values[signal.operand], signal.indices)
            case Concatenation():
                return self._stacked(signal)
            case Activation():
                return self._activated(signal)
            case Sort():
                return self._sorted(signal)
            case Implicit():
                return self._implicit(signal)

    def _count(self, rows: int, columns: int, inner: int = 1) -> None:
        """Before a matrix of this shape is made by products over ``inner``."""
        self.cells += rows * columns
        self.products += rows * columns * inner
        cells, products = BALL_LIMITS if self.lift is balls else LIMITS
        if self.cells > cells or self.products > products:
            raise Rejected(f"the linear forms of this network need more than {cells} numbers or {products} products")

    def _matrix(self, block: int, rows: Any) -> Any:
        if rows is not None:
            return rows
        self._count(self.sizes[block], self.sizes[block])
        return self.lift(np.eye(self.sizes[block]))

    def full(self, values: Linear) -> Linear:
        """The same linear form with every block a matrix."""
        return {block: self._matrix(block, rows) for block, rows in values.items()}

    def _times(self, matrix: Array, values: Linear) -> Linear:
        result: Linear = {}
        self._count(*matrix.shape)
        lifted = self.lift(matrix)
        for block, rows in values.items():
            self._count(len(matrix), self.sizes[block], 1 if rows is None else matrix.shape[1])
            result[block] = lifted if rows is None else lifted @ rows
        return result

    def _sum(self, first: Linear, second: Linear, signal: Sum) -> Linear:
        result = dict(first)
        for block, rows in second.items():
            rows = self._matrix(block, rows)
            self._count(signal.size, self.sizes[block])
            rows = -rows if signal.sign < 0 else rows
            result[block] = self._matrix(block, result[block]) + rows if block in result else rows
        return result

    def _taken(self, values: Linear, indices: Array) -> Linear:
        result: Linear = {}
        for block, rows in values.items():
            self._count(len(indices), self.sizes[block])
            result[block] = self._matrix(block, rows)[indices]
        return result

    def _stacked(self, signal: Concatenation) -> Linear:
        parts = [(self.values[operand], self.network.signals[operand].size) for operand in signal.operands]
        result: Linear = {}
        for block in sorted({block for values, _ in parts for block in values}):
            self._count(signal.size, self.sizes[block])
            rows = [
                self._matrix(block, values[block]) if block in values else self.lift(np.zeros((size, self.sizes[block])))
                for values, size in parts
            ]
            result[block] = stack(rows)
        return result

    def _activated(self, signal: Activation) -> Linear:
        before, free = self.values[signal.operand], signal.free
        block = len(self.entering) + 1
        self.bases.append(None)
        if len(free) == signal.size:
            self.entering.append(self.full(before))
            return {block: None}
        self.entering.append(self._taken(before, free) if len(free) else {})
        linear = np.where(signal.low == signal.high, signal.low, 0.0)
        result: Linear = {}
        if linear.any():
            for other, rows in before.items():
                self._count(signal.size, self.sizes[other])
                result[other] = self.lift(linear)[:, None] * self._matrix(other, rows)
        if len(free):
            self._count(signal.size, len(free))
            result[block] = self.lift(np.eye(signal.size)[:, free])
        return result

    def _implicit(self, signal: Implicit) -> Linear:
        """D dz + dv enters, with dz the variables of the layer itself."""
        before, block = self.full(self.values[signal.operand]), len(self.entering) + 1
        self._count(signal.size, signal.size)
        self.entering.append({**before, block: self.lift(signal.weight)})
        self.bases.append(None)
        return {block: None}

    def _sorted(self, signal: Sort) -> Linear:
        """mean(dv_G) + T r for each group: sorting keeps sums."""
        before = self.full(self.values[signal.operand])
        self.entering.append(before)
        member, sizes = (self.lift(values) for values in groups(signal))
        self._count(signal.size, signal.variables)
        basis = np.zeros((signal.size, signal.variables))
        row = column = 0
        for width in groups(signal)[1].astype(int):
            basis[row : row + width, column : column + width - 1] = self.basis(width)
            row, column = row + width, column + width - 1
        self.bases.append(basis)
        result: Linear = {}
        for other, rows in before.items():
            self._count(signal.size, self.sizes[other], 2 * signal.multipliers)
            result[other] = member.T @ ((member @ rows) / sizes[:, None])
        if signal.variables:
            result[len(self.entering)] = self.lift(basis)
        return result


def groups(signal: Sort) -> tuple[Array, Array]:
    """Which units are in which group, as 0 and 1 (groups, n), and the sizes of the groups."""
    member = (np.arange(signal.multipliers)[:, None] == np.arange(signal.size) // signal.group_size).astype(np.float64)
    return member, member.sum(axis=1)


def scaled_output(unrolled: Unrolled, scale: Array, rows: slice = slice(None)) -> Linear:
    """The rows S dy of what leaves, each multiplied by its scale."""
    factors = unrolled.lift(scale[rows])[:, None]
    return {block: factors * matrix[rows] for block, matrix in unrolled.output.items()}


def multiplier_form(unrolled: Unrolled, head: Any, output: Linear, multipliers: Sequence[Array]) -> Any:
    """The symmetric matrix, over all variables, of the quadratic form

        sum_i head_i dx_i^2 - |output|^2 + sum_j lambda_j (dz_j - a_j dv_j)(dz_j - b_j dv_j) + sum_G lambda_G (|dz_G|^2 - |dv_G|^2)

    in the arithmetic of ``unrolled.lift``. ``head`` (n_in,) is in that arithmetic; ``multipliers`` has one array for each layer.
    """
    form = _Form(unrolled)
    form.add(0, 0, head * unrolled.lift(np.eye(unrolled.sizes[0])))
    for index, (layer, values) in enumerate(zip(unrolled.network.layers, multipliers, strict=True)):
        if isinstance(layer, Sort):
            form.sort(index, layer, values)
        else:
            form.activate(index, layer, values)
    form.subtract_square(output)
    return symmetric(form.blocks, unrolled.sizes)


class _Form:
    """A symmetric matrix under construction, lower blocks only."""

    def __init__(self, unrolled: Unrolled) -> None:
        self.unrolled, self.lift = unrolled, unrolled.lift
        self.blocks: dict[tuple[int, int], Any] = {}
        self.products = 0

    def add(self, row: int, column: int, block: Any) -> None:
        here = self.blocks.get((row, column))
        self.blocks[row, column] = block if here is None else here + block

    def add_square(self, rows: Linear, factors: Any) -> None:
        """Add sum_i factors_i (rows_i D)^2."""
        for i, j in self._pairs(rows):
            self.add(i, j, rows[i].T @ (factors[:, None] * rows[j]))

    def subtract_square(self, rows: Linear) -> None:
        """Subtract sum_i (rows_i D)^2."""
        for i, j in self._pairs(rows):
            self.add(i, j, -(rows[i].T @ rows[j]))

    def _pairs(self, rows: Linear) -> list[tuple[int, int]]:
        """Which blocks meet in the square of these rows, counted before they are multiplied."""
        pairs, sizes = [(i, j) for i in rows for j in rows if i >= j], self.unrolled.sizes
        self.products += sum(rows[i].shape[0] * sizes[i] * sizes[j] for i, j in pairs)
        most = (BALL_LIMITS if self.lift is balls else LIMITS)[1]
        if self.products > most:
            raise Rejected(f"the matrix of this network needs more than {most} products")
        return pairs

    def activate(self, index: int, layer: Activation | Implicit, multipliers: Array) -> None:
        """Add lambda (dz - a dv)(dz - b dv) for each coordinate that is not linear."""
        free = layer.free
        if not len(free):
            return
        block, entering, low, high = index + 1, self.unrolled.entering[index], layer.low[free], layer.high[free]
        values = self.lift(multipliers)
        self.add(block, block, values[:, None] * self.lift(np.eye(len(free))))
        middle = self.lift(np.array([-0.5])) * values * (self.lift(low) + self.lift(high))
        for other, rows in entering.items():
            product = middle[:, None] * rows
            self.add(block, other, product + product.T if other == block else product)  # dz^T D dz, as a symmetric matrix
        curved = np.flatnonzero((low != 0) & (high != 0))
        if len(curved):
            factors = values[curved] * self.lift(low[curved]) * self.lift(high[curved])
            self.add_square({other: rows[curved] for other, rows in entering.items()}, factors)

    def sort(self, index: int, layer: Sort, multipliers: Array) -> None:
        """Add lambda_G (|dz_G|^2 - |dv_G|^2) for each group, where dz_G = mean(dv_G) + T r."""
        block, entering, basis = index + 1, self.unrolled.entering[index], self.unrolled.bases[index]
        member, sizes = groups(layer)
        values = self.lift(multipliers)
        units = values[member.argmax(axis=0)]
        self.add_square(entering, -units)
        sums = {other: self.lift(member) @ rows for other, rows in entering.items()}
        self.add_square(sums, values / self.lift(sizes))
        if basis is not None and basis.size:
            columns = self.lift(basis)
            self.add(block, block, columns.T @ (units[:, None] * columns))
