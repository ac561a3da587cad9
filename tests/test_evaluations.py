"""The evaluations of one graph agree: NumPy (single, batch, float32), torch, CasADi (SX, MX)."""

from __future__ import annotations

from fractions import Fraction

import casadi
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import graphs_with_inputs

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.core.casadi_evaluation import casadi_function, evaluate_casadi
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats
from lipctrl.core.recording import record
from lipctrl.core.torch_evaluation import compile_torch, evaluate_torch

Inputs = dict[str, tuple[Fraction, ...]]


def _numpy(graph: Graph, inputs: Inputs) -> np.ndarray:
    return compile_numpy(graph)(**{k: floats(v) for k, v in inputs.items()})["output"]


@settings(max_examples=150)
@given(graphs_with_inputs())
def test_numpy_torch_and_casadi_agree_on_random_graphs(case: tuple[Graph, Inputs]) -> None:
    graph, inputs = case
    expected = _numpy(graph, inputs)
    assert expected.shape == (graph.output_sizes["output"],)
    by_torch = evaluate_torch(graph, {k: torch.tensor(floats(v)) for k, v in inputs.items()})["output"]
    np.testing.assert_allclose(by_torch.numpy(), expected, rtol=1e-9, atol=1e-9)
    for symbol in (casadi.SX.sym, casadi.MX.sym):
        by_casadi = casadi_function(graph, symbol=symbol)(*[casadi.DM(floats(v)) for v in inputs.values()])
        np.testing.assert_allclose(np.array(by_casadi).ravel(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=100)
@given(graphs_with_inputs())
def test_a_batch_is_its_rows(case: tuple[Graph, Inputs]) -> None:
    graph, inputs = case
    batch = {k: np.linspace(0.5, 1.5, 6)[:, None] * floats(v) for k, v in inputs.items()}
    function = compile_numpy(graph)
    rows = np.stack([function(**{k: v[i] for k, v in batch.items()})["output"] for i in range(6)])
    np.testing.assert_allclose(function(**batch)["output"], rows, rtol=1e-12, atol=1e-12)
    cube = {k: v.reshape(2, 3, -1) for k, v in batch.items()}
    np.testing.assert_allclose(function(**cube)["output"], rows.reshape(2, 3, -1), rtol=1e-12, atol=1e-12)
    by_torch = compile_torch(graph)(**{k: torch.tensor(v) for k, v in cube.items()})["output"]
    np.testing.assert_allclose(by_torch.numpy(), rows.reshape(2, 3, -1), rtol=1e-9, atol=1e-9)


@settings(max_examples=100)
@given(graphs_with_inputs())
def test_float32_stays_float32_and_near_float64(case: tuple[Graph, Inputs]) -> None:
    graph, inputs = case
    result = compile_numpy(graph, np.float32)(**{k: floats(v) for k, v in inputs.items()})["output"]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, _numpy(graph, inputs), atol=2e-2)


def test_float32_constants_are_rounded_once_and_operations_run_in_float32() -> None:
    graph = record(lambda x: x * Fraction(1, 3) + Fraction(1, 10), {"x": 1})
    x = np.arange(100, dtype=np.float32)[:, None]
    expected = x * np.float32(1 / 3) + np.float32(0.1)
    assert (expected != np.float32(x.astype(np.float64) / 3 + 0.1)).any()  # float32 differs from a rounded float64
    np.testing.assert_array_equal(compile_numpy(graph, np.float32)(x=x)["output"], expected)


def test_recentre_subtracts_the_stored_offset() -> None:
    inner = Graph((Node("input", (), {"name": "z", "size": 1}), Node("tanh", (0,))), {"out": 1}, nesting=1)
    node = Node("recentre", (0,), {"graph": inner, "point": (Fraction(1),), "offset": "o"})
    graph = Graph((Node("input", (), {"name": "x", "size": 1}), node), {"output": 1}, {"o": np.array([0.5], np.float32)})
    assert compile_numpy(graph)(x=[1.0])["output"] == np.tanh(1.0) - 0.5
    assert evaluate_torch(graph, {"x": torch.ones(1, dtype=torch.float64)})["output"] == pytest.approx(np.tanh(1.0) - 0.5)
    assert float(evaluate_casadi(graph, {"x": casadi.DM(1.0)})["output"]) == pytest.approx(np.tanh(1.0) - 0.5)


def test_group_sort_sorts_inside_groups_with_a_smaller_last_group() -> None:
    graph = Graph((Node("input", (), {"name": "x", "size": 5}), Node("group_sort", (0,), {"group_size": 3})), {"output": 1})
    x = [3.0, 1.0, 2.0, 5.0, 4.0]
    assert compile_numpy(graph)(x=x)["output"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert compile_torch(graph)(x=torch.tensor(x, dtype=torch.float64))["output"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_activations_do_not_overflow() -> None:
    graph = record(lambda x: np.concatenate([torch.sigmoid(x), torch.nn.functional.softplus(x), torch.nn.functional.silu(x)]), {"x": 2})
    with np.errstate(all="raise", under="ignore"):
        result = compile_numpy(graph)(x=[-800.0, 800.0])["output"]
    assert result.tolist() == [0.0, 1.0, 0.0, 800.0, 0.0, 800.0]


def test_torch_gradients_equal_casadi_jacobians() -> None:
    graph = record(lambda x: np.stack([np.sin(x[0]) * x[1] ** 3, np.tanh(x[0]) / (1 + x[1] ** 2)]), {"x": 2})
    x = torch.tensor([0.3, -0.7], dtype=torch.float64)
    by_torch = torch.autograd.functional.jacobian(lambda v: compile_torch(graph)(x=v)["output"], x)
    function = casadi_function(graph)
    by_casadi = function.jacobian()(x.numpy(), function(x.numpy()))
    np.testing.assert_allclose(np.array(by_casadi), by_torch.numpy(), rtol=1e-12)


def test_a_constant_output_has_the_shape_of_the_batch() -> None:
    graph = record(lambda x: [1, 2], {"x": 3})
    assert compile_numpy(graph)(x=np.zeros((4, 3)))["output"].shape == (4, 2)
    assert compile_torch(graph)(x=torch.zeros(4, 3))["output"].shape == (4, 2)


@pytest.mark.parametrize("inputs", [{}, {"x": np.zeros(2)}, {"x": np.zeros((3, 2))}, {"x": 1.0}, {"y": np.zeros(3)}])
def test_wrong_inputs_are_named(inputs: dict[str, np.ndarray]) -> None:
    graph = record(lambda x: x, {"x": 3})
    with pytest.raises(InputError, match="expected"):
        compile_numpy(graph)(**inputs)
    with pytest.raises(InputError, match="expected"):
        compile_torch(graph)(**{k: torch.as_tensor(v) for k, v in inputs.items()})


def test_only_float32_and_float64() -> None:
    with pytest.raises(InputError, match="float16"):
        compile_numpy(record(lambda x: x, {"x": 1}), np.float16)
