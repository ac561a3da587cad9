"""Implicit layers far from symmetric, which splitting does not solve: values and gradients in every evaluation."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import casadi
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit_graphs import monotone, skewed

from lipctrl.certificates.checker.graph import IMPLICIT_ACTIVATIONS, Graph, Node
from lipctrl.certificates.checker.implicit import FixedPoint, margin
from lipctrl.core import implicit_solver
from lipctrl.core.casadi_evaluation import casadi_function
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.fixed_point import implicit_layer
from lipctrl.core.implicit_solver import ImplicitSolver
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.recording import implicit, record
from lipctrl.core.torch_evaluation import compile_torch

Array = Any
PHI = {
    "relu": lambda w: np.maximum(w, 0),
    "tanh": np.tanh,
    "sigmoid": lambda w: 0.5 + 0.5 * np.tanh(0.5 * w),
    "softplus": lambda w: np.logaddexp(0, w),
}
SLOPE = {
    "relu": lambda w: (w > 0).astype(float),
    "tanh": lambda w: 1 - np.tanh(w) ** 2,
    "sigmoid": lambda w: 0.25 - 0.25 * np.tanh(0.5 * w) ** 2,
    "softplus": lambda w: 0.5 + 0.5 * np.tanh(0.5 * w),
}


def rows(generator: np.random.Generator, count: int, n: int) -> Array:
    """Large and small ones, with zeros."""
    return generator.standard_normal((count, n)) * 10.0 ** generator.uniform(-4, 4, (count, 1)) * (generator.random((count, n)) < 0.8)


def roundings(weight: Array, v: Array, z: Array, activation: str) -> float:
    """The greatest residual, in units of the last place of what is summed."""
    scale = (np.abs(v) + np.abs(z) @ np.abs(weight).T + np.abs(z)).max(-1)
    residual = np.abs(PHI[activation](z @ weight.T + v) - z).max(-1)
    return float((residual / np.where(scale > 0, scale, 1)).max() * 2**53)


# --- values -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 64), st.sampled_from(IMPLICIT_ACTIVATIONS), st.floats(0, 3), st.floats(-4, 0), st.floats(0, 1)
)
def test_well_posed_layers_are_solved(seed: int, n: int, activation: str, skew: float, least: float, spread: float) -> None:
    generator = np.random.default_rng(seed)
    metric = 10.0 ** generator.uniform(-spread, spread, n)
    weight = skewed(generator, n, 10**skew, 10**least) / np.sqrt(metric)[:, None] * np.sqrt(metric)
    v = rows(generator, 6, n)
    by_numpy = ImplicitSolver(weight, activation)(v)
    by_torch = implicit_layer(torch.tensor(weight), torch.tensor(v), activation).numpy()
    assert roundings(weight, v, by_numpy, activation) < 64 and roundings(weight, v, by_torch, activation) < 64


@pytest.mark.parametrize("activation", IMPLICIT_ACTIVATIONS)
@pytest.mark.parametrize("n", [2, 16, 64])
def test_splitting_alone_leaves_rows(activation: str, n: int) -> None:
    generator = np.random.default_rng(n)
    weight, v = skewed(generator, n, 1e3, 0.1), rows(generator, 12, n)
    assert margin(weight, np.ones(n)) > 0.09
    rough, converged = FixedPoint(weight, activation)(v)
    assert not converged and roundings(weight, v, rough, activation) > 1e6
    assert roundings(weight, v, ImplicitSolver(weight, activation)(v), activation) < 64


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_one_row_alone_and_among_others(activation: str) -> None:
    generator = np.random.default_rng(4)
    weight, v = skewed(generator, 9, 300, 0.2), rows(generator, 24, 9).reshape(2, 12, 9)
    v[0, 3, 2], v[1, 5, 0] = math.nan, math.inf
    solver = ImplicitSolver(weight, activation)
    z = solver(v)
    assert z.shape == v.shape and np.isnan(z[0, 3]).all() and np.isnan(z[1, 5]).all()
    finite = [(i, j) for i in range(2) for j in range(12) if (i, j) not in ((0, 3), (1, 5))]
    for i, j in finite:
        assert np.allclose(solver(v[i, j]), z[i, j], rtol=1e-9, atol=1e-9 * np.abs(z[i, j]).max())


def test_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    weight, v = skewed(generator, 4, 300, 0.2), rows(generator, 7, 4)
    solver = ImplicitSolver(weight, "tanh")
    whole = solver.follow(v)
    monkeypatch.setattr(implicit_solver, "MAX_FLOATS", 33)  # two rows at a time
    assert np.allclose(solver.follow(v), whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("factor", [2.0**-1000, 2.0**-300, 2.0**500])
def test_relu_layers_have_no_scale(factor: float) -> None:
    generator = np.random.default_rng(6)
    solver, v = ImplicitSolver(skewed(generator, 8, 1e3, 0.2), "relu"), generator.standard_normal((5, 8))
    z = solver.follow(v)
    assert np.abs(z).max() > 1e-4
    assert np.allclose(solver.follow(factor * v) / factor, z, rtol=1e-10, atol=1e-12)


def test_a_rotation() -> None:
    """z = relu(D z + v) with D = [[0, b], [-b, 0]] and v > 0: z1 = (v1 + b v2) / (1 + b^2), z2 = (v2 - b v1) / (1 + b^2) or 0."""
    for b in (1.0, 1e3, 1e6):
        solver = ImplicitSolver(np.array([[0, b], [-b, 0]]), "relu")
        for v in ([1.0, 0.5], [1.0, 2 * b], [0.25 / b, 3.0]):
            one, two = Fraction(v[0]), Fraction(v[1])
            z = [(one + Fraction(b) * two) / (1 + Fraction(b) ** 2), (two - Fraction(b) * one) / (1 + Fraction(b) ** 2)]
            expected = z if z[1] > 0 else [one, Fraction(0)]
            assert np.allclose(solver.follow(np.array([v]))[0], [float(x) for x in expected], rtol=1e-9, atol=0)


# --- gradients and other evaluations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", IMPLICIT_ACTIVATIONS)
def test_gradients_are_those_of_the_solution(activation: str) -> None:
    generator = np.random.default_rng(7)
    n = 6
    weight, v = skewed(generator, n, 200, 0.1), generator.standard_normal((8, n))
    assert not FixedPoint(weight, activation)(v)[1]
    at_weight, at_v = torch.tensor(weight, requires_grad=True), torch.tensor(v, requires_grad=True)
    pull = generator.standard_normal((8, n))
    z = implicit_layer(at_weight, at_v, activation)
    (z * torch.tensor(pull)).sum().backward()
    slopes = SLOPE[activation](z.detach().numpy() @ weight.T + v)
    expected = np.stack([s * np.linalg.solve((np.eye(n) - s[:, None] * weight).T, p) for s, p in zip(slopes, pull, strict=True)])
    assert at_v.grad is not None and np.allclose(at_v.grad.numpy(), expected, rtol=1e-8, atol=1e-12)
    assert at_weight.grad is not None and np.allclose(at_weight.grad.numpy(), expected.T @ z.detach().numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("activation", IMPLICIT_ACTIVATIONS)
@pytest.mark.parametrize("skew", [1.0, 1e3])
def test_symbols_are_solved(activation: str, skew: float) -> None:
    generator = np.random.default_rng(8)
    n = 8
    weight, v = skewed(generator, n, skew, 0.1), generator.standard_normal((10, n)) * 10.0 ** generator.uniform(-1, 2, (10, 1))
    graph = record(lambda x: implicit(weight, x, activation), {"x": n})
    function, z = casadi_function(graph), compile_numpy(graph)(x=v)["output"]
    jacobian = function.jacobian()
    for row, expected in zip(v, z, strict=True):
        assert np.allclose(np.array(function(row)).ravel(), expected, rtol=1e-8, atol=1e-9 * (1 + np.abs(expected).max()))
        slopes = SLOPE[activation](weight @ expected + row)
        truth = np.linalg.solve(np.eye(n) - slopes[:, None] * weight, np.diag(slopes))
        assert np.allclose(np.array(jacobian(row, casadi.DM.zeros(n))), truth, rtol=1e-5, atol=1e-6 * np.abs(truth).max())


# --- layers that are not well-posed -----------------------------------------------------------------------------------


def ill_posed(weight: float, activation: str = "relu") -> Graph:
    nodes = (
        Node("input", (), {"name": "x", "size": 1}),
        Node("implicit", (0,), {"weight": "D", "metric": "m", "activation": activation}),
    )
    return Graph(nodes, {"z": 1}, {"D": np.array([[weight]]), "m": np.ones(1)})


@pytest.mark.parametrize("compiled", [compile_numpy, compile_torch, casadi_function])
def test_a_singular_weight_is_named(compiled: Any) -> None:
    bad = ill_posed(2.0)
    with pytest.raises(InputError, match=r"^node 1 \('implicit'\): the weight D .* singular, expected a well-posed layer$"):
        compiled(bad)
    node = Node("recentre", (0,), {"graph": Graph(bad.nodes, bad.outputs, bad.tensors, 1), "point": (Fraction(0),), "offset": "o"})
    with pytest.raises(InputError, match=r"^node 1 \('recentre'\): node 1 \('implicit'\): the weight D"):
        compiled(Graph((bad.nodes[0], node), {"u": 1}, {**bad.tensors, "o": np.zeros(1)}))


def test_layers_without_a_solution_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="singular"):
        implicit_layer(2 * torch.eye(2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64), "relu")
    with pytest.raises(LipctrlError, match="could not be solved"):
        compile_numpy(ill_posed(3.0))(x=np.ones(1))  # z = relu(3 z + 1)
    with pytest.raises(LipctrlError, match="could not be solved"):
        implicit_layer(torch.full((2, 2), math.nan, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64), "tanh")
    generator = np.random.default_rng(9)
    solver = ImplicitSolver(skewed(generator, 8, 1e3, 0.1), "softplus")
    monkeypatch.setattr(implicit_solver, "STEPS", 3)
    with pytest.raises(LipctrlError, match="did not converge"):
        solver(generator.standard_normal((4, 8)))


def test_the_usual_layer_is_as_before() -> None:
    generator = np.random.default_rng(10)
    weight, v = monotone(generator, 12), generator.standard_normal((50, 12))
    z, converged = FixedPoint(weight, "tanh")(v)
    assert converged and np.array_equal(ImplicitSolver(weight, "tanh")(v), z)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_rows_that_are_not_finite_are_nan_and_others_are_solved(activation: str) -> None:
    weight = np.array([[0.1, 1.0], [-1.0, 0.1]])
    v = np.array([[1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
    there = ImplicitSolver(weight, activation)(v)
    here = implicit_layer(torch.as_tensor(weight), torch.as_tensor(v), activation).numpy()
    assert np.isnan(here[1:]).all() and np.isnan(there[1:]).all() and np.allclose(here[0], there[0], rtol=1e-12)
