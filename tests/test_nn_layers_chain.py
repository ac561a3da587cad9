"""Families of layers in a chain: LDL^T, contraction, almost orthogonal, Björck; activations and learnt bounds."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.chain import read_chain
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.slopes import SLOPES
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.torch_evaluation import evaluate_torch
from lipctrl.nn import ACTIVATIONS, LAYERS, LipschitzMLP, LipschitzPolicy, group_sort, leaky_relu, lipschitz_policy
from lipctrl.nn.aol import almost_orthogonal
from lipctrl.nn.bjorck import BjorckStack, bjorck, norm_bound
from lipctrl.nn.contraction import conditioned, contraction, free_of_contraction
from lipctrl.nn.ldlt import LDLTStack, ldlt_weights

F64 = torch.float64
NEW = ["ldlt", "contraction", "aol", "bjorck"]
EVERY_PAIR = [(layer, name) for layer in LAYERS for name in ACTIVATIONS]
LEGAL = [(layer, name) for layer, name in EVERY_PAIR if ACTIVATIONS[name].slope_restricted or layer not in ("sandwich", "ldlt")]


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


def inequality(weights: list[np.ndarray], bound: float, multipliers: list[np.ndarray]) -> np.ndarray:
    """The matrix P of the slope inequality for slopes in [0, 1], scaled to unit order: rows of the input divided by the bound."""
    sizes = [weights[0].shape[1], *(len(w) for w in weights[:-1])]
    ends = np.cumsum([0, *sizes])
    blocks = [slice(a, b) for a, b in itertools.pairwise(ends)]
    p = np.zeros((ends[-1], ends[-1]))
    p[blocks[0], blocks[0]] = np.eye(sizes[0]) * bound**2
    for k, values in enumerate(multipliers, start=1):
        p[blocks[k], blocks[k]] = np.diag(values)
        p[blocks[k], blocks[k - 1]] = -values[:, None] * weights[k - 1] / 2
        p[blocks[k - 1], blocks[k]] = p[blocks[k], blocks[k - 1]].T
    p[blocks[-1], blocks[-1]] -= weights[-1].T @ weights[-1]
    scale = np.concatenate([np.full(sizes[0], 1 / bound), *(np.sqrt(2 / values) for values in multipliers)])
    return scale[:, None] * p * scale


# --- LDL^T ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("last", [0.5, 1e3])
def test_the_scalar_network(v, last):
    """Oracle 1: C_2 C_1 = 2 w_1 w_2 sqrt(1 - w_1^2), with w^2 = v^2 / (v^2 + 1)."""
    first, second = ldlt_weights([torch.tensor([[v]], dtype=F64), torch.tensor([[last]], dtype=F64)])
    w1, w2 = (x / math.sqrt(x * x + 1) for x in (v, last))
    assert float(first * second) == pytest.approx(2 * w1 * w2 * math.sqrt(1 - w1 * w1), rel=1e-9)
    if v == 1.0 and last == 1e3:
        assert 3 * float(first * second) == pytest.approx(3, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 3.0, 1e-3, 1e3]), st.floats(-2, 3), st.integers(1, 4))
def test_known_multipliers_satisfy_the_inequality(seed, bound, exponent, depth):
    """Oracle 2: the least eigenvalue of the scaled matrix, at squared condition numbers to 1e6, scales of tanh units included."""
    sizes = [int(n) for n in np.random.default_rng(seed).integers(1, 9, depth + 2)]
    free = [conditioned(10**exponent * normal(b, a, seed=seed + k), 1e6) for k, (a, b) in enumerate(itertools.pairwise(sizes))]
    weights = [w.numpy() for w in ldlt_weights(free)]
    assert np.linalg.eigvalsh(inequality(weights, 1.0, [np.full(n, 2.0) for n in sizes[1:-1]])).min() >= -1e-9
    stack = LDLTStack(sizes).double()
    scrambled(stack, seed, 3.0)
    weights = [w.detach().numpy() for w in stack.materialise(bound)]
    known = [values.detach().numpy() for values in stack.multipliers(bound)]
    assert np.linalg.eigvalsh(inequality(weights, bound, known)).min() >= -1e-10


def test_mixed_roots_are_unsound():
    """Oracle 18: S / sqrt(2) in place of S^T / sqrt(2) exceeds the bound; ours does not."""
    first = torch.tensor([[2.15], [-4.0]], dtype=F64)
    root = torch.linalg.cholesky(first @ first.T + torch.eye(2, dtype=F64))
    w = torch.linalg.solve_triangular(root, first, upper=False)
    unit = torch.ones(1, 2, dtype=F64)
    for active, gain in ((torch.ones(2, dtype=F64), 1.2945), (torch.tensor([1.0, 0.0], dtype=F64), 1.6080)):
        row = active * (math.sqrt(2) * w[:, 0])
        wrong = torch.linalg.norm(torch.linalg.solve_triangular(root / math.sqrt(2), row[:, None], upper=False))
        right = torch.linalg.norm(torch.linalg.solve_triangular(root.T / math.sqrt(2), row[:, None], upper=True))
        assert float(wrong) == pytest.approx(gain, abs=2e-4)
        assert float(right) <= 1
    assert greatest_pattern([w.numpy() for w in ldlt_weights([first, 1e6 * unit])]) <= 1


def test_graded_multipliers_of_one_unit():
    """Oracle 21: C = (1, 1) is singular with multiplier 2, and has room epsilon / 2 graded."""
    ones, c = [np.ones((1, 1)), np.ones((1, 1))], 1.01
    flat = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert np.allclose(inequality(ones, 1.0, [np.array([2.0])]), flat) and abs(np.linalg.eigvalsh(flat)[0]) < 1e-12
    graded = np.array([[c * c, -c], [-c, 2 * c - 1]])
    assert np.linalg.eigvalsh(graded)[0] == pytest.approx(0.01, abs=1e-4)


def test_flat_multipliers_have_no_room_for_rounding():
    """Oracle 21: 17-64^16-6 at the greatest condition number, rounded to float32: flat refused, graded accepted."""
    policy = lipschitz_policy(17, [-1] * 6, [1] * 6, 2.0, hidden=(64,) * 16, layer="ldlt", generator=generator())
    scrambled(policy.network, 1, 30.0)
    with torch.no_grad():
        for raw in policy.network.stack.raw_log_scale:
            raw.zero_()
    assert policy.lipschitz() == 2.0
    graph = policy.graph()
    claim, evidence = policy.lipschitz_proof(graph)
    flat = [[(2 * 2.0).hex()] * 64] * 16
    with pytest.raises(Rejected, match="do not prove"):
        prove_lipschitz(graph, claim, {**evidence, "multipliers": flat})


@pytest.mark.parametrize("sizes", [(3, 2), (4, 6, 5, 2), (2, 3, 3, 3, 1), (5, 2, 7, 1)])
def test_gradients_by_differences(sizes):
    free = [normal(b, a, seed=k).requires_grad_() for k, (a, b) in enumerate(itertools.pairwise(sizes))]
    assert torch.autograd.gradcheck(lambda *v: tuple(ldlt_weights(v)), free)
    assert torch.autograd.gradcheck(contraction, (free[0],)) and torch.autograd.gradcheck(almost_orthogonal, (free[0],))
    assert torch.autograd.gradcheck(lambda v: bjorck(v / norm_bound(v), 3), (free[-1],))
    assert torch.autograd.gradcheck(lambda v: conditioned(v, 2.0), (free[0],))


def test_gradients_are_finite_at_zero_and_at_the_clamp():
    """Oracle 22."""
    for layer in NEW:
        for size in (0.0, 1.0, 1e4):
            stack = LAYERS[layer]((3, 4, 2), generator())
            with torch.no_grad():
                for raw in stack.parameters():
                    raw.mul_(size)
            sum(w.sum() for w in stack.materialise(1.0)).backward()
            assert all(torch.isfinite(p.grad).all() for p in stack.parameters()), (layer, size)
    edge = math.sqrt(2e4 / 12) * torch.ones(3, 4, dtype=F64)
    assert float(torch.linalg.matrix_norm(conditioned(edge), 2)) == pytest.approx(100.0)


def test_parameters_that_are_not_finite_are_refused():
    for value in (math.nan, math.inf):
        with pytest.raises(LipctrlError, match="not finite"):
            ldlt_weights([torch.full((2, 2), value, dtype=F64), torch.ones(1, 2, dtype=F64)])


# --- matrices of norm 1 ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.floats(-12, 4), st.booleans())
def test_norms_are_at_most_one(seed, rows, columns, exponent, sparse):
    free = 10**exponent * normal(rows, columns, seed=seed)
    if sparse:
        free[:, 0] = 0
    made = {"contraction": contraction(conditioned(free)), "aol": almost_orthogonal(free), "bjorck": bjorck(free / norm_bound(free), 8)}
    for name, matrix in made.items():
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= 1 + 1e-12, name
    assert float(torch.linalg.matrix_norm(free, 2)) <= float(norm_bound(free)) * (1 + 1e-12)


def test_one_step_of_bjorck():
    """Oracle 8."""
    stepped = bjorck(torch.diag(torch.tensor([2, 1.5, 1, 0.3], dtype=F64)), 1).diagonal()
    assert torch.allclose(stepped, torch.tensor([-1, 0.5625, 1, 0.4365], dtype=F64))


def test_bjorck_is_orthogonal_from_its_start():
    for weight in BjorckStack((5, 64, 64, 3), generator()).materialise(1.0):
        small = weight if weight.shape[0] <= weight.shape[1] else weight.mT
        assert torch.allclose(small @ small.mT, torch.eye(len(small), dtype=F64), atol=1e-6)


def test_almost_orthogonal_keeps_orthonormal_columns():
    frame = torch.linalg.qr(normal(7, 4)).Q
    assert torch.allclose(almost_orthogonal(frame), frame, atol=1e-9) and torch.allclose(almost_orthogonal(frame.T), frame.T, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (4, 4)])
def test_every_contraction_has_parameters(shape):
    wanted = normal(*shape)
    wanted *= 0.9 / torch.linalg.matrix_norm(wanted, 2)
    assert torch.allclose(contraction(free_of_contraction(wanted)), wanted, atol=1e-12)
    with pytest.raises(LipctrlError, match="norm 1 or more"):
        free_of_contraction(wanted / 0.8)


# --- networks -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(NEW), st.floats(-2, 2), st.floats(-3, 3))
def test_no_pattern_exceeds_the_bound(seed, layer, size, log_bound):
    """Oracle 3 for chains: parameters of any size."""
    net = scrambled(LipschitzMLP(3, (4, 5), 2, 10**log_bound, layer, generator=generator(seed)), seed, 10**size)
    weights = [weight.detach().numpy() for weight, _ in net.materialise()]
    assert greatest_pattern(weights) <= net.built_for * (1 + 1e-9) < net.lipschitz


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(LEGAL), st.integers(0, 6), st.floats(-2, 2), st.floats(-3, 3))
def test_exported_bytes_are_proved(seed, pair, depth, size, log_bound):
    source = np.random.default_rng(seed)
    hidden = [int(n) for n in source.integers(1, 12, depth)]
    options = {"layer": pair[0], "activation": pair[1], "hidden": hidden, "generator": generator(seed)}
    policy = lipschitz_policy(3, [-1, -1], [1, 1], 10**log_bound, **options)
    scrambled(policy.network, seed, 10**size)
    bound = policy.lipschitz()
    assert bound <= 10**log_bound
    x = normal(50, 3, seed=seed)
    y = x + 10.0 ** source.integers(-3, 2) * normal(50, 3, seed=seed + 1)
    weights = {name: tensor.double() for name, tensor in policy.network.tensors().items()}
    with torch.no_grad():
        slopes = (policy.network.apply_tensors(x, weights) - policy.network.apply_tensors(y, weights)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(slopes.max()) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("layer", NEW)
@pytest.mark.parametrize(("width", "depth"), [(64, 2), (128, 3), (32, 16)])
def test_float32_weights_are_proved_at_any_depth(layer, width, depth):
    policy = lipschitz_policy(17, [-1] * 6, [1] * 6, 2.5, hidden=(width,) * depth, layer=layer, generator=generator())
    scrambled(policy.network, 5, 2.0)
    assert policy.lipschitz() <= 2.5


@pytest.mark.parametrize("pair", LEGAL)
def test_exported_outputs_are_those_of_the_module(pair):
    policy = lipschitz_policy(3, [-9, -9], [9, 9], 4.0, hidden=(8, 8), layer=pair[0], activation=pair[1], generator=generator())
    x = 2 * torch.randn(16, 3, generator=generator(7))
    with torch.no_grad():
        own = policy.clipped(x)
        assert torch.equal(policy.network.plain()(x), policy.network(x))
    assert torch.allclose(evaluate_torch(policy.graph(), {"observation": x}, torch.float32)["action"], own, atol=1e-5)
    assert np.allclose(policy.export().predict(x.numpy())[0], own.numpy(), atol=1e-5)


@pytest.mark.parametrize("layer", NEW)
def test_weights_are_never_stale(layer):
    """Oracle 19."""
    net = LipschitzMLP(3, (8, 8), 2, 2.0, layer, generator=generator())
    x = torch.randn(5, 3, generator=generator(1))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    seen = [net(x)]
    for p in net.parameters():
        p.data.mul_(2).add_(0.1)
    seen.append(net(x))
    with net.materialised():
        net(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in net.parameters())
    optimiser.step()
    seen.append(net(x))
    for before, after in itertools.pairwise(seen):
        assert not torch.allclose(before, after)
    assert torch.equal(net.plain()(x), net(x))


@pytest.mark.parametrize(
    ("layer", "depth", "low", "high"),
    [("ldlt", 2, 0.134, 0.2), ("ldlt", 4, 0.019, 0.174), ("aol", 2, 0.023, 0.21), ("aol", 4, 0.0, 0.01), ("bjorck", 2, 0.324, 0.486)],
)
def test_initial_gains(layer, depth, low, high):
    """Oracle 13: the mean norm of the Jacobian at the start, biases and ReLU."""
    norms = []
    for seed in range(3):
        net = LipschitzMLP(17, (64,) * depth, 6, 1.0, layer, generator=generator(seed)).double()
        with torch.no_grad():
            for bias in net.hidden_bias:
                bias.zero_()
        x = normal(20, 17, seed=seed + 9).requires_grad_()
        with net.materialised():
            rows = [torch.autograd.grad(net(x)[:, k].sum(), x, retain_graph=True)[0] for k in range(6)]
        norms.append(torch.linalg.matrix_norm(torch.stack(rows, dim=1), 2).mean().item())
    assert low <= np.mean(norms) <= high


# --- activations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [pair for pair in EVERY_PAIR if pair not in LEGAL])
def test_illegal_pairs_are_refused(pair):
    """Oracle 17."""
    with pytest.raises(InputError, match=r"needs an activation .* slopes in \[0, 1\]"):
        LipschitzMLP(2, (4,), 1, layer=pair[0], activation=pair[1])


@pytest.mark.parametrize("name", [name for name, made in ACTIVATIONS.items() if made.slopes])
def test_slopes_are_outside_what_is_sampled_and_near_it(name):
    """Oracle 10."""
    made = ACTIVATIONS[name]
    v = torch.linspace(-12, 12, 400_001, dtype=F64)
    z = made.apply(v)
    slopes = (z[1:] - z[:-1]) / (v[1:] - v[:-1])
    low, high = (float(end) for end in made.slopes)
    assert low - 1e-9 <= float(slopes.min()) <= low + 2e-4 and high - 2e-4 <= float(slopes.max()) <= high + 1e-9
    graph = LipschitzPolicy(LipschitzMLP(2, (3,), 1, 1.0, "cayley", name), action_low=[-1], action_high=[1]).graph()
    (hidden,) = read_chain(graph).hidden
    assert hidden.low == pytest.approx(low, abs=1e-5) and hidden.high == pytest.approx(high, abs=1e-5)


def test_constants_of_smooth_activations_lie_outside_the_true_ones():
    for name, true in (("gelu", 1.128904145), ("silu", 1.099839320)):
        assert true < ACTIVATIONS[f"scaled_{name}"].divisor < true + 1e-5
        assert SLOPES[name][1] > true - 1e-9 and ACTIVATIONS[f"scaled_{name}"].divisor >= SLOPES[name][1]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-10, 10), st.floats(-10, 10))
def test_multiplier_factors(a, b, dv, dz):
    low, high = Fraction(min(a, b)), Fraction(max(a, b))
    if high - low < Fraction(1, 1000):
        return
    factor = ACTIVATIONS["relu"].__class__("f", (low, high), torch.relu, None, None).multiplier_factor
    tight = factor * (dz - float(low) * dv) * (dz - float(high) * dv)
    assert dz * (dz - dv) <= tight + 1e-9 * factor * (dz * dz + dv * dv)


@pytest.mark.parametrize("layer", ["sandwich", "ldlt"])
@pytest.mark.parametrize("choice", ["softplus", "sigmoid", leaky_relu(0.3), leaky_relu(0.9), leaky_relu(0.0)])
def test_multipliers_of_other_slopes(layer, choice):
    policy = lipschitz_policy(4, [-1], [1], 3.0, hidden=(8, 8, 8), layer=layer, activation=choice, generator=generator())
    scrambled(policy.network, 3, 2.0)
    assert policy.lipschitz() == 3.0


def test_slopes_of_leaky_relu_are_those_that_run():
    assert leaky_relu(0.01).slopes[0] == Fraction(float(np.float32(0.01))) != Fraction(0.01)
    for slope in (-0.1, 1.0, 2.0, math.nan):
        with pytest.raises(InputError, match="slope is"):
            leaky_relu(slope)
    with pytest.raises(InputError, match="no multipliers"):
        _ = group_sort(2).multiplier_factor


# --- learnt bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", list(LAYERS))
def test_the_bound_can_be_learnt(layer):
    """y = 3 x wants at least 3, a penalty wants little: the learnt bound rises from 1, and it is what is proved."""
    net = LipschitzMLP(1, (16,), 1, 1.0, layer, lipschitz_range=(0.1, 10.0), generator=generator())
    optimiser = torch.optim.Adam(net.parameters(), lr=0.03)
    x = torch.linspace(-1, 1, 32)[:, None]
    for _ in range(150):
        with net.materialised():
            loss = (net(x) - 3 * x).square().mean() + 1e-3 * net.log_lipschitz()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    assert 2.0 < net.lipschitz < 10.0
    assert LipschitzPolicy(net, action_low=[-5], action_high=[5]).lipschitz() <= net.lipschitz


def test_learnt_bounds_stay_in_their_range():
    net = LipschitzMLP(1, (4,), 1, 1.0, lipschitz_range=(0.5, 2.0), generator=generator())
    assert net.lipschitz == pytest.approx(1.0)
    for raw, bound in ((9.0, 2.0), (-9.0, 0.5)):
        with torch.no_grad():
            net.raw_lipschitz.fill_(raw)
        assert 0.5 < net.lipschitz < 2.0 and net.lipschitz == pytest.approx(bound, rel=1e-3)
    with pytest.raises(InputError, match="lipschitz_range is"):
        LipschitzMLP(1, (4,), 1, 3.0, lipschitz_range=(0.5, 2.0))
    assert isinstance(LipschitzPolicy(net, action_low=[-1], action_high=[1]).graph(), Graph)
