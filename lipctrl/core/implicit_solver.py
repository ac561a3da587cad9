"""Implicit layers z = f(D z + v) in NumPy: solved by splitting, and where that is too slow, along a path of softer layers.

Splitting takes a number of steps that grows with the square of the skew part of D. What it leaves is solved by Newton's method on
w = (D - c I) f_m(w) + v. The pull c >= 0 adds to the margin of the layer. The activation f_m with the heat m is m f(w / m) for the softplus
and the ReLU, whose f is the softplus here, and f(w / m) for tanh and the sigmoid; its slopes are in [0, 1] where m >= 1, those of the
softplus for every m > 0. So every layer on the path is as well-posed as the first, I - (D - c I) S is regular for every diagonal S of
slopes, and in exact arithmetic Newton's method with a line search converges from anywhere. A hot layer is nearly linear. It is
cooled to c = 0 and m = 1, or m = 0 for a ReLU, until Newton steps in the layer itself end at a solution: a few dozen steps
altogether, some hundreds where the skew part is 100,000 times the margin. Far beyond that a layer may be left unsolved, an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lipctrl.certificates.checker.implicit import FixedPoint
from lipctrl.core.errors import InputError, LipctrlError

Array = Any  # a NumPy array

COOLING = 0.25  #: from one layer on the path to the next
PULL = 0.1  #: c in the first layer, times |D|
HOTTEST = 100.0  #: m in the first layer at least, times |D|
NEAR = 0.3  #: times m: how far a layer's equation may be missed where the next one begins
STEPS = 2000  #: on the path at most
HALVINGS = 40  #: of a step at most
DESCENT = 1e-4  #: of what a step promises, at least
POLISHING = 3  #: Newton steps in the layer itself, from each layer on the path
MAX_FLOATS = 1 << 22  #: in the matrices of Newton steps at one time

SINGULAR = "the weight D of an implicit layer makes 2 I - D singular, expected a well-posed layer"
UNSOLVED = "an implicit layer could not be solved: its iteration did not converge, expected a well-posed layer"

_SOFTPLUS = FixedPoint(np.zeros((1, 1)), "softplus")  #: for its functions


class ImplicitSolver:
    """The layer with D = ``weight`` (n, n), which is well-posed as in :mod:`lipctrl.certificates.checker.implicit`.

    Raises InputError where 2 I - D is singular: then no metric shows the layer to be well-posed.
    """

    def __init__(self, weight: Array, activation: str) -> None:
        try:
            self.layer = FixedPoint(weight, activation)
        except np.linalg.LinAlgError as error:
            raise InputError(SINGULAR) from error
        self.weight, self.homogeneous = self.layer.weight, activation in ("relu", "softplus")
        self.soft = _SOFTPLUS if activation == "relu" else self.layer
        self.coldest = float(activation != "relu")
        self.identity, self.size = np.eye(len(weight)), float(np.linalg.norm(self.weight))
        self.rounding = 2.0**-49 * max(1.0, len(weight) / 64)

    def __call__(self, operand: Array) -> Array:
        """z (..., n) in float64 for v = ``operand`` (..., n), each row for itself; rows that are not finite give NaN.

        Raises LipctrlError where a row is not solved to rounding errors.
        """
        z, converged = self.layer(operand)
        if not converged:
            v, rows = operand.reshape(-1, operand.shape[-1]).astype(np.float64), z.reshape(-1, z.shape[-1])
            left = np.flatnonzero(np.isfinite(v).all(-1) & ~self.judge(rows, v)[1])
            if left.size:
                rows[left] = self.follow(v[left])
        return z

    def follow(self, v: Array) -> Array:
        """z (B, n) for finite rows v (B, n), along the path."""
        unit = np.ones((len(v), 1))
        if self.soft is not self.layer:  # of a ReLU, which has no scale of its own
            unit = np.exp2(np.frexp(np.abs(v).max(-1, keepdims=True))[1].clip(-1000, 1000))
        v, batch = v / unit, max(1, MAX_FLOATS // v.shape[-1] ** 2)
        with np.errstate(all="ignore"):
            return unit * np.concatenate([self._follow(v[i : i + batch]) for i in range(0, len(v), batch)])

    def _follow(self, v: Array) -> Array:
        result, left, w = np.empty_like(v), np.arange(len(v)), v.copy()
        hottest = np.maximum(np.abs(v).max(-1, keepdims=True), max(1.0, self.coldest * HOTTEST * self.size))
        share = np.ones_like(hottest)  # of the first pull and heat
        for _ in range(STEPS):
            layer = _Layer(self, v[left], PULL * self.size * share, np.maximum(self.coldest, share * hottest[left]))
            w, is_near = layer.step(w)
            share[is_near] *= COOLING
            near = np.flatnonzero(is_near)
            z, done = self.polish(self.layer.phi(w[near]), v[left[near]])
            result[left[near[done]]] = z[done]
            left, w, share = (np.delete(rows, near[done], 0) for rows in (left, w, share))
            if not left.size:
                return result
        raise LipctrlError(UNSOLVED)

    def polish(self, z: Array, v: Array) -> tuple[Array, Array]:
        """Newton steps in the layer itself, and which rows (B, n) are solutions then."""
        miss, done = self.judge(z, v)
        for _ in range(POLISHING):
            if done.all():
                break
            z = np.where(done[:, None], z, z + self.layer.newton(z, v, miss))
            miss, done = self.judge(z, v)
        return z, done

    def judge(self, z: Array, v: Array) -> tuple[Array, Array]:
        """f(D z + v) - z for rows (B, n), and whether it is a matter of rounding."""
        with np.errstate(all="ignore"):
            miss = self.layer.phi(z @ self.weight.T + v) - z
            scale = (np.abs(v) + np.abs(z) @ np.abs(self.weight).T + np.abs(z)).max(-1)
            return miss, np.abs(miss).max(-1) <= self.rounding * scale


class _Layer:
    """One layer of the path for each row."""

    def __init__(self, solver: ImplicitSolver, v: Array, pull: Array, heat: Array) -> None:
        self.solver, self.v, self.pull, self.heat = solver, v, pull, heat
        self.factor = heat if solver.homogeneous else np.ones_like(heat)

    def miss(self, w: Array) -> Array:
        """w - (D - c I) f_m(w) - v."""
        z = self.factor * self.solver.soft.phi(w / self.heat)
        return w - z @ self.solver.weight.T + self.pull * z - self.v

    def step(self, w: Array) -> tuple[Array, Array]:
        """A Newton step, halved until the equation is missed by less, and which rows then nearly solve it."""
        solver, miss = self.solver, self.miss(w)
        slopes = self.factor / self.heat * solver.soft.derivative(w / self.heat)
        system = solver.identity - (solver.weight - self.pull[..., None] * solver.identity) * slopes[:, None, :]
        try:
            whole = np.linalg.solve(system, miss[..., None])[..., 0]
        except np.linalg.LinAlgError as error:
            raise LipctrlError(UNSOLVED) from error
        size, before = np.ones((len(w), 1)), _norm(miss)
        for _ in range(HALVINGS):
            after = _norm(self.miss(w - size * whole))
            farther = ~(after <= (1 - DESCENT * size[:, 0]) * before)
            if not farther.any():
                break
            size[farther] /= 2
        after = _norm(self.miss(w - size * whole))
        near = after <= NEAR * self.heat[:, 0]
        if not (near | (after < before)).all():
            raise LipctrlError(UNSOLVED)
        return w - size * whole, near


def _norm(rows: Array) -> Array:
    """Of each row, without overflow."""
    greatest = np.maximum(np.abs(rows).max(-1), 2.0**-1000)
    return np.linalg.norm(rows / greatest[:, None], axis=-1) * greatest
