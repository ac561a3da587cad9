"""Bounds in the l-infinity norm: for each output the best multipliers with a share for every input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.intervals import UNIT
from lipctrl.certificates.checker.network import Network, Selection
from lipctrl.certificates.checker.products import absolute_product
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_network, rounded_up
from lipctrl.certificates.lipschitz.newton import mixtures, solve
from lipctrl.certificates.lipschitz.problem import Problem
from lipctrl.certificates.lipschitz.records import UpperBound
from lipctrl.certificates.lipschitz.system import System, build_system
from lipctrl.core.progress import Progress

MARGIN = 1e-9  #: relative, below what is enough


def bound_maximum(problem: Problem, tolerance: float, product: UpperBound | None, progress: Progress) -> UpperBound | None:
    """The greatest of the outputs' bounds, each the smaller of its product of absolute values and its best by multipliers.

    Only the greatest counts: an output whose product of absolute values is below the bound of another needs no multipliers, and
    the search for one ends below that bound. ``None`` where the checker's code accepts nothing. Raises LinAlgError where floats
    overflow.
    """
    products = absolute_product(problem.network, problem.scale_in, problem.scale_out)
    system = build_system(problem.network, problem.scale_in, problem.scale_out)
    rows: list[dict[str, Any] | None] = [None] * len(products)
    best, gaps = 0.0, []
    for done, index in enumerate(np.argsort(-products)):
        if products[index] <= best:
            break
        found = _bound_row(problem, system, int(index), tolerance, best)
        if found is not None and found[0] < products[index]:
            rows[index] = found[1]
            gaps.append((found[0], found[2]))
        best = max(best, min(float(products[index]), math.inf if found is None else found[0]))
        progress(0.8 * (done + 1) / len(products), f"bound {rounded_up(best)} of {done + 1} outputs (not yet proved)", product)
    if not any(row is not None for row in rows):
        return None
    gap = max(gaps)[1] if gaps and max(gaps)[0] == best else None
    return problem.proved(best, {"method": "multipliers", "rows": rows}, gap)


def _bound_row(
    problem: Problem, system: System, index: int, tolerance: float, enough: float
) -> tuple[float, dict[str, Any], float | None] | None:
    """Bound, evidence and gap for one output, which the checker's code accepts on its own; ``None`` where nothing is accepted."""
    single = system.of_output(index, float(np.linalg.norm(system.output[index])) or 1.0)
    try:
        found = solve(single, tolerance, enough=(enough / single.scale) ** 2 * (1 - MARGIN))
    except np.linalg.LinAlgError:
        return None
    for shares, values in mixtures(single, found):
        filed = shares * single.scale * single.scale
        bound = float(np.sqrt(filed.sum())) * (1 + (len(filed) + 4) * UNIT)
        row = {"multipliers": single.filed_as_texts(values), "shares": [float(v).hex() for v in filed]}
        if _accepted(problem, index, bound, row):
            return bound, row, found.relative_gap
    return None


def _accepted(problem: Problem, index: int, bound: float, row: dict[str, Any]) -> bool:
    """Whether the checker's code accepts this row for the network with this output alone."""
    network = problem.network
    signals = (*network.signals, Selection(network.output, np.array([index])))
    single = Network(signals, len(signals) - 1, network.input_gain, network.output_gain[index : index + 1])
    try:
        scale_out = problem.scale_out[index : index + 1]
        prove_network(single, "linf", problem.scale_in, scale_out, bound, {"method": "multipliers", "rows": [row]})
    except (Rejected, OutOfRange):
        return False
    return True
