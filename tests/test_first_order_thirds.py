"""Polynomials of degree 3: their arithmetic exactly, what they leave of cubic functions, and sampled Jacobians against the bounds."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Sketch
from test_first_order_expansions import errors_of, ones, problem_of
from test_first_order_slopes import cells, smooth_network

from lipctrl.certificates.checker import expansion
from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.curved import Curved, _pairs, _plus, _products, _threefold, all_entries, triples
from lipctrl.certificates.checker.expansion import order_of, record, remainder
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval

F = Fraction

pytestmark = pytest.mark.usefixtures("quiet")


# --- arithmetic ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_triples_are_all_that_are_sorted_and_any_three_have_a_place(count: int) -> None:
    ordered, place = triples(count)
    assert [tuple(row) for row in ordered] == [t for t in itertools.product(range(count), repeat=3) if t[0] <= t[1] <= t[2]]
    for indices in itertools.product(range(count), repeat=3):
        assert tuple(ordered[place[indices]]) == tuple(sorted(indices))
    low = np.arange(float(len(ordered)))[:, None]
    whole = all_entries(Interval(low, low + 0.5), count)
    assert whole.low.shape == (count, count, count, 1)
    assert (whole.low[..., 0] == place).all() and (whole.high[..., 0] == place + 0.5).all()


def tightly(found: Interval, index: Any, low: F, high: F) -> None:
    """Both ends, up to roundings of numbers below 100."""
    ends = F(float(found.low[index])), F(float(found.high[index]))
    assert ends[0] <= low <= ends[0] + F(1, 10**12) and high <= ends[1] <= high + F(1, 10**12)


def test_sums_of_three_products_in_exact_numbers() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((3, 1, 2)), random.standard_normal((3, 3, 1, 2))
    y = y + y.swapaxes(0, 1)
    found = _products(_threefold(iv.point(x), iv.point(y)))
    assert found is not None
    for row, (h, i, j) in enumerate(triples(3)[0]):
        for n in range(2):
            exact = sum(F(float(x[a, 0, n])) * F(float(y[b, c, 0, n])) for a, b, c in ((h, i, j), (i, h, j), (j, h, i)))
            tightly(found, (row, 0, n), exact, exact)
    assert _threefold(iv.point(x), None) == [] and _pairs(None, iv.point(x)) == [] and _products([]) is None


@pytest.mark.parametrize(
    ("a", "r", "b", "s"), [(2, 0.5, 3, 0.25), (-2, 0.5, 3, 0), (2, 0, -3, 0.25), (0, 0.5, 0, 0.25), (-2, 0.5, -3, 0.25)]
)
def test_products_of_balls_hold_all_products(a: float, r: float, b: float, s: float) -> None:
    (x, y) = (Interval(np.full(1, c - d), np.full(1, c + d)) for c, d in ((a, r), (b, s)))
    found = _products([*_pairs(x, y), *_pairs(x, y)])
    most = F(2) * (abs(F(a)) * F(s) + F(r) * (abs(F(b)) + F(s)))
    assert found is not None
    tightly(found, 0, 2 * F(a) * F(b) - most, 2 * F(a) * F(b) + most)


def test_products_pay_for_their_roundings() -> None:
    """Eight products whose sum cancels, of numbers that are all rounded; and numbers whose products underflow."""
    third, u = 1 / 3, 2.0**-52
    terms = [(1 + k * u, third * (-1) ** k * (1 + (k // 2) * u)) for k in range(8)]
    found = _products([pair for a, b in terms for pair in _pairs(iv.point(np.full(1, a)), iv.point(np.full(1, b)))])
    assert found is not None
    exact = sum((F(a) * F(b) for a, b in terms), F(0))
    assert F(float(found.low[0])) <= exact <= F(float(found.high[0])) <= exact + F(1, 10**13)
    tiny = iv.point(np.full(1, 2.0**-538))
    for sign, count in itertools.product((1, -1), (1, 8)):
        found = _products(count * _pairs(tiny, tiny if sign > 0 else -tiny))
        assert found is not None and F(float(found.low[0])) <= sign * count * F(2) ** -1076 <= F(float(found.high[0]))


def test_sums_leave_out_what_is_zero() -> None:
    one, two = iv.point(np.ones(1)), iv.point(np.full(1, 2.0))
    assert _plus(None, None) is None and _plus(one, None) is one and _plus(None, one) is one
    total = _plus(one, None, two)
    assert total is not None and total.low[0] <= 3 <= total.high[0]


# --- functions that are cubic ----------------------------------------------------------------------------------------------------


def cubics() -> dict[str, Graph]:
    def graph(build: Any) -> Graph:
        s = Sketch()
        x = s.input("x", 3)
        return s.graph(u=build(s, x, [s("select", x, indices=(i,)) for i in range(3)]))

    return {
        "x y z": graph(lambda s, x, p: s("mul", s("mul", p[0], p[1]), p[2])),
        "x (y z)": graph(lambda s, x, p: s("mul", p[0], s("mul", p[1], p[2]))),
        "x x x": graph(lambda s, x, p: s("mul", s("mul", p[0], p[0]), p[0])),
        "cube": graph(lambda s, x, p: s("power", s.affine(x, [[1, -2, 3]], [0.25]), exponent=3)),
        "square of one times another": graph(lambda s, x, p: s("mul", s("power", p[2], exponent=2), s.affine(x, [[1, 1, 0], [0, -1, 2]]))),
        "difference": graph(lambda s, x, p: s("sub", s("power", p[1], exponent=3), s("neg", s("mul", s("power", p[0], exponent=2), p[1])))),
    }


@pytest.mark.parametrize("name", cubics())
def test_nothing_is_left_of_cubic_functions(name: str) -> None:
    graph, centre = cubics()[name], np.array([0.5, -1.0, 2.0])
    found, steps = record(graph, cells(centre - 0.5, centre + 0.5))
    assert isinstance(found.output, Curved) and found.output.model is not None and found.spread is not None and steps is not None
    model, m = found.output.model, len(graph.outputs and found.output.value.low[0])
    assert model.play.max() < 1e-11 and model.error.max() < 1e-11
    assert remainder(steps, ones(3), ones(m), found.spread) < 1e-11
    if name in ("x y z", "x (y z)"):
        assert model.twist is not None
        whole = all_entries(model.twist, 3)
        for indices in itertools.product(range(3), repeat=3):
            assert np.allclose(whole.low[indices], float(len(set(indices)) == 3))


def test_powers_of_four_leave_what_is_of_fourth_order() -> None:
    s = Sketch()
    graph, left = s.graph(u=s("power", s.input("x", 1), exponent=4)), []
    for radius in (0.1, 0.01):
        found, steps = record(graph, cells([1 - radius], [1 + radius]))
        assert found.spread is not None and steps is not None
        left.append(remainder(steps, ones(1), ones(1), found.spread))
    # of 4 x^3 at 1 + d, with 4 + 12 d + 12 d^2: 4 d^3
    assert np.allclose(left, [4e-3, 4e-6], rtol=1e-2)


# --- sampled Jacobians ---------------------------------------------------------------------------------------------------------------

SLOPES: dict[str, Any] = {
    "tanh": (np.tanh, lambda v: 1 - np.tanh(v) ** 2),
    "sigmoid": (lambda v: 1 / (1 + np.exp(-v)), lambda v: 1 / (2 + 2 * np.cosh(v))),
    "sin": (np.sin, np.cos),
    "relu": (lambda v: np.maximum(v, 0), lambda v: (v > 0).astype(float)),
    "softplus": (lambda v: np.logaddexp(0, v), lambda v: 1 / (1 + np.exp(-v))),
}


def jacobian(graph: Graph, x: Any) -> Any:
    """Of a chain of affine maps and activations, in floats."""
    slope = np.eye(len(x))
    for node in graph.nodes[1:]:
        if node.op == "affine":
            weight, bias = (graph.tensors[node.attributes[name]].astype(float) for name in ("weight", "bias"))
            x, slope = weight @ x + bias, weight @ slope
        else:
            function, derivative = SLOPES[node.op]
            x, slope = function(x), derivative(x)[:, None] * slope
    return slope


@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([*SLOPES]),
    st.sampled_from([1e-4, 0.01, 0.1, 0.4, 1.0]),
    st.booleans(),
)
@settings(max_examples=60)
def test_no_sampled_jacobian_is_above_the_bound(seed: int, inputs: int, depth: int, op: str, radius: float, ball: bool) -> None:
    random = np.random.default_rng(seed)
    graph = smooth_network(op, (inputs, *random.integers(1, 12, depth), int(random.integers(1, 4))), seed)
    centre = random.standard_normal(inputs)
    domain = {"centre": [str(F(float(v))) for v in centre], "radius": str(F(radius))}
    problem, _ = problem_of(graph, centre, radius, **({"domain": domain} if ball else {}))
    box = problem.domain.box()
    bound = problem.expanded(*box) if problem.curved else problem.gains(problem.slopes(*(end[None] for end in box))[0], 1)[0]
    best, point = 0.0, centre
    for i in range(120):
        corner = random.choice([-1.0, 1.0], inputs) if i % 3 else random.uniform(-1, 1, inputs)
        trial = centre + radius * np.where(random.random(inputs) < (0.3 if i > 30 else 1.0), corner, (point - centre) / radius)
        if ball:
            trial = centre + (trial - centre) * min(1.0, radius / max(float(np.linalg.norm(trial - centre)), 1e-300))
        gain = np.linalg.norm(jacobian(graph, trial), 2)
        if gain > best:
            best, point = gain, trial
    assert best <= bound * (1 + 1e-9)
    if radius <= 1e-4 and op != "relu":
        assert bound <= best * 1.01 + 1e-9


def in_other_units(inside: int, outside: int) -> tuple[float, float]:
    """Bounds of a network, and of the same with inputs in units of 2^-inside and outputs in units of 2^-outside."""
    centre, graph = np.array([0.25, -0.5, 0.125]), smooth_network("tanh", (3, 8, 8, 2))
    plain = problem_of(graph, centre, 1 / 64)[0]
    names = [node.attributes["weight"] for node in graph.nodes if node.op == "affine"]
    first, last = names[0], names[-1]
    tensors = {name: tensor.astype(float) for name, tensor in graph.tensors.items()}
    tensors[first], tensors[last] = np.ldexp(tensors[first], inside), np.ldexp(tensors[last], outside)
    scaled = problem_of(Graph(graph.nodes, graph.outputs, tensors), np.ldexp(centre, -inside), 2.0 ** (-6 - inside))[0]
    return plain.expanded(*plain.domain.box()), scaled.expanded(*scaled.domain.box())


@pytest.mark.parametrize(("inside", "outside"), [(-100, 0), (100, 0), (0, -100), (0, 200), (-50, 60), (60, 60)])
def test_small_and_large_numbers_prove_the_same(inside: int, outside: int) -> None:
    plain, scaled = in_other_units(inside, outside)
    assert scaled == pytest.approx(np.ldexp(plain, inside + outside), rel=1e-9)


@pytest.mark.parametrize(("inside", "outside"), [(-300, 0), (300, 0), (0, -400), (0, 400), (-300, 250), (-60, -300), (-900, 900), (900, 0)])
def test_tiny_and_huge_numbers_prove_no_more(inside: int, outside: int) -> None:
    plain, scaled = in_other_units(inside, outside)
    assert not scaled < np.ldexp(plain, inside + outside) * (1 - 1e-9)


def test_numbers_that_overflow_prove_nothing() -> None:
    graph, centre = smooth_network("tanh", (2, 4, 1)), np.array([0.25, -0.5])
    names = [node.attributes["weight"] for node in graph.nodes if node.op == "affine"]
    tensors = {name: tensor.astype(float) for name, tensor in graph.tensors.items()}
    tensors[names[0]], tensors[names[1]] = tensors[names[0]] * 1e200, tensors[names[1]] * 1e200
    problem = problem_of(Graph(graph.nodes, graph.outputs, tensors), centre, 0.01)[0]
    assert not problem.expanded(*problem.domain.box()) < 1e300


# --- the order ------------------------------------------------------------------------------------------------------------------------


def test_polynomials_of_degree_2_are_the_choice_where_there_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, centre = smooth_network("tanh", (3, 16, 16, 2)), np.array([0.25, -0.5, 0.125])
    problem = problem_of(graph, centre, 0.01)[0]
    box, orders = problem.domain.box(), []
    exactly = 10 * sum(graph.sizes) + 3**3 * 2  # those that are kept of each signal, and all of the output
    for limit in (exactly, exactly - 1):
        monkeypatch.setattr(expansion, "MAX_ENTRIES", limit)
        found, steps = record(problem.graph, cells(*box))
        assert isinstance(found.output, Curved) and found.output.model is not None
        orders.append(order_of(graph, 3))
        assert len(found.output.model.sizes) == orders[-1]
        assert all(len(errors.left_out) == 3 for errors in errors_of(steps))
    assert orders == [3, 2]
    second = problem.expanded(*box)
    monkeypatch.undo()
    third = problem.expanded(*box)
    gains = [np.linalg.norm(jacobian(graph, centre + 0.01 * np.array(sign)), 2) for sign in itertools.product((-1, 1), repeat=3)]
    assert max(gains) < third < second


def test_signals_inside_count_as_well() -> None:
    inner = Graph(
        (Node("input", (), {"name": "y", "size": 2}), Node("concatenate", (0, 0, 0)), Node("select", (1,), {"indices": (0,)})),
        {"v": 2},
        {},
        1,
    )
    s = Sketch()
    s.tensors["offset"] = np.zeros(1)
    graph = s.graph(u=s("recentre", s.input("x", 2), graph=inner, point=(F(0), F(0)), offset="offset"))
    assert expansion._signals(inner) == 2 + 6 + 1 and expansion._signals(graph) == 2 + 9 + 1
    assert order_of(graph, 2) == 3
