"""Lipschitz policies: a Lipschitz network with its observation scales, action scales and action box, in physical units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.graph import Graph, Node, graph_from_json, graph_to_json
from lipctrl.certificates.checker.slopes import enclose
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats, rationals
from lipctrl.nn.activations import Activation
from lipctrl.nn.linear_plus import LinearPlusMLP
from lipctrl.nn.mlp import LAYERS, LipschitzMLP
from lipctrl.nn.network import LipschitzNetwork
from lipctrl.nn.proof import lipschitz_proof
from lipctrl.nn.residual import ResidualMLP

if TYPE_CHECKING:
    from lipctrl.core.policy import Policy

Vector = tuple[Fraction, ...]

WITH_SKIPS = ("sll", "cpl", "linear-plus")  #: names for ``lipschitz_policy`` of networks that are no chains


class LipschitzPolicy(nn.Module):
    """u = clip(c + S (N(z) - N(z*))) with z = (observation - m) / s, all scales exact rationals and nodes of their own.

    ``observation_mean`` m, ``observation_scale`` s > 0, ``action_centre`` c, ``action_scale`` S > 0, ``action_low`` and
    ``action_high`` are in physical units, one number per coordinate or one for all; a float means its exact value, texts
    such as ``"0.15"`` the decimal. N is a LipschitzNetwork. With ``equilibrium_observation`` the network's value there is
    subtracted (z* is that observation, scaled), so that the policy answers it with c exactly; without, N(z*) is left out.
    Raises InputError where sizes or signs do not fit.
    """

    def __init__(
        self,
        network: LipschitzNetwork,
        *,
        observation_mean: Any = 0,
        observation_scale: Any = 1,
        action_centre: Any = 0,
        action_scale: Any = 1,
        action_low: Any,
        action_high: Any,
        equilibrium_observation: Any = None,
    ) -> None:
        super().__init__()
        self.network = network
        n_in, n_out = network.sizes[0], network.sizes[-1]
        self.observation_mean = rationals(observation_mean, n_in, "observation_mean")
        self.observation_scale = _positive(observation_scale, n_in, "observation_scale")
        self.action_centre = rationals(action_centre, n_out, "action_centre")
        self.action_scale = _positive(action_scale, n_out, "action_scale")
        self.action_low = rationals(action_low, n_out, "action_low")
        self.action_high = rationals(action_high, n_out, "action_high")
        if not all(low < high for low, high in zip(self.action_low, self.action_high, strict=True)):
            raise InputError(f"action_low is {action_low!r}, expected less than action_high, {action_high!r}")
        rest = equilibrium_observation
        self.equilibrium_observation = None if rest is None else rationals(rest, n_in, "equilibrium_observation")
        for name in ("observation_mean", "observation_scale", "action_centre", "action_scale", "action_low", "action_high"):
            self.register_buffer(f"_{name}", torch.from_numpy(floats(getattr(self, name))), persistent=False)
        if self.equilibrium_observation is not None:
            self.register_buffer("_equilibrium", torch.from_numpy(floats(self.equilibrium_observation)), persistent=False)
        self.to(next(network.parameters()).device)

    def forward(self, observation: Tensor) -> Tensor:
        """The action before the final clip, (..., n_out), in physical units; differentiable."""
        action: Tensor = self.network(self._normalised(observation))
        if self.equilibrium_observation is not None:
            action = action - self.network(self._normalised(self._constant("_equilibrium", observation)))
        if any(scale != 1 for scale in self.action_scale):
            action = action * self._constant("_action_scale", action)
        return action + self._constant("_action_centre", action) if any(self.action_centre) else action

    def clipped(self, observation: Tensor) -> Tensor:
        """The action, (..., n_out), inside the action box."""
        action: Tensor = self(observation)
        return torch.minimum(torch.maximum(action, self._constant("_action_low", action)), self._constant("_action_high", action))

    def _normalised(self, observation: Tensor) -> Tensor:
        if any(self.observation_mean):
            observation = observation - self._constant("_observation_mean", observation)
        if any(scale != 1 for scale in self.observation_scale):
            observation = observation / self._constant("_observation_scale", observation)
        return observation

    def _constant(self, name: str, like: Tensor) -> Tensor:
        return self.get_buffer(name).to(like.dtype)

    @contextmanager
    def materialised(self) -> Iterator[LipschitzPolicy]:
        """Materialise the network once for the ``with`` block, see :meth:`LipschitzNetwork.materialised`."""
        with self.network.materialised():
            yield self

    def graph(self, dtype: Any = np.float32) -> Graph:
        """The policy as a Graph, ``observation`` to ``action``: weights rounded once to ``dtype``, scales exact.

        The offset of ``recentre`` is what these weights give at the equilibrium in ``dtype`` arithmetic, from the observation
        rounded to ``dtype``. Raises InputError where a weight is not finite.
        """
        builder = _Builder(self._rounded(np.dtype(dtype)))
        z = builder.normalised(builder.input("observation", len(self.observation_mean)), self)
        if self.equilibrium_observation is None:
            action = self.network.add_nodes(builder.add, z)
        else:
            action = self._recentred(builder, z, np.dtype(dtype))
        if any(scale != 1 for scale in self.action_scale):
            action = builder.binary("mul", action, self.action_scale)
        if any(self.action_centre):
            action = builder.binary("add", action, self.action_centre)
        action = builder.add(Node("clip", (action,), {"low": self.action_low, "high": self.action_high}))
        return Graph(tuple(builder.nodes), {"action": action}, builder.tensors)

    def _recentred(self, builder: _Builder, z: int, dtype: np.dtype[Any]) -> int:
        rest = self.equilibrium_observation or ()
        inner = _Builder(builder.tensors)
        output = self.network.add_nodes(inner.add, inner.input("z", len(rest)))
        graph = Graph(tuple(inner.nodes), {"output": output}, dict(builder.tensors), nesting=1)
        whole = _Builder(builder.tensors)
        output = self.network.add_nodes(whole.add, whole.normalised(whole.input("z", len(rest)), self))
        deployed = compile_numpy(Graph(tuple(whole.nodes), {"output": output}, dict(builder.tensors)), dtype)
        builder.tensors["offset"] = deployed(z=floats(rest))["output"]
        point = tuple((x - m) / s for x, m, s in zip(rest, self.observation_mean, self.observation_scale, strict=True))
        return builder.add(Node("recentre", (z,), {"graph": graph, "point": point, "offset": "offset"}))

    @torch.no_grad()
    def _rounded(self, dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
        """The weights and biases as arrays of ``dtype``, rounded once from float64."""
        tensors = {}
        for name, tensor in self.network.tensors().items():
            values = tensor.cpu().numpy()
            if not np.isfinite(values).all() or np.abs(values).max() > np.finfo(dtype).max:
                raise InputError(f"{' of layer '.join(name.rsplit('_', 1))} is not finite in {dtype}: training has diverged")
            tensors[name] = values.astype(dtype)
        return tensors

    def export(
        self,
        observation: Sequence[tuple[str, str]] | None = None,
        action: Sequence[tuple[str, str]] | None = None,
        dt: Fraction | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Policy:
        """The deployable float32 policy: plain layers, nothing of the parametrisation is left.

        ``observation`` and ``action`` are (name, unit) pairs, one for each coordinate; left out, coordinates are numbered
        and have no unit. ``dt`` is the sampling time in seconds.
        """
        from lipctrl.core.policy import Policy

        names = {
            "observation": observation or [(f"observation {i}", "1") for i in range(len(self.observation_mean))],
            "action": action or [(f"action {i}", "1") for i in range(len(self.action_centre))],
        }
        return Policy(self.graph(), **names, dt=dt, provenance=provenance or {})

    def lipschitz(self, norm: str = "l2") -> float:
        """A proved upper bound on |u(x) - u(y)| / |x - y| over all observations, in physical units and rounded up.

        It is about the real-valued network with the weights exactly as :meth:`export` rounds them, read back from the
        exported data and verified by the checker in this process: no solver, but known multipliers or products of norms. For
        ``norm="linf"``, greatest absolute values, it is the product of absolute values of the weights or what the l2 bound
        implies. For that norm, and for policies whose scales differ between coordinates, ``lipctrl.certificates.lipschitz``
        finds smaller bounds. Raises InputError for other norms, LipctrlError where the proof fails.
        """
        exported = self.graph()
        graph = graph_from_json(graph_to_json(exported), exported.tensors)
        try:
            claim, evidence = self.lipschitz_proof(graph, norm)
            return prove_lipschitz(graph, claim, evidence)
        except (Rejected, OutOfRange) as error:
            raise LipctrlError(f"the Lipschitz bound of this policy could not be proved: {error}") from error

    def lipschitz_proof(self, graph: Graph, norm: str = "l2") -> tuple[dict[str, Any], dict[str, Any]]:
        """Claim and evidence of a ``lipschitz-bound`` certificate for ``graph``, this policy's exported graph.

        Nothing is proved here: the checker does that.
        """
        return lipschitz_proof(graph, norm, self.network.lipschitz, self.network.multipliers(), self.network.multipliers_alone())


class Scales(TypedDict, total=False):
    """The keyword arguments that :func:`lipschitz_policy` hands on to :class:`LipschitzPolicy`."""

    observation_mean: Any
    observation_scale: Any
    action_centre: Any
    action_scale: Any
    equilibrium_observation: Any


def lipschitz_policy(
    observation_size: int,
    action_low: Any,
    action_high: Any,
    lipschitz: float,
    *,
    hidden: Sequence[int] = (64, 64),
    layer: str = "sandwich",
    activation: str | Activation = "relu",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    **scales: Unpack[Scales],
) -> LipschitzPolicy:
    """A policy with |u(x) - u(y)| <= ``lipschitz`` |x - y| in raw units: observation in, physical action out, Euclidean norms.

    ``layer`` is a family of ``LAYERS`` (a LipschitzMLP), ``sll`` or ``cpl`` (a ResidualMLP), or ``linear-plus`` (a LinearPlusMLP).
    ``action_low`` and ``action_high`` are sequences, one number for each action. Without scales the network works on the
    raw observation. With them its own bound is ``lipschitz`` * min(observation_scale) / max(action_scale), rounded down.
    Raises InputError for what does not fit together.
    """
    n_out = len(rationals(action_low, None, "action_low"))
    if not 0 < lipschitz < math.inf:
        raise InputError(f"lipschitz is {lipschitz!r}, expected a positive number")
    scale_in = _positive(scales.get("observation_scale", 1), observation_size, "observation_scale")
    scale_out = _positive(scales.get("action_scale", 1), n_out, "action_scale")
    factor = min(scale_in) / max(scale_out)
    inner = Fraction(lipschitz) * factor * (1 if factor == 1 else 1 - Fraction(1, 2**48))  # room for the way back to raw units
    gain = float(enclose([inner], [inner]).low[0])
    network = _network(observation_size, hidden, n_out, gain, layer, activation, generator).to(device)
    return LipschitzPolicy(network, action_low=action_low, action_high=action_high, **scales)


def _network(
    n_in: int,
    hidden: Sequence[int],
    n_out: int,
    gain: float,
    layer: str,
    activation: str | Activation,
    generator: torch.Generator | None,
) -> LipschitzNetwork:
    if layer not in (*LAYERS, *WITH_SKIPS):
        raise InputError(f"layer is {layer!r}, expected one of {', '.join((*LAYERS, *WITH_SKIPS))}")
    if layer == "linear-plus":
        return LinearPlusMLP(n_in, hidden, n_out, gain, activation, generator=generator)
    if layer in WITH_SKIPS:
        return ResidualMLP(n_in, hidden, n_out, gain, layer, activation, generator=generator)
    return LipschitzMLP(n_in, hidden, n_out, gain, layer, activation, generator=generator)


def _positive(values: Any, length: int, what: str) -> Vector:
    result = rationals(values, length, what)
    if not all(value > 0 for value in result):
        raise InputError(f"{what} is {values!r}, expected positive numbers")
    return result


class _Builder:
    """Nodes of a graph under construction; methods return the index of the node they add."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.nodes: list[Node] = []
        self.tensors = tensors

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def input(self, name: str, size: int) -> int:
        return self.add(Node("input", (), {"name": name, "size": size}))

    def binary(self, op: str, operand: int, values: Vector) -> int:
        return self.add(Node(op, (operand, self.add(Node("constant", (), {"values": values})))))

    def normalised(self, operand: int, policy: LipschitzPolicy) -> int:
        if any(policy.observation_mean):
            operand = self.binary("sub", operand, policy.observation_mean)
        if any(scale != 1 for scale in policy.observation_scale):
            operand = self.binary("div", operand, policy.observation_scale)
        return operand
