"""Claim and evidence for the Lipschitz bound of an exported network, without a search: known multipliers, norms, absolute values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, up
from lipctrl.certificates.checker.network import Network, read_network
from lipctrl.certificates.checker.products import absolute_product, norm_product
from lipctrl.certificates.checker.slopes import enclose
from lipctrl.certificates.checker.verifiers.lipschitz_bound import NORMS, effective_scales
from lipctrl.core.errors import InputError

ELSEWHERE = 1 + 2.0**-40  #: factor of bounds that the checker computes itself: on another machine its sums may round otherwise

Proof = tuple[dict[str, Any], dict[str, Any]]


def lipschitz_proof(graph: Graph, norm: str, lipschitz: float, known: Sequence[Array] | None) -> Proof:
    """Claim and evidence of a ``lipschitz-bound`` certificate; nothing is proved here, the checker does that.

    ``known`` are multipliers that prove ``lipschitz`` in l2 for the network between its scales, or ``None``. Raises InputError
    for a norm that is not ``"l2"`` or ``"linf"``.
    """
    if norm not in NORMS:
        raise InputError(f"norm is {norm!r}, expected one of {', '.join(NORMS)}")
    network = read_network(graph)
    ones = (Fraction(1),)
    scales = effective_scales(network, ones * network.inputs, ones * network.outputs)
    make = _euclidean if norm == "l2" else _maximum
    bound, evidence = make(network, *scales, lipschitz, known)
    return {"property": "lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "bound": bound.hex()}, evidence


def _euclidean(network: Network, scale_in: Array, scale_out: Array, lipschitz: float, known: Sequence[Array] | None) -> tuple[float, Any]:
    if known is None:
        return norm_product(network, scale_in, scale_out) * ELSEWHERE, {"method": "norm-product"}
    greatest = float(scale_out.max())
    bound = Fraction(lipschitz) * Fraction(greatest) / Fraction(float(scale_in.min()))
    return float(enclose([bound], [bound]).high[0]), {"method": "multipliers", "multipliers": _filed(known, greatest)}


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
