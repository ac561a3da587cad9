"""The kind ``lipschitz-bound``: |S_out (f(x) - f(y))| <= bound |S_in (x - y)| for all x and y, in Euclidean norms.

f is the policy graph over the reals, with its scales and clips, so without S_in and S_out the bound is in the units of its own
input and output.
Two methods. ``norm-product``: no numbers, the checker multiplies proved norms of the layers. ``multipliers``: with
increments D = (dx, dz_1, ..., dz_l), slopes in [a, b] give (dz - a dv)(dz - b dv) <= 0 for each unit, and sorting a group
gives |dz|^2 <= |dv|^2 and equal sums. Hence, if

    bound^2 |S_x dx|^2 - |S_u dy|^2 + sum_j lambda_j (dz_j - a_j dv_j)(dz_j - b_j dv_j) + sum_G lambda_G (|dz_G|^2 - |dv_G|^2)

is positive semidefinite as a quadratic form in D on the subspace of equal sums, with every lambda >= 0, the bound holds. The
file supplies the bound and lambda; slopes, weights and scales come from the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from flint import ctx

from lipctrl.certificates.checker.bundle import Certificate, fields, floats, numbers
from lipctrl.certificates.checker.chain import Chain, Hidden, enclose, read_chain
from lipctrl.certificates.checker.definite import (
    BALL_PRECISION,
    MAX_BALL_ORDER,
    MAX_ORDER,
    OutOfRange,
    balls,
    exact,
    is_definite_in_balls,
    is_semidefinite,
    norm_upper_bound,
    require_ieee_products,
    symmetric,
)
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, UnsafeArithmetic
from lipctrl.certificates.checker.verdict import Rejected, Verdict, verified

KIND = "lipschitz-bound"

Lift = Callable[[Array], Any]


def verify(certificate: Certificate) -> Verdict:
    """Verify a ``lipschitz-bound`` certificate. Raises Rejected with the reason where it proves nothing."""
    if certificate.arithmetic != "real":
        raise Rejected("a Lipschitz bound is about the real-valued network: rounding makes slopes between near points unbounded")
    if certificate.requires:
        raise Rejected(f"a {KIND} certificate rests on no other certificate")
    if set(certificate.subject) != {"policy"}:
        raise Rejected(f"a {KIND} certificate has a policy as its subject and nothing else")
    bound = prove_lipschitz(certificate.policy, certificate.claim, certificate.evidence)
    weighted = [name for name in ("input_scale", "output_scale") if certificate.claim[name] is not None]
    norm = (
        f"Euclidean norms weighted by the claim's {' and '.join(weighted)}"
        if weighted
        else "the Euclidean norm, in the units of the policy's input and output"
    )
    return verified(
        kind=KIND,
        property="lipschitz",
        claim=f"|f(x) - f(y)| <= {rounded_up(bound)} |x - y| for all x and y, in {norm}",
        arithmetic=certificate.arithmetic,
        subject=certificate.digests,
        numbers={"lipschitz": bound},
    )


def prove_lipschitz(graph: Graph, claim: Mapping[str, Any], evidence: Mapping[str, Any]) -> float:
    """The claimed bound if the evidence proves it for this graph. Raises Rejected with the reason otherwise."""
    table = fields(claim, ("property", "norm", "input_scale", "output_scale", "bound"), "claim")
    if table["property"] != "lipschitz" or table["norm"] != "l2":
        raise Rejected("claim: expected property 'lipschitz' and norm 'l2'")
    bound = float(floats([table["bound"]], 1, "bound")[0])
    try:
        require_ieee_products(256)  # before any weight is read: a mode that flushes subnormals changes them
        with np.errstate(all="ignore"):  # what overflows or is NaN is refused, in silence
            _prove(read_chain(graph), table, bound, evidence)
    except (UnsafeArithmetic, OutOfRange) as error:
        raise Rejected(str(error)) from error
    return bound


def _prove(chain: Chain, claim: Mapping[str, Any], bound: float, evidence: Mapping[str, Any]) -> None:
    scales = _scale(claim["input_scale"], chain.inputs), _scale(claim["output_scale"], chain.outputs)
    scale_in, scale_out = effective_scales(chain, *scales)
    if evidence.get("method") == "norm-product":
        fields(evidence, ("method",), "evidence")
        product = norm_product(chain, scale_in, scale_out)
        if not bound >= product:
            raise Rejected(f"the product of norms is {product!r}, which is not at most the bound {bound!r}")
    elif evidence.get("method") == "multipliers":
        fields(evidence, ("method", "multipliers"), "evidence")
        _prove_by_multipliers(chain, scale_in, scale_out, bound, evidence["multipliers"])
    else:
        raise Rejected("evidence: expected method 'norm-product' or 'multipliers'")


def _scale(values: object, size: int) -> tuple[Fraction, ...]:
    if values is None:
        return (Fraction(1),) * size
    scale = numbers(values, size, "scale")
    if not all(s > 0 for s in scale):
        raise Rejected("a scale of the norm is not positive")
    return scale


def effective_scales(chain: Chain, input_scale: tuple[Fraction, ...], output_scale: tuple[Fraction, ...]) -> tuple[Array, Array]:
    """Scales (S_x, S_u) of the norms at the first and last affine map that imply the claim in the graph's own coordinates.

    S_x is rounded down and S_u up, which only strengthens what must be proved. Raises Rejected where the graph multiplies an
    input by zero.
    """
    gain_in, gain_out = ([Fraction(g) for g in gains.tolist()] for gains in (chain.input_gain, chain.output_gain))
    if not all(gain_in):
        raise Rejected("the graph multiplies a coordinate of its input by zero")
    inputs = [s / g for s, g in zip(input_scale, gain_in, strict=True)]
    outputs = [s * g for s, g in zip(output_scale, gain_out, strict=True)]
    return enclose(inputs, inputs).low, enclose(outputs, outputs).high


# --- product of norms ---------------------------------------------------------------------------------------------------


def norm_product(chain: Chain, scale_in: Array, scale_out: Array) -> float:
    """A proved upper bound: the product of the norms of the layers, rounded up. Infinity where a norm could not be proved."""
    weights = [*(layer.weight for layer in chain.hidden), chain.weight]
    outputs = [*(layer.gain for layer in chain.hidden), scale_out]
    bound = 1.0
    for index, (weight, output) in enumerate(zip(weights, outputs, strict=True)):
        norm = norm_upper_bound(weight, _unless_one(scale_in) if index == 0 else None, _unless_one(output))
        bound = math.nextafter(bound * norm, math.inf) if norm else 0.0
        if not bound:
            return 0.0
    return bound


def _unless_one(scale: Array) -> Array | None:
    return None if bool(np.all(scale == 1)) else scale


# --- multipliers --------------------------------------------------------------------------------------------------------


def _prove_by_multipliers(chain: Chain, scale_in: Array, scale_out: Array, rho: float, filed: object) -> None:
    if not isinstance(filed, list) or len(filed) != len(chain.hidden):
        raise Rejected(f"multipliers must be a list with one entry for each of the {len(chain.hidden)} hidden layers")
    multipliers = [floats(values, layer.multipliers, "multipliers") for values, layer in zip(filed, chain.hidden, strict=True)]
    if not all(bool(np.all(values >= 0)) for values in multipliers):
        raise Rejected("a multiplier is negative")
    if sum(chain.variables) > MAX_ORDER:
        raise Rejected(f"the matrix has {sum(chain.variables)} rows, at most {MAX_ORDER} are judged")
    if not 0 < rho < math.inf:
        raise Rejected(f"the bound must be positive and finite, got {rho!r}")
    try:
        proved = is_semidefinite(multiplier_form(chain, scale_in, scale_out, rho, multipliers, exact))
    except OutOfRange:
        if sum(chain.variables) > MAX_BALL_ORDER:  # before anything is computed in balls, which is slow
            raise
        with ctx.workprec(BALL_PRECISION):
            proved = is_definite_in_balls(multiplier_form(chain, scale_in, scale_out, rho, multipliers, balls))
    if not proved:
        raise Rejected(f"the multipliers do not prove the bound {rho!r}: the matrix could not be shown positive semidefinite")


def multiplier_form(chain: Chain, scale_in: Array, scale_out: Array, rho: float, multipliers: list[Array], lift: Lift) -> Any:
    """The quadratic form of this module's head as a symmetric matrix in the arithmetic of ``lift`` (``exact`` or ``balls``).

    Block 0 is the input, block k the k-th hidden layer: its units, or the coordinates r of its sorted groups.
    """
    form = _Form(lift)
    side = lift(np.array([rho])) * lift(scale_in)
    form.add(0, 0, side * side * lift(np.eye(len(scale_in))))
    before: Linear = {0: None}
    for block, (layer, values) in enumerate(zip(chain.hidden, multipliers, strict=True), start=1):
        before = (_sort if layer.group_size else _activate)(form, block, layer, before, values)
    output = _times(lift(scale_out)[:, None] * lift(chain.weight), before)
    form.add_square(output, -lift(np.ones(len(scale_out))))
    return symmetric(form.blocks, chain.variables)


Linear = dict[int, Any]  #: rows over all variables, by blocks; ``None`` stands for the variables of that block themselves


class _Form:
    """A symmetric matrix under construction, lower blocks only."""

    def __init__(self, lift: Lift) -> None:
        self.lift = lift
        self.blocks: dict[tuple[int, int], Any] = {}

    def add(self, row: int, column: int, block: Any) -> None:
        here = self.blocks.get((row, column))
        self.blocks[row, column] = block if here is None else here + block

    def add_square(self, rows: Linear, factors: Any) -> None:
        """Add sum_i factors_i (rows_i D)^2."""
        for i, left in rows.items():
            for j, right in rows.items():
                if i >= j:
                    self.add(i, j, left.T @ (factors[:, None] * right))


def _times(matrix: Any, rows: Linear) -> Linear:
    return {block: matrix if part is None else matrix @ part for block, part in rows.items()}


def _activate(form: _Form, block: int, layer: Hidden, before: Linear, multipliers: Array) -> Linear:
    """Add lambda (dz - a dv)(dz - b dv) for each unit; returns dz."""
    values, low, high = (form.lift(v) for v in (multipliers, layer.low, layer.high))
    entering = _times(form.lift(layer.weight), before)
    form.add(block, block, values[:, None] * form.lift(np.eye(len(multipliers))))
    middle = form.lift(np.array([-0.5])) * values * (low + high)
    for other, rows in entering.items():
        form.add(block, other, middle[:, None] * rows)
    if bool(np.any((layer.low != 0) & (layer.high != 0))):
        form.add_square(entering, values * low * high)
    return {block: None}


def _sort(form: _Form, block: int, layer: Hidden, before: Linear, multipliers: Array) -> Linear:
    """Add lambda_G (|dz_G|^2 - |dv_G|^2) for each group, with dz_G = mean(dv_G) + T r: the sums pass. Returns dz."""
    group = np.arange(len(layer.weight)) // layer.group_size
    inside = np.flatnonzero(group[:-1] == group[1:])  # r_i stands between units i and i + 1 of one group
    basis = np.zeros((len(group), len(inside)))
    basis[inside, np.arange(len(inside))], basis[inside + 1, np.arange(len(inside))] = 1, -1
    member = (np.arange(len(multipliers))[:, None] == group).astype(np.float64)
    values, sizes, basis, member = (form.lift(v) for v in (multipliers, member.sum(axis=1), basis, member))
    entering = _times(form.lift(layer.weight), before)
    sums = _times(member, entering)
    units = values[group][:, None]
    form.add_square(entering, -values[group])
    form.add_square(sums, values / sizes)
    leaving = {other: member.T @ (rows / sizes[:, None]) for other, rows in sums.items()}
    if len(inside):
        form.add(block, block, basis.T @ (units * basis))
        leaving[block] = basis
    return leaving


def rounded_up(value: float, digits: int = 6) -> str:
    """A decimal text of at least ``value`` with about this many significant digits."""
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int = 6) -> str:
    """A decimal text of at most ``value`` with about this many significant digits."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> str:
    if value == 0:
        return "0"
    exact_value = Decimal(value)
    step = Decimal(1).scaleb(exact_value.adjusted() - digits + 1)
    return f"{exact_value.quantize(step, rounding=rounding).normalize():f}"
