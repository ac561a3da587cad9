"""Python functions on symbols become graphs; what cannot be recorded is refused at the user's line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, expit
from torch import nn

from lipctrl.certificates.checker.graph import Graph, canonical_json, graph_from_json, graph_to_json
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.recording import RecordingError, group_sort, inline, recentre, record

STATE, ACTION = np.array([0.7, 0.4]), np.array([0.3])
MATRIX = np.array([[1.0, 0.1], [0.25, 3.0], [0.5, -1.0]])
EXACT = np.array([[1, Fraction(1, 10)], [Fraction(1, 4), 3]])


def run(function: Callable[..., Any]) -> np.ndarray:
    return compile_numpy(record(function, {"state": 2, "action": 1}))(state=STATE, action=ACTION)["output"]


RECORDED: list[Callable[..., Any]] = [
    lambda x, u: x + u,
    lambda x, u: 2 * x - x / 3 + u * x - 1,
    lambda x, u: 1 / x - (1 - x) + (-x) + (+x) + abs(x - 1),
    lambda x, u: x**2 + x**-1 + x**0.5 + np.square(x) + np.sqrt(x) + np.reciprocal(x),
    lambda x, u: np.array([x[1], np.sin(x[0])]),
    lambda x, u: np.stack([x[1], np.sin(x[0])], axis=-1),
    lambda x, u: np.concatenate([x, u, [1.5]]),
    lambda x, u: np.hstack([x[0], u]),
    lambda x, u: [*x, u[0] * 2, 3],
    lambda x, u: np.sin(x) * np.cos(x) + np.tan(x) - np.exp(x) / np.log(x) + np.tanh(x) + np.abs(x),
    lambda x, u: np.minimum(x, 0.5) + np.maximum(x, u) + np.clip(x, 0.45, 0.6) + np.clip(x, None, 0.5),
    lambda x, u: np.clip(x, [0.1, 0.2], [0.5, 0.3]),
    lambda x, u: MATRIX @ x,
    lambda x, u: x @ MATRIX.T,
    lambda x, u: np.dot(MATRIX, x) + np.matmul(MATRIX, x),
    lambda x, u: np.array([[1, 2], [3, 4]]) @ x + x @ np.array([[1, 2], [3, 4]]),
    lambda x, u: x @ x + np.sum(x) + np.mean(x) + np.linalg.norm(x) + x.sum() + np.max(x) + np.min(x),
    lambda x, u: x[::-1] + x[[1, 0]] + x[-1] + x[..., 0] + x[0:1],
    lambda x, u: np.float64(0.5) * x + np.array([1.0, 2.0]) / x,
    lambda x, u: np.power(x, 3) + np.negative(x) + np.logaddexp(0, x) + erf(x) + expit(x),
    lambda x, u: np.array([[np.cos(x[0]), -np.sin(x[0])], [np.sin(x[0]), np.cos(x[0])]]) @ x,
    lambda x, u: np.sin(np.asarray(x)) * np.asarray(x),
]


@pytest.mark.parametrize("function", RECORDED, ids=range(len(RECORDED)))
def test_recorded_numpy_code_computes_what_it_computes_on_numbers(function: Callable[..., Any]) -> None:
    np.testing.assert_allclose(run(function), np.hstack(np.atleast_1d(function(STATE, ACTION))), rtol=1e-12)


def test_exact_matrices_from_both_sides() -> None:
    np.testing.assert_allclose(run(lambda x, u: EXACT @ x + x @ EXACT), (EXACT + EXACT.T).astype(float) @ STATE)
    assert record(lambda x: EXACT @ x, {"x": 2}).tensors == {}


TORCH: list[Callable[..., Any]] = [
    lambda x, u: torch.stack([torch.sin(x[..., 0]), torch.tensor(2.0) * x[..., 1]], dim=-1),
    lambda x, u: torch.cat((x, u), dim=-1) + torch.tensor([1.0, 2.0, 3.0]),
    lambda x, u: torch.clamp(x, 0.45, 0.6) + torch.clamp(x, min=0.5) + torch.minimum(x, 2 * x) + torch.max(x, u),
    lambda x, u: torch.tensor(MATRIX) @ x - torch.tensor(3.0),
    lambda x, u: torch.relu(x - 0.5) + torch.sigmoid(x) + torch.tanh(x) + torch.nn.functional.softplus(x) + x.sin().abs(),
    lambda x, u: nn.functional.leaky_relu(x - 0.5, 0.1) + nn.functional.gelu(x) + nn.functional.silu(x),
    lambda x, u: torch.sum(x, dim=-1) * torch.ones(2) / x + torch.pow(x, 2),
]


@pytest.mark.parametrize("function", TORCH, ids=range(len(TORCH)))
def test_recorded_torch_code_computes_what_it_computes_on_tensors(function: Callable[..., Any]) -> None:
    expected = function(torch.tensor(STATE), torch.tensor(ACTION)).numpy()
    np.testing.assert_allclose(run(function), expected, rtol=1e-6)


def test_torch_modules_keep_their_weights_bit_for_bit() -> None:
    network = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3, bias=False), nn.Tanh())
    graph = record(network, {"x": 2})
    np.testing.assert_array_equal(graph.tensors["tensor0"], network[0].weight.detach().numpy())
    assert [node.op for node in graph.nodes] == ["input", "affine", "relu", "affine", "tanh"]
    result = compile_numpy(graph, np.float32)(x=STATE)["output"]
    np.testing.assert_allclose(result, network(torch.tensor(STATE, dtype=torch.float32)).detach().numpy(), rtol=1e-5)


def test_constants_mean_exactly_what_is_written() -> None:
    values = [0.15, "0.15", Fraction(3, 20), Decimal("0.15"), np.float32(0.15), 3, np.int64(3)]
    graphs = [record(lambda x, value=value: x * value, {"x": 1}) for value in values]
    constants = [next(n.attributes["values"][0] for n in g.nodes if n.op == "constant") for g in graphs]
    exact = Fraction(3, 20)
    assert constants == [Fraction(0.15), exact, exact, exact, Fraction(float(np.float32(0.15))), 3, 3]
    assert constants[0] != exact


def test_equal_nodes_are_recorded_once_and_dead_ones_not_at_all() -> None:
    def function(x: Any) -> Any:
        np.cos(x)
        return np.sin(x[0]) + np.sin(x[0]) * np.sin(x[0])

    assert [node.op for node in record(function, {"x": 2}).nodes] == ["input", "select", "sin", "mul", "add"]


def test_unused_inputs_stay() -> None:
    assert record(lambda x, u: x, {"state": 2, "action": 1}, output="next_state").input_sizes == {"state": 2, "action": 1}


REFUSED: list[tuple[Callable[..., Any], str]] = [
    (lambda x, u: x if x[0] > 0 else -x, "no value to compare"),
    (lambda x, u: x if x[0] else -x, "no value to compare"),
    (lambda x, u: x == 1, "no value to compare"),
    (lambda x, u: min(x[0], x[1]), "np.minimum"),
    (lambda x, u: [math.sin(x[0])], "np.sin, np.cos, ... in place of math.sin"),
    (lambda x, u: np.where(x > 0, x, 0), "np.minimum, np.maximum"),
    (lambda x, u: np.where(x, x, 0), "np.where is not in the closed list"),
    (lambda x, u: torch.where(x, x, 0), "torch.where is not in the closed list"),
    (lambda x, u: np.arctan2(x[0], x[1]), "cos and sin"),
    (lambda x, u: x % 2, "remainders"),
    (lambda x, u: 2**x, "np.exp"),
    (lambda x, u: x**u, "exponent"),
    (lambda x, u: x**0.3, "whole exponents"),
    (lambda x, u: x + np.ones(3), "2 and 3 components"),
    (lambda x, u: x[2], "index 2"),
    (lambda x, u: np.eye(3) @ x, "3 x 3 matrix"),
    (lambda x, u: float("nan") * x, "finite"),
    (lambda x, u: "much" * x, "'much'"),
    (lambda x, u: True * x, "True"),
    (lambda x, u: np.clip(x, 1, 1), "not below"),
    (lambda x, u: x.__setitem__(0, 1), "in place"),
    (lambda x, u: np.zeros(2).__setitem__(0, x[0]), "np.stack in place of assigning"),
    (lambda x, u: np.cross(x, x), "np.cross"),
    (lambda x, u: nn.functional.elu(x), "elu"),
    (lambda x, u: nn.Linear(3, 1)(x), "linear layer"),
    (lambda x, u: np.add(x, 1, out=np.zeros(2)), "out="),
    (lambda x, u: np.sum(x, axis=1), "axis 1"),
    (lambda x, u: np.array([[1.0, np.inf], [0, 1]]) @ x, "NaN or infinite"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_recorded_is_refused_at_the_users_line(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(RecordingError) as caught:
        record(function, {"x": 2, "u": 1})
    line = inspect.getsourcelines(function)[1]
    assert message in str(caught.value)
    assert f"{__file__}:{line}: " in str(caught.value)


@pytest.mark.parametrize("result", [None, {"a": 1}])
def test_functions_must_return_a_vector(result: object) -> None:
    with pytest.raises(RecordingError, match="expected a vector"):
        record(lambda x: result, {"x": 1})


def test_symbols_of_two_recordings_do_not_mix() -> None:
    kept: list[Any] = []
    record(lambda x: kept.append(x) or x, {"x": 1})
    with pytest.raises(RecordingError, match="another recording"):
        record(lambda x: x + kept[0], {"x": 1})


def test_inline_composes_graphs_and_keeps_their_tensors() -> None:
    inner = record(lambda x: np.tanh(MATRIX @ x), {"x": 2}, output="y")
    outer = record(lambda x: inline(inner, x=2 * x)["y"] + MATRIX @ x, {"x": 2})
    np.testing.assert_allclose(compile_numpy(outer)(x=STATE)["output"], np.tanh(MATRIX @ (2 * STATE)) + MATRIX @ STATE)
    assert len(outer.tensors) == 1  # the same bytes are kept once
    with pytest.raises(RecordingError, match="inputs"):
        record(lambda x: inline(inner, z=x)["y"], {"x": 2})
    with pytest.raises(RecordingError, match="2 components, got 3"):
        record(lambda x: inline(inner, x=x)["y"], {"x": 3})


def test_recentre_and_group_sort_survive_a_file(tmp_path: Any) -> None:
    inner = record(lambda z: group_sort(MATRIX @ z), {"z": 2})
    graph = record(lambda x: recentre(inner, x / 2, ["1/2", 0], np.ones(3, np.float32)) * 2, {"x": 2})
    again = graph_from_json(graph_to_json(graph), graph.tensors)
    assert again.digest() == graph.digest()
    expected = 2 * ([*np.sort((MATRIX @ STATE / 2)[:2]).tolist(), (MATRIX @ STATE / 2)[2]] - np.ones(3))
    np.testing.assert_allclose(compile_numpy(again)(x=STATE)["output"], expected)
    nested = record(lambda x: inline(graph, x=x)["output"], {"x": 2})
    np.testing.assert_allclose(compile_numpy(nested)(x=STATE)["output"], expected)


def test_recording_is_deterministic() -> None:
    texts = {canonical_json(graph_to_json(record(RECORDED[9], {"x": 2, "u": 1}))) for _ in range(3)}
    assert len(texts) == 1


def test_exact_recording_holds_no_tensors() -> None:
    graph: Graph = record(lambda x: nn.Linear(2, 2)(x) + MATRIX[:2] @ x, {"x": 2}, exact=True)
    assert not graph.tensors
    assert all(node.op != "affine" for node in graph.nodes)
