"""The quadratic form of the checker's ``lipschitz-bound``, as the search sees it: in floats, normalised, its pieces at hand.

Variables are divided by bounds of what they can be, scales are folded in, and the output is divided by a bound of its own, so
that the unknown bound is at most about 1. Sorted groups are rotated: their sum passes through linearly and is eliminated, what
remains has slopes in [-1, 1] and one multiplier for each group. Nothing here is trusted; multipliers go back to the checker's
form by :meth:`System.filed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from lipctrl.certificates.checker.chain import Chain
from lipctrl.certificates.checker.increments import Linear, unroll
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Affine, Implicit, Input, Layer, Network, Signal, Sort

LEAST_WIDTH = 1e-9  #: slopes of units that are (almost) linear are widened to this, or their multipliers would grow for ever
IMPLICIT_WIDTH = 1e-4  #: the same in implicit layers, where such units keep their variables


@dataclass(frozen=True)
class System:
    """M(q, lambda) = E0 diag(q) E0^T - Y^T Y + sum_j lambda_m(j) (e_j - low_j w_j)(e_j - high_j w_j)^T, symmetrised.

    Variables are the input (``inputs`` of them), then the units, layer by layer. ``rows`` (units, variables) holds the w_j,
    ``output`` is Y (n_out, variables), ``member`` (units,) says which multiplier m(j) a unit has. ``layers`` are the
    variables of each layer, ``places`` its multipliers: indices among all multipliers, with -1 where the checker's
    form has one that is free (a leftover group of one). A bound of the network is ``scale`` times that of the system, and its
    multipliers ``factors[k]``, (1,) or (units,), times those of the system in layer k. The shares q of the inputs are all equal,
    rho^2 (l2), or ``separate`` (linf): their sum is sought. ``implicit`` (multipliers,) marks those of implicit layers, whose rows
    hold variables of their own layer: where they are equal and large M is positive definite there; M alone does not keep them
    positive.
    """

    inputs: int
    rows: Array
    output: Array
    low: Array
    high: Array
    member: Array
    layers: tuple[slice, ...]
    places: tuple[Array, ...]
    scale: float
    factors: tuple[Array, ...]
    implicit: Array
    separate: bool = False

    @property
    def size(self) -> int:
        """Number of variables."""
        return int(self.rows.shape[1])

    @property
    def barriers(self) -> int:
        """What the search keeps positive: as many eigenvalues as M has, and the multipliers of implicit layers."""
        return self.size + int(np.count_nonzero(self.implicit))

    @property
    def shares(self) -> int:
        """How many unknown shares there are."""
        return self.inputs if self.separate else 1

    def matrix(self, shares: Array | float, multipliers: Array) -> Array:
        """M(shares, multipliers), (variables, variables)."""
        n, own = self.inputs, multipliers[self.member]
        matrix = np.zeros((self.size, self.size))
        matrix[np.arange(self.size), np.arange(self.size)] = np.concatenate([np.broadcast_to(shares, n), own])
        middle, product = -0.5 * own * (self.low + self.high), own * self.low * self.high
        for units, columns, block in self.blocks:
            half = middle[units, None] * block
            matrix[n:][units, columns] += half
            matrix[columns, n:][:, units] += half.T
            if product[units].any():
                matrix[columns, columns] += block.T @ (product[units, None] * block)
        columns = _support(self.output)
        matrix[columns, columns] -= self.output[:, columns].T @ self.output[:, columns]
        return matrix

    @cached_property
    def blocks(self) -> tuple[tuple[slice, slice, Array], ...]:
        """For each layer: its units, the variables that they read, and those columns of their rows."""
        units = [slice(layer.start - self.inputs, layer.stop - self.inputs) for layer in self.layers]
        columns = [_support(self.rows[own]) for own in units]
        return tuple((own, read, self.rows[own, read]) for own, read in zip(units, columns, strict=True))

    def filed(self, multipliers: Array) -> list[Array]:
        """The multipliers of each layer in the checker's form: the normalisation taken back."""
        padded = np.append(multipliers, 0.0)
        return [padded[place] * factor for place, factor in zip(self.places, self.factors, strict=True)]

    def filed_as_texts(self, multipliers: Array) -> list[list[str]]:
        """:meth:`filed` as a certificate holds them."""
        return [[float(v).hex() for v in values] for values in self.filed(multipliers)]

    def normalised(self, filed: Sequence[Array]) -> Array:
        """The inverse of :meth:`filed`."""
        multipliers = np.zeros(int(self.member.max(initial=-1)) + 1)
        for values, place, factor in zip(filed, self.places, self.factors, strict=True):
            multipliers[place[place >= 0]] = (values / factor)[place >= 0]
        return multipliers

    def of_output(self, row: int, scale: float) -> System:
        """The system of one output alone, for the l-infinity norm; ``scale`` bounds it, relative to this one's output."""
        ratio = scale**2
        factors = tuple(factor * ratio for factor in self.factors)
        return replace(self, output=self.output[row : row + 1] / scale, scale=self.scale * scale, factors=factors, separate=True)


def _support(rows: Array) -> slice:
    """From the first to the last column that is not zero."""
    read = np.flatnonzero(rows.any(axis=0))
    return slice(int(read[0]), int(read[-1]) + 1) if read.size else slice(0, 0)


def build_system(network: Network, scale_in: Array, scale_out: Array) -> System:
    """The system of a network form, for l2."""
    unrolled = unroll(network, floats, orthonormal)
    ends = np.cumsum([0, *unrolled.sizes])
    size = np.zeros(int(ends[-1]))  # of the variables: what they are divided by, 0 while that is not known
    size[: ends[1]] = 1 / scale_in
    parts: list[_Units] = []
    bounds: list[Array] = []
    count = 0
    for index, layer in enumerate(network.layers):
        reads = layer.size if isinstance(layer, Sort) else layer.multipliers
        entering, basis = _dense(unrolled.entering[index], reads, ends), unrolled.bases[index]
        units = _units(layer, entering if basis is None else basis.T @ entering, count)
        bound = _implicit_bound(layer, units, size, ends) if isinstance(layer, Implicit) else np.array([_bound(units, size, ends)])
        size[ends[index + 1] : ends[index + 2]] = bound
        parts.append(replace(units, rows=units.rows * size / bound[:, None]))
        bounds.append(bound)
        count += int((units.place >= 0).sum())
    output = scale_out[:, None] * _dense(unrolled.output, network.outputs, ends) * size
    scale = float(np.linalg.norm(output, 2)) or 1.0
    return System(
        inputs=network.inputs,
        rows=np.vstack([np.zeros((0, len(size))), *(units.rows for units in parts)]),
        output=output / scale,
        low=np.concatenate([*(units.low for units in parts), []]),
        high=np.concatenate([*(units.high for units in parts), []]),
        member=np.concatenate([*(units.member for units in parts), []]).astype(np.int64),
        layers=tuple(slice(int(a), int(b)) for a, b in pairwise(ends[1:])),
        places=tuple(units.place for units in parts),
        scale=scale,
        factors=tuple((scale / bound) ** 2 for bound in bounds),
        implicit=np.concatenate([*(units.implicit for units in parts), []]).astype(bool),
    )


@dataclass(frozen=True)
class _Units:
    rows: Array
    low: Array
    high: Array
    member: Array
    place: Array
    implicit: Array


def _units(layer: Layer, rows: Array, count: int) -> _Units:
    """The units of a layer, whose multipliers begin at number ``count``."""
    if isinstance(layer, Sort):
        widths = [min(layer.group_size, layer.size - begin) for begin in range(0, layer.size, layer.group_size)]
        kept = sum(width > 1 for width in widths)
        place = np.append(np.arange(kept) + count, np.full(layer.multipliers - kept, -1))
        ones = np.ones(len(rows))
        return _Units(rows, -ones, ones, np.repeat(np.arange(len(widths)), np.array(widths) - 1) + count, place, np.zeros(kept))
    low, high, place = layer.low[layer.free], layer.high[layer.free], np.arange(len(layer.free)) + count
    if isinstance(layer, Implicit):
        return _Units(rows, *_implicit_slopes(low, high), place, place, np.ones(len(place)))
    gain = np.maximum(np.abs(low), np.abs(high))
    wider = np.maximum(0.0, LEAST_WIDTH * gain - (high - low)) / 2
    return _Units(rows, low - wider, high + wider, place, place, np.zeros(len(place)))


def _implicit_slopes(low: Array, high: Array) -> tuple[Array, Array]:
    """Wide enough, but inside [0, 1], where layers are well-posed."""
    low = np.maximum(0.0, np.minimum(low, high - IMPLICIT_WIDTH))
    return low, np.maximum(high, low + IMPLICIT_WIDTH)


def _factor(low: Array, high: Array) -> Array:
    """The least t with dz (dz - dv) <= t (dz - low dv) (dz - high dv) for all dz and dv."""
    middle = low + high - 2 * low * high
    return np.asarray(1 / (middle + np.sqrt(np.maximum(middle**2 - (high - low) ** 2, 0.0))))


def _implicit_bound(layer: Implicit, units: _Units, size: Array, ends: Array) -> Array:
    """About how far the units of an implicit layer may move, in the ratios that make equal multipliers those along its metric."""
    unit = 1 / np.sqrt(layer.metric * _factor(units.low, units.high))
    unit /= unit.max()
    weight = layer.weight * unit / unit[:, None]
    moved = np.linalg.norm(np.linalg.solve(np.eye(layer.size) - units.high[:, None] * weight, np.diag(units.high)), 2)
    return np.asarray(float(moved) * _bound(replace(units, rows=units.rows / unit[:, None]), size, ends) * unit)


def _bound(units: _Units, size: Array, ends: Array) -> float:
    """A bound of the increments of a layer in terms of those of the variables before; 1 where it is 0."""
    gain = float(np.maximum(np.abs(units.low), np.abs(units.high)).max(initial=0.0))
    rows = units.rows * size
    norms = [float(np.linalg.norm(rows[:, a:b], 2)) for a, b in pairwise(ends) if rows[:, a:b].any()]
    return gain * math.hypot(*norms) or 1.0


def _dense(form: Linear, rows: int, ends: Array) -> Array:
    """A linear form as one matrix (rows, variables)."""
    matrix = np.zeros((rows, int(ends[-1])))
    for block, part in form.items():
        matrix[:, ends[block] : ends[block + 1]] = part
    return matrix


def floats(values: Array) -> Array:
    """Plain float64 arithmetic for increments."""
    return np.array(values, dtype=np.float64)


def orthonormal(width: int) -> Array:
    """Orthonormal columns, orthogonal to the sum: (width, width - 1)."""
    basis: Array = np.linalg.qr(np.column_stack([np.ones(width), np.eye(width)[:, : width - 1]]))[0]
    return basis[:, 1:]


def network_of(chain: Chain) -> Network:
    """A chain as a network form."""
    signals: list[Signal] = [Input(chain.inputs)]
    for hidden in chain.hidden:
        signals.append(Affine(len(signals) - 1, hidden.weight))
        if hidden.group_size:
            signals.append(Sort(len(signals) - 1, len(hidden.weight), hidden.group_size))
        else:
            signals.append(Activation(len(signals) - 1, hidden.low, hidden.high))
    signals.append(Affine(len(signals) - 1, chain.weight))
    return Network(tuple(signals), len(signals) - 1, chain.input_gain, chain.output_gain)
