"""Constants of compositions, and gains between groups of inputs and outputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipctrl.core.errors import InputError
from lipctrl.nn import ACTIVATIONS, LipschitzMLP, LipschitzPolicy, ResidualMLP, block_gains, lipschitz_constant
from lipctrl.nn.activations import Elementwise
from lipctrl.nn.calculus import Angle, Concatenate, Mix, Parallel, Repeat, Scale, Sum, known_modules


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(matrix) -> nn.Linear:
    weight = torch.as_tensor(matrix, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


double, triple = linear([[2.0, 0], [0, 1]]), linear([[0, 3.0], [1, 0]])


@pytest.mark.parametrize(
    ("module", "constant"),
    [
        (nn.Sequential(double, nn.ReLU(), triple), 6),
        (nn.Sequential(), 1),
        (Sum(double, triple), 5),
        (Concatenate(double, triple), math.sqrt(13)),
        (Parallel([2, 2], double, triple), 3),
        (Mix(double, triple, 0.25), 2.25),
        (Scale([0.5, -4.0], [1.0, 1.0]), 4),
        (Angle(), 1),
        (Repeat(3), math.sqrt(3)),
        (nn.Sequential(Scale([2.0]), nn.Hardtanh(-3, 3), nn.Sigmoid()), 0.5),
        (nn.GELU(), 1.129),
        (nn.LeakyReLU(2.0), 2),
        (nn.ELU(1.5), 1.5),
        (nn.RMSNorm(4, eps=1e-5), 316.23),
        (nn.RMSNorm(4), 2896.3),
        (nn.LayerNorm(4), 316.23),
        (nn.Dropout(0.2), 1.25),
        (nn.Dropout(0.2).eval(), 1),
        (LipschitzMLP(2, (3,), 1, 7.0, generator=generator()), 7),
        (nn.Sequential(ResidualMLP(2, (3,), 2, 7.0, generator=generator()), nn.Tanh(), Scale([3.0, 2.0])), 21),
        (ACTIVATIONS["softplus"].module(), 1),
    ],
)
def test_rules(module, constant):
    value = lipschitz_constant(module)
    assert value == pytest.approx(constant, rel=1e-4) and value >= constant * (1 - 1e-5)


def test_batch_norm_counts_in_evaluation_mode_only():
    norm = nn.BatchNorm1d(2)
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([0.25, 4.0]))
        norm.weight.copy_(torch.tensor([1.0, -3.0]))
    with pytest.raises(InputError, match=r"call eval\(\) first"):
        lipschitz_constant(nn.Sequential(norm))
    assert lipschitz_constant(norm.eval()) == pytest.approx(2.0, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_constants_are_above_sampled_slopes(seed):
    source = np.random.default_rng(seed)
    parts = [linear(source.standard_normal((3, 3)) * 10.0 ** source.integers(-2, 3)) for _ in range(4)]
    inner = Sum(nn.Sequential(parts[0], nn.SiLU(), parts[1]), Mix(parts[2], nn.Tanh(), source.uniform()))
    whole = nn.Sequential(inner, Concatenate(parts[3], Angle()), Parallel([3, 3, 3], nn.GELU(), nn.Mish(), nn.Identity()), Repeat(2))
    x = torch.from_numpy(source.standard_normal((200, 3)))
    y = x + 10.0 ** source.integers(-4, 2) * torch.from_numpy(source.standard_normal((200, 3)))
    with torch.no_grad():
        slopes = (whole(x) - whole(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(slopes.max()) <= lipschitz_constant(whole) * (1 + 1e-9)


def test_pieces_that_would_repeat_a_signal_are_refused():
    one, three = linear(np.ones((1, 3))), linear(np.eye(3))
    x = torch.zeros(2, 3, dtype=torch.float64)
    for module in (Sum(three, one), Mix(one, three, 0.5), nn.Sequential(one, Scale([1.0, 2.0]))):
        with pytest.raises(InputError, match=r"expected (equal ones|1 or one)"):
            module(x)


class Loud(nn.ReLU):
    def forward(self, input):
        return 5 * input


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.GRUCell(2, 2), "GRUCell"),
        (nn.Bilinear(2, 2, 2), "Bilinear"),
        (nn.Softplus(), "Softplus"),
        (nn.Conv1d(1, 1, 3), "Conv1d"),
        (Loud(), "Loud"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), "ParametrizedLinear"),
    ],
)
def test_unknown_modules_are_refused_by_name(module, name):
    """Oracle 15 among them: only listed types, and no subclass of one."""
    with pytest.raises(InputError, match=f"module '{name}' has no known Lipschitz constant"):
        lipschitz_constant(nn.Sequential(nn.ReLU(), module))
    assert name not in known_modules()


def test_changed_modules_are_refused():
    hooked, replaced = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda module, inputs, output: 5 * output)
    replaced.forward = lambda x: 5 * x
    for module in (hooked, replaced):
        with pytest.raises(InputError, match="hooks or a forward of its own"):
            lipschitz_constant(module)
    with pytest.raises(InputError, match="'Elementwise' of 'five'"):
        lipschitz_constant(Elementwise("five", lambda x: 5 * x))
    broken = linear([[math.nan]])
    with pytest.raises(InputError, match="not finite"):
        lipschitz_constant(broken)


@pytest.mark.parametrize("make", [Sum, lambda: Mix(double, triple, 2.0), lambda: Repeat(0), lambda: Parallel([2], double, triple)])
def test_wrong_arguments_are_named(make):
    with pytest.raises(InputError, match="expected"):
        make()


# --- gains between groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "activation"), [("ldlt", "relu"), ("sandwich", "tanh"), ("cayley", "maxmin")])
def test_gains_between_groups(layer, activation):
    """Two players: own state with gain 1, the other's with gain 1/10; the second action is three times as large."""
    net = LipschitzMLP(4, (16, 16), 3, 1.5, layer, activation, generator=generator())
    scales = {"observation_scale": [1, 1, 10, "10"], "action_scale": [1, 1, 3]}
    policy = LipschitzPolicy(net, action_low=[-9] * 3, action_high=[9] * 3, **scales)
    inputs, outputs = {"own": [0, 1], "other": [2, 3]}, {"first": [0, 1], "second": [2]}
    gains = block_gains(policy, inputs, outputs)
    wanted = {("first", "own"): 1.5, ("first", "other"): 0.15, ("second", "own"): 4.5, ("second", "other"): 0.45}
    assert gains == pytest.approx(wanted, rel=1e-3)
    assert all(gains[key] <= wanted[key] * (1 + 1e-12) for key in wanted)
    for (out_name, in_name), gain in gains.items():
        x = torch.randn(300, 4, dtype=torch.float64, generator=generator(1))
        step = torch.zeros_like(x)
        step[:, inputs[in_name]] = torch.randn(300, 2, dtype=torch.float64, generator=generator(2))
        with torch.no_grad():
            change = (policy(x + step) - policy(x))[:, outputs[out_name]]
        assert float((change.norm(dim=1) / step.norm(dim=1)).max()) <= gain


def test_groups_and_networks_that_do_not_fit_are_refused():
    policy = LipschitzPolicy(LipschitzMLP(2, (3,), 1, generator=generator()), action_low=[-1], action_high=[1])
    for inputs in ({}, {"a": []}, {"a": [2]}):
        with pytest.raises(InputError, match="inputs"):
            block_gains(policy, inputs, {"u": [0]})
    skipping = LipschitzPolicy(ResidualMLP(2, (3,), 1, generator=generator()), action_low=[-1], action_high=[1])
    assert block_gains(skipping, {"a": [0]}, {"u": [0]}) == {("u", "a"): 1.0}
