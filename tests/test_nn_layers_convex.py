"""Input-convex and monotone networks: the shape holds for every parameter, and after export."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.nn import InputConvexMLP, MonotoneMLP
from lipctrl.nn.convex import CONVEX, MONOTONE

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=generator(seed))


def scrambled(net: torch.nn.Module, seed: int, size: float) -> torch.nn.Module:
    source = generator(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=source))
    return net


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(CONVEX), st.integers(0, 3), st.floats(-2, 2), st.floats(0, 1))
def test_every_output_is_convex(seed, name, depth, exponent, share):
    net = scrambled(InputConvexMLP(3, (5,) * depth, 2, name, generator=generator(seed)), seed, 10**exponent)
    x, y = 3 * normal(100, 3, seed=seed), 3 * normal(100, 3, seed=seed + 1)
    with torch.no_grad():
        between, ends = net(share * x + (1 - share) * y), share * net(x) + (1 - share) * net(y)
        room = 1e-10 * (1 + net(x).abs() + net(y).abs())
    assert bool((between <= ends + room).all())


def test_convex_networks_are_not_linear():
    net = InputConvexMLP(2, (16, 16), 1, generator=generator())
    x = torch.linspace(-2, 2, 101)[:, None] * torch.tensor([[1.0, 0.5]])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(80):
        with net.materialised():
            loss = (net(x)[:, 0] - x.square().sum(1)).square().mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    assert loss < 0.05


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(MONOTONE), st.integers(1, 3), st.floats(-2, 1))
def test_every_output_is_monotone(seed, name, depth, exponent):
    net = MonotoneMLP(3, (6,) * depth, 2, name, directions=(1, -1, 0), generator=generator(seed))
    scrambled(net, seed, 10**exponent)
    x = normal(100, 3, seed=seed)
    step = normal(100, 3, seed=seed + 1).abs() * torch.tensor([1.0, -1.0, 0.0], dtype=F64)
    with torch.no_grad():
        before, after = net(x), net(x + step)
    assert bool((after >= before - 1e-10 * (1 + before.abs())).all())


def test_free_inputs_may_go_both_ways():
    net = MonotoneMLP(2, (16,), 1, "tanh", directions=(1, 0), generator=generator())
    x = normal(200, 2)
    slopes = torch.autograd.grad(net(x.requires_grad_()).sum(), x)[0]
    assert bool((slopes[:, 0] >= 0).all()) and bool((slopes[:, 1] < 0).any()) and bool((slopes[:, 1] > 0).any())


@pytest.mark.parametrize("make", [InputConvexMLP, MonotoneMLP])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_exported_outputs_are_those_of_the_module(make, hidden):
    net = make(3, hidden, 2, "relu", generator=generator())
    nodes = [Node("input", (), {"name": "x", "size": 3})]

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    output = net.add_nodes(add, 0)
    with torch.no_grad():
        graph = Graph(tuple(nodes), {"y": output}, {name: tensor.numpy() for name, tensor in net.tensors().items()})
        x = normal(20, 3)
        assert np.allclose(compile_numpy(graph)(x=x.numpy())["y"], net(x).numpy(), atol=1e-12)
        with net.materialised():
            assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InputConvexMLP(2, (3,), 1, "tanh"), "an input-convex network needs one of relu, softplus, leaky_relu .* got 'tanh'"),
        (lambda: InputConvexMLP(2, (3,), 1, "maxmin"), "got 'maxmin'"),
        (lambda: MonotoneMLP(2, (3,), 1, "abs"), "a monotone network needs one of"),
        (lambda: MonotoneMLP(2, (3,), 1, directions=(1, 2)), "directions is"),
        (lambda: MonotoneMLP(2, (3,), 1, directions=(1,)), "expected 2 numbers"),
        (lambda: MonotoneMLP(2, (), 1, directions=(1, 0)), "hidden is empty"),
        (lambda: InputConvexMLP(2, (0,), 1), "sizes are"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
