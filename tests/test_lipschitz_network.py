"""The network form of graphs with skips and branches: its increments, its quadratic form, proved slopes, refusals by name."""

from fractions import Fraction

import numpy as np
import pytest
from feedforward import Branches, random_graph, steepest_sampled
from flint import ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.definite import balls, exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.increments import multiplier_form, scaled_output, unroll
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.network import Activation, Affine, Concatenation, Input, Selection, Sort, Sum, read_network
from lipctrl.certificates.checker.products import absolute_product, norm_product
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction
seeds = st.integers(0, 2**32 - 1)


def increments(network, generator, before=None):
    """Random increments of every signal that obey the slopes, from their definition; also the variables and the sum of products."""
    values, coordinates, layers = [], [], []
    for signal in network.signals:
        match signal:
            case Input():
                value = generator.standard_normal(signal.size) if before is None else before
                coordinates.append(value)
            case Affine():
                value = signal.weight @ values[signal.operand]
            case Sum():
                value = values[signal.first] + signal.sign * values[signal.second]
            case Concatenation():
                value = np.concatenate([values[k] for k in signal.operands])
            case Selection():
                value = values[signal.operand][signal.indices]
            case Activation():
                entering = values[signal.operand]
                value = signal.low * entering
                value[signal.free] = generator.standard_normal(len(signal.free))
                coordinates.append(value[signal.free])
                products = (value - signal.low * entering) * (value - signal.high * entering)
                layers.append(products[signal.free])
            case Sort():
                entering = values[signal.operand]
                parts, products = [], []
                for begin in range(0, signal.size, signal.group_size):
                    group = entering[begin : begin + signal.group_size]
                    rest = generator.standard_normal(len(group))
                    rest -= rest.mean()
                    coordinates.append(np.cumsum(rest)[:-1])  # rest = T r with T's columns e_i - e_(i + 1)
                    parts.append(group.mean() + rest)
                    products.append(parts[-1] @ parts[-1] - group @ group)
                value = np.concatenate(parts)
                layers.append(np.array(products))
        values.append(value)
    return values[network.output], np.concatenate(coordinates), layers


@given(seeds)
def test_the_form_is_the_one_of_its_definition(seed):
    generator = np.random.default_rng(seed)
    network = read_network(random_graph(seed))
    multipliers = [generator.uniform(0, 2, layer.multipliers) for layer in network.layers]
    shares, scale = generator.uniform(1, 2, network.inputs), generator.uniform(1, 2, network.outputs)
    unrolled = unroll(network, exact)
    form = multiplier_form(unrolled, exact(shares), scaled_output(unrolled, scale), multipliers)
    out, point, layers = increments(network, generator)
    expected = shares @ point[: network.inputs] ** 2 - np.sum((scale * out) ** 2)
    expected += sum(values @ products for values, products in zip(multipliers, layers, strict=True))
    assert point @ form.value @ point == pytest.approx(expected, rel=1e-9, abs=1e-9 * float(form.magnitude.max()) * float(point @ point))
    assert np.allclose(form.value, form.value.T)


@settings(max_examples=15)
@given(seeds)
def test_both_arithmetics_agree_within_the_counted_error(seed):
    network = read_network(random_graph(seed, steps=5, width=4))
    multipliers = [np.full(layer.multipliers, 0.7) for layer in network.layers]
    ones = np.ones(network.inputs), np.ones(network.outputs)
    counted = unroll(network, exact)
    form = multiplier_form(counted, exact(ones[0]), scaled_output(counted, ones[1]), multipliers)
    with ctx.workprec(256):
        enclosed = unroll(network, balls)
        truth = multiplier_form(enclosed, balls(ones[0]), scaled_output(enclosed, ones[1]), multipliers)
        error = np.array([[abs(float(b - float(v))) for b, v in zip(*rows, strict=True)] for rows in zip(truth, form.value, strict=True)])
    assert (error <= form.radius() * (1 + 1e-12)).all()


@settings(max_examples=60)
@given(seeds, st.sampled_from([1e-3, 1.0, 30.0]))
def test_bounds_without_numbers_hold_on_random_pairs(seed, scale):
    graph = random_graph(seed, scale=scale)
    network = read_network(graph)
    ones = network.input_gain**-1, network.output_gain
    for order, bound in ((2, norm_product(network, *ones)), (np.inf, float(absolute_product(network, *ones).max()))):
        assert steepest_sampled(graph, seed, order) <= bound * (1 + 1e-6) + 1e-9


def relative(first, second):
    return float(np.max(np.abs(first - second))) / max(1.0, float(np.max(np.abs(second))))


@given(seeds)
def test_piecewise_linear_networks_with_proved_slopes_are_linear(seed):
    """With the slopes that hold near one point the network form is the derivative there, exactly."""
    graph = random_graph(seed, ops=("relu", "abs", "leaky_relu", "neg"))
    generator = np.random.default_rng(seed)
    point, step = generator.standard_normal(graph.nodes[0].attributes["size"]), 1e-7
    values = compile_numpy(Graph(graph.nodes, {str(i): i for i in range(len(graph.nodes))}, graph.tensors))(observation=point[None])
    slopes = {}
    for index, node in enumerate(graph.nodes):
        if node.op in ("relu", "abs", "leaky_relu", "min", "max"):
            before = [values[str(i)][0] for i in node.inputs]
            if node.op in ("relu", "abs", "leaky_relu"):
                low = {"relu": 0.0, "abs": -1.0, "leaky_relu": float(node.attributes.get("slope", 0))}[node.op]
                slope = np.where(before[0] > 0, 1.0, low)
            else:
                slope = np.where((before[0] > before[1]) == (node.op == "max"), 1.0, 0.0)
            slopes[index] = Interval(slope, slope)
    network = read_network(graph, slopes)
    assert sum(network.variables) == network.inputs
    output = unroll(network, np.array).output.get(0, np.zeros((network.outputs, network.inputs)))
    jacobian = network.output_gain[:, None] * output * network.input_gain
    evaluate = compile_numpy(graph)
    steps = (evaluate(observation=point + step * np.eye(network.inputs))["action"] - evaluate(observation=point[None])["action"]).T / step
    distance = np.abs(np.concatenate([np.abs(values[str(i)][0]) for i in range(len(graph.nodes))])).min()
    if distance > 1e-4:  # no kink within the step
        assert relative(np.abs(jacobian), np.abs(steps)) < 1e-4


# --- reading ------------------------------------------------------------------------------------------------------------


def residual(slope_first=False):
    made = Branches(np.random.default_rng(0), 2)
    inner = made.activation(made.affine(0, 3), "relu")
    return made.graph(made.add(Node("add", (0, made.affine(inner, 2))), 2))


def test_a_residual_block_is_input_branch_and_sum():
    network = read_network(residual())
    kinds = [type(signal) for signal in network.signals]
    assert kinds == [Input, Affine, Activation, Affine, Sum] and network.output == 4
    assert network.signals[4].first == 0 and network.signals[4].sign == 1 and network.variables == [2, 3]
    output = unroll(network, np.array).output
    assert np.array_equal(output[0], np.eye(2)) and np.array_equal(output[1], network.signals[3].weight)


def test_proved_slopes_cost_no_variable_where_they_are_numbers():
    graph = residual()
    index = [node.op for node in graph.nodes].index("relu")
    slopes = {index: Interval(np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0]))}
    network = read_network(graph, slopes)
    assert network.variables == [2, 1] and network.layers[0].multipliers == 1
    inner, outer = network.signals[1].weight, network.signals[3].weight
    output = unroll(network, np.array).output
    assert np.allclose(output[0], np.eye(2) + np.outer(outer[:, 1], inner[1])) and np.array_equal(output[1], outer[:, 2:])


def test_slopes_at_the_input_fix_coordinates():
    graph = residual()
    network = read_network(graph, {0: Interval(np.array([0.0, 1.0]), np.array([0.0, 1.0]))})
    output = unroll(network, np.array).output
    assert not output[0][:, 0].any() and output[0][1, 1] == 1


@pytest.mark.parametrize(
    ("slopes", "word"),
    [
        ((np.zeros(2), np.ones(2)), "3 finite intervals"),
        ((np.zeros(3), np.full(3, np.nan)), "3 finite intervals"),
        ((np.full(3, 2.0), np.full(3, 3.0)), "contradict"),
        ((np.ones(3), np.zeros(3)), "contradict"),
    ],
)
def test_slopes_that_cannot_be_are_refused(slopes, word):
    graph = residual()
    with pytest.raises(Rejected, match=word):
        read_network(graph, {[node.op for node in graph.nodes].index("relu"): Interval(*slopes)})


def test_operations_with_unbounded_slopes_need_proved_ones():
    graph = Graph((Node("input", (), {"name": "x", "size": 1}), Node("exp", (0,))), {"y": 1})
    with pytest.raises(Rejected, match="'exp' has unbounded slopes"):
        read_network(graph)
    network = read_network(graph, {1: Interval(np.array([1.0]), np.array([2.0]))})
    assert network.input_gain == 2 and network.output == 0


def test_slopes_reach_into_recentred_graphs_by_their_path():
    inner = Graph((Node("input", (), {"name": "z", "size": 1}), Node("relu", (0,)), Node("add", (0, 1))), {"o": 2}, nesting=1)
    nodes = (
        Node("input", (), {"name": "x", "size": 1}),
        Node("recentre", (0,), {"graph": inner, "point": (F(0),), "offset": "offset"}),
    )
    graph = Graph(nodes, {"y": 1}, {"offset": np.zeros(1)})
    assert read_network(graph).variables == [1, 1]
    assert read_network(graph, {(1, 1): Interval(np.ones(1), np.ones(1))}).variables == [1, 0]


def test_runs_are_composed_only_where_nobody_reads_between():
    made = Branches(np.random.default_rng(0), 2)
    shared = made.affine(0, 2)
    half = made.add(Node("relu", (shared,)), 2)
    quarter = made.add(Node("neg", (half,)), 2)
    network = read_network(made.graph(made.add(Node("add", (half, quarter)), 2)))
    assert [type(signal) for signal in network.signals] == [Input, Affine, Activation, Activation, Sum]
    assert network.variables == [2, 2, 0]
    assert unroll(network, np.array).output[1].tolist() == [[0, 0], [0, 0]]  # relu - relu


@pytest.mark.parametrize("op", ["min", "max"])
def test_extremes_of_two_signals_are_one_unit_each(op):
    made = Branches(np.random.default_rng(0), 2)
    network = read_network(made.graph(made.add(Node(op, (made.affine(0, 2), made.affine(0, 2))), 2)))
    assert network.variables == [2, 2] and norm_product(network, np.ones(2), np.ones(2)) < 100


@pytest.mark.parametrize(
    ("nodes", "word"),
    [
        ([Node("mul", (0, 0))], "mul"),
        ([Node("select", (0,), {"indices": (0,)}), Node("add", (0, 1))], "'add' repeats a signal"),
        ([Node("constant", (), {"values": (F(1),)}), Node("concatenate", (0, 1))], "concatenate"),
        ([Node("constant", (), {"values": (F(1),)}), Node("relu", (1,)), Node("add", (0, 2))], "'relu' of 0 signals"),
        ([Node("constant", (), {"values": (F(1),)}), Node("div", (1, 0))], "div"),
        ([Node("constant", (), {"values": (F(1),)})], "constant"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(nodes, word):
    made = (Node("input", (), {"name": "x", "size": 2}), *nodes)
    with pytest.raises(Rejected, match=word):
        read_network(Graph(made, {"y": len(made) - 1}))


def test_wide_sums_are_refused_before_they_fill_memory():
    made = Branches(np.random.default_rng(0), 1)
    first = made.affine(0, 3000)
    second = made.add(Node("relu", (first,)), 3000)
    for _ in range(6):
        second = made.add(Node("add", (second, made.add(Node("neg", (second,)), 3000))), 3000)
    with pytest.raises(Rejected, match="need more than"):
        unroll(read_network(made.graph(second)), exact)
