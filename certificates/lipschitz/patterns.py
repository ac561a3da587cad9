"""Activation patterns with a large slope: the floor below which no bound that ignores the biases can go."""

from __future__ import annotations

import numpy as np

from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Affine, Concatenation, Implicit, Input, Network, Selection, Signal, Sort, Sum

SWEEPS = 40


def pattern_floor(network: Network, scale_in: Array, scale_out: Array, norm: str = "l2", restarts: int = 100, seed: int = 0) -> float:
    """The greatest |S_out J S_in^-1| found by ascent, J the slope of the network under a choice of slopes for every unit (or of
    an order in each sorted group). A float computation (``numerical``), for the norm ``"l2"`` or ``"linf"``; 0 where there are
    implicit layers, for which it is not offered.
    """
    if any(isinstance(signal, Implicit) for signal in network.signals):
        return 0.0
    with np.errstate(all="ignore"):
        ascent = _Ascent(network, scale_in, scale_out, norm, restarts, np.random.default_rng(seed))
        slopes = ascent.run()
    return float(slopes[np.isfinite(slopes)].max(initial=0.0))


class _Ascent:
    """Many patterns at a time, one a column. With unit vectors v at the input and u at the output, u^T J v is linear in the
    choice of each layer: every sweep, down or up the network, makes the best choices for v and u, then the best u or v."""

    def __init__(
        self, network: Network, scale_in: Array, scale_out: Array, norm: str, restarts: int, generator: np.random.Generator
    ) -> None:
        self.signals, self.output, self.norm = network.signals[: network.output + 1], network.output, norm
        self.scale_in, self.scale_out = scale_in[:, None], scale_out[:, None]
        self.right = self._unit(generator.standard_normal((network.inputs, restarts)), dual=False)
        self.choices: dict[int, Array] = {}
        for index, signal in enumerate(self.signals):
            if isinstance(signal, Activation):
                coin = generator.random((signal.size, restarts)) < 0.5
                coin[:, 0] = False
                self.choices[index] = np.where(coin, signal.low[:, None], signal.high[:, None])
            elif isinstance(signal, Sort):
                left, right = generator.standard_normal((2, signal.size, restarts))
                self.choices[index] = _order(left, right, signal.group_size)

    def run(self) -> Array:
        """The slopes that were reached."""
        below = self._down()
        slopes = self._length(below[self.output])
        for _ in range(SWEEPS):
            left = self._unit(self.scale_out * below[self.output], dual=True)
            above = self._up(self.scale_out * left, below)
            self.right = self._unit(above[0] / self.scale_in, dual=False)
            below = self._down(above)
            before, slopes = slopes, self._length(below[self.output])
            if not bool(np.any(slopes > before * (1 + 1e-9))):
                break
        return slopes

    def _length(self, leaving: Array) -> Array:
        scaled = self.scale_out * leaving
        return np.asarray(np.abs(scaled).max(axis=0) if self.norm == "linf" else np.linalg.norm(scaled, axis=0))

    def _unit(self, vectors: Array, dual: bool) -> Array:
        """For l2 the direction. For linf the vector of norm 1 that is steepest along ``vectors``: signs, or one coordinate (dual)."""
        if self.norm == "l2":
            return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-300))
        signs = np.where(vectors < 0, -1.0, 1.0)
        if not dual:
            return signs
        chosen = np.arange(len(vectors))[:, None] == np.abs(vectors).argmax(axis=0)
        return np.where(chosen, signs, 0.0)

    def _down(self, above: list[Array] | None = None) -> list[Array]:
        """All signals for the inputs ``right``; with their weights ``above`` in u^T J v, choices are made on the way."""
        values: list[Array] = []
        for index, signal in enumerate(self.signals):
            if above is not None and index in self.choices:
                self._choose(index, values, above)
            values.append(self._value(index, signal, values))
        return values

    def _value(self, index: int, signal: Signal, values: list[Array]) -> Array:
        match signal:
            case Input():
                return np.asarray(self.right / self.scale_in)
            case Affine():
                return np.asarray(signal.weight @ values[signal.operand])
            case Sum():
                return np.asarray(values[signal.first] + signal.sign * values[signal.second])
            case Concatenation():
                return np.concatenate([values[operand] for operand in signal.operands])
            case Selection():
                return np.asarray(values[signal.operand][signal.indices])
            case Activation():
                return np.asarray(self.choices[index] * values[signal.operand])
            case Sort():
                return np.take_along_axis(values[signal.operand], self.choices[index], axis=0)
            case Implicit():
                raise ValueError("patterns of implicit layers are not offered")

    def _up(self, leaving: Array, below: list[Array]) -> list[Array]:
        """The weights of all signals in u^T J v; choices are made on the way."""
        above = [np.zeros_like(value) for value in below]
        above[self.output] = leaving
        for index in range(self.output, 0, -1):
            signal, weight = self.signals[index], above[index]
            match signal:
                case Affine():
                    above[signal.operand] += signal.weight.T @ weight
                case Sum():
                    above[signal.first] += weight
                    above[signal.second] += signal.sign * weight
                case Concatenation():
                    begin = 0
                    for operand in signal.operands:
                        above[operand] += weight[begin : begin + len(above[operand])]
                        begin += len(above[operand])
                case Selection():
                    np.add.at(above[signal.operand], signal.indices, weight)
                case Activation():
                    self._choose(index, below, above)
                    above[signal.operand] += self.choices[index] * weight
                case Sort():
                    self._choose(index, below, above)
                    back = np.empty_like(weight)
                    np.put_along_axis(back, self.choices[index], weight, axis=0)
                    above[signal.operand] += back
                case Input():
                    continue
        return above

    def _choose(self, index: int, below: list[Array], above: list[Array]) -> None:
        """The best choice of layer ``index`` for what enters it and what its outputs weigh."""
        signal = self.signals[index]
        if isinstance(signal, Activation):
            rising = below[signal.operand] * above[index] > 0
            self.choices[index] = np.where(rising, signal.high[:, None], signal.low[:, None])
        elif isinstance(signal, Sort):
            self.choices[index] = _order(above[index], below[signal.operand], signal.group_size)


def _order(left: Array, right: Array, group_size: int) -> Array:
    """Indices (n, k) that bring ``right``, inside groups, into the order of ``left``: the greatest sum of products."""
    indices = np.empty(left.shape, dtype=np.int64)
    for begin in range(0, len(left), group_size):
        group = slice(begin, min(begin + group_size, len(left)))
        np.put_along_axis(indices[group], np.argsort(left[group], axis=0), begin + np.argsort(right[group], axis=0), axis=0)
    return indices
