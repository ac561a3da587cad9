"""Graphs in CasADi: symbolic expressions (SX or MX) with exact derivatives, for optimisation over plants and policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import casadi
import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.compilation import compile_steps
from lipctrl.core.errors import InputError
from lipctrl.core.implicit_solver import COOLING, HOTTEST, NEAR, PULL, ImplicitSolver
from lipctrl.core.rationals import floats

CASADI_STEPS = 100  #: splitting steps for an implicit layer
CASADI_LAYERS = 25  #: on the path of softer layers where splitting fails
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
        """z = activation(weight z + x), solved as in :mod:`lipctrl.core.implicit_solver`, with the derivatives of the solution.

        NaN where it is not solved. The function raises InputError for SX, which has no root finder: use MX.
        """
        layer = _implicit_function(ImplicitSolver(weight, activation), getattr(self, activation))

        def apply(x: Expression) -> Expression:
            if isinstance(x, casadi.SX):
                raise InputError("an implicit layer has no SX expression: use casadi.MX.sym")
            return layer(x)

        return apply

    def recentre(self, graph: Graph, point: tuple[Fraction, ...], offset: np.ndarray) -> Callable[[Expression], Expression]:
        """The inner graph minus the stored offset."""
        inner = compile_steps(graph, self)
        (name,), (output,) = graph.input_sizes, graph.outputs
        shift = casadi.DM(offset.astype(np.float64))
        return lambda x: inner({name: x})[output] - shift


def _implicit_function(solver: ImplicitSolver, phi: Callable[[Expression], Expression]) -> casadi.Function:
    """v -> z: Newton's method from where splitting ends, and where that fails, from the end of the path of softer layers."""
    size, matrix, resolvent = len(solver.weight), casadi.DM(solver.weight), casadi.DM(solver.layer.resolvent)
    y, z, v = (casadi.MX.sym(name, size) for name in "yzv")
    reflected = 2 * phi(y) - y
    split = casadi.Function("split", [y, v], [2 * casadi.mtimes(resolvent, reflected + v) - reflected]).fold(CASADI_STEPS)
    miss = casadi.Function("miss", [z, v], [phi(casadi.mtimes(matrix, z) + v) - z])
    root = casadi.rootfinder("root", "newton", miss, {"abstol": 1e-13, "error_on_fail": False})
    scale = 1 + casadi.norm_inf(v) + casadi.norm_inf(z)
    is_solved = casadi.Function("is_solved", [z, v], [casadi.norm_inf(miss(z, v)) <= CASADI_RESIDUAL * scale])
    by_splitting = casadi.Function("by_splitting", [v], [root(phi(split(v, casadi.repmat(v, 1, CASADI_STEPS))), v)])
    path = _soft_path(solver, phi)
    along_path = casadi.Function("along_path", [v, z], [root(phi(path(v)), v)])
    kept = casadi.Function("kept", [v, z], [z])
    choice = casadi.Function.if_else("choice", kept, along_path)
    first = by_splitting(v)
    last = choice(is_solved(first, v), v, first)
    return casadi.Function("implicit", [v], [last + casadi.if_else(is_solved(last, v), 0, casadi.DM.nan())])


def _soft_path(solver: ImplicitSolver, phi: Callable[[Expression], Expression]) -> casadi.Function:
    """v -> w at the end of the path of :mod:`lipctrl.core.implicit_solver`."""
    size = len(solver.weight)
    w, v, share = casadi.MX.sym("w", size), casadi.MX.sym("v", size), casadi.MX.sym("share")
    soft = phi if solver.coldest else _softplus
    hottest = casadi.fmax(casadi.norm_inf(v), max(1.0, solver.coldest * HOTTEST * solver.size))
    heat, pull = casadi.fmax(solver.coldest, share * hottest), PULL * solver.size * share
    z = (heat if solver.homogeneous else 1) * soft(w / heat)
    miss = (w - casadi.mtimes(casadi.DM(solver.weight), z) + pull * z - v) / heat
    problem = casadi.Function("softer", [w, casadi.vertcat(v, share)], [miss])
    root = casadi.rootfinder("soft_root", "newton", problem, {"abstol": NEAR, "error_on_fail": False})
    step = casadi.Function("step", [w, v, share], [root(w, casadi.vertcat(v, share))]).fold(CASADI_LAYERS)
    shares = casadi.DM([COOLING**k for k in range(CASADI_LAYERS)]).T
    return casadi.Function("path", [v], [step(v, casadi.repmat(v, 1, CASADI_LAYERS), shares)])


def _sorted(column: Expression) -> Expression:
    """Odd-even transposition: a fixed network of exchanges, because symbols cannot be compared."""
    values = [column[i] for i in range(column.shape[0])]
    for turn in range(len(values)):
        for i in range(turn % 2, len(values) - 1, 2):
            values[i], values[i + 1] = casadi.fmin(values[i], values[i + 1]), casadi.fmax(values[i], values[i + 1])
    return casadi.vertcat(*values)
