"""Float32 evaluation errors: bounds hold for real evaluations, in every order of summation; what is false or unknown is refused."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st

from lipctrl.certificates.checker.balls import evaluate_balls
from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.action_deviation import prove_deviation
from lipctrl.certificates.checker.writing import certificate_bytes
from lipctrl.certificates.lipschitz import certify_evaluation
from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy


def network(sizes: tuple[int, ...], activation: str, seed: int, scale: float = 1.0, dtype: type = np.float32) -> Graph:
    rng = np.random.default_rng(seed)
    nodes, tensors = [Node("input", (), {"name": "observation", "size": sizes[0]})], {}
    for k, (n_in, n_out) in enumerate(pairwise(sizes)):
        tensors[f"w{k}"] = (scale * rng.standard_normal((n_out, n_in)) / n_in**0.5).astype(dtype)
        tensors[f"b{k}"] = rng.standard_normal(n_out).astype(dtype)
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": f"b{k}"}))
        if k < len(sizes) - 2:
            attributes = {"group_size": 2} if activation == "group_sort" else {}
            nodes.append(Node(activation, (len(nodes) - 1,), attributes))
    return Graph(tuple(nodes), {"action": len(nodes) - 1}, tensors)


def exact_value(graph: Graph, x: np.ndarray) -> list[arb]:
    return evaluate_balls(graph, {"observation": [arb(float(v)) for v in x]})["action"]


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["relu", "abs", "group_sort", "tanh"]), st.sampled_from([1e-3, 1.0, 30.0]))
def test_no_evaluation_is_further_off_than_the_bound(seed, activation, scale):
    graph = network((3, 16, 16, 2), activation, seed, scale)
    low, high = [-1.0, -2.0, 0.5], [1.0, 3.0, 0.5]
    found = certify_evaluation(graph, "linf", low=low, high=high, activation_ulp=4 if activation == "tanh" else None, cells=8)
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, (20, 3))
    forward = compile_numpy(graph, np.float32)(observation=x)["action"]
    order = rng.permutation(16)  # the same network with its middle units in another order: other sums
    tensors = dict(graph.tensors)
    if activation != "group_sort":
        tensors |= {"w0": tensors["w0"][order], "b0": tensors["b0"][order], "w1": np.ascontiguousarray(tensors["w1"][:, order])}
    other = compile_numpy(Graph(graph.nodes, graph.outputs, tensors), np.float32)(observation=x)["action"]
    for row, first, second in zip(x, forward, other, strict=True):
        real = exact_value(graph, row)
        for value, *deployed in zip(real, first, second, strict=True):
            assert all(abs(arb(float(d)) - value) <= arb(found.value) for d in deployed)
    assert found.value < 1e-3 * max(1.0, scale) ** 3  # not a trivial bound


def test_the_checker_says_what_was_proved_and_assumed():
    graph = network((2, 8, 1), "relu", 0)
    verdict = certify_evaluation(graph, low=[-1, -1], high=[1, 1]).check()
    assert (verdict.level, verdict.kind, verdict.property) == ("proved", "action-deviation", "float32_evaluation")
    assert "-1 <= x1 <= 1" in verdict.claim and "binary32" in verdict.claim
    assumed = certify_evaluation(network((2, 8, 1), "tanh", 0), centre=[0, 0], radius=1, activation_ulp=2).check()
    assert assumed.level == "proved-for-model" and "2 units" in assumed.assumptions[0]


def test_more_cells_are_never_worse_and_scales_count():
    graph = network((2, 16, 2), "relu", 1)
    one, many = (certify_evaluation(graph, "linf", low=[-1, -1], high=[1, 1], cells=cells).value for cells in (1, 64))
    assert many <= one
    doubled = certify_evaluation(graph, "linf", low=[-1, -1], high=[1, 1], output_scale=[2, 2], cells=1).value
    assert doubled == pytest.approx(2 * one, rel=1e-12) and doubled >= 2 * one * (1 - 1e-12)
    euclidean = certify_evaluation(graph, "l2", low=[-1, -1], high=[1, 1], cells=1).value
    assert one <= euclidean <= one * 2**0.5 * (1 + 1e-12)


def test_the_cast_of_the_observation_alone():
    identity = Graph((Node("input", (), {"name": "observation", "size": 1}),), {"action": 0}, {})
    found = certify_evaluation(identity, "linf", low=[1], high=[2], cells=1)
    assert 2.0**-24 * 2 <= found.value <= 2.0**-24 * 2 * 1.001


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bound": (1e-9).hex()}, "not proved to be at most"),
        ({"bound": (-1.0).hex()}, "negative"),
        ({"bound": "nan"}, "bound"),
        ({"bound": "inf"}, "bound"),
        ({"property": "lipschitz"}, "property"),
        ({"norm": "l1"}, "norm"),
        ({"domain": {"low": ["-1", "-1"], "high": ["1", "1000000"]}}, "not proved"),
        ({"domain": {"low": ["1", "1"], "high": ["-1", "-1"]}}, "empty"),
        ({"output_scale": ["1000", "1000"]}, "not proved"),
        ({"output_scale": ["0", "1"]}, "not positive"),
        ({"activation_ulp": 0}, "activation_ulp"),
        ({"activation_ulp": True}, "activation_ulp"),
        ({"extra": 1}, "extra"),
    ],
)
def test_other_claims_are_rejected(change, why):
    graph = network((2, 8, 2), "relu", 2)
    found = certify_evaluation(graph, low=[-1, -1], high=[1, 1])
    with pytest.raises(Rejected, match=why):
        prove_deviation(graph, {**found.claim, **change}, found.evidence)


@pytest.mark.parametrize(
    "evidence",
    [
        {"method": "cells", "tree": []},
        {"method": "cells", "tree": [None, None]},
        {"method": "cells", "tree": [0]},
        {"method": "x", "tree": [None]},
        {},
    ],
)
def test_other_evidence_is_rejected(evidence):
    graph = network((2, 8, 2), "relu", 2)
    found = certify_evaluation(graph, low=[-1, -1], high=[1, 1])
    with pytest.raises(Rejected):
        prove_deviation(graph, found.claim, evidence)


def test_larger_weights_do_not_fit_the_claim_and_real_arithmetic_is_no_subject():
    graph = network((2, 8, 2), "relu", 2)
    found = certify_evaluation(graph, low=[-1, -1], high=[1, 1])
    larger = Graph(graph.nodes, graph.outputs, {name: 4 * tensor for name, tensor in graph.tensors.items()})
    with pytest.raises(Rejected, match="not proved"):
        prove_deviation(larger, found.claim, found.evidence)
    parts = {"kind": "action-deviation", "claim": found.claim, "policy": graph, "evidence": found.evidence}
    assert check(parse_certificate(*certificate_bytes(**parts, arithmetic="real"))).status == "rejected"


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (network((2, 4, 1), "tanh", 0), "activation_ulp"),
        (network((2, 4, 1), "relu", 0, dtype=np.float64), "float32 weights"),
        (network((2, 4, 1), "relu", 0, scale=1e38), "overflow"),
        (network((2, 4, 1), "exp", 0), "exp"),
    ],
)
def test_what_is_not_known_is_refused_in_a_sentence(graph, why):
    with pytest.raises(InputError, match=why):
        certify_evaluation(graph, low=[-1, -1], high=[1, 1])


def test_an_error_is_bounded_for_exact_ends_that_are_no_floats():
    graph = network((1, 4, 1), "relu", 3)
    found = certify_evaluation(graph, low=["1/3"], high=["1/3"])
    deployed = compile_numpy(graph, np.float32)(observation=np.array([1 / 3]))["action"][0]
    third = evaluate_balls(graph, {"observation": [arb(1) / 3]})["action"][0]
    assert abs(arb(float(deployed)) - third) <= arb(found.value)
    assert Fraction(found.value) < Fraction(1, 10**5)


def test_slopes_that_no_float32_holds_are_refused():
    """Cast to float32 the slope is infinite, however small the values that it meets."""
    for slope, accepted in ((10**37, True), (10**39, False), (-(10**39), False), (10**400, False)):
        nodes = (Node("input", (), {"name": "x", "size": 1}), Node("leaky_relu", (0,), {"slope": Fraction(slope)}))
        claim = {"property": "float32_evaluation", "norm": "linf", "output_scale": None, "bound": "1024", "activation_ulp": None}
        claim["domain"] = {"low": [str(Fraction(-1, 10**38))], "high": ["0"]}
        if accepted:
            assert prove_deviation(Graph(nodes, {"u": 1}), claim, {"method": "cells", "tree": [None]}) == 1024
        else:
            with pytest.raises(Rejected, match="not proved to be at most|too large for float64"):
                prove_deviation(Graph(nodes, {"u": 1}), claim, {"method": "cells", "tree": [None]})


def test_numbers_beyond_float64_are_refused_in_words():
    base = {"property": "float32_evaluation", "norm": "l2", "output_scale": None, "bound": "1", "activation_ulp": None}
    huge = str(10**400)
    constant = (Node("input", (), {"name": "x", "size": 1}), Node("constant", (), {"values": (Fraction(10**400),)}), Node("min", (0, 1)))
    plain = (Node("input", (), {"name": "x", "size": 1}), Node("relu", (0,)))
    box, ball = {"low": ["0"], "high": ["1"]}, {"centre": ["0"], "radius": str(10**200)}
    for nodes, change in ((constant, {"domain": box}), (plain, {"domain": box, "output_scale": [huge]}), (plain, {"domain": ball})):
        with pytest.raises(Rejected, match="too large for float64"):
            prove_deviation(Graph(nodes, {"u": len(nodes) - 1}), {**base, **change}, {"method": "cells", "tree": [None]})
