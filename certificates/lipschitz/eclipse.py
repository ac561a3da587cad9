"""Multipliers of chains that are too large for one Newton search: stage after stage from the input, as ECLipsE does.

After each stage a matrix K bounds what may have happened so far: increments dv = F x with F F^T = K and |x| <= |S_in dx| are
all that the multipliers chosen until then leave possible before the next activations. A stage is one hidden layer, closed
form (ECLipsE-Fast: multipliers c I with c = 1 / (2 m^2 |K|), m the mean slope), or as many layers as have ``order`` variables,
solved by Newton steps for the least gain through the next weight. One hidden layer a stage is ECLipsE (Xu and Sivaranjani,
2024). The recursion is only a source of numbers: the checker judges all multipliers in one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lipctrl.certificates.checker.chain import Chain, Hidden
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.lipschitz.newton import solve
from lipctrl.certificates.lipschitz.system import System, build_system, network_of

MAX_STAGE = 1500  #: variables; a hidden layer that is wider gets its multipliers in closed form
MARGIN = 1e-6  #: relative, what multipliers in closed form stay below the edge where the matrix would be singular


@dataclass(frozen=True)
class Recursion:
    """What the checker's matrix should prove: ``bound`` with ``multipliers``, one array for each hidden layer (``numerical``)."""

    bound: float
    multipliers: list[Array]


def eclipse(chain: Chain, scale_in: Array, scale_out: Array, order: int = 0, tolerance: float = 1e-3) -> Recursion:
    """Multipliers by stages of at least one hidden layer and at most ``order`` (up to MAX_STAGE) variables; closed form where that is 0.

    Raises LinAlgError where floats leave no feasible multipliers.
    """
    weights = [*(layer.weight for layer in chain.hidden), scale_out[:, None] * chain.weight]
    weights[0] = weights[0] / scale_in
    gram, multipliers = weights[0] @ weights[0].T, []
    for first, last in _stages(chain, min(order, MAX_STAGE)):
        if order and len(gram) + sum(layer.variables for layer in chain.hidden[first:last]) <= MAX_STAGE:
            gram, found = _newton_stage(gram, chain.hidden[first:last], weights[first + 1 : last + 1], tolerance)
        else:  # one hidden layer
            gram, found = _fast_stage(gram, chain.hidden[first], weights[last])
        multipliers += found
    square = _greatest(gram)
    return Recursion(math.sqrt(square), [square * values for values in multipliers])


def _stages(chain: Chain, order: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) hidden layer of each stage."""
    first = 0
    while first < len(chain.hidden):
        last, size = first + 1, len(chain.hidden[first].weight) + chain.hidden[first].variables
        while last < len(chain.hidden) and size + chain.hidden[last].variables <= order:
            size += chain.hidden[last].variables
            last += 1
        yield first, last
        first = last


def _greatest(gram: Array) -> float:
    return max(float(np.linalg.eigvalsh(gram)[-1]), 1e-300)


def _root(gram: Array) -> Array:
    """F with F F^T = K, its columns as many as the rank."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-15 * max(float(values[-1]), 1e-300)
    if not kept.any():
        raise np.linalg.LinAlgError("nothing passes this layer")
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root


def _newton_stage(gram: Array, layers: tuple[Hidden, ...], weights: list[Array], tolerance: float) -> tuple[Array, list[Array]]:
    """The next K, and the multipliers that minimise its greatest eigenvalue, relative to |x|^2."""
    root = _root(gram)
    hidden = [Hidden(weight, h.low, h.high, h.group_size) for h, weight in zip(layers, [root, *weights[:-1]], strict=True)]
    ones = np.ones(root.shape[1]), np.ones(len(weights[-1]))
    stage = Chain(ones[0], tuple(hidden), weights[-1], ones[1])
    system = build_system(network_of(stage), *ones)
    found = solve(system, tolerance)
    square = found.square * system.scale**2
    return square * _output_gram(system, found.square, found.values), [values / square for values in system.filed(found.values)]


def _output_gram(system: System, square: float, values: Array) -> Array:
    """Y M^-1 Y^T, where M is without the output."""
    matrix = system.matrix(square, values) + system.output.T @ system.output
    half = np.linalg.solve(np.linalg.cholesky(matrix), system.output.T)
    gram: Array = half.T @ half
    return gram


def _fast_stage(gram: Array, layer: Hidden, weight: Array) -> tuple[Array, list[Array]]:
    """The next K by equal multipliers in closed form, or the best of a few where slopes have both signs or none is 0."""
    edge = _greatest(gram)
    if layer.group_size:
        factor = (1 - MARGIN) / edge
        return weight @ weight.T / factor, [np.full(layer.multipliers, factor)]
    middle, product = (layer.low + layer.high) / 2, layer.low * layer.high
    trials = [1 / (edge * max(2 * float((middle**2).max()), (1 + MARGIN) * float(np.abs(product).max()), 1e-9))]
    if product.any():
        trials += [trials[0] * 2.0**k for k in range(-8, 4) if k]
    best, storage, factor = -math.inf, None, 0.0
    for trial in trials:
        inner = np.eye(len(gram)) + trial * gram * product  # dv may also cost: slopes a, b with a b != 0
        candidate = trial * np.eye(len(gram)) - trial**2 * (middle[:, None] * np.linalg.solve(inner, gram)) * middle
        candidate = (candidate + candidate.T) / 2
        least = float(np.linalg.eigvalsh(candidate)[0])
        feasible = bool(np.all(np.linalg.eigvals(inner).real > 0)) if product.any() else True
        if feasible and least > best:
            best, storage, factor = least, candidate, trial
    if storage is None or not best > 0:
        raise np.linalg.LinAlgError("no feasible multipliers")
    half = np.linalg.solve(np.linalg.cholesky(storage), weight.T)
    return half.T @ half, [np.full(layer.multipliers, factor)]
