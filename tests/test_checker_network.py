"""The checker's network form on graphs and networks that are small enough to say what must come out, number by number."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb

from lipctrl.certificates.checker import chain as chain_module
from lipctrl.certificates.checker import increments as increments_module
from lipctrl.certificates.checker import network as network_module
from lipctrl.certificates.checker import products as products_module
from lipctrl.certificates.checker.chain import chain_of, read_chain
from lipctrl.certificates.checker.definite import balls, exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.increments import differences, groups, multiplier_form, scaled_output, unroll
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.network import (
    Activation,
    Affine,
    Concatenation,
    Input,
    Network,
    Selection,
    Sort,
    Sum,
    read_network,
)
from lipctrl.certificates.checker.products import absolute_product, norm_product, products_of_norms, require_little, scaled
from lipctrl.certificates.checker.slopes import SLOPES, UNBOUNDED, compose, enclose, slopes_of
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.windows import leaving_scale, window

F = Fraction
ONE = np.ones(1)


def graph_of(*nodes, size=2, tensors=None):
    made = (Node("input", (), {"name": "x", "size": size}), *nodes)
    return Graph(made, {"y": len(made) - 1}, {name: np.array(value, np.float64) for name, value in (tensors or {}).items()})


def affine(operand, weight="w"):
    return Node("affine", (operand,), {"weight": weight, "bias": None})


def constant(*values):
    return Node("constant", (), {"values": tuple(map(F, values))})


def described(network):
    """Everything that a network form says, as plain data."""
    signals = []
    for signal in network.signals:
        values = [getattr(signal, field.name) for field in dataclasses.fields(signal)]
        signals.append((type(signal).__name__, *(value.tolist() if isinstance(value, np.ndarray) else value for value in values)))
    return signals, network.output, network.input_gain.tolist(), network.output_gain.tolist()


def array(*rows):
    return np.array(rows, np.float64)


# --- slopes -------------------------------------------------------------------------------------------------------------


def test_slopes_of_operations_are_the_known_ones():
    one, zero = F(1), F(0)
    expected = {op: (zero, one) for op in ("relu", "tanh", "softplus", "clip", "min", "max")}
    expected |= {op: (-one, one) for op in ("abs", "sin", "cos")} | {"add": (one, one), "neg": (-one, -one), "sigmoid": (zero, F(1, 4))}
    assert {op: SLOPES[op] for op in expected} == expected and {*SLOPES} - {*expected} == {"erf", "gelu", "silu"}
    assert {"tan", "exp", "log", "sqrt", "power"} == UNBOUNDED
    steepest = {"erf": 2 / arb.pi().sqrt()}
    steepest["gelu"] = (1 + arb(1).erf()) / 2 + arb(-1).exp() / arb.pi().sqrt()  # at the root of two
    at = arb("2.399357280520")  # where the slope of x sigmoid(x) is greatest: x = coth(x / 2)
    steepest["silu"] = 1 / (1 + (-at).exp()) * (1 + at / (1 + at.exp()))
    for op, truth in steepest.items():
        low, high = SLOPES[op]
        assert truth < arb(high.numerator) / high.denominator < truth + 1e-10
        assert low == (0 if op == "erf" else 1 - high)


def slopes_in(node, *before, size=2):
    graph = graph_of(*before, node, size=size)
    found = slopes_of(graph, graph.nodes[-1])
    return None if found is None else (found.low.tolist(), found.high.tolist())


def test_slopes_of_nodes_follow_their_constants():
    assert slopes_in(Node("leaky_relu", (0,), {"slope": F(-1, 2)})) == ([-0.5], [1.0])
    assert slopes_in(Node("leaky_relu", (0,), {"slope": F(3)})) == ([1.0], [3.0])
    assert slopes_in(Node("exp", (0,))) is None and slopes_in(Node("power", (0,), {"exponent": 2})) is None
    assert slopes_in(Node("sub", (0, 1)), constant(1, 2)) == ([1.0], [1.0])
    assert slopes_in(Node("sub", (1, 0)), constant(1, 2)) == ([-1.0], [-1.0])
    for operands in ((0, 1), (1, 0)):
        assert slopes_in(Node("mul", operands), constant(-3, F(1, 2))) == ([-3.0, 0.5], [-3.0, 0.5])
    assert slopes_in(Node("div", (0, 1)), constant(-4, F(1, 2))) == ([-0.25, 2.0], [-0.25, 2.0])
    with pytest.raises(Rejected, match="zero"):
        slopes_in(Node("div", (0, 1)), constant(1, 0))
    for node in (Node("div", (1, 0)), Node("select", (0,), {"indices": (0,)})):
        with pytest.raises(Rejected, match=f"{node.op!r} is no part"):
            slopes_in(node, constant(1, 2))


def test_slopes_are_rounded_outwards_to_the_nearest_floats():
    for low, high in ((F(1, 3), F(2, 3)), (F(-1, 3), F(-1, 10))):
        found = enclose([low], [high])
        assert F(found.low[0]) < low < F(math.nextafter(found.low[0], 2)) and F(math.nextafter(found.high[0], -2)) < high < F(found.high[0])
    largest = F(2) ** 1024 - F(2) ** 971
    assert enclose([largest], [largest]).high.tolist() == [float(largest)]
    for low, high in ((-largest - 1, F(0)), (F(0), largest + 1), (F(0), F(2) ** 1024)):
        with pytest.raises(Rejected, match="too large"), np.errstate(all="ignore"):
            enclose([low], [high])
        with pytest.raises(Rejected, match="too large"), np.errstate(all="ignore"):
            enclose([F(0), low], [F(1), high])


def test_products_of_slopes_hold_every_product():
    first = Interval(array(-2, 1, -1).ravel(), array(3, 2, -0.5).ravel())
    product = compose(first, Interval(array(-5).ravel(), array(7).ravel()))
    assert product.low.tolist() == [-15, -10, -7] and product.high.tolist() == [21, 14, 5]
    tenth = Interval(np.array([0.1]), np.array([0.1]))
    square = compose(tenth, tenth)
    assert F(square.low[0]) < F(0.1) ** 2 < F(square.high[0]) == F(math.nextafter(square.low[0], 1))


# --- the network form ---------------------------------------------------------------------------------------------------


def test_every_kind_of_signal_is_read_as_it_is():
    graph = graph_of(
        affine(0, "a"),
        Node("relu", (1,)),
        Node("group_sort", (2,), {"group_size": 2}),
        Node("select", (3,), {"indices": (2, 0)}),
        Node("sub", (4, 0)),
        Node("add", (5, 4)),
        Node("concatenate", (6, 1)),
        affine(7, "b"),
        Node("leaky_relu", (8,), {"slope": F(-2)}),
        tensors={"a": [[1, 2], [3, 4], [5, 6]], "b": [[1, 2, 3, 4, 5]]},
    )
    signals = [
        ("Input", 2),
        ("Affine", 0, [[1, 2], [3, 4], [5, 6]]),
        ("Activation", 1, [0, 0, 0], [1, 1, 1]),
        ("Sort", 2, 3, 2),
        ("Selection", 3, [2, 0]),
        ("Sum", 4, 0, -1, 2),
        ("Sum", 5, 4, 1, 2),
        ("Concatenation", (6, 1), 5),
        ("Affine", 7, [[1, 2, 3, 4, 5]]),
    ]
    network = read_network(graph)
    assert described(network) == (signals, 8, [1, 1], [2])
    assert (network.inputs, network.outputs, network.variables) == (2, 1, [2, 3, 1])
    assert [layer.multipliers for layer in network.layers] == [3, 2]


@pytest.mark.parametrize(("op", "pair", "sign"), [("max", (1, 2), 1), ("min", (2, 1), -1)])
def test_extremes_of_two_signals_are_a_sum_a_unit_and_a_sum(op, pair, sign):
    graph = graph_of(affine(0), affine(0, "v"), Node(op, (1, 2)), size=1, tensors={"w": [[3], [1]], "v": [[5], [2]]})
    signals = [("Input", 1), ("Affine", 0, [[3], [1]]), ("Affine", 0, [[5], [2]])]
    signals += [("Sum", *pair, -1, 2), ("Activation", 3, [0, 0], [1, 1]), ("Sum", 2, 4, sign, 2)]
    assert described(read_network(graph)) == (signals, 5, [1], [1, 1])
    narrowed = read_network(graph, {3: Interval(np.array([0.0, 0.25]), np.array([1.0, 0.5]))})
    assert narrowed.signals[4].low.tolist() == [0, 0.25] and narrowed.signals[4].high.tolist() == [1, 0.5]


def test_runs_at_the_ends_are_gains():
    tensors = {"w": [[1, 1], [1, 2]]}
    graph = graph_of(
        constant(-2, F(1, 4)), Node("mul", (0, 1)), Node("leaky_relu", (2,), {"slope": F(-3)}),
        affine(3), Node("abs", (4,)), constant(4, -2), Node("div", (5, 6)), tensors=tensors,
    )  # fmt: skip
    signals = [("Input", 2), ("Affine", 0, [[1, 1], [1, 2]])]
    assert described(read_network(graph)) == (signals, 1, [6, 0.75], [0.25, 0.5])


def test_runs_inside_become_one_map_where_nobody_else_reads():
    tensors = {"w": [[1, 1], [1, 2]], "v": [[2, 3]]}
    constants = [constant(-2, F(1, 4)), constant(10)]
    run = graph_of(*constants, affine(0), Node("relu", (3,)), Node("mul", (4, 1)), Node("add", (2, 5)), affine(6, "v"), tensors=tensors)
    signals = [("Input", 2), ("Affine", 0, [[1, 1], [1, 2]]), ("Activation", 1, [-2, 0], [0, 0.25]), ("Affine", 2, [[2, 3]])]
    assert described(read_network(run)) == (signals, 3, [1, 1], [1])
    shared = graph_of(*constants, affine(0), Node("relu", (3,)), Node("mul", (4, 1)), Node("sub", (4, 5)), tensors=tensors)
    signals[2:] = [("Activation", 1, [0, 0], [1, 1]), ("Activation", 2, [-2, 0.25], [-2, 0.25]), ("Sum", 2, 3, -1, 2)]
    assert described(read_network(shared)) == (signals, 4, [1, 1], [1, 1])


def test_an_input_that_others_read_keeps_its_maps_inside():
    graph = graph_of(Node("neg", (0,)), Node("relu", (1,)), Node("abs", (1,)), Node("add", (2, 3)))
    signals = [("Input", 2), ("Activation", 0, [0, 0], [1, 1]), ("Activation", 0, [-1, -1], [1, 1]), ("Sum", 1, 2, 1, 2)]
    assert described(read_network(graph)) == (signals, 3, [1, 1], [1, 1])
    skip = graph_of(Node("relu", (0,)), Node("add", (0, 1)))
    assert described(read_network(skip)) == ([("Input", 2), ("Activation", 0, [0, 0], [1, 1]), ("Sum", 0, 1, 1, 2)], 2, [1, 1], [1, 1])


def test_shifts_are_left_out_and_reversed_differences_turn_the_sign():
    tensors = {"w": [[1, 1], [1, 2]]}
    for node, slope in ((Node("add", (2, 1)), None), (Node("sub", (2, 1)), None), (Node("add", (1, 2)), 1), (Node("sub", (1, 2)), -1)):
        network = read_network(graph_of(constant(5, 6), affine(0), node, affine(3), tensors=tensors))
        middle = [] if slope is None else [("Activation", 1, [slope] * 2, [slope] * 2)]
        assert described(network)[0][2:-1] == middle and network.signals[1].weight is network.signals[-1].weight


def test_coordinates_that_do_not_pass_are_fixed():
    tensors = {"w": [[1, 1]]}
    graph = graph_of(constant(0, 3), Node("mul", (0, 1)), affine(2), tensors=tensors)
    signals = [("Input", 2), ("Activation", 0, [0, 1], [0, 1]), ("Affine", 1, [[1, 1]])]
    assert described(read_network(graph)) == (signals, 2, [1, 3], [1])
    one_number = graph_of(constant(0), Node("mul", (0, 1)), affine(2), tensors=tensors)  # fixes both
    signals[1] = ("Activation", 0, [0, 0], [0, 0])
    assert described(read_network(one_number)) == (signals, 2, [1, 1], [1])
    given = read_network(graph_of(affine(0), tensors=tensors), {0: Interval(np.zeros(2), np.array([0.0, 1.0]))})
    assert described(given) == ([("Input", 2), ("Activation", 0, [0, 1], [0, 1]), ("Affine", 1, [[1, 1]])], 2, [1, 1], [1])
    ends = read_network(graph_of(constant(0, 3), Node("mul", (0, 1))))
    assert described(ends) == ([("Input", 2)], 0, [1, 3], [0, 1])
    both = read_network(graph_of(constant(0, 3), Node("mul", (0, 1)), Node("relu", (2,)), Node("add", (2, 3))))
    signals = [("Input", 2), ("Activation", 0, [0, 1], [0, 1]), ("Activation", 1, [0, 0], [1, 1]), ("Sum", 1, 2, 1, 2)]
    assert described(both) == (signals, 3, [1, 3], [1, 1])


def test_recentred_graphs_are_read_with_their_own_places():
    nodes = (Node("input", (), {"name": "z", "size": 1}), Node("relu", (0,)), constant(5), Node("add", (1, 2)))
    inner = Graph(nodes, {"o": 3}, nesting=1)
    recentre = Node("recentre", (1,), {"graph": inner, "point": (F(0),), "offset": "o"})
    graph = graph_of(affine(0), recentre, affine(2), size=1, tensors={"w": [[2]], "o": [0]})
    expected = [("Input", 1), ("Affine", 0, [[2]]), ("Activation", 1, [0], [1]), ("Affine", 2, [[2]])]
    assert described(read_network(graph)) == (expected, 3, [1], [1])
    expected[2] = ("Activation", 1, [0.5], [0.75])
    assert described(read_network(graph, {(2, 1): Interval(0.5 * ONE, 0.75 * ONE)}))[0] == expected
    for other in (1, 2, (2,), (2, 2), (1, 1)):  # places without such a node change nothing
        assert read_network(graph, {other: Interval(0.5 * ONE, 0.75 * ONE)}).signals[2].low.tolist() == [0]


SLOPES_OF_RELU = [
    (np.zeros(1), np.ones(2), "2 finite"),
    (np.zeros(2), np.ones(1), "2 finite"),
    (np.zeros(3), np.ones(3), "2 finite"),
    (np.zeros(2), np.array([1.0, np.inf]), "2 finite"),
    (np.array([np.nan, 0.0]), np.ones(2), "2 finite"),
    (np.array([2.0, 0.0]), np.array([3.0, 1.0]), "contradict"),
    (np.array([0.5, 0.0]), np.array([0.25, 1.0]), "contradict"),
]


@pytest.mark.parametrize(("low", "high", "word"), SLOPES_OF_RELU)
@pytest.mark.parametrize("op", ["relu", "exp"])
def test_given_slopes_that_cannot_be_are_refused(low, high, word, op):
    graph = graph_of(affine(0), Node(op, (1,)), affine(2), tensors={"w": [[1, 1], [1, 2]]})
    if op == "exp" and low[0] == 2:
        assert read_network(graph, {2: Interval(low, high)}).signals[2].high.tolist() == [3, 1]
        return
    with pytest.raises(Rejected, match=word):
        read_network(graph, {2: Interval(low, high)})


SHORT = Node("select", (0,), {"indices": (0,)})


@pytest.mark.parametrize(
    ("nodes", "word"),
    [
        ([Node("exp", (0,))], "'exp' has unbounded"),
        ([Node("mul", (0, 0))], "'mul' of 2 signals"),
        ([Node("div", (0, 0))], "'div' of 2 signals"),
        ([constant(1), Node("concatenate", (0, 1))], "'concatenate' of 1 signals"),
        ([constant(1), Node("concatenate", (0, 1, 0))], "'concatenate' of 2 signals"),
        ([constant(1), Node("relu", (1,)), Node("add", (0, 2))], "'relu' of 0 signals"),
        ([constant(1), affine(1, "v"), Node("add", (0, 2))], "'affine' of 0 signals"),
        ([constant(1), Node("add", (1, 1)), Node("add", (0, 2))], "'add' of 0 signals"),
        ([constant(1)], "is a constant"),
        *(([SHORT, Node(op, pair)], f"{op!r} repeats") for op in ("add", "sub", "max") for pair in ((0, 1), (1, 0))),
        *(([SHORT, constant(1, 2), Node(op, pair)], f"{op!r} repeats") for op in ("add", "sub", "mul", "min") for pair in ((1, 2), (2, 1))),
    ],
)  # fmt: skip
def test_what_is_no_network_form_is_refused_by_name(nodes, word):
    with pytest.raises(Rejected, match=word):
        read_network(graph_of(*nodes, tensors={"v": [[1], [2]]}))


def test_one_input_and_one_output():
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("input", (), {"name": "z", "size": 1}), Node("relu", (0,)))
    with pytest.raises(Rejected, match=r"\['x', 'z'\] and \['y'\]"):
        read_network(Graph(nodes, {"y": 2}))
    with pytest.raises(Rejected, match=r"\['x'\] and \['y', 'w'\]"):
        read_network(Graph((nodes[0], nodes[2].__class__("relu", (0,))), {"y": 1, "w": 1}))


def test_recentred_constants_are_refused():
    inner = Graph((Node("input", (), {"name": "z", "size": 1}), constant(1)), {"o": 1}, nesting=1)
    recentre = {"graph": inner, "point": (F(0),), "offset": "o"}
    with pytest.raises(Rejected, match="is a constant"):
        read_network(graph_of(Node("recentre", (0,), recentre), Node("add", (0, 1)), size=1, tensors={"o": [0]}))
    with pytest.raises(Rejected, match="'recentre' of 0 signals"):
        read_network(graph_of(constant(1), Node("recentre", (1,), recentre), Node("add", (0, 2)), size=1, tensors={"o": [0]}))


def test_exact_numbers_are_counted_before_they_are_computed(monkeypatch):
    entering = [constant(1, 2), Node("mul", (0, 1)), affine(2)]  # 2 factors, 4 products for each coordinate
    inside = [constant(1, 2), affine(0), Node("relu", (2,)), Node("div", (3, 1)), affine(4)]
    for nodes in (entering, inside):
        graph = graph_of(*nodes, tensors={"w": [[1, 1], [1, 2]]})
        monkeypatch.setattr(network_module, "MAX_FRACTIONS", 10)
        read_network(graph)
        monkeypatch.setattr(network_module, "MAX_FRACTIONS", 9)
        with pytest.raises(Rejected, match="more than 9 exact numbers"):
            read_network(graph)


def test_activations_and_sorts_describe_themselves():
    activation = Activation(0, np.array([-3.0, 0.5, 0.0, -1.0]), np.array([2.0, 0.5, 1.0, -1.0]))
    assert activation.gain.tolist() == [3, 0.5, 1, 1] and activation.free.tolist() == [0, 2]
    assert (activation.size, activation.multipliers, activation.variables) == (4, 2, 2)
    sizes = {(4, 2): (2, 2), (5, 2): (3, 2), (7, 3): (3, 4), (3, 9): (1, 2), (1, 2): (1, 0)}
    assert {key: (Sort(0, *key).multipliers, Sort(0, *key).variables) for key in sizes} == sizes


# --- increments ---------------------------------------------------------------------------------------------------------


def dense(network):
    """Rows of every signal over all variables, from the definition of each kind of signal; exact for dyadic numbers."""
    total, first, rows, layers = sum(network.variables), network.inputs, [], []

    def fresh(count):
        nonlocal first
        first += count
        return np.eye(total)[first - count : first]

    for signal in network.signals:
        match signal:
            case Input():
                value = np.eye(total)[: signal.size]
            case Affine():
                value = signal.weight @ rows[signal.operand]
            case Sum():
                value = rows[signal.first] + signal.sign * rows[signal.second]
            case Concatenation():
                value = np.vstack([rows[operand] for operand in signal.operands])
            case Selection():
                value = rows[signal.operand][signal.indices]
            case Activation():
                before = rows[signal.operand]
                value = signal.low[:, None] * before
                value[signal.free] = fresh(len(signal.free))
                layers.append((signal, before, value))
            case Sort():
                before, parts = rows[signal.operand], []
                for begin in range(0, signal.size, signal.group_size):
                    group = before[begin : begin + signal.group_size]
                    new = fresh(len(group) - 1)  # the columns e_i - e_(i + 1)
                    steps = np.vstack([new, np.zeros((1, total))]) - np.vstack([np.zeros((1, total)), new])
                    parts.append(group.mean(axis=0) + steps)
                value = np.vstack(parts)
                layers.append((signal, before, value))
        rows.append(value)
    return rows, layers


def dense_form(network, head, scale, multipliers, chosen=slice(None)):
    """The quadratic form of its definition."""
    rows, layers = dense(network)
    out = (scale[:, None] * rows[network.output])[chosen]
    form = rows[0].T @ (head[:, None] * rows[0]) - out.T @ out
    for (layer, before, after), values in zip(layers, multipliers, strict=True):
        if isinstance(layer, Activation):
            for value, i in zip(values, layer.free, strict=True):
                low, high = (after[i] - end[i] * before[i] for end in (layer.low, layer.high))
                form += value * (np.outer(low, high) + np.outer(high, low)) / 2
        else:
            for value, begin in zip(values, range(0, layer.size, layer.group_size), strict=True):
                group = slice(begin, begin + layer.group_size)
                form += value * (after[group].T @ after[group] - before[group].T @ before[group])
    return form


def made(*signals, output=None, inputs=2):
    signals = (Input(inputs), *signals)
    output = len(signals) - 1 if output is None else output
    return Network(signals, output, np.ones(inputs), np.ones(signals[output].size))


W32, W53 = array([1, 2], [3, -1], [0, 5]), array([1, 0, 2], [0, -1, 0.5], [2, 2, 2], [0, 0, 1], [4, -0.5, 0])
MIXED = Activation(1, np.array([0.0, 0.5, -1.0]), np.array([1.0, 0.5, 0.25]))
EVERY_KIND = made(
    Affine(0, W32), MIXED, Sort(2, 3, 2), Selection(3, np.array([2, 0])), Sum(4, 0, -1.0, 2), Concatenation((5, 1), 5),
    Affine(6, array([1, -2, 0.5, 3, 1], [2, 0, 0, -1, 4])),
)  # fmt: skip
RELU3, RELU2 = (np.zeros(3), np.ones(3)), (np.zeros(2), np.ones(2))
NETWORKS = {
    "every kind": EVERY_KIND,
    "linear": made(Affine(0, W32), Activation(1, np.array([0.5, -2.0, 0.0]), np.array([0.5, -2.0, 0.0])), Affine(2, W53)),
    "nothing passes": made(Affine(0, W32), Activation(1, np.zeros(3), np.zeros(3)), Affine(2, W53)),
    "identities": made(
        Sum(0, 0, -1.0, 2), Activation(0, *RELU2), Sum(2, 2, 1.0, 2), Sum(0, 2, -1.0, 2), Sum(2, 0, 1.0, 2), Selection(2, np.array([1, 1])),
        Concatenation((2, 0, 4), 6), Sum(5, 1, -1.0, 2), Concatenation((6, 7, 8), 10),
    ),
    "the input leaves": made(),
    "a variable leaves": made(Affine(0, W32), Activation(1, *RELU3)),
    "curved": made(Affine(0, W32), Activation(1, np.array([-0.5, 0.25, 0.0]), np.array([1.0, 2.0, 0.5])), Affine(2, W53)),
    "steep and falling": made(Affine(0, W32), Activation(1, np.array([1.0, -1.0, 0.0]), np.array([3.0, 0.0, 0.5]))),
    "curved behind a sum": made(
        Affine(0, W32), Activation(1, *RELU3), Sum(1, 2, -1.0, 3), Activation(3, np.array([0.25, 0.5, -1.0]), np.array([0.5, 0.5, 1.0])),
        Sum(4, 2, 1.0, 3), Selection(5, np.array([2, 2, 0])),
    ),
    "groups of two": made(Affine(0, W53 @ W32), Sort(1, 5, 2), Affine(2, W53.T)),
    "groups of four": made(Affine(0, W53 @ W32), Activation(1, np.zeros(5), np.ones(5)), Sort(2, 5, 4), Sort(3, 5, 2)),
    "nothing to sort": made(Selection(0, np.array([1])), Sort(1, 1, 2), Affine(2, array([3], [-2]))),
}  # fmt: skip


def values_for(network):
    """Multipliers, head and scale that are dyadic and all different."""
    multipliers, start = [], 1
    for layer in network.layers:
        multipliers.append(0.25 * np.arange(start, start + layer.multipliers))
        start += layer.multipliers
    return 2.0 + np.arange(network.inputs), 0.5 + 0.25 * np.arange(network.outputs), multipliers


@pytest.mark.parametrize("network", NETWORKS.values(), ids=[*NETWORKS])
@pytest.mark.parametrize("lift", [np.array, exact, balls], ids=["floats", "exact", "balls"])
def test_forms_of_small_networks_are_exactly_the_ones_of_their_definition(network, lift):
    unrolled, (head, scale, multipliers) = unroll(network, lift), values_for(network)
    plain = (lambda rows: rows.value) if lift is exact else (lambda rows: np.array(rows, np.float64))
    rows, layers = dense(network)
    assert unrolled.sizes == network.variables and len(unrolled.entering) == len(unrolled.bases) == len(layers)

    def flat(linear, count):
        blocks = [plain(linear[k]) if k in linear else np.zeros((count, size)) for k, size in enumerate(unrolled.sizes)]
        return np.hstack(blocks)

    assert np.array_equal(flat(unrolled.output, network.outputs), rows[network.output])
    for (layer, before, _), entering, basis in zip(layers, unrolled.entering, unrolled.bases, strict=True):
        expected = before[layer.free] if isinstance(layer, Activation) else before
        assert np.array_equal(flat(unrolled_full(entering, unrolled, lift), len(expected)), expected)
        assert (basis is None) == isinstance(layer, Activation)
    for chosen in (slice(None), slice(network.outputs - 1, network.outputs)):
        form = multiplier_form(unrolled, lift(head), scaled_output(unrolled, scale, chosen), multipliers)
        assert np.array_equal(plain(form), dense_form(network, head, scale, multipliers, chosen))


def test_every_layer_has_its_multipliers():
    network = NETWORKS["groups of four"]
    head, scale, multipliers = values_for(network)
    unrolled = unroll(network, np.array)
    for other in (multipliers[:-1], [*multipliers, multipliers[0]]):
        with pytest.raises(ValueError, match="zip"):
            multiplier_form(unrolled, head, scaled_output(unrolled, scale), other)


def unrolled_full(linear, unrolled, lift):
    return {block: lift(np.eye(unrolled.sizes[block])) if rows is None else rows for block, rows in linear.items()}


def test_bases_and_groups():
    assert differences(3).tolist() == [[1, 0], [-1, 1], [0, -1]] and differences(1).shape == (1, 0)
    member, sizes = groups(Sort(0, 5, 2))
    assert member.tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]] and sizes.tolist() == [2, 2, 1]
    basis = unroll(made(Affine(0, W53 @ W32), Sort(1, 5, 3)), np.array).bases[0]
    assert basis.tolist() == [[1, 0, 0], [-1, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
    doubled = unroll(made(Affine(0, W53 @ W32), Sort(1, 5, 3)), np.array, lambda width: 2 * differences(width))
    assert np.array_equal(doubled.bases[0], 2 * basis) and np.array_equal(doubled.output[1], 2 * basis)


def test_numbers_and_multiplications_are_counted_before_they_are_made(monkeypatch):
    for name, network in NETWORKS.items():
        cells, products = COUNTS[name]
        for lift, limit in ((exact, "LIMITS"), (np.array, "LIMITS"), (balls, "BALL_LIMITS")):
            with monkeypatch.context() as patched:
                patched.setattr(increments_module, "BALL_LIMITS" if limit == "LIMITS" else "LIMITS", (0, 0))
                patched.setattr(increments_module, limit, (cells, products))
                unroll(network, lift)
                for less in ((cells - 1, products), (cells, products - 1)):
                    patched.setattr(increments_module, limit, less)
                    if min(less) >= 0:
                        with pytest.raises(Rejected, match=f"more than {less[0]} numbers or {less[1]} products"):
                            unroll(network, lift)


#: Numbers and multiplications of each network: weights, identities that are written out, linear forms.
COUNTS = {
    "every kind": (106, 182),
    "linear": (43, 63),
    "nothing passes": (27, 27),
    "identities": (136, 136),
    "the input leaves": (4, 4),
    "a variable leaves": (21, 21),
    "curved": (42, 42),
    "steep and falling": (21, 21),
    "curved behind a sum": (100, 100),
    "groups of two": (67, 165),
    "groups of four": (135, 410),
    "nothing to sort": (14, 16),
}


@pytest.mark.parametrize(
    ("name", "count"),  # pairs of blocks times rows: of the output, and of what enters curved units or sorted groups, and their sums
    [
        ("a variable leaves", 27),
        ("linear", 20),
        ("curved", 45 + 8),
        ("steep and falling", 27 + 4),
        ("groups of two", 36 + 20 + 12),
        ("every kind", 2 * (4 + 4 + 4 + 2 + 2 + 1) + 4 + 36 + 24),
    ],
)
def test_multiplications_of_the_form_are_counted_before_they_are_made(name, count, monkeypatch):
    network = NETWORKS[name]
    head, scale, multipliers = values_for(network)
    for lift, limit in ((exact, "LIMITS"), (balls, "BALL_LIMITS")):
        unrolled = unroll(network, lift)
        with monkeypatch.context() as patched:
            patched.setattr(increments_module, "BALL_LIMITS" if limit == "LIMITS" else "LIMITS", (0, 0))
            patched.setattr(increments_module, limit, (0, count))
            multiplier_form(unrolled, lift(head), scaled_output(unrolled, scale), multipliers)
            patched.setattr(increments_module, limit, (count, count - 1))
            with pytest.raises(Rejected, match=f"more than {count - 1} products"):
                multiplier_form(unrolled, lift(head), scaled_output(unrolled, scale), multipliers)


# --- bounds without numbers ---------------------------------------------------------------------------------------------


def just_above(value, truth):
    return F(value) >= truth and value <= float(truth) * (1 + 1e-9)


def test_absolute_products_are_sums_of_absolute_values():
    assert [float(v) for v in dense_largest(EVERY_KIND)] == [32.5, 36.0]
    for network in NETWORKS.values():
        for scale_in in (np.ones(2), np.array([0.5, 4.0])):
            scale_out = 1.0 + np.arange(network.outputs)
            found = absolute_product(network, scale_in, scale_out)
            truth = [F(s) * v for s, v in zip(scale_out, dense_largest(network, 1 / scale_in), strict=True)]
            assert len(found) == network.outputs
            assert all(just_above(f, t) if t else f == 0 for f, t in zip(found, truth, strict=True)), (found, truth)


def dense_largest(network, start=(1.0, 1.0)):
    """Largest absolute values of the output, exactly."""
    values = []
    for signal in network.signals:
        match signal:
            case Input():
                value = [F(v) for v in start]
            case Affine():
                value = [sum((abs(F(w)) * v for w, v in zip(row, values[signal.operand], strict=True)), F(0)) for row in signal.weight]
            case Sum():
                value = [a + b for a, b in zip(values[signal.first], values[signal.second], strict=True)]
            case Concatenation():
                value = [v for operand in signal.operands for v in values[operand]]
            case Selection():
                value = [values[signal.operand][i] for i in signal.indices]
            case Activation():
                value = [F(g) * v for g, v in zip(signal.gain, values[signal.operand], strict=True)]
            case Sort():
                before, size = values[signal.operand], signal.group_size
                value = [max(before[i - i % size : i - i % size + size]) for i in range(signal.size)]
        values.append(value)
    return values[network.output]


def test_factors_of_zero_make_zero_of_everything():
    with np.errstate(all="ignore"):
        found = scaled(np.array([0.0, 2.0, 0.0, 0.1]), np.array([np.inf, 0.0, np.nan, 0.1]))
    assert found.tolist() == [0, 0, 0, np.nextafter(0.1 * 0.1, 1)]
    assert np.isnan(scaled(np.array([np.nan]), np.array([1.0]))).all()
    assert absolute_product(made(Affine(0, array([0, 0], [1, 0]))), np.array([1.0, 0.0]), np.ones(2))[0] == 0


D2 = np.diag([2.0, 1.0])
HALF = Activation(1, np.array([0.0, -0.5]), np.array([0.5, 0.25]))


@pytest.mark.parametrize(
    ("network", "scale_in", "scale_out", "truth"),
    [
        (made(), (1, 1), (1, 1), F(1)),
        (made(), (2, 4), (3, 8), F(2)),
        (made(Affine(0, D2)), (1, 1), (1, 1), F(2)),
        (made(Affine(0, D2)), (4, 1), (1, 1), F(1)),
        (made(Affine(0, D2)), (2, 2), (1, 1), F(1)),
        (made(Affine(0, D2)), (1, 1), (2, 2), F(4)),
        (made(Affine(0, D2), Activation(1, np.zeros(2), 2 * np.ones(2)), Sort(2, 2, 2)), (1, 1), (1, 1), F(4)),
        (made(Affine(0, D2)), (1, 1), (1, 8), F(8)),
        (made(Affine(0, D2), Affine(1, 3 * D2)), (4, 1), (1, 8), F(24)),
        (made(Affine(0, D2), HALF), (1, 1), (1, 1), F(1)),
        (made(Affine(0, D2), HALF, Affine(2, 3 * np.eye(2))), (1, 1), (1, 1), F(3)),
        (made(Affine(0, D2), HALF), (1, 1), (1, 8), F(8)),
        (made(Affine(0, D2), HALF, Sum(1, 2, -1.0, 2)), (1, 1), (1, 1), F(3)),
        (made(Affine(0, D2), HALF, Sum(2, 1, -1.0, 2)), (1, 1), (1, 1), F(3)),
        (made(Affine(0, D2), HALF, Selection(1, np.array([0])), Sum(2, 2, 1.0, 2)), (1, 1), (1, 1), F(2)),
        (made(Affine(0, D2), Activation(0, *RELU2), Concatenation((1, 2), 4)), (1, 1), (1,) * 4, (F(5), 2)),
        (made(Affine(0, D2), HALF, Concatenation((1, 2, 2), 6)), (1, 1), (1,) * 6, (F(6), 2)),
        (made(Affine(0, D2), HALF, Sort(1, 2, 2)), (1, 1), (1, 4), F(8)),
        (made(Affine(0, D2), Sort(1, 2, 2), Activation(2, np.zeros(2), np.array([3.0, 1.0]))), (1, 1), (1, 1), F(6)),
        (made(Activation(0, np.zeros(2), np.array([3.0, 1.0])), Affine(1, D2)), (2, 4), (1, 1), F(3)),
        (made(Selection(0, np.array([0, 1]))), (1, 2), (2, 1), F(2)),
        (made(Selection(0, np.array([0, 1, 0]))), (2, 1), (1, 1, 1), (F(2), 2)),
        (made(Selection(0, np.array([0, 1, 0, 0, 0, 1]))), (1, 1), (1,) * 6, F(2)),
        (made(Affine(0, D2), Sort(1, 2, 2), HALF), (1, 1), (1, 1), F(1)),
        (made(Affine(0, 0 * D2), Affine(0, D2), Sum(1, 2, 1.0, 2)), (1, 1), (1, 1), F(2)),
        (made(Affine(0, D2), Affine(0, 0 * D2), Sum(1, 2, 1.0, 2)), (1, 1), (1, 1), F(2)),
        (made(Affine(0, 0 * D2), Affine(0, D2), Concatenation((1, 2), 4)), (1, 1), (1,) * 4, F(2)),
        (made(Affine(0, D2), Affine(0, 0 * D2), Concatenation((1, 2), 4)), (1, 1), (1,) * 4, F(2)),
        (made(Affine(0, 0 * D2), Sort(1, 2, 2)), (1, 1), (1, 1), F(0)),
    ],
)  # fmt: skip
def test_norm_products_of_diagonal_networks(network, scale_in, scale_out, truth):
    found = norm_product(network, np.array(scale_in, np.float64), np.array(scale_out, np.float64))
    square = truth[0] if isinstance(truth, tuple) else truth**2
    assert square <= F(found) ** 2 <= square * (1 + F(1, 10**9)) and (found > 0) == (square > 0)


def test_sums_and_products_are_rounded_up():
    tenth = Affine(0, np.array([[0.1]]))
    one = made(Affine(0, np.array([[0.3]])), Sort(1, 1, 2), inputs=1)
    assert F(norm_product(one, ONE, 0.7 * ONE)) > F(0.3) * F(0.7)
    three = made(tenth, Affine(0, np.array([[0.2]])), Sum(1, 2, 1.0, 1), inputs=1)
    assert F(norm_product(three, ONE, ONE)) > F(0.1) + F(0.2)
    pair = made(tenth, Affine(0, np.array([[0.7]])), Concatenation((1, 2), 2), inputs=1)
    assert F(norm_product(pair, ONE, np.ones(2))) ** 2 > F(0.1) ** 2 + F(0.7) ** 2
    with np.errstate(divide="ignore"):
        assert norm_product(made(Sort(0, 2, 2)), np.array([0.0, 1.0]), np.ones(2)) == math.inf


def test_rounding_helpers_go_upwards():
    for a, b in ((0.1, 0.2), (0.3, 0.7), (5e-324, 0.3), (1.1, 1e-200)):
        assert F(products_module._plus(a, b)) > F(a) + F(b) or F(products_module._plus(a, b)) == F(math.nextafter(a + b, 9))
        assert F(products_module._times(a, b)) > F(a) * F(b)
        for root in (products_module._root_of_squares(a, b), products_module._root_of_squares(b, a)):
            assert F(a) ** 2 + F(b) ** 2 < F(root) ** 2 < (F(a) ** 2 + F(b) ** 2) * (1 + F(1, 10**14))
    for function, zero in ((products_module._plus, 3.0), (products_module._root_of_squares, 3.0), (products_module._times, 0.0)):
        assert function(0.0, 3.0) == function(3.0, 0.0) == zero and function(math.inf, 1.0) == math.inf
        assert math.isnan(function(math.nan, 1.0))


def test_norms_of_too_many_weights_are_not_begun(monkeypatch):
    network = made(Affine(0, W32), Affine(1, W53), Affine(2, W53.T))  # 3 x 2 x 2, 5 x 3 x 3, 3 x 5 x 3
    for act in (require_little, *(lambda net, f=f: f(net, np.ones(2), np.ones(3)) for f in (norm_product, absolute_product))):
        monkeypatch.setattr(products_module, "MAX_PRODUCTS", 102)
        act(network)
        monkeypatch.setattr(products_module, "MAX_PRODUCTS", 101)
        with pytest.raises(Rejected, match="more than 101 products"):
            act(network)


def test_norms_are_counted_as_often_as_they_are_taken():
    layer, relu = Affine(0, W32), Activation(1, *RELU3)  # 3 x 2 x 2
    assert (
        products_of_norms(made(layer)) == products_of_norms(made(layer, relu)) == products_of_norms(made(layer, relu, Sort(2, 3, 2))) == 12
    )
    assert products_of_norms(made(layer, relu, Sum(1, 2, 1.0, 3))) == products_of_norms(made(layer, relu, relu, Sum(2, 3, 1.0, 3))) == 24
    again = Activation(2, *RELU3)
    assert products_of_norms(made(layer, relu, again, again, Sum(3, 4, 1.0, 3))) == 12  # although activations alone read the first


# --- windows and chains -------------------------------------------------------------------------------------------------


CUT = made(
    Affine(0, W32), MIXED, Selection(2, np.array([2, 0])), Sort(3, 2, 2), Sum(3, 4, -1.0, 2), Concatenation((5, 4), 4),
    Affine(6, np.eye(4)), Activation(7, np.array([-2.0, 0, 0, 0]), np.array([1.0, 0.5, 1, 1])), Affine(8, np.ones((1, 4))),
)  # fmt: skip


def test_windows_are_the_signals_between_counted_anew():
    low, high = MIXED.low.tolist(), MIXED.high.tolist()
    assert described(window(CUT, 1, 3)) == ([("Input", 3), ("Activation", 0, low, high), ("Selection", 1, [2, 0])], 2, [1, 1, 1], [1, 1])
    assert described(window(CUT, 1, 2)) == ([("Input", 3)], 0, [1, 1, 1], [1, 0.5, 1])
    expected = [("Input", 2), ("Sort", 0, 2, 2), ("Sum", 0, 1, -1, 2), ("Concatenation", (2, 1), 4), ("Affine", 3, np.eye(4).tolist())]
    assert described(window(CUT, 3, 8)) == (expected, 4, [1, 1], [2, 0.5, 1, 1])
    assert described(window(CUT, 3, 7)) == (expected, 4, [1, 1], [1, 1, 1, 1])
    whole = window(CUT, 0, 9)
    assert described(whole)[:2] == described(CUT)[:2]


def test_windows_that_something_goes_around_are_refused():
    for first, last in ((0, 0), (2, 1), (-1, 3), (0, 10), (9, 10)):
        with pytest.raises(Rejected, match=f"from signal {first} to signal {last} of 10"):
            window(CUT, first, last)
    with pytest.raises(Rejected, match="Sum reads a signal from before"):
        window(CUT, 4, 6)
    with pytest.raises(Rejected, match="Concatenation reads a signal from before"):
        window(CUT, 5, 6)
    reversed_sum = made(Affine(0, D2), Sum(1, 0, 1.0, 2))
    with pytest.raises(Rejected, match="Sum reads"):
        window(reversed_sum, 1, 2)
    for signal in (Affine(0, D2), Activation(0, *RELU2), Sort(0, 2, 2), Selection(0, np.array([0]))):
        with pytest.raises(Rejected, match=f"{type(signal).__name__} reads"):
            window(made(Affine(0, D2), signal), 1, 2)
    with pytest.raises(Rejected, match="after the input"):
        window(Network((Input(2), Input(2)), 1, np.ones(2), np.ones(2)), 0, 1)


def test_scales_behind_a_window_are_rounded_up():
    part = dataclasses.replace(made(), output_gain=np.array([1.0, 0.1]))
    found = leaving_scale(part, np.array([0.3, 0.3]))
    assert found[0] == 0.3 and F(found[1]) > F(0.3) * F(0.1) > F(math.nextafter(math.nextafter(found[1], 0), 0))


def test_chains_are_read_layer_by_layer():
    graph = graph_of(
        constant(2, 3), Node("mul", (0, 1)), affine(2, "a"), Node("leaky_relu", (3,), {"slope": F(-2)}), affine(4, "b"),
        Node("group_sort", (5,), {"group_size": 2}), affine(6, "c"), affine(7, "d"), Node("abs", (8,)), constant(4), Node("mul", (9, 10)),
        tensors={"a": W32, "b": W53, "c": W53.T, "d": W32.T},
    )  # fmt: skip
    chain = read_chain(graph)
    assert chain.input_gain.tolist() == [2, 3] and chain.output_gain.tolist() == [4, 4] and (chain.inputs, chain.outputs) == (2, 2)
    assert [layer.weight.tolist() for layer in chain.hidden] == [W32.tolist(), W53.tolist(), W53.T.tolist()]
    assert [(layer.low.tolist(), layer.high.tolist()) for layer in chain.hidden] == [
        ([-2] * 3, [1] * 3),
        ([0] * 5, [1] * 5),
        ([1] * 3, [1] * 3),
    ]
    assert chain.weight.tolist() == W32.T.tolist() and chain.variables == [2, 3, 2, 3]
    first = chain.hidden[0]
    assert [layer.group_size for layer in chain.hidden] == [0, 2, 0] and first.gain.tolist() == [2, 2, 2]
    assert [(layer.groups, layer.multipliers, layer.variables) for layer in chain.hidden] == [(0, 3, 3), (3, 3, 2), (0, 3, 3)]
    assert dataclasses.replace(first, low=np.array([0.5, -1, 0]), high=np.array([3, 0.5, 0])).gain.tolist() == [3, 1, 0]
    assert read_chain(graph_of(Node("relu", (0,)))).weight.tolist() == np.eye(2).tolist()


@pytest.mark.parametrize(
    ("network", "word"),
    [
        (made(Affine(0, D2), Sum(0, 1, 1.0, 2)), "Sum of signals"),
        (made(Affine(0, D2), Affine(0, D2)), "Affine of signals"),
        (made(Affine(0, D2), Activation(0, *RELU2), Affine(2, D2)), "Activation of signals"),
        (made(Affine(0, D2), Affine(1, D2), Sort(1, 2, 2), Affine(3, D2)), "Sort of signals"),
        (made(Sort(0, 2, 2), Affine(1, D2)), "stands alone"),
        (made(Affine(0, D2), Sort(1, 2, 2), Activation(2, *RELU2), Affine(3, D2)), "stands alone"),
        (made(Affine(0, D2), Sort(1, 2, 2)), "stands alone"),
        (made(Selection(0, np.array([0]))), "Selection of signals"),
    ],
)
def test_what_is_no_chain_is_refused(network, word):
    with pytest.raises(Rejected, match=word):
        chain_of(network)


def test_chains_without_affine_nodes_are_small(monkeypatch):
    monkeypatch.setattr(chain_module, "MAX_IDENTITY", 2)
    assert chain_of(made()).hidden == ()
    with pytest.raises(Rejected, match="3 inputs, at most 2"):
        chain_of(made(inputs=3))
    assert chain_of(made(Affine(0, np.eye(3)), inputs=3)).variables == [3]
