"""Certified Lipschitz bounds of networks: search, then let the checker's code judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lipctrl.certificates.checker.chain import chain_of
from lipctrl.certificates.checker.definite import MAX_ORDER, OutOfRange
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Layer, Sort, Sum
from lipctrl.certificates.checker.products import absolute_product, norm_product
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import rounded_up
from lipctrl.certificates.lipschitz.eclipse import eclipse
from lipctrl.certificates.lipschitz.given import HasGraph, graph_of
from lipctrl.certificates.lipschitz.maximum import bound_maximum
from lipctrl.certificates.lipschitz.newton import Multipliers, least_shares, mixtures, solve
from lipctrl.certificates.lipschitz.patterns import pattern_floor
from lipctrl.certificates.lipschitz.problem import Problem, read_problem
from lipctrl.certificates.lipschitz.records import LipschitzCertificate, UpperBound
from lipctrl.certificates.lipschitz.system import System, build_system
from lipctrl.certificates.lipschitz.vertex_splits import bound_by_vertices
from lipctrl.certificates.lipschitz.windows import WINDOW_ORDER, bound_by_windows
from lipctrl.certificates.lipschitz.witness import find_witness
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.nn.proof import ELSEWHERE

__all__ = ["HasGraph", "certify_lipschitz"]

MAX_NEWTON_ORDER = 1500  #: variables beyond which multipliers are sought in stages, or window by window
PARTS_TOLERANCE = 1e-3  #: of each stage or window there
NEAR = 1.1  #: bounds up to so many times the floor are near enough, unless splits are asked for
SPLITS, SPLIT_ORDER = 32, 100  #: splits for others, and the greatest number of variables that is worth it


def certify_lipschitz(
    network: Graph | HasGraph,
    norm: str = "l2",
    *,
    input_scale: Any = None,
    output_scale: Any = None,
    multipliers: Sequence[Array] | None = None,
    tolerance: float = 1e-6,
    splits: int | None = None,
    witness: bool = True,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LipschitzCertificate:
    """Bound the Lipschitz constant of a feed-forward network from above, with proof, and from below, with a witness.

    ``norm`` is ``"l2"`` or ``"linf"``, of inputs and outputs alike. The upper bound is the smaller of the product of norms (or
    of absolute values) along the network and the best bound that one multiplier for each unit (or sorted group) proves, sought to
    the relative ``tolerance`` in its square; ``multipliers`` for l2 that are known, in the form of
    ``LipschitzMLP.multipliers()``, save that search. At most ``splits`` times the slope of a unit is then split into its two ends, as
    long as the bound is more than ``tolerance`` above the floor; without a number, for l2 only and where it is 10 % above in a network
    of at most SPLIT_ORDER variables. Networks of more than MAX_NEWTON_ORDER variables are searched in parts, and the parts'
    multipliers proved together or, where even that is too large, one by one. Whatever comes back was accepted by the checker's code,
    on the graph read back from its file form. Without scales the bound is in physical units; with them
    |S_out (f(x) - f(y))| <= bound |S_in (x - y)|, positive numbers, one for each coordinate or one for all.
    ``witness=False`` leaves out the lower bound and the floor. Equal seeds give equal results.

    Raises InputError where the network has no network form (the message names the operation) or an argument does not fit,
    LipctrlError where nothing could be proved.
    """
    problem = read_problem(graph_of(network), norm, input_scale, output_scale)
    if multipliers is not None and norm != "l2":
        raise InputError(f"multipliers are known for the norm 'l2' only, got norm {norm!r}")
    if splits is not None and not (isinstance(splits, int) and splits >= 0):
        raise InputError(f"splits is {splits!r}, expected a whole number that is not negative")
    order = sum(problem.network.variables)
    restarts = next(count for most, count in ((SPLIT_ORDER, 1000), (400, 300), (MAX_NEWTON_ORDER, 100), (math.inf, 10)) if order <= most)
    floor = pattern_floor(problem.network, problem.scale_in, problem.scale_out, norm, restarts, seed)
    upper = _upper_bound(problem, multipliers, tolerance, floor, progress)
    if splits is not None or (norm == "l2" and multipliers is None):
        upper = _at_vertices(problem, upper, splits, tolerance, floor, progress)
    progress(0.9, f"upper bound {rounded_up(upper.value)}, looking for a witness", upper)
    lower = None
    if witness:
        lower = find_witness(problem.graph, *problem.scales, seed, norm)
        floor = max(floor, lower.value)
    progress(1.0, f"upper bound {rounded_up(upper.value)}", upper)
    return LipschitzCertificate(problem.graph, upper, lower, floor if witness else None)


def _upper_bound(problem: Problem, multipliers: Sequence[Array] | None, tolerance: float, floor: float, progress: Progress) -> UpperBound:
    """The smallest bound among the candidates that the checker's code accepts. Raises LipctrlError where there is none."""
    product = _product(problem)
    best = product
    optimal = product is not None and product.value <= floor * (1 + tolerance)
    small = multipliers is not None or sum(problem.network.variables) <= MAX_NEWTON_ORDER
    exact = len(problem.network.signals) <= 2 and not any(isinstance(signal, Sum) for signal in problem.network.signals)  # |x - x| is 0
    if not exact and not optimal and (small or problem.norm == "l2"):
        try:
            with np.errstate(all="ignore"):
                if problem.norm == "linf":
                    multiplied = bound_maximum(problem, tolerance, product, progress)
                elif small:
                    multiplied = _multiplied(problem, multipliers, tolerance, product, progress)
                else:
                    multiplied = _in_parts(problem, tolerance, product, progress)
        except (np.linalg.LinAlgError, Rejected):  # numbers so far apart that floats overflow, or linear forms too large
            multiplied = None
        best = min((bound for bound in (product, multiplied) if bound is not None), key=lambda bound: bound.value, default=None)
    if best is None:
        raise LipctrlError("no Lipschitz bound of this network could be proved: its weights are too large, too small or too many")
    return best


def _at_vertices(problem: Problem, known: UpperBound, splits: int | None, tolerance: float, floor: float, progress: Progress) -> UpperBound:
    """The known bound, or a smaller one after splits."""
    goal = floor * (1 + tolerance)
    interrupted = known.gap is not None and known.gap > tolerance
    if splits == 0 or interrupted or not known.value > (goal if splits is not None else NEAR * floor) > 0:
        return known
    count, order = (SPLITS, SPLIT_ORDER) if splits is None else (splits, MAX_NEWTON_ORDER)

    def report(done: int, bound: float) -> None:
        progress(0.8 + 0.1 * done / count, f"bound {rounded_up(bound)} after {done} splits (not yet proved)", known)

    found = bound_by_vertices(problem, count, order, goal, tolerance, report)
    return known if found is None or known.value <= found.value else found


def _multiplied(
    problem: Problem, multipliers: Sequence[Array] | None, tolerance: float, product: UpperBound | None, progress: Progress
) -> UpperBound | None:
    """The best bound by multipliers, known or sought, that the checker's code accepts. Raises LinAlgError where floats overflow."""
    system = build_system(problem.network, problem.scale_in, problem.scale_out)
    if multipliers is not None:
        found = _known(system, problem, multipliers)
    else:

        def report(square: float, gap: float) -> None:
            bound = math.sqrt(square) * system.scale
            progress(0.8 * min(1.0, tolerance * square / gap), f"bound {rounded_up(bound)} (not yet proved)", product)

        found = solve(system, tolerance, report)
    for shares, values in mixtures(system, found):
        bound = math.sqrt(float(shares.sum())) * system.scale
        evidence = {"method": "multipliers", "multipliers": system.filed_as_texts(values)}
        accepted = problem.proved(bound, evidence, found.relative_gap)
        if accepted is not None:
            return accepted
    # linear forms that pass through many sorted layers: each window has fewer roundings to account for
    return None if multipliers is not None else _by_windows(problem, tolerance, product, progress, system.size // 2)


def _in_parts(problem: Problem, tolerance: float, product: UpperBound | None, progress: Progress) -> UpperBound | None:
    """A bound of a large network: of a chain by multipliers from stages, in one matrix, or else the product of windows' bounds."""
    network, scales = problem.network, (problem.scale_in, problem.scale_out)
    tolerance = max(tolerance, PARTS_TOLERANCE)
    if sum(network.variables) <= MAX_ORDER and all(_is_free(layer) for layer in network.layers):
        try:
            found = eclipse(chain_of(network), *scales, order=WINDOW_ORDER, tolerance=tolerance)
            for margin in (1e-9, 1e-6, 1e-4):
                values = [[float(v * (1 + margin) ** 2).hex() for v in layer] for layer in found.multipliers]
                accepted = problem.proved(found.bound * (1 + margin), {"method": "multipliers", "multipliers": values})
                if accepted is not None:
                    return accepted
        except (np.linalg.LinAlgError, Rejected):  # no chain, or floats that leave no multipliers
            pass
    pair = 2 * max(network.variables)  # a window with one hidden layer inside
    return _by_windows(problem, tolerance, product, progress, max(WINDOW_ORDER, pair if pair <= MAX_NEWTON_ORDER else 0))


def _by_windows(problem: Problem, tolerance: float, product: UpperBound | None, progress: Progress, order: int) -> UpperBound | None:
    def report(done: int, count: int) -> None:
        progress(0.8 * done / count, f"window {done} of {count}", product)

    windows = bound_by_windows(problem.network, problem.scale_in, problem.scale_out, tolerance, order, report)
    return None if windows is None else problem.proved(*windows)


def _is_free(layer: Layer) -> bool:
    """Whether every unit has a multiplier."""
    return isinstance(layer, Sort) or layer.multipliers == layer.size


def _product(problem: Problem) -> UpperBound | None:
    """The bound without numbers, or ``None`` where it is beyond what float64 proves."""
    try:
        if problem.norm == "linf":
            rows = absolute_product(problem.network, problem.scale_in, problem.scale_out)
            return problem.proved(float(rows.max()) * ELSEWHERE, {"method": "absolute-product"})
        return problem.proved(norm_product(problem.network, problem.scale_in, problem.scale_out) * ELSEWHERE, {"method": "norm-product"})
    except (OutOfRange, Rejected):
        return None


def _known(system: System, problem: Problem, multipliers: Sequence[Array]) -> Multipliers:
    """The best common factor of known multipliers, which were for the network without its output scales."""
    expected = [len(place) for place in system.places]
    if [len(values) for values in multipliers] != expected:
        raise InputError(f"multipliers have lengths {[len(values) for values in multipliers]}, expected {expected}")
    known = system.normalised([np.asarray(values, dtype=np.float64) for values in multipliers]) * float(problem.scale_out.max()) ** 2
    trials = []
    for exponent in np.arange(-8, 9) / 4:
        try:
            trials.append((float(least_shares(system, known * 2.0**exponent)[0]), exponent))
        except np.linalg.LinAlgError:
            continue
    if not trials:
        raise InputError("these multipliers prove no bound of this network")
    square, exponent = min(trials)
    return Multipliers(np.array([square]), known * 2.0**exponent, math.inf, 0)
