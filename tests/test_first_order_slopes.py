"""Slopes to first order: what they claim about pairs of points, in ball arithmetic, and how fast they become exact."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb, arb_series, ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Sketch

from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.curved import Curved, Model, curved_slopes
from lipctrl.certificates.checker.derivatives import higher_derivatives, is_curved, reciprocal
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.local_slopes import Cells, local_slopes

F = Fraction


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with np.errstate(all="ignore"):
        yield


# --- random graphs ---------------------------------------------------------------------------------------------------------------

EVERYWHERE = "tanh sigmoid softplus erf gelu silu sin cos relu abs neg".split()
POSITIVE = "log sqrt".split()


class Maker:
    """Random graphs of one input, whose operations are defined everywhere."""

    def __init__(self, seed: int) -> None:
        self.random, self.sketch = np.random.default_rng(seed), Sketch()

    def weight(self, rows: int, columns: int) -> Any:
        return self.random.standard_normal((rows, columns)) / np.sqrt(columns)

    def graph(self, inputs: int, steps: int, nested: bool = True) -> Graph:
        s, r = self.sketch, self.random
        x = s.input("x", inputs)
        signals = [s.affine(x, self.weight(3, inputs), r.standard_normal(3))]  # all of length 3
        for _ in range(steps):
            signals.append(self.step(signals, inputs, nested))
        last = s("concatenate", signals[-1], s("select", signals[-2], indices=(2, 0)), s.constant(1))
        return s.graph(u=s.affine(last, self.weight(2, 6)))

    def step(self, signals: list[int], inputs: int, nested: bool) -> int:
        s, r = self.sketch, self.random
        a, b = (signals[-1 - int(r.integers(min(2, len(signals))))] for _ in range(2))
        kind = int(r.integers(12))
        if kind < 4:
            return s.affine(s(str(r.choice(EVERYWHERE)), a), self.weight(3, 3), r.standard_normal(3))
        if kind == 4:
            return s(str(r.choice(POSITIVE)), s("add", s("softplus", a), s.constant(F(1, 4))))
        if kind == 5:
            return s("tan", s("tanh", a)) if r.random() < 0.5 else s("exp", s("tanh", a))
        if kind == 6:
            return s("mul", s("tanh", a), b)
        if kind == 7:
            return s("div", a, s("add", s("power", b, exponent=2), s.constant(1)))
        if kind == 8:
            return s("power", s("sin", a), exponent=int(r.integers(5)))
        if kind == 9:
            return s(str(r.choice(["min", "max", "add", "sub"])), a, b)
        if kind == 10:
            part = s("select", a, indices=(int(r.integers(3)),))  # repeated
            return s(str(r.choice(["add", "mul", "sub"])), part, s.constant(F(1, 3), 2, -1))
        return self.recentred(a) if nested else s("leaky_relu", a, slope=F(1, 8))

    def recentred(self, a: int) -> int:
        inner = Maker(int(self.random.integers(1 << 30)))
        i = inner.sketch.input("y", 3)
        u = inner.sketch("mul", inner.sketch("tanh", i), inner.sketch("sigmoid", i))
        graph = Graph(tuple(inner.sketch.nodes), {"v": u}, {}, 1)
        self.sketch.tensors["offset"] = np.zeros(3)
        return self.sketch("recentre", a, graph=graph, point=(F(1, 3), F(0), F(-2)), offset="offset")


def balls(values: Any) -> list[arb]:
    return [arb(float(v)) for v in values]


def spans(x: Interval, *index: int) -> arb:
    low, high = arb(float(x.low[index])), arb(float(x.high[index]))
    return low.union(high)


def requires(model: Model, low: Any, high: Any, x: Any, y: Any, at: list[arb], there: list[arb], row: int = 0) -> None:
    """The claims about one pair of points, in balls: refuted only where the balls are apart."""
    c, dx = [], []
    k = len(x)
    for i in range(k):
        c.append((arb(float(low[i])) + arb(float(high[i]))) / 2)
        dx.append(arb(float(x[i])) - arb(float(y[i])))
    d = [(arb(float(x[i])) + arb(float(y[i]))) / 2 - c[i] for i in range(k)]
    away = [arb(float(x[i])) - c[i] for i in range(k)]
    for j in range(len(at)):
        moved, value, most = arb(0), spans(model.centre, row, j), arb(0)
        for i in range(k):
            entry, first = spans(model.linear, i, row, j), spans(model.linear, i, row, j)
            if model.bend is not None:
                for n in range(k):
                    entry += d[n] * spans(model.bend, n, i, row, j)
                    first += away[n] * spans(model.bend, n, i, row, j) / 2
            moved += entry * dx[i]
            value += first * away[i]
            most += arb(float(model.play[i, row, j])) * abs(dx[i])
        assert not abs(at[j] - there[j] - moved) > most, (j, at[j] - there[j] - moved, most)
        assert not abs(at[j] - value) > arb(float(model.error[row, j])), (j, at[j] - value, model.error[row, j])


def pairs(random: Any, low: Any, high: Any, count: int) -> Any:
    for i in range(count):
        x, y = random.uniform(low, high), random.uniform(low, high)
        if i % 3 == 0:  # corners
            x, y = (np.where(random.random(len(low)) < 0.5, low, high) for _ in range(2))
        if i % 5 == 4:
            y = np.clip(x + 1e-3 * random.standard_normal(len(low)) * (high - low), low, high)
        yield x, y


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 7), st.sampled_from([1e-9, 1e-3, 0.03, 0.3, 3.0]))
@settings(max_examples=60)
def test_pairs_of_points_do_what_the_model_says(seed: int, inputs: int, steps: int, radius: float) -> None:
    maker = Maker(seed)
    graph, random = maker.graph(inputs, steps), np.random.default_rng(seed)
    centre = random.standard_normal(inputs)
    low, high = centre - radius * random.random(inputs), centre + radius * random.random(inputs)
    high = np.where(random.random(inputs) < 0.2, low, high)
    free = np.flatnonzero(high > low)
    cells = Cells(low[None], high[None], free)
    found, plain = curved_slopes(graph, cells).output, local_slopes(graph, cells)
    slack = 1e-12 * (1 + plain.output.value.magnitude)
    assert (found.value.low >= plain.output.value.low - slack).all() and (found.value.high <= plain.output.value.high + slack).all()
    if not len(free) or found.slope is None:
        return
    assert isinstance(found, Curved) and found.model is not None
    with ctx.workprec(200):
        for x, y in pairs(random, low, high, 6):
            at, there = (evaluate_balls(graph, {"x": balls(p)}, 200)["u"] for p in (x, y))
            if all(v.is_finite() for v in at + there):
                requires(found.model, low[free], high[free], x[free], y[free], at, there)
                for j, v in enumerate(at):
                    assert not v < arb(float(found.value.low[0, j])) and not v > arb(float(found.value.high[0, j]))
