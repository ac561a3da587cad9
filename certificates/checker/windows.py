"""Windows of a network: the part between two signals, as a network of its own, where nothing goes around it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Affine, Concatenation, Implicit, Input, Network, Selection, Signal, Sort, Sum
from lipctrl.certificates.checker.products import scaled
from lipctrl.certificates.checker.verdict import Rejected


def window(network: Network, first: int, last: int) -> Network:
    """Signal ``last`` as a function of signal ``first``. Raises Rejected where what is between reads anything earlier.

    A coordinate-wise map at the end becomes the window's ``output_gain``.
    """
    if not 0 <= first < last < len(network.signals):
        raise Rejected(f"a window from signal {first} to signal {last} of {len(network.signals)}")
    signals: list[Signal] = [Input(network.signals[first].size)]
    signals += [_moved(signal, first) for signal in network.signals[first + 1 : last + 1]]
    output, gain = last - first, np.ones(network.signals[last].size)
    end = signals[-1]
    if isinstance(end, Activation):
        output, gain = end.operand, end.gain
        signals.pop()
    return Network(tuple(signals), output, np.ones(signals[0].size), gain)


def leaving_scale(part: Network, scale: Array) -> Array:
    """The scale of the norm before the coordinate-wise map at the end of a window, rounded up, from the one behind it."""
    return np.where(part.output_gain == 1, scale, scaled(scale, part.output_gain))


def _moved(signal: Signal, first: int) -> Signal:
    """The signal with its operands counted from signal ``first``."""
    moved: Signal
    operands: tuple[int, ...]
    match signal:
        case Affine() | Activation() | Sort() | Selection() | Implicit():
            moved, operands = replace(signal, operand=signal.operand - first), (signal.operand,)
        case Sum():
            moved, operands = replace(signal, first=signal.first - first, second=signal.second - first), (signal.first, signal.second)
        case Concatenation():
            moved, operands = replace(signal, operands=tuple(i - first for i in signal.operands)), signal.operands
        case Input():
            raise Rejected("a window begins after the input")
    if not all(operand >= first for operand in operands):
        raise Rejected(f"{type(signal).__name__} reads a signal from before its window")
    return moved
