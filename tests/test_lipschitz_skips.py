"""Lipschitz bounds of networks with skips and branches: oracles, random graphs of all scales, every pattern of small ones."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from feedforward import Branches, random_graph, steepest_sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.increments import unroll
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import effective_scales, prove_lipschitz
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.certificates.lipschitz.patterns import pattern_floor
from lipctrl.core.errors import LipctrlError

F = Fraction
NORMS = {"l2": 2.0, "linf": math.inf}


def scalar(*nodes: Node, **weights) -> Graph:
    """A graph of one input from these nodes, which begin at index 1."""
    tensors = {name: np.array(value, dtype=np.float64) for name, value in weights.items()}
    return Graph((Node("input", (), {"name": "observation", "size": 1}), *nodes), {"action": len(nodes)}, tensors)


def affine(operand, weight):
    return Node("affine", (operand,), {"weight": weight, "bias": None})


def constant(*values):
    return Node("constant", (), {"values": tuple(map(F, values))})


# --- oracles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("graph", "optimum", "without_numbers"),
    [
        # leaky(x) - x: slopes [1/2, 1] less 1
        (scalar(Node("leaky_relu", (0,), {"slope": F(1, 2)}), Node("sub", (1, 0))), 0.5, 2),
        # oracle A in parallel branches: relu(x) - relu(x - 10)
        (scalar(constant(10), Node("sub", (0, 1)), Node("relu", (2,)), Node("relu", (0,)), Node("sub", (4, 3))), 1, 2),
        # oracle C in branches: relu(x) + relu(-x)
        (scalar(Node("neg", (0,)), Node("relu", (1,)), Node("relu", (0,)), Node("add", (2, 3))), 1, 2),
        # identity plus residual: x - 2 relu(x) is |x| up to its sign
        (scalar(affine(0, "w"), Node("relu", (1,)), affine(2, "v"), Node("add", (0, 3)), w=[[1.0]], v=[[-2.0]]), 1, 3),
        # identity plus a growing residual
        (scalar(affine(0, "w"), Node("tanh", (1,)), affine(2, "v"), Node("add", (0, 3)), w=[[3.0]], v=[[2.0]]), 7, 7),
        # x - x is constant, and known to be
        (scalar(affine(0, "w"), Node("sub", (1, 1)), w=[[3.0]]), 0, 6),
        (scalar(Node("sub", (0, 0))), 0, 2),
        (scalar(Node("relu", (0,)), Node("sub", (1, 1))), 0, 2),
        # max(x, -x) and min(x, 2 x): slopes [-1, 1] and [1, 2]
        (scalar(Node("neg", (0,)), Node("max", (0, 1))), 1, 5),
        (scalar(affine(0, "w"), Node("min", (0, 1)), w=[[2.0]]), 2, 5),
    ],
)
def test_scalar_oracles(graph, optimum, without_numbers, norm):
    found = certify_lipschitz(graph, norm)
    assert found.check().level == "proved"
    assert optimum - 1e-12 <= found.upper.value <= optimum * (1 + 2e-6) + 1.1e-6
    method = {"method": "norm-product" if norm == "l2" else "absolute-product"}
    claim = {"property": "lipschitz", "norm": norm, "input_scale": None, "output_scale": None}
    assert prove_lipschitz(graph, {**claim, "bound": float(without_numbers + 1e-9).hex()}, method)
    with pytest.raises(Rejected):
        prove_lipschitz(graph, {**claim, "bound": float(optimum - 1e-9).hex()}, method)


def test_concatenations_add_squares_and_repeats_count():
    graph = scalar(Node("relu", (0,)), Node("tanh", (0,)), Node("concatenate", (0, 1, 2)), Node("select", (3,), {"indices": (0, 0, 1)}))
    assert certify_lipschitz(graph).upper.value == pytest.approx(math.sqrt(3), rel=1e-6)
    assert certify_lipschitz(graph, "linf").upper.value == pytest.approx(1, rel=1e-6)


def test_a_residual_block_of_norm_one_is_proved_at_one():
    """x - 2 W^T relu(W x + b) with orthonormal rows W: constant 1, while 1 + 2 is all that norms prove."""
    made = Branches(np.random.default_rng(0), 4)
    made.tensors["w"] = np.linalg.qr(made.generator.standard_normal((4, 3)))[0].T
    made.tensors["v"] = -2 * made.tensors["w"].T
    hidden = made.add(affine(0, "w"), 3)
    outer = made.add(affine(made.activation(hidden, "relu"), "v"), 4)
    result = certify_lipschitz(made.graph(made.add(Node("add", (0, outer)), 4)))
    assert 1 <= result.upper.value <= 1 + 1e-6 and result.lower.value >= 1 - 1e-6


# --- against everything that can be sampled or enumerated ---------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 6), st.sampled_from(sorted(NORMS)), st.integers(2, 12))
def test_upper_bounds_are_above_everything_found(seed, exponent, norm, steps):
    graph = random_graph(seed, steps, width=8, scale=10.0 ** (exponent / steps))
    result = certify_lipschitz(graph, norm, seed=seed)
    assert result.check().level == "proved"
    assert result.upper.value >= result.floor * (1 - 1e-12) and result.floor >= result.lower.value
    assert steepest_sampled(graph, seed, NORMS[norm]) <= result.upper.value * (1 + 1e-6) + 1e-9


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(NORMS)))
def test_no_exact_slope_is_above_a_proved_bound(seed, norm):
    graph = random_graph(seed, 6, width=4, ops=("relu", "abs", "leaky_relu", "neg", "clip", "group_sort", "mul", "div"))
    bound = F(certify_lipschitz(graph, norm, witness=False).upper.value)
    generator = np.random.default_rng(seed)
    (size,) = graph.input_sizes.values()
    for _ in range(8):
        x, y = (tuple(map(F, (3 * generator.standard_normal(size)).tolist())) for _ in range(2))
        rise = [a - b for a, b in zip(*(evaluate_exact(graph, {"observation": point})["action"] for point in (x, y)), strict=True)]
        run = [a - b for a, b in zip(x, y, strict=True)]
        if norm == "l2":
            assert sum(v * v for v in rise) <= bound**2 * sum(v * v for v in run)
        else:
            assert max(map(abs, rise)) <= bound * max(map(abs, run))


def every_pattern(graph):
    """The slopes of a graph with relu, abs and leaky units for every choice of their ends: (patterns, outputs, inputs)."""
    places = {i: node for i, node in enumerate(graph.nodes) if node.op in ("relu", "abs", "leaky_relu")}
    ends = {"relu": (0.0, 1.0), "abs": (-1.0, 1.0)}
    choices = [ends.get(node.op) or (float(node.attributes["slope"]), 1.0) for i, node in places.items() for _ in range(graph.sizes[i])]
    slopes = []
    for choice in product(*choices):
        given_, begin = {}, 0
        for index in places:
            values = np.array(choice[begin : begin + graph.sizes[index]])
            given_[index], begin = Interval(values, values), begin + graph.sizes[index]
        network = read_network(graph, given_)
        matrix = unroll(network, np.array).output.get(0, np.zeros((network.outputs, network.inputs)))
        slopes.append(network.output_gain[:, None] * matrix * network.input_gain)
    return np.array(slopes)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(25))
def test_every_pattern_of_small_networks(seed, norm):
    graph = random_graph(seed, 4, width=3, ops=("relu", "abs", "leaky_relu"))
    if any(node.op in ("min", "max") for node in graph.nodes):
        return
    units = sum(graph.sizes[i] for i, node in enumerate(graph.nodes) if node.op in ("relu", "abs", "leaky_relu"))
    if units > 9:
        return
    slopes = every_pattern(graph)
    exact = float(max(np.linalg.norm(matrix, NORMS[norm]) for matrix in slopes))
    upper = certify_lipschitz(graph, norm, witness=False).upper.value
    network = read_network(graph)
    scales = effective_scales(network, (F(1),) * network.inputs, (F(1),) * network.outputs)
    floor = pattern_floor(network, *scales, norm)
    assert exact * (1 - 1e-9) <= upper <= max(1.35 * exact, 1e-7)
    assert 0.95 * exact <= floor <= exact * (1 + 1e-9)


@pytest.mark.parametrize("size", [1e60, 1e-80, 1e150, 1e200, 1e-310])
@pytest.mark.parametrize("norm", NORMS)
def test_extreme_weights_are_bounded_or_refused_in_words(size, norm):
    made = Branches(np.random.default_rng(1), 2)
    inner = made.activation(made.affine(0, 3, size), "relu")
    graph = made.graph(made.add(Node("add", (0, made.affine(inner, 2, size))), 2))
    try:
        result = certify_lipschitz(graph, norm)
    except LipctrlError:
        return
    assert result.lower.value <= result.upper.value
