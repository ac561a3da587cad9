"""What functions of NumPy, torch and SciPy do to recording symbols: the table behind ``np.sin(x)`` and ``nn.Linear(...)(x)``.

Names are those of the libraries; where NumPy and torch differ only in how they name an argument (``axis`` and ``dim``)
one function serves both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from lipctrl.certificates.checker.graph import ELEMENTWISE, IMPLICIT_ACTIVATIONS, GraphError
from lipctrl.certificates.checker.implicit import margin
from lipctrl.core.rationals import rational
from lipctrl.core.symbols import FUNCTIONS, Scalar, Symbol, Tape, Vector, combine, detached, elementwise, refuse, tape_of

_Function = TypeVar("_Function", bound=Callable[..., Any])


def recorded(*names: str) -> Callable[[_Function], _Function]:
    """Enter a function into the table under the given names."""

    def enter(function: _Function) -> _Function:
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function

    return enter


def _dimensions(value: Any) -> int:
    """0 for a number, 1 for a vector, 2 for a matrix."""
    return int(isinstance(value, Vector)) if isinstance(value, Symbol) else np.ndim(detached(value))


def _vector(value: Any) -> Symbol:
    return tape_of([value]).lift(value)


def _plain(op: str) -> Callable[..., Symbol]:
    def function(input: Any, inplace: bool = False) -> Symbol:
        return elementwise(op, _vector(input))

    return function


for _op in ELEMENTWISE:
    FUNCTIONS[_op] = _plain(_op)
for _name, _op in {"absolute": "abs", "fabs": "abs", "negative": "neg", "expit": "sigmoid"}.items():
    FUNCTIONS[_name] = FUNCTIONS[_op]


def _binary(op: str, swapped: bool = False) -> Callable[..., Symbol]:
    def function(input: Any, other: Any) -> Symbol:
        return combine(op, other, input) if swapped else combine(op, input, other)

    return function


_BINARY_NAMES = {
    "add": "add radd",
    "sub": "sub subtract",
    "mul": "mul rmul multiply",
    "div": "div truediv true_divide divide",
    "min": "minimum fmin",
    "max": "maximum fmax",
}
for _op, _names in _BINARY_NAMES.items():
    for _name in _names.split():
        FUNCTIONS[_name] = _binary(_op)
for _op in ("sub", "div", "truediv"):
    FUNCTIONS[f"r{_op}"] = _binary("sub" if _op == "sub" else "div", swapped=True)


@recorded("positive", "asarray", "ascontiguousarray", "ravel", "flatten", "squeeze", "copy", "transpose", "atleast_1d")
def _identity(value: Any) -> Symbol:
    return _vector(value)


@recorded("square")
def _square(input: Symbol) -> Symbol:
    return elementwise("power", _vector(input), exponent=2)


@recorded("reciprocal")
def _reciprocal(input: Symbol) -> Symbol:
    return combine("div", 1, input)


@recorded("power", "pow", "float_power")
def _power(input: Any, exponent: Any) -> Symbol:
    if not isinstance(input, Symbol) or isinstance(exponent, Symbol):
        refuse("a symbol as exponent is not in the closed list of operations", "use np.exp")
    value = rational(detached(exponent), "exponent")
    if value == Fraction(1, 2):
        return elementwise("sqrt", input)
    if value.denominator != 1:
        refuse(f"the power {value} is not in the closed list of operations", "use whole exponents or sqrt")
    result = elementwise("power", input, exponent=abs(int(value)))
    return result if value >= 0 else combine("div", 1, result)


@recorded("clip", "clamp", "hardtanh")
def _clip(input: Any, *bounds: Any, **named: Any) -> Symbol:
    """Clip to constants, or to symbols; ``None`` means no bound on that side."""
    low, high = (*bounds, None, None)[:2]
    for name, value in named.items():
        if name in ("a_min", "min", "min_val", "a_max", "max", "max_val"):
            low, high = (value, high) if "min" in name else (low, value)
        elif name != "inplace":
            refuse(f"clip with {name}=", "give the two bounds")
    tape = tape_of([input, low, high])
    x = tape.lift(input)
    sides = [None if bound is None else tape.lift(bound) for bound in (low, high)]
    ends = [_constant_values(side, tape.sizes[x.index]) for side in sides if side is not None]
    if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
        if not all(a < b for a, b in zip(*ends, strict=True)):
            refuse("clip with a lower bound that is not below the upper", "swap or correct the bounds")
        return elementwise("clip", x, low=ends[0], high=ends[1])
    for side, op in zip(sides, ("max", "min"), strict=True):
        x = x if side is None else combine(op, x, side)
    return x


def _constant_values(symbol: Symbol, size: int) -> tuple[Fraction, ...] | None:
    node = symbol.tape.nodes[symbol.index]
    values = node.attributes.get("values")
    if values is None or len(values) not in (1, size):
        return None
    return tuple(values) * size if len(values) == 1 else tuple(values)


def _check_axis(axis: object) -> None:
    if axis not in (None, 0, -1, (0,), (-1,)):
        refuse(f"axis {axis!r}", "symbols have one axis, 0")


@recorded("concatenate", "concat", "cat", "hstack", "append")
def _concatenate(*parts: Any, axis: Any = 0, dim: Any = 0) -> Symbol:
    _check_axis(axis)
    _check_axis(dim)
    if len(parts) == 2 and isinstance(parts[1], int):
        _check_axis(parts[1])
        parts = parts[:1]
    items = list(parts[0]) if len(parts) == 1 else list(parts)
    return tape_of([items]).lift(items)


@recorded("stack")
def _stack(parts: Sequence[Any], axis: Any = 0, dim: Any = 0) -> Symbol:
    _check_axis(axis)
    _check_axis(dim)
    if any(_dimensions(part) for part in parts):
        refuse("stacking vectors gives a matrix", "use np.concatenate, or stack numbers")
    return tape_of([list(parts)]).lift(list(parts))


def _reduce(op: str, input: Any) -> Symbol:
    vector = _vector(input)
    if isinstance(vector, Scalar):
        return vector
    return functools.reduce(functools.partial(combine, op), list(vector))  # type: ignore[call-overload, no-any-return]


@recorded("sum", "add_reduce")
def _sum(input: Any, axis: Any = None, dim: Any = None, **defaults: Any) -> Symbol:
    _check_axis(axis)
    _check_axis(dim)
    return _reduce("add", input)


@recorded("mean")
def _mean(input: Any, axis: Any = None, dim: Any = None, **defaults: Any) -> Symbol:
    vector = _vector(input)
    return combine("div", _sum(vector, axis, dim), vector.tape.sizes[vector.index])


@recorded("max", "amax", "maximum_reduce")
def _max(input: Any, other: Any = None, axis: Any = None, **defaults: Any) -> Symbol:
    return _reduce("max", input) if other is None or isinstance(other, int) else combine("max", input, other)


@recorded("min", "amin", "minimum_reduce")
def _min(input: Any, other: Any = None, axis: Any = None, **defaults: Any) -> Symbol:
    return _reduce("min", input) if other is None or isinstance(other, int) else combine("min", input, other)


@recorded("norm", "vector_norm")
def _norm(input: Any, ord: Any = None, axis: Any = None) -> Symbol:
    if ord not in (None, 2):
        refuse(f"the norm of order {ord!r}", "only the Euclidean norm is recorded")
    _check_axis(axis)
    return elementwise("sqrt", _reduce("add", _square(input)))


@recorded("matmul", "rmatmul", "dot", "mv", "inner", "vdot", "vecdot")
def _matmul(left: Any, right: Any) -> Symbol:
    """Dot product, or a matrix times a vector from either side."""
    tape = tape_of([left, right])
    if _dimensions(left) == 2:
        return _matrix_times(tape, detached(left), tape.lift(right))
    if _dimensions(right) == 2:
        return _matrix_times(tape, np.transpose(detached(right)), tape.lift(left))
    product = combine("mul", left, right)
    return product if isinstance(product, Scalar) else _reduce("add", product)


def _matrix_times(tape: Tape, matrix: Any, vector: Symbol) -> Symbol:
    matrix = np.asarray(matrix)
    rows, columns = matrix.shape
    if columns != tape.sizes[vector.index]:
        refuse(f"a {rows} x {columns} matrix times a vector of {tape.sizes[vector.index]} components", "sizes must fit")
    if matrix.dtype in (np.float32, np.float64) and not tape.exact:
        return _affine(tape, vector, matrix, None)
    # exact: sum over columns of x_j times the column, so that n columns cost 2 n nodes
    terms = [combine("mul", vector[j], list(matrix[:, j])) for j in range(columns)]  # type: ignore[index]
    total = functools.reduce(functools.partial(combine, "add"), terms)
    return tape.symbol(total.index, scalar=False)


def _affine(tape: Tape, vector: Symbol, weight: np.ndarray, bias: np.ndarray | None) -> Symbol:
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        refuse("a weight or bias is NaN or infinite", "give finite weights")
    names = {"weight": tape.tensor(weight), "bias": None if bias is None else tape.tensor(bias)}
    return tape.symbol(tape.node("affine", (vector.index,), weight.shape[0], **names), scalar=False)


@recorded("linear")
def _linear(input: Symbol, weight: Any, bias: Any = None) -> Symbol:
    """``nn.Linear``: its weights are kept as tensors, bytes and dtype as they are."""
    weight, bias = np.asarray(detached(weight)), None if bias is None else np.asarray(detached(bias))
    if weight.ndim != 2 or weight.dtype not in (np.float32, np.float64) or weight.shape[1] != input.tape.sizes[input.index]:
        size = input.tape.sizes[input.index]
        refuse(f"a linear layer with {weight.dtype} weight of shape {weight.shape} on {size} components", "give a fitting float matrix")
    if input.tape.exact:
        product = _matrix_times(input.tape, weight, input)
        return product if bias is None else combine("add", product, bias)
    return _affine(input.tape, input, weight, bias)


@recorded("leaky_relu")
def _leaky_relu(input: Symbol, negative_slope: float = 0.01, inplace: bool = False) -> Symbol:
    return elementwise("leaky_relu", input, slope=rational(negative_slope, "negative_slope"))


@recorded("gelu")
def _gelu(input: Symbol, approximate: str = "none") -> Symbol:
    if approximate != "none":
        refuse(f"gelu with approximate={approximate!r}", "only the exact GELU, approximate='none', is recorded")
    return elementwise("gelu", input)


@recorded("softplus")
def _softplus(input: Symbol, beta: float = 1, threshold: float = 20) -> Symbol:
    if beta != 1:
        refuse(f"softplus with beta={beta}", "scale its input and output instead")
    return elementwise("softplus", input)


@recorded("logaddexp")
def _logaddexp(left: Any, right: Any) -> Symbol:
    zero, other = (left, right) if isinstance(right, Symbol) else (right, left)
    if isinstance(zero, Symbol) or rational(detached(zero)) != 0:
        refuse("np.logaddexp of two terms", "only np.logaddexp(0, x), the softplus, is recorded")
    return elementwise("softplus", other)


def group_sort(value: Any, group_size: int = 2) -> Symbol:
    """Sort a vector symbol, ascending, inside consecutive groups (GroupSort; MaxMin is ``group_size`` 2)."""
    if isinstance(value, Scalar) or not isinstance(value, Symbol):
        refuse("group_sort of something that is not a vector symbol", "give it a vector")
    return Vector(value.tape, value.tape.node("group_sort", (value.index,), value.tape.sizes[value.index], group_size=group_size))


def implicit(weight: Any, value: Any, activation: str = "relu", metric: Any = None) -> Symbol:
    """The z with z = activation(weight z + value), an implicit (equilibrium) layer; slopes of the activation are in [0, 1].

    ``weight`` D (n, n) is a float matrix, ``value`` a vector symbol of length n, ``metric`` (n,) positive floats L, ones if left out,
    with 2 diag(L) - diag(L) D - D^T diag(L) positive definite: then z exists and is the only one, and the checker proves that before
    it accepts anything about the graph. Raises RecordingError where sizes or the activation do not fit, or it is not so.
    """
    if isinstance(value, Scalar) or not isinstance(value, Symbol):
        refuse("an implicit layer of something that is not a vector symbol", "give it a vector")
    matrix, size = np.asarray(detached(weight)), value.tape.sizes[value.index]
    scale = np.ones(size) if metric is None else np.asarray(detached(metric))
    shapes = matrix.shape, scale.shape
    if value.tape.exact or any(array.dtype.name not in ("float32", "float64") for array in (matrix, scale)):
        refuse("an implicit layer with weights that are not float arrays, or in an exact graph", "give float arrays, without exact=True")
    if shapes != ((size, size), (size,)) or activation not in IMPLICIT_ACTIVATIONS:
        expected = f"expected shapes {(size, size)} and {(size,)} and one of {', '.join(IMPLICIT_ACTIVATIONS)}"
        refuse(f"an implicit layer with weight {shapes[0]}, metric {shapes[1]} and activation {activation!r}", expected)
    try:
        margin(matrix, scale)
    except GraphError as error:
        refuse(str(error), "give a metric that shows it, or a smaller weight")
    names = {"weight": value.tape.tensor(matrix), "metric": value.tape.tensor(scale)}
    return Vector(value.tape, value.tape.node("implicit", (value.index,), size, activation=activation, **names))
