"""Lipschitz networks: the bound holds for every parameter, weights are never stale, exported layers are plain."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.core.errors import InputError
from lipctrl.nn import ACTIVATIONS, LAYERS, LipschitzMLP, group_sort, lipschitz_policy
from lipctrl.nn.cayley import CayleyMatrix, cayley
from lipctrl.nn.mlp import activation

PAIRS = [("sandwich", "relu"), ("sandwich", "tanh"), ("cayley", "relu"), ("cayley", "tanh"), ("cayley", "maxmin")]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scrambled(net: torch.nn.Module, seed: int, size: float) -> torch.nn.Module:
    """Parameters far from their start."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=source))
    return net


def greatest_pattern(weights: list[np.ndarray]) -> float:
    """max over all 0/1 patterns of ||W_l D ... D W_0||: the constant of the ReLU network for the worst biases."""
    best = 0.0
    for bits in itertools.product([0.0, 1.0], repeat=sum(len(w) for w in weights[:-1])):
        product, rest = weights[0], np.array(bits)
        for before, weight in itertools.pairwise(weights):
            pattern, rest = rest[: len(before)], rest[len(before) :]
            product = weight @ (pattern[:, None] * product)
        best = max(best, float(np.linalg.norm(product, 2)))
    return best


# --- the Cayley transform -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(0, 8), st.floats(-3, 3))
def test_cayley_has_orthonormal_columns(seed, n, extra, exponent):
    z = 10**exponent * torch.randn(n + extra, n, generator=generator(seed), dtype=torch.float64)
    q = cayley(z)
    assert torch.allclose(q.T @ q, torch.eye(n, dtype=torch.float64), atol=1e-9)
    u, v = z[:n], z[n:]
    s = u - u.T + v.T @ v
    assert torch.allclose(
        (torch.eye(n, dtype=torch.float64) + s) @ q[:n], torch.eye(n, dtype=torch.float64) - s, atol=1e-6 * 100**exponent + 1e-9
    )


def test_cayley_matrix_at_zero_and_its_gradients():
    frame = CayleyMatrix(5, 3, generator())
    with torch.no_grad():
        frame.raw_direction.zero_()
    value = frame()
    assert torch.equal(value, torch.eye(5, 3, dtype=torch.float64))
    value.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in frame.parameters())


def test_cayley_gradients_by_differences():
    z = torch.randn(6, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cayley, (z,))


# --- the bound ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["sandwich", "cayley"]), st.floats(-2, 2), st.floats(-3, 3))
def test_no_pattern_exceeds_the_bound(seed, layer, size, log_bound):
    """Every 0/1 pattern of small ReLU networks, parameters of any size (oracle 3 for these layers)."""
    bound = 10**log_bound
    net = scrambled(LipschitzMLP(3, (4, 5), 2, bound, layer, generator=generator(seed)), seed, 10**size)
    weights = [weight.detach().numpy() for weight, _ in net.materialise()]
    assert greatest_pattern(weights) <= net.built_for * (1 + 1e-9) < bound


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(PAIRS), st.floats(-1, 1.5))
def test_sampled_slopes_stay_below_the_bound(seed, pair, size):
    net = scrambled(LipschitzMLP(3, (9, 6, 7), 2, 5.0, *pair, generator=generator(seed)), seed, 10**size).double()
    x = torch.randn(200, 3, dtype=torch.float64, generator=generator(seed))
    y = x + 0.1 * torch.randn(200, 3, dtype=torch.float64, generator=generator(seed + 1))
    with torch.no_grad():
        slopes = (net(x) - net(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(slopes.max()) <= 5.0


def test_the_scalar_sandwich_layer():
    """Oracle 5: A = cos, B = sin: the slope is gain sin(2 angle), at most the gain and reached at 45 degrees."""
    net = LipschitzMLP(1, (1,), 1, 3.0, "sandwich")
    with torch.no_grad():
        net.stack.frames[1].raw_direction.copy_(torch.tensor([[0.0], [1.0]]))
        net.stack.frames[1].raw_norm.fill_(1.0)  # V = 1: S = 1, A = 0, B = -1
        for v in (0.1, math.sqrt(2) - 1, 0.9, 4.0):
            net.stack.frames[0].raw_direction.copy_(torch.tensor([[0.0], [1.0]]))
            net.stack.frames[0].raw_norm.fill_(v)
            a, b = (1 - v * v) / (1 + v * v), 2 * v / (1 + v * v)
            (first, _), (last, _) = net.materialise()
            assert abs(float(first * last)) == pytest.approx(net.built_for * 2 * abs(a * b), rel=1e-6)


def test_merged_weights_are_the_layered_sandwich():
    net = scrambled(LipschitzMLP(3, (5, 4), 2, 7.0, "sandwich", "tanh", generator=generator()), 3, 0.7)
    stack, gamma = net.stack, net.built_for
    x = torch.randn(20, 3, dtype=torch.float64, generator=generator(4))
    h = math.sqrt(gamma) * x
    frames = [frame() for frame in stack.frames]
    for frame, log_scale, bias in zip(frames[:-1], stack.raw_log_scale, net.hidden_bias, strict=True):
        n = frame.shape[1]
        a_t, b = frame[:n], frame[n:].T
        psi = log_scale.double().exp()
        h = math.sqrt(2) * (psi * torch.tanh(math.sqrt(2) * (h @ b.T) / psi + bias.double())) @ a_t.T
    y = math.sqrt(gamma) * h @ frames[-1][2:] + net.output_bias.double()
    assert torch.allclose(net(x), y, atol=1e-12)


@pytest.mark.parametrize(("width", "depth"), [(64, 2), (64, 16), (128, 3), (16, 12)])
@pytest.mark.parametrize("layer", ["sandwich", "cayley"])
def test_float32_weights_are_proved_at_any_depth(layer, width, depth):
    """The graded multipliers leave room for rounding to float32 in every layer."""
    policy = lipschitz_policy(17, [-1] * 6, [1] * 6, 2.5, hidden=(width,) * depth, layer=layer, generator=generator())
    scrambled(policy.network, 5, 2.0)
    assert 2.49 < policy.lipschitz() <= 2.5


def test_multipliers_of_tanh_networks_follow_their_scales():
    policy = lipschitz_policy(4, [-1], [1], 3.0, hidden=(8, 8), activation="tanh", generator=generator())
    with torch.no_grad():
        for raw in policy.network.stack.raw_log_scale:
            raw.copy_(3 * torch.randn(raw.shape, generator=generator(2)))
    assert policy.lipschitz() == 3.0


@pytest.mark.parametrize(
    ("pair", "depth", "gain"),
    [
        (("sandwich", "relu"), 2, 0.355),
        (("sandwich", "relu"), 4, 0.132),
        (("cayley", "relu"), 2, 0.405),
        (("cayley", "maxmin"), 2, 0.703),
        (("cayley", "maxmin"), 8, 0.690),
    ],
)
def test_initial_gains(pair, depth, gain):
    """Oracle 13: the mean norm of the Jacobian at the start, biases 0; orthogonal MaxMin layers keep it at any depth."""
    norms = []
    for seed in range(3):
        net = LipschitzMLP(17, (64,) * depth, 6, 1.0, *pair, generator=generator(seed)).double()
        with torch.no_grad():
            for bias in net.hidden_bias:
                bias.zero_()
        x = torch.randn(20, 17, dtype=torch.float64, generator=generator(seed + 9), requires_grad=True)
        with net.materialised():
            rows = [torch.autograd.grad(net(x)[:, k].sum(), x, retain_graph=True)[0] for k in range(6)]
        norms.append(torch.linalg.matrix_norm(torch.stack(rows, dim=1), 2).mean().item())
    assert np.mean(norms) == pytest.approx(gain, rel=0.2)


# --- materialising ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_weights_are_never_stale(pair):
    """Oracle 19: writes that no version counter sees, and a fused optimiser step."""
    net = LipschitzMLP(3, (8, 8), 2, 2.0, *pair, generator=generator())
    x = torch.randn(5, 3, generator=generator(1))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    seen = [net(x)]
    for p in net.parameters():
        p.data.mul_(2).add_(0.1)
    seen.append(net(x))
    with net.materialised():
        net(x).square().sum().backward()
    optimiser.step()
    seen.append(net(x))
    net.load_state_dict({name: value + 0.3 for name, value in net.state_dict().items()}, assign=True)
    seen.append(net(x))
    for before, after in itertools.pairwise(seen):
        assert not torch.allclose(before, after)
    assert torch.equal(net.plain()(x), net(x))


def test_one_materialisation_for_each_scope(monkeypatch):
    net = LipschitzMLP(3, (8,), 2, generator=generator())
    calls = []
    original = net.stack.materialise
    monkeypatch.setattr(net.stack, "materialise", lambda gain: calls.append(gain) or original(gain))
    x = torch.randn(5, 3)
    with net.materialised():
        first, second = net(x), net(2 * x)
        with net.materialised():
            net(x)
        net(x)
    assert len(calls) == 2
    assert torch.equal(first, net(x)) and torch.equal(second, net(2 * x))
    assert len(calls) == 4
    with pytest.raises(RuntimeError), net.materialised():
        raise RuntimeError
    net(x)
    assert len(calls) == 6


def test_gradients_reach_every_parameter_through_a_scope():
    for pair in PAIRS:
        net = LipschitzMLP(3, (8, 8), 2, 2.0, *pair, generator=generator())
        with net.materialised():
            net(torch.randn(50, 3, generator=generator(1))).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_network_learns_up_to_its_bound():
    net = LipschitzMLP(1, (16,), 1, 2.0, generator=generator())
    x = torch.linspace(-1, 1, 64)[:, None]
    optimiser = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(300):
        with net.materialised():
            loss = (net(x) - 10 * x).square().mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    slope = float((net(x[-1:]) - net(x[:1])).detach()) / 2
    assert 1.95 < slope <= 2.0


# --- plain layers, dtypes, copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [*PAIRS, ("cayley", group_sort(3))])
def test_plain_layers_are_equal_bit_for_bit(choice):
    net = LipschitzMLP(4, (7, 9), 3, 2.0, *choice, generator=generator())
    x = torch.randn(33, 4, generator=generator(1))
    plain = net.plain()
    assert torch.equal(plain(x), net(x)) and torch.equal(plain(x[0]), net(x[0]))
    assert {type(m).__name__ for m in plain} <= {"Linear", "ReLU", "Tanh", "GroupSort"}
    assert torch.equal(net.plain(torch.float64)(x.double()), net(x.double()))


def test_generators_decide_the_start():
    for layer in LAYERS:
        first, second, third = (LipschitzMLP(3, (8,), 1, layer=layer, activation="relu", generator=generator(s)) for s in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))
    assert copy.deepcopy(first)(torch.ones(3)) == first(torch.ones(3))
    assert first.output_bias.dtype == torch.float32 and next(iter(first.double().parameters())).dtype == torch.float64


def test_devices():
    net = LipschitzMLP(3, (8,), 1, generator=generator(), device="cpu")
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    meta = LipschitzMLP(3, (8,), 1, device="meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_group_sort_sorts_inside_groups():
    x = torch.tensor([[3.0, 1, 2, 5, 4, 0, -1]])
    assert ACTIVATIONS["maxmin"].apply(x).tolist() == [[1, 3, 2, 5, 0, 4, -1]]
    assert group_sort(3).apply(x).tolist() == [[1, 2, 3, 0, 4, 5, -1]]
    assert group_sort(4).apply(x).tolist() == [[1, 2, 3, 5, -1, 0, 4]]


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["maxmin", group_sort(3)])
def test_illegal_pairs_are_refused(choice):
    """Oracle 17."""
    with pytest.raises(InputError, match=r"'sandwich' needs .* slopes in \[0, 1\] .*use layer='cayley'"):
        LipschitzMLP(2, (4,), 1, layer="sandwich", activation=choice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "dense"}, "layer is 'dense', expected one of sandwich, cayley"),
        ({"activation": "gelu"}, "activation is 'gelu', expected one of relu, tanh, maxmin"),
        ({"lipschitz": 0.0}, "lipschitz is 0.0, expected a positive"),
        ({"lipschitz": math.nan}, "lipschitz is nan"),
        ({"hidden": (4, 0)}, "sizes are"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        LipschitzMLP(**{"input_size": 2, "hidden": (4,), "output_size": 1, **arguments})


def test_group_sizes_below_two_are_refused():
    with pytest.raises(InputError, match="group_size is 1"):
        group_sort(1)
    assert activation(ACTIVATIONS["relu"]).name == "relu"
