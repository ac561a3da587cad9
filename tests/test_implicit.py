"""Implicit layers outside the checker: evaluations, recording, bounds and their search, and layers that are trained."""

from __future__ import annotations

import math
from typing import Any

import casadi
import numpy as np
import pytest
import torch
from flint import arb
from implicit_graphs import layered, mixed, monotone, random_network, scalar
from torch import nn

from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.graph import Graph, GraphError, Node, graph_from_json, graph_to_json
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.network import Implicit, read_network
from lipctrl.certificates.checker.products import absolute_product, norm_product
from lipctrl.certificates.lipschitz import Budget, certify_evaluation, certify_lipschitz, certify_local_lipschitz
from lipctrl.certificates.lipschitz.newton import _derivatives, _feasible, least_square, solve, start
from lipctrl.certificates.lipschitz.patterns import pattern_floor
from lipctrl.certificates.lipschitz.system import build_system
from lipctrl.core import fixed_point, implicit_solver
from lipctrl.core.casadi_evaluation import casadi_function, evaluate_casadi
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.recording import RecordingError, implicit, inline, record
from lipctrl.core.torch_evaluation import compile_torch
from lipctrl.nn import EquilibriumLayer, lipschitz_constant

ACTIVATIONS = ("relu", "tanh", "sigmoid", "softplus")


# --- evaluations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_evaluations_agree(activation: str) -> None:
    graph = random_network(0, 6, activation)
    x = np.random.default_rng(1).standard_normal((2, 4, 3)) * 10.0 ** np.arange(-2, 2)[:, None]
    y = compile_numpy(graph)(x=x)["output"]
    assert y.shape == (2, 4, 2)
    assert np.abs(compile_torch(graph)(x=torch.tensor(x))["output"].numpy() - y).max() < 1e-10
    single, single_torch = compile_numpy(graph, np.float32)(x=x)["output"], compile_torch(graph, torch.float32)(x=torch.tensor(x).float())
    assert single.dtype == np.float32 and np.abs(single - y).max() < 1e-3 * np.abs(y).max()
    assert np.abs(single_torch["output"].numpy() - y).max() < 1e-3 * np.abs(y).max()
    function = casadi_function(graph)
    for row, expected in zip(x.reshape(-1, 3), y.reshape(-1, 2), strict=True):
        truth = evaluate_balls(graph, {"x": [arb(v) for v in row]})["output"]
        assert np.allclose([float(b.mid()) for b in truth], expected, rtol=1e-11, atol=1e-13)
        assert np.allclose(np.array(function(row)).ravel(), expected, rtol=1e-9, atol=1e-10)


def test_gradients_are_those_of_the_solution() -> None:
    for activation in ("relu", "sigmoid"):
        graph = random_network(2, 5, activation)
        x = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
        run = compile_torch(graph)
        assert torch.autograd.gradcheck(lambda v: run(x=v)["output"], (x,))  # noqa: B023
        jacobian = torch.cat([torch.autograd.grad(run(x=x)["output"][0, i], x)[0] for i in range(2)])
        function = casadi_function(graph)
        assert np.allclose(np.array(function.jacobian()(x[0].tolist(), [0, 0])), jacobian.numpy(), atol=1e-9)


def test_rows_without_a_value_are_nan() -> None:
    graph, x = random_network(3), np.array([[1.0, math.nan, 0.0], [1.0, 2.0, 3.0]])
    for y in (compile_numpy(graph)(x=x)["output"], compile_torch(graph)(x=torch.tensor(x))["output"].numpy()):
        assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


def test_layers_that_cannot_be_solved_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = Graph(
        (Node("input", (), {"name": "x", "size": 1}), Node("implicit", (0,), {"weight": "D", "metric": "m", "activation": "relu"})),
        {"z": 1},
        {"D": np.array([[3.0]]), "m": np.ones(1)},
    )  # no solution for x > 0
    with pytest.raises(LipctrlError, match="did not converge"):
        compile_numpy(hard)(x=np.ones(1))
    with pytest.raises(LipctrlError, match="did not converge"):
        compile_torch(hard)(x=torch.ones(1, dtype=torch.float64))
    assert math.isnan(float(casadi_function(hard)(1.0)))
    with pytest.raises(InputError, match="MX"):
        evaluate_casadi(random_network(4), {"x": casadi.SX.sym("x", 3)})
    monkeypatch.setattr(fixed_point, "TURNS", 1)
    monkeypatch.setattr(fixed_point, "SPLITTINGS", 0)
    monkeypatch.setattr(implicit_solver, "STEPS", 0)
    with pytest.raises(LipctrlError, match="did not converge"):
        compile_torch(random_network(4))(x=torch.ones(3, dtype=torch.float64))


def test_stiff_layers_are_polished_in_torch() -> None:
    generator = np.random.default_rng(5)
    weight = torch.tensor(5 * monotone(generator, 12, 1e-3) - 4 * np.eye(12))
    v = torch.tensor(100 * generator.standard_normal((20, 12)))
    for activation, function in (("relu", torch.relu), ("softplus", lambda w: torch.logaddexp(w, torch.zeros_like(w)))):
        z = fixed_point.implicit_layer(weight, v, activation)
        assert (function(z @ weight.T + v) - z).abs().max() < 1e-10


# --- recording --------------------------------------------------------------------------------------------------------


def test_a_recorded_layer_survives_a_file_and_a_copy(tmp_path: Any) -> None:
    graph = random_network(6)
    again = graph_from_json(graph_to_json(graph), graph.tensors)
    assert again.digest() == graph.digest()
    changed = {**graph.tensors, "tensor1": graph.tensors["tensor1"] + 0.01}
    assert Graph(graph.nodes, graph.outputs, changed).digest() != graph.digest()
    with pytest.raises(GraphError, match="differs from its descriptor"):
        graph_from_json(graph_to_json(graph), changed)
    copied = record(lambda x: inline(graph, x=x)["output"] + x[0], {"x": 3})
    x = np.array([1.0, -2.0, 0.5])
    assert np.allclose(compile_numpy(copied)(x=x)["output"], compile_numpy(graph)(x=x)["output"] + 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((np.array([[2.0]]),), "not proved to be well-posed"),
        ((np.array([[2.0]]), "relu", np.array([-1.0])), "not positive"),
        ((np.array([[0.5]]), "gelu"), "'gelu'"),
        ((np.eye(2) / 2,), r"weight \(2, 2\)"),
        ((np.array([[0.5]]), "relu", np.ones(2)), r"metric \(2,\)"),
        ((np.array([[1]]),), "float arrays"),
    ],
)
def test_what_cannot_be_recorded_is_named(arguments: Any, reason: str) -> None:
    with pytest.raises(RecordingError, match=reason):
        record(lambda x: implicit(arguments[0], x, *arguments[1:]), {"x": 1})


def test_numbers_and_exact_graphs_have_no_implicit_layers() -> None:
    with pytest.raises(RecordingError, match="not a vector symbol"):
        record(lambda x: implicit(np.zeros((1, 1)), x[0]), {"x": 1})
    with pytest.raises(RecordingError, match="exact"):
        record(lambda x: implicit(np.zeros((1, 1)), x), {"x": 1}, exact=True)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("weight", "activation", "constant"),
    [(-1.0, "relu", 1 / 2), (0.5, "tanh", 2), (0.5, "relu", 2), (-3.0, "softplus", 1 / 4), (0.75, "sigmoid", 1 / 4 / (1 - 0.75 / 4))],
)
def test_scalar_layers(norm: str, weight: float, activation: str, constant: float) -> None:
    """dz = s (d dz + dv) with s in [0, b]: slopes from 0 to b / (1 - b d)."""
    found = certify_lipschitz(scalar(weight, activation), norm)
    assert constant * (1 - 1e-9) <= found.upper.value <= constant * (1 + 1e-6)
    assert found.lower.value <= found.upper.value and found.check().level == "proved"
    if activation in ("relu", "tanh"):
        assert found.lower.value >= 0.999 * constant


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_feed_forward_networks_are_implicit_layers(norm: str) -> None:
    one, layers = layered(0)
    x = np.random.default_rng(1).standard_normal((20, 3))
    assert np.allclose(compile_numpy(one)(x=x)["output"], compile_numpy(layers)(x=x)["output"], atol=1e-10)
    bounds = [certify_lipschitz(graph, norm, witness=False) for graph in (one, layers)]
    problem_value = bounds[1].upper.value
    if bounds[1].upper.method == "multipliers":  # other methods know more than one multiplier for each unit
        assert bounds[0].upper.value == pytest.approx(problem_value, rel=1e-5)
    assert bounds[0].upper.value >= problem_value * (1 - 1e-5) and bounds[0].check().level == "proved"
    multiplied = best_by_multipliers(layers, norm)
    assert bounds[0].upper.value == pytest.approx(multiplied, rel=1e-5)


def best_by_multipliers(graph: Graph, norm: str) -> float:
    network = read_network(graph)
    system = build_system(network, np.ones(network.inputs), np.ones(network.outputs))
    if norm == "l2":
        return math.sqrt(solve(system).square) * system.scale
    rows = [system.of_output(i, float(np.linalg.norm(system.output[i]))) for i in range(network.outputs)]
    return max(math.sqrt(solve(row).square) * row.scale for row in rows)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bounds_are_above_a_thousand_slopes(activation: str, norm: str) -> None:
    graph = random_network(7, 6, activation)
    found = certify_lipschitz(graph, norm, tolerance=1e-3)
    network = read_network(graph)
    ones = np.ones(network.inputs), np.ones(network.outputs)
    product = norm_product(network, *ones) if norm == "l2" else float(absolute_product(network, *ones).max())
    generator, order = np.random.default_rng(8), 2 if norm == "l2" else np.inf
    x = generator.standard_normal((1000, 3)) * 10.0 ** generator.uniform(-2, 2, (1000, 1))
    y = x + generator.standard_normal((1000, 3)) * 10.0 ** generator.uniform(-4, 1, (1000, 1))
    run = compile_numpy(graph)
    slopes = np.linalg.norm(run(x=x)["output"] - run(x=y)["output"], order, axis=1) / np.linalg.norm(x - y, order, axis=1)
    assert slopes.max() <= found.upper.value * (1 + 1e-9) and found.upper.value <= product * (1 + 1e-9)
    assert 0.3 * found.upper.value < found.lower.value <= found.upper.value
    assert found.check().level == "proved"


@pytest.mark.parametrize("seed", range(8))
def test_bounds_hold_for_every_choice_of_slopes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 7))
    metric = 10.0 ** generator.uniform(-1, 1, n)
    weight = monotone(generator, n, 0.05) / np.sqrt(metric)[:, None] * np.sqrt(metric)
    entering, leaving = generator.standard_normal((n, 2)), generator.standard_normal((2, n))
    graph = record(lambda x: leaving @ implicit(weight, entering @ x, "relu", metric), {"x": 2})
    bound, greatest = certify_lipschitz(graph, witness=False, tolerance=1e-4).upper.value, 0.0
    for _ in range(300):
        slopes = generator.integers(0, 2, n) if generator.random() < 0.7 else generator.random(n)
        jacobian = leaving @ np.linalg.solve(np.eye(n) - slopes[:, None] * weight, slopes[:, None] * entering)
        greatest = max(greatest, float(np.linalg.norm(jacobian, 2)))
    assert greatest <= bound * (1 + 1e-9)
    if n == 1:
        assert bound <= greatest * (1 + 1e-4)


def test_mixed_networks() -> None:
    graph = mixed()
    network = read_network(graph)
    assert sum(isinstance(signal, Implicit) for signal in network.signals) == 2
    for norm in ("l2", "linf"):
        found = certify_lipschitz(graph, norm, tolerance=1e-4)
        assert found.upper.method == "multipliers" and found.check().level == "proved"
        assert found.lower.value <= found.upper.value
    found = certify_lipschitz(graph, input_scale=[2, 2, 2], output_scale=[3, 3, 3], tolerance=1e-6, witness=False).upper.value
    assert found == pytest.approx(1.5 * certify_lipschitz(graph, witness=False).upper.value, rel=1e-5)


def test_bounds_scale_with_the_weights() -> None:
    for factor in (2.0**-40, 2.0**40):
        for weight, constant in ((-1.0, 0.5), (0.5, 2.0)):
            assert certify_lipschitz(scalar(weight, gain=factor), witness=False).upper.value == pytest.approx(factor * constant, rel=1e-5)


def test_floors_are_not_offered() -> None:
    network = read_network(random_network(10))
    assert pattern_floor(network, np.ones(3), np.ones(2)) == 0.0


def test_bounds_on_a_box() -> None:
    graph = scalar(-1.0, "tanh")
    local = certify_local_lipschitz(graph, low=[2], high=[3], budget=Budget(seconds=2, cells=200))
    z = compile_numpy(graph)(x=np.array([2.0]))["output"][0]
    steepest = (1 - z**2) / (2 - z**2)
    assert steepest * (1 - 1e-6) <= local.upper.value <= 1.05 * steepest and local.check().level == "proved"


def test_float32_errors_are_refused_by_name() -> None:
    with pytest.raises(LipctrlError, match="implicit"):
        certify_evaluation(scalar(0.5), low=[-1], high=[1])


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("metric_range", [0, 3])
def test_starts_are_strictly_feasible(activation: str, metric_range: int) -> None:
    generator = np.random.default_rng(14)
    metric = 10.0 ** generator.uniform(-metric_range, metric_range, 6)
    weight = monotone(generator, 6) / np.sqrt(metric)[:, None] * np.sqrt(metric)
    graph = record(lambda x: implicit(weight, np.tanh(x), activation, metric), {"x": 6})
    system = build_system(read_network(graph), np.ones(6), np.ones(6))
    values = start(system)
    assert np.all(values > 0) and np.isfinite(least_square(system, values))
    assert np.linalg.eigvalsh(system.matrix(2 * least_square(system, values), values))[0] > 0


def test_starts_with_narrow_slopes() -> None:
    graph = record(lambda x: implicit(monotone(np.random.default_rng(15), 4), x, "relu"), {"x": 4})
    low, high = np.array([0.0, 1.0, 0.25, 0.0]), np.array([0.0, 1.0, 0.25, 1.0])
    network = read_network(graph, {1: Interval(low, high)})
    system = build_system(network, np.ones(4), np.ones(4))
    bound = math.sqrt(solve(system).square) * system.scale
    weight = network.layers[0].weight
    gains = [np.linalg.norm(np.linalg.solve(np.eye(4) - s[:, None] * weight, np.diag(s)), 2) for s in (low, high)]
    assert max(gains) * (1 - 1e-6) <= bound <= 1.1 * max(gains)


def test_derivatives_of_the_barrier() -> None:
    system = build_system(read_network(mixed()), np.ones(3), np.ones(3))
    assert system.barriers == system.size + 9
    point, t = _feasible(system, 3 * start(system)), 2.0
    gradient, hessian = _derivatives(system, point, t)

    def value(variables: Array) -> float:
        matrix = system.matrix(variables[0], variables[1:])
        own = variables[1:][system.implicit]
        return t * variables[0] - np.linalg.slogdet(matrix)[1] - np.log(own).sum()

    at, size = np.concatenate([point.shares, point.values]), len(gradient)
    for k in range(size):
        step = 1e-5 * at[k] * np.eye(size)[k]
        assert gradient[k] == pytest.approx((value(at + step) - value(at - step)) / 2e-5 / at[k], rel=1e-4, abs=1e-5)
        bent = (value(at + 10 * step) - 2 * value(at) + value(at - 10 * step)) / (1e-4 * at[k]) ** 2
        assert hessian[k, k] == pytest.approx(bent, rel=1e-2, abs=1e-3)


# --- layers that are trained ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equilibrium_layers(activation: str) -> None:
    layer = EquilibriumLayer(3, 8, activation, margin=0.25, generator=torch.Generator().manual_seed(0)).double()
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z, tensors = layer(x), layer.tensors()
    phi = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softplus": nn.functional.softplus}[activation]
    again = phi(z @ tensors["weight"].T + x @ tensors["entering"].T + tensors["bias"])
    assert (again - z).abs().max() < 1e-12
    graph = layer.graph(np.float64)
    assert np.allclose(compile_numpy(graph)(x=x.numpy())["z"], z.detach().numpy(), atol=1e-12)
    found = certify_lipschitz(layer, tolerance=1e-3)
    assert found.lower.value <= found.upper.value <= lipschitz_constant(layer) * (1 + 1e-5) and found.check().level == "proved"


def test_every_parameter_has_its_gradient() -> None:
    layer = EquilibriumLayer(2, 4, "tanh", generator=torch.Generator().manual_seed(2)).double()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(lambda x, *parameters: layer(x), (x, *layer.parameters()))
    assert layer.float()(x.detach().float()).dtype == torch.float32


def test_training_lowers_a_loss() -> None:
    layer = EquilibriumLayer(2, 12, margin=0.5, generator=torch.Generator().manual_seed(4))
    head = nn.Linear(12, 1)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(5))
    target, losses = x.prod(1, keepdim=True), []
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    for _ in range(40):
        with layer.materialised():
            loss = (head(layer(x)) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_layers_are_recorded_inside_other_modules() -> None:
    generator = torch.Generator().manual_seed(6)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), EquilibriumLayer(3, 5, "relu", generator=generator), nn.Linear(5, 2)).double()
    graph = record(net, {"x": 2})
    x = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    assert np.allclose(compile_numpy(graph)(x=x.numpy())["output"], net(x).detach().numpy(), atol=1e-12)
    found = certify_lipschitz(graph, tolerance=1e-3)
    assert found.upper.value <= lipschitz_constant(net) * (1 + 1e-9)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match="'gelu'"):
        EquilibriumLayer(2, 3, "gelu")
    for margin in (0.0, -1.0, 2.0, math.nan):
        with pytest.raises(InputError, match="margin"):
            EquilibriumLayer(2, 3, margin=margin)
    layer = EquilibriumLayer(2, 3)
    assert "2-3, activation='relu', margin=0.1" in repr(layer)
    with torch.no_grad():
        layer.raw_symmetric.fill_(math.nan)
    with pytest.raises(InputError, match="not finite"):
        lipschitz_constant(layer)
