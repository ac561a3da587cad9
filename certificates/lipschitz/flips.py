"""The steepest affine piece of a piecewise linear graph on a domain, by local search: from a piece to a steeper one beside it.

All but one unit keep their sides. What the flip of the one does to the slopes is a matrix of rank one, so all flips of a piece
are judged at once. Rays from the middle of a piece find most of the pieces beside it; whether a flip that no ray has met has
an interior is asked of a linear program. Floats throughout: what comes of it is evaluated rigorously elsewhere.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.lipschitz.polytope import Polytope
from lipctrl.certificates.lipschitz.regions import Piece, PiecewiseLinear

MAX_FLIPS = 512  #: of one piece that are judged exactly: the steepest by their first-order effect
MAX_ENTRIES = 2_000_000  #: of the matrices for these
MAX_PROGRAMS = 6  #: linear programs from one piece, fewer where they find little
RAYS = 100  #: from one piece, beside those straight to the borders of steeper ones
CHORDS = 12  #: halved on the way to the middle of a piece
THIN = 1e-9  #: pieces without a ball of this size, relative to the domain, are left out
STEEPER = 1 + 1e-9  #: what counts as steeper
PATIENCE = 4  #: steps without a gain before the search ends


@dataclass(frozen=True)
class Summit:
    """A piece with its gain, the centre y (k,) of a ball inside, and the radius of that."""

    piece: Piece
    gain: float
    centre: Array
    margin: float


class FlipSearch:
    """Local search over the pieces of ``function`` in the box |y_i| <= 1, or in its part |y| <= 1 where ``ball``.

    The gain of a piece is the norm (``"l2"`` or ``"linf"``) of ``left * matrix * right``, for weights ``left`` (m,), ``right`` (k,).
    ``best`` is the steepest piece so far.
    """

    def __init__(self, function: PiecewiseLinear, ball: bool, norm: str, left: Array, right: Array, random: np.random.Generator) -> None:
        self.function, self.ball, self.norm, self.random = function, ball, norm, random
        self.left, self.right = left, right
        self.best: Summit | None = None
        self._flips = max(8, min(MAX_FLIPS, MAX_ENTRIES // (len(left) * len(right))))
        self._seen: set[bytes] = set()
        self._sought, self._gained = 0, 0  # pieces that no ray has met, and those of them that are there

    def climb(self, points: Array, deadline: float) -> int:
        """Search from each of the points (B, k), until the time (of ``time.monotonic``) is over. How many were in new pieces."""
        fresh = 0
        with np.errstate(all="ignore"):  # what is not finite is no piece
            for point in points:
                if time.monotonic() >= deadline:
                    break
                piece = self.function.at(point)
                if self._is_new(piece.sides):
                    fresh += 1
                    self._climb(self._entered(piece, point, np.zeros_like(point)), deadline)
        return fresh

    def scaled(self, piece: Piece) -> Array:
        """The matrix (m, k) whose norm is the gain."""
        matrix: Array = self.left[:, None] * piece.matrix * self.right
        return matrix

    def _climb(self, here: Summit | None, deadline: float) -> None:
        patience, top = PATIENCE, 0.0
        while here is not None and patience:
            patience = PATIENCE if here.gain > top * STEEPER else patience - 1
            top = max(top, here.gain)
            if self.best is None or here.gain > self.best.gain * STEEPER:
                self.best = here
            here = self._step(here, deadline)

    def _step(self, here: Summit, deadline: float) -> Summit | None:
        """The steepest new piece beside this one; None where there is none, or no time."""
        units = self._within_reach(here.piece)
        gains = self._gains(here.piece, units)
        steeper = gains > here.gain * STEEPER
        met = self._met(here, units, steeper)
        reached = np.asarray(np.isfinite(met).all(axis=1))
        share = (self._gained + MAX_PROGRAMS) / (self._sought + MAX_PROGRAMS)
        for turn, limit in ((steeper & reached, None), (steeper & ~reached, math.ceil(MAX_PROGRAMS * share)), (~steeper & reached, None)):
            for i in np.flatnonzero(turn)[np.argsort(-gains[turn])][:limit]:
                if time.monotonic() >= deadline:
                    return None
                sides = here.piece.sides.copy()
                sides[units[i]] ^= True
                if self._is_new(sides):
                    found = self._entered(self.function.choose(sides), met[i], 2 * met[i] - here.centre)
                    self._sought += not reached[i]
                    self._gained += found is not None and not reached[i]
                    if found is not None:
                        return found
        return None

    def _entered(self, piece: Piece, start: Array, towards: Array) -> Summit | None:
        """The middle of a piece, from a point on its border or inside and one in front of it; where it is not there (NaN: no point is
        known) from any point that is inside. None for a thin piece.
        """
        polytope = self._polytope(piece)
        chords = np.vstack([towards - start, self.random.standard_normal((CHORDS, len(start)))])
        found = polytope.centred(start, chords)
        if not found[1] > THIN:
            inner = polytope.inner()
            if inner is None:
                return None
            found = polytope.centred(inner, chords[1:])
        if not (found[1] > THIN and np.isfinite(matrix := self.scaled(piece)).all()):
            return None
        return Summit(piece, self._norm(matrix), *found)

    def _polytope(self, piece: Piece) -> Polytope:
        return Polytope.of(piece.signs[:, None] * piece.rows, piece.signs * piece.offsets, self.ball)

    def _is_new(self, sides: Array) -> bool:
        key = np.packbits(sides).tobytes()
        new = key not in self._seen
        self._seen.add(key)
        return new

    def _within_reach(self, piece: Piece) -> Array:
        """Units whose border meets the box, the most promising of them."""
        units = np.flatnonzero(np.abs(piece.offsets) < np.abs(piece.rows).sum(axis=1))
        if len(units) > self._flips:
            u, v = steepest_direction(self.scaled(piece), self.norm)
            estimates = ((u * self.left) @ piece.effects[:, units]) * (piece.rows[units] @ (v * self.right))
            units = np.sort(units[np.argsort(-estimates)[: self._flips]])
        return units

    def _met(self, here: Summit, units: Array, sought: Array) -> Array:
        """Points (units, k) where rays from the centre, some straight to the borders ``sought``, leave the piece; NaN where none does."""
        polytope = self._polytope(here.piece)
        near = Polytope(polytope.rows[units], polytope.offsets[units], self.ball)
        rays = np.vstack([-near.rows[sought], self.random.standard_normal((RAYS, near.rows.shape[1]))])
        first, times = near.hits(here.centre, rays)
        met = np.full(near.rows.shape, np.nan)
        hit = first >= 0
        met[first[hit]] = here.centre + times[hit, None] * rays[hit]
        return met

    def _gains(self, piece: Piece, units: Array) -> Array:
        """The gain that each of the units gives when it flips."""
        columns, rows = (self.left[:, None] * piece.effects[:, units]).T, piece.rows[units] * self.right
        with np.errstate(all="ignore"):
            flipped = self.scaled(piece) + columns[:, :, None] * rows[:, None, :]
            if self.norm == "linf":
                gains = np.abs(flipped).sum(axis=2).max(axis=1)
            else:
                wide = flipped.shape[1] <= flipped.shape[2]
                gram = flipped @ flipped.transpose(0, 2, 1) if wide else flipped.transpose(0, 2, 1) @ flipped
                gram[~np.isfinite(gram).all(axis=(1, 2))] = 0
                gains = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[:, -1], 0))
        return np.asarray(np.where(np.isfinite(gains), gains, 0.0))

    def _norm(self, matrix: Array) -> float:
        return float(np.linalg.norm(matrix, 2 if self.norm == "l2" else np.inf))


def steepest_direction(matrix: Array, norm: str) -> tuple[Array, Array]:
    """Vectors u (dual norm 1) and v (norm 1) with u^T matrix v the norm of the matrix."""
    if norm == "l2":
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        return left[:, 0], right[0]
    row = int(np.abs(matrix).sum(axis=1).argmax())
    return np.eye(len(matrix))[row], np.where(matrix[row] < 0, -1.0, 1.0)
