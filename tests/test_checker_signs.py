"""Signs of increments, operation by operation: everywhere and on cells, against what is known of each, and against pairs of points."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Sketch
from strategies import graphs

from lipctrl.certificates.checker.balls import PRECISION, ball, evaluate_balls
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.local_slopes import Cells, entering
from lipctrl.certificates.checker.signs import Moves, Notes, signs, signs_everywhere, signs_on_cells
from lipctrl.certificates.checker.sorts import with_comparators
from lipctrl.certificates.checker.verdict import Rejected

F = Fraction
MARKS = {(False, False): "0", (True, False): "+", (False, True): "-", (True, True): "?"}
Build = Callable[[Sketch, int], int]


def made(size: int, build: Build) -> Graph:
    s = Sketch()
    return s.graph(y=build(s, s.input("x", size)))


def marks(moves: Moves, cell: int = 0) -> list[str]:
    """A text for each output, with a mark for each input."""
    up, down = (np.broadcast_to(end, moves.up.shape)[:, cell].T.tolist() for end in (moves.up, moves.down))
    return ["".join(MARKS[pair] for pair in zip(*rows, strict=True)) for rows in zip(up, down, strict=True)]


def everywhere(size: int, build: Build) -> list[str]:
    return marks(signs_everywhere(made(size, build)))


def on(build: Build, *ends: tuple[float, float], free: Any = None) -> list[str]:
    """Marks on one cell, on which values are known to be finite."""
    moves, finite = noted(made(len(ends), build), [ends], free)
    assert finite.tolist() == [True]
    return marks(moves)


def noted(graph: Graph, boxes: Any, free: Any = None, curved: bool = False) -> tuple[Moves, np.ndarray]:
    low, high = (np.array([[pair[end] for pair in box] for box in boxes], float) for end in (0, 1))
    with np.errstate(all="ignore"):
        cells = Cells(low, high, np.arange(low.shape[1]) if free is None else np.array(free, int))
        return signs_on_cells(graph, Notes(cells), curved)


def op(name: str, **attributes: Any) -> Build:
    return lambda s, x: s(name, x, **attributes)


def each(*builds: Build) -> Build:
    return lambda s, x: s("concatenate", *(build(s, x) for build in builds))


# --- one operation, everywhere --------------------------------------------------------------------------------------------

COORDINATE_WISE = [
    ("neg", {}, "-"),
    ("relu", {}, "+"),
    ("tanh", {}, "+"),
    ("sigmoid", {}, "+"),
    ("softplus", {}, "+"),
    ("erf", {}, "+"),
    ("exp", {}, "+"),
    ("abs", {}, "?"),
    ("sin", {}, "?"),
    ("cos", {}, "?"),
    ("gelu", {}, "?"),
    ("silu", {}, "?"),
    ("clip", {"low": (F(-1),), "high": (F(1),)}, "+"),
    ("leaky_relu", {"slope": F(1, 10)}, "+"),
    ("leaky_relu", {"slope": F(0)}, "+"),
    ("leaky_relu", {"slope": F(-1, 10**9)}, "?"),
    ("power", {"exponent": 0}, "0"),
    ("power", {"exponent": 1}, "+"),
    ("power", {"exponent": 2}, "?"),
    ("power", {"exponent": 3}, "+"),
]


@pytest.mark.parametrize(("name", "attributes", "mark"), COORDINATE_WISE)
def test_coordinate_wise_operations_everywhere(name, attributes, mark):
    turned = {"+": "-", "-": "+"}
    assert everywhere(1, op(name, **attributes)) == [mark]
    assert everywhere(1, lambda s, x: s(name, s("neg", x), **attributes)) == [turned.get(mark, mark)]
    assert everywhere(1, lambda s, x: s(name, s("cos", x), **attributes)) == ["0" if mark == "0" else "?"]
    assert everywhere(1, lambda s, x: s(name, s.affine(x, [[0]]), **attributes)) == ["0"]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (op("log"), "log"),
        (op("sqrt"), "sqrt"),
        (op("tan"), "tan"),
        (lambda s, x: s("div", s.constant(1), x), "div"),
        (lambda s, x: s("div", x, s("exp", x)), "div"),
        (lambda s, x: s("div", x, s.constant(0)), "div"),
        (lambda s, x: s("div", s("concatenate", x, x), s.constant(1, 0)), "div"),
    ],
)
def test_operations_without_a_value_somewhere_are_refused_everywhere(build, name):
    with pytest.raises(Rejected, match=f"operation '{name}' has no value everywhere"):
        everywhere(1, build)


def test_sorts_must_be_rewritten_first():
    graph = made(3, op("group_sort", group_size=3))
    with pytest.raises(Rejected, match="nothing is known about the signs of operation 'group_sort'"):
        signs_everywhere(graph)
    assert marks(signs_everywhere(with_comparators(graph))) == ["+++"] * 3


# --- affine maps, sums, products, selections -------------------------------------------------------------------------------


def test_affine_maps_have_the_signs_of_their_weights():
    weight = [[1, -2, 0], [1e-45, -1e-45, -0.0], [3, 4, -5]]
    assert everywhere(3, lambda s, x: s.affine(x, weight, [1, 2, 3])) == ["+-0", "+-0", "++-"]
    assert everywhere(3, lambda s, x: s.affine(s.affine(x, weight), [[1, 1, 1], [1, 1, 0], [0, 0, -1]])) == ["+?-", "+-0", "--+"]


def test_everywhere_is_one_cell_for_every_input():
    for build in (op("relu"), lambda s, x: s.constant(1, 2)):
        moves = signs_everywhere(made(2, build))
        assert moves.up.shape == moves.down.shape == (2, 1, 2)


def test_wide_affine_maps_count_every_coordinate():
    weight = np.zeros((2, 4000))
    weight[0, 3999], weight[1, [0, 3999]] = 1, [1, -1]
    assert everywhere(1, lambda s, x: s.affine(s.affine(x, np.ones((4000, 1))), weight)) == ["+", "?"]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda s, x: s("add", s("relu", x), s("tanh", x)), ["+0", "0+"]),
        (lambda s, x: s("sub", s("relu", x), s("tanh", x)), ["?0", "0?"]),
        (lambda s, x: s("sub", s("relu", x), s("neg", x)), ["+0", "0+"]),
        (lambda s, x: s("add", s("select", x, indices=(0,)), x), ["+0", "++"]),
        (lambda s, x: s("sub", s.constant(1, 2), x), ["-0", "0-"]),
        (lambda s, x: s("min", x, s("select", x, indices=(1, 0))), ["++", "++"]),
        (lambda s, x: s("max", s("neg", x), s.constant(1)), ["-0", "0-"]),
        (lambda s, x: s("min", s.constant(1), s("neg", x)), ["-0", "0-"]),
        (lambda s, x: s("select", x, indices=(1, 1, 0)), ["0+", "0+", "+0"]),
        (lambda s, x: s("concatenate", s.constant(1), x, s("neg", x)), ["00", "+0", "0+", "-0", "0-"]),
        (lambda s, x: s("mul", x, s.constant(F(1, 10**400), -2)), ["+0", "0-"]),
        (lambda s, x: s("mul", s.constant(0), x), ["00", "00"]),
        (lambda s, x: s("mul", s.constant(-1), x), ["-0", "0-"]),
        (lambda s, x: s("div", x, s.constant(-3, 3)), ["-0", "0+"]),
        (lambda s, x: s("mul", x, s("select", x, indices=(0, 0))), ["?0", "??"]),
        (lambda s, x: s("mul", x, s("power", s("select", x, indices=(0,)), exponent=0)), ["?0", "0?"]),
    ],
)
def test_signals_together(build, expected):
    assert everywhere(2, build) == expected


def test_recentred_graphs_are_followed():
    inner = made(2, lambda s, x: s("relu", s.affine(x, [[1, -1]], dtype=np.float64)))
    s = Sketch()
    s.tensors |= {"t0": np.array([[1.0, -1.0]]), "offset": np.zeros(1)}
    nested = Graph(inner.nodes, inner.outputs, s.tensors, 1)
    x = s.input("x", 2)
    y = s("neg", s("recentre", s("neg", x), graph=nested, point=(F(0), F(1)), offset="offset"))
    assert marks(signs_everywhere(s.graph(y=y))) == ["+-"]
    assert marks(noted(s.graph(y=y), [[(0, 1), (5, 6)]])[0]) == ["+-"]
    assert marks(noted(s.graph(y=y), [[(0, 1), (-6, -5)]])[0]) == ["00"], "closed on the cell: slopes are kept by the path to the node"


def test_what_comes_after_the_output_does_not_count():
    s = Sketch()
    y = s("relu", s.input("x", 1))
    s("log", y)
    assert marks(signs_everywhere(s.graph(y=y))) == ["+"]


# --- on cells ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "attributes", "low", "high", "mark"),
    [
        ("relu", {}, -2, -1, "0"),
        ("relu", {}, -1, 0, "0"),
        ("relu", {}, -1, 1, "+"),
        ("abs", {}, 0, 1, "+"),
        ("abs", {}, -1, 0, "-"),
        ("abs", {}, -1, 1e-300, "?"),
        ("leaky_relu", {"slope": F(-1, 2)}, -1, 0, "-"),
        ("leaky_relu", {"slope": F(-1, 2)}, 0, 1, "+"),
        ("leaky_relu", {"slope": F(-1, 10**400)}, -1, 0, "-"),
        ("clip", {"low": (F(0),), "high": (F(1),)}, 1, 2, "0"),
        ("clip", {"low": (F(0),), "high": (F(1),)}, -1, 0, "0"),
        ("clip", {"low": (F(0),), "high": (F(1),)}, 0, 2, "+"),
        ("power", {"exponent": 0}, -1, 1, "0"),
        ("power", {"exponent": 2}, 0, 1, "+"),
        ("power", {"exponent": 2}, -1, 0, "-"),
        ("power", {"exponent": 2}, 1, 2, "+"),
        ("power", {"exponent": 2}, -2, -1, "-"),
        ("power", {"exponent": 2}, -1e-300, 1, "?"),
        ("power", {"exponent": 4}, 0, 1e-200, "+"),
        ("power", {"exponent": 3}, -1, 1, "+"),
        ("sin", {}, -1, 1, "+"),
        ("sin", {}, 2, 4, "-"),
        ("cos", {}, 1, 3, "-"),
        ("cos", {}, -1, 1, "?"),
        ("gelu", {}, 0, 1, "+"),
        ("gelu", {}, -2, -1, "-"),
        ("silu", {}, -1, 2, "+"),
        ("exp", {}, -800, -790, "+"),
        ("tanh", {}, 30, 40, "+"),
        ("log", {}, 0.5, 2, "+"),
        ("sqrt", {}, 0.5, 2, "+"),
        ("tan", {}, -1, 1, "+"),
    ],
)
def test_coordinate_wise_operations_on_cells(name, attributes, low, high, mark):
    assert on(op(name, **attributes), (low, high)) == [mark]


@pytest.mark.parametrize(
    ("build", "ends", "expected"),
    [
        (lambda s, x: s("mul", x, s("select", x, indices=(1, 0))), [(0, 1), (0, 1)], ["++", "++"]),
        (lambda s, x: s("mul", x, s("select", x, indices=(1, 0))), [(-1, 0), (0, 1)], ["+-", "+-"]),
        (lambda s, x: s("mul", x, s("select", x, indices=(1, 0))), [(-1, 1), (0, 1)], ["+?", "+?"]),
        (lambda s, x: s("mul", x, s("select", x, indices=(0, 0))), [(0, 1), (-1, 0)], ["+0", "-+"]),
        (lambda s, x: s("mul", s("select", x, indices=(0,)), s.constant(1, -1)), [(0, 1), (0, 1)], ["+0", "-0"]),
        (lambda s, x: s("div", s("select", x, indices=(0,)), s("select", x, indices=(1,))), [(0, 1), (1, 2)], ["+-"]),
        (lambda s, x: s("div", s("select", x, indices=(0,)), s("select", x, indices=(1,))), [(-1, 0), (-2, -1)], ["-+"]),
        (lambda s, x: s("div", s.constant(-1), x), [(1, 2), (-2, -1)], ["+0", "0+"]),
        (lambda s, x: s("div", x, s.constant(-3)), [(-1, 1), (0, 1)], ["-0", "0-"]),
        (lambda s, x: s("max", x, s("select", x, indices=(1, 0))), [(0, 1), (2, 3)], ["0+", "0+"]),
        (lambda s, x: s("min", x, s("select", x, indices=(1, 0))), [(0, 1), (2, 3)], ["+0", "+0"]),
        (lambda s, x: s("max", x, s("select", x, indices=(1, 0))), [(0, 2), (1, 3)], ["++", "++"]),
        (lambda s, x: s("max", s.constant(5), x), [(0, 1), (4, 6)], ["00", "0+"]),
        (lambda s, x: s("min", s.constant(5), x), [(0, 1), (4, 6)], ["+0", "0+"]),
        (lambda s, x: s("min", s.constant(-5), x), [(0, 1), (4, 6)], ["00", "00"]),
        (lambda s, x: s("max", x, s.constant(5)), [(0, 1), (6, 7)], ["00", "0+"]),
    ],
)
def test_signals_together_on_cells(build, ends, expected):
    assert on(build, *ends) == expected


def test_enclosed_slopes_narrow_what_signs_alone_leave_open():
    wide = [(-1, 1)]
    assert on(lambda s, x: s("sub", s("mul", x, s.constant(3)), s("relu", x)), *wide) == ["+"], "3 - [0, 1]"
    assert on(lambda s, x: s("add", s("mul", x, s.constant(-3)), s("relu", x)), *wide) == ["-"]
    assert on(lambda s, x: s("mul", s.affine(s("concatenate", x, s("relu", x)), [[3, -1]]), s.constant(-1)), *wide) == ["-"]
    assert on(lambda s, x: s("max", s("sub", s("mul", x, s.constant(3)), s("sin", x)), s.constant(0)), *wide) == ["+"]
    assert on(lambda s, x: s("relu", s.affine(s("concatenate", x, s("relu", x)), [[3, -1]])), *wide) == ["+"], "then an open unit: 0 counts"
    assert on(lambda s, x: s.affine(s("concatenate", x, s("relu", x)), [[1, -2]]), *wide) == ["?"], "1 - [0, 2]"
    assert on(lambda s, x: s("mul", s("add", x, s.constant(3)), s("add", x, s.constant(3))), *wide) == ["+"]
    product = lambda s, x: s("mul", s("add", x, s.constant(3)), s("sub", s.constant(3), s("mul", x, s.constant(2))))  # noqa: E731
    assert on(product, (-0.1, 0.1)) == ["-"], "(3 + x)(3 - 2 x) has the slope -3 - 4 x"
    quotient = lambda s, x: s("div", s("add", x, s.constant(1)), s("add", x, s.constant(3)))  # noqa: E731
    assert on(quotient, (0, 0.1)) == ["+"]
    lower = lambda s, x: s("min", s("sub", s("mul", x, s.constant(3)), s("sin", x)), s("mul", x, s.constant(2)))  # noqa: E731
    assert on(lower, *wide) == ["+"]


def test_slopes_that_cancel_are_exactly_zero():
    step = lambda s, x: s("sub", s("relu", x), s("relu", s("sub", x, s.constant(1))))  # noqa: E731
    assert on(step, (0, 2)) == ["+"], "1 - [0, 1]"
    assert on(lambda s, x: s("neg", step(s, x)), (0, 2)) == ["-"]
    assert on(lambda s, x: s("add", s("relu", x), s("neg", s("clip", x, low=(F(-1),), high=(F(1),)))), (0, 2)) == ["+"]
    assert on(lambda s, x: s("sub", x, s("max", x, s.constant(0))), (-1, 1)) == ["+"]
    assert on(lambda s, x: s("sub", s("abs", x), x), (0, 1)) == ["0"]
    assert on(lambda s, x: s("add", s("abs", x), x), (-1, 0)) == ["0"]
    assert on(lambda s, x: s("sub", s("leaky_relu", x, slope=F(1, 3)), x), (0, 1)) == ["0"]
    assert on(lambda s, x: s("sub", s("abs", x), s("mul", x, s.constant(F(1, 3)))), (0, 1)) == ["+"]
    assert on(step, (-1, 2)) == ["?"], "[0, 1] - [0, 1]: the units are taken as independent"


def test_open_units_keep_both_ends_of_a_slope():
    """3 x - relu(x) has slopes in [2, 3], behind an open unit too: 5 x / 2 may be more or less."""

    def build(s: Sketch, x: int) -> int:
        bent = s("sub", s("mul", x, s.constant(3)), s("relu", x))
        return s("sub", s("relu", s("add", bent, s.constant(10))), s("mul", x, s.constant(F(5, 2))))

    assert on(build, (-1, 1)) == ["?"]
    assert on(build, (-1, -0.5)) == ["+"] and on(build, (0.5, 1)) == ["-"]


def test_products_that_are_rounded_are_rounded_outwards():
    """Two leaky units: the least slope is the square of a float, which is none; the greatest is 1, exactly."""
    box, rounded_up = Cells(np.array([[-1.0]]), np.array([[1.0]]), np.arange(1)), 0
    for a in (0.3, 0.55, 0.7, 0.9, 1.1):
        graph = made(1, lambda s, x: s("leaky_relu", s("leaky_relu", x, slope=F(a)), slope=F(a)))  # noqa: B023
        found = Notes(box).run(graph, entering(box), ()).slope
        low, high = F(float(found.low[0, 0, 0])), F(float(found.high[0, 0, 0]))
        assert low <= min(F(a) ** 2, 1) and high >= max(F(a) ** 2, 1)
        rounded_up += F(a * a) > F(a) ** 2
    assert rounded_up > 1


def test_slopes_to_first_order_tell_more():
    steep = made(1, lambda s, x: s("sub", s("tanh", x), s("mul", s("tanh", s("mul", x, s.constant(2))), s.constant(F(9, 20)))))
    assert marks(noted(steep, [[(0.3, 0.7)]])[0]) == ["?"] and marks(noted(steep, [[(0.3, 0.7)]], curved=True)[0]) == ["+"]
    hinge = made(1, lambda s, x: s("relu", s("sub", s("mul", x, s.constant(3)), s("sin", x))))
    assert marks(noted(hinge, [[(-1, 1)]], curved=True)[0]) == ["+"], "0 counts as before"


def test_inputs_that_do_not_vary_have_no_row():
    moves, _ = noted(made(3, lambda s, x: s.affine(x, [[1, 2, -3]])), [[(0, 1), (2, 2), (0, 1)]], free=[0, 2])
    assert moves.up.shape == (2, 1, 1) and marks(moves) == ["+-"]
    moves, finite = noted(made(1, op("relu")), [[(2, 2)]], free=[])
    assert moves.up.shape == (0, 1, 1) and finite.tolist() == [True]


def test_cells_are_judged_one_by_one():
    moves, finite = noted(made(1, op("abs")), [[(-2, -1)], [(-1, 1)], [(1, 2)]])
    assert [marks(moves, cell) for cell in range(3)] == [["-"], ["?"], ["+"]] and finite.tolist() == [True] * 3
    constant, finite = noted(made(1, lambda s, x: s.constant(1, 2)), [[(0, 1)], [(1, 2)]])
    assert constant.up.shape == (1, 2, 2) and not constant.up.any() and finite.tolist() == [True, True]


def test_values_that_are_not_finite_are_told():
    assert noted(made(1, op("log")), [[(-1, 1)], [(1, 2)]])[1].tolist() == [False, True]
    assert noted(made(1, op("sqrt")), [[(-1, 1)], [(1, 2)]])[1].tolist() == [False, True]
    assert noted(made(1, op("tan")), [[(1, 2)], [(0, 1)]])[1].tolist() == [False, True]
    assert noted(made(1, lambda s, x: s("div", s.constant(1), x)), [[(0, 1)], [(1, 2)]])[1].tolist() == [False, True]
    assert noted(made(1, op("exp")), [[(0, 1000)], [(0, 1)]])[1].tolist() == [False, True]
    assert noted(made(1, each(op("relu"), op("log"))), [[(-1, 1)]])[1].tolist() == [False], "one of two outputs"


def test_nan_says_nothing():
    up, down = signs(Interval(np.array([np.nan, 0.0, -1.0]), np.array([1.0, np.nan, 0.0])))
    assert up.tolist() == [True, True, False] and down.tolist() == [True, False, True]
    assert marks(noted(made(1, op("log")), [[(-1, 1)]])[0]) == ["?"]


# --- implicit layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "expected"),
    [([[0.25, 0], [0.5, 0.25]], ["++", "++"]), ([[0, 0], [-0.5, 0]], ["??", "??"]), ([[0, 0], [0, 0]], ["++", "++"])],
)
def test_implicit_layers_rise_with_their_operand_where_no_weight_is_negative(weight, expected):
    s = Sketch()
    s.tensors |= {"D": np.array(weight, float), "metric": np.ones(2)}
    x = s.input("x", 2)
    z = s("implicit", x, weight="D", metric="metric", activation="tanh")
    assert marks(signs_everywhere(s.graph(y=z))) == expected
    assert marks(signs_everywhere(s.graph(y=s("implicit", s("neg", x), weight="D", metric="metric", activation="relu")))) == [
        mark.replace("+", "-") for mark in expected
    ]
    moves, finite = noted(s.graph(y=z), [[(-0.1, 0.1), (-0.1, 0.1)]])
    assert finite.tolist() == [True]
    narrowed = marks(moves)
    assert narrowed[0][0] == narrowed[1][1] == "+" and (weight[1][0] >= 0 or narrowed[1][0] == "-"), "enclosed slopes say more"


# --- against pairs of points -------------------------------------------------------------------------------------------------


def contradicts(graph: Graph, moves: Moves, free: list[int], low: np.ndarray, high: np.ndarray, seed: int) -> str:
    """A pair of points in the box between which an output surely moves as ``moves`` says that it cannot, or nothing."""
    generator = np.random.default_rng(seed)
    for k, j in enumerate(free):
        x = generator.uniform(low, high)
        y = x.copy()
        x[j], y[j] = sorted(generator.uniform(low[j], high[j], 2))
        with ctx.workprec(PRECISION):
            before, after = (next(iter(evaluate_balls(graph, {"x": [ball(float(v)) for v in p]}).values())) for p in (x, y))
            for i in range(len(before)):
                rise = after[i] - before[i]
                if (rise > 0 and not moves.up[k, 0, i]) or (rise < 0 and not moves.down[k, 0, i]):
                    return f"output {i} moves by {rise} when input {j} rises from {x} to {y}"
    return ""


@settings(max_examples=60)
@given(st.data(), st.integers(0, 2**31))
def test_no_pair_of_points_contradicts_signs(data, seed):
    size = data.draw(st.integers(1, 3))
    graph = data.draw(graphs(inputs={"x": size}))
    ends = [sorted(data.draw(st.integers(-8, 8)) / data.draw(st.sampled_from([1, 3, 16, 512])) for _ in range(2)) for _ in range(size)]
    low, high = (np.array([pair[end] for pair in ends]) for end in (0, 1))
    free = [j for j in range(size) if low[j] < high[j]]
    moves, finite = noted(with_comparators(graph), [ends], free)
    near, sure = noted(with_comparators(graph), [ends], free, curved=True)
    if sure[0]:
        assert contradicts(graph, near, free, low, high, seed) == ""
    if finite[0]:
        assert contradicts(graph, moves, free, low, high, seed) == ""
    try:
        total = signs_everywhere(with_comparators(graph))
    except Rejected:
        return
    assert contradicts(graph, total, list(range(size)), np.full(size, -3.0), np.full(size, 3.0), seed) == ""
    if finite[0]:
        known = Moves(total.up[free] | ~moves.up, total.down[free] | ~moves.down)
        assert bool(known.up.all() and known.down.all()), "cells know at least what holds everywhere"
