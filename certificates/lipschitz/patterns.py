"""Activation patterns with a large slope: the floor below which no bound that ignores the biases can go."""

from __future__ import annotations

import numpy as np

from lipctrl.certificates.checker.chain import Chain, Hidden
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.lipschitz.system import folded_weights


def pattern_floor(chain: Chain, scale_in: Array, scale_out: Array, restarts: int = 20, seed: int = 0) -> float:
    """The greatest norm of a product W_l D_l ... D_1 W_0 found by ascent, D_k a choice of slopes (or of an order in each
    sorted group) for every unit. A float computation (``numerical``), for weights with the scales folded in.
    """
    generator = np.random.default_rng(seed)
    weights = folded_weights(chain, scale_in, scale_out)
    best = 0.0
    for restart in range(restarts if chain.hidden else 1):
        patterns = [_first(layer, generator, restart == 0) for layer in chain.hidden]
        try:
            with np.errstate(all="ignore"):
                value = _ascend(chain.hidden, weights, patterns)
        except np.linalg.LinAlgError:  # a product overflowed: no slope is known
            continue
        best = max(best, value) if np.isfinite(value) else best
    return best


def _first(layer: Hidden, generator: np.random.Generator, open_all: bool) -> Array:
    """A start: a diagonal as a vector, or the order of a sort as a permutation matrix."""
    size = len(layer.weight)
    if not layer.group_size:
        return layer.high.copy() if open_all else np.where(generator.random(size) < 0.5, layer.low, layer.high)
    return _order(generator.standard_normal(size), generator.standard_normal(size), layer.group_size)


def _order(left: Array, right: Array, group_size: int) -> Array:
    """The permutation matrix Q, inside groups, that maximises left^T Q right: both in the same order."""
    size = len(left)
    matrix = np.zeros((size, size))
    for begin in range(0, size, group_size):
        stop = min(begin + group_size, size)
        matrix[begin + np.argsort(left[begin:stop]), begin + np.argsort(right[begin:stop])] = 1
    return matrix


def _ascend(layers: tuple[Hidden, ...], weights: list[Array], patterns: list[Array], sweeps: int = 20) -> float:
    """Improve one layer's pattern at a time along the current singular pair, until a sweep changes nothing."""
    value = 0.0
    for _ in range(sweeps):
        suffixes = [weights[-1]]  # what follows each layer's pattern, the last layer first
        for pattern, weight in zip(patterns[:0:-1], weights[-2:0:-1], strict=True):
            suffixes.append(_apply(pattern, suffixes[-1].T, transposed=True).T @ weight)
        product = weights[0]
        for k, (layer, suffix) in enumerate(zip(layers, reversed(suffixes), strict=False)):
            left, _, right = np.linalg.svd(suffix @ _apply(patterns[k], product), full_matrices=False)
            a, b = suffix.T @ left[:, 0], product @ right[0]
            patterns[k] = _order(a, b, layer.group_size) if layer.group_size else np.where(a * b > 0, layer.high, layer.low)
            product = weights[k + 1] @ _apply(patterns[k], product)
        norm = float(np.linalg.norm(product, 2))
        if norm <= value * (1 + 1e-9):
            return max(norm, value)
        value = norm
    return value


def _apply(pattern: Array, matrix: Array, transposed: bool = False) -> Array:
    result: Array = pattern[:, None] * matrix if pattern.ndim == 1 else (pattern.T if transposed else pattern) @ matrix
    return result
