"""Search by splits of units: exact constants of small networks, and the float tools that it rests on."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_local_lipschitz import STEP_UP, ZERO, claim_of, network, texts

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.verifiers.local_lipschitz import prove_local, read_problem
from lipctrl.certificates.lipschitz import Budget, box_programs, certify_local_lipschitz
from lipctrl.certificates.lipschitz import unit_search as module
from lipctrl.certificates.lipschitz.box_programs import ball_multipliers, multipliers
from lipctrl.certificates.lipschitz.sensitivity import Sensitivities
from lipctrl.certificates.lipschitz.turns import Turns, expected
from lipctrl.certificates.lipschitz.unit_search import UnitSearch
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction
KINDS = ["relu", "abs", "leaky_relu", "maxmin"]


def small(seed, activation, inputs=3, width=4, outputs=2):
    generator = np.random.default_rng(seed)
    w = [generator.standard_normal(shape) for shape in ((width, inputs), (width, width), (outputs, width))]
    b = [0.5 * generator.standard_normal(width) for _ in range(2)]
    return network((w[0], b[0]), activation, (w[1], b[1]), activation, (w[2], None), size=inputs), w, b


def searched(graph, domain, norm="l2", cells=2000):
    (size,) = graph.input_sizes.values()
    claim = {**claim_of([0] * size, [1] * size, 1.0, norm), "domain": domain}
    problem, _ = read_problem(graph, claim)
    search = UnitSearch(problem)
    while not search.exhausted and search.cells < cells:
        search.step(0.0, 10.0)
    return search, claim


def proved(graph, search, claim):
    bound = search.upper * (1 + 1e-9) + 1e-12
    tree, proofs = search.tree(bound)
    assert prove_local(graph, {**claim, "bound": float(bound).hex()}, {"method": "cells", "tree": tree, "proofs": proofs}) == bound
    return bound


def branches(activation, value):
    """The slopes of a pair or unit: all linear pieces as (matrix over the layer, rows that are not negative where it applies)."""
    n = len(value)
    if activation == "maxmin":
        for order in itertools.product((False, True), repeat=n // 2):
            matrix, rows = np.eye(n), []
            for pair, swapped in enumerate(order):
                i, j = 2 * pair, 2 * pair + 1
                row = np.zeros(n)
                row[i], row[j] = (1, -1) if swapped else (-1, 1)
                rows.append(row)
                if swapped:
                    matrix[[i, j]] = matrix[[j, i]]
            yield matrix, np.array(rows)
        return
    left, right = {"relu": (0.0, 1.0), "abs": (-1.0, 1.0), "leaky_relu": (0.1, 1.0)}[activation]
    for signs in itertools.product((-1.0, 1.0), repeat=n):
        yield np.diag([right if sign > 0 else left for sign in signs]), np.diag(signs)


def exact_constant(activation, w, b, low, high):
    """The greatest gain of all linear pieces that have an inner point in the box, by enumeration."""
    best = 0.0
    for first, rows in branches(activation, b[0]):
        if not has_inside(rows @ w[0], rows @ b[0], low, high):
            continue
        matrix, offset = w[1] @ first @ w[0], w[1] @ first @ b[0] + b[1]
        for second, more in branches(activation, b[1]):
            normals, constants = np.vstack([rows @ w[0], more @ matrix]), np.concatenate([rows @ b[0], more @ offset])
            if has_inside(normals, constants, low, high):
                best = max(best, float(np.linalg.norm(w[2] @ second @ matrix, 2)))
    return best


def has_inside(normals, constants, low, high):
    """Whether normals x + constants > 0 for some x in the box, with a little room."""
    size = np.abs(normals).sum(1)
    used = size > 0
    if (constants[~used] < 0).any():
        return False
    left = np.column_stack([-normals[used], size[used]])
    result = linprog(
        np.append(np.zeros(len(low)), -1.0), A_ub=left, b_ub=constants[used], bounds=[*zip(low, high, strict=True), (None, 1.0)]
    )
    return result.status == 0 and -result.fun > 1e-9


@pytest.mark.parametrize(
    ("activation", "seed"), [("relu", 0), ("relu", 1), ("relu", 2), ("maxmin", 0), ("maxmin", 1), ("abs", 1), ("leaky_relu", 0)]
)
def test_exact_constants_by_enumeration(activation, seed):
    graph, w, b = small(seed, activation)
    low, high = np.full(3, -0.5), np.full(3, 0.75)
    truth = exact_constant(activation, w, b, low, high)
    search, claim = searched(graph, {"low": texts(low), "high": texts(high)})
    assert search.exhausted
    assert truth * (1 - 1e-9) <= proved(graph, search, claim) <= truth * (1 + 1e-6)


@pytest.mark.parametrize(("low", "high", "constant"), [(1, 5, 1.0), (11, 20, 0.0), (5, 15, 1.0)])
def test_a_ramp(low, high, constant):
    found = certify_local_lipschitz(STEP_UP, low=[low], high=[high], budget=Budget(seconds=0.5))
    assert constant <= found.upper.value <= constant + 1e-6 and found.check().level == "proved"


def test_a_sum_that_is_constant():
    found = certify_local_lipschitz(ZERO, low=[-5], high=[5], budget=Budget(seconds=0.5))
    assert found.upper.value <= 1 + 1e-6 and (found.lower is None or found.lower.value == 0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_balls_and_both_norms(norm):
    graph, _, _ = small(1, "relu")
    centre = np.array([0.25, -0.125, 0.5])
    ball, claim = searched(graph, {"centre": texts(centre), "radius": "1/2"}, norm)
    box, _ = searched(graph, {"low": texts(centre - 0.5), "high": texts(centre + 0.5)}, norm)
    bound = proved(graph, ball, claim)
    assert bound <= box.upper * (1 + 1e-6) + 1e-9
    generator, run, order = np.random.default_rng(0), compile_numpy(graph), 2 if norm == "l2" else np.inf
    steps = generator.standard_normal((4000, 3))
    x = centre + 0.5 * steps * generator.random((4000, 1)) / np.linalg.norm(steps, order, axis=1, keepdims=True)
    value = run(x=x)["u"]
    rise, length = np.linalg.norm(value[::2] - value[1::2], order, axis=1), np.linalg.norm(x[::2] - x[1::2], order, axis=1)
    assert (rise <= bound * length + 1e-12).all()


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), activation=st.sampled_from([*KINDS, "clip", "sort3"]), radius=st.sampled_from([0.01, 0.3, 2.0]))
def test_no_pair_is_steeper_than_the_bound(seed, activation, radius):
    graph, _, _ = small(seed, activation)
    generator = np.random.default_rng(seed)
    centre = generator.standard_normal(3)
    search, claim = searched(graph, {"low": texts(centre - radius), "high": texts(centre + radius)}, cells=5)
    bound = proved(graph, search, claim)
    x = generator.uniform(centre - radius, centre + radius, (400, 3))
    y = np.clip(
        x + generator.standard_normal((400, 3)) * radius * 10.0 ** generator.uniform(-6, 0, (400, 1)), centre - radius, centre + radius
    )
    run = compile_numpy(graph)
    assert (np.linalg.norm(run(x=x)["u"] - run(x=y)["u"], axis=1) <= bound * np.linalg.norm(x - y, axis=1) + 1e-12).all()


def test_inner_networks_and_signals_of_both_kinds():
    """A relu network inside recentre, clipped, with the input added by a minimum: units everywhere, and a path in the tree."""
    inner, _, _ = small(2, "relu", inputs=2, outputs=2)
    inner = Graph(inner.nodes, inner.outputs, inner.tensors, nesting=1)
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("recentre", (0,), {"graph": inner, "point": (F(0), F(0)), "offset": "o"}),
        Node("clip", (1,), {"low": (F(-1), F(-1)), "high": (F(1), F(1))}),
        Node("min", (2, 0)),
        Node("tanh", (3,)),
        Node("add", (3, 4)),
    )
    graph = Graph(nodes, {"u": 5}, {**inner.tensors, "o": np.zeros(2)})
    search, claim = searched(graph, {"low": ["-1", "-1"], "high": ["1", "1"]}, cells=40)
    tree, _ = search.tree(search.upper)
    places = [entry[0] for entry in tree if isinstance(entry, list) and len(entry) == 3]
    bound = proved(graph, search, claim)
    assert any(isinstance(place, list) for place in places) and bound < search.root.own
    x = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    value = compile_numpy(graph)(x=x)["u"]
    assert (np.linalg.norm(value[::2] - value[1::2], axis=1) <= bound * np.linalg.norm(x[::2] - x[1::2], axis=1)).all()


def test_smooth_and_other_graphs_are_left_to_others():
    claim = claim_of([-1, -1], [1, 1], 1.0)
    smooth = network((np.eye(2), None), "tanh", (np.eye(2), None), size=2)
    assert UnitSearch.where_it_helps(read_problem(smooth, claim)[0]) is None
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("tanh", (0,)),
        Node("mul", (1, 0)),
        Node("clip", (2,), {"low": (F(-3),) * 2, "high": (F(3),) * 2}),
    )
    assert UnitSearch.where_it_helps(read_problem(Graph(nodes, {"u": 3}, {}), claim)[0]) is None
    nodes = (*nodes[:3], Node("relu", (2,)))
    search = UnitSearch(read_problem(Graph(nodes, {"u": 3}, {}), claim)[0])  # a product has no multipliers: slopes alone
    search.step(0.0, 1.0)
    assert 1 < search.upper < 3


def test_points_that_are_handed_on_lie_in_their_leaves():
    graph, _, _ = small(0, "relu")
    search, _ = searched(graph, {"low": ["-1/2"] * 3, "high": ["1/2"] * 3}, cells=15)
    points = search.worst(8)
    assert points.shape[1] == 3 and (np.abs(points) <= 0.5).all()
    run = compile_numpy(Graph(graph.nodes[:2], {"v": 1}, graph.tensors))
    for point, (_, _, _, leaf) in zip(points[:1], sorted(search._heap)[:1], strict=True):
        for half in leaf.half_lines:
            if half.place == 2 and leaf.margins is not None:
                assert (run(x=point[None])["v"][0, half.index] - half.threshold) * (1 if half.above else -1) > -1e-9


def test_trees_fit_into_a_file(monkeypatch):
    """Splitting ends before the ranges of the leaves are more than a certificate holds."""
    monkeypatch.setattr(module, "MAX_NUMBERS", 100)
    graph, _, _ = small(0, "relu")
    search, claim = searched(graph, {"low": ["-2"] * 3, "high": ["2"] * 3})
    leaves = [entry[-1] for entry in search._heap]
    assert search.exhausted and 100 < search._numbers == sum(leaf.numbers for leaf in leaves) < 1000
    proved(graph, search, claim)


# --- tools ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "m", "n"), [(20, 1, 5), (30, 6, 4), (10, 12, 17), (5, 3, 1)])
def test_multipliers_of_box_programs(count, m, n, monkeypatch):
    generator = np.random.default_rng(m)
    normals, objectives = generator.standard_normal((m, n)), generator.standard_normal((count, n))
    offsets = normals @ generator.uniform(-0.7, 0.7, n) + 0.01 + generator.exponential(0.3, m)
    exact = np.array([-linprog(-row, A_ub=normals, b_ub=offsets, bounds=[(-1, 1)] * n).fun for row in objectives])
    for enough, error in ((box_programs.ENOUGH, 2e-2), (1e-7, 1e-5)):  # as near as searches need, and as near as is asked for
        monkeypatch.setattr(box_programs, "ENOUGH", enough)
        found = multipliers(objectives, normals, offsets)
        bounds = found @ offsets + np.abs(objectives - found @ normals).sum(1)
        assert (found >= 0).all() and (bounds >= exact - 1e-9).all()  # any multipliers bound from above
        np.testing.assert_allclose(bounds, exact, rtol=error, atol=error)


def test_multipliers_of_ball_programs():
    """Against the best of many points of the ball that the half-spaces leave, and against one half-space in closed form."""
    generator = np.random.default_rng(0)
    normals, objectives = generator.standard_normal((3, 3)), generator.standard_normal((8, 3))
    offsets = normals @ np.array([0.1, -0.2, 0.1]) + 0.05
    found = ball_multipliers(objectives, normals, offsets)
    bounds = found @ offsets + np.linalg.norm(objectives - found @ normals, axis=1)
    points = generator.standard_normal((400_000, 3))
    points *= generator.random((len(points), 1)) ** (1 / 3) / np.linalg.norm(points, axis=1, keepdims=True)
    points = points[(points @ normals.T <= offsets).all(1)]
    best = (points @ objectives.T).max(0)
    assert (found >= 0).all() and (best <= bounds + 1e-12).all() and (bounds <= best + 0.05).all()
    one = ball_multipliers(np.array([[3.0, 4.0]]), np.array([[2.0, 0.0]]), np.array([-1.0]))  # y1 <= -1/2: -3/2 + 4 sqrt(3/4)
    assert one[0, 0] * -1.0 + np.hypot(3 - 2 * one[0, 0], 4) == pytest.approx(-1.5 + 4 * np.sqrt(0.75))
    assert (ball_multipliers(objectives, normals[:1], np.array([-9.0])) >= 1e8).all() and not ball_multipliers(
        objectives, normals, offsets + 9
    ).any()


def test_multipliers_show_that_nothing_is_left():
    generator = np.random.default_rng(0)
    normals = np.vstack([generator.standard_normal((3, 4)), np.ones((1, 4)), -np.ones((1, 4))])
    offsets = np.array([2.0, 2, 2, 0.5, -1.0])  # sum <= 1/2 and sum >= 1
    objectives = generator.standard_normal((6, 4))
    found = multipliers(objectives, normals, offsets)
    assert (found >= 0).all() and np.isfinite(found).all()
    assert (found @ offsets + np.abs(objectives - found @ normals).sum(1) < -1e3).all()


def test_sensitivities_are_derivatives():
    generator = np.random.default_rng(3)
    inner = network((generator.standard_normal((3, 3)), None), "tanh", (generator.standard_normal((3, 3)), None), size=3)
    inner = Graph(inner.nodes, inner.outputs, inner.tensors, nesting=1)
    nodes = (
        Node("input", (), {"name": "x", "size": 3}),
        Node("recentre", (0,), {"graph": inner, "point": (F(0),) * 3, "offset": "o"}),
        Node("relu", (1,)),
        Node("select", (2,), {"indices": (0, 0, 2)}),
        Node("max", (3, 0)),
        Node("mul", (4, 1)),
        Node("neg", (5,)),
        Node("concatenate", (6, 1)),
        Node("select", (7,), {"indices": (0, 1, 5)}),
        Node("sub", (8, 0)),
        Node("constant", (), {"values": (F(1, 2),)}),
        Node("min", (10, 9)),
        Node("div", (11, 10)),
    )
    graph = Graph(nodes, {"u": 12}, {**inner.tensors, "o": np.zeros(3)})
    x = generator.standard_normal(3)
    low, high = texts(x - 1e-7), texts(x + 1e-7)
    problem, _ = read_problem(graph, {**claim_of([0] * 3, [1] * 3, 1.0), "domain": {"low": low, "high": high}})
    from lipctrl.certificates.checker.unit_splits import Margins
    from lipctrl.certificates.lipschitz.unit_search import Leaf, Narrowing

    algebra = Narrowing(problem, Leaf(*problem.domain.box(), (), 1.0), Margins.unknown(0, 3))
    found = algebra.whole(problem.graph)
    middles = {place: np.broadcast_to(0.5 * (s.low + s.high), (1, s.low.shape[-1]))[0] for place, s in found.nodes.items()}
    sensitivities = Sensitivities(middles, algebra.factors)
    gradient = sensitivities.sweep(problem.graph, np.eye(3))
    run = compile_numpy(graph)
    quotient = [(run(x=(x + step)[None])["u"][0] - run(x=(x - step)[None])["u"][0]) / 2e-6 for step in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(gradient, np.array(quotient).T, atol=1e-5)
    assert set(sensitivities.found) == {(1, 2), 2, 4, 11}


class Scripted:
    """A search that lowers its bound by a script."""

    def __init__(self, uppers):
        self.uppers, self.cells, self.seconds, self.exhausted = list(uppers), 0, 0.0, False

    @property
    def upper(self):
        return self.uppers[0]

    def step(self, enough, seconds):
        self.seconds += 0.1
        if len(self.uppers) > 1:
            self.uppers.pop(0)

    def worst(self, count):
        return np.zeros((0, 1))

    def tree(self, upper):
        return [None], []


def test_the_search_that_promises_most_has_its_turn():
    slow, fast, stuck = Scripted([3 - 0.001 * i for i in range(400)]), Scripted([9 * 0.95**i for i in range(400)]), Scripted([8.0])
    stuck.exhausted = True
    turns = Turns([slow, fast, stuck])
    for _ in range(300):
        assert turns.step(0.0, 0.0, 20.0)
    assert fast.seconds > 3 * slow.seconds > 0 and stuck.seconds == 0
    assert turns.best is fast
    slow.exhausted = fast.exhausted = True
    assert not turns.step(0.0, 0.0, 20.0)


def test_what_is_expected():
    assert expected([(1.0, 5.0), (2.0, 3.0)], 1.0, 2.0) == pytest.approx(2.0)  # the excess over 1 halves when the time doubles
    assert expected([(1.0, 5.0), (2.0, 3.0)], 1.0, 6.0) == pytest.approx(1.5)
    assert expected([(1.0, 5.0), (2.0, 5.0)], 1.0, 6.0) == 5.0
    assert expected([(1.0, 5.0)], 1.0, 1.0) == pytest.approx(3.0)
    assert expected([(1.0, np.inf)], 1.0, 1.0) == np.inf and expected([(1.0, 1.0)], 1.0, 1.0) == 1.0


def test_searches_beside_get_their_share_only() -> None:
    class Counting:
        def __init__(self, bounds: list[float]) -> None:
            self.bounds, self.seconds, self.cells, self.exhausted = bounds, 0.0, 1, False

        @property
        def upper(self) -> float:
            return self.bounds[min(int(self.seconds), len(self.bounds) - 1)]

        def step(self, enough: float, seconds: float) -> None:
            self.seconds += 1.0

    late, quick = Counting([9.0] * 50 + [2.0]), Counting([9.0 / (n + 1) for n in range(200)])
    turns = Turns([late], beside=[quick])
    for left in range(100, 0, -1):
        assert turns.step(1.0, 1.0, left)
    assert late.seconds + quick.seconds == 100 and 5 <= quick.seconds <= 20
    late.exhausted = True
    before = quick.seconds
    assert turns.step(1.0, 1.0, 1) and quick.seconds == before + 1
