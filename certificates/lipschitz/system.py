"""The quadratic form of the checker's ``lipschitz-bound``, as the search sees it: in floats, normalised, its pieces at hand.

Scales are folded into the weights and every layer is divided by its norm, so that the unknown bound is at most about 1.
Sorted groups are rotated: their sum passes through linearly and is eliminated, what remains has slopes in [-1, 1] and one
multiplier for each group. Nothing here is trusted; multipliers go back to the checker's form by :meth:`System.filed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lipctrl.certificates.checker.chain import Chain
from lipctrl.certificates.checker.intervals import Array

LEAST_WIDTH = 1e-9  #: slopes of units that are (almost) linear are widened to this, or their multipliers would grow for ever


@dataclass(frozen=True)
class System:
    """M(rho^2, lambda) = rho^2 E0 E0^T - Y^T Y + sum_j lambda_m(j) (e_j - low_j w_j)(e_j - high_j w_j)^T, symmetrised.

    Variables are the input (``inputs`` of them), then the units, layer by layer. ``rows`` (units, variables) holds the w_j,
    ``output`` is Y (n_out, variables), ``member`` (units,) says which multiplier m(j) a unit has. ``layers`` are the
    variables of each hidden layer, ``places`` its multipliers: indices among all multipliers, with -1 where the checker's
    form has one that is free (a leftover group of one). ``norms`` were divided out of the weights.
    """

    inputs: int
    rows: Array
    output: Array
    low: Array
    high: Array
    member: Array
    layers: tuple[slice, ...]
    places: tuple[Array, ...]
    norms: Array

    @property
    def size(self) -> int:
        """Number of variables."""
        return int(self.rows.shape[1])

    @property
    def scale(self) -> float:
        """A bound of the network is this times the bound of the system."""
        return float(np.prod(self.norms))

    def matrix(self, square: float, multipliers: Array) -> Array:
        """M(square, multipliers), (variables, variables)."""
        n, own = self.inputs, multipliers[self.member]
        matrix: Array = -self.output.T @ self.output
        diagonal = np.concatenate([np.full(n, square), own])
        matrix[np.arange(self.size), np.arange(self.size)] += diagonal
        half = (0.5 * own * (self.low + self.high))[:, None] * self.rows
        matrix[n:, :] -= half
        matrix[:, n:] -= half.T
        curved = np.flatnonzero(self.low * self.high)
        if curved.size:
            rows = self.rows[curved]
            matrix += rows.T @ ((own * self.low * self.high)[curved, None] * rows)
        return matrix

    def filed(self, multipliers: Array) -> list[Array]:
        """The multipliers of each hidden layer in the checker's form: the normalisation taken back."""
        padded = np.append(multipliers, 0.0)
        return [padded[place] * factor for place, factor in zip(self.places, self._factors(), strict=True)]

    def normalised(self, filed: list[Array]) -> Array:
        """The inverse of :meth:`filed`."""
        multipliers = np.zeros(int(self.member.max(initial=-1)) + 1)
        for values, place, factor in zip(filed, self.places, self._factors(), strict=True):
            multipliers[place[place >= 0]] = values[place >= 0] / factor
        return multipliers

    def _factors(self) -> Array:
        """What the multipliers of each hidden layer are in the network's own units, relative to here."""
        factors: Array = np.array([np.prod(self.norms[k:]) ** 2 for k in range(1, len(self.norms))])
        return factors


def build_system(chain: Chain, scale_in: Array, scale_out: Array) -> System:
    """The system of a chain none of whose layers is zero."""
    weights = folded_weights(chain, scale_in, scale_out)
    gains = [*(float(layer.gain.max()) for layer in chain.hidden), 1.0]
    norms = np.array([float(np.linalg.norm(weight, 2)) * gain for weight, gain in zip(weights, gains, strict=True)])
    units = [layer.variables for layer in chain.hidden]
    ends = np.cumsum([len(scale_in), *units])
    entering = np.eye(len(scale_in), int(ends[-1]))  # the values that enter a layer, as rows over all variables
    rows: list[Array] = []
    low: list[Array] = []
    high: list[Array] = []
    member: list[Array] = []
    places: list[Array] = []
    count = 0  # multipliers so far
    for k, layer in enumerate(chain.hidden):
        value = weights[k] / norms[k] @ entering
        own = np.eye(units[k], int(ends[-1]), ends[k])
        if layer.group_size:
            sums, rest, group = _rotation(len(value), layer.group_size)
            rows.append(rest @ value)
            entering = sums.T @ (sums @ value) + rest.T @ own
            low.append(-np.ones(units[k]))
            high.append(np.ones(units[k]))
        else:
            rows.append(value)
            entering, group = own, np.arange(units[k])
            wider = np.maximum(0.0, LEAST_WIDTH * layer.gain - (layer.high - layer.low)) / 2
            low.append(layer.low - wider)
            high.append(layer.high + wider)
        member.append(group + count)
        kept = len(set(group.tolist()))
        places.append(np.append(np.arange(kept) + count, np.full(layer.multipliers - kept, -1)))
        count += kept
    return System(
        inputs=len(scale_in),
        rows=np.vstack(rows) if rows else np.zeros((0, len(scale_in))),
        output=weights[-1] / norms[-1] @ entering,
        low=np.concatenate([*low, []]),
        high=np.concatenate([*high, []]),
        member=np.concatenate([*member, []]).astype(np.int64),
        layers=tuple(slice(int(a), int(b)) for a, b in pairwise(ends)),
        places=tuple(places),
        norms=norms,
    )


def folded_weights(chain: Chain, scale_in: Array, scale_out: Array) -> list[Array]:
    """All weights, the scales of the norms multiplied into the first and the last, rounded."""
    weights = [*(layer.weight for layer in chain.hidden), chain.weight]
    weights[-1] = scale_out[:, None] * weights[-1]
    weights[0] = weights[0] / scale_in
    return weights


def _rotation(size: int, group_size: int) -> tuple[Array, Array, Array]:
    """Orthonormal rows: normalised sums of the groups, the rest of each group, and the group of each of the latter."""
    sums, rest, group = [], [], []
    for index, start in enumerate(range(0, size, group_size)):
        width = min(group_size, size - start)
        basis = np.linalg.qr(np.column_stack([np.ones(width), np.eye(width)[:, : width - 1]]))[0].T
        rows = np.zeros((width, size))
        rows[:, start : start + width] = basis
        sums.append(rows[:1])
        rest.append(rows[1:])
        group += [index] * (width - 1)
    return np.vstack(sums), np.vstack(rest), np.array(group, dtype=np.int64)
