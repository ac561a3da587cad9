"""Stability of plant + policy with a sublevel set of a quadratic Lyapunov function, proved box by box.

V(y) = y^T P y in deviations y = x - x*; S = {y in B: V(y) <= rho}. The evidence is a binary split tree of the box B in preorder;
its leaves are derived here, so they cover B by construction. Each leaf is ``out`` (V > rho), ``ok`` (y+ in B and
V(y+) <= (1 - kappa) V(y)) or ``hole``.

- ``exponentially_stable`` (real arithmetic only): every hole leaf lies in a box H around 0, H lies in an ellipsoid E0 on
  which the loop is proved a contraction, and E0 lies in S. So S is invariant, every trajectory from it reaches E0 and then 0.
- ``practically_stable``: on hole leaves y+ in B, V(y) <= v and V(y+) <= v. So S and {V <= v} are invariant, {V <= v} is
  reached from S in finitely many steps, and it lies in the ball that the claim names. In float32 arithmetic the policy may be
  off by its evaluation error at every step, and every inequality holds for each value that it may take.

Nothing is tolerated: every inequality is checked with outward rounding, in balls or in rationals.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import Certificate, fields, floats, number
from lipctrl.certificates.checker.cells import Loop, Step, centre_radius, keep_factor, level_range
from lipctrl.certificates.checker.definite import require_ieee_products
from lipctrl.certificates.checker.exact import Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import GraphError
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.verdict import Rejected, Verdict, shown, verified
from lipctrl.certificates.checker.work import BATCH, work_of_step

KIND = "closed-loop-lyapunov-bab"
MAX_DIMENSION = 12
MAX_NODES = 4_000_000
MAX_WORK = 3_000_000_000  #: units of work, see ``checker/work.py``
VOLUME_CELLS, VOLUME_ROUNDS = 1 << 15, 100  #: splitting for the volume stops at this many crossed cells, or halvings
PROPERTIES = {"real": ("exponentially_stable", "practically_stable"), "float32": ("practically_stable",)}
LEAVES = ("out", "ok", "hole")


@dataclass(frozen=True)
class Claim:
    """The sublevel set {low <= y <= high, y^T P y <= rho} and its decrease rate kappa."""

    low: Array
    high: Array
    P: Array
    rho: float
    kappa: Fraction
    volume: Fraction
    extra: Mapping[str, Any]  #: what the property adds: local_rate, or ball and reached_level


def verify(certificate: Certificate) -> Verdict:
    """Check one certificate. Raises Rejected with the reason."""
    require_ieee_products(256)
    loop, claim, evidence = read(certificate)
    work = work_of_step(loop)
    if not work.cells_at_once:
        raise Rejected(f"one cell needs {work.floats} numbers, more than the checker keeps")
    leaves = list(derive_leaves(evidence["tree"], claim.low, claim.high, loop.dimension, work.cells_at_once))
    units = sum(work.total(len(low)) for code, low, _ in leaves if code != "out")
    if units > MAX_WORK:
        raise Rejected(f"{units:.2g} units of work, the checker accepts {MAX_WORK:.2g}")
    proved = _origin(loop, claim, evidence, leaves)
    for code, low, high in leaves:
        if code != "hole":
            _check_leaves(code, loop, claim, low, high)
    if not claim.volume <= volume_bound(claim, leaves):
        raise Rejected("the claimed volume is more than the checker can prove")
    return _verdict(certificate, loop, claim, proved)


def read(certificate: Certificate) -> tuple[Loop, Claim, Mapping[str, Any]]:
    """The parts of the certificate, each of its own form. Raises Rejected."""
    exact, deployed = certificate.claim.get("property") == "exponentially_stable", certificate.arithmetic == "float32"
    extra_keys = ("local_rate",) if exact else ("ball", "reached_level", *(("activation_ulp",) if deployed else ()))
    table = fields(certificate.claim, ("property", "region", "decrease_rate", "volume", *extra_keys), "claim")
    if table["property"] not in PROPERTIES[certificate.arithmetic]:
        raise Rejected(f"arithmetic {certificate.arithmetic!r} supports the properties {PROPERTIES[certificate.arithmetic]} only")
    region = fields(table["region"], ("low", "high", "P", "rho"), "claim region")
    n = len(certificate.plant.state)
    if n > MAX_DIMENSION:
        raise Rejected(f"{n} states, at most {MAX_DIMENSION} are accepted")
    low, high = floats(region["low"], n, "region low"), floats(region["high"], n, "region high")
    if not isinstance(region["P"], list) or len(region["P"]) != n:
        raise Rejected(f"P must have {n} rows")
    P = np.stack([floats(row, n, "P") for row in region["P"]])
    rho = float(floats([region["rho"]], 1, "rho")[0])
    kappa = number(table["decrease_rate"], "decrease_rate")
    sizes = np.abs(np.concatenate([low, high, P[P != 0], [rho]]))
    if not (rho > 0 and (low < 0).all() and (high > 0).all() and 0 < kappa < 1 and (sizes > 2.0**-200).all() and (sizes < 2.0**200).all()):
        raise Rejected("needs rho > 0, low < 0 < high, 0 < decrease_rate < 1, and magnitudes between 2^-200 and 2^200")
    if not (P == P.T).all() or not _positive_definite(_rational(P)):
        raise Rejected("P is not symmetric positive definite")
    evidence = fields(certificate.evidence, ("tree", "origin") if exact else ("tree",), "evidence")
    ulp = table.get("activation_ulp")
    if ulp is not None and not (type(ulp) is int and 0 < ulp <= 1024):
        raise Rejected("activation_ulp must be null or an integer from 1 to 1024")
    loop = Loop(certificate.plant, certificate.policy, certificate.arithmetic, ulp)
    _check_policy_fits(loop)
    volume = number(table["volume"], "volume")
    if volume < 0:
        raise Rejected("the claimed volume is negative")
    return loop, Claim(low, high, P, rho, kappa, volume, {k: table[k] for k in extra_keys}), evidence


def _check_policy_fits(loop: Loop) -> None:
    sizes = {"observation": len(loop.plant.observation)}, {"action": len(loop.plant.action)}
    if (loop.policy.input_sizes, loop.policy.output_sizes) != sizes:
        raise Rejected(f"the policy maps {loop.policy.input_sizes} to {loop.policy.output_sizes}, the plant needs {sizes[0]} to {sizes[1]}")


# --- leaves -----------------------------------------------------------------------------------------------------------


def derive_leaves(text: object, low: Array, high: Array, n: int, batch: int = BATCH) -> Iterator[tuple[str, Array, Array]]:
    """Boxes of the split tree, in batches of one code. Symbols in preorder: axis 0..n-1 splits at the midpoint, n + i is leaf i."""
    symbols = _symbols(text)
    pending: dict[str, list[tuple[Array, Array]]] = {code: [] for code in LEAVES}
    stack = [(low, high)]
    for symbol in symbols:
        if not stack:
            raise Rejected("the split tree has symbols left over")
        a, b = stack.pop()
        if symbol >= n:
            if symbol - n >= len(LEAVES):
                raise Rejected(f"the split tree has an unknown symbol {symbol}")
            code = LEAVES[symbol - n]
            pending[code].append((a, b))
            if len(pending[code]) == (BATCH if code == "out" else batch):
                yield code, *_stacked(pending[code])
                pending[code] = []
            continue
        middle = midpoint(a[symbol], b[symbol])
        if not a[symbol] < middle < b[symbol]:
            raise Rejected("the split tree splits a box that is too thin")
        left, right = b.copy(), a.copy()
        left[symbol] = right[symbol] = middle
        stack += [(right, b), (a, left)]
    if stack:
        raise Rejected("the split tree ends too early")
    for code, cells in pending.items():
        if cells:
            yield code, *_stacked(cells)


def midpoint(low: Any, high: Any) -> Any:
    """Where a box is split (float64; both children share the value)."""
    return 0.5 * low + 0.5 * high


def _symbols(text: object) -> bytes:
    if not isinstance(text, str):
        raise Rejected("the split tree must be a base64 text")
    try:
        packed = base64.b64decode(text, validate=True)
        inflater = zlib.decompressobj()
        symbols = inflater.decompress(packed, MAX_NODES)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise Rejected(f"the split tree cannot be unpacked: {error}") from error
    if inflater.unconsumed_tail or inflater.unused_data or not inflater.eof:
        raise Rejected(f"the split tree is truncated, has bytes left over or more than {MAX_NODES} nodes")
    return symbols


def _stacked(cells: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.stack([c[0] for c in cells]), np.stack([c[1] for c in cells])


def is_out(claim: Claim, centre: Array, radius: Array) -> Array:
    """True where V > rho on the whole cell."""
    return np.asarray(level_range(claim.P, centre, radius)[0] > claim.rho)


def is_ok(claim: Claim, step: Step) -> Array:
    """True where y+ stays in B and V decreases by the factor 1 - kappa on the whole cell."""
    return step.inside(claim.low, claim.high) & (step.decrease(claim.P, keep_factor(claim.kappa)) >= 0)


def _check_leaves(code: str, loop: Loop, claim: Claim, low: Array, high: Array) -> None:
    centre, radius = centre_radius(low, high)
    try:
        with np.errstate(all="ignore"):
            holds = is_out(claim, centre, radius) if code == "out" else is_ok(claim, loop.step(centre, radius, low, high))
    except GraphError as error:
        raise Rejected(str(error)) from error
    if not holds.all():
        worst = int(np.argmin(holds))
        raise Rejected(f"leaf {code!r} with y in {low[worst].tolist()} .. {high[worst].tolist()} does not hold")


# --- the origin -------------------------------------------------------------------------------------------------------


def _origin(loop: Loop, claim: Claim, evidence: Mapping[str, Any], leaves: list[tuple[str, Array, Array]]) -> dict[str, Fraction]:
    """Close the hole. Returns the numbers proved on the way."""
    holes = [(low, high) for code, low, high in leaves if code == "hole"]
    if "local_rate" in claim.extra:
        rate = number(claim.extra["local_rate"], "local_rate")
        hole = check_contraction(loop, claim, evidence["origin"], rate)
        for low, high in holes:
            if not ((low >= -hole) & (high <= hole)).all():
                raise Rejected("a hole leaf reaches outside the hole box")
        return {"local_rate": rate}
    reached = float(floats([claim.extra["reached_level"]], 1, "reached_level")[0])
    ball = Fraction(float(floats([claim.extra["ball"]], 1, "ball")[0]))
    if not (0 < reached <= claim.rho and ball > 0):
        raise Rejected("needs 0 < reached_level <= rho and a positive ball")
    for low, high in holes:
        check_reached(loop, claim, reached, low, high)
    n, P = loop.dimension, _rational(claim.P)
    floor = Fraction(reached) / ball**2
    if not _positive_definite([[P[i][j] - (floor if i == j else 0) for j in range(n)] for i in range(n)]):
        raise Rejected("{V <= reached_level} is not inside the claimed ball")
    return {"ball": ball}


def check_reached(loop: Loop, claim: Claim, reached: float, low: Array, high: Array) -> None:
    """On these cells V(y) and V(y+) are at most ``reached`` and y+ is in B. Raises Rejected."""
    centre, radius = centre_radius(low, high)
    try:
        with np.errstate(all="ignore"):
            step = loop.step(centre, radius, low, high)
            top = np.maximum(level_range(claim.P, centre, radius)[1], step.highest(claim.P))
    except GraphError as error:
        raise Rejected(str(error)) from error
    if not (step.inside(claim.low, claim.high) & (top <= reached)).all():
        raise Rejected("a hole leaf leads above reached_level or out of the box")


def check_contraction(loop: Loop, claim: Claim, origin: object, rate: Fraction) -> Array:
    """E0 = {|L y|^2 <= c0}: fixed point at 0, contraction by (1 - rate) in |L y|^2, H in E0 in S. Returns H's half-widths."""
    table = fields(origin, ("domain", "hole", "L", "c0"), "origin")
    n = loop.dimension
    domain, hole = floats(table["domain"], n, "domain"), floats(table["hole"], n, "hole")
    if not isinstance(table["L"], list) or len(table["L"]) != n:
        raise Rejected(f"origin L must have {n} rows")
    rows = _rational(np.stack([floats(row, n, "L") for row in table["L"]]))
    c0 = Fraction(float(floats([table["c0"]], 1, "c0")[0]))
    if not (c0 > 0 and 0 < rate < 1 and (hole > 0).all() and (domain > 0).all() and (domain <= np.minimum(-claim.low, claim.high)).all()):
        raise Rejected("origin needs c0 > 0, 0 < local_rate < 1, hole > 0 and a domain inside the box")
    check_equilibrium(loop)
    slope, spread = _slopes_at_origin(loop, domain)
    saved, ctx.prec = ctx.prec, 192
    try:
        L = arb_mat([[_arb(v) for v in row] for row in rows])
        _check_contraction(L, slope, spread, rate)
        _check_inclusions(L, domain, hole, _arb(c0))
    finally:
        ctx.prec = saved
    scaled = [
        [sum((rows[k][i] * rows[k][j] for k in range(n)), Fraction(0)) * Fraction(claim.rho) / c0 for j in range(n)] for i in range(n)
    ]
    P = _rational(claim.P)
    if not _positive_definite([[scaled[i][j] - P[i][j] for j in range(n)] for i in range(n)]):
        raise Rejected("the contraction ellipsoid is not inside the sublevel set")
    return hole


def check_equilibrium(loop: Loop) -> None:
    """F(x*) = x* over the rationals. Raises Rejected."""
    plant = loop.plant
    try:
        observation = evaluate_exact(plant.observe, {"state": plant.equilibrium_state})["observation"]
        action = evaluate_exact(loop.policy, {"observation": observation})["action"]
        after = evaluate_exact(plant.dynamics, {"state": plant.equilibrium_state, "action": action})["next_state"]
    except Inexact as error:
        raise Rejected(f"the equilibrium cannot be evaluated exactly: {error}") from error
    if after != plant.equilibrium_state:
        raise Rejected("the closed loop does not map the equilibrium to itself exactly")


def _slopes_at_origin(loop: Loop, domain: Array) -> tuple[Array, Array]:
    """S_c, S_r (n, n) with F(y) in (S_c +- S_r) y for all |y| <= domain: slopes from the centre 0, where F(0) = 0."""
    try:
        with np.errstate(all="ignore"):
            step = loop.step(np.zeros((1, len(domain))), domain[None], -domain[None], domain[None])
    except GraphError as error:
        raise Rejected(str(error)) from error
    if not (np.isfinite(step.slope).all() and np.isfinite(step.slope_radius).all() and np.isfinite(step.value.magnitude).all()):
        raise Rejected("the closed loop is not finite around the equilibrium")
    return step.slope[0], step.slope_radius[0]


def _check_contraction(L: arb_mat, slope: Array, spread: Array, rate: Fraction) -> None:
    """|L S_c L^-1|_2 + | |L| S_r |L^-1| |_F <= sqrt(1 - rate)."""
    try:
        inverse = L.inv()
    except ZeroDivisionError as error:
        raise Rejected("L is not invertible") from error
    n = L.nrows()
    middle = L * _matrix(slope) * inverse
    size = [abs(v) for v in (_absolute(L) * _matrix(spread) * _absolute(inverse)).entries()]
    left = _arb(1 - rate).sqrt() - sum((v * v for v in size), arb(0)).sqrt()
    if not left > 0:
        raise Rejected("the loop is not proved a contraction around the equilibrium: slopes vary too much")
    gram = middle.transpose() * middle
    rest = [[(left * left if i == j else arb(0)) - gram[i, j] for j in range(n)] for i in range(n)]
    if not _positive_definite(rest):
        raise Rejected("the loop is not proved a contraction around the equilibrium")


def _check_inclusions(L: arb_mat, domain: Array, hole: Array, c0: arb) -> None:
    inverse = L.inv()
    n = L.nrows()
    for i in range(n):
        reach = c0 * sum((inverse[i, k] * inverse[i, k] for k in range(n)), arb(0))
        if not reach <= arb(float(domain[i])) ** 2:
            raise Rejected("the contraction ellipsoid is not inside its domain")
    corner = _absolute(L) * arb_mat([[arb(float(h))] for h in hole])
    if not sum((corner[i, 0] * corner[i, 0] for i in range(n)), arb(0)) <= c0:
        raise Rejected("the hole box is not inside the contraction ellipsoid")


# --- small exact linear algebra ---------------------------------------------------------------------------------------


def _arb(value: Fraction) -> arb:
    return arb(value.numerator) / arb(value.denominator)


def _matrix(values: Array) -> arb_mat:
    return arb_mat([[arb(float(v)) for v in row] for row in values])


def _absolute(matrix: arb_mat) -> arb_mat:
    return arb_mat([[abs(matrix[i, j]) for j in range(matrix.ncols())] for i in range(matrix.nrows())])


def _rational(matrix: Array) -> list[list[Fraction]]:
    return [[Fraction(float(v)) for v in row] for row in matrix]


def _positive_definite(matrix: list[list[Any]]) -> bool:
    """LDL^T with positive pivots, over rationals or balls (a ball that may be zero or NaN fails)."""
    return determinant(matrix) is not None


def determinant(matrix: list[list[Any]]) -> Any:
    """Product of the pivots of a symmetric matrix (1 without rows), or ``None`` unless all of them are surely positive."""
    rows, product, n = [list(row) for row in matrix], Fraction(1), len(matrix)
    for k in range(n):
        pivot = rows[k][k]
        if not pivot > 0:
            return None
        product = product * pivot if k else pivot  # a ball is not multiplied with a Fraction
        for i in range(k + 1, n):
            factor = rows[i][k] / pivot
            for j in range(k + 1, n):
                rows[i][j] = rows[i][j] - factor * rows[k][j]
    return product


# --- volume and sentence ----------------------------------------------------------------------------------------------


def volume_bound(claim: Claim, leaves: list[tuple[str, Array, Array]]) -> Fraction:
    """A lower bound of the volume of S: the ellipsoid's where it lies in the box, else that of leaves with V <= rho."""
    n, P = len(claim.low), _rational(claim.P)
    half = np.minimum(-claim.low, claim.high)
    minors = [determinant([[P[i][j] for j in range(n) if j != k] for i in range(n) if i != k]) for k in range(n)]
    full = determinant(P)
    if all(Fraction(claim.rho) * d <= full * Fraction(float(h)) ** 2 for d, h in zip(minors, half, strict=True)):
        volume = (arb.pi() * arb(claim.rho)) ** (arb(n) / 2) / (arb(n) / 2 + 1).gamma() / _arb(full).sqrt()
        return Fraction(float(iv.from_balls([volume]).low[0]))
    return _volume_of_cells(claim, [(low, high) for code, low, high in leaves if code != "out"])


def _volume_of_cells(claim: Claim, cells: list[tuple[Array, Array]]) -> Fraction:
    """Cells on which V <= rho, after splitting those that V = rho crosses until there are too many of them."""
    total = Fraction(0)
    for _ in range(VOLUME_ROUNDS):
        crossed, count = [], 0
        for low, high in cells:
            centre, radius = centre_radius(low, high)
            lowest, highest = level_range(claim.P, centre, radius)
            within = highest <= claim.rho
            total += _volume_of_boxes(claim.high - claim.low, high[within] - low[within])
            rest = (lowest <= claim.rho) & ~within
            count += int(rest.sum())
            if count <= VOLUME_CELLS:
                spread = radius * (2 * np.abs(centre @ claim.P) + radius @ np.abs(claim.P))  # how much V varies along each axis
                crossed += _halves(low[rest], high[rest], spread[rest])
        if not 0 < count <= VOLUME_CELLS:
            break
        cells = [(np.concatenate([low for low, _ in crossed]), np.concatenate([high for _, high in crossed]))]
    return total


def _halves(low: Array, high: Array, cost: Array) -> list[tuple[Array, Array]]:
    """Both halves of each cell, split along the axis of the greatest cost."""
    rows, axis = np.arange(len(low)), np.argmax(cost, axis=1)
    left_high, right_low = high.copy(), low.copy()
    left_high[rows, axis] = right_low[rows, axis] = midpoint(low[rows, axis], high[rows, axis])
    return [(low, left_high), (right_low, high)]


def _volume_of_boxes(whole: Array, sides: Array) -> Fraction:
    """A lower bound of the total volume of boxes. As shares of ``whole`` the sides are at most 1, so underflow stays absolute."""
    count, n = sides.shape
    exponents = np.frexp(whole)[1]
    shares = np.ldexp(sides, -exponents) * (1 - 4 * iv.UNIT)
    volume = float(np.prod(shares, axis=1).sum() * (1 - iv.gamma(count + 4 * n + 16))) - (n + 1) * count * 2.0**-1070
    return Fraction(max(volume, 0.0)) * Fraction(2) ** int(exponents.sum())


def _float_below(value: Fraction) -> float:
    return float(iv.from_fractions((value,)).low[0])


def _float_above(value: Fraction) -> float:
    return float(iv.from_fractions((value,)).high[0])


def _verdict(certificate: Certificate, loop: Loop, claim: Claim, proved: dict[str, Fraction]) -> Verdict:
    where = f"{{y: y'Py <= {claim.rho!r}}} within the claim's box, volume at least {shown(claim.volume, 'down')},"
    policy = "the policy's real-valued reading" if loop.arithmetic == "real" else "any IEEE float32 evaluation of the policy"
    text = f"every trajectory of the stated plant under {policy} that starts in {where} stays there and "
    if "local_rate" in claim.extra:
        text += f"converges to the equilibrium exponentially; V shrinks by the factor {shown(1 - claim.kappa, 'up')} each step away from it"
    else:
        text += f"reaches a set around the equilibrium that it never leaves again, inside the ball of radius {shown(proved['ball'], 'up')}"
    ulp = loop.activation_ulp
    assumptions = () if ulp is None else (f"float32 tanh and sigmoid are accurate to {ulp} units in the last place",)
    return verified(
        kind=KIND,
        property=certificate.claim["property"],
        claim=text,
        arithmetic=loop.arithmetic,
        subject=certificate.digests,
        assumptions=assumptions,
        numbers={"volume": _float_below(claim.volume), "rho": claim.rho, "decrease_rate": _float_below(claim.kappa)}
        | {name: (_float_above if name == "ball" else _float_below)(value) for name, value in proved.items()},
    )
