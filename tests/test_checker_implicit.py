"""Implicit layers in the checker: what is well-posed, and enclosures against exact solutions."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from flint import arb, fmpq, fmpq_mat
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker import definite, implicit, work
from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.balls import BallAlgebra, evaluate_balls
from lipctrl.certificates.checker.bundle import IMPLICIT_PRODUCTS, graph_cost, parse_certificate
from lipctrl.certificates.checker.definite import balls, exact
from lipctrl.certificates.checker.enclosure import SCALARS, EnclosureAlgebra, seeds
from lipctrl.certificates.checker.exact import Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import IMPLICIT_ACTIVATIONS, Graph, GraphError, Node, evaluate
from lipctrl.certificates.checker.implicit import FixedPoint, ImplicitLayer, margin, reach, require_well_posed
from lipctrl.certificates.checker.intervals import Array, Interval
from lipctrl.certificates.checker.local_slopes import Cells, local_slopes
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import counterexample
from lipctrl.certificates.checker.work import work_of_graph
from lipctrl.certificates.checker.writing import certificate_bytes

PHI = {"relu": lambda w: max(w, 0.0), "tanh": math.tanh, "sigmoid": lambda w: 0.5 + 0.5 * math.tanh(0.5 * w)}


def monotone(generator: np.random.Generator, n: int, least: float = 0.1) -> Array:
    """D with <u, u - D u> >= least |u|^2."""
    a, b = generator.standard_normal((2, n, n)) / math.sqrt(n)
    return np.asarray((1 - least) * np.eye(n) - a.T @ a + b - b.T)


def graph_of(weight: Any, activation: str = "relu", metric: Any = None) -> Graph:
    weight = np.array(weight, dtype=np.float64)
    scale = np.ones(len(weight)) if metric is None else np.array(metric, dtype=np.float64)
    nodes = (
        Node("input", (), {"name": "v", "size": len(weight)}),
        Node("implicit", (0,), {"weight": "D", "metric": "m", "activation": activation}),
    )
    return Graph(nodes, {"z": 1}, {"D": weight, "m": scale})


def rational(values: Array) -> fmpq_mat:
    rows = [[fmpq(*float(v).as_integer_ratio()) for v in row] for row in np.atleast_2d(values)]
    return fmpq_mat(rows)


def relu_solution(weight: Array, v: Array) -> list[Fraction]:
    """The exact z = relu(D z + v): a pattern from floats, then a linear solve over the rationals that is checked."""
    n = len(v)
    approximate, converged = FixedPoint(weight, "relu")(v)
    assert converged
    open_ = [bool(w > 0) for w in weight @ approximate + v]
    system = fmpq_mat([[fmpq(int(i == j)) - (rational(weight)[i, j] if open_[i] else 0) for j in range(n)] for i in range(n)])
    right = fmpq_mat([[rational(v)[0, i] if open_[i] else fmpq(0)] for i in range(n)])
    z = system.solve(right)
    w = rational(weight) * z + rational(v).transpose()
    assert all((w[i, 0] >= 0) == open_[i] or w[i, 0] == 0 for i in range(n))  # this is the solution
    return [Fraction(int(z[i, 0].p), int(z[i, 0].q)) for i in range(n)]


# --- well-posed, or not -----------------------------------------------------------------------------------------------


def test_margins_are_below_the_truth_and_near() -> None:
    assert margin(np.array([[-1.0]]), np.ones(1)) == pytest.approx(2, rel=1e-9)
    assert margin(np.array([[-1.0]]), np.ones(1)) < 2
    generator = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        metric = 10.0 ** generator.uniform(-3, 3, n)
        weight = monotone(generator, n) * np.sqrt(1 / metric)[:, None] * np.sqrt(metric)
        found = margin(weight, metric)
        root = np.sqrt(metric)
        scaled = np.eye(n) - root[:, None] * weight / root
        least = np.linalg.eigvalsh((scaled + scaled.T) / 2)[0]
        assert 0.1 - 1e-12 <= found <= least * (1 + 1e-12) and found >= least * (1 - 1e-6)


def test_a_margin_holds_over_the_rationals() -> None:
    generator = np.random.default_rng(1)
    for n in (2, 3, 4):
        metric, weight = 10.0 ** generator.uniform(-1, 1, n), monotone(generator, n) / 3
        kappa = fmpq(*margin(weight, metric).as_integer_ratio())
        assert kappa > 0
        d, m = rational(weight), rational(metric)
        form = fmpq_mat(
            [[(2 * (1 - kappa) * m[0, i] if i == j else 0) - m[0, i] * d[i, j] - m[0, j] * d[j, i] for j in range(n)] for i in range(n)]
        )
        for k in range(1, n + 1):  # leading minors
            assert fmpq_mat([[form[i, j] for j in range(k)] for i in range(k)]).det() > 0


@pytest.mark.parametrize("arithmetic", [exact, balls])
def test_the_form_of_a_margin(arithmetic: Any) -> None:
    form = implicit._form(arithmetic, np.array([[0.5, 2.0], [-3.0, 0.25]]), np.array([2.0, 4.0]), 0.25)
    values = form.value if arithmetic is exact else [[float(v) for v in row] for row in form]
    # 2 (1 - 1/4) L - L D - D^T L with L D = [[1, 4], [-12, 1]]
    assert np.array_equal(values, [[3 - 2, 8], [8, 6 - 2]])


@pytest.mark.parametrize(
    ("weight", "metric", "reason"),
    [
        ([[2.0]], [1.0], "not proved"),  # z = relu(2 z + x) has no solution for x > 0, and two for x < 0
        ([[2.0]], [-1.0], "not positive"),  # 2 lambda - 2 lambda D = 2 > 0: the trap
        ([[1.0]], [1.0], "not proved"),  # z = relu(z + x), on the edge
        ([[math.nextafter(1, 0)]], [-1.0], "not positive"),
        ([[0.5]], [0.0], "not positive"),
        ([[0.5, 0], [0, 0.5]], [1.0, 0.0], "not positive"),
        ([[0.5, 0], [0, 0.5]], [1.0, -1.0], "not positive"),
        ([[0.0, 2.0], [2.0, 0.0]], [1.0, 1.0], "not proved"),
        ([[0.0, 3.0], [0.0, 0.0]], [1.0, 1.0], "not proved"),  # well-posed, but another metric shows it
        ([[1e308]], [1.0], "not proved"),
        ([[1e308, 1e308], [-1e308, 0.0]], [1e-300, 1e300], "not proved"),
    ],
)
def test_what_is_not_shown_well_posed_is_refused(weight: Any, metric: Any, reason: str) -> None:
    with pytest.raises(GraphError, match=reason):
        margin(np.array(weight), np.array(metric))
    made = graph_of(weight, "relu", metric)
    with pytest.raises(GraphError, match=reason):
        require_well_posed(made)
    for evaluated in (lambda: evaluate_balls(made, {"v": [arb(0)] * len(weight)}), lambda: evaluate_exact(made, {"v": (0,) * len(weight)})):
        with pytest.raises(GraphError, match=reason):
            evaluated()


def test_numbers_that_are_not_finite_are_refused() -> None:
    for weight, metric in (([[math.nan]], [1.0]), ([[0.5]], [math.nan]), ([[0.5]], [math.inf]), ([[-math.inf]], [1.0])):
        with pytest.raises(GraphError):
            margin(np.array(weight), np.array(metric))


def test_another_metric_shows_it() -> None:
    triangle = np.array([[0.0, 0.0], [100.0, 0.0]])
    with pytest.raises(GraphError):
        margin(triangle, np.ones(2))
    assert margin(triangle, np.array([1.0, 1e-6])) > 0.9
    require_well_posed(graph_of(triangle, "tanh", [1.0, 1e-6]))


@pytest.mark.parametrize("factor", [1e-100, 1e-30, 1e30, 1e100])
def test_a_metric_has_no_unit(factor: float) -> None:
    assert margin(np.array([[0.5]]), np.array([factor])) == pytest.approx(0.5, rel=1e-6)


def test_the_edge_of_being_well_posed() -> None:
    assert 0 < margin(np.array([[1 - 2.0**-40]]), np.ones(1)) <= 2.0**-40
    with pytest.raises(GraphError):
        margin(np.array([[1 + 2.0**-52]]), np.ones(1))
    small = np.array([[1.0, 1e-9], [-1e-9, 1.0]])  # skew: <u, u - D u> = 0
    with pytest.raises(GraphError):
        margin(small, np.ones(2))


def test_ranges_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.array([[0.5, 1e-70], [-1e-70, 0.25]])  # beyond what is counted in float64: judged in balls
    assert margin(small, np.ones(2)) == pytest.approx(0.5, rel=1e-6)
    implicit._margin.cache_clear()
    monkeypatch.setattr(definite, "MAX_BALL_ORDER", 1)
    with pytest.raises(GraphError, match="well-posed: matrix of order 2, at most 1"):
        margin(small, np.ones(2))


def test_sizes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit, "MAX_UNITS", 2)
    assert margin(np.zeros((2, 2)), np.ones(2)) > 0.99
    with pytest.raises(GraphError, match="3 units, at most 2"):
        margin(np.zeros((3, 3)), np.ones(3))


def test_margins_below_the_least_are_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit, "LEAST_MARGIN", 0.75)
    assert margin(np.array([[0.125]]), np.ones(1)) > 0.8
    with pytest.raises(GraphError, match="not shown positive definite"):
        margin(np.array([[0.26]]), np.ones(1))


def test_estimates_that_are_too_large_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def only_half(weight: Array, metric: Array, kappa: float) -> bool:
        tried.append(kappa)
        return kappa < 0.4

    monkeypatch.setattr(implicit, "_is_margin", only_half)
    assert margin(np.array([[0.375]]), np.ones(1)) == 0.3125
    assert tried == [0.625 * share for share in (1 - 2.0**-40, 1 - 2.0**-24, 1 - 2.0**-10, 0.5)]


@pytest.mark.parametrize("kind", ["lipschitz-bound", "counterexample", "closed-loop-lyapunov-bab", "action-deviation", "anything"])
def test_no_file_about_a_graph_without_a_meaning_is_read(kind: str) -> None:
    for metric, reason in ((1.0, "not proved to be well-posed"), (-1.0, "not positive")):
        files = certificate_bytes(kind=kind, claim={}, policy=graph_of([[2.0]], "relu", [metric]), evidence={})
        with pytest.raises(Rejected, match=f"policy graph: .*{reason}"):
            parse_certificate(*files)
    parse_certificate(*certificate_bytes(kind=kind, claim={}, policy=graph_of([[-2.0]]), evidence={}))


def test_layers_inside_recentred_graphs_count() -> None:
    bad = graph_of([[2.0]])
    inner = Graph(bad.nodes, bad.outputs, bad.tensors, 1)
    tensors = {**bad.tensors, "o": np.zeros(1)}
    node = Node("recentre", (0,), {"graph": inner, "point": (Fraction(0),), "offset": "o"})
    with pytest.raises(GraphError):
        require_well_posed(Graph((bad.nodes[0], node), {"u": 1}, tensors))


def test_what_it_costs() -> None:
    made = graph_of(np.zeros((3, 3)))
    assert graph_cost(made) == (6, IMPLICIT_PRODUCTS * 9)
    cell, batch, floats = (a - b for a, b in zip(work_of_graph(made, 2), (60, 2000, 30), strict=True))
    assert (cell, batch, floats) == (60 + 3 * (500 + 3 * 64 + 27), 2600 + work.PER_IMPLICIT + 27, 30 + 54)


# --- solutions in floats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("factor", [1e-200, 1e-8, 1.0, 1e8, 1e200])
def test_one_unit(activation: str, factor: float) -> None:
    for d in (-3.0, -1.0, 0.0, 0.9):
        solver = FixedPoint(np.array([[d]]), activation)
        for v in (-2.0, -0.5, 0.0, 0.25, 3.0):
            z, converged = solver(np.array([v * factor]))
            assert converged
            assert z[0] == pytest.approx(PHI[activation](d * z[0] + v * factor), rel=1e-13, abs=1e-300)
            if activation == "relu":
                assert z[0] == pytest.approx(max(v * factor, 0) / (1 - d), rel=2e-13, abs=0)


def test_rows_are_solved_one_by_one() -> None:
    generator = np.random.default_rng(2)
    solver = FixedPoint(monotone(generator, 5), "tanh")
    v = generator.standard_normal((2, 3, 5)) * 10
    v[0, 1, 2] = math.nan
    v[1, 0, 0] = math.inf
    z, converged = solver(v)
    assert converged and z.shape == v.shape
    assert np.isnan(z[0, 1]).all() and np.isnan(z[1, 0]).all() and np.isfinite(np.delete(z.reshape(6, 5), [1, 3], 0)).all()
    assert np.abs(z[1, 2] - solver(v[1, 2])[0]).max() < 1e-13
    assert np.abs(np.tanh(z[1, 1] @ solver.weight.T + v[1, 1]) - z[1, 1]).max() < 1e-13


def test_layers_that_are_hard_to_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    weight = monotone(generator, 12, 1e-3) * 5 - 4 * np.eye(12)
    v = 100 * generator.standard_normal((20, 12))
    for activation in ("relu", "softplus"):
        z, converged = FixedPoint(weight, activation)(v)
        assert converged
        again = np.maximum(z @ weight.T + v, 0) if activation == "relu" else np.logaddexp(0, z @ weight.T + v)
        assert np.abs(again - z).max() < 1e-11
    monkeypatch.setattr(implicit, "TURNS", 0)
    assert not FixedPoint(weight * 100 - 99 * np.eye(12), "softplus")(v)[1]


def test_newton_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, v = np.array([[0.5, 1.0], [-1.0, 0.25]]), np.array([[1.0, 2.0]])
    solver = FixedPoint(weight, "relu")
    z = np.array([[5.0, 1.0]])  # both are open here and at the solution: one step is exact
    miss = np.maximum(z @ weight.T + v, 0) - z
    assert np.allclose(z + solver.newton(z, v, miss), np.linalg.solve(np.eye(2) - weight, v[0]))
    singular = FixedPoint(np.array([[1.0]]), "relu")
    assert np.isnan(singular.newton(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))).all()
    monkeypatch.setattr(implicit, "MAX_FLOATS", 1)  # one row at a time
    assert np.abs(solver(np.repeat(v, 3, 0))[0] - np.linalg.solve(np.eye(2) - weight, v[0])).max() < 1e-14


def test_rough_solutions_are_polished(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.array([[0.5, 1.0], [-1.0, 0.25]])
    solver, v = FixedPoint(weight, "relu"), np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 7.0], [1.0, 3.0], [2.0, 6.0]])
    truth = np.linalg.solve(np.eye(2) - weight, v.T).T
    assert (truth > 0.1).all()
    rough = truth + 0.01 * np.arange(10).reshape(5, 2)
    rough[3] = solver(v[3])[0]
    z, done = solver._polished(rough.copy(), v, 0)
    assert np.array_equal(z, rough) and done.tolist() == [False, False, False, True, False]
    monkeypatch.setattr(implicit, "MAX_FLOATS", 8)  # two rows at a time
    z, done = solver._polished(rough.copy(), v, 1)
    assert done.all() and np.abs(z - truth).max() < 1e-14 and np.array_equal(z[3], rough[3])
    stuck = FixedPoint(np.array([[-3.0]]), "relu")  # a Newton step from 0 is 0 where phi is flat, and the miss stays what it was
    z, done = stuck._polished(np.array([[-1.0]]), np.array([[-4.0]]), 1)
    assert z[0, 0] == 0 and done[0]


# --- enclosures -------------------------------------------------------------------------------------------------------


def test_reach_is_what_the_margin_leaves() -> None:
    assert reach(np.array([4.0]), 0.5, np.array([3.0]))[0] == pytest.approx(6, rel=1e-12)
    far = reach(np.array([1.0, 4.0]), 0.5, np.array([[3.0, 2.0], [0.0, 0.0]]))
    assert far[0] == pytest.approx([10, 5], rel=1e-12) and np.all(far[0] > [10, 5])
    assert np.all((far[1] > 0) & (far[1] < 1e-100))
    assert np.isnan(reach(np.ones(2), 1.0, np.array([math.nan, 1.0]))).all()
    assert reach(np.array([1e-20]), 1.0, np.array([1e-160]))[0] >= 1e-160  # squares underflow


def test_reach_is_rounded_up() -> None:
    generator = np.random.default_rng(4)
    for n in (1, 2, 3, 10, 40):
        for _ in range(40):
            metric, kappa, miss = 10.0 ** generator.uniform(-3, 3, n), generator.uniform(0.1, 2), generator.random(n)
            exact_square = sum(Fraction(m) * Fraction(e) ** 2 for m, e in zip(metric.tolist(), miss.tolist(), strict=True))
            for m, far in zip(metric.tolist(), reach(metric, kappa, miss).tolist(), strict=True):
                square = (Fraction(far) * Fraction(kappa)) ** 2 * Fraction(m)
                assert exact_square <= square <= exact_square * (1 + Fraction(1, 10**12))


def test_what_an_approximate_inverse_leaves() -> None:
    generator = np.random.default_rng(5)
    for scale in (1.0, 1e3, 1e8):
        skew = scale * generator.standard_normal((3, 3))
        weight, slopes = skew - skew.T + 0.5 * np.eye(3), generator.random((2, 3))
        inverse, off = ImplicitLayer(weight, np.ones(3), "tanh")._inverse(slopes)
        for b in range(2):
            passed = [[Fraction(int(i == j)) - Fraction(slopes[b, i]) * Fraction(weight[i, j]) for j in range(3)] for i in range(3)]
            for i in range(3):
                for j in range(3):
                    left = int(i == j) - sum(Fraction(inverse[b, i, k]) * passed[k][j] for k in range(3))
                    assert abs(left) <= Fraction(off[b, i, j])
        assert off.max() < 1e-12 * scale


def test_an_approximate_inverse_has_the_bound_it_says() -> None:
    inverse, off = ImplicitLayer(np.array([[0.5]]), np.ones(1), "tanh")._inverse(np.array([[0.5]]))
    counted = abs(1 - inverse[0, 0, 0] * 0.75) + iv.gamma(18) * (inverse[0, 0, 0] * 1.25)
    assert counted * (1 + 10 * iv.UNIT) <= off[0, 0, 0] <= counted * (1 + 26 * iv.UNIT)
    inverse, off = ImplicitLayer(np.zeros((2, 2)), np.ones(2), "tanh")._inverse(np.ones((1, 2)))
    assert np.array_equal(inverse[0], np.eye(2)) and off[0, 0, 1] == 2.0**-1000
    assert off[0, 0, 0] == pytest.approx(iv.gamma(20), rel=1e-12, abs=0)


def test_products_lose_what_their_bound_says() -> None:
    """Zero centres and rows that cancel leave the radius alone, which is the formula's and 16 roundings of reserve."""
    g, u = Fraction(iv.gamma(2 * 2 + 16)), Fraction(1, 2**53)
    at, box = iv.point(np.array([[3.0, 3.0]])), Interval(np.array([[2.0, 2.0]]), np.array([[4.0, 4.0]]))
    for x, expected in ((at, 6 * g), (box, 2 * (1 + 4 * g))):
        y = implicit._product(np.array([[[1.0, -1.0]]]), x)
        assert y.high[0, 0] == -y.low[0, 0]
        assert expected * (1 + 10 * u) <= Fraction(float(y.high[0, 0])) <= expected * (1 + 26 * u)
    row = np.eye(50)[:1]
    y = implicit._product(row[None], iv.point(row))
    assert y.high[0, 0] - 1 == pytest.approx(iv.gamma(116), rel=0.05) == 1 - y.low[0, 0]
    zero = implicit._product(np.zeros((1, 1, 3)), iv.point(np.zeros((1, 3))))
    assert 5 * 2.0**-1070 <= zero.high[0, 0] == -zero.low[0, 0] <= 6 * 2.0**-1070
    with np.errstate(all="ignore"):  # the sum is finite, a partial sum is not
        beyond = implicit._product(np.array([[[1e308, 1e308, -1.25e308]]]), iv.point(np.ones((1, 3))))
    assert not beyond.low[0, 0] > 0.75e308 and not beyond.high[0, 0] < 0.75e308


@pytest.mark.parametrize("activation", IMPLICIT_ACTIVATIONS)
def test_derivatives_of_activations(activation: str) -> None:
    solver, w = FixedPoint(np.zeros((1, 1)), activation), np.array([-30.0, -1.5, -0.25, 0.5, 2.0, 30.0])
    assert np.allclose(solver.derivative(w), (solver.phi(w + 1e-5) - solver.phi(w - 1e-5)) / 2e-5, atol=1e-9)
    assert np.allclose(solver.phi(w), [float(v.mid()) for v in getattr(BallAlgebra(), activation)([arb(x) for x in w])], rtol=1e-14)
    assert FixedPoint(np.zeros((1, 1)), "relu").derivative(np.zeros(1)) == 0


def test_where_a_loop_has_such_a_policy_derivatives_are_not_offered() -> None:
    with pytest.raises(Rejected, match="implicit layers"):
        counterexample._Derivatives(1).implicit(None, np.zeros((1, 1)), np.ones(1), "relu")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([1e-150, 1e-3, 1.0, 1e6, 1e150]), st.sampled_from([0.9, 0.1, 1e-4]))
def test_enclosures_hold_exact_solutions(seed: int, n: int, size: float, least: float) -> None:
    generator = np.random.default_rng(seed)
    metric = 10.0 ** generator.uniform(-2, 2, n)
    weight = monotone(generator, n, least) / np.sqrt(metric)[:, None] * np.sqrt(metric)
    v = size * generator.standard_normal(n)
    try:
        z = relu_solution(weight, v)
    except AssertionError:  # a unit on its kink within rounding: another pattern
        return
    found = evaluate_balls(graph_of(weight, "relu", metric), {"v": [arb(x) for x in v]})["z"]
    scale = max(map(abs, z), default=Fraction(0))
    for a, value in zip(found, z, strict=True):
        assert a.contains(arb(fmpq(value.numerator, value.denominator))) or a.overlaps(arb(fmpq(value.numerator, value.denominator)))
        assert float(a.rad()) <= 1e-30 * float(scale) + 1e-300
    layer = ImplicitLayer(weight, metric, "relu")
    tight = layer.enclose(iv.point(v[None]), *SCALARS["relu"])
    wide = layer.enclose(Interval(v[None] - size * 0.01, v[None] + size * 0.01), *SCALARS["relu"])
    for intervals in (tight, wide):
        assert all(Fraction(low) <= x <= Fraction(high) for low, x, high in zip(intervals.low[0], z, intervals.high[0], strict=True))
    assert (tight.high - tight.low).max() <= 1e-9 * float(scale) / least**2 + 1e-140


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from(IMPLICIT_ACTIVATIONS), st.sampled_from([1e-6, 1e-2, 0.3, 3.0]))
def test_boxes_slopes_and_balls_hold_what_is_inside(seed: int, n: int, activation: str, radius: float) -> None:
    generator = np.random.default_rng(seed)
    weight, centre = monotone(generator, n), generator.standard_normal(n)
    made = graph_of(weight, activation)
    points = np.clip(centre + radius * generator.uniform(-1, 1, (12, n)), centre - radius, centre + radius)
    truths = [[float(b.mid()) for b in evaluate_balls(made, {"v": [arb(x) for x in v]})["z"]] for v in (centre, *points)]
    box = Interval(centre[None] - radius, centre[None] + radius)
    found = evaluate(made, {"v": seeds(iv.point(centre[None]), box, 0, n)}, EnclosureAlgebra(np.full((n, 1, 1), radius * (1 + 1e-9))))["z"]
    cells = local_slopes(made, Cells(box.low, box.high, np.arange(n))).output
    in_balls = evaluate_balls(made, {"v": [arb(x, radius) for x in centre]})["z"]
    assert np.all((found.centre.low[0] - 1e-12 <= truths[0]) & (truths[0] <= found.centre.high[0] + 1e-12))
    for v, z in zip(points, truths[1:], strict=True):
        for value in (found.value, cells.value):
            assert np.all((value.low[0] - 1e-12 <= z) & (z <= value.high[0] + 1e-12))
        assert all(b.contains(arb(x)) or abs(float(b.mid()) - x) <= float(b.rad()) + 1e-12 for b, x in zip(in_balls, z, strict=True))
        moved = iv.point((v - centre)[:, None])
        slopes = found.slope.low[:, 0], found.slope.high[:, 0]
        reached = Interval(*slopes) * moved
        difference = np.array(z) - truths[0]
        assert np.all((reached.low.sum(0) - 1e-11 <= difference) & (difference <= reached.high.sum(0) + 1e-11))
    for (a, at_a), (b, at_b) in pairwise(zip(points, truths[1:], strict=True)):
        reached = Interval(cells.slope.low[:, 0], cells.slope.high[:, 0]) * iv.point((b - a)[:, None])
        difference = np.array(at_b) - at_a
        assert np.all((reached.low.sum(0) - 1e-11 <= difference) & (difference <= reached.high.sum(0) + 1e-11))


def test_a_box_where_no_unit_changes_is_linear() -> None:
    weight = np.array([[0.25, 1.0], [-1.0, 0.25]])
    made = graph_of(weight)
    cells = local_slopes(made, Cells(np.array([[2.9, 6.9]]), np.array([[3.1, 7.1]]), np.arange(2)))
    assert cells.nodes[1].low.tolist() == [[1, 1]]
    jacobian = np.linalg.inv(np.eye(2) - weight)
    assert np.allclose(cells.output.slope.low[:, 0].T, jacobian, atol=1e-12) and np.allclose(cells.output.slope.high[:, 0].T, jacobian)
    corners = np.array([[x, y] for x in (2.9, 3.1) for y in (6.9, 7.1)]) @ jacobian.T
    assert np.allclose(cells.output.value.low[0], corners.min(0)) and np.allclose(cells.output.value.high[0], corners.max(0))


def test_columns_hold_every_choice_of_slopes() -> None:
    generator = np.random.default_rng(5)
    layer = ImplicitLayer(monotone(generator, 4), np.ones(4), "tanh")
    for width in (0.0, 0.05, 0.5, 1.0):
        low = generator.uniform(0, 1 - width, (3, 4))
        entering = generator.standard_normal((2, 3, 4))
        found = layer.enclose_slopes(Interval(entering - 0.01, entering + 0.01), Interval(low, low + width))
        for _ in range(50):
            slopes, moved = low + width * generator.integers(0, 2, (3, 4)), entering + 0.01 * generator.integers(-1, 2, (2, 3, 4))
            for b in range(3):
                x = np.linalg.solve(np.eye(4) - slopes[b][:, None] * layer.weight, (slopes[b] * moved[:, b]).T).T
                assert np.all((found.low[:, b] - 1e-12 <= x) & (x <= found.high[:, b] + 1e-12))
        if width == 0:
            tight = layer.enclose_slopes(iv.point(entering), iv.point(low))
            assert (tight.high - tight.low).max() < 1e-12


def test_enclosures_say_nothing_where_nothing_is_known() -> None:
    layer = ImplicitLayer(np.array([[0.5, 0.1], [0.0, 0.5]]), np.ones(2), "relu")
    v = np.array([[1.0, math.nan], [1.0, 2.0], [math.inf, 0.0]])
    with np.errstate(all="ignore"):
        found = layer.enclose(iv.point(v), *SCALARS["relu"])
    assert np.isnan(found.low[[0, 2]]).all() and np.isfinite(found.low[1]).all()
    assert not evaluate_balls(graph_of(layer.weight), {"v": [arb.nan(), arb(1)]})["z"][0].is_finite()


def test_approximations_that_are_far_off_still_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing rests on the solver: only the width does."""
    made = graph_of([[0.5, 2.0], [-0.03, 0.1]], "tanh", [0.01, 1.0])
    layer = ImplicitLayer(made.tensors["D"], made.tensors["m"], "tanh")
    v = np.array([[0.7, -0.2]])
    good = layer.enclose(iv.point(v), *SCALARS["tanh"])
    truth = evaluate_balls(made, {"v": [arb(0.7), arb(-0.2)]})["z"]
    monkeypatch.setattr(FixedPoint, "__call__", lambda self, operand: (np.full_like(operand, 0.3), False))
    bad = layer.enclose(iv.point(v), *SCALARS["tanh"])
    assert np.all((bad.low <= good.low) & (good.high <= bad.high))
    monkeypatch.setattr(FixedPoint, "newton", lambda self, z, v, miss: np.full_like(z, 0.01))
    for a, b in zip(evaluate_balls(made, {"v": [arb(0.7), arb(-0.2)]})["z"], truth, strict=True):
        assert a.contains(b) and float(a.rad()) < 2


def test_exact_values_are_known_at_rest_alone() -> None:
    for activation in ("relu", "tanh"):
        made = graph_of([[0.5, 2.0], [-2.0, 0.25]], activation)
        assert evaluate_exact(made, {"v": (0, 0)})["z"] == (0, 0)
        with pytest.raises(Inexact, match="implicit"):
            evaluate_exact(made, {"v": (0, 1)})
    with pytest.raises(Inexact, match="implicit"):
        evaluate_exact(graph_of([[0.5]], "sigmoid"), {"v": (0,)})
