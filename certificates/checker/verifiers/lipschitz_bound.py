"""The kind ``lipschitz-bound``: |S_out (f(x) - f(y))| <= bound |S_in (x - y)| for all x and y.

f is the policy graph over the reals, with its scales and clips, so without S_in and S_out the bound is in the units of its own
input and output. Norms are Euclidean (``l2``) or greatest absolute values (``linf``).

Two kinds of evidence. Without numbers (``norm-product`` for l2, ``absolute-product`` for linf) the checker multiplies and adds
proved bounds along the network, see :mod:`lipctrl.certificates.checker.products`. ``multipliers``: with increments dx of the
input, dv and dz before and after each unit, slopes in [a, b] give (dz - a dv)(dz - b dv) <= 0, and sorting a group gives
|dz|^2 <= |dv|^2 and equal sums. Hence, if

    bound^2 |S_in dx|^2 - |S_out dy|^2 + sum_j lambda_j (dz_j - a_j dv_j)(dz_j - b_j dv_j) + sum_G lambda_G (|dz_G|^2 - |dv_G|^2)

is positive semidefinite as a quadratic form in dx and the dz on the subspace of equal sums, with every lambda >= 0, the bound
holds in l2. For linf each output has a form of its own, with sum_k share_k (S_in dx)_k^2 in the first place and one square
(S_out dy)_i^2: it holds where the shares are not negative and their sum is at most bound^2. The file supplies the bound,
lambda and the shares; slopes, weights and scales come from the graph.

``windows``, for large networks in l2: signals at which nothing goes around cut the network into parts, each with a bound and
evidence of its own between weighted norms at its ends, and the product of their bounds is at most the bound. ``vertices``, for
small ones: see :mod:`lipctrl.certificates.checker.vertices`.
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
from lipctrl.certificates.checker.definite import (
    BALL_PRECISION,
    MAX_BALL_ORDER,
    MAX_ORDER,
    OutOfRange,
    balls,
    exact,
    is_definite_in_balls,
    is_semidefinite,
    require_ieee_products,
)
from lipctrl.certificates.checker.graph import Graph, GraphError
from lipctrl.certificates.checker.increments import Unrolled, multiplier_form, scaled_output, unroll
from lipctrl.certificates.checker.intervals import Array, UnsafeArithmetic
from lipctrl.certificates.checker.network import Network, read_network
from lipctrl.certificates.checker.products import absolute_product, norm_product, require_little
from lipctrl.certificates.checker.slopes import enclose
from lipctrl.certificates.checker.sorts import without_sorts
from lipctrl.certificates.checker.verdict import Rejected, Verdict, verified
from lipctrl.certificates.checker.windows import leaving_scale, window

KIND = "lipschitz-bound"
MAX_ROW_WORK = 1e12  #: rows of matrices to the third, in all
MAX_BALL_ROWS = 64  #: matrices that are judged in balls
MAX_WINDOWS = 256  #: parts of one network
NORMS = {"l2": "the Euclidean norm", "linf": "the maximum norm"}  #: by their names in claims


def verify(certificate: Certificate) -> Verdict:
    """Verify a ``lipschitz-bound`` certificate. Raises Rejected with the reason where it proves nothing."""
    if certificate.arithmetic != "real":
        raise Rejected("a Lipschitz bound is about the real-valued network: rounding makes slopes between near points unbounded")
    if certificate.requires:
        raise Rejected(f"a {KIND} certificate rests on no other certificate")
    if set(certificate.subject) != {"policy"}:
        raise Rejected(f"a {KIND} certificate has a policy as its subject and nothing else")
    claim = certificate.claim
    if "domain" in claim:
        from lipctrl.certificates.checker.verifiers.local_lipschitz import verify_local  # which proves its leaves by this module

        return verify_local(certificate)
    bound = prove_lipschitz(certificate.policy, claim, certificate.evidence)
    return verified(
        kind=KIND,
        property="lipschitz",
        claim=f"|f(x) - f(y)| <= {rounded_up(bound)} |x - y| for all x and y, in {norm_in_words(claim)}",
        arithmetic=certificate.arithmetic,
        subject=certificate.digests,
        numbers={"lipschitz" if claim["norm"] == "l2" else f"lipschitz_{claim['norm']}": bound},
    )


def norm_in_words(claim: Mapping[str, Any]) -> str:
    """The norm of a claim and the units of its bound."""
    weighted = [name for name in ("input_scale", "output_scale") if claim[name] is not None]
    units = f"weighted by the claim's {' and '.join(weighted)}" if weighted else "in the units of the policy's input and output"
    return f"{NORMS[claim['norm']]}, {units}"


def prove_lipschitz(graph: Graph, claim: Mapping[str, Any], evidence: Mapping[str, Any]) -> float:
    """The claimed bound if the evidence proves it for this graph. Raises Rejected with the reason otherwise."""
    table = fields(claim, ("property", "norm", "input_scale", "output_scale", "bound"), "claim")
    if table["property"] != "lipschitz" or table["norm"] not in [*NORMS]:
        raise Rejected(f"claim: expected property 'lipschitz' and a norm of {', '.join(NORMS)}")
    bound = float(floats([table["bound"]], 1, "bound")[0])
    try:
        require_ieee_products(256)  # before any weight is read: a mode that flushes subnormals changes them
        with np.errstate(all="ignore"):  # what overflows or is NaN is refused, in silence
            prove: Callable[..., None] = prove_network
            if evidence.get("method") == "vertices":
                from lipctrl.certificates.checker.vertices import prove_vertices  # which proves its leaves by this module

                prove, graph = prove_vertices, without_sorts(graph)
            network = read_network(graph)
            scales = scale_of_norm(table["input_scale"], network.inputs), scale_of_norm(table["output_scale"], network.outputs)
            prove(network, table["norm"], *effective_scales(network, *scales), bound, evidence)
    except (UnsafeArithmetic, OutOfRange, GraphError) as error:
        raise Rejected(str(error)) from error
    return bound


def scale_of_norm(values: object, size: int) -> tuple[Fraction, ...]:
    """The positive numbers that a claim gives as the scale of a norm, or ones for ``None``. Raises Rejected for others."""
    if values is None:
        return (Fraction(1),) * size
    scale = numbers(values, size, "scale")
    if not all(s > 0 for s in scale):
        raise Rejected("a scale of the norm is not positive")
    return scale


def effective_scales(network: Network, input_scale: tuple[Fraction, ...], output_scale: tuple[Fraction, ...]) -> tuple[Array, Array]:
    """Scales (S_in, S_out) of the norms at the network form's own ends that imply the claim at the graph's.

    S_in is rounded down and S_out up, which only strengthens what must be proved.
    """
    gain_in, gain_out = ([Fraction(g) for g in gains.tolist()] for gains in (network.input_gain, network.output_gain))
    inputs = [s / g for s, g in zip(input_scale, gain_in, strict=True)]
    outputs = [s * g for s, g in zip(output_scale, gain_out, strict=True)]
    return enclose(inputs, inputs).low, enclose(outputs, outputs).high


def prove_network(
    network: Network,
    norm: str,
    scale_in: Array,
    scale_out: Array,
    bound: float,
    evidence: Mapping[str, Any],
    unrolled: dict[str, Unrolled] | None = None,
) -> None:
    """Return if the evidence proves |S_out dy| <= ``bound`` |S_in dx| for every increment that the network form allows.

    ``unrolled`` keeps the increments of this network, for those who ask about it again. Raises Rejected with the reason otherwise,
    OutOfRange or UnsafeArithmetic where nothing can be decided.
    """
    method = evidence.get("method")
    if norm == "l2" and method == "norm-product":
        fields(evidence, ("method",), "evidence")
        product = norm_product(network, scale_in, scale_out)
        if not bound >= product:
            raise Rejected(f"the product of norms is {product!r}, which is not at most the bound {bound!r}")
    elif norm == "linf" and method == "absolute-product":
        fields(evidence, ("method",), "evidence")
        product = float(absolute_product(network, scale_in, scale_out).max())
        if not bound >= product:
            raise Rejected(f"the product of absolute values is {product!r}, which is not at most the bound {bound!r}")
    elif norm == "l2" and method == "multipliers":
        fields(evidence, ("method", "multipliers"), "evidence")
        _Multipliers(network, scale_in, scale_out, bound, unrolled).prove_euclidean(evidence["multipliers"])
    elif norm == "linf" and method == "multipliers":
        fields(evidence, ("method", "rows"), "evidence")
        _Multipliers(network, scale_in, scale_out, bound, unrolled).prove_maximum(evidence["rows"])
    elif method == "windows":
        fields(evidence, ("method", "windows"), "evidence")
        _prove_windows(network, norm, scale_in, scale_out, bound, evidence["windows"])
    else:
        number_free = "norm-product" if norm == "l2" else "absolute-product"
        raise Rejected(f"evidence: expected method {number_free!r} or 'multipliers' for the norm {norm!r}")


def _prove_windows(network: Network, norm: str, scale_in: Array, scale_out: Array, bound: float, filed: object) -> None:
    """The product of the windows' bounds, rounded up: |S_k dz_k| <= bound_k |S_(k-1) dz_(k-1)| from each cut to the next.

    All of that is Euclidean. For linf the root of the number n of inputs counts too: |v| <= sqrt(n) max |v_i|, and max |v_i| <= |v|.
    """
    if not isinstance(filed, list) or not 2 <= len(filed) <= MAX_WINDOWS:
        raise Rejected(f"windows must be a list with 2 to {MAX_WINDOWS} entries")
    require_little(network)
    first, work, scale = 0, 0.0, scale_in
    product = 1.0 if norm == "l2" else math.nextafter(math.sqrt(network.inputs), math.inf)
    for index, entry in enumerate(filed):
        table = fields(entry, ("last", "scale", "bound", "evidence"), "window")
        inner, last, at_end = table["evidence"], table["last"], index == len(filed) - 1
        if not isinstance(inner, dict) or inner.get("method") == "windows":
            raise Rejected("a window has evidence without windows inside")
        if not isinstance(last, int) or isinstance(last, bool) or (last == network.output) != at_end:
            raise Rejected("'last' must be a signal's index, and the network's output for the last window alone")
        part = window(network, first, last)
        leaving = scale_out if at_end else np.ones(part.outputs)
        if table["scale"] is not None:
            leaving = floats(table["scale"], part.outputs, "scale")
            if at_end or not bool(np.all(leaving > 0)):
                raise Rejected("the scale of a window must be positive numbers, and null where the claim's own applies")
        work += float(sum(part.variables)) ** 3
        if not work <= MAX_ROW_WORK:
            raise Rejected("the matrices of these windows are more than are judged")
        here = float(floats([table["bound"]], 1, "bound")[0])
        prove_network(part, "l2", scale, leaving_scale(part, leaving), here, inner)
        product = math.nextafter(product * here, math.inf) if here else 0.0
        first, scale = last, leaving
    if not bound >= product:
        raise Rejected(f"the product of the windows' bounds is {product!r}, which is not at most the bound {bound!r}")


class _Multipliers:
    """Proofs by multipliers of one bound; increments are unrolled once in each arithmetic."""

    def __init__(
        self, network: Network, scale_in: Array, scale_out: Array, bound: float, unrolled: dict[str, Unrolled] | None = None
    ) -> None:
        self.network, self.scale_in, self.scale_out, self.bound = network, scale_in, scale_out, bound
        self.order = sum(network.variables)
        if self.order > MAX_ORDER:
            raise Rejected(f"the matrix has {self.order} rows, at most {MAX_ORDER} are judged")
        if not 0 < bound < math.inf:
            raise Rejected(f"the bound must be positive and finite, got {bound!r}")
        self.unrolled = {} if unrolled is None else unrolled
        self.in_balls = 0

    def prove_euclidean(self, filed: object) -> None:
        """One form for all outputs, the same share bound^2 of every input."""
        self._prove(self._multipliers(filed), None, slice(None))

    def prove_maximum(self, filed: object) -> None:
        """One form for each output; ``None`` where the product of absolute values is small enough."""
        if not isinstance(filed, list) or len(filed) != self.network.outputs:
            raise Rejected(f"rows must be a list with one entry for each of the {self.network.outputs} outputs")
        if sum(row is not None for row in filed) * self.order**3 > MAX_ROW_WORK:
            raise Rejected(f"{len(filed)} matrices with {self.order} rows are more than are judged")
        known: Array | None = None
        for index, row in enumerate(filed):
            if row is None:
                known = absolute_product(self.network, self.scale_in, self.scale_out) if known is None else known
                if not self.bound >= known[index]:
                    raise Rejected(f"the product of absolute values for output {index} is {float(known[index])!r}, above {self.bound!r}")
                continue
            table = fields(row, ("multipliers", "shares"), "row")
            shares = floats(table["shares"], self.network.inputs, "shares")
            if not bool(np.all(shares >= 0)) or not sum(map(Fraction, shares.tolist())) <= Fraction(self.bound) ** 2:
                raise Rejected("a share is negative, or their sum is above the square of the bound")
            self._prove(self._multipliers(table["multipliers"]), shares, slice(index, index + 1))

    def _multipliers(self, filed: object) -> list[Array]:
        layers = self.network.layers
        if not isinstance(filed, list) or len(filed) != len(layers):
            raise Rejected(f"multipliers must be a list with one entry for each of the {len(layers)} layers of activations")
        values = [floats(entry, layer.multipliers, "multipliers") for entry, layer in zip(filed, layers, strict=True)]
        if not all(bool(np.all(entry >= 0)) for entry in values):
            raise Rejected("a multiplier is negative")
        return values

    def _prove(self, multipliers: list[Array], shares: Array | None, rows: slice) -> None:
        try:
            proved = is_semidefinite(self._form("exact", multipliers, shares, rows))
        except OutOfRange:
            if self.order > MAX_BALL_ORDER or self.in_balls >= MAX_BALL_ROWS:  # before anything is computed in balls, which is slow
                raise
            self.in_balls += 1
            with ctx.workprec(BALL_PRECISION):
                proved = is_definite_in_balls(self._form("balls", multipliers, shares, rows))
        if not proved:
            raise Rejected(f"the multipliers do not prove the bound {self.bound!r}: the matrix could not be shown positive semidefinite")

    def _form(self, arithmetic: str, multipliers: list[Array], shares: Array | None, rows: slice) -> Any:
        lift = exact if arithmetic == "exact" else balls
        if arithmetic not in self.unrolled:
            self.unrolled[arithmetic] = unroll(self.network, lift)
        unrolled, side = self.unrolled[arithmetic], lift(self.scale_in)
        if shares is None:
            side = lift(np.array([self.bound])) * side
        head = side * side if shares is None else lift(shares) * (side * side)
        return multiplier_form(unrolled, head, scaled_output(unrolled, self.scale_out, rows), multipliers)


def rounded_up(value: float, digits: int = 6) -> str:
    """A decimal text of at least ``value`` with about this many significant digits."""
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int = 6) -> str:
    """A decimal text of at most ``value`` with about this many significant digits."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, rounding: str) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exact_value = Decimal(value)
    step = Decimal(1).scaleb(exact_value.adjusted() - digits + 1)
    digits_only = exact_value.quantize(step, rounding=rounding).normalize()
    text = f"{digits_only:f}"
    return text if len(text) <= 20 else f"{digits_only:e}"
