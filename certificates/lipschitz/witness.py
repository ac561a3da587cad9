"""Lower bounds: a pair of points, found by a float search and evaluated rigorously."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from flint import arb, ctx

from lipctrl.certificates.checker.balls import PRECISION, ball, evaluate_balls
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Array, from_balls
from lipctrl.certificates.lipschitz.records import LowerBound
from lipctrl.core.numpy_evaluation import compile_numpy

Vector = tuple[Fraction, ...]

MAX_EVALUATIONS = 60_000  #: rows that the search evaluates in all
STEP = 2.0**-14  #: length of difference steps, relative to the spread of the points


def find_witness(graph: Graph, input_scale: Vector, output_scale: Vector, seed: int = 0, norm: str = "l2") -> LowerBound:
    """The steepest pair of points that a local search over difference quotients finds, as a rigorous lower bound.

    The scales weight the norm (``"l2"`` or ``"linf"``): |S_out (f(x) - f(y))| / |S_in (x - y)|. The search starts from Gaussian
    points of widths 1/100 to 100 in scaled coordinates and is repeatable under ``seed``.
    """
    generator = np.random.default_rng(seed)
    scale_in, scale_out = (np.array([float(s) for s in scale]) for scale in (input_scale, output_scale))
    ((name, size),) = graph.input_sizes.items()
    (output,) = graph.outputs
    run = compile_numpy(graph)

    def function(points: Array) -> Array:
        with np.errstate(all="ignore"):
            values: Array = run(**{name: points / scale_in})[output] * scale_out
        return values

    count = max(4, min(512, MAX_EVALUATIONS // (size + 1) // 8))
    widths = 10.0 ** generator.uniform(-2, 2, count)
    points = generator.standard_normal((count, size)) * widths[:, None]
    best_slope, best = -1.0, (points[0], points[0] + STEP)
    for round_ in range(8):
        slopes, pairs = _steepest(function, points, widths, norm)
        order = np.argsort(-slopes)
        if slopes[order[0]] > best_slope:
            best_slope, best = float(slopes[order[0]]), (points[order[0]], pairs[order[0]])
        leaders = order[: max(1, count // 16)]
        chosen = leaders[generator.integers(0, len(leaders), count)]
        points = points[chosen] + generator.standard_normal((count, size)) * widths[chosen, None] * 0.5**round_
        widths = widths[chosen]
    x, y = (tuple(Fraction(float(v)) / s for v, s in zip(point, input_scale, strict=True)) for point in best)
    return LowerBound(slope_between(graph, x, y, input_scale, output_scale, norm), x, y)


def _steepest(function: Callable[[Array], Array], points: Array, widths: Array, norm: str) -> tuple[Array, Array]:
    """For each point (count, n): its steepest direction by forward differences, as the slope to a second point, and that point."""
    count, size = points.shape
    step = STEP * widths
    here = function(points)
    shifted = function((points[:, None, :] + step[:, None, None] * np.eye(size)).reshape(count * size, size)).reshape(count, size, -1)
    with np.errstate(all="ignore"):
        jacobian = (shifted - here[:, None, :]) / step[:, None, None]  # transposed: (count, inputs, outputs)
    jacobian[~np.isfinite(jacobian).all(axis=(1, 2))] = 0  # overflow: any direction will do
    if norm == "l2":
        order, direction = 2.0, np.linalg.svd(jacobian, full_matrices=False)[0][:, :, 0]
    else:
        order, row = np.inf, np.abs(jacobian).sum(axis=1).argmax(axis=1)
        direction = np.where(np.take_along_axis(jacobian, row[:, None, None], axis=2)[:, :, 0] < 0, -1.0, 1.0)
    second = points + step[:, None] * direction
    with np.errstate(all="ignore"):
        slopes = np.linalg.norm(function(second) - here, order, axis=1) / np.linalg.norm(second - points, order, axis=1)
    return np.where(np.isfinite(slopes), slopes, -1.0), second


def slope_between(graph: Graph, x: Vector, y: Vector, input_scale: Vector, output_scale: Vector, norm: str = "l2") -> float:
    """|S_out (f(x) - f(y))| / |S_in (x - y)| in ball arithmetic, its lower end rounded down; 0 where nothing is known."""
    ((name, _),) = graph.input_sizes.items()
    (output,) = graph.outputs
    with ctx.workprec(PRECISION):
        values = [evaluate_balls(graph, {name: [ball(v) for v in point]})[output] for point in (x, y)]
        rises = [(a - b) * ball(s) for a, b, s in zip(*values, output_scale, strict=True)]
        runs = [(ball(a) - ball(b)) * ball(s) for a, b, s in zip(x, y, input_scale, strict=True)]
        low = float(from_balls([_length(rises, norm) / _length(runs, norm)]).low[0])
    return max(low, 0.0) if np.isfinite(low) else 0.0


def _length(values: list[arb], norm: str) -> arb:
    """The norm of a vector of balls."""
    if norm == "l2":
        return sum((value * value for value in values), arb(0)).nonnegative_part().sqrt()  # arb's powers are NaN around 0
    longest = abs(values[0])
    for value in values[1:]:
        longest = longest.max(abs(value))
    return longest
