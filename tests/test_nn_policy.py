"""Lipschitz policies: physical units, exact equilibrium, exported graph, proved constant."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.policy import Policy
from lipctrl.core.torch_evaluation import evaluate_torch
from lipctrl.nn import LipschitzMLP, LipschitzPolicy, lipschitz_policy

F = Fraction
PAIRS = [("sandwich", "relu"), ("sandwich", "tanh"), ("cayley", "maxmin")]
SCALES = {
    "observation_mean": ["0.1", 0, -2],
    "observation_scale": ["0.3", 1, "7/3"],
    "action_centre": ["0.5", "-1/7"],
    "action_scale": [2, "0.7"],
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy(pair=("sandwich", "relu"), lipschitz=4.0, hidden=(16, 16), seed=0, **scales) -> LipschitzPolicy:
    layer, activation = pair
    options = {"hidden": hidden, "layer": layer, "activation": activation, "generator": generator(seed)}
    return lipschitz_policy(3, [-2, -3], [2, "3.5"], lipschitz, **options, **scales)


def slopes(made: LipschitzPolicy, seed: int) -> np.ndarray:
    x = 3 * torch.randn(500, 3, generator=generator(seed), dtype=torch.float64)
    y = x + 0.05 * torch.randn(500, 3, generator=generator(seed + 1), dtype=torch.float64)
    with torch.no_grad():
        return ((made(x) - made(y)).norm(dim=1) / (x - y).norm(dim=1)).numpy()


# --- the constant -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("lipschitz", [1e-3, 0.37, 10.0, 1e3])
def test_the_proved_constant_is_the_one_asked_for(pair, lipschitz):
    raw = policy(pair, lipschitz)
    assert lipschitz * (1 - 2e-4) < raw.lipschitz() <= lipschitz
    assert slopes(raw, 3).max() <= raw.lipschitz()


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from(PAIRS))
def test_scales_are_counted(seed, pair):
    """With scales the raw constant is still below the one asked for, and above every sampled slope."""
    source = np.random.default_rng(seed)
    scales = {
        "observation_scale": [F(int(v), 7) for v in source.integers(1, 60, 3)],
        "action_scale": [F(int(v), 9) for v in source.integers(1, 60, 2)],
        "observation_mean": source.standard_normal(3).tolist(),
    }
    made = policy(pair, 4.0, seed=seed, **scales)
    bound = made.lipschitz()
    assert slopes(made, seed).max() <= bound <= 4.0
    tighter = certify_lipschitz(made, witness=False).upper.value
    assert slopes(made, seed).max() <= tighter <= bound * (1 + 1e-12)


def test_weighted_norms_of_a_network_with_scales():
    """|S^-1 du| <= L_g |s^-1 dx| is what the network itself keeps."""
    net = LipschitzMLP(3, (16, 16), 2, 1.5, generator=generator())
    made = LipschitzPolicy(net, action_low=[-9, -9], action_high=[9, 9], **SCALES)
    inverse = {"input_scale": [F(10, 3), 1, F(3, 7)], "output_scale": [F(1, 2), F(10, 7)]}
    bound = certify_lipschitz(made.graph(), multipliers=net.multipliers(), witness=False, **inverse).upper.value
    assert bound <= 1.5 * (1 + 1e-9)
    assert made.lipschitz() <= 1.5 * 2 / 0.3 * (1 + 1e-12)


def test_changed_parameters_are_seen():
    made = policy()
    before = made.graph().digest()
    for parameter in made.parameters():
        parameter.data.mul_(1.5)
    assert made.graph().digest() != before
    assert made.lipschitz() == 4.0


def test_other_norms_and_broken_arithmetic_are_refused():
    made = policy()
    with pytest.raises(InputError, match="norm is 'l1'"):
        made.lipschitz("l1")
    if torch.set_flush_denormal(True):
        try:
            with pytest.raises(LipctrlError, match="could not be proved"):
                made.lipschitz()
        finally:
            torch.set_flush_denormal(False)
    with torch.no_grad():
        made.network.output_bias.fill_(float("nan"))
    with pytest.raises(InputError, match="bias of layer 2 is not finite"):
        made.lipschitz()


def test_a_weight_changed_in_the_exported_graph_is_another_network():
    from lipctrl.certificates.checker.graph import Graph
    from lipctrl.certificates.checker.verdict import Rejected
    from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz

    made = policy()
    graph = made.graph()
    claim, evidence = made.lipschitz_proof(graph)
    tensors = {**graph.tensors, "weight_1": graph.tensors["weight_1"] * np.float32(1.01)}
    with pytest.raises(Rejected, match="multipliers do not prove"):
        prove_lipschitz(Graph(graph.nodes, graph.outputs, tensors), claim, evidence)


# --- the graph ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scales", [{}, SCALES, {**SCALES, "equilibrium_observation": [1, 0, F(1, 3)]}])
def test_exported_outputs_are_those_of_the_module(pair, scales):
    made = policy(pair, **scales)
    x = 2 * torch.randn(64, 3, generator=generator(7))
    with torch.no_grad():
        own = made.clipped(x)
    graph = made.graph()
    assert torch.allclose(evaluate_torch(graph, {"observation": x}, torch.float32)["action"], own, atol=1e-5)
    predicted, _ = made.export().predict(x.numpy())
    assert predicted.dtype == np.float32 and np.allclose(predicted, own.numpy(), atol=1e-5)
    assert {t.dtype for t in graph.tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("pair", PAIRS)
def test_plain_layers_with_the_same_normaliser_and_clip_agree_bit_for_bit(pair):
    made = policy(pair, **SCALES)
    x = 2 * torch.randn(64, 3, generator=generator(7))
    plain = made.network.plain()
    constants = [
        torch.tensor([float(F(v)) for v in SCALES[key]])
        for key in ("observation_mean", "observation_scale", "action_scale", "action_centre")
    ]
    mean, scale, gain, centre = constants
    with torch.no_grad():
        expected = (plain((x - mean) / scale) * gain + centre).clamp(torch.tensor([-2.0, -3.0]), torch.tensor([2.0, 3.5]))
        assert torch.equal(evaluate_torch(made.graph(), {"observation": x}, torch.float32)["action"], expected)
        assert torch.equal(made.clipped(x), expected)


def test_scales_stay_exact_nodes_and_are_left_out_when_trivial():
    graph = policy(**SCALES).graph()
    assert [node.op for node in graph.nodes] == [
        *("input", "constant", "sub", "constant", "div", "affine", "relu", "affine", "relu", "affine"),
        *("constant", "mul", "constant", "add", "clip"),
    ]
    assert graph.nodes[3].attributes["values"] == (F(3, 10), F(1), F(7, 3))
    assert graph.nodes[-1].attributes["high"] == (F(2), F(7, 2))
    assert [node.op for node in policy().graph().nodes] == ["input", "affine", "relu", "affine", "relu", "affine", "clip"]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_equilibrium_is_answered_exactly(pair):
    """Over the rationals by rule, in float32 because the offset is what the deployed arithmetic gives there."""
    rest = (F(1), F(0), F(1, 3))
    made = policy(pair, **SCALES, equilibrium_observation=rest)
    graph = made.graph()
    assert evaluate_exact(graph, {"observation": rest})["action"] == (F(1, 2), F(-1, 7))
    action, _ = made.export().predict(np.array([float(v) for v in rest]))
    assert np.array_equal(action, np.array([0.5, -1 / 7], dtype=np.float32))
    centre = [v for node in graph.nodes if node.op == "recentre" for v in node.attributes["point"]]
    assert centre == [(1 - F(1, 10)) / F(3, 10), F(0), (F(1, 3) + 2) / F(7, 3)]
    with torch.no_grad():
        assert torch.allclose(made(torch.tensor([[1, 0, 1 / 3]])), torch.tensor([[0.5, -1 / 7]]), atol=1e-6)


def test_float64_graphs_round_nothing():
    made = policy()
    weight = made.network.materialise()[0][0].detach().numpy()
    assert np.array_equal(made.graph(np.float64).tensors["weight_0"], weight)
    assert np.array_equal(made.graph().tensors["weight_0"], weight.astype(np.float32))


def test_export_and_read_back(tmp_path):
    made = policy(**SCALES)
    exported = made.export([("x", "m"), ("y", "m"), ("z", "rad")], [("force", "N"), ("torque", "N m")], F(1, 20), {"seed": 0})
    exported.save(tmp_path / "policy")
    again = Policy.load(tmp_path / "policy")
    assert again.digest == made.graph().digest() and again.dt == F(1, 20)
    assert made.export().observation[1].name == "observation 1"


def test_one_materialisation_for_forward_with_equilibrium(monkeypatch):
    made = policy(equilibrium_observation=[0, 0, 0])
    calls = []
    original = made.network.stack.materialise
    monkeypatch.setattr(made.network.stack, "materialise", lambda gain: calls.append(gain) or original(gain))
    with made.materialised():
        made(torch.zeros(4, 3))
    assert len(calls) == 1


# --- arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation_scale": [1, 2]}, "observation_scale has 2 numbers, expected 3"),
        ({"observation_scale": [1, 2, 0]}, "observation_scale is .* expected positive"),
        ({"action_scale": -1}, "action_scale is -1, expected positive"),
        ({"equilibrium_observation": [1, 2]}, "equilibrium_observation has 2 numbers"),
        ({"observation_mean": float("nan")}, "observation_mean is nan, expected a finite number"),
        ({"lipschitz": -1.0}, "lipschitz is -1.0, expected a positive number"),
        ({"lipschitz": float("inf")}, "lipschitz is inf, expected a positive number"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        policy(**changes)


def test_an_empty_action_box_is_refused():
    with pytest.raises(InputError, match="expected less than action_high"):
        lipschitz_policy(2, [1], [1], 1.0)
