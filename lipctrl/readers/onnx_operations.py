"""What each ONNX operation does to constants (arrays) and to signals (nodes of the graph that is written).

Constants are moved and picked from, never added or multiplied: that would round, and certify another network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import MAX_SIZE
from lipctrl.core.errors import InputError
from lipctrl.readers.building import Builder, exact

MAX_ENTRIES = 1 << 24  #: of one constant that is picked from others
MAX_MOVED_BYTES = 128 << 20  #: of all constants that are made from others

_BATCH_NORM = "BatchNormalization is read as a diagonal affine map, its factors scale / sqrt(variance + epsilon) rounded as floats"


@dataclass(frozen=True)
class Signal:
    """A tensor that depends on the input: ``node`` holds its entries in row-major order."""

    node: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Value = Signal | np.ndarray


@dataclass
class Context:
    """The graph that is written, the model's operator set, and what the reader wants to say."""

    builder: Builder
    opset: int
    notes: dict[str, None] = field(default_factory=dict)
    spent: int = 0  # bytes of constants made while reading

    def keep(self, array: np.ndarray) -> np.ndarray:
        """A constant made from others; the bytes of all of them are bounded."""
        self.spent += array.nbytes
        if self.spent > MAX_MOVED_BYTES:
            raise InputError(f"constants made from others take more than {MAX_MOVED_BYTES} bytes")
        return array


@dataclass(frozen=True)
class Call:
    """One node of the model: its attributes, its operands (``None``: left out) and how many outputs are used."""

    attributes: dict[str, Any]
    operands: tuple[Value | None, ...]
    outputs: int

    def operand(self, index: int) -> Value:
        """An operand that must be there."""
        value = self.operands[index] if index < len(self.operands) else None
        if value is None:
            raise InputError(f"operand {index} is missing")
        return value

    def signal(self, index: int = 0) -> Signal:
        """An operand that must depend on the input."""
        value = self.operand(index)
        if not isinstance(value, Signal):
            raise InputError("arithmetic on constants rounds and is not read; export the model with constants folded")
        return value

    def constant(self, index: int, what: str) -> np.ndarray | None:
        """An operand that must not depend on the input; ``None`` where it is left out."""
        value = self.operands[index] if index < len(self.operands) else None
        if isinstance(value, Signal):
            raise InputError(f"{what} depends on the input, expected a constant")
        return value

    def whole(self, index: int, name: str) -> list[int] | None:
        """Integers, given by older operator sets as an attribute and by newer ones as an operand."""
        given = self.attributes.get(name)
        values = self.constant(index, name) if given is None else given
        return None if values is None else [int(v) for v in np.ravel(values)]


Operation = Callable[[Context, Call], Sequence[Value]]


def _same_type(signal: Signal, *constants: np.ndarray) -> None:
    for constant in constants:
        if constant.dtype != signal.dtype:
            raise InputError(f"a constant holds {constant.dtype.name} and the signal {signal.dtype.name}, expected the same")


# --- coordinate by coordinate -----------------------------------------------------------------------------------------


def _plain(op: str) -> Operation:
    def operation(context: Context, call: Call) -> list[Value]:
        x = call.signal()
        return [Signal(context.builder.apply(op, x.node), x.shape, x.dtype)]

    return operation


def _binary(op: str) -> Operation:
    def operation(context: Context, call: Call) -> list[Value]:
        operands = [call.operand(index) for index in range(len(call.operands))]
        return [reduce(lambda left, right: _combine(context, op, left, right), operands)]

    return operation


def _combine(context: Context, op: str, left: Value, right: Value) -> Value:
    signals = [value for value in (left, right) if isinstance(value, Signal)]
    if not signals:
        raise InputError("arithmetic on constants rounds and is not read; export the model with constants folded")
    if signals[0].dtype != signals[-1].dtype:
        raise InputError(f"operands hold {signals[0].dtype.name} and {signals[-1].dtype.name}, expected the same")
    builder, dtype = context.builder, signals[0].dtype
    shape = np.broadcast_shapes(left.shape, right.shape)
    if math.prod(shape) > MAX_SIZE:
        raise InputError(f"a tensor of shape {shape} has more than {MAX_SIZE} entries")
    if op == "add" and isinstance(left, np.ndarray):
        left, right = right, left
    nodes = [builder.tape.nodes[value.node] if isinstance(value, Signal) else None for value in (left, right)]
    if isinstance(left, Signal) and isinstance(right, Signal) and op == "mul":
        for value, other, node in ((left, right, nodes[1]), (right, left, nodes[0])):
            if node is not None and node.op == "sigmoid" and node.inputs == (value.node,) and value.shape == other.shape:
                return Signal(builder.apply("silu", value.node), shape, dtype)  # x sigmoid(x)
    if op == "add" and isinstance(left, Signal) and isinstance(right, np.ndarray) and left.shape == shape:
        node = nodes[0]
        if node is not None and node.op == "affine" and node.attributes["bias"] is None:
            _same_type(left, right)
            weight, bias = builder.tape.tensors[node.attributes["weight"]], np.broadcast_to(right, shape).ravel()
            if weight.dtype == dtype:
                return Signal(builder.affine(node.inputs[0], weight, bias), shape, dtype)
    return Signal(builder.combine(op, *(_broadcast(context, value, shape, signals[0]) for value in (left, right))), shape, dtype)


def _broadcast(context: Context, value: Value, shape: tuple[int, ...], like: Signal) -> int:
    """The node of a value repeated to a shape; constants of one entry stay one."""
    if isinstance(value, Signal):
        places = np.arange(math.prod(value.shape)).reshape(value.shape)
        return context.builder.select(value.node, np.broadcast_to(places, shape))
    _same_type(like, value)
    return context.builder.constant(value.ravel() if value.size == 1 else np.broadcast_to(value, shape))


def _leaky_relu(context: Context, call: Call) -> list[Value]:
    x, slope = call.signal(), np.array([call.attributes.get("alpha", np.float32(0.01))], np.float64)
    return [Signal(context.builder.leaky_relu(x.node, slope), x.shape, x.dtype)]


def _prelu(context: Context, call: Call) -> list[Value]:
    x, slopes = call.signal(), call.constant(1, "the slope")
    if slopes is None:
        raise InputError("operand 1 is missing")
    _same_type(x, slopes)
    return [Signal(context.builder.leaky_relu(x.node, np.broadcast_to(slopes, x.shape)), x.shape, x.dtype)]


def _gelu(context: Context, call: Call) -> Sequence[Value]:
    form = call.attributes.get("approximate", b"none")
    if form != b"none":
        raise InputError(f"approximate is {form!r}, but only the exact form, 'none', is read")
    return _plain("gelu")(context, call)


def _swish(context: Context, call: Call) -> Sequence[Value]:
    alpha = call.attributes.get("alpha", 1.0)
    if alpha != 1:
        raise InputError(f"alpha is {alpha}, expected 1")
    return _plain("silu")(context, call)


def _clip(context: Context, call: Call) -> list[Value]:
    x, ends = call.signal(), []
    for index, name in ((1, "min"), (2, "max")):
        value = call.constant(index, name) if context.opset >= 11 else None
        if value is not None:
            _same_type(x, value)
        if context.opset < 11 and name in call.attributes:
            value = np.array(call.attributes[name])
        ends.append(value)
    return [Signal(context.builder.clip(x.node, *ends), x.shape, x.dtype)]


def _batch_norm(context: Context, call: Call) -> list[Value]:
    x, parameters = call.signal(), [call.constant(index, "a statistic") for index in range(1, 5)]
    if call.attributes.get("training_mode", 0) or call.outputs != 1 or not call.attributes.get("spatial", 1):
        raise InputError("normalises by the statistics of the batch (training mode), expected inference")
    weight, bias, mean, variance = (p for p in parameters if p is not None)
    _same_type(x, weight, bias, mean, variance)
    channels = (1, -1) + (1,) * (len(x.shape) - 2)
    mean, variance, weight, bias = (np.broadcast_to(p.reshape(channels), x.shape).ravel() for p in (mean, variance, weight, bias))
    context.notes[_BATCH_NORM] = None
    node = context.builder.batch_norm(x.node, mean, variance, weight, bias, call.attributes.get("epsilon", 1e-5))
    return [Signal(node, x.shape, x.dtype)]


# --- products with matrices -------------------------------------------------------------------------------------------


def _matmul(context: Context, call: Call) -> list[Value]:
    left, right = call.operand(0), call.operand(1)
    if isinstance(left, Signal) and isinstance(right, np.ndarray) and right.ndim == 2 and set(left.shape[:-1]) <= {1}:
        _same_type(left, right)
        return [Signal(context.builder.affine(left.node, right.T), (*left.shape[:-1], right.shape[1]), left.dtype)]
    if isinstance(left, np.ndarray) and isinstance(right, Signal) and left.ndim == 2 and set(right.shape[1:]) <= {1}:
        _same_type(right, left)
        return [Signal(context.builder.affine(right.node, left), (left.shape[0], *right.shape[1:]), right.dtype)]
    kinds = [f"{'signal' if isinstance(v, Signal) else 'constant'} of shape {v.shape}" for v in (left, right)]
    raise InputError(f"multiplies a {kinds[0]} and a {kinds[1]}, expected one vector and one constant matrix")


def _gemm(context: Context, call: Call) -> list[Value]:
    """alpha A B + beta C with a signal A; alpha and beta, where not 1, are exact nodes of their own."""
    x, matrix, bias = call.signal(), call.constant(1, "the matrix"), call.constant(2, "the bias")
    alpha, beta = call.attributes.get("alpha", 1.0), call.attributes.get("beta", 1.0)
    row = x.shape[::-1] if call.attributes.get("transA", 0) else x.shape
    if matrix is None or matrix.ndim != 2 or len(row) != 2 or row[0] != 1:
        raise InputError(f"multiplies a signal of shape {x.shape} and a matrix, expected a signal of shape (1, n)")
    weight = matrix if call.attributes.get("transB", 0) else matrix.T
    _same_type(x, weight, *([] if bias is None else [bias]))
    shift = None if bias is None else np.broadcast_to(bias, (1, len(weight))).ravel()
    builder, shape = context.builder, (1, len(weight))
    if alpha == 1 and beta == 1:
        return [Signal(builder.affine(x.node, weight, shift), shape, x.dtype)]
    node = builder.scale(builder.affine(x.node, weight), (Fraction(alpha),))
    if shift is not None:
        node = builder.shift(node, tuple(Fraction(beta) * value for value in exact(shift)))
    return [Signal(node, shape, x.dtype)]


# --- moving entries ---------------------------------------------------------------------------------------------------


def _move(context: Context, value: Value, function: Callable[[np.ndarray], np.ndarray]) -> Value:
    """Apply a function that only moves and picks entries: to the constant, or to the places of the signal's entries."""
    if isinstance(value, np.ndarray):
        return context.keep(np.asarray(function(value)))
    places = function(np.arange(math.prod(value.shape)).reshape(value.shape))
    return Signal(context.builder.select(value.node, places), places.shape, value.dtype)


def _identity(context: Context, call: Call) -> list[Value]:
    return [call.operand(0)]


def _dropout(context: Context, call: Call) -> list[Value]:
    training = call.constant(2, "training_mode")
    if (training is not None and training.any()) or call.outputs != 1:
        raise InputError("is active (training mode), expected inference")
    return [call.operand(0)]


def _reshape(context: Context, call: Call) -> list[Value]:
    value, target = call.operand(0), call.whole(1, "shape")
    if target is None:
        raise InputError("operand 1 is missing")
    if not call.attributes.get("allowzero", 0):
        target = [value.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return [_move(context, value, lambda array: array.reshape(target))]


def _flatten(context: Context, call: Call) -> list[Value]:
    value, axis = call.operand(0), int(call.attributes.get("axis", 1))
    rows = math.prod(value.shape[:axis])
    return [_move(context, value, lambda array: array.reshape(rows, -1))]


def _squeeze(context: Context, call: Call) -> list[Value]:
    axes = call.whole(1, "axes")
    return [_move(context, call.operand(0), lambda array: np.squeeze(array, None if axes is None else tuple(axes)))]


def _unsqueeze(context: Context, call: Call) -> list[Value]:
    axes = tuple(call.whole(1, "axes") or ())
    return [_move(context, call.operand(0), lambda array: np.expand_dims(array, axes))]


def _transpose(context: Context, call: Call) -> list[Value]:
    return [_move(context, call.operand(0), lambda array: np.transpose(array, call.attributes.get("perm")))]


def _slice(context: Context, call: Call) -> list[Value]:
    value, starts, ends = call.operand(0), call.whole(1, "starts"), call.whole(2, "ends")
    if starts is None or ends is None:
        raise InputError("starts or ends are missing")
    axes = call.whole(3, "axes") or list(range(len(starts)))
    steps = call.whole(4, "steps") or [1] * len(starts)
    keys = [slice(None)] * len(value.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = value.shape[axis]
        # going backwards, an end before the first entry is no negative index but "up to and with the first"
        keys[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return [_move(context, value, lambda array: array[tuple(keys)])]


def _gather(context: Context, call: Call) -> list[Value]:
    value, indices, axis = call.operand(0), call.constant(1, "the index"), int(call.attributes.get("axis", 0))
    if indices is None or indices.dtype.kind != "i":
        raise InputError("the index is no integer constant")
    if math.prod(value.shape) * max(1, indices.size) // max(1, value.shape[axis]) > MAX_ENTRIES:
        raise InputError(f"picks more than {MAX_ENTRIES} entries")
    return [_move(context, value, lambda array: np.take(array, indices, axis))]


def _split(context: Context, call: Call) -> list[Value]:
    value, sizes, axis = call.operand(0), call.whole(1, "split"), int(call.attributes.get("axis", 0))
    length = value.shape[axis]
    if sizes is None:
        count = int(call.attributes.get("num_outputs", call.outputs))
        part = -(-length // count)
        sizes = [part] * (count - 1) + [length - part * (count - 1)]
    if sum(sizes) != length or min(sizes) < 1 or len(sizes) != call.outputs:
        raise InputError(f"splits {length} entries into parts of {sizes[:8]}")
    stops = np.cumsum(sizes).tolist()
    picks = [np.arange(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    return [_move(context, value, lambda array, pick=pick: np.take(array, pick, axis)) for pick in picks]  # type: ignore[misc]


def _concat(context: Context, call: Call) -> list[Value]:
    values, axis = [call.operand(index) for index in range(len(call.operands))], int(call.attributes["axis"])
    constants = [value for value in values if isinstance(value, np.ndarray)]
    if len(constants) == len(values):
        return [context.keep(np.concatenate(constants, axis))]
    like = next(value for value in values if isinstance(value, Signal))
    _same_type(like, *constants)
    if any(value.dtype != like.dtype for value in values) or sum(math.prod(value.shape) for value in values) > MAX_SIZE:
        raise InputError(f"joins different types, or more than {MAX_SIZE} entries")
    builder = context.builder
    joined = builder.concatenate([value.node if isinstance(value, Signal) else builder.constant(value) for value in values])
    starts = np.cumsum([0, *(math.prod(value.shape) for value in values)]).tolist()
    places = [np.arange(a, b).reshape(value.shape) for a, b, value in zip(starts, starts[1:], values, strict=False)]
    moved = np.concatenate(places, axis)
    return [Signal(builder.select(joined, moved), moved.shape, like.dtype)]


def _shape(context: Context, call: Call) -> list[Value]:
    whole = slice(call.attributes.get("start", 0), call.attributes.get("end"))
    return [np.array(call.operand(0).shape[whole], np.int64)]


def _constant(context: Context, call: Call) -> list[Value]:
    if len(call.attributes) != 1:
        raise InputError(f"has the attributes {sorted(call.attributes)}, expected one value")
    ((name, value),) = call.attributes.items()
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name == "value" and isinstance(value, np.ndarray):
        return [value]
    if name not in kinds:
        raise InputError(f"holds {name!r}, expected a dense tensor or numbers")
    return [np.array(value, kinds[name])]


def _cast(context: Context, call: Call) -> list[Value]:
    """To another type where that loses nothing; float64 signals to float32 would round at run time."""
    from onnx import helper

    value, dtype = call.operand(0), np.dtype(helper.tensor_dtype_to_np_dtype(call.attributes["to"]))
    if isinstance(value, Signal):
        if dtype not in (value.dtype, np.float64):
            raise InputError(f"a signal in {value.dtype.name} is rounded to {dtype.name}, which is not read")
        return [Signal(value.node, value.shape, dtype)]
    if dtype.kind not in "bif":
        raise InputError(f"a constant is cast to {dtype.name}, which is not read")
    with np.errstate(all="ignore"):
        cast = value.astype(dtype)
    if not np.array_equal(cast.astype(value.dtype), value):
        raise InputError(f"a constant in {value.dtype.name} is rounded to {dtype.name}, which is not read")
    return [context.keep(cast)]


_ELEMENTWISE = {name: name.lower() for name in "Relu Tanh Sigmoid Softplus Erf Abs Neg Sin Cos Tan Exp Log Sqrt".split()}
_BINARIES = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Min": "min", "Max": "max", "Sum": "add"}

OPERATIONS: dict[str, Operation] = {
    **{name: _plain(op) for name, op in _ELEMENTWISE.items()},
    **{name: _binary(op) for name, op in _BINARIES.items()},
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "PRelu": _prelu,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Swish": _swish,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}  #: every operation that is read, by its ONNX name
