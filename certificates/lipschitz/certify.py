"""Certified Lipschitz bounds of networks: search, then let the checker's code judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from lipctrl.certificates.checker.chain import Chain, chain_of
from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.graph import Graph, graph_from_json, graph_to_json, rational_to_text
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Network, read_network
from lipctrl.certificates.checker.products import norm_product
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales, prove_lipschitz, rounded_up
from lipctrl.certificates.lipschitz.newton import Multipliers, least_square, solve, start
from lipctrl.certificates.lipschitz.patterns import pattern_floor
from lipctrl.certificates.lipschitz.records import LipschitzCertificate, UpperBound
from lipctrl.certificates.lipschitz.system import System, build_system
from lipctrl.certificates.lipschitz.witness import find_witness
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.core.rationals import rationals

MAX_NEWTON_ORDER = 1500  #: variables beyond which only the product of norms is tried

Vector = tuple[Fraction, ...]


class HasGraph(Protocol):
    """Anything with a ``graph``, such as a policy: the Graph, or a function that makes it."""

    @property
    def graph(self) -> Graph | Callable[[], Graph]:
        """The network."""
        ...


@dataclass(frozen=True)
class _Problem:
    """A chain in file form, with the scales of the norms as given (exact) and as they act on its first and last weights."""

    graph: Graph
    network: Network
    chain: Chain
    input_scale: Vector | None
    output_scale: Vector | None
    scale_in: Array
    scale_out: Array

    def proved(self, bound: float, evidence: Mapping[str, Any], gap: float | None = None) -> UpperBound | None:
        """The bound as a record if the checker's code accepts it, else ``None``."""
        scales = (None if s is None else [rational_to_text(v) for v in s] for s in (self.input_scale, self.output_scale))
        claim = {"property": "lipschitz", "norm": "l2", **dict(zip(("input_scale", "output_scale"), scales, strict=True))}
        claim["bound"] = float(bound).hex()
        try:
            prove_lipschitz(self.graph, claim, evidence)
        except Rejected:
            return None
        return UpperBound(float(bound), evidence["method"], claim, evidence, gap)


def certify_lipschitz(
    network: Graph | HasGraph,
    norm: str = "l2",
    *,
    input_scale: Any = None,
    output_scale: Any = None,
    multipliers: Sequence[Array] | None = None,
    tolerance: float = 1e-6,
    witness: bool = True,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LipschitzCertificate:
    """Bound the Lipschitz constant of a chain network from above, with proof, and from below, with a witness.

    The upper bound is the smaller of the product of the layers' norms and the best bound that one multiplier for each unit
    (or sorted group) proves, sought to the relative ``tolerance``; ``multipliers`` that are known, in the form of
    ``LipschitzMLP.multipliers()``, save that search. Whatever comes back was accepted by the checker's code, on the graph
    read back from its file form. Without scales the bound is in physical units and Euclidean norms; with them
    |S_out (f(x) - f(y))| <= bound |S_in (x - y)|, positive numbers, one for each coordinate or one for all.
    ``witness=False`` leaves out the lower bound and the floor. Equal seeds give equal results.

    Raises InputError where the network is no chain (the message names the operation) or an argument does not fit,
    LipctrlError where nothing could be proved.
    """
    if norm != "l2":
        raise InputError(f"norm is {norm!r}, expected 'l2'")
    given = network if isinstance(network, Graph) else network.graph
    problem = _problem(given if isinstance(given, Graph) else given(), input_scale, output_scale)
    floor = pattern_floor(problem.chain, problem.scale_in, problem.scale_out, seed=seed)
    upper = _upper_bound(problem, multipliers, tolerance, floor, progress)
    progress(0.9, f"upper bound {rounded_up(upper.value)}, looking for a witness", upper)
    lower = None
    if witness:
        scales = problem.input_scale or _ones(problem.chain.inputs), problem.output_scale or _ones(problem.chain.outputs)
        lower = find_witness(problem.graph, *scales, seed)
        floor = max(floor, lower.value)
    progress(1.0, f"upper bound {rounded_up(upper.value)}", upper)
    return LipschitzCertificate(problem.graph, upper, lower, floor if witness else None)


def _problem(given: Graph, input_scale: Any, output_scale: Any) -> _Problem:
    graph = graph_from_json(graph_to_json(given), given.tensors)
    try:
        network = read_network(graph)
        chain = chain_of(network)
        first = None if input_scale is None else _positive(input_scale, chain.inputs, "input_scale")
        last = None if output_scale is None else _positive(output_scale, chain.outputs, "output_scale")
        scales = effective_scales(network, first or _ones(chain.inputs), last or _ones(chain.outputs))
    except Rejected as error:
        raise InputError(f"this network cannot be bounded: {error}") from error
    return _Problem(graph, network, chain, first, last, *scales)


def _ones(length: int) -> Vector:
    return (Fraction(1),) * length


def _positive(values: Any, length: int, what: str) -> Vector:
    result = rationals(values, length, what)
    if not all(value > 0 for value in result):
        raise InputError(f"{what} is {values!r}, expected positive numbers")
    return result


def _upper_bound(problem: _Problem, multipliers: Sequence[Array] | None, tolerance: float, floor: float, progress: Progress) -> UpperBound:
    """The smallest bound among the candidates that the checker's code accepts. Raises LipctrlError where there is none."""
    product = _product(problem)
    best = product
    optimal = product is not None and product.value <= floor * (1 + tolerance)
    if problem.chain.hidden and not optimal and (multipliers is not None or sum(problem.chain.variables) <= MAX_NEWTON_ORDER):
        try:
            with np.errstate(all="ignore"):
                multiplied = _multiplied(problem, multipliers, tolerance, product, progress)
        except np.linalg.LinAlgError:  # numbers so far apart that floats overflow
            multiplied = None
        best = min((bound for bound in (product, multiplied) if bound is not None), key=lambda bound: bound.value, default=None)
    if best is None:
        raise LipctrlError("no Lipschitz bound of this network could be proved: its weights are too large, too small or too many")
    return best


def _multiplied(
    problem: _Problem, multipliers: Sequence[Array] | None, tolerance: float, product: UpperBound | None, progress: Progress
) -> UpperBound | None:
    """The best bound by multipliers, known or sought, that the checker's code accepts. Raises LinAlgError where floats overflow."""
    system = build_system(problem.chain, problem.scale_in, problem.scale_out)
    if multipliers is not None:
        found = _known(system, problem, multipliers)
    else:

        def report(square: float, gap: float) -> None:
            progress(0.8 * min(1.0, tolerance * square / gap), f"bound {math.sqrt(square) * system.scale:.6g} (not yet proved)", product)

        found = solve(system, tolerance, report)
    return _inflated(problem, system, found)


def _product(problem: _Problem) -> UpperBound | None:
    """The product of the layers' norms, or ``None`` where its numbers are beyond what float64 proves."""
    try:
        product = norm_product(problem.network, problem.scale_in, problem.scale_out)
    except OutOfRange:
        return None
    return problem.proved(product, {"method": "norm-product"})


def _known(system: System, problem: _Problem, multipliers: Sequence[Array]) -> Multipliers:
    """The best common factor of known multipliers, which were for the network without its output scales."""
    expected = [len(place) for place in system.places]
    if [len(values) for values in multipliers] != expected:
        raise InputError(f"multipliers have lengths {[len(values) for values in multipliers]}, expected {expected}")
    known = system.normalised([np.asarray(values, dtype=np.float64) for values in multipliers]) * float(problem.scale_out.max()) ** 2
    trials = []
    for exponent in np.arange(-8, 9) / 4:
        try:
            trials.append((least_square(system, known * 2.0**exponent), exponent))
        except np.linalg.LinAlgError:
            continue
    if not trials:
        raise InputError("these multipliers prove no bound of this network")
    square, exponent = min(trials)
    return Multipliers(square, known * 2.0**exponent, math.inf, 0)


def _inflated(problem: _Problem, system: System, found: Multipliers) -> UpperBound | None:
    """The smallest bound, near the one found, that the checker's code accepts.

    The point found is mixed with one that is deep inside the feasible set, with ever more weight on the latter.
    """
    inside = start(system)
    square = 2 * least_square(system, inside)
    gap = found.gap / (2 * found.square) if math.isfinite(found.gap) else None
    for weight in (0.0, *(10.0**-digits for digits in range(12, 1, -1))):
        mixed = (1 - weight) * found.values + weight * inside
        bound = math.sqrt((1 - weight) * found.square + weight * square) * system.scale
        filed = [[float(v).hex() for v in values] for values in system.filed(mixed)]
        accepted = problem.proved(bound, {"method": "multipliers", "multipliers": filed}, gap)
        if accepted is not None:
            return accepted
    return None
