"""The evaluations of one graph agree: NumPy (single, batch, float32), torch, CasADi (SX, MX), exact, balls, intervals."""

from __future__ import annotations

from fractions import Fraction

import casadi
import numpy as np
import pytest
import torch
from flint import arb, ctx, fmpq
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs_with_inputs

from lipctrl.certificates.checker.balls import ball, evaluate_balls
from lipctrl.certificates.checker.enclosure import EnclosureAlgebra, seeds
from lipctrl.certificates.checker.exact import Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import Graph, Node, evaluate
from lipctrl.certificates.checker.intervals import Interval, around, point
from lipctrl.core.casadi_evaluation import casadi_function, evaluate_casadi
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats
from lipctrl.core.recording import record
from lipctrl.core.torch_evaluation import compile_torch, evaluate_torch
from lipctrl.envs import make_plant, shipped_plants

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


def _balls(graph: Graph, inputs: Inputs) -> list[arb]:
    (result,) = evaluate_balls(graph, {k: [ball(x) for x in v] for k, v in inputs.items()}).values()
    return result


@settings(max_examples=150)
@given(graphs_with_inputs())
def test_floats_lie_beside_the_balls_and_balls_hold_the_exact_value(case: tuple[Graph, Inputs]) -> None:
    graph, inputs = case
    balls = _balls(graph, inputs)
    assert max(float(b.rad()) for b in balls) < 1e-20
    np.testing.assert_allclose(_numpy(graph, inputs), [float(b.mid()) for b in balls], rtol=1e-9, atol=1e-9)
    try:
        exact = evaluate_exact(graph, inputs)["output"]
    except Inexact:
        return
    with ctx.workprec(2000):
        assert all(b.overlaps(arb(fmpq(x.numerator, x.denominator))) for b, x in zip(balls, exact, strict=True))


def _enclosure(graph: Graph, centres: Inputs, radius: float) -> Interval:
    total, first, boxes = sum(len(v) for v in centres.values()), 0, {}
    for name, values in centres.items():
        middle = floats(values)[None, :]
        boxes[name] = seeds(point(middle), around(middle, np.full_like(middle, radius)), first, total)
        first += len(values)
    (result,) = evaluate(graph, boxes, EnclosureAlgebra(np.full((total, 1, 1), radius))).values()
    return result.value


def _assert_inside(box: Interval, balls: list[arb]) -> None:
    for low, value, high in zip(box.low[0], balls, box.high[0], strict=True):
        assert not value < arb(float(low))
        assert not value > arb(float(high))


@settings(max_examples=150)
@given(graphs_with_inputs(), st.sampled_from([0.0, 2.0**-8, 0.25, 1.0]), st.integers(0, 2**32 - 1))
def test_intervals_hold_every_value_of_their_box(case: tuple[Graph, Inputs], radius: float, seed: int) -> None:
    graph, centres = case
    box = _enclosure(graph, centres, radius)
    generator = np.random.default_rng(seed)
    for _ in range(4):
        shifts = {k: generator.choice([-1.0, 1.0, *generator.uniform(-1, 1, 3)], len(v)) * radius for k, v in centres.items()}
        inside = {k: tuple(x + Fraction(float(s)) for x, s in zip(v, shifts[k], strict=True)) for k, v in centres.items()}
        _assert_inside(box, _balls(graph, inside))


@pytest.mark.parametrize("part", ["dynamics", "observe", "cost"])
@pytest.mark.parametrize("name", shipped_plants())
def test_all_evaluations_of_every_shipped_plant_agree(name: str, part: str) -> None:
    plant = make_plant(name)
    graph: Graph = getattr(plant, part)
    (output,) = graph.outputs
    generator = np.random.default_rng(0)
    for scale in (0.0, 0.1, 0.9):
        shares = {k: [Fraction(float(v)) for v in generator.uniform(-scale, scale, n).round(6)] for k, n in graph.input_sizes.items()}
        ends = {"state": plant.state_high, "action": plant.action_high}
        rest = {"state": plant.equilibrium_state, "action": plant.equilibrium_action}
        inputs = {k: tuple(x + s * (high - x) for x, s, high in zip(rest[k], shares[k], ends[k], strict=True)) for k in graph.input_sizes}
        as_floats = {k: floats(v) for k, v in inputs.items()}
        balls = _balls(graph, inputs)
        expected = [float(b.mid()) for b in balls]
        close = {"rtol": 1e-12, "atol": 1e-12}
        np.testing.assert_allclose(compile_numpy(graph)(**as_floats)[output], expected, **close)
        np.testing.assert_allclose(compile_numpy(graph, np.float32)(**as_floats)[output], expected, rtol=1e-4, atol=1e-4)
        by_torch = compile_torch(graph)(**{k: torch.tensor(v) for k, v in as_floats.items()})[output]
        np.testing.assert_allclose(by_torch.numpy(), expected, **close)
        np.testing.assert_allclose(np.array(casadi_function(graph)(*as_floats.values())).ravel(), expected, **close)
        nearby = {k: tuple(Fraction(float(x)) for x in v) for k, v in inputs.items()}
        for radius in (0.0, 0.01):
            _assert_inside(_enclosure(graph, nearby, radius), _balls(graph, nearby))
        if scale == 0:
            assert evaluate_exact(graph, inputs)[output] == tuple(Fraction(v).limit_denominator(1000) for v in expected)


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


@settings(max_examples=30)
@given(graphs_with_inputs())
def test_torch_keeps_to_the_device_of_its_inputs(case: tuple[Graph, Inputs]) -> None:
    graph, inputs = case
    result = evaluate_torch(graph, {k: torch.zeros(3, len(v), device="meta") for k, v in inputs.items()})["output"]
    assert result.device.type == "meta"  # meta tensors refuse to mix with any other device
    assert result.shape == (3, graph.output_sizes["output"])
    assert result.dtype == torch.float32


def test_values_that_are_read_again_or_leave_are_kept() -> None:
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("exp", (0,)),
        Node("add", (1, 1)),
        Node("neg", (2,)),  # leaves and is read
        Node("mul", (3, 0)),
        Node("sub", (4, 1)),  # reads what node 2 must not have overwritten
    )
    graph = Graph(nodes, {"early": 3, "late": 5, "input": 0}, {})
    x = np.array([0.25, -1.0])
    found = compile_numpy(graph)(x=x)
    np.testing.assert_array_equal(found["early"], -2 * np.exp(x))
    np.testing.assert_array_equal(found["late"], -2 * np.exp(x) * x - np.exp(x))
    np.testing.assert_array_equal(found["input"], x)
