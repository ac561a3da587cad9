"""Torch modules: what is read computes what the module computes, in the module's own numbers."""

import numpy as np
import pytest
import torch
from torch import nn

from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.readers import read_torch

GENERATOR = torch.Generator().manual_seed(3)

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.3),
    nn.PReLU(),
    nn.PReLU(8, init=0.4),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.Softplus(beta=2.5),
    nn.GELU(),
    nn.SiLU(),
    nn.Hardtanh(-0.3, 0.7),
    nn.Sequential(nn.Identity(), nn.Flatten(), nn.Dropout(0.5)),
    nn.BatchNorm1d(8, eps=0.1),
    nn.BatchNorm1d(8, affine=False),
]


def randomised(module):
    """Every parameter and statistic drawn anew; variances are positive."""
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.dtype.is_floating_point:
                tensor.copy_(torch.randn(tensor.shape, generator=GENERATOR))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.1)
    return module.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_modules_are_read_as_they_are(activation, dtype):
    module = randomised(nn.Sequential(nn.Linear(3, 8), nn.Sequential(activation, nn.Linear(8, 4, bias=False)), nn.Tanh()).to(dtype))
    network = read_torch(module)
    x = 3 * torch.randn(50, 3, generator=GENERATOR, dtype=torch.float32).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-8  # PyTorch drops a term of softplus beyond its threshold
    got = compile_numpy(network.graph)(observation=x.numpy())["action"]
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=tolerance, atol=tolerance)
    assert {tensor.dtype for tensor in network.graph.tensors.values()} == {np.dtype(str(dtype).removeprefix("torch."))}
    assert network.units == "unstated"


def test_weights_are_the_bytes_of_the_module_and_a_bound_is_proved():
    module = randomised(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2)))
    graph = read_torch(module).graph
    kept = sorted(tensor.tobytes() for tensor in graph.tensors.values())
    assert kept == sorted(tensor.detach().numpy().tobytes() for layer in (module[1], module[3]) for tensor in (layer.weight, layer.bias))
    found = certify_lipschitz(graph)
    assert found.lower.value <= found.upper.value


def test_the_factor_of_batch_normalisation_is_the_one_that_torch_multiplies_by():
    module = randomised(nn.BatchNorm1d(200))
    graph = read_torch(module).graph
    factors = np.array([float(v) for v in graph.nodes[1].attributes["values"]], np.float32)
    large = torch.full((1, 200), 2.0**60)  # the offset is lost in rounding
    assert (module(large).detach().numpy()[0] == factors * np.float32(2.0**60)).all()


def test_slopes_are_those_that_run():
    def slope(module):
        (node,) = [node for node in read_torch(module).graph.nodes if node.op == "leaky_relu"]
        return float(node.attributes["slope"])

    module = nn.Sequential(nn.Linear(1, 1), nn.LeakyReLU())
    assert slope(module) == float(np.float32(0.01))
    assert slope(module.double()) == 0.01


def test_slopes_of_channels_cost_nothing_in_the_bound():
    module = nn.Sequential(nn.Linear(2, 2), nn.PReLU(2), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([0.1, 0.2]))
        for layer in (module[0], module[2]):
            layer.weight.copy_(torch.eye(2))
    assert 1 <= certify_lipschitz(read_torch(module).graph, witness=False).upper.value <= 1 + 1e-6


class Mine(nn.Module):
    def forward(self, x):
        raise RuntimeError("the module's code ran")


class Linear(nn.Linear):
    """A subclass, whose forward could be anything."""


def hooked():
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


def replaced():
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].forward = lambda x: x
    return module


REFUSED = {
    "test_readers_torch.Mine": lambda: nn.Sequential(nn.Linear(2, 2), Mine()),
    "test_readers_torch.Linear": lambda: Linear(2, 2),
    "Softmax": lambda: nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)),
    "LayerNorm": lambda: nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
    "ParametrizedLinear": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
    "hooks": hooked,
    "replaced forward": replaced,
    "dropout is active": lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
    r"module\.1 \(BatchNorm1d\).*call eval": lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    "statistics of the batch": lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
    "only the exact GELU": lambda: nn.Sequential(nn.Linear(2, 2), nn.GELU("tanh")),
    "size of its input is unknown": lambda: nn.Sequential(nn.ReLU()),
    "one of float32 and float64": lambda: nn.Linear(2, 2).half(),
    "expected 1 to -1": lambda: nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)),
    r"module\.1 \(Linear\).*does not fit": lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2)),
    "meta device": lambda: nn.Linear(2, 2, device="meta"),
    "beta": lambda: nn.Sequential(nn.Linear(2, 2), nn.Softplus(beta=-1)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_unknown_modules_and_training_mode_are_refused(message):
    with pytest.raises(InputError, match=message):
        read_torch(REFUSED[message]())


def test_weights_that_are_not_finite_are_refused():
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        read_torch(module)
