"""Lipschitz proofs under attack: random chains against exact slopes, and files made to crash or stall the checker."""

import random
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.network import read_network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.certificates.checker.verifiers.local_lipschitz import products_of
from lipctrl.certificates.lipschitz.certify import certify_lipschitz
from lipctrl.core.errors import LipctrlError

PRODUCT = {"method": "norm-product"}
#: A rational that rounds to the greatest float from above: its upper enclosure is infinite.
JUST_TOO_LARGE = Fraction(2) ** 1024 - Fraction(2) ** 971 + 1


def claim_of(bound):
    return {"property": "lipschitz", "norm": "l2", "input_scale": None, "output_scale": None, "bound": float(bound).hex()}


def relu_network(*weights):
    nodes = [Node("input", (), {"name": "x", "size": np.shape(weights[0])[1]})]
    for k in range(len(weights)):
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
        if k < len(weights) - 1:
            nodes.append(Node("relu", (len(nodes) - 1,)))
    return Graph(tuple(nodes), {"u": len(nodes) - 1}, {f"w{k}": np.array(w, dtype=np.float64) for k, w in enumerate(weights)})


def activation(rng, index, size):
    def rationals():
        return tuple(Fraction(rng.choice([-1, 1]) * rng.randint(1, 30), rng.randint(1, 20)) for _ in range(size))

    op = rng.choice(["relu", "abs", "leaky_relu", "clip", "min", "sub", "div", "group_sort"])
    if op in ("relu", "abs"):
        return [Node(op, (index,))]
    if op == "leaky_relu":
        return [Node(op, (index,), {"slope": rationals()[0]})]
    if op == "clip":
        low = rationals()
        return [Node(op, (index,), {"low": low, "high": tuple(v + 1 for v in low)})]
    if op == "group_sort":
        return [Node(op, (index,), {"group_size": rng.choice([2, 3, 20])})]
    constant = Node("constant", (), {"values": rationals()})
    operands = {"min": (index, index + 1), "sub": (index + 1, index), "div": (index, index + 1)}[op]
    return [constant, Node(op, operands), Node("relu", (index + 2,))]


@pytest.mark.parametrize("seed", range(12))
def test_no_exact_slope_is_above_a_proved_bound(seed):
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    sizes = [rng.randint(1, 6) for _ in range(rng.randint(2, 5))]
    nodes, tensors = [Node("input", (), {"name": "x", "size": sizes[0]})], {}
    for k, (before, after) in enumerate(pairwise(sizes)):
        tensors[f"w{k}"] = generator.standard_normal((after, before)).astype(rng.choice([np.float32, np.float64]))
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
        if k < len(sizes) - 2:
            nodes += activation(rng, len(nodes) - 1, after)
    graph = Graph(tuple(nodes), {"u": len(nodes) - 1}, tensors)
    bound = Fraction(certify_lipschitz(graph, witness=False).upper.value)
    for _ in range(15):
        x, y = (tuple(Fraction(rng.gauss(0, 3)) for _ in range(sizes[0])) for _ in range(2))
        rise, run = (
            sum((a - b) ** 2 for a, b in zip(*pair, strict=True))
            for pair in ([evaluate_exact(graph, {"x": point})["u"] for point in (x, y)], (x, y))
        )
        assert rise <= bound**2 * run


@pytest.mark.parametrize("ops", [("mul", "relu", "affine"), ("affine", "mul", "relu", "affine"), ("affine", "mul")])
def test_scales_just_above_the_greatest_float_are_rejected(ops):
    nodes = [Node("input", (), {"name": "x", "size": 1}), Node("constant", (), {"values": (JUST_TOO_LARGE,)})]
    last = 0
    for op in ops:
        nodes.append(Node(op, (last, 1) if op == "mul" else (last,), {"weight": "w", "bias": None} if op == "affine" else {}))
        last = len(nodes) - 1
    with pytest.raises(Rejected, match="too large for float64"):
        prove_lipschitz(Graph(tuple(nodes), {"u": last}, {"w": np.ones((1, 1))}), claim_of(1e300), PRODUCT)


def test_large_systems_beyond_float64_are_refused_before_any_balls():
    """Numbers outside the range of float64 proofs and 1201 rows: building that in balls would take gigabytes or hours."""
    graph = relu_network(np.full((1200, 1), 1e-100), np.full((1, 1200), 1e-100))
    evidence = {"method": "multipliers", "multipliers": [[(1e-100).hex()] * 1200]}
    begin = time.process_time()
    with pytest.raises(Rejected, match="outside"):
        prove_lipschitz(graph, claim_of(1.0), evidence)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("size", [1e60, 1e-80, 1e150, 1e200, 1e-310])
def test_extreme_weights_are_bounded_or_refused_in_words(size):
    graph = relu_network([[size, -size], [size, size]], [[1.0, size], [size, 1.0]], [[size, 1.0]])
    try:
        certificate = certify_lipschitz(graph)
    except LipctrlError:
        return
    assert certificate.lower.value <= certificate.upper.value


def scales_only(size, count):
    nodes = [Node("input", (), {"name": "x", "size": size})]
    nodes += [Node("relu", (index,)) for index in range(count)]
    return Graph(tuple(nodes), {"u": count}, {})


@pytest.mark.parametrize(("size", "count"), [(16_384, 1), (1000, 600)])
def test_long_runs_of_scales_cost_next_to_nothing(size, count):
    started = time.monotonic()
    with pytest.raises(Rejected, match="not at most"):
        prove_lipschitz(scales_only(size, count), claim_of(0.999), PRODUCT)
    assert prove_lipschitz(scales_only(size, count), claim_of(1.001), PRODUCT) == 1.001
    assert time.monotonic() - started < 5


def test_runs_of_many_different_scales_are_refused_at_once():
    nodes = [Node("input", (), {"name": "x", "size": 1000}), Node("constant", (), {"values": (Fraction(1, 3),) * 1000})]
    nodes += [Node("mul", (0 if k == 0 else k + 1, 1)) for k in range(600)]
    started = time.process_time()
    with pytest.raises(Rejected, match="accepted"):
        prove_lipschitz(Graph(tuple(nodes), {"u": 601}, {}), claim_of(1.0), PRODUCT)
    assert time.process_time() - started < 10


def test_scales_that_are_used_many_times_are_refused_at_once():
    nodes = [Node("input", (), {"name": "x", "size": 4000}), Node("constant", (), {"values": (Fraction(1, 3),) * 4000})]
    last = 0
    for _ in range(3000):
        nodes += [Node("mul", (last, 1)), Node("add", (last, len(nodes)))]
        last = len(nodes) - 1
    started = time.process_time()
    with pytest.raises(Rejected, match="more than are accepted"):
        prove_lipschitz(Graph(tuple(nodes), {"u": last}, {}), claim_of(1.0), PRODUCT)
    assert time.process_time() - started < 10


def test_large_linear_parts_are_refused_before_any_balls():
    """One variable, numbers beyond float64, and a linear map of two million weights."""
    tensors = {"a": np.full((1500, 1), 1e-100), "b": np.full((1500, 1500), 1e-100), "c": np.full((1, 1500), 1e-100)}
    nodes = [Node("input", (), {"name": "x", "size": 1})]
    nodes += [Node("affine", (k,), {"weight": name, "bias": None}) for k, name in enumerate("abc")]
    started = time.process_time()
    with pytest.raises(Rejected, match="need more than"):
        prove_lipschitz(Graph(tuple(nodes), {"u": 3}, tensors), claim_of(1.0), {"method": "multipliers", "multipliers": []})
    assert time.process_time() - started < 5


def shared_weight(readers):
    """A map to 256 units that this many activations read, and the sum of them."""
    nodes = [Node("input", (), {"name": "x", "size": 256}), Node("affine", (0,), {"weight": "w", "bias": None})]
    nodes += [Node("tanh" if k % 2 else "relu", (1,)) for k in range(readers)]
    nodes += [Node("add", (2 if k == 0 else len(nodes) + k - 1, k + 3)) for k in range(readers - 1)]
    return Graph(tuple(nodes), {"u": len(nodes) - 1}, {"w": np.ones((256, 256))})


def test_norms_that_are_taken_again_and_again_are_counted():
    """Every activation takes the norm of the weight before it anew: a small file could ask for hours of that."""
    started = time.process_time()
    with pytest.raises(Rejected, match="more than are accepted"):
        prove_lipschitz(shared_weight(4500), claim_of(1e300), PRODUCT)
    assert time.process_time() - started < 5
    assert prove_lipschitz(shared_weight(3), claim_of(3 * 256.01), PRODUCT) == 3 * 256.01


def test_norms_count_in_the_proofs_of_leaves():
    assert products_of(read_network(shared_weight(50)), "l2", True) > 50 * 256**3


def test_squares_of_many_outputs_are_refused_before_any_balls():
    weight = np.full((6000, 100), 1e-100)
    graph = Graph(
        (Node("input", (), {"name": "x", "size": 100}), Node("affine", (0,), {"weight": "w", "bias": None})), {"u": 1}, {"w": weight}
    )
    started = time.process_time()
    with pytest.raises(Rejected, match="matrix of this network needs more than"):
        prove_lipschitz(graph, claim_of(1.0), {"method": "multipliers", "multipliers": []})
    assert time.process_time() - started < 5
