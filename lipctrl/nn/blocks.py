"""Gains between groups of inputs and groups of outputs of one policy: what each player of a game, or each axis, may amplify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from lipctrl.certificates.checker.graph import graph_from_json, graph_to_json, rational_to_text
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.products import norm_product
from lipctrl.certificates.checker.slopes import enclose
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales, prove_lipschitz
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.nn.policy import LipschitzPolicy
from lipctrl.nn.proof import layer_by_layer

Groups = Mapping[str, Sequence[int]]


def block_gains(policy: LipschitzPolicy, inputs: Groups, outputs: Groups) -> dict[tuple[str, str], float]:
    """For each (output group, input group): a proved bound on |change of these actions| / |change of these observations|.

    Groups name coordinates by index. With the policy's scales s and S and its network's constant L, one proof of
    |S^-1 du| <= L |s^-1 dx| bounds every block: L max(S in the output group) / min(s in the input group). So the gain wanted
    for a group of inputs is set by its ``observation_scale``: twice the scale, half the gain.

    About the real-valued policy with the weights as exported, verified by the checker. Raises InputError for groups that do not
    fit, LipctrlError where the proof fails.
    """
    _check("inputs", inputs, len(policy.observation_scale))
    _check("outputs", outputs, len(policy.action_scale))
    constant = Fraction(_weighted_constant(policy))
    gains = {}
    for out_name, out_group in outputs.items():
        for in_name, in_group in inputs.items():
            greatest = max(policy.action_scale[i] for i in out_group) / min(policy.observation_scale[i] for i in in_group)
            gains[out_name, in_name] = float(enclose([constant * greatest], [constant * greatest]).high[0])
    return gains


def _weighted_constant(policy: LipschitzPolicy) -> float:
    """A proved L with |S^-1 du| <= L |s^-1 dx|."""
    exported = policy.graph()
    graph = graph_from_json(graph_to_json(exported), exported.tensors)
    scale_in = tuple(1 / s for s in policy.observation_scale)
    scale_out = tuple(1 / s for s in policy.action_scale)
    claim: dict[str, Any] = {"property": "lipschitz", "norm": "l2"}
    claim |= {"input_scale": [*map(rational_to_text, scale_in)], "output_scale": [*map(rational_to_text, scale_out)]}
    known, alone, network = policy.network.multipliers(), policy.network.multipliers_alone(), read_network(graph)
    scales = effective_scales(network, scale_in, scale_out)
    try:
        if alone is not None:
            bound, evidence = layer_by_layer(network, *scales, alone)
        elif known is None:
            bound, evidence = norm_product(network, *scales), {"method": "norm-product"}
        else:
            bound = policy.network.lipschitz
            evidence = {"method": "multipliers", "multipliers": [[float(v).hex() for v in values] for values in known]}
        return prove_lipschitz(graph, {**claim, "bound": bound.hex()}, evidence)
    except Rejected as error:
        raise LipctrlError(f"the gains of this policy could not be proved: {error}") from error


def _check(what: str, groups: Groups, size: int) -> None:
    if not groups or not all(groups.values()):
        raise InputError(f"{what} has no group, or an empty one")
    for name, group in groups.items():
        if not all(0 <= i < size for i in group):
            raise InputError(f"{what}[{name!r}] is {list(group)!r}, expected indices 0..{size - 1}")
