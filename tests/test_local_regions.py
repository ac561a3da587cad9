"""Affine pieces and the search over them: pieces are the graph, the steepest is found where all can be listed, pairs stay in the domain."""

import itertools
import random
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_local_lipschitz import network, random_network

from lipctrl.certificates.checker.domain import Domain
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.lipschitz import Budget, certify_local_lipschitz, local
from lipctrl.certificates.lipschitz.flips import FlipSearch
from lipctrl.certificates.lipschitz.local_gain import LocalGain
from lipctrl.certificates.lipschitz.local_witness import WitnessSearch, contains
from lipctrl.certificates.lipschitz.polytope import Polytope
from lipctrl.certificates.lipschitz.regions import PiecewiseLinear
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction
ONES = (F(1),) * 3


def box(centre, radius, ball=False):
    middle = tuple(F(float(v)) for v in centre)
    low, high = (tuple(v + s * F(radius) for v in middle) for s in (-1, 1))
    return Domain(low, high, middle, F(radius), ONES[: len(middle)]) if ball else Domain(low, high)


def small(activation, seed, inputs=2, outputs=2, width=4):
    generator = np.random.default_rng(seed)
    layers, before = [], inputs
    for _ in range(2):
        layers += [(generator.standard_normal((width, before)), 0.3 * generator.standard_normal(width)), activation]
        before = width
    return network(*layers, (generator.standard_normal((outputs, width)), None), size=inputs)


def every_operation(seed):
    """Three inputs through all operations whose pieces are affine."""
    generator = np.random.default_rng(seed)
    tensors = {"w": generator.standard_normal((6, 3)), "b": generator.standard_normal(6), "v": generator.standard_normal((2, 9))}
    tensors |= {"p": generator.standard_normal((3, 3)).astype(np.float32), "o": np.zeros(3)}
    inner_nodes = (Node("input", (), {"name": "z", "size": 3}), Node("affine", (0,), {"weight": "p", "bias": None}), Node("relu", (1,)))
    inner = Graph(inner_nodes, {"y": 2}, tensors, nesting=1)
    nodes = [Node("input", (), {"name": "x", "size": 3})]

    def add(op, *inputs, **attributes):
        nodes.append(Node(op, inputs, attributes))
        return len(nodes) - 1

    hidden = add("affine", 0, weight="w", bias="b")
    sorted_ = add("group_sort", hidden, group_size=3)
    first, second = (add("select", sorted_, indices=i) for i in ((0, 2, 4), (5, 5, 1)))
    third = add("constant", values=(F(1, 3),))
    scaled = add("div", add("mul", third, add("leaky_relu", first, slope=F(-1, 4))), add("constant", values=(F(2), F(-3), F(1, 2))))
    extremes = add("sub", add("max", scaled, second), add("min", add("neg", 0), add("abs", third)))
    clipped = add("clip", extremes, low=(F(-1, 2),) * 3, high=(F(1, 2), F(1), F(2)))
    centred = add("recentre", 0, graph=inner, point=(F(1, 5), F(0), F(-1)), offset="o")
    single = add("select", clipped, indices=(1,))
    nodes_out = add("affine", add("concatenate", clipped, centred, add("add", single, centred)), weight="v", bias=None)
    return Graph(tuple(nodes), {"u": nodes_out}, tensors)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_are_the_graph(seed):
    graph, generator = every_operation(seed), np.random.default_rng(seed)
    middle, half = np.array([0.3, -0.1, 0.2]), np.array([1.0, 2.0, 0.5])
    function, run = PiecewiseLinear(graph, middle, np.arange(3), half), compile_numpy(graph)
    for point in generator.uniform(-1, 1, (20, 3)):
        piece = function.at(point)
        again = function.choose(piece.sides)
        assert np.array_equal(piece.matrix, again.matrix) and np.array_equal(piece.rows, again.rows)
        assert (piece.signs * (piece.rows @ point + piece.offsets) >= 0).all()
        inside = Polytope.of(piece.signs[:, None] * piece.rows, piece.signs * piece.offsets, False).margin(point)
        for direction in np.eye(3):
            step = 0.5 * inside * direction
            ends = run(x=middle + half * (point + step))["u"], run(x=middle + half * (point - step))["u"]
            assert np.allclose(ends[0] - ends[1], 2 * piece.matrix @ step, atol=1e-12)
        for unit in range(len(piece.sides)):
            sides = piece.sides.copy()
            sides[unit] ^= True
            flipped = function.choose(sides)
            assert np.allclose(flipped.matrix, piece.matrix + np.outer(piece.effects[:, unit], piece.rows[unit]), atol=1e-12)
            border = piece.offsets[unit] + piece.rows[unit] @ point
            normal = piece.rows[unit]
            if normal @ normal > 1e-9:  # on the border both sides have the same borders
                at = point - border * normal / (normal @ normal)
                assert np.allclose(piece.rows @ at + piece.offsets, flipped.rows @ at + flipped.offsets, atol=1e-9)


def test_inputs_that_do_not_move_have_no_coordinate():
    graph = network(([[1.0, 2.0], [3.0, -1.0]], [0.0, 1.0]), "relu", size=2)
    piece = PiecewiseLinear(graph, np.array([0.5, 2.0]), np.array([0]), np.array([0.1])).at(np.zeros(1))
    assert np.allclose(piece.matrix, [[0.1], [0.3]]) and np.allclose(piece.offsets, [4.5, 0.5])


@pytest.mark.parametrize(
    "nodes",
    [
        (Node("tanh", (0,)),),
        (Node("mul", (0, 0)),),
        (Node("div", (0, 0)),),
        (Node("power", (0,), {"exponent": 2}),),
    ],
)
def test_other_graphs_have_no_pieces(nodes):
    graph = Graph((Node("input", (), {"name": "x", "size": 1}), *nodes), {"u": 1})
    with pytest.raises(Rejected, match="not piecewise linear"):
        PiecewiseLinear(graph, np.zeros(1), np.arange(1), np.ones(1))


def listed(function, count, ball, norm, right):
    """Every piece with an interior, asked of linear programs one pattern after the other: the greatest gain."""
    greatest = 0.0
    for sides in itertools.product([False, True], repeat=count):
        piece = function.choose(np.array(sides))
        k = piece.rows.shape[1]
        rows, offsets = piece.signs[:, None] * piece.rows, piece.signs * piece.offsets
        left = np.column_stack([-rows, np.linalg.norm(rows, axis=1)])
        angles = np.linspace(0, 2 * np.pi, 360) if ball else []
        tangents = np.array([[np.cos(a), np.sin(a), 1.0] for a in angles]).reshape(-1, k + 1)
        limits = np.append(offsets, np.ones(len(tangents)))
        found = linprog(np.append(np.zeros(k), -1), np.vstack([left, tangents]), limits, bounds=[(-1, 1)] * k + [(0, 1)])
        if found.status == 0 and found.x[-1] > 1e-6:
            greatest = max(greatest, float(np.linalg.norm(piece.matrix * right, 2 if norm == "l2" else np.inf)))
    return greatest


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("activation", "units", "seed"), [("relu", 6, 0), ("relu", 6, 1), ("abs", 6, 2), ("maxmin", 4, 3)])
def test_the_steepest_of_all_pieces_is_found(activation, units, seed, norm):
    graph, centre = small(activation, seed, width=4 if activation == "maxmin" else 3), np.array([0.25, -0.5])
    function = PiecewiseLinear(graph, centre, np.arange(2), np.ones(2))
    expected = listed(function, units, False, norm, np.ones(2))
    lower = WitnessSearch(graph, box(centre, 1), norm, ONES[:2], ONES[:2], 0).search()
    assert lower.value == pytest.approx(expected, rel=1e-9) and lower.value <= expected * (1 + 1e-12)
    assert contains(box(centre, 1), lower.x) and contains(box(centre, 1), lower.y)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_steepest_piece_of_a_ball_is_found(seed):
    graph, centre = small("relu", seed, width=3), np.array([0.25, -0.5])
    expected = listed(PiecewiseLinear(graph, centre, np.arange(2), np.ones(2)), 6, True, "l2", np.ones(2))
    domain = box(centre, 1, ball=True)
    lower = WitnessSearch(graph, domain, "l2", ONES[:2], ONES[:2], 0).search()
    assert lower.value == pytest.approx(expected, rel=1e-9)
    assert contains(domain, lower.x) and contains(domain, lower.y)


@pytest.mark.parametrize("radius", [1e-3, 1e-7, 1e-11])
def test_thin_domains(radius):
    """Points of a domain that is hardly wider than the spacing of floats are exact, and so is the slope between them."""
    graph, centre = small("relu", 5, inputs=3), np.array([1.1, -2.3, 0.7])
    lower = WitnessSearch(graph, box(centre, radius), "l2", ONES, ONES[:2], 0).search()
    assert contains(box(centre, radius), lower.x) and contains(box(centre, radius), lower.y)
    here = PiecewiseLinear(graph, centre, np.arange(3), np.full(3, radius)).at(np.zeros(3))
    assert lower.value >= np.linalg.norm(here.matrix / radius, 2) * (1 - 1e-9)


def test_equal_seeds_give_equal_pairs():
    graph = small("relu", 7, inputs=3, width=8)
    found = [WitnessSearch(graph, box(np.zeros(3), 1), "l2", ONES, ONES[:2], seed).search() for seed in (3, 3)]
    assert found[0] == found[1]


def test_scales_count():
    """|S_out (f(x) - f(y))| / |S_in (x - y)| of the absolute value of a sum."""
    graph = network(([[1.0, 1.0]], None), "abs", size=2)
    lower = WitnessSearch(graph, box([0.0, 0.0], 1), "linf", (F(1, 2), F(4)), (F(3),), 0).search()
    assert lower.value == pytest.approx(3 * (2 + 0.25), rel=1e-12)


def test_a_deep_narrow_peak_is_found_from_the_leaves_of_the_search():
    """A ramp that is steep on 1e-4 of the box: a start there finds it, at once and exactly."""
    nodes = [Node("input", (), {"name": "x", "size": 1}), Node("clip", (0,), {"low": (F(1, 2),), "high": (F(5001, 10000),)})]
    nodes += [Node("affine", (1,), {"weight": "w", "bias": None})]
    graph = Graph(tuple(nodes), {"u": 2}, {"w": np.array([[5.0]])})
    search = WitnessSearch(graph, box([0.0], 1), "l2", ONES[:1], ONES[:1], 0)
    assert search.improve(np.array([[0.50005]])).value == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_smooth_networks_are_climbed_along_gradients(norm):
    graph, centre = small("tanh", 3), np.array([0.25, -0.5])
    domain = box(centre, 2)
    gain = LocalGain(graph, domain, norm, ONES[:2], ONES[:2])
    grid = np.stack(np.meshgrid(*[np.linspace(-2, 2, 101)] * 2), -1).reshape(-1, 2) + centre
    slopes, _ = gain.steepest(grid)
    lower = WitnessSearch(graph, domain, norm, ONES[:2], ONES[:2], 0).search()
    assert lower.value >= slopes.max() * (1 - (1e-6 if norm == "l2" else 1e-4))  # sums of absolute values have ridges
    start = grid[:1]
    assert gain.steepest(gain.ascended(start[0], np.inf)[None])[0] >= gain.steepest(start)[0]


def test_lower_and_upper_bounds_meet_where_one_piece_is_the_steepest():
    generator = np.random.default_rng(0)
    shapes = ((24, 6), (24, 24), (3, 24))
    weights = [generator.standard_normal(shape) * np.sqrt(2 / shape[1]) for shape in shapes]
    graph = network((weights[0], None), "relu", (weights[1], None), "relu", (weights[2], None), size=6)
    centre = generator.standard_normal(6)
    found = certify_local_lipschitz(graph, low=centre - 0.02, high=centre + 0.02, budget=Budget(seconds=4, tolerance=1e-2))
    assert found.lower.value <= found.upper.value <= found.lower.value * 1.01


def test_lower_bounds_are_sought_now_and_then_and_take_a_fifth_of_the_time(monkeypatch):
    """By a clock that goes on a tenth of a second whenever it is read, and a search that does nothing."""
    clock = SimpleNamespace(now=0.0, seeking=[])

    def read():
        clock.now += 0.1
        return clock.now

    def seek(self, *arguments):
        clock.seeking.append(max(arguments[-1] - clock.now, 0.0))
        clock.now += clock.seeking[-1]

    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=read))
    monkeypatch.setattr(local.Turns, "step", lambda *_: True)
    monkeypatch.setattr(WitnessSearch, "search", seek)
    monkeypatch.setattr(WitnessSearch, "improve", seek)
    found = certify_local_lipschitz(small("tanh", 3), low=[-3, -3], high=[3, 3], budget=Budget(20, tolerance=1e-9))
    assert found.lower is None and found.upper.value > 0
    assert len(clock.seeking) == 4 and 0.1 * 20 < sum(clock.seeking) <= 0.2 * 20 and 20 <= clock.now < 22


# --- polytopes ----------------------------------------------------------------------------------------------------------------------


def test_a_polytope_by_hand():
    """y1 >= 0 and y1 + y2 <= 1 in the unit box."""
    triangle = Polytope.of(np.array([[2.0, 0.0], [-1.0, -1.0]]), np.array([0.0, 1.0]), False)
    assert triangle.margin(np.array([0.1, 0.0])) == pytest.approx(0.1)
    assert triangle.margin(np.array([-0.5, 0.0])) == pytest.approx(-0.5)
    assert triangle.chord(np.array([0.5, 0.0]), np.array([1.0, 0.0])) == pytest.approx((-0.5, 0.5))
    assert triangle.chord(np.array([0.5, 0.0]), np.array([0.0, 2.0])) == pytest.approx((-0.5, 0.25))
    point, margin = triangle.centred(np.array([0.01, 0.0]), np.eye(2))
    assert margin == pytest.approx(triangle.margin(point)) and margin > 0.2
    first, times = triangle.hits(np.array([0.25, 0.25]), np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0]]))
    assert first.tolist() == [0, 1, -1] and times[:2] == pytest.approx([0.25, 0.5])
    assert triangle.margin(triangle.inner()) == pytest.approx(0.5)


def test_the_ball_ends_a_polytope():
    disc = Polytope.of(np.array([[0.0, 1.0]]), np.array([0.0]), True)
    assert disc.chord(np.array([0.0, 0.6]), np.array([1.0, 0.0])) == pytest.approx((-0.8, 0.8))
    assert disc.margin(np.array([0.0, 0.6])) == pytest.approx(0.4)
    first, _ = disc.hits(np.array([0.0, 0.5]), np.array([[0.0, -1.0], [1.0, -0.5]]))
    assert first.tolist() == [0, -1]


@pytest.mark.parametrize("ball", [False, True])
def test_empty_polytopes_have_no_point(ball):
    apart = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([-0.5, 0.4])
    assert Polytope.of(*apart, ball).inner() is None
    corner = np.array([[1.0, 1.0]]), np.array([-1.8])  # a corner of the square, beyond the disc
    inner = Polytope.of(*corner, ball).inner()
    assert inner is not None and (Polytope.of(*corner, ball).margin(inner) > 0) != ball
    assert Polytope.of(np.array([[np.nan, 0.0]]), np.zeros(1), ball).inner() is None


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=60)
def test_points_that_are_called_inside_are(seed, ball):
    """``inner`` finds a point wherever a sampled point is well inside, and what it finds is inside."""
    generator = np.random.default_rng(seed)
    k, n = int(generator.integers(1, 5)), int(generator.integers(0, 9))
    polytope = Polytope.of(generator.standard_normal((n, k)), 0.5 * generator.standard_normal(n), ball)
    samples = generator.uniform(-1, 1, (200, k))
    margins = [polytope.margin(sample) for sample in samples]
    inner = polytope.inner()
    if max(margins) > 1e-3:
        assert inner is not None and polytope.margin(inner) > 0
        start = samples[int(np.argmax(margins))]
        point, margin = polytope.centred(start, generator.standard_normal((5, k)))
        assert margin >= max(margins) and margin == pytest.approx(polytope.margin(point))
        rays = generator.standard_normal((20, k))
        first, times = polytope.hits(point, rays)
        for ray, row, time in zip(rays, first, times, strict=True):
            last = polytope.chord(point, ray)[1]
            assert (row < 0 and last <= time * (1 + 1e-9)) or last == pytest.approx(time)


def test_no_time_no_search():
    graph = small("relu", 1)
    function = PiecewiseLinear(graph, np.zeros(2), np.arange(2), np.ones(2))
    search = FlipSearch(function, False, "l2", np.ones(2), np.ones(2), np.random.default_rng(0))
    search.climb(np.zeros((1, 2)), -np.inf)
    assert search.best is None
    search.climb(np.zeros((1, 2)), np.inf)
    assert search.best is not None and search.best.margin > 0
    witness = WitnessSearch(graph, box([0.0, 0.0], 1), "l2", ONES[:2], ONES[:2], 0)
    assert witness.improve(np.zeros((0, 2))) is None
    assert witness.search(-np.inf).value > 0  # one look around, whatever the time


def test_what_is_not_finite_is_no_piece():
    graph = network(([[1e200]], None), "relu", ([[1e200]], None), "relu", ([[1.0]], None), size=1)
    search = WitnessSearch(graph, box([0.5], "1/4"), "l2", ONES[:1], ONES[:1], 0)
    found = search.search()
    assert search.flips is not None and search.flips.best is None and (found is None or found.value >= 0)


def test_huge_graphs_are_not_searched_by_pieces():
    weights = np.ones((2000, 1)), np.ones((6000, 2000), np.float32)
    graph = network((weights[0], None), "relu", (weights[1], None), size=1)
    with pytest.raises(Rejected, match="too large"):
        PiecewiseLinear(graph, np.zeros(1), np.arange(1), np.ones(1))


def test_few_flips_are_judged_where_there_are_many(monkeypatch):
    """The most promising by their first-order effect: the search still ends on a summit, and on the greatest here."""
    monkeypatch.setattr("lipctrl.certificates.lipschitz.flips.MAX_ENTRIES", 1)
    graph = small("relu", 7, inputs=3, width=8)
    few = WitnessSearch(graph, box(np.zeros(3), 1), "l2", ONES, ONES[:2], 0)
    assert few.flips._flips == 8
    monkeypatch.undo()
    all_ = WitnessSearch(graph, box(np.zeros(3), 1), "l2", ONES, ONES[:2], 0)
    assert few.search().value == pytest.approx(all_.search().value, rel=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_pairs_have_the_gain_of_their_piece(seed):
    """On domains of all sizes: differences in floats, which are noisy on small ones, never stand in the way of an exact pair."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    graph = random_network(
        rng, generator, ["relu", "maxmin", "abs", "leaky_relu", "clip"], rng.randint(1, 4), 10.0 ** rng.choice([-6, 0, 6])
    )
    ((size,), (outputs,)) = graph.input_sizes.values(), graph.output_sizes.values()
    norm, ball = rng.choice([("l2", False), ("l2", True), ("linf", False)])
    domain = box(generator.standard_normal(size), 10.0 ** rng.uniform(-7, 0.5), ball)
    scales = (F(1),) * size, (F(rng.choice([1, 2])),) * outputs
    domain = Domain(domain.low, domain.high, domain.centre, domain.radius, scales[0]) if ball else domain
    search = WitnessSearch(graph, domain, norm, *scales, seed)
    lower = search.search(time.monotonic() + 0.2)
    assert lower.value == pytest.approx(search.flips.best.gain, rel=1e-9)
    assert contains(domain, lower.x) and contains(domain, lower.y)
