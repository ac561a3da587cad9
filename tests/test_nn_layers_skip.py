"""Networks with connections that skip layers: residual blocks, and a linear map beside a network under one bound."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.torch_evaluation import evaluate_torch
from lipctrl.nn import ACTIVATIONS, LinearPlusMLP, LipschitzPolicy, ResidualMLP
from lipctrl.nn.residual import dominant_diagonal, norm_diagonal

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


def numbers(net) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in net.tensors().items()}


def patterns(units: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=units)))


def greatest_pattern(net: LinearPlusMLP) -> float:
    """max over all 0/1 patterns of ||A + B D C_l ... D C_1||."""
    tensors, hidden = numbers(net), net.sizes[1:-1]
    best = 0.0
    for bits in patterns(sum(hidden)):
        product, rest = np.eye(net.sizes[0]), bits
        for k, n in enumerate(hidden):
            product, rest = rest[:n, None] * (tensors[f"weight_{k}"] @ product), rest[n:]
        best = max(best, float(np.linalg.norm(tensors["linear"] + tensors[f"weight_{len(hidden)}"] @ product, 2)))
    return best


def inequality(net: LinearPlusMLP, bound: float, multipliers: list[np.ndarray]) -> np.ndarray:
    """bound^2 |dx|^2 - |A dx + B dz_l|^2 + sum lambda dz (dz - dv) as a matrix, scaled to unit order."""
    tensors, sizes = numbers(net), net.sizes[:-1]
    ends = np.cumsum([0, *sizes])
    blocks = [slice(a, b) for a, b in itertools.pairwise(ends)]
    p = np.zeros((ends[-1], ends[-1]))
    p[blocks[0], blocks[0]] = np.eye(sizes[0]) * bound**2
    for k, values in enumerate(multipliers, start=1):
        p[blocks[k], blocks[k]] += np.diag(values)
        p[blocks[k], blocks[k - 1]] -= values[:, None] * tensors[f"weight_{k - 1}"] / 2
        p[blocks[k - 1], blocks[k]] = p[blocks[k], blocks[k - 1]].T
    output = np.zeros((net.sizes[-1], ends[-1]))
    output[:, blocks[0]], output[:, blocks[-1]] = tensors["linear"], tensors[f"weight_{len(multipliers)}"]
    p -= output.T @ output
    scale = np.concatenate([np.full(sizes[0], 1 / bound), *(np.sqrt(2 / values) for values in multipliers)])
    return scale[:, None] * p * scale


# --- a linear map beside a network ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 30.0]), st.floats(-2, 2), st.integers(1, 3))
def test_the_joint_inequality_holds(seed, bound, exponent, depth):
    """The corrected parametrisation satisfies the matrix inequality at any size of its parameters, graded after rounding too."""
    sizes = np.random.default_rng(seed).integers(1, 6, depth + 2).tolist()
    net = scrambled(LinearPlusMLP(sizes[0], sizes[1:-1], sizes[-1], bound, generator=generator(seed)), seed, 10**exponent)
    with torch.no_grad():
        known = [2 * net.built_for * scale.numpy() ** 2 for scale in net._scales()]
    assert np.linalg.eigvalsh(inequality(net, net.built_for, known)).min() >= -1e-9
    rounded = {name: tensor.float().double() for name, tensor in net.tensors().items()}
    net.tensors = lambda: rounded
    assert np.linalg.eigvalsh(inequality(net, net.lipschitz, net.multipliers())).min() >= 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1,), (3,), (4, 3), (2, 3, 2)]), st.floats(-1, 3))
def test_no_pattern_exceeds_the_joint_bound(seed, hidden, exponent):
    """Oracle 3."""
    net = scrambled(LinearPlusMLP(3, hidden, 3, 2.0, generator=generator(seed)), seed, 10**exponent)
    assert greatest_pattern(net) <= net.built_for * (1 + 1e-9) < 2.0


def test_the_published_parametrisation_is_unsound():
    """Oracle 4: with X^-2 in place of the square root and without its cross term, one unit exceeds the bound."""
    a, w = 0.55, 1 / math.sqrt(2)
    c = math.sqrt(2) * w * math.sqrt(1 - a * a)
    b = math.sqrt(1 - w * w) / math.sqrt(1 + (a / (1 - a * a)) ** 2)
    assert a + b * c == pytest.approx(1.013726, abs=1e-6)
    for value in np.geomspace(1e-3, 1e3, 200):  # no multiplier proves it
        assert np.linalg.eigvalsh([[1 - a * a, -a * b - value * c / 2], [-a * b - value * c / 2, value - b * b]])[0] < 0
    net = LinearPlusMLP(1, (1,), 1, 1.0, generator=generator()).double()
    with torch.no_grad():
        net.raw_weight[0].fill_(1.0)
        for output in itertools.product([-1e2, -1.0, -0.1, 0.1, 1.0, 1e2], repeat=2):
            net.raw_output.copy_(torch.tensor([output]))
            assert greatest_pattern(net) <= 1


@pytest.mark.parametrize("hidden", [(5,), (16, 8), (4, 4, 4, 4)])
@pytest.mark.parametrize("share", [1e-3, 0.6, 0.99])
def test_it_starts_at_a_linear_controller(hidden, share):
    """Oracle 20: f(x) = K x to 1e-12 with hidden weights and biases that are not zero."""
    net = LinearPlusMLP(4, hidden, 2, 7.0, generator=generator()).double()
    gain = normal(2, 4)
    gain *= share * net.built_for / torch.linalg.matrix_norm(gain, 2)
    net.start_at(gain)
    x = normal(50, 4, seed=1)
    assert torch.allclose(net(x), x @ gain.T, atol=1e-12 * 10, rtol=1e-12)
    assert all(raw.abs().min() > 0 for raw in [*net.raw_weight, *net.hidden_bias])
    net(x).square().sum().backward()
    assert net.raw_output.grad.abs().sum() > 0
    with torch.no_grad():
        net.raw_output[:, : hidden[-1]] = 0
    assert not torch.allclose(net(x), x @ gain.T, atol=1e-9)


def test_a_linear_start_beyond_the_bound_is_refused():
    net = LinearPlusMLP(4, (5,), 2, 1.0, generator=generator())
    with pytest.raises(InputError, match="gain has norm 2, expected less than 0.9999"):
        net.start_at(2 * torch.eye(2, 4, dtype=F64))


def test_layers_that_amplify_beyond_float64_are_refused():
    """Oracle 23: rank-one parameters of the greatest norm in 16 layers."""
    net = LinearPlusMLP(4, (4,) * 16, 2, generator=generator())
    with torch.no_grad():
        for raw in net.raw_weight:
            raw.copy_(torch.ones(4, 4) * 25)
    with pytest.raises(LipctrlError, match="amplify beyond"):
        net.tensors()


# --- residual blocks -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 7), st.floats(-4, 3))
def test_diagonals_dominate(seed, units, width, exponent):
    weight = 10**exponent * normal(units, width, seed=seed)
    for diagonal in (dominant_diagonal(weight, 3 * normal(units, seed=seed + 1)), norm_diagonal(weight)):
        inverse = diagonal.rsqrt()
        scaled = inverse[:, None] * (weight @ weight.T) * inverse
        assert float(torch.linalg.eigvalsh(scaled).max()) <= 1 + 1e-9


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(["sll", "cpl"]), st.sampled_from([(3, 3), (2, 4), (5, 2)]), st.floats(-2, 2), st.floats(-3, 3)
)
def test_residual_networks_keep_their_bound(seed, layer, ends, exponent, log_bound):
    """Oracle 3 for blocks: one pattern after the other, and sampled slopes after rounding to float32."""
    bound = 10**log_bound
    net = scrambled(ResidualMLP(ends[0], (3, 4), ends[1], bound, layer, generator=generator(seed)), seed, 10**exponent)
    tensors = numbers(net)
    for bits in patterns(7):
        jacobian = tensors["enter"]
        for k, pattern in enumerate((bits[:3], bits[3:])):
            jacobian = jacobian + tensors[f"outer_{k}"] @ (pattern[:, None] * (tensors[f"inner_{k}"] @ jacobian))
        assert np.linalg.norm(tensors["leave"] @ jacobian, 2) <= net.built_for * (1 + 1e-9)
    rounded = {name: tensor.detach().float().double() for name, tensor in net.tensors().items()}
    x = normal(100, ends[0], seed=seed)
    y = x + normal(100, ends[0], seed=seed + 1)
    slopes = (net.apply_tensors(x, rounded) - net.apply_tensors(y, rounded)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(slopes.max()) <= bound


@pytest.mark.parametrize("layer", ["sll", "cpl"])
def test_known_multipliers_of_blocks(layer):
    """|dx|^2 - |block(dx)|^2 + sum lambda dz (dz - dv) >= 0, with room for D (1 + 1e-4)."""
    net = scrambled(ResidualMLP(5, (7,), 5, 1.0, layer, generator=generator()), 3, 2.0)
    tensors, (values,) = numbers(net), net.multipliers()
    output = np.hstack([np.eye(5), tensors["outer_0"]])
    p = np.zeros((12, 12))
    p[:5, :5] = np.eye(5)
    p[5:, 5:] = np.diag(values)
    p[5:, :5] = -values[:, None] * tensors["inner_0"] / 2
    p[:5, 5:] = p[5:, :5].T
    assert np.linalg.eigvalsh(p - output.T @ output).min() >= -1e-12 * values.max()


@pytest.mark.parametrize("w", [0.3, -2.0, 40.0])
def test_one_unit_is_an_absolute_value(w):
    """Oracle 6: the slopes are +1 and -1 up to the room for rounding, never anything else."""
    net = ResidualMLP(1, (1,), 1, 1.0, "sll").double()
    with torch.no_grad():
        net.raw_weight[0].fill_(w)
        net.hidden_bias[0].zero_()
    outside = (net(torch.tensor([[-1.0], [1.0]], dtype=F64)) - net(torch.zeros(1, 1, dtype=F64))).detach()
    assert torch.allclose(outside.abs(), torch.ones(2, 1, dtype=F64), atol=4e-4)
    assert float(outside.abs().max()) <= 1


@settings(max_examples=50, deadline=None)
@given(st.floats(-20, 20), st.floats(-12, 2))
def test_tiny_scales_are_harmless(log_scale, exponent):
    """Oracle 7: an epsilon on one side of the quotient gives slope 21 at w = 1, q = 1e-7, epsilon = 1e-6."""
    q, epsilon = 1e-7, 1e-6
    assert abs(1 - 2 / (q / (q + epsilon))) == pytest.approx(21)
    net = ResidualMLP(1, (1,), 1, 1.0, "sll").double()
    with torch.no_grad():
        net.raw_weight[0].fill_(10**exponent)
        net.raw_log_scale[0].fill_(log_scale)
    tensors = numbers(net)
    for active in (0.0, 1.0):
        assert abs(1 + active * float((tensors["outer_0"] @ tensors["inner_0"]).item())) <= 1


def test_gradients_of_blocks_are_finite_at_zero():
    for layer in ("sll", "cpl"):
        net = ResidualMLP(3, (4, 4), 2, layer=layer, generator=generator())
        with torch.no_grad():
            for raw in net.raw_weight:
                raw.zero_()
        net(torch.randn(5, 3, generator=generator())).square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())


# --- both --------------------------------------------------------------------------------------------------------------------


def both(activation: str = "relu", **options) -> list[torch.nn.Module]:
    return [
        LinearPlusMLP(3, (6, 5), 2, 2.0, activation, generator=generator(), **options),
        ResidualMLP(3, (6, 5), 2, 2.0, "sll", activation, generator=generator(), **options),
        ResidualMLP(3, (6, 5), 2, 2.0, "cpl", activation, width=4, generator=generator(), **options),
    ]


@pytest.mark.parametrize("name", [name for name, made in ACTIVATIONS.items() if made.slope_restricted])
def test_policies_of_networks_that_skip_layers(name):
    for net in both(name):
        rest = [0.5, 0, "1/3"]
        policy = LipschitzPolicy(net, action_low=[-9, -9], action_high=[9, 9], observation_scale="0.5", equilibrium_observation=rest)
        x = 2 * torch.randn(16, 3, generator=generator(7))
        with torch.no_grad(), policy.materialised():
            own = policy.clipped(x)
        graph = policy.graph()
        assert torch.allclose(evaluate_torch(graph, {"observation": x}, torch.float32)["action"], own, atol=1e-5)
        assert np.allclose(policy.export().predict(x.numpy())[0], own.numpy(), atol=1e-5)
        assert policy.lipschitz() == pytest.approx(4, rel=1e-12)
        claim, evidence = policy.lipschitz_proof(graph)
        for factor in (0.0, 1e-3, 1e4):
            wrong = [[(factor * float.fromhex(v)).hex() for v in values] for values in evidence["multipliers"]]
            with pytest.raises(Rejected, match="do not prove"):
                prove_lipschitz(graph, claim, {**evidence, "multipliers": wrong})
        step = torch.randn(16, 3, generator=generator(8)).double()
        with torch.no_grad():
            rise = policy(x.double() + step) - policy(x.double())
        assert float((rise.norm(dim=1) / step.norm(dim=1)).max()) <= 4
        assert float((rise.abs().amax(dim=1) / step.abs().amax(dim=1)).max()) <= policy.lipschitz("linf") <= 4 * 3**0.5 * (1 + 1e-12)


def test_deep_and_wide_networks_that_skip_layers_are_proved_from_known_multipliers():
    for bound in (1e-3, 50.0):
        for net in (
            ResidualMLP(6, (64,) * 12, 2, bound, "sll", generator=generator()),
            ResidualMLP(6, (7, 3, 200), 2, bound, "cpl", generator=generator()),
            ResidualMLP(6, (), 2, bound, generator=generator()),
            LinearPlusMLP(6, (64,) * 4, 2, bound, generator=generator()),
        ):
            policy = LipschitzPolicy(net, action_low=[-1, -1], action_high=[1, 1], observation_scale=3, action_scale=2)
            assert policy.lipschitz() == pytest.approx(bound * 2 / 3, rel=1e-12)


@pytest.mark.parametrize("name", [name for name, made in ACTIVATIONS.items() if not made.slope_restricted])
def test_illegal_activations_are_refused(name):
    """Oracle 17; the absolute value in a block with W = D = 1 has slope 3."""
    for make in (lambda: LinearPlusMLP(2, (3,), 1, activation=name), lambda: ResidualMLP(2, (3,), 1, activation=name)):
        with pytest.raises(InputError, match=r"slopes in \[0, 1\]"):
            make()


def test_bounds_are_learnt_and_weights_never_stale():
    """Oracle 19."""
    x = torch.randn(32, 3, generator=generator(1))
    for net in both(lipschitz_range=(0.1, 20.0)):
        optimiser, seen = torch.optim.Adam(net.parameters(), lr=0.1, fused=True), [net(x)]
        for _ in range(30):
            with net.materialised():
                loss = (net(x) - 5 * x[:, :2]).square().mean()
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        assert 2.0 < net.lipschitz < 20.0
        seen.append(net(x))
        for p in net.parameters():
            p.data.mul_(1.5).add_(0.1)
        seen.append(net(x))
        assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[1], seen[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualMLP(2, (3,), 1, layer="aol"), "layer is 'aol', expected 'sll' or 'cpl'"),
        (lambda: LinearPlusMLP(2, (), 1), "hidden is empty"),
        (lambda: LinearPlusMLP(2, (3,), 1, -1.0), "lipschitz is -1.0"),
        (lambda: ResidualMLP(2, (0,), 1), "sizes are"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
