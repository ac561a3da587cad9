"""Implicit layers: the z with z = phi(D z + v), phi acting coordinate by coordinate with slopes in [0, 1].

For positive numbers lambda, the metric, let <u, w> = sum lambda_i u_i w_i and |u|^2 = <u, u>. A layer is *well-posed* where some
margin kappa > 0 has <u, u - D u> >= kappa |u|^2 for all u: 2 (1 - kappa) Lambda - Lambda D - D^T Lambda is positive semidefinite.

**One solution.** Let r(y) = 2 phi(y) - y, whose slopes are in [-1, 1], so it does not increase |.|. With x = (2 I - D)^-1 u,
|u|^2 and |2 x - u|^2 are |x|^2 + |x - D x|^2 plus and minus 2 <x, x - D x>, so |2 x - u|^2 <= |u|^2 - 4 kappa |x|^2: the linear
map u -> 2 x - u is a strict contraction, and so is the step y -> 2 (2 I - D)^-1 (r(y) + v) - r(y) (Peaceman-Rachford). It has
exactly one fixed point, and y is one if and only if (2 I - D) phi(y) = r(y) + v, that is y = D phi(y) + v: z = phi(y).

**How far.** Let z = phi(D z + v), and s = phi(D y + u) for any vectors y and u. The increments d = z - s behind and
e = D d + D (s - y) + (v - u) before phi have d_i between 0 and e_i, so <d, d - e> <= 0, and
kappa |d|^2 <= <d, d - D d> <= <d, D (s - y) + (v - u)>: hence |z - s| <= |D (s - y) + (v - u)| / kappa. With :func:`reach` for what
that leaves to each coordinate, any approximation y gives an enclosure. Likewise u = S (D u + e) with S in [0, 1] has |u| <= |e| / kappa.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from flint import ctx

from lipctrl.certificates.checker.definite import BALL_PRECISION, OutOfRange, balls, exact, is_definite_in_balls, is_semidefinite
from lipctrl.certificates.checker.graph import Graph, GraphError
from lipctrl.certificates.checker.intervals import UNIT, Array, Interval, UnsafeArithmetic, affine, around, gamma, point, up

MAX_UNITS = 1024  #: of an implicit layer
LEAST_MARGIN = 2.0**-100  #: smaller ones are not looked for
SWEEPS = 4  #: of interval iteration after the first enclosure
SPLITTINGS = 40  #: steps of the splitting between two looks at the residual
TURNS = 8  #: looks, where the solution is only an approximation to begin a proof with
NEWTON_TURN, NEWTON_STEPS = 4, 3  #: looks without Newton steps, which are dear, and how many there are at each look then
MAX_FLOATS = 1 << 22  #: in the matrices of Newton steps at one time

_SHARES = (1 - 2.0**-40, 1 - 2.0**-24, 1 - 2.0**-10, 0.5)  #: of the estimated margin: what is tried to be proved


Scalar = Callable[[Interval], Interval]  #: what a scalar function does to intervals


def require_well_posed(graph: Graph) -> None:
    """Raises GraphError where an implicit layer of the graph, or of a graph inside it, is not proved to be well-posed."""
    for node in graph.nodes:
        if node.op == "implicit":
            margin(*(graph.tensors[node.attributes[key]] for key in ("weight", "metric")))
        elif node.op == "recentre":
            require_well_posed(node.attributes["graph"])


def margin(weight: Array, metric: Array) -> float:
    """A proved kappa > 0 of a layer with D = ``weight`` (n, n) and lambda = ``metric`` (n,). Raises GraphError where there is none."""
    return _margin(*(np.ascontiguousarray(values, dtype=np.float64).tobytes() for values in (weight, metric)))


@lru_cache(maxsize=8)
def _margin(weight_bytes: bytes, metric_bytes: bytes) -> float:
    metric = np.frombuffer(metric_bytes)
    weight = np.frombuffer(weight_bytes).reshape(len(metric), -1)
    if len(metric) > MAX_UNITS:
        raise GraphError(f"an implicit layer has {len(metric)} units, at most {MAX_UNITS} are accepted")
    if not bool(np.all((metric > 0) & np.isfinite(metric))):
        raise GraphError("the metric of an implicit layer has an entry that is not positive")
    try:
        with np.errstate(all="ignore"):
            root = np.sqrt(metric)
            scaled = root[:, None] * weight / root
            least = 1 - float(np.linalg.eigvalsh((scaled + scaled.T) / 2)[-1])
            for share in _SHARES:
                if least * share > LEAST_MARGIN and _is_margin(weight, metric, least * share):
                    return least * share
    except (np.linalg.LinAlgError, OutOfRange, UnsafeArithmetic) as error:
        raise GraphError(f"an implicit layer is not proved to be well-posed: {error}") from error
    raise GraphError("an implicit layer is not proved to be well-posed: 2 Lambda - Lambda D - D^T Lambda is not shown positive definite")


def _is_margin(weight: Array, metric: Array, kappa: float) -> bool:
    try:
        return is_semidefinite(_form(exact, weight, metric, kappa))
    except OutOfRange:
        with ctx.workprec(BALL_PRECISION):
            return is_definite_in_balls(_form(balls, weight, metric, kappa))


def _form(lift: Callable[[Array], Any], weight: Array, metric: Array, kappa: float) -> Any:
    """2 (1 - kappa) Lambda - Lambda D - D^T Lambda in an arithmetic, from exact floats."""
    double, rows = 2 * np.eye(len(metric)), lift(metric)[:, None]
    product = rows * lift(weight)
    return rows * (lift(double) - lift(kappa * double)) - product - product.T


def reach(metric: Array, kappa: float, miss: Array) -> Array:
    """For |e_i| <= ``miss`` (..., n): what |u| <= |e| / kappa leaves to each coordinate of u, rounded up."""
    root = np.sqrt(metric)
    slack = 1 + 8 * (len(root) + 8) * UNIT
    norm = np.sqrt(((root * miss) ** 2).sum(-1, keepdims=True)) * slack + 2.0**-500  # squares that underflow lose less
    reached: Array = up(norm / (kappa * root) * slack)
    return reached


class ImplicitLayer:
    """A layer that is proved well-posed, with enclosures of what it does. Raises GraphError where it is not proved."""

    def __init__(self, weight: Array, metric: Array, activation: str) -> None:
        self.weight, self.metric = weight.astype(np.float64), metric.astype(np.float64)
        self.margin, self.solver = margin(weight, metric), FixedPoint(weight, activation)

    def reach(self, miss: Array) -> Array:
        """:func:`reach` in this layer."""
        return reach(self.metric, self.margin, miss)

    def enclose(self, v: Interval, phi: Scalar, quotients: Scalar) -> Interval:
        """Intervals (B, n) that hold z for every v in (B, n); NaN where nothing is known.

        ``phi`` encloses the activation and ``quotients`` its difference quotients over an interval: around s = phi(D y + u) with
        y near the solution for the middle u, z - s = S (D (z - s) + c) with c = D (s - y) + v - u.
        """
        centre, radius = v.centre_radius()
        y = point(self.solver(centre)[0])
        before = affine(y, self.weight, None) + point(centre)
        s = phi(before)
        entering = affine(s - y, self.weight, None) + Interval(-radius, radius)
        far = self.reach(entering.magnitude)
        z = s + Interval(-far, far)
        for _ in range(SWEEPS):
            w = affine(z, self.weight, None) + v
            z = z.intersect(phi(w)).intersect(s + self.enclose_slopes(entering, quotients(w.hull(before))))
        return z

    def enclose_slopes(self, entering: Interval, slopes: Interval) -> Interval:
        """Intervals that hold the columns x = (I - S D)^-1 S c for all S within ``slopes`` (B, n) and c within ``entering`` (..., B, n).

        x = S (D x + c), and with R near the inverse of I - M D, M the middle slopes, x = R ((S - M) D x + S c) + (I - R (I - M D)) x.
        """
        far = self.reach(entering.magnitude)
        columns = Interval(-far, far)
        middle, half = slopes.centre_radius()
        inverse, off = self._inverse(middle)
        passed, bent = _product(inverse, slopes * entering), Interval(-half, half)
        for _ in range(SWEEPS):
            inner, size = affine(columns, self.weight, None), columns.magnitude
            other = passed + _product(inverse, bent * inner) + _product(off, Interval(-size, size))
            columns = columns.intersect(slopes * (inner + entering)).intersect(other)
        return columns

    def _inverse(self, slopes: Array) -> tuple[Array, Array]:
        """R near (I - M D)^-1 for the diagonals M (B, n), and a bound of the absolute values of I - R (I - M D), both (B, n, n)."""
        identity, n = np.eye(len(self.metric)), len(self.metric)
        system = identity - slopes[..., None] * self.weight
        try:
            inverse = np.linalg.inv(system)
        except np.linalg.LinAlgError:
            inverse = np.zeros_like(system)
        size = identity + np.abs(slopes)[..., None] * np.abs(self.weight)
        off: Array = np.abs(identity - inverse @ system) + gamma(2 * n + 16) * (np.abs(inverse) @ size)
        return inverse, off * (1 + 16 * UNIT) + 2.0**-1000


def _product(matrices: Array, x: Interval) -> Interval:
    """Enclose A x for A in (B, n, n) and x in (..., B, n); the errors are those of :func:`intervals.affine`."""
    n = matrices.shape[-1]
    centre, radius = x.centre_radius()
    value = (matrices @ centre[..., None])[..., 0]
    value = np.where(np.isfinite(value), value, np.nan)
    spread = (np.abs(matrices) @ (radius + gamma(2 * n + 16) * (np.abs(centre) + radius))[..., None])[..., 0]
    return around(value, (spread + (n + 2) * 2.0**-1070) * (1 + 16 * UNIT))


def _sigmoid(w: Array) -> Array:
    half: Array = 0.5 + 0.5 * np.tanh(0.5 * w)
    return half


_FLOATS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda w: np.maximum(w, 0.0), lambda w: (w > 0).astype(np.float64)),
    "sigmoid": (_sigmoid, lambda w: _sigmoid(w) * _sigmoid(-w)),
    "softplus": (lambda w: np.logaddexp(0.0, w), _sigmoid),
    "tanh": (np.tanh, lambda w: 1 - np.tanh(w) ** 2),
}  #: activations and their derivatives


class FixedPoint:
    """Approximate solutions in float64, of which nothing is proved: the splitting above, polished by Newton steps."""

    def __init__(self, weight: Array, activation: str) -> None:
        self.weight = weight.astype(np.float64)
        self.phi, self.derivative = _FLOATS[activation]
        self.resolvent = np.linalg.inv(2 * np.eye(len(weight)) - self.weight)

    def __call__(self, operand: Array) -> tuple[Array, bool]:
        """z (..., n) for v = ``operand`` (..., n), each row for itself, and whether all rows have converged to rounding errors.

        Rows that are not finite give NaN.
        """
        v = operand.reshape(-1, operand.shape[-1]).astype(np.float64)
        result, left = np.full_like(v, np.nan), np.flatnonzero(np.isfinite(v).all(-1))
        y = v[left]
        with np.errstate(all="ignore"):
            for turn in range(TURNS):
                if not left.size:
                    break
                y = self._split(y, v[left])
                result[left], done = self._polished(self.phi(y), v[left], NEWTON_STEPS if turn >= NEWTON_TURN else 0)
                left, y = left[~done], y[~done]
        return result.reshape(operand.shape), not left.size

    def _split(self, y: Array, v: Array) -> Array:
        for _ in range(SPLITTINGS):
            reflected = 2 * self.phi(y) - y
            y = 2 * ((reflected + v) @ self.resolvent.T) - reflected
        return y

    def _polished(self, z: Array, v: Array, steps: int) -> tuple[Array, Array]:
        """Better solutions from good ones, and which of them are as good as rounding allows."""
        step, done = self._miss(z, v)
        rows = max(1, MAX_FLOATS // v.shape[-1] ** 2)
        for _ in range(steps):
            for begin in range(0, len(z), rows):
                part = slice(begin, begin + rows)
                some = np.flatnonzero(~done[part]) + begin
                if some.size:
                    better = z[some] + self.newton(z[some], v[some], step[some])
                    miss, good = self._miss(better, v[some])
                    closer = np.abs(miss).max(-1) < np.abs(step[some]).max(-1)
                    z[some[closer]], step[some[closer]], done[some[closer]] = better[closer], miss[closer], good[closer]
        return z, done

    def _miss(self, z: Array, v: Array) -> tuple[Array, Array]:
        """phi(D z + v) - z, and whether it is a matter of rounding."""
        miss = self.phi(z @ self.weight.T + v) - z
        scale = (np.abs(v) + np.abs(z) @ np.abs(self.weight).T + np.abs(z)).max(-1)
        return miss, np.abs(miss).max(-1) <= 2.0**-49 * scale

    def newton(self, z: Array, v: Array, miss: Array) -> Array:
        """The Newton step (B, n) at z where phi(D z + v) - z = ``miss``; NaN where there is none."""
        slopes = self.derivative(z @ self.weight.T + v)
        try:
            step: Array = np.linalg.solve(np.eye(z.shape[-1]) - slopes[..., None] * self.weight, miss[..., None])[..., 0]
        except np.linalg.LinAlgError:
            return np.full_like(z, np.nan)
        return step
