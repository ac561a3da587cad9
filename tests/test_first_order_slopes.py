"""Slopes to first order: what they claim about pairs of points, in ball arithmetic, and how fast they become exact."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import smooth
from flint import arb, arb_series, ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Sketch

from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.curved import Curved, Model, all_entries, curved_slopes
from lipctrl.certificates.checker.derivatives import higher_derivatives, is_curved, reciprocal
from lipctrl.certificates.checker.expansion import record
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.local_slopes import Cells, local_slopes

F = Fraction


pytestmark = pytest.mark.usefixtures("quiet")


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
    """The claims about one pair of points, in balls: refuted only where the balls are apart.

    Increments are means of A over the segment, along which d d is d d + h h / 3 in the mean, h half of the way.
    """
    c, dx = [], []
    k = len(x)
    for i in range(k):
        c.append((arb(float(low[i])) + arb(float(high[i]))) / 2)
        dx.append(arb(float(x[i])) - arb(float(y[i])))
    d = [(arb(float(x[i])) + arb(float(y[i]))) / 2 - c[i] for i in range(k)]
    away, half, twist = [arb(float(x[i])) - c[i] for i in range(k)], [v / 2 for v in dx], model.twist and all_entries(model.twist, k)
    for j in range(len(at)):
        moved, value, most = arb(0), spans(model.centre, row, j), arb(0)
        for i in range(k):
            entry, first = spans(model.linear, i, row, j), spans(model.linear, i, row, j)
            if model.bend is not None:
                for n in range(k):
                    entry += d[n] * spans(model.bend, n, i, row, j)
                    first += away[n] * spans(model.bend, n, i, row, j) / 2
            if twist is not None:
                for n, o in itertools.product(range(k), repeat=2):
                    entry += (d[n] * d[o] + half[n] * half[o] / 3) * spans(twist, n, o, i, row, j) / 2
                    first += away[n] * away[o] * spans(twist, n, o, i, row, j) / 6
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


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 7), st.sampled_from([1e-9, 1e-3, 0.03, 0.3, 3.0]), st.booleans())
@settings(max_examples=120)
def test_pairs_of_points_do_what_the_model_says(seed: int, inputs: int, steps: int, radius: float, cubic: bool) -> None:
    maker = Maker(seed)
    graph, random = maker.graph(inputs, steps), np.random.default_rng(seed)
    centre = random.standard_normal(inputs)
    low, high = centre - radius * random.random(inputs), centre + radius * random.random(inputs)
    high = np.where(random.random(inputs) < 0.2, low, high)
    free = np.flatnonzero(high > low)
    cells = Cells(low[None], high[None], free)
    found, plain = (record(graph, cells)[0] if cubic and len(free) else curved_slopes(graph, cells)).output, local_slopes(graph, cells)
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


def test_a_value_that_is_not_finite_is_no_statement() -> None:
    s = Sketch()
    x = s.input("x", 1)
    graph = s.graph(u=s("mul", s("exp", s("mul", x, s.constant(10**9))), s("tanh", x)))
    found = curved_slopes(graph, cells([-1], [1])).output
    assert not np.isfinite(found.slope.magnitude).any()
    undefined = s.graph(u=s("log", s("tanh", x)))
    assert np.isnan(curved_slopes(undefined, cells([-1], [1])).output.value.low).all()


def cells(low: Any, high: Any, **options: Any) -> Cells:
    low, high = np.array(low, float), np.array(high, float)
    return Cells(low[None], high[None], np.arange(len(low)), **options)


# --- derivatives -------------------------------------------------------------------------------------------------------------------

SERIES: dict[str, Any] = {
    **smooth.SERIES,
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "sqrt": lambda x: x.sqrt(),
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "tan": lambda x: x.tan(),
    "div": lambda x: 1 / x,
    **{f"power{n}": lambda x, n=n: x**n if n else 1 + 0 * x for n in (0, 1, 2, 3, 5)},
}
HALF_LINE = {"log", "sqrt", "div"}


@pytest.mark.parametrize("name", SERIES)
def test_higher_derivatives_on_points_and_intervals(name: str) -> None:
    node = Node("power", (0,), {"exponent": int(name[5:])}) if name.startswith("power") else Node(name, (0,))
    higher = reciprocal if name == "div" else higher_derivatives(node)
    assert higher is not None
    limit = 1.25 if name == "tan" else 6
    points = np.linspace(0.25 if name in HALF_LINE else -limit, limit, 97)
    exact = []
    for p in points:
        series = SERIES[name](arb_series([float(p), 1], prec=6))
        exact.append([float(factor * series[order].mid()) for factor, order in ((2, 2), (6, 3), (24, 4))])
    values = np.array(exact)
    for k, found in enumerate(higher(Interval(points, points))):
        slack = 1e-12 * (1 + np.abs(values[:, k]))
        assert (np.abs(found.low - values[:, k]) <= slack).all() and (np.abs(found.high - values[:, k]) <= slack).all()
    for width in (1, 4, 24):
        for k, found in enumerate(higher(Interval(points[:-width], points[width:]))):
            inside = np.lib.stride_tricks.sliding_window_view(values[:, k], width + 1)
            slack = 1e-13 * (1 + np.abs(inside).max(1))
            assert (found.low <= inside.min(1) + slack).all() and (found.high >= inside.max(1) - slack).all()


def test_ranges_of_derivatives_are_tight_on_small_intervals() -> None:
    at = np.array([-1.5, -0.25, 0.5, 2.0])
    for name in "tanh sigmoid softplus erf gelu silu".split():
        higher = higher_derivatives(Node(name, (0,)))
        assert higher is not None
        for width in (1e-2, 1e-4):
            for found, most in zip(higher(Interval(at, at + width)), (40, 40, 150), strict=True):
                assert (found.high - found.low < most * width).all()
    everywhere = Interval(np.array([-9.0]), np.array([9.0]))
    for name, most in (("tanh", 2), ("sigmoid", 0.25), ("softplus", 0.25)):  # what both factors allow
        higher = higher_derivatives(Node(name, (0,)))
        assert higher is not None and 0.99 * most < higher(everywhere)[0].magnitude[0] < most * (1 + 1e-12)
    assert higher_derivatives(Node("relu", (0,))) is None and higher_derivatives(Node("mul", (0, 1))) is None


def test_which_graphs_are_curved() -> None:
    s = Sketch()
    x, c = s.input("x", 2), s.constant(2)
    straight = s("relu", s("div", s("mul", x, c), c))
    assert not is_curved(s.graph(u=straight))
    constant = Sketch()
    assert not is_curved(constant.graph(u=constant("add", constant.input("x", 1), constant("tanh", constant.constant(1)))))
    for op, operands in (("tanh", [x]), ("mul", [x, straight]), ("div", [c, x]), ("power", [x])):
        t = Sketch()
        t.nodes = list(s.nodes)
        assert is_curved(t.graph(u=t(op, *operands, **({"exponent": 2} if op == "power" else {}))))
    inner = Graph((Node("input", (), {"name": "y", "size": 2}), Node("tanh", (0,))), {"v": 1}, {}, 1)
    t = Sketch()
    t.tensors["offset"] = np.zeros(2)
    u = t("recentre", t.input("x", 2), graph=inner, point=(F(0), F(0)), offset="offset")
    assert is_curved(t.graph(u=u))


def test_graphs_with_implicit_layers_are_not_curved() -> None:
    tensors = {"D": np.array([[0.25]]), "metric": np.ones(1), "offset": np.zeros(1)}
    attributes = {"weight": "D", "metric": "metric", "activation": "tanh"}
    s = Sketch()
    s.tensors.update(tensors)
    assert not is_curved(s.graph(u=s("tanh", s("implicit", s("tanh", s.input("x", 1)), **attributes))))
    inner = Graph(
        (Node("input", (), {"name": "y", "size": 1}), Node("tanh", (0,)), Node("implicit", (1,), attributes)), {"v": 2}, tensors, 1
    )
    t = Sketch()
    t.tensors.update(tensors)
    assert not is_curved(t.graph(u=t("tanh", t("recentre", t.input("x", 1), graph=inner, point=(F(0),), offset="offset"))))


# --- how tight ---------------------------------------------------------------------------------------------------------------------


def smooth_network(op: str, sizes: tuple[int, ...], seed: int = 0) -> Graph:
    random, s = np.random.default_rng(seed), Sketch()
    x = s.input("x", sizes[0])
    for k in range(len(sizes) - 1):
        x = s(op, x) if k else x
        x = s.affine(
            x, random.standard_normal((sizes[k + 1], sizes[k])) * np.sqrt(2 / sizes[k]), 0.1 * random.standard_normal(sizes[k + 1])
        )
    return s.graph(u=x)


@pytest.mark.parametrize("op", ["tanh", "sigmoid", "softplus", "gelu", "silu", "sin"])
def test_errors_are_of_second_order_and_value_errors_of_third(op: str) -> None:
    graph, centre, plays, errors, widths = smooth_network(op, (3, 16, 16, 2)), np.array([0.3, -0.2, 0.1]), [], [], []
    for radius in (1e-2, 1e-3):
        found = curved_slopes(graph, cells(centre - radius, centre + radius)).output
        assert isinstance(found, Curved) and found.model is not None
        plays.append(found.model.play.max())
        errors.append(found.model.error.max())
        widths.append((found.slope.high - found.slope.low).max())
    assert plays[0] / plays[1] > 80 and errors[0] / errors[1] > 600
    assert 5 < widths[0] / widths[1] < 30  # the linear part stays


def test_far_narrower_than_interval_slopes() -> None:
    graph, centre = smooth_network("tanh", (3, 64, 64, 1)), np.array([0.3, -0.2, 0.1])
    box = cells(centre - 1e-3, centre + 1e-3)
    first, plain = curved_slopes(graph, box).output.slope, local_slopes(graph, box).output.slope
    assert ((first.high - first.low) < 0.2 * (plain.high - plain.low)).all()


def test_products_are_exact_to_first_order() -> None:
    s = Sketch()
    x = s.input("x", 2)
    product = s("mul", s("select", x, indices=(0,)), s("select", x, indices=(1,)))  # its slopes are the means of both factors
    found = curved_slopes(s.graph(u=product), cells([-1, 1], [3, 5])).output
    assert isinstance(found, Curved) and found.model is not None
    model = found.model
    assert model.play.max() < 1e-12 and model.error.max() < 1e-12 and model.bend is not None
    assert np.allclose(model.bend.low[:, :, 0, 0], [[0, 1], [1, 0]]) and np.allclose(model.linear.high[:, 0, 0], [3, 1])
    assert np.allclose(model.swings[1][:, 0, 0], [2, 2]) and np.allclose(model.sizes[1], 4)


def test_a_signal_of_length_one_may_be_repeated_before_an_affine_node() -> None:
    for op in ("add", "sub", "mul"):
        s = Sketch()
        x = s("tanh", s.input("x", 1))
        graph = s.graph(u=s.affine(s(op, s.constant(1, 5), x), [[1, 2]], [0]))
        expected = {"add": (11, 3), "sub": (11, -3), "mul": (0, 11)}[op]
        for found in (local_slopes(graph, cells([-1e-6], [1e-6])).output, curved_slopes(graph, cells([-1e-6], [1e-6])).output):
            assert abs(found.value.low[0, 0] - expected[0]) < 1e-4 and abs(found.slope.high[0, 0, 0] - expected[1]) < 1e-4


def test_nothing_varies() -> None:
    graph = smooth_network("tanh", (2, 4, 1))
    found = curved_slopes(graph, Cells(np.ones((1, 2)), np.ones((1, 2)), np.arange(0)))
    assert found.output.slope is None and found.spread is None
