"""Bounds of a network that need no numbers from a file: norms and absolute values multiplied and added along its signals.

Weighted norms: |S_in x| at the input, |S_out y| at the output, with positive diagonal scales. Everything is rounded up.
"""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from lipctrl.certificates.checker.definite import norm_upper_bound
from lipctrl.certificates.checker.implicit import reach
from lipctrl.certificates.checker.intervals import Array, Interval, affine, up
from lipctrl.certificates.checker.network import Activation, Affine, Concatenation, Implicit, Input, Network, Selection, Signal, Sort, Sum
from lipctrl.certificates.checker.verdict import Rejected

MAX_PRODUCTS = 70_000_000_000  #: multiplications of one factorisation for each norm that is taken, in all


def norm_product(network: Network, scale_in: Array, scale_out: Array) -> float:
    """A proved upper bound in Euclidean norms: affine maps multiply, sums add, concatenations add squares.

    Infinity where a norm could not be proved. Raises OutOfRange where weights are beyond what float64 proves, Rejected where
    there are too many.
    """
    require_little(network)
    bounds = _Bounds(network, scale_in)
    for signal in network.signals[: network.output]:
        bounds.append(signal)
    last = network.signals[network.output]
    if isinstance(last, Affine):
        return bounds.through(last, scale_out)
    if isinstance(last, Input):
        return float(up(scale_out / scale_in).max())
    bounds.append(last)
    return _times(float(scale_out.max()), bounds.values[-1])


def absolute_product(network: Network, scale_in: Array, scale_out: Array) -> Array:
    """For each output, a proved upper bound of |S_out y|_i where |S_in x|_k <= 1 for every input: absolute values of weights and slopes."""
    require_little(network)
    values: list[Array] = []
    with np.errstate(all="ignore"):  # what overflows proves nothing
        for signal in network.signals:
            values.append(_largest(signal, values, scale_in))
        return scaled(scale_out, values[network.output])


def _largest(signal: Signal, values: list[Array], scale_in: Array) -> Array:
    """The largest absolute value of each coordinate of a signal, from those of the signals before."""
    match signal:
        case Input():
            result = up(1 / scale_in)
        case Affine():
            before = values[signal.operand]
            reached = ((signal.weight != 0) & (before != 0)).any(axis=1)
            result = np.where(reached, affine(Interval(-before, before), signal.weight, None).high, 0.0)
        case Activation():
            result = scaled(signal.gain, values[signal.operand])
        case Sum():
            result = up(values[signal.first] + values[signal.second])
        case Concatenation():
            result = np.concatenate([values[operand] for operand in signal.operands])
        case Selection():
            result = values[signal.operand][signal.indices]
        case Sort():
            before, size = values[signal.operand], signal.group_size
            result = np.repeat(np.maximum.reduceat(before, np.arange(0, signal.size, size)), size)[: signal.size]
        case Implicit():
            result = reach(signal.metric, signal.margin, values[signal.operand])
    return np.asarray(result)


def scaled(factors: Array, values: Array) -> Array:
    """Products rounded up; 0 where a factor is 0."""
    return np.asarray(np.where((factors == 0) | (values == 0), 0.0, up(factors * values)))


class _Bounds:
    """|signal| <= value |S_in x| for the signals so far."""

    def __init__(self, network: Network, scale_in: Array) -> None:
        self.network, self.scale_in = network, scale_in
        self.values: list[float] = []
        self.fused = _read_by_activations_only(network)

    def append(self, signal: Signal) -> None:
        """The bound of one more signal."""
        match signal:
            case Input():
                value = float(up(1 / self.scale_in).max())
            case Affine():
                # an activation takes the norm of the weight together with its gains: this value is not read
                value = math.nan if len(self.values) in self.fused else self.through(signal, np.ones(signal.size))
            case Activation():
                before = self.network.signals[signal.operand]
                if isinstance(before, Affine):
                    value = self.through(before, signal.gain)
                else:
                    value = _times(float(signal.gain.max()), self.values[signal.operand])
            case Sum():
                value = _plus(self.values[signal.first], self.values[signal.second])
            case Concatenation():
                value = reduce(_root_of_squares, (self.values[operand] for operand in signal.operands))
            case Selection():
                repeats = int(np.bincount(signal.indices).max())
                value = _times(1.0 if repeats == 1 else _up(math.sqrt(repeats)), self.values[signal.operand])
            case Sort():
                value = self.values[signal.operand]
            case Implicit():  # |dz| <= |dv| / margin in the metric's norm
                spread = float(up(np.sqrt(up(signal.metric.max() / signal.metric.min()))))
                value = _times(float(up(spread / signal.margin)), self.values[signal.operand])
        self.values.append(value)

    def through(self, signal: Affine, output_scale: Array) -> float:
        """The bound of S W v for the weight and the operand v of ``signal``."""
        scale_in = _unless_one(self.scale_in) if signal.operand == 0 else None
        norm = norm_upper_bound(signal.weight, scale_in, _unless_one(output_scale))
        return norm if signal.operand == 0 else _times(norm, self.values[signal.operand])


def _read_by_activations_only(network: Network) -> set[int]:
    """The affine signals whose own bound is not needed."""
    others = {network.output}
    for signal in network.signals:
        match signal:
            case Affine() | Selection() | Sort() | Implicit():
                others.add(signal.operand)
            case Sum():
                others |= {signal.first, signal.second}
            case Concatenation():
                others |= {*signal.operands}
            case _:
                continue
    return {*range(len(network.signals))} - others


def require_little(network: Network) -> None:
    """Raises Rejected where proved norms of all weights would take too long."""
    if products_of_norms(network) > MAX_PRODUCTS:
        raise Rejected(f"norms of these weights need more than {MAX_PRODUCTS} products, which is more than are accepted")


def products_of_norms(network: Network) -> int:
    """About how many multiplications a product of norms takes: every activation takes the norm of the weight before it anew."""
    signals, fused = network.signals, _read_by_activations_only(network)
    taken = [signals[signal.operand] for signal in signals if isinstance(signal, Activation)]
    taken += [signal for i, signal in enumerate(signals) if i not in fused]
    weights = [signal.weight.shape for signal in taken if isinstance(signal, Affine)]
    return sum(rows * columns * min(rows, columns) for rows, columns in weights)


def _unless_one(scale: Array) -> Array | None:
    return None if bool(np.all(scale == 1)) else scale


def _up(value: float) -> float:
    return math.nextafter(value, math.inf)


def _plus(first: float, second: float) -> float:
    return max(first, second) if 0.0 in (first, second) else _up(first + second)


def _times(first: float, second: float) -> float:
    """The product rounded up; 0 where a factor is 0, however large the other."""
    if 0.0 in (first, second):
        return 0.0
    return _up(first * second)


def _root_of_squares(first: float, second: float) -> float:
    return max(first, second) if 0.0 in (first, second) else _up(math.sqrt(_up(_up(first * first) + _up(second * second))))
