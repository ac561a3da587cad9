"""The chain form: slopes of activations, scales as exact numbers, refusals by name."""

from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.chain import read_chain
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.slopes import SLOPES
from lipctrl.certificates.checker.verdict import Rejected

F = Fraction


class Builder:
    """A chain of nodes, one after the other."""

    def __init__(self, size: int) -> None:
        self.nodes = [Node("input", (), {"name": "x", "size": size})]
        self.tensors: dict[str, np.ndarray] = {}

    def __call__(self, op: str, **attributes) -> "Builder":
        self.nodes.append(Node(op, (len(self.nodes) - 1,), attributes))
        return self

    def binary(self, op: str, *values: Fraction, first: bool = True) -> "Builder":
        signal = len(self.nodes) - 1
        self.nodes.append(Node("constant", (), {"values": values}))
        self.nodes.append(Node(op, (signal, signal + 1) if first else (signal + 1, signal)))
        return self

    def affine(self, weight, dtype=np.float64) -> "Builder":
        name = f"w{len(self.tensors)}"
        self.tensors[name] = np.array(weight, dtype=dtype)
        return self("affine", weight=name, bias=None)

    def graph(self, **outputs: int) -> Graph:
        return Graph(tuple(self.nodes), outputs or {"y": len(self.nodes) - 1}, self.tensors)


def operation(op: str) -> Graph:
    builder = Builder(1)
    if op in ("min", "max", "add"):
        return builder.binary(op, F(1, 3)).graph()
    return builder(op, **({"low": (F(-1),), "high": (F(1, 2),)} if op == "clip" else {})).graph()


@pytest.mark.parametrize("op", sorted(SLOPES))
@given(x=st.floats(-6, 6), step=st.floats(1e-3, 2))
def test_slopes_hold_for_every_pair(op, x, step):
    with ctx.workprec(128):
        low, high = (arb(v.numerator) / v.denominator for v in SLOPES[op])
        here, there = (evaluate_balls(operation(op), {"x": [arb(v)]})["y"][0] for v in (x, x + step))
        slope = (there - here) / (arb(x + step) - arb(x))
        assert not slope < low and not slope > high


@pytest.mark.parametrize("op", sorted(SLOPES))
def test_slopes_are_nearly_reached(op):
    """To 1e-6, and for the irrational ends from outside: not only wide, but right."""
    grid = [-60.0, *np.linspace(-4, 4, 2001).tolist(), 60.0]
    with ctx.workprec(128):
        values = [evaluate_balls(operation(op), {"x": [arb(v)]})["y"][0] for v in grid for v in (v - 2e-5, v + 2e-5)]
        widths = [arb(v + 2e-5) - arb(v - 2e-5) for v in grid]
        slopes = np.array([float((b - a) / w) for a, b, w in zip(values[::2], values[1::2], widths, strict=True)])
    assert abs(slopes.max() - float(SLOPES[op][1])) < 2e-6
    assert abs(slopes.min() - float(SLOPES[op][0])) < 2e-6


def test_irrational_ends_lie_outside_the_true_slopes():
    with ctx.workprec(200):
        root = arb(2).sqrt()
        gelu = (1 + arb(1).erf()) / 2 + root * (arb(-1)).exp() / (2 * arb.pi()).sqrt()
        x = arb("2.39935728052")  # where the slope of silu is greatest
        s = 1 / (1 + (-x).exp())
        silu = s * (1 + x * (1 - s))
        for op, greatest in (("gelu", gelu), ("silu", silu), ("erf", 2 / arb.pi().sqrt())):
            low, high = (arb(v.numerator) / v.denominator for v in SLOPES[op])
            assert greatest < high < greatest + arb("1e-9")
            if op != "erf":
                assert low < 1 - greatest


def test_a_policy_with_scales_becomes_gains_and_layers():
    builder = Builder(2).binary("sub", F(1), F(2)).binary("div", F(3, 10), F(5)).affine([[1, 2], [3, 4], [5, 6]])
    builder("tanh").affine([[1, 0, 0], [0, 1, 1]]).binary("mul", F(2), F(-1, 3)).binary("add", F(1), F(1))
    chain = read_chain(builder("clip", low=(F(-1), F(-1)), high=(F(1), F(1))).graph())
    assert chain.inputs == 2 and chain.outputs == 2 and chain.variables == [2, 3]
    for gain, truth in zip(chain.input_gain, (F(10, 3), F(1, 5)), strict=True):
        assert F(float(gain)) >= truth > F(float(np.nextafter(gain, 0)))
    assert F(float(chain.output_gain[0])) == 2 and F(float(chain.output_gain[1])) >= F(1, 3)
    assert np.array_equal(chain.hidden[0].low, [0, 0, 0]) and np.array_equal(chain.hidden[0].high, [1, 1, 1])


def test_scales_beside_an_activation_multiply_its_slopes_exactly():
    builder = Builder(1).affine([[1], [1]]).binary("mul", F(-2), F(3)).__call__("leaky_relu", slope=F(1, 4)).binary("div", F(4))
    chain = read_chain(builder.affine([[1, 1]]).graph())
    assert np.array_equal(chain.hidden[0].low, [-0.5, 0.1875]) and np.array_equal(chain.hidden[0].high, [-0.125, 0.75])
    assert np.array_equal(chain.hidden[0].gain, [0.5, 0.75])


def test_constants_on_either_side_of_a_difference():
    for first, low, high in ((True, 0.25, 1), (False, -1, -0.25)):
        builder = Builder(1).affine([[1]]).binary("sub", F(2), first=first)("leaky_relu", slope=F(1, 4))
        layer = read_chain(builder.affine([[1]]).graph()).hidden[0]
        assert (layer.low, layer.high) == (low, high)


def test_constants_on_either_side_of_a_product():
    for first in (True, False):
        chain = read_chain(Builder(2).binary("mul", F(2), F(-3), first=first).graph())
        assert np.array_equal(chain.input_gain, [2, 3])


def test_affine_maps_in_a_row_are_linear_units():
    chain = read_chain(Builder(1).affine([[1], [2]]).affine([[1, 1]]).graph())
    assert np.array_equal(chain.hidden[0].low, [1, 1]) and np.array_equal(chain.hidden[0].high, [1, 1])


def test_a_graph_without_affine_nodes_is_the_identity_with_gains():
    chain = read_chain(Builder(2).binary("mul", F(2), F(3)).graph())
    assert not chain.hidden and np.array_equal(chain.weight, np.eye(2))
    assert np.array_equal(chain.input_gain, [2, 3]) and np.array_equal(chain.output_gain, [1, 1])


def test_recentred_graphs_are_walked_into():
    inner = Builder(1).affine([[2]])("relu").affine([[3]])
    graph = Graph(tuple(inner.nodes), {"y": 3}, inner.tensors, nesting=1)
    tensors = {**inner.tensors, "offset": np.zeros(1)}
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("recentre", (0,), {"graph": graph, "point": (F(0),), "offset": "offset"}))
    chain = read_chain(Graph(nodes, {"u": 1}, tensors))
    assert chain.hidden[0].weight == 2 and chain.weight == 3


def test_groups_are_counted():
    chain = read_chain(Builder(1).affine(np.ones((7, 1)))("group_sort", group_size=3).affine(np.ones((1, 7))).graph())
    assert (chain.hidden[0].groups, chain.hidden[0].multipliers, chain.hidden[0].variables) == (3, 3, 4)


@pytest.mark.parametrize(
    ("builder", "word"),
    [
        (lambda: Builder(1)("exp"), "exp"),
        (lambda: Builder(1)("sqrt"), "sqrt"),
        (lambda: Builder(1)("power", exponent=2), "power"),
        (lambda: Builder(2)("select", indices=(0,)), "Selection"),
        (lambda: Builder(2).affine(np.eye(2))("group_sort", group_size=2), "group_sort"),
        (lambda: Builder(2)("group_sort", group_size=2).affine(np.eye(2)), "group_sort"),
        (lambda: Builder(2).affine(np.eye(2))("group_sort", group_size=2)("relu").affine(np.eye(2)), "group_sort"),
        (lambda: Builder(1).binary("div", F(1), first=False), "div"),
        (lambda: Builder(1).binary("div", F(0)), "zero"),
        (lambda: Builder(2).binary("div", F(2), F(0)), "zero"),
        (lambda: Builder(1).binary("add", F(1), F(2)), "add"),
        (lambda: Builder(1).binary("mul", F(10) ** 400), "too large"),
    ],
)
def test_what_is_no_chain_is_refused_by_name(builder, word):
    with pytest.raises(Rejected, match=word):
        read_chain(builder().graph())


def test_products_of_signals_two_inputs_and_two_outputs_are_refused():
    square = Builder(1)
    square.nodes.append(Node("mul", (0, 0)))
    with pytest.raises(Rejected, match="mul"):
        read_chain(square.graph())
    two = (Node("input", (), {"name": "a", "size": 1}), Node("input", (), {"name": "b", "size": 1}), Node("add", (0, 1)))
    with pytest.raises(Rejected, match="one input"):
        read_chain(Graph(two, {"y": 2}))
    with pytest.raises(Rejected, match="one output"):
        read_chain(Builder(1)("relu").graph(a=0, b=1))
    with pytest.raises(Rejected, match="constant"):
        read_chain(Graph((two[0], Node("constant", (), {"values": (F(1),)})), {"y": 1}))
