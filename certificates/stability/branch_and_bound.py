"""Split a box until every cell is decided: the search for the tree that the checker will walk again.

Cells are judged with the checker's own code, thousands at a time, depth first. What is written down is the tree alone.
"""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lipctrl.certificates.checker.cells import Loop, Step, centre_radius
from lipctrl.certificates.checker.verifiers.closed_loop_lyapunov_bab import LEAVES, Claim, is_ok, is_out, midpoint
from lipctrl.core.progress import Progress

Array = np.ndarray
#: ``hole(low, high, step) -> bool per cell``: may this cell be left to the argument about the origin?
HoleTest = Callable[[Array, Array, Step], Array]

CHUNK = 2048
PROBED = 0.05  #: the centre of an open cell this thin, relative to the box, is tested alone: if it fails, so do all cells around it
SMALLEST = 1e-15  #: a cell this small, relative to the box, is given up


@dataclass(frozen=True)
class Outcome:
    """What the search found: ``tree`` where every cell was decided, else why not.

    ``blocking_level`` is the smallest V seen at a cell that cannot be decided (a smaller rho may succeed); ``share`` is the
    decided share of the box's volume; ``leaves`` counts leaves by code.
    """

    tree: str | None
    reason: str
    blocking_level: float
    share: float
    leaves: dict[str, int]


class _Tree:
    """Nodes of a binary tree by number; symbols as the checker reads them."""

    def __init__(self) -> None:
        self.symbol = np.zeros(1024, np.uint8)
        self.first_child = np.zeros(1024, np.int64)
        self.count = 1

    def add_children(self, parents: Array, axes: Array) -> Array:
        """Two children per parent, numbered consecutively. Returns the number of each first child."""
        first = self.count + 2 * np.arange(len(parents))
        self.count += 2 * len(parents)
        while self.count > len(self.symbol):
            self.symbol, self.first_child = np.resize(self.symbol, 2 * len(self.symbol)), np.resize(self.first_child, 2 * len(self.symbol))
        self.symbol[parents], self.first_child[parents] = axes, first
        return first

    def text(self, n: int) -> str:
        """Symbols in preorder, compressed."""
        out, stack = bytearray(), [0]
        symbol, first = self.symbol.tolist(), self.first_child.tolist()
        while stack:
            node = stack.pop()
            out.append(symbol[node])
            if symbol[node] < n:
                stack += [first[node] + 1, first[node]]
        return base64.b64encode(zlib.compress(bytes(out), 9)).decode()


def branch_and_bound(loop: Loop, claim: Claim, hole: HoleTest, *, deadline: float, max_cells: int, progress: Progress) -> Outcome:
    """Decide every cell of the claim's box as out, ok or hole. Stops at ``deadline`` (``time.monotonic()``) or ``max_cells``."""
    n, tree = loop.dimension, _Tree()
    total = float(np.prod(claim.high - claim.low))
    counts: dict[str, int] = dict.fromkeys(LEAVES, 0)
    decided, cells = 0.0, 0
    nodes, lows, highs = np.zeros(1, np.int64), claim.low[None], claim.high[None]
    while len(nodes):
        if time.monotonic() > deadline or cells > max_cells:
            return Outcome(None, f"budget spent after {cells} cells", np.inf, decided / total, counts)
        batch, nodes = nodes[-CHUNK:], nodes[:-CHUNK]
        low, lows = lows[-CHUNK:], lows[:-CHUNK]
        high, highs = highs[-CHUNK:], highs[:-CHUNK]
        cells += len(batch)
        code, axis, blocking = _judge(loop, claim, hole, low, high)
        if np.isfinite(blocking):
            return Outcome(None, f"a cell at V = {blocking:.6g} cannot be decided", blocking, decided / total, counts)
        for number, name in enumerate(LEAVES):
            chosen = code == number
            tree.symbol[batch[chosen]] = n + number
            counts[name] += int(chosen.sum())
            decided += float(np.prod(high[chosen] - low[chosen], axis=1).sum())
        split = code < 0
        if split.any():
            first = tree.add_children(batch[split], axis[split])
            rows, axes = np.arange(int(split.sum())), axis[split]
            a, b = low[split], high[split]
            middle = midpoint(a[rows, axes], b[rows, axes])
            left_high, right_low = b.copy(), a.copy()
            left_high[rows, axes] = right_low[rows, axes] = middle
            nodes = np.concatenate([nodes, first, first + 1])
            lows, highs = np.concatenate([lows, a, right_low]), np.concatenate([highs, left_high, b])
        progress(min(decided / total, 1.0), f"{cells} cells, {100 * decided / total:.2f} % of the box decided", None)
    return Outcome(tree.text(n), "", np.inf, 1.0, counts)


def _judge(loop: Loop, claim: Claim, hole: HoleTest, low: Array, high: Array) -> tuple[Array, Array, float]:
    """Leaf code (-1: split) and split axis of each cell, and the lowest level of a cell that is hopeless."""
    code, axis = np.full(len(low), -1), np.zeros(len(low), np.int64)
    centre, radius = centre_radius(low, high)
    with np.errstate(all="ignore"):
        out = is_out(claim, centre, radius)
        code[out] = LEAVES.index("out")
        rest = np.flatnonzero(~out)
        if not len(rest):
            return code, axis, np.inf
        step = loop.step(centre[rest], radius[rest], low[rest], high[rest])
        ok = is_ok(claim, step)
        code[rest[ok]] = LEAVES.index("ok")
        hole_cells = ~ok & hole(low[rest], high[rest], step)
        code[rest[hole_cells]] = LEAVES.index("hole")
        open_cells = ~ok & ~hole_cells
        axis[rest] = _split_axis(claim, step)
        blocking = _hopeless_level(loop, claim, hole, low[rest[open_cells]], high[rest[open_cells]])
    return code, axis, blocking


def _hopeless_level(loop: Loop, claim: Claim, hole: HoleTest, low: Array, high: Array) -> float:
    """The lowest V at the centre of a cell that no splitting can decide, infinite if there is none."""
    share = (high - low) / (claim.high - claim.low)
    thin = share.min(1) < PROBED
    low, high, share = low[thin], high[thin], share[thin]
    if not len(low):
        return np.inf
    y = midpoint(low, high)
    step = loop.step(y, np.zeros_like(y), y, y)
    failing = ~(is_ok(claim, step) | hole(y, y, step) | is_out(claim, y, np.zeros_like(y))) | (share.max(1) < SMALLEST)
    return float(np.einsum("bi,ij,bj->b", y, claim.P, y)[failing].min(initial=np.inf))


def _split_axis(claim: Claim, step: Step) -> Array:
    """The coordinate whose width costs most: in the decrease where that is open, else in V and in leaving the box."""
    P, n = claim.P, claim.P.shape[0]
    radius = step.radius[:, :n]
    slope, spread = np.abs(step.slope[:, :, :n]), step.slope_radius[:, :, :n]
    reach = np.abs(step.centre_value @ P) + (np.abs(P @ step.slope) @ step.radius[..., None])[..., 0]
    home = np.abs(step.centre @ P)
    pull = (slope.transpose(0, 2, 1) @ np.abs(step.centre_value @ P)[..., None])[..., 0]
    wobble = (spread.transpose(0, 2, 1) @ reach[..., None])[..., 0]
    bend = radius * (np.diagonal(P) + np.einsum("bij,ik,bkj->bj", slope, np.abs(P), slope))
    decrease = radius * (np.abs(home - pull) + wobble + 0.5 * bend)
    outside = (step.value.low < claim.low) | (step.value.high > claim.high)
    leaving = radius * (outside[:, :, None] * slope / (claim.high - claim.low)[None, :, None]).sum(1)
    level = radius * home

    def share(x: Array) -> Array:
        return np.asarray(x / np.maximum(x.sum(-1, keepdims=True), 1e-300))

    score = np.where(outside.any(-1, keepdims=True), 0.5 * share(level) + share(leaving), share(decrease) + 0.3 * share(level))
    score = np.where(np.isfinite(score), score, radius / (claim.high - claim.low))
    return np.asarray(np.argmax(score, axis=-1))
