"""Enclosures of random graphs over random boxes hold values, slopes and float32 evaluations at every sampled point."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import INPUT_RANGE, graphs

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.enclosure import Enclosed, EnclosureAlgebra, seeds
from lipctrl.certificates.checker.graph import Graph, GraphError, Node, evaluate
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.rounding import float32_error
from lipctrl.core.numpy_evaluation import compile_numpy

FLOAT32_OPERATIONS = {
    "input", "constant", "neg", "add", "sub", "mul", "div", "relu", "abs", "min", "max", "leaky_relu", "clip", "group_sort",
    "affine", "select", "concatenate", "recentre",
}  # fmt: skip


def boxes(graph: Graph, seed: int, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all sizes inside the input range, thin ones and single points too; dyadic ends, so that samples are exact."""
    random = np.random.default_rng(seed)
    n = sum(graph.input_sizes.values())
    centre = random.uniform(-INPUT_RANGE, INPUT_RANGE, (batch, n))
    width = random.choice([0.0, 1e-9, 1e-3, 0.3, 2.0], (batch, 1)) * random.uniform(0, 1, (batch, n))
    return np.maximum(centre - width, -INPUT_RANGE), np.minimum(centre + width, INPUT_RANGE)


def enclose(graph: Graph, low: np.ndarray, high: np.ndarray) -> tuple[dict[str, Enclosed], np.ndarray, np.ndarray, EnclosureAlgebra]:
    centre, radius = Interval(low, high).centre_radius()
    algebra, inputs, first = EnclosureAlgebra(radius.T[:, :, None]), {}, 0
    for name, size in graph.input_sizes.items():
        columns = slice(first, first + size)
        inputs[name] = seeds(iv.point(centre[:, columns]), Interval(low[:, columns], high[:, columns]), first, low.shape[1])
        first += size
    return inputs, centre, radius, algebra


def balls_at(graph: Graph, x: np.ndarray) -> list[arb]:
    inputs, first = {}, 0
    for name, size in graph.input_sizes.items():
        inputs[name] = [arb(float(v)) for v in x[first : first + size]]
        first += size
    (output,) = evaluate_balls(graph, inputs).values()
    return output


@given(graphs(), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_values_and_slopes_hold_at_sampled_points(graph: Graph, seed: int) -> None:
    low, high = boxes(graph, seed)
    inputs, centre, _, algebra = enclose(graph, low, high)
    with np.errstate(all="ignore"):
        (result,) = evaluate(graph, inputs, algebra).values()
    random = np.random.default_rng(seed)
    for b in range(len(low)):
        middle = balls_at(graph, centre[b])
        for _ in range(3):
            x = np.clip(low[b] + random.choice([0, 0.5, 1, random.uniform()], len(low[b])) * (high[b] - low[b]), low[b], high[b])
            exact = balls_at(graph, x)
            for i, value in enumerate(exact):
                row = min(b, result.value.low.shape[0] - 1)
                ends = result.value.low[row, i], result.value.high[row, i]
                assert not value.is_finite() or np.isnan(ends).any() or (arb(ends[0]) <= value.upper() and arb(ends[1]) >= value.lower())
                if result.slope is None or not value.is_finite():
                    continue
                move = sum(
                    (_ball(result.slope.low[j, row, i], result.slope.high[j, row, i]) * (arb(float(x[j])) - arb(float(centre[b, j])))
                     for j in range(len(x))), arb(0),
                )  # fmt: skip
                assert not move.is_finite() or (value - middle[i] - move).overlaps(arb(0)), "slopes miss a difference"


def _ball(low: float, high: float) -> arb:
    return arb(low).union(arb(high)) if np.isfinite([low, high]).all() else arb("nan")


@given(graphs(inputs={"x": 3}), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_float32_evaluations_stay_within_their_bound(graph: Graph, seed: int) -> None:
    """NumPy's float32 evaluation of a graph lies within the bound of the real value, where the checker knows the operations."""
    low, high = boxes(graph, seed)
    inputs, _, radius, _ = enclose(graph, low, high)
    try:
        with np.errstate(all="ignore"):
            error = float32_error(graph, inputs["x"], radius.T[:, :, None], None)
    except GraphError:
        operations = {node.op for node in graph.nodes} | {
            n.op for m in graph.nodes if m.op == "recentre" for n in m.attributes["graph"].nodes
        }
        assert not operations <= FLOAT32_OPERATIONS or any(t.dtype != np.float32 for t in graph.tensors.values())
        return
    run = compile_numpy(graph, np.float32)
    random = np.random.default_rng(seed)
    for b in range(len(low)):
        for _ in range(4):
            x = np.clip(low[b] + random.uniform(size=3) * (high[b] - low[b]), low[b], high[b])
            (deployed,) = run(x=x.astype(np.float32)).values()
            exact = balls_at(graph, x)
            for i, value in enumerate(exact):
                bound = np.broadcast_to(error, (len(low), len(exact)))[b, i]
                if np.isfinite(bound) and value.is_finite():
                    assert abs(arb(float(deployed[i])) - value).lower() <= arb(float(bound))


def affine(weight: np.ndarray) -> Graph:
    node = Node("affine", (0,), {"weight": "w", "bias": None})
    return Graph((Node("input", (), {"name": "x", "size": weight.shape[1]}), node), {"y": 1}, {"w": weight})


def test_float32_error_covers_the_cast_of_a_tiny_operand() -> None:
    """x = 1.3 * 2^-149 is no float32; a huge weight shows what the cast did to it."""
    x = np.array([[1.3 * 2.0**-149]])
    graph = affine(np.array([[1e20]], np.float32))
    operand = seeds(iv.point(x), iv.point(x), 0, 1)
    error = float32_error(graph, operand, np.zeros((1, 1, 1)), None)
    deployed = float(np.float32(x[0, 0]) * np.float32(1e20))
    assert abs(deployed - float(np.float32(1e20)) * x[0, 0]) <= error[0, 0]
    assert error[0, 0] > 1e-26


def test_float32_overflow_is_not_a_bound() -> None:
    x = np.array([[1e30]])
    error = float32_error(affine(np.array([[1e20]], np.float32)), seeds(iv.point(x), iv.point(x), 0, 1), np.zeros((1, 1, 1)), None)
    assert np.isnan(error).all()


def test_float32_claims_need_float32_weights_and_an_assumption_for_tanh() -> None:
    x = seeds(iv.point(np.zeros((1, 1))), iv.point(np.zeros((1, 1))), 0, 1)
    with pytest.raises(GraphError, match="float32 weights"):
        float32_error(affine(np.array([[1.0]])), x, np.zeros((1, 1, 1)), None)
    tanh = Graph((Node("input", (), {"name": "x", "size": 1}), Node("tanh", (0,))), {"y": 1})
    with pytest.raises(GraphError, match="activation_ulp"):
        float32_error(tanh, x, np.zeros((1, 1, 1)), None)
    assert float32_error(tanh, x, np.zeros((1, 1, 1)), 4)[0, 0] > 0
    sine = Graph((Node("input", (), {"name": "x", "size": 1}), Node("sin", (0,))), {"y": 1})
    with pytest.raises(GraphError, match="sin"):
        float32_error(sine, x, np.zeros((1, 1, 1)), 4)


def test_kinks_have_the_whole_slope_interval() -> None:
    for op, ends in (("relu", (0, 1)), ("abs", (-1, 1))):
        graph = Graph((Node("input", (), {"name": "x", "size": 1}), Node(op, (0,))), {"y": 1})
        for low, high, expected in ((-1.0, 1.0, ends), (0.0, 1.0, (1, 1)), (-1.0, 0.0, (ends[0], ends[0]))):
            inputs, _, _, algebra = enclose(graph, np.array([[low]]), np.array([[high]]))
            slope = evaluate(graph, inputs, algebra)["y"].slope
            assert slope.low[0, 0, 0] <= expected[0] <= expected[1] <= slope.high[0, 0, 0]
            assert slope.low[0, 0, 0] >= expected[0] - 1e-12 and slope.high[0, 0, 0] <= expected[1] + 1e-12


def test_recentred_value_is_tight_near_its_point() -> None:
    """The inner bias cancels: near the point the value is of the order of the distance."""
    inner = Graph(
        (Node("input", (), {"name": "x", "size": 1}), Node("affine", (0,), {"weight": "w", "bias": "b"}), Node("tanh", (1,))),
        {"y": 2}, {"w": np.array([[0.7]]), "b": np.array([0.3])}, 1,
    )  # fmt: skip
    offset = np.array([np.tanh(0.3)])
    node = Node("recentre", (0,), {"graph": inner, "point": (Fraction(0),), "offset": "o"})
    graph = Graph((Node("input", (), {"name": "x", "size": 1}), node), {"y": 1}, {**inner.tensors, "o": offset})
    inputs, _, _, algebra = enclose(graph, np.array([[-1e-6]]), np.array([[1e-6]]))
    value = evaluate(graph, inputs, algebra)["y"].value
    assert 5e-7 < value.high[0, 0] < 1e-6 and -1e-6 < value.low[0, 0] < -5e-7
