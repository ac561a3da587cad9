"""Equilibrium layers: z = phi(D z + V x + b), with one z for every x whatever the parameters are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.certificates.checker.graph import IMPLICIT_ACTIVATIONS, Graph, Node
from lipctrl.core.errors import InputError
from lipctrl.core.fixed_point import implicit_layer
from lipctrl.core.recording import implicit
from lipctrl.core.symbols import Symbol
from lipctrl.nn.network import AddNode, ShapedNetwork, Tensors
from lipctrl.nn.starts import uniform


class EquilibriumLayer(ShapedNetwork):
    """x (..., input_size) -> z (..., units) with z = phi(D z + V x + b) and D = (1 - margin) I - A^T A + B - B^T.

    Then <u, u - D u> >= margin |u|^2, so z exists and is the only one, and |dz| <= |V dx| / margin (monotone operator equilibrium
    networks, Winston and Kolter, NeurIPS 2020). A, B, V and b are free. ``activation`` is relu, tanh, sigmoid or softplus. The
    solution is found by splitting and differentiated by the implicit function theorem, once. ``graph()`` is the layer as a Graph;
    inside other modules it is recorded by :func:`lipctrl.core.recording.record`. Raises InputError for what does not fit.
    """

    def __init__(
        self,
        input_size: int,
        units: int,
        activation: str = "relu",
        *,
        margin: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__((input_size, units))
        if activation not in IMPLICIT_ACTIVATIONS:
            raise InputError(f"activation is {activation!r}, expected one of {', '.join(IMPLICIT_ACTIVATIONS)}")
        if not 1e-6 <= margin <= 1:
            raise InputError(f"margin is {margin!r}, expected a number from 1e-6 to 1")
        self.activation, self.margin = activation, float(margin)
        self.raw_symmetric, self.raw_skew = (uniform((units, units), generator)[0] for _ in range(2))
        self.raw_entering = uniform((input_size, units), generator)[0]
        self.bias = nn.Parameter(2 * torch.rand(units, generator=generator) - 1)

    def tensors(self) -> Tensors:
        """``weight`` D, ``metric`` ones, ``entering`` V and ``bias`` b."""
        symmetric, skew = self.raw_symmetric.double(), self.raw_skew.double()
        identity = torch.eye(self.sizes[1], dtype=torch.float64, device=symmetric.device)
        weight = (1 - self.margin) * identity - symmetric.mT @ symmetric + skew - skew.mT
        metric = torch.ones(self.sizes[1], dtype=torch.float64, device=symmetric.device)
        return {"weight": weight, "metric": metric, "entering": self.raw_entering.double(), "bias": self.bias.double()}

    def apply_tensors(self, x: Tensor, tensors: Tensors) -> Tensor:
        """The solution, by splitting and Newton steps."""
        return implicit_layer(tensors["weight"], functional.linear(x, tensors["entering"], tensors["bias"]), self.activation)

    def forward(self, x: Any) -> Any:
        """z (..., units), in the dtype of ``x``; a recording symbol gives a symbol, with the weights in float64."""
        if not isinstance(x, Symbol):
            return super().forward(x)
        tensors = self.tensors()
        entering: Any = x
        entering = functional.linear(entering, tensors["entering"], tensors["bias"])
        return implicit(tensors["weight"], entering, self.activation)

    def add_nodes(self, add: AddNode, operand: int) -> int:
        """An affine node and an implicit one."""
        entering = add(Node("affine", (operand,), {"weight": "entering", "bias": "bias"}))
        return add(Node("implicit", (entering,), {"weight": "weight", "metric": "metric", "activation": self.activation}))

    @torch.no_grad()
    def graph(self, dtype: Any = np.float32) -> Graph:
        """The layer as a Graph, ``x`` to ``z``, its weights rounded once to ``dtype``."""
        nodes = [Node("input", (), {"name": "x", "size": self.sizes[0]})]

        def add(node: Node) -> int:
            nodes.append(node)
            return len(nodes) - 1

        output = self.add_nodes(add, 0)
        return Graph(tuple(nodes), {"z": output}, {name: t.cpu().numpy().astype(dtype) for name, t in self.tensors().items()})

    def extra_repr(self) -> str:
        """Sizes, activation and margin, for ``print``."""
        return f"{super().extra_repr()}, activation={self.activation!r}, margin={self.margin}"
