"""Claim and evidence for the Lipschitz bound of an exported network, without a search: known multipliers, norms, absolute values.

One matrix for the whole network multiplies the weights of all layers, and its rounding errors grow with depth. Activations that
keep norms by themselves are therefore proved one layer after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, up
from lipctrl.certificates.checker.network import Network, Sum, read_network
from lipctrl.certificates.checker.products import absolute_product, norm_product
from lipctrl.certificates.checker.slopes import enclose
from lipctrl.certificates.checker.verifiers.lipschitz_bound import NORMS, effective_scales
from lipctrl.certificates.checker.windows import leaving_scale, window
from lipctrl.core.errors import InputError

ELSEWHERE = 1 + 2.0**-40  #: factor of bounds that the checker computes itself: on another machine its sums may round otherwise

PER_LAYER = 1 + 5e-7  #: factor of the bound of a layer with multipliers: room for what rounding to float32 does to its C

Proof = tuple[dict[str, Any], dict[str, Any]]


def lipschitz_proof(
    graph: Graph, norm: str, lipschitz: float, known: Sequence[Array] | None, alone: Sequence[Array] | None = None
) -> Proof:
    """Claim and evidence of a ``lipschitz-bound`` certificate; nothing is proved here, the checker does that.

    ``known`` are multipliers that prove ``lipschitz`` in l2 for the network between its scales, or ``None``; ``alone`` those that
    prove each activation of a chain to keep norms by itself. Raises InputError for a norm that is not ``"l2"`` or ``"linf"``.
    """
    if norm not in NORMS:
        raise InputError(f"norm is {norm!r}, expected one of {', '.join(NORMS)}")
    network = read_network(graph)
    ones = (Fraction(1),)
    scales = effective_scales(network, ones * network.inputs, ones * network.outputs)
    if alone is not None:
        bound, evidence = layer_by_layer(network, *scales, alone, norm)
    else:
        bound, evidence = (_euclidean if norm == "l2" else _maximum)(network, *scales, lipschitz, known)
    return {"property": "lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "bound": bound.hex()}, evidence


def _euclidean(network: Network, scale_in: Array, scale_out: Array, lipschitz: float, known: Sequence[Array] | None) -> tuple[float, Any]:
    if known is None:
        return norm_product(network, scale_in, scale_out) * ELSEWHERE, {"method": "norm-product"}
    greatest = float(scale_out.max())
    bound = Fraction(lipschitz) * Fraction(greatest) / Fraction(float(scale_in.min()))
    return float(enclose([bound], [bound]).high[0]), {"method": "multipliers", "multipliers": _filed(known, greatest)}


def layer_by_layer(
    network: Network, scale_in: Array, scale_out: Array, alone: Sequence[Array], norm: str = "l2"
) -> tuple[float, dict[str, Any]]:
    """Bound and evidence by windows for an affine map, x + C relu(-V x), an affine map, and so on, whatever the depth.

    For linf what the l2 bound implies: inputs within 1 have Euclidean norm sqrt(n) at most. The absolute product where that is less.
    ``alone`` has for each of the maps x + C relu(-V x) the multipliers m (groups,) with |phi(x) - phi(y)|^2 - |x - y|^2 =
    sum of m dr (dr - dq), where q = -V x and r = relu(q).
    """
    first, entries, entering = 0, [], scale_in
    product = 1.0 if norm == "l2" else math.nextafter(math.sqrt(network.inputs), math.inf)
    ends = [index for index, signal in enumerate(network.signals) if isinstance(signal, Sum)]
    for last, values in zip([*ends, network.output], [*alone, None], strict=True):
        part, end = window(network, first, last), network.signals[last]
        evidence: dict[str, Any] = {"method": "norm-product"}
        if isinstance(end, Sum) and values is not None:
            before = window(network, first, end.first)
            bound = norm_product(before, entering, np.ones(before.outputs)) * PER_LAYER
            filed = [[float(value).hex() for value in values * PER_LAYER]]
            evidence = {"method": "multipliers", "multipliers": filed} if bound else evidence
        else:
            bound = norm_product(part, entering, leaving_scale(part, scale_out)) * ELSEWHERE
        product = math.nextafter(product * bound, math.inf) if bound else 0.0
        entries.append({"last": last, "scale": None, "bound": bound.hex(), "evidence": evidence})
        first, entering = last, np.ones(part.outputs)
    absolute = math.inf if norm == "l2" else float(absolute_product(network, scale_in, scale_out).max()) * ELSEWHERE
    return (absolute, {"method": "absolute-product"}) if absolute <= product else (product, {"method": "windows", "windows": entries})


def _maximum(network: Network, scale_in: Array, scale_out: Array, lipschitz: float, known: Sequence[Array] | None) -> tuple[float, Any]:
    """The product of absolute values, or what the l2 bound implies: inputs within 1 have Euclidean norm sqrt(n) at most."""
    product = float(absolute_product(network, scale_in, scale_out).max()) * ELSEWHERE
    greatest = float(scale_out.max())
    shares = up(up(up(lipschitz * greatest) / scale_in) ** 2)
    bound = math.nextafter(math.sqrt(math.nextafter(math.fsum(shares.tolist()), math.inf)), math.inf)
    if known is None or product <= bound:
        return product, {"method": "absolute-product"}
    row = {"multipliers": _filed(known, greatest), "shares": [float(v).hex() for v in shares]}
    return bound, {"method": "multipliers", "rows": [row] * network.outputs}


def _filed(known: Sequence[Array], greatest: float) -> list[list[str]]:
    return [[float(value).hex() for value in np.asarray(values) * greatest**2] for values in known]
