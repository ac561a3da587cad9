"""Bounds of networks that are too large for one matrix: the product of bounds of windows between signals that nothing goes around."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Affine, Concatenation, Input, Network, Signal, Sort, Sum
from lipctrl.certificates.checker.products import norm_product
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import MAX_WINDOWS, prove_network
from lipctrl.certificates.checker.windows import leaving_scale, window
from lipctrl.certificates.lipschitz.newton import least_square, mixtures, solve, start
from lipctrl.certificates.lipschitz.system import build_system

WINDOW_ORDER = 600  #: variables of a window that is solved by Newton steps


def cuts(network: Network) -> list[int]:
    """Signals from the input to the output at which the network may be cut: every later signal rests on them alone.

    Of an affine map and the coordinate-wise map behind it only the latter counts; sorted groups are cut before they are sorted.
    """
    found, nearest = [network.output], network.output
    for index in range(network.output, 0, -1):
        nearest = min(nearest, *_operands(network.signals[index]))
        if nearest == index - 1 and _is_cut(network, index - 1):
            found.append(index - 1)
    return found[::-1]


def _is_cut(network: Network, index: int) -> bool:
    here, behind = network.signals[index], network.signals[index + 1]
    return not isinstance(here, Sort) and not (isinstance(here, Affine) and isinstance(behind, Activation))


def _operands(signal: Signal) -> tuple[int, ...]:
    match signal:
        case Input():
            return ()
        case Sum():
            return signal.first, signal.second
        case Concatenation():
            return signal.operands
        case _:
            return (signal.operand,)


def bound_by_windows(
    network: Network,
    scale_in: Array,
    scale_out: Array,
    tolerance: float,
    order: int = WINDOW_ORDER,
    report: Callable[[int, int], None] | None = None,
) -> tuple[float, dict[str, Any]] | None:
    """A bound and its evidence: the cuts whose estimated bounds have the least product, windows of at most ``order`` variables.

    ``report(done, all)`` is called for each window. ``None`` where no window can be cut, or one could not be bounded.
    """
    places = cuts(network)
    path = _shortest(network, places, scale_in, scale_out, order)
    if path is None or not 3 <= len(path) <= MAX_WINDOWS + 1:
        return None
    product, entries = 1.0, []
    for first, last in pairwise(path):
        found = _solved(*_part(network, first, last, scale_in, scale_out), tolerance, order)
        if found is None:
            return None
        bound, evidence = found
        product = math.nextafter(product * bound, math.inf) if bound else 0.0
        entries.append({"last": last, "scale": None, "bound": bound.hex(), "evidence": evidence})
        if report is not None:
            report(len(entries), len(path) - 1)
    return product, {"method": "windows", "windows": entries}


def _part(network: Network, first: int, last: int, scale_in: Array, scale_out: Array) -> tuple[Network, Array, Array]:
    """A window with the scales of the norms at its ends."""
    part = window(network, first, last)
    entering = scale_in if first == 0 else np.ones(part.inputs)
    return part, entering, leaving_scale(part, scale_out if last == network.output else np.ones(part.outputs))


def _shortest(network: Network, places: list[int], scale_in: Array, scale_out: Array, order: int) -> list[int] | None:
    """Dynamic programming over the cuts: the path whose windows' estimated bounds have the least product."""
    cost, before = {places[0]: 0.0}, {}
    for j in range(1, len(places)):
        best = math.inf
        for i in range(j - 1, -1, -1):
            part, entering, leaving = _part(network, places[i], places[j], scale_in, scale_out)
            if i < j - 1 and sum(part.variables) > order:
                break
            whole = places[i] == 0 and places[j] == network.output
            total = cost[places[i]] + math.log(max(_estimate(part, entering, leaving, order), 1e-300))
            if total < best and not whole:
                best, before[places[j]] = total, places[i]
        cost[places[j]] = best
    path = [places[-1]]
    while path[-1] in before:
        path.append(before[path[-1]])
    return path[::-1] if path[-1] == places[0] else None


def _estimate(part: Network, scale_in: Array, scale_out: Array, order: int) -> float:
    """What a window may bring: equal multipliers in each layer, from the output, or norms where there are no layers or too many."""
    try:
        if part.layers and sum(part.variables) <= order:
            system = build_system(part, scale_in, scale_out)
            return math.sqrt(least_square(system, start(system))) * system.scale
        return norm_product(part, scale_in, scale_out)
    except (np.linalg.LinAlgError, OutOfRange, Rejected):
        return math.inf


def _solved(part: Network, scale_in: Array, scale_out: Array, tolerance: float, order: int) -> tuple[float, dict[str, Any]] | None:
    """The best bound of one window that the checker's code accepts, with its evidence; ``None`` where there is none."""
    try:
        product = norm_product(part, scale_in, scale_out)
    except (OutOfRange, Rejected):
        return None
    simple = (product, {"method": "norm-product"}) if math.isfinite(product) else None
    if not part.layers or sum(part.variables) > order:
        return simple
    try:
        system = build_system(part, scale_in, scale_out)
        for shares, values in mixtures(system, solve(system, tolerance)):
            bound = math.sqrt(float(shares.sum())) * system.scale
            if bound >= product:
                break
            evidence = {"method": "multipliers", "multipliers": system.filed_as_texts(values)}
            if _is_proved(part, scale_in, scale_out, bound, evidence):
                return bound, evidence
    except np.linalg.LinAlgError:
        pass
    return simple


def _is_proved(part: Network, scale_in: Array, scale_out: Array, bound: float, evidence: dict[str, Any]) -> bool:
    try:
        prove_network(part, "l2", scale_in, scale_out, bound, evidence)
    except (OutOfRange, Rejected):
        return False
    return True
