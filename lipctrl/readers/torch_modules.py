"""Plain ``torch.nn`` modules, layer by layer, by type: the module's own code never runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from lipctrl.core.errors import InputError
from lipctrl.readers.building import Builder
from lipctrl.readers.network import Network

_THRESHOLD = "Softplus is read as log(1 + exp(x)); PyTorch drops a term of at most exp(-threshold) / beta beyond its threshold"
_BATCH_NORM = "batch normalisation is read as a diagonal affine map with the factors that PyTorch multiplies by"

_PLAIN: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}
_SKIPPED = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.AlphaDropout)  # on vectors, in evaluation mode


def read_torch(module: nn.Module) -> Network:
    """The network that a module of plain layers computes on one vector, in its own dtype (float32 or float64).

    Read are ``Sequential``, ``Linear``, ``ReLU``, ``ReLU6``, ``LeakyReLU``, ``PReLU``, ``Tanh``, ``Sigmoid``, ``Softplus``,
    ``GELU`` (exact), ``SiLU``, ``Hardtanh``, ``Identity``, ``Flatten`` and, in evaluation mode, ``BatchNorm1d`` and dropout.
    Raises InputError, naming the module, for any other type, for subclasses, hooks and parametrisations (their code could
    compute anything), and for layers in training mode.
    """
    layers = list(_layers(module, "module"))
    size = next((size for _, layer in layers if (size := _inputs(layer)) is not None), None)
    if size is None:
        raise InputError("the module has no Linear or BatchNorm1d layer, so the size of its input is unknown")
    dtypes = {tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.dtype != torch.int64}
    if dtypes not in ({torch.float32}, {torch.float64}):
        raise InputError(f"the module holds tensors of {sorted(map(str, dtypes))}, expected one of float32 and float64")
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise InputError("the module lies on the meta device, which holds no numbers; load its weights first")
    (dtype,) = dtypes
    builder, notes = Builder(size), dict.fromkeys(["numbers are in the units of the module's input and output"])
    x = builder.observation
    for name, layer in layers:
        try:
            x = _write(builder, x, layer, np.float32 if dtype == torch.float32 else np.float64, notes)
        except InputError as error:
            raise InputError(f"{name} ({type(layer).__name__}): {error}") from error
    return Network(builder.finish(x), f"torch module {type(module).__name__}", "unstated", tuple(notes))


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers in order, by name, nested ones unfolded. Raises InputError for what is not a plain layer."""
    changed = [kind for kind in ("_forward_hooks", "_forward_pre_hooks") if getattr(module, kind)]
    if changed or "forward" in vars(module):
        raise InputError(f"{name} ({type(module).__name__}) has hooks or a replaced forward, whose code may compute anything; remove them")
    if type(module) is nn.Sequential:
        for child_name, child in module.named_children():
            yield from _layers(child, f"{name}.{child_name}")
    elif type(module) in _PLAIN or type(module) in _WRITERS or type(module) in _SKIPPED:
        yield name, module
    else:
        known = ", ".join(sorted(kind.__name__ for kind in (nn.Sequential, *_PLAIN, *_WRITERS, *_SKIPPED)))
        raise InputError(f"{name} is a {type(module).__module__}.{type(module).__qualname__}, which is not read; read are {known}")


def _inputs(layer: nn.Module) -> int | None:
    if type(layer) is nn.Linear:
        return layer.in_features
    return layer.num_features if type(layer) is nn.BatchNorm1d else None


def _write(builder: Builder, x: int, layer: nn.Module, dtype: type[Any], notes: dict[str, None]) -> int:
    if type(layer) in _PLAIN:
        return builder.apply(_PLAIN[type(layer)], x)
    if type(layer) in _SKIPPED:
        if layer.training and isinstance(layer, nn.Dropout | nn.Dropout1d | nn.AlphaDropout):
            raise InputError("dropout is active in training mode; call eval() first")
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) not in ((1, -1), (1, 1), (-1, -1)):
            raise InputError(f"flattens dimensions {layer.start_dim} to {layer.end_dim}, expected 1 to -1")
        return x
    return _WRITERS[type(layer)](builder, x, layer, dtype, notes)


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def _linear(builder: Builder, x: int, layer: Any, dtype: type[Any], notes: dict[str, None]) -> int:
    return builder.affine(x, _array(layer.weight), None if layer.bias is None else _array(layer.bias))


def _leaky_relu(builder: Builder, x: int, layer: Any, dtype: type[Any], notes: dict[str, None]) -> int:
    return builder.leaky_relu(x, np.array([layer.negative_slope], dtype))  # the slope that runs is the rounded one


def _prelu(builder: Builder, x: int, layer: Any, dtype: type[Any], notes: dict[str, None]) -> int:
    return builder.leaky_relu(x, _array(layer.weight))


def _softplus(builder: Builder, x: int, layer: Any, dtype: type[Any], notes: dict[str, None]) -> int:
    notes[_THRESHOLD] = None
    return builder.softplus(x, Fraction(float(dtype(layer.beta))))


def _gelu(builder: Builder, x: int, layer: Any, dtype: type[Any], notes: dict[str, None]) -> int:
    if layer.approximate != "none":
        raise InputError(f"has approximate={layer.approximate!r}, but only the exact GELU, approximate='none', is read")
    return builder.apply("gelu", x)


def _hardtanh(builder: Builder, x: int, layer: Any, dtype: type[Any], notes: dict[str, None]) -> int:
    return builder.clip(x, dtype(layer.min_val), dtype(layer.max_val))


def _batch_norm(builder: Builder, x: int, layer: Any, dtype: type[Any], notes: dict[str, None]) -> int:
    if layer.training or layer.running_mean is None:
        raise InputError("normalises by the statistics of the batch (training mode, or none are kept); call eval() first")
    if layer.num_features != builder.size(x):
        raise InputError(f"has {layer.num_features} features on a vector of {builder.size(x)} components")
    notes[_BATCH_NORM] = None
    mean, variance = _array(layer.running_mean), _array(layer.running_var)
    weight = np.ones_like(mean) if layer.weight is None else _array(layer.weight)
    bias = np.zeros_like(mean) if layer.bias is None else _array(layer.bias)
    return builder.batch_norm(x, mean, variance, weight, bias, layer.eps)


_WRITERS: dict[type[nn.Module], Callable[[Builder, int, Any, type[Any], dict[str, None]], int]] = {
    nn.Linear: _linear,
    nn.LeakyReLU: _leaky_relu,
    nn.PReLU: _prelu,
    nn.Softplus: _softplus,
    nn.GELU: _gelu,
    nn.Hardtanh: _hardtanh,
    nn.ReLU6: _hardtanh,
    nn.BatchNorm1d: _batch_norm,
}
