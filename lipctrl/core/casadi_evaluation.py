"""Graphs in CasADi: symbolic expressions (SX or MX) with exact derivatives, for optimisation over plants and policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import casadi
import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.implicit import FixedPoint
from lipctrl.core.compilation import compile_steps
from lipctrl.core.errors import InputError
from lipctrl.core.rationals import floats

CASADI_STEPS = 100  #: splitting steps for an implicit layer
CASADI_RESIDUAL = 1e-9  #: of its solution, relative, at most

Expression = Any  #: a column of type casadi.SX, casadi.MX or casadi.DM


def evaluate_casadi(graph: Graph, inputs: Mapping[str, Expression]) -> dict[str, Expression]:
    """The outputs of a graph, by name, as expressions in the given column vectors (SX, MX or DM).

    Raises InputError where an input is missing or no column of the right length.
    """
    sizes = graph.input_sizes
    if set(inputs) != set(sizes):
        raise InputError(f"got inputs {sorted(inputs)}, expected {sorted(sizes)}")
    for name, value in inputs.items():
        if tuple(value.shape) != (sizes[name], 1):
            raise InputError(f"input {name!r} has shape {tuple(value.shape)}, expected ({sizes[name]}, 1)")
    return compile_steps(graph, CasadiOperations())(inputs)


def casadi_function(graph: Graph, name: str = "graph", symbol: Any = None) -> casadi.Function:
    """The graph as a ``casadi.Function`` with its own input and output names, in order.

    ``symbol`` chooses the expression type: ``casadi.SX.sym`` (default without weights) or ``casadi.MX.sym``.
    """
    if symbol is None:
        symbol = casadi.MX.sym if graph.tensors else casadi.SX.sym
    inputs = {key: symbol(key, size) for key, size in graph.input_sizes.items()}
    outputs = evaluate_casadi(graph, inputs)
    columns: list[Any] = [value if isinstance(value, casadi.SX | casadi.MX) else casadi.DM(value) for value in outputs.values()]
    return casadi.Function(name, list(inputs.values()), columns, list(inputs), list(outputs))


def _relu(x: Expression) -> Expression:
    return casadi.fmax(x, 0)


def _sigmoid(x: Expression) -> Expression:
    return 0.5 + 0.5 * casadi.tanh(0.5 * x)  # has finite derivatives everywhere, unlike 1 / (1 + exp(-x))


def _softplus(x: Expression) -> Expression:
    return casadi.fmax(x, 0) + casadi.log1p(casadi.exp(-casadi.fabs(x)))


def _gelu(x: Expression) -> Expression:
    return 0.5 * x * (1 + casadi.erf(x * np.sqrt(0.5)))


def _concatenate(*parts: Expression) -> Expression:
    return casadi.vertcat(*parts)


class CasadiOperations:
    """One attribute per operation, see ``compilation``; values are columns."""

    sin, cos, tan = staticmethod(casadi.sin), staticmethod(casadi.cos), staticmethod(casadi.tan)
    exp, log, sqrt = staticmethod(casadi.exp), staticmethod(casadi.log), staticmethod(casadi.sqrt)
    abs, erf, tanh = staticmethod(casadi.fabs), staticmethod(casadi.erf), staticmethod(casadi.tanh)
    min, max, concatenate = staticmethod(casadi.fmin), staticmethod(casadi.fmax), staticmethod(_concatenate)
    sigmoid, softplus, relu, gelu = staticmethod(_sigmoid), staticmethod(_softplus), staticmethod(_relu), staticmethod(_gelu)

    @staticmethod
    def neg(x: Expression) -> Expression:
        """-x."""
        return -x

    @staticmethod
    def add(x: Expression, y: Expression) -> Expression:
        """x + y."""
        return x + y

    @staticmethod
    def sub(x: Expression, y: Expression) -> Expression:
        """x - y."""
        return x - y

    @staticmethod
    def mul(x: Expression, y: Expression) -> Expression:
        """x y, coordinate by coordinate."""
        return x * y

    @staticmethod
    def div(x: Expression, y: Expression) -> Expression:
        """x / y."""
        return x / y

    @staticmethod
    def silu(x: Expression) -> Expression:
        """x sigmoid(x)."""
        return x * _sigmoid(x)

    def constant(self, values: tuple[Fraction, ...]) -> Expression:
        """The exact values, each rounded to float64."""
        return casadi.DM(floats(values))

    def power(self, exponent: int) -> Callable[[Expression], Expression]:
        """x to a fixed whole power."""
        return lambda x: x**exponent

    def clip(self, low: tuple[Fraction, ...], high: tuple[Fraction, ...]) -> Callable[[Expression], Expression]:
        """Clip to constants."""
        lower, upper = self.constant(low), self.constant(high)
        return lambda x: casadi.fmin(casadi.fmax(x, lower), upper)

    def leaky_relu(self, slope: Fraction) -> Callable[[Expression], Expression]:
        """x where positive, slope x elsewhere."""
        factor = float(slope)
        return lambda x: casadi.if_else(x > 0, x, factor * x)

    def select(self, indices: tuple[int, ...]) -> Callable[[Expression], Expression]:
        """Some coordinates."""
        return lambda x: x[list(indices), 0]  # with one index, casadi makes a row of it

    def affine(self, weight: np.ndarray, bias: np.ndarray | None) -> Callable[[Expression], Expression]:
        """weight x + bias."""
        matrix = casadi.DM(weight.astype(np.float64))
        shift = 0 if bias is None else casadi.DM(bias.astype(np.float64))
        return lambda x: casadi.mtimes(matrix, x) + shift

    def group_sort(self, group_size: int) -> Callable[[Expression], Expression]:
        """Ascending inside consecutive groups; a leftover group is smaller."""
        return lambda x: casadi.vertcat(*(_sorted(x[i : min(i + group_size, x.shape[0])]) for i in range(0, x.shape[0], group_size)))

    def implicit(self, weight: np.ndarray, metric: np.ndarray, activation: str) -> Callable[[Expression], Expression]:
        """z = activation(weight z + x): splitting steps, then Newton's method, whose derivatives are those of the solution.

        NaN where these have not solved it. The function raises InputError for SX, which has no root finder: use MX.
        """
        size, phi = len(metric), getattr(self, activation)
        matrix, resolvent = (casadi.DM(m) for m in (weight.astype(np.float64), FixedPoint(weight, activation).resolvent))
        y, z, v = (casadi.MX.sym(name, size) for name in "yzv")
        reflected = 2 * phi(y) - y
        step = casadi.Function("step", [y, v], [2 * casadi.mtimes(resolvent, reflected + v) - reflected]).fold(CASADI_STEPS)
        miss = casadi.Function("miss", [z, v], [phi(casadi.mtimes(matrix, z) + v) - z])
        root = casadi.rootfinder("root", "newton", miss, {"abstol": 1e-13, "error_on_fail": False})

        def apply(x: Expression) -> Expression:
            if isinstance(x, casadi.SX):
                raise InputError("an implicit layer has no SX expression: use casadi.MX.sym")
            solution = root(phi(step(x, casadi.repmat(x, 1, CASADI_STEPS))), x)
            scale = 1 + casadi.norm_inf(x) + casadi.norm_inf(solution)
            solved = casadi.norm_inf(miss(solution, x)) <= CASADI_RESIDUAL * scale
            return solution + casadi.if_else(solved, 0, casadi.DM.nan())

        return apply

    def recentre(self, graph: Graph, point: tuple[Fraction, ...], offset: np.ndarray) -> Callable[[Expression], Expression]:
        """The inner graph minus the stored offset."""
        inner = compile_steps(graph, self)
        (name,), (output,) = graph.input_sizes, graph.outputs
        shift = casadi.DM(offset.astype(np.float64))
        return lambda x: inner({name: x})[output] - shift


def _sorted(column: Expression) -> Expression:
    """Odd-even transposition: a fixed network of exchanges, because symbols cannot be compared."""
    values = [column[i] for i in range(column.shape[0])]
    for turn in range(len(values)):
        for i in range(turn % 2, len(values) - 1, 2):
            values[i], values[i + 1] = casadi.fmin(values[i], values[i + 1]), casadi.fmax(values[i], values[i + 1])
    return casadi.vertcat(*values)
