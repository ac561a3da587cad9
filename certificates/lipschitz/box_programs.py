"""Many linear programs over one polytope at once: what affine functions are at most on a box, or a ball, that half-spaces cut.

Only the multipliers of the half-spaces are sought, and any that are not negative bound the maximum from above. So a few steps of
a primal-dual interior-point method (Mehrotra 1992) in plain float64 do, in which all programs move together.
"""

from __future__ import annotations

import numpy as np

from lipctrl.certificates.checker.intervals import Array

STEPS = 24
SWEEPS = 40  #: over the multipliers of a ball
CENTRING = 0.15  #: of the mean complementarity, aimed at in each step
SHORT = 0.95  #: of the way to the border
LARGEST = 1e9  #: multiplier, beyond which the polytope is taken to be empty
ENOUGH = 3e-4  #: mean complementarity, of objectives with absolute sum 1


def multipliers(objectives: Array, normals: Array, offsets: Array) -> Array:
    """Multipliers (T, m), near those that bound c y over -1 <= y <= 1 and ``normals`` y <= ``offsets`` best, for each c.

    ``objectives`` (T, n), ``normals`` (m, n), ``offsets`` (m,). Where the polytope is empty they grow until they show it, or nearly.
    """
    size, lengths = np.abs(objectives).sum(1), np.abs(normals).sum(1)
    size, lengths = np.where(size > 0, size, 1.0), np.where(lengths > 0, lengths, 1.0)
    found = _Programs(objectives / size[:, None], normals / lengths[:, None], offsets / lengths).solved()
    return np.asarray(found * (size[:, None] / lengths))


def ball_multipliers(objectives: Array, normals: Array, offsets: Array) -> Array:
    """As :func:`multipliers` for |y| <= 1 in Euclidean norm, by the best value of one multiplier after the other.

    For a normal a of length 1, offset b and rest v = alpha a + w, b t + |v - t a| is least at t = alpha - |w| b / sqrt(1 - b^2).
    """
    lengths = np.linalg.norm(normals, axis=1)
    lengths = np.where(lengths > 0, lengths, 1.0)
    units, found, rest = normals / lengths[:, None], np.zeros((len(objectives), len(normals))), objectives.copy()
    for _ in range(SWEEPS):
        for i, (unit, b) in enumerate(zip(units, offsets / lengths, strict=True)):
            along = rest @ unit + found[:, i]
            across = np.sqrt(np.maximum((rest**2).sum(1) - (rest @ unit) ** 2, 0.0))
            best = along - across * b / np.sqrt(1 - b * b) if abs(b) < 1 else np.full(len(rest), 0.0 if b > 0 else LARGEST)
            best = np.clip(best, 0.0, LARGEST)
            rest -= np.outer(best - found[:, i], unit)
            found[:, i] = best
    return np.asarray(found / lengths)


class _Programs:
    """max c y: A y + s = b, y + p = 1, q - y = 1, with multipliers l, w, z of the three."""

    def __init__(self, objectives: Array, normals: Array, offsets: Array) -> None:
        (count, n), m = objectives.shape, len(normals)
        self.c, self.A, self.b = objectives, normals, offsets
        self.y = np.zeros((count, n))
        self.w, self.z = np.maximum(objectives, 0) + 0.1, np.maximum(-objectives, 0) + 0.1
        self.s, self.l = np.broadcast_to(np.maximum(offsets, 0.1), (count, m)).copy(), np.full((count, m), 0.1)

    def solved(self) -> Array:
        """The multipliers of A y <= b."""
        with np.errstate(all="ignore"):
            for _ in range(STEPS):
                before = self.l
                try:
                    gap = self._step()
                except np.linalg.LinAlgError:
                    return before
                if not bool((self.l < LARGEST).all()):
                    return before
                if gap < ENOUGH:
                    break
        return self.l

    def _step(self) -> float:
        """One step of all programs; the greatest mean complementarity before it."""
        p, q = 1 - self.y, 1 + self.y
        mean = ((self.s * self.l).sum(1) + (p * self.w).sum(1) + (q * self.z).sum(1)) / (self.s.shape[1] + 2 * self.y.shape[1])
        aim = CENTRING * mean[:, None]
        dual, primal = self.c - self.l @ self.A - self.w + self.z, self.b - self.y @ self.A.T - self.s
        inverse = 1 / (self.w / p + self.z / q)
        right = dual - (aim - p * self.w) / p + (aim - q * self.z) / q
        matrix = np.matmul(self.A * inverse[:, None], self.A.T)
        matrix[:, np.arange(len(self.b)), np.arange(len(self.b))] += self.s / self.l + 1e-14
        ahead = (inverse * right) @ self.A.T + (aim - self.s * self.l) / self.l - primal
        dl = np.linalg.solve(matrix, ahead[:, :, None])[:, :, 0]
        dy = inverse * (right - dl @ self.A)
        ds = (aim - self.s * self.l - self.s * dl) / self.l
        dw, dz = (aim - p * self.w + self.w * dy) / p, (aim - q * self.z - self.z * dy) / q
        length = _length((p, -dy), (q, dy), (self.s, ds))
        self.y, self.s = self.y + length * dy, self.s + length * ds
        length = _length((self.l, dl), (self.w, dw), (self.z, dz))
        self.l, self.w, self.z = self.l + length * dl, self.w + length * dw, self.z + length * dz
        return float(mean.max(initial=0.0))


def _length(*moves: tuple[Array, Array]) -> Array:
    """How far each program can go until one of its positive numbers reaches 0, a little less, and 1 at most: (T, 1)."""
    share = [np.where(step < 0, value / -step, np.inf).min(1, initial=np.inf) for value, step in moves]
    length: Array = np.minimum(1.0, SHORT * np.minimum.reduce(share))[:, None]
    return length
