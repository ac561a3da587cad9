"""Householder activations: isometries on both sides of a mirror, one ReLU a group in graphs, bounds that are proved."""

import math

import numpy as np
import pytest
import torch

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.core.errors import InputError
from lipctrl.core.torch_evaluation import evaluate_torch
from lipctrl.nn import LAYERS, LinearPlusMLP, LipschitzMLP, LipschitzPolicy, ResidualMLP, householder, lipschitz_constant, lipschitz_policy
from lipctrl.nn.activations import GroupSort
from lipctrl.nn.blocks import block_gains
from lipctrl.nn.householder import Householder
from lipctrl.nn.proof import lipschitz_proof

NORMALS = [(1.0, -1.0), (0.3, -2.0), (1.0, 2.0, 3.0)]
MAKERS = {layer: made for layer, made in LAYERS.items() if not made.needs_slope_restriction}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("normal", NORMALS)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_it_keeps_the_norms_of_gradients_and_never_stretches(normal, size):
    module = Householder(normal).double()
    x = torch.randn(64, size, dtype=torch.float64, generator=generator(), requires_grad=True)
    weight = torch.randn(64, size, dtype=torch.float64, generator=generator(1))
    (gradient,) = torch.autograd.grad((module(x) * weight).sum(), x)
    assert torch.allclose(gradient.norm(dim=1), weight.norm(dim=1))
    y = torch.randn(64, size, dtype=torch.float64, generator=generator(2))
    assert ((module(x) - module(y)).norm(dim=1) <= (x - y).norm(dim=1) * (1 + 1e-12)).all()
    whole = size // len(normal) * len(normal)
    groups = module(x)[:, :whole].reshape(64, -1, len(normal))
    assert ((groups @ torch.tensor(normal, dtype=torch.float64)) >= -1e-12).all()  # nothing is left behind the mirror


def test_the_mirror_of_equal_coordinates_sorts_pairs():
    x = torch.randn(32, 6, generator=generator())
    assert torch.allclose(householder().apply(x), GroupSort(2)(-x).neg(), atol=1e-6)


@pytest.mark.parametrize("layer", sorted(MAKERS))
@pytest.mark.parametrize("normal", NORMALS)
def test_bounds_are_proved_for_the_exported_weights(layer, normal):
    for hidden in ((), (1, 5), (16, 16), (33,) * 5):
        net = LipschitzMLP(4, hidden, 2, 3.0, layer, householder(normal), generator=generator())
        policy = LipschitzPolicy(net, action_low=[-9, -9], action_high=[9, 9], observation_scale=2, equilibrium_observation=[0, 1, 0, 0.5])
        assert policy.lipschitz() <= 1.5 * (1 + 1e-9)
        x = torch.randn(16, 4, generator=generator(3))
        with torch.no_grad():
            own = policy.clipped(x)
        assert torch.allclose(evaluate_torch(policy.graph(), {"observation": x}, torch.float32)["action"], own, atol=1e-5)
        assert np.allclose(policy.export().predict(x.numpy())[0], own.numpy(), atol=1e-5)
        assert torch.allclose(net.plain()(x), net(x), atol=1e-5) and lipschitz_constant(net.plain()) <= 3.0


@pytest.mark.parametrize("layer", sorted(MAKERS))
@pytest.mark.parametrize("depth", [2, 6, 12, 20])
def test_bounds_are_proved_at_any_depth(depth, layer):
    """Layer by layer: what is proved is the product of the norms of the rounded weights, but for a hair at each layer."""
    policy = lipschitz_policy(
        4, [-2], [2], 5.0, hidden=(64,) * depth, layer=layer, activation=householder((1, -2)), generator=generator(depth)
    )
    proved = policy.lipschitz()
    norms = [np.linalg.norm(w.astype(np.float64), 2) for name, w in policy.graph().tensors.items() if name.startswith("weight_")]
    assert len(norms) == depth + 1
    assert math.prod(norms) * (1 - 1e-9) <= proved <= math.prod(norms) * (1 + 1e-6) ** depth and proved <= 5
    claim, evidence = policy.lipschitz_proof(policy.graph())
    assert evidence["method"] == "windows" and len(evidence["windows"]) == depth + 1
    smaller = {**claim, "bound": (proved * (1 - 1e-6) ** (depth + 1)).hex()}
    with pytest.raises(Rejected, match="product of the windows"):
        prove_lipschitz(policy.graph(), smaller, evidence)


@pytest.mark.parametrize("normal", NORMALS)
@pytest.mark.parametrize("depth", [2, 12])
def test_weights_in_float64_are_proved_too(depth, normal):
    net = LipschitzMLP(4, (33,) * depth, 2, 3.0, "cayley", householder(normal), generator=generator())
    nodes = [Node("input", (), {"name": "x", "size": 4})]

    def add(node):
        nodes.append(node)
        return len(nodes) - 1

    output = net.add_nodes(add, 0)
    graph = Graph(tuple(nodes), {"y": output}, {name: tensor.detach().numpy() for name, tensor in net.tensors().items()})
    claim, evidence = lipschitz_proof(graph, "l2", net.lipschitz, net.multipliers(), net.multipliers_alone())
    assert net.built_for * (1 - 1e-9) <= prove_lipschitz(graph, claim, evidence) <= net.lipschitz


@pytest.mark.parametrize("change", ["weight", "reflect"])
def test_a_layer_that_stretches_is_not_proved(change):
    """The norms of weights are found again for the weights at hand; a C that is too long is refused."""
    policy = lipschitz_policy(4, [-2], [2], 5.0, hidden=(16,) * 3, layer="cayley", activation=householder(), generator=generator())
    graph = policy.graph()
    tensors = {name: tensor * np.float32(1.01) if name.startswith(change) else tensor for name, tensor in graph.tensors.items()}
    worse = Graph(graph.nodes, graph.outputs, tensors)
    claim, evidence = policy.lipschitz_proof(graph)
    with pytest.raises(Rejected):
        prove_lipschitz(worse, claim, evidence)
    claim, evidence = policy.lipschitz_proof(worse)
    if change == "weight":
        assert prove_lipschitz(worse, claim, evidence) > 5
    else:
        with pytest.raises(Rejected):
            prove_lipschitz(worse, claim, evidence)


def test_gains_between_groups_at_depth():
    policy = lipschitz_policy(4, [-2, -2], [2, 2], 5.0, hidden=(64,) * 12, layer="cayley", activation=householder(), generator=generator())
    gains = block_gains(policy, {"a": [0, 1], "b": [2, 3]}, {"u": [0], "v": [1]})
    assert len(gains) == 4 and all(0 < gain <= 5 * (1 + 1e-9) for gain in gains.values())


def test_the_maximum_norm_is_proved_at_depth_too():
    """By what the l2 bound implies for four inputs."""
    policy = lipschitz_policy(4, [-2], [2], 5.0, hidden=(64,) * 12, layer="cayley", activation=householder(), generator=generator(3))
    claim, evidence = policy.lipschitz_proof(policy.graph(), "linf")
    assert evidence["method"] == "windows"
    assert policy.lipschitz("linf") == pytest.approx(2 * policy.lipschitz(), rel=1e-9) and policy.lipschitz("linf") <= 10
    with pytest.raises(Rejected, match="product of the windows"):
        prove_lipschitz(policy.graph(), {**claim, "bound": (policy.lipschitz() * 1.999).hex()}, evidence)


def test_layers_that_need_slopes_refuse_it():
    for make in (
        lambda: LipschitzMLP(2, (4,), 1, layer="sandwich", activation=householder()),
        lambda: LipschitzMLP(2, (4,), 1, layer="ldlt", activation=householder()),
        lambda: LinearPlusMLP(2, (4,), 1, activation=householder()),
        lambda: ResidualMLP(2, (4,), 1, activation=householder()),
    ):
        with pytest.raises(InputError, match="householder"):
            make()


@pytest.mark.parametrize("normal", [(1.0,), (0.0, 0.0), (math.inf, 1.0), (math.nan, 1.0), (1e-60, 0.0)])
def test_mirrors_that_are_none_are_refused(normal):
    with pytest.raises(InputError, match="normal is"):
        householder(normal)


def network(first, rest, last):
    """last (I + C relu(first -V)) with stored V and C, as a graph."""
    mirror, reflect = rest
    nodes = [Node("input", (), {"name": "x", "size": len(first[0])})]
    nodes += [Node("affine", (0,), {"weight": "first", "bias": None}), Node("affine", (1,), {"weight": "mirror", "bias": None})]
    nodes += [Node("relu", (2,)), Node("affine", (3,), {"weight": "reflect", "bias": None}), Node("add", (1, 4))]
    nodes += [Node("affine", (5,), {"weight": "last", "bias": None})]
    tensors = {"first": first, "mirror": mirror, "reflect": reflect, "last": last}
    return Graph(tuple(nodes), {"y": 6}, {name: np.array(value, dtype=np.float64) for name, value in tensors.items()})


def test_one_unit_for_a_pair_loses_nothing():
    """Identity - MaxMin - identity."""
    one = network(np.eye(2), ([[1, -1]], [[-1], [1]]), np.eye(2))
    assert certify_lipschitz(one).upper.value == pytest.approx(1, rel=1e-6) and sum(read_network(one).variables) == 3


def test_stored_mirrors_that_are_no_unit_vectors_are_bounded_as_they_are():
    """(I - 2 v v^T) z with |v|^2 = 1 + 1e-7 has constant 1 + 2e-7: more than 1, and the proof knows."""
    v = np.array([0.6, -0.8]) * math.sqrt(1 + 1e-7)
    graph = network(np.eye(2), (-v[None], 2 * v[:, None]), np.eye(2))
    upper = certify_lipschitz(graph, tolerance=1e-9).upper.value
    assert 1 + 2e-7 - 1e-12 <= upper <= 1 + 2.01e-7


def test_absolute_values_prove_the_maximum_norm_where_they_are_less():
    """Two of sixteen inputs count: the l2 bound implies 4, the slopes of the mirror 2 at most."""
    graph = network(np.eye(16)[:2], ([[1, -1]], [[-1], [1]]), np.eye(2))
    claim, evidence = lipschitz_proof(graph, "linf", 1.0, None, [np.array([2.0])])
    assert evidence == {"method": "absolute-product"} and prove_lipschitz(graph, claim, evidence) < 4
    claim, evidence = lipschitz_proof(graph, "l2", 1.0, None, [np.array([2.0])])
    assert evidence["method"] == "windows" and 1 <= prove_lipschitz(graph, claim, evidence) < 1 + 1e-6
