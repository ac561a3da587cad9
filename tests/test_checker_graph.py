"""The closed list of operations, node by node: what a graph must look like, what its text and its digest are."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from certificate_files import Change, drop, put

from lipctrl.certificates.checker import graph as graph_module
from lipctrl.certificates.checker.graph import (
    BINARY,
    ELEMENTWISE,
    MAX_NESTING,
    MAX_SIZE,
    OPERATIONS,
    Graph,
    GraphError,
    Node,
    canonical_json,
    evaluate,
    graph_from_json,
    graph_to_json,
    rational_from_text,
    rational_to_text,
    tensor_descriptor,
)

ZERO, HALF, ONE = Fraction(0), Fraction(1, 2), Fraction(1)
TENSORS = {
    "W": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32),
    "b": np.array([0.5, -0.5, 0.25]),
    "b2": np.array([0.5, -0.5], np.float32),
}
SQUARE = {"D": np.array([[0.5, 2.0], [-2.0, 0.5]], np.float32)}
HEAD = (
    Node("input", (), {"name": "pair", "size": 2}),
    Node("input", (), {"name": "one", "size": 1}),
    Node("constant", (), {"values": (ONE,) * 3}),
)
PAIR, SINGLE, TRIPLE, NEXT = 0, 1, 2, 3  #: the nodes of HEAD: vectors of 2, 1 and 3 entries; and the first free index


def inner_graph(size: int = 2, nesting: int = 1) -> Graph:
    nodes = (Node("input", (), {"name": "z", "size": size}), Node("affine", (0,), {"weight": "W", "bias": None}))
    return Graph(nodes, {"v": 1}, TENSORS, nesting)


def node(op: str, *inputs: Any, **attributes: Any) -> Node:
    return Node(op, inputs, attributes)


def graph(*nodes: Node, output: Any = NEXT, tensors: Any = TENSORS | SQUARE) -> Graph:
    return Graph((*HEAD, *nodes), {"y": output}, tensors)


VALID = [
    (node("input", name="w", size=1), 1),
    (node("input", name="w", size=MAX_SIZE), MAX_SIZE),
    (node("constant", values=(ZERO, HALF)), 2),
    (node("power", PAIR, exponent=0), 2),
    (node("power", PAIR, exponent=64), 2),
    (node("clip", PAIR, low=(ZERO, -ONE), high=(HALF, -HALF)), 2),
    (node("leaky_relu", TRIPLE, slope=HALF), 3),
    (node("affine", PAIR, weight="W", bias=None), 3),
    (node("affine", PAIR, weight="W", bias="b"), 3),
    (node("group_sort", TRIPLE, group_size=2), 3),
    (node("group_sort", PAIR, group_size=MAX_SIZE), 2),
    (node("select", TRIPLE, indices=(2,)), 1),
    (node("select", PAIR, indices=(0, 1, 1, 0)), 4),
    (node("concatenate", TRIPLE), 3),
    (node("concatenate", PAIR, SINGLE, TRIPLE), 6),
    (node("recentre", PAIR, graph=inner_graph(), point=(ZERO, ONE), offset="b"), 3),
    *((node("implicit", PAIR, weight="D", metric="b2", activation=name), 2) for name in ("relu", "sigmoid", "softplus", "tanh")),
    *((node(op, PAIR), 2) for op in ELEMENTWISE),
    *((node(op, PAIR, PAIR), 2) for op in BINARY),
    *((node(op, SINGLE, SINGLE), 1) for op in BINARY),
    *((node(op, SINGLE, TRIPLE), 3) for op in BINARY),
    *((node(op, PAIR, SINGLE), 2) for op in BINARY),
]


@pytest.mark.parametrize(("last", "size"), VALID, ids=str)
def test_every_operation_has_its_size_and_its_number_of_operands(last: Node, size: int) -> None:
    made = graph(last)
    assert made.sizes == (2, 1, 3, size)
    assert made.output_sizes == {"y": size}
    more = Node(last.op, (*last.inputs, SINGLE), last.attributes)
    if last.op == "concatenate":
        assert graph(more).sizes[-1] == size + 1
    else:
        refused(f"has {len(last.inputs) + 1} operands, expected {len(last.inputs)}", more)
    if last.inputs:
        fewer = "at least one" if last.op == "concatenate" else str(len(last.inputs))
        refused(f"has 0 operands, expected {fewer}", Node(last.op, (), last.attributes))
    refused("attributes", Node(last.op, last.inputs, {**last.attributes, "extra": 1}))
    for key in last.attributes:
        refused("attributes", Node(last.op, last.inputs, {k: v for k, v in last.attributes.items() if k != key}))


def test_the_list_of_operations_is_closed() -> None:
    assert {last.op for last, _ in VALID} == set(OPERATIONS) == set(graph_module._ATTRIBUTES)
    assert len(OPERATIONS) == 32 and list(OPERATIONS) == sorted(OPERATIONS)


def refused(reason: str, *nodes: Any, **options: Any) -> None:
    with pytest.raises(GraphError, match=reason) as caught:
        graph(*nodes, **options)
    assert str(caught.value).startswith(f"node {NEXT} ")


TWO_INPUTS = Graph((node("input", name="a", size=2), node("input", name="c", size=2), node("add", 0, 1)), {"v": 2}, {}, 1)
TWO_OUTPUTS = Graph((node("input", name="a", size=2),), {"v": 0, "w": 0}, {}, 1)
NO_INPUT = Graph((node("constant", values=(ONE, ONE)),), {"v": 0}, {}, 1)

REFUSED = [
    (node("sinh", PAIR), "unknown operation"),
    (node("__class__", PAIR), "unknown operation"),
    (Node(["sin"], (PAIR,)), "malformed"),  # type: ignore[arg-type]
    (Node("sin", None), "malformed"),  # type: ignore[arg-type]
    (Node("sin", (PAIR,), None), "malformed"),  # type: ignore[arg-type]
    (node("sin", NEXT), "earlier nodes"),
    (node("sin", -1), "earlier nodes"),
    (node("sin", False), "earlier nodes"),
    (node("sin", 0.0), "earlier nodes"),
    (node("sin", "0"), "earlier nodes"),
    (node("add", PAIR, NEXT), "earlier nodes"),
    (node("add", PAIR, TRIPLE), r"sizes \[2, 3\], expected equal"),
    (node("input", name=3, size=1), "must be a string"),
    (node("input", name="w", size=0), "integer in 1.."),
    (node("input", name="w", size=MAX_SIZE + 1), "integer in 1.."),
    (node("input", name="w", size=True), "integer in 1.."),
    (node("input", name="w", size=1.0), "integer in 1.."),
    (node("constant", values=[ONE]), "tuple of Fractions"),
    (node("constant", values=(ONE, 1)), "tuple of Fractions"),
    (node("constant", values=(ONE, 0.5)), "tuple of Fractions"),
    (node("constant", values=()), "size 0 is outside"),
    (node("power", PAIR, exponent=-1), "integer in 0..64"),
    (node("power", PAIR, exponent=65), "integer in 0..64"),
    (node("power", PAIR, exponent=True), "integer in 0..64"),
    (node("power", PAIR, exponent=2.0), "integer in 0..64"),
    (node("clip", PAIR, low=(ZERO, ZERO), high=(ONE, ZERO)), "low < high"),
    (node("clip", PAIR, low=(ONE, ZERO), high=(ZERO, ONE)), "low < high"),
    (node("clip", PAIR, low=(ZERO,), high=(ONE, ONE)), "expected 2 rationals, got 1"),
    (node("clip", PAIR, low=(ZERO, ZERO), high=(ONE,)), "expected 2 rationals, got 1"),
    (node("clip", PAIR, low=(ZERO,) * 3, high=(ONE,) * 3), "expected 2 rationals, got 3"),
    (node("clip", PAIR, low=(0, 0), high=(ONE, ONE)), "tuple of Fractions"),
    (node("clip", PAIR, low=(ZERO, ZERO), high=(1, 1)), "tuple of Fractions"),
    (node("leaky_relu", PAIR, slope=0.1), "tuple of Fractions"),
    (node("affine", PAIR, weight="V", bias=None), "needs a 2-D tensor"),
    (node("affine", PAIR, weight=None, bias=None), "needs a 2-D tensor"),
    (node("affine", PAIR, weight=["W"], bias=None), "needs a 2-D tensor"),
    (node("affine", PAIR, weight="b", bias=None), "needs a 2-D tensor"),
    (node("affine", PAIR, weight="W", bias="W"), "needs a 1-D tensor"),
    (node("affine", PAIR, weight="W", bias="c"), "needs a 1-D tensor"),
    (node("affine", PAIR, weight="W", bias="b2"), "does not fit"),
    (node("affine", TRIPLE, weight="W", bias="b"), "does not fit"),
    (node("affine", TRIPLE, weight="W", bias=None), "does not fit"),
    (node("affine", SINGLE, weight="W", bias=None), "does not fit"),
    (node("group_sort", PAIR, group_size=1), "integer in 2.."),
    (node("group_sort", PAIR, group_size=MAX_SIZE + 1), "integer in 2.."),
    (node("select", PAIR, indices=[0]), "non-empty tuple"),
    (node("select", PAIR, indices=()), "non-empty tuple"),
    (node("select", PAIR, indices=(0, 2)), "integer in 0..1"),
    (node("select", PAIR, indices=(-1, 0)), "integer in 0..1"),
    (node("select", PAIR, indices=(False,)), "integer in 0..1"),
    (node("implicit", PAIR, weight="D", metric="b2", activation="gelu"), "expected one of relu, sigmoid, softplus, tanh"),
    (node("implicit", PAIR, weight="D", metric="b2", activation=["relu"]), "expected one of"),
    (node("implicit", PAIR, weight="D", metric="b2", activation="erf"), "expected one of"),
    (node("implicit", SINGLE, weight="D", metric="b2", activation="relu"), r"shapes \(2, 2\) and \(2,\), expected \(1, 1\) and \(1,\)"),
    (node("implicit", PAIR, weight="W", metric="b2", activation="relu"), r"shapes \(3, 2\)"),
    (node("implicit", PAIR, weight="D", metric="b", activation="relu"), r"and \(3,\), expected"),
    (node("implicit", PAIR, weight="b2", metric="b2", activation="relu"), "needs a 2-D tensor"),
    (node("implicit", PAIR, weight="D", metric="D", activation="relu"), "needs a 1-D tensor"),
    (node("implicit", PAIR, weight="D", metric=None, activation="relu"), "needs a 1-D tensor"),
    (node("recentre", PAIR, graph={}, point=(ZERO, ZERO), offset="b"), "one input and one output"),
    (node("recentre", PAIR, graph=TWO_INPUTS, point=(ZERO, ZERO), offset="b2"), "one input and one output"),
    (node("recentre", PAIR, graph=TWO_OUTPUTS, point=(ZERO, ZERO), offset="b2"), "one input and one output"),
    (node("recentre", PAIR, graph=NO_INPUT, point=(ZERO, ZERO), offset="b2"), "one input and one output"),
    (node("recentre", PAIR, graph=inner_graph(), point=(ZERO,), offset="b"), "expected 2 rationals"),
    (node("recentre", PAIR, graph=inner_graph(), point=[ZERO, ZERO], offset="b"), "tuple of Fractions"),
    (node("recentre", TRIPLE, graph=inner_graph(), point=(ZERO, ZERO), offset="b"), "does not fit"),
    (node("recentre", SINGLE, graph=inner_graph(), point=(ZERO, ZERO), offset="b"), "does not fit"),
    (node("recentre", PAIR, graph=inner_graph(), point=(ZERO, ZERO), offset="b2"), "does not fit"),
    (node("recentre", PAIR, graph=inner_graph(), point=(ZERO, ZERO), offset="W"), "needs a 1-D tensor"),
    (node("recentre", PAIR, graph=inner_graph(), point=(ZERO, ZERO), offset=None), "needs a 1-D tensor"),
]


@pytest.mark.parametrize(("last", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_every_rule_of_a_node(last: Node, reason: str) -> None:
    refused(reason, last)


def test_vectors_have_a_greatest_length() -> None:
    wide = node("select", PAIR, indices=(0,) * (MAX_SIZE - 3))
    assert graph(wide, node("concatenate", TRIPLE, NEXT), output=NEXT + 1).sizes[-1] == MAX_SIZE
    with pytest.raises(GraphError, match=f"size {MAX_SIZE + 1} is outside"):
        graph(wide, node("concatenate", TRIPLE, SINGLE, NEXT), output=NEXT + 1)


def test_graphs_have_a_greatest_number_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "MAX_NODES", 4)
    made = graph(node("sin", PAIR))
    data = graph_to_json(made)
    assert graph_from_json(data, TENSORS | SQUARE).digest() == made.digest()
    with pytest.raises(GraphError, match="graph has 5 nodes, at most 4"):
        graph(node("sin", PAIR), node("sin", PAIR))
    data["nodes"] += data["nodes"][-1:]
    with pytest.raises(GraphError, match="list of nodes"):
        graph_from_json(data, TENSORS)


@pytest.mark.parametrize("output", [NEXT + 1, -1, False, 0.0, "0", None])
def test_outputs_are_nodes(output: Any) -> None:
    with pytest.raises(GraphError, match=r"output 'y' refers to node .*, expected 0..3"):
        graph(node("sin", PAIR), output=output)


def test_inputs_and_outputs_have_names() -> None:
    with pytest.raises(GraphError, match="no output"):
        Graph(HEAD, {})
    with pytest.raises(GraphError, match="output 3 refers to"):
        Graph(HEAD, {3: 0})  # type: ignore[dict-item]
    with pytest.raises(GraphError, match=r"repeat: \['pair', 'one', 'pair'\]"):
        graph(node("input", name="pair", size=2))
    made = Graph((*HEAD, node("neg", SINGLE)), {"a": NEXT, "b": PAIR, "c": PAIR})
    assert made.input_sizes == {"pair": 2, "one": 1} and list(made.input_sizes) == ["pair", "one"]
    assert made.output_sizes == {"a": 1, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"t": [1.0]}, "not a NumPy array"),
        ({3: np.ones(1)}, "not a NumPy array"),
        ({"t": np.ones(1, np.float16)}, "expected float32 or float64"),
        ({"t": np.ones(1, np.int64)}, "expected float32 or float64"),
        ({"t": np.float64(1) * np.ones(())}, "not a NumPy array"),
        ({"t": np.array(1.0)}, "expected float32 or float64, 1-D or 2-D"),
        ({"t": np.ones((1, 1, 1))}, "expected float32 or float64, 1-D or 2-D"),
        ({"t": np.ones((0, 3))}, "expected float32 or float64, 1-D or 2-D"),
        ({"t": np.array([1.0, np.nan])}, "not finite"),
        ({"t": np.array([[1.0], [np.inf]])}, "not finite"),
    ],
)
def test_every_rule_of_a_tensor(tensors: Any, reason: str) -> None:
    with pytest.raises(GraphError, match=reason):
        Graph(HEAD, {"y": 0}, tensors)


def test_graphs_are_nested_a_few_deep() -> None:
    deepest = inner_graph(nesting=MAX_NESTING)
    assert deepest.nesting == 2
    with pytest.raises(GraphError, match="nested 2 deep at most"):
        inner_graph(nesting=MAX_NESTING + 1)

    def around(inner: Graph, nesting: int) -> Graph:
        nodes = (node("input", name="z", size=2), node("recentre", 0, graph=inner, point=(ZERO, ZERO), offset="b"))
        return Graph(nodes, {"v": 1}, TENSORS, nesting)

    data = graph_to_json(around(around(deepest, 1), 0))
    assert graph_to_json(graph_from_json(data, TENSORS)) == data
    innermost = data["nodes"][1]["graph"]["nodes"][1]["graph"]
    innermost["nodes"][1] = {**data["nodes"][1], "graph": innermost}  # without end
    with pytest.raises(GraphError, match="nested 2 deep at most"):
        graph_from_json(data, TENSORS)


# --- texts and digests ------------------------------------------------------------------------------------------------


def everything() -> Graph:
    return Graph(
        (
            *HEAD,
            node("power", PAIR, exponent=3),
            node("clip", 3, low=(-HALF, ZERO), high=(ONE, ONE)),
            node("leaky_relu", 4, slope=Fraction(1, 10)),
            node("affine", 5, weight="W", bias="b"),
            node("affine", 5, weight="W", bias=None),
            node("group_sort", 6, group_size=2),
            node("select", 8, indices=(2, 0)),
            node("concatenate", 9, SINGLE),
            node("recentre", 9, graph=inner_graph(), point=(ZERO, HALF), offset="b"),
            node("sub", 10, 11),
            node("tanh", 12),
        ),
        {"first": 13, "second": 7},
        TENSORS,
    )


def test_digests_are_pinned() -> None:
    """A change here makes every certificate that was ever written unreadable."""
    assert everything().digest() == "c829d57f1af9567074fcf63cf1469e3da66723d87d97548ed80447b103db6bad"
    assert graph(node("sin", PAIR), tensors={}).digest() == "e682ecbe6b1e328d01ea9f416ec7bf34543ac3d81ad9a5484cf011e0b9a4fd5f"


def test_the_text_of_a_graph() -> None:
    nodes = (node("input", name="x", size=1), node("clip", 0, low=(-HALF,), high=(ONE,)))
    made = Graph(nodes, {"y": 1}, {"t": np.array([0.5], np.float32)})
    text = canonical_json(graph_to_json(made))
    assert text == (
        '{"nodes":[{"inputs":[],"name":"x","op":"input","size":1},{"high":["1"],"inputs":[0],"low":["-1/2"],"op":"clip"}],'
        '"outputs":{"y":1},"tensors":{"t":{"dtype":"float32","sha256":"'
        + hashlib.sha256(struct.pack("<f", 0.5)).hexdigest()
        + '","shape":[1]}}}'
    )
    assert made.digest() == hashlib.sha256(text.encode()).hexdigest()


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": [1, None, True], "a": "é"}) == '{"a":"\\u00e9","b":[1,null,true]}'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json([value])


def test_tensor_descriptors_name_little_endian_rows() -> None:
    expected = {"dtype": "float64", "shape": [2, 2], "sha256": hashlib.sha256(struct.pack("<4d", 1, 2, 3, 4)).hexdigest()}
    tensor = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert expected["sha256"] == "6bab56d2f81d4b5a2dbf102bf6a6ff7d5211a475fc5f97813f977e8ba714b07d"
    assert tensor_descriptor(tensor) == tensor_descriptor(tensor.astype(">f8")) == tensor_descriptor(np.asfortranarray(tensor)) == expected


def test_rational_texts() -> None:
    for value in (ZERO, HALF, -HALF, Fraction(-7), Fraction(10**4095), Fraction(-1023456789, 7)):
        assert rational_from_text(rational_to_text(value)) == value
    assert rational_to_text(Fraction(6, -4)) == "-3/2"
    with pytest.raises(GraphError, match="such as '3/20'"):
        rational_from_text("1" * 4097)
    for text in ("", "1.5", "1e3", " 1", "1_0", "\u0661", "3/", "/3", "1/0", "1-", "--1", None, 1, HALF):
        with pytest.raises(GraphError, match="such as '3/20'"):
            rational_from_text(text)
    for text in ("2/4", "-0", "03", "0/1", "3/1"):
        with pytest.raises(GraphError, match="lowest terms"):
            rational_from_text(text)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again() -> None:
    made = everything()
    again = graph_from_json(json.loads(canonical_json(graph_to_json(made))), {**TENSORS, "of another graph": np.ones(1)})
    assert again.digest() == made.digest() and again.sizes == made.sizes and set(again.tensors) == set(TENSORS)
    assert [n.attributes for n in again.nodes if n.op != "recentre"] == [n.attributes for n in made.nodes if n.op != "recentre"]
    (recentre,) = (n for n in again.nodes if n.op == "recentre")
    inner = recentre.attributes["graph"]
    assert inner.nesting == 1 and inner.nodes == inner_graph().nodes and recentre.attributes["point"] == (ZERO, HALF)


UNREADABLE: list[tuple[Change, str]] = [
    (lambda data: [data], "exactly the keys"),
    (lambda data: None, "exactly the keys"),
    (drop("nodes"), "exactly the keys"),
    (drop("outputs"), "exactly the keys"),
    (drop("tensors"), "exactly the keys"),
    (put("extra", 1), "exactly the keys"),
    (put("nodes.11.graph.tensors", {}), "exactly the keys"),
    (drop("nodes.11.graph.outputs"), "exactly the keys"),
    (put("nodes.11.graph", None), "exactly the keys"),
    (put("nodes", {}), "list of nodes and a table"),
    (put("outputs", []), "list of nodes and a table"),
    (put("nodes.11.graph.nodes", {}), "list of nodes and a table"),
    (put("tensors", ["W", "b", "b2"]), "not in the weights file"),
    (put("tensors.W2", {}), "not in the weights file"),
    (put("tensors.W.shape", [2, 3]), "differs from its descriptor"),
    (put("tensors.W.dtype", "float64"), "differs from its descriptor"),
    (put("tensors.W.sha256", "0" * 64), "differs from its descriptor"),
    (put("tensors.W", None), "differs from its descriptor"),
    (put("nodes.0", []), "needs 'op' and 'inputs'"),
    (put("nodes.0.op", 3), "needs 'op' and 'inputs'"),
    (drop("nodes.0.op"), "needs 'op' and 'inputs'"),
    (put("nodes.0.inputs", {}), "needs 'op' and 'inputs'"),
    (drop("nodes.0.inputs"), "needs 'op' and 'inputs'"),
    (put("nodes.3.inputs", [[0]]), "earlier nodes"),
    (put("nodes.2.values", "123"), "'values' must be a list"),
    (put("nodes.2.values", {"1": 1, "2": 1, "3": 1}), "'values' must be a list"),
    (put("nodes.4.low", "01"), "'low' must be a list"),
    (put("nodes.4.high", None), "'high' must be a list"),
    (put("nodes.11.point", "01"), "'point' must be a list"),
    (put("nodes.9.indices", {"0": 1}), "'indices' must be a list"),
    (put("nodes.2.values", [1, 1, 1]), "such as '3/20'"),
    (put("nodes.5.slope", ["1/10"]), "such as '3/20'"),
    (put("nodes.3.exponent", "3"), "integer in 0..64"),
    (put("nodes.9.indices", ["0"]), "integer in 0..2"),
]


@pytest.mark.parametrize(("change", "reason"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_every_rule_of_reading(change: Change, reason: str) -> None:
    with pytest.raises(GraphError, match=reason):
        graph_from_json(change(copy.deepcopy(graph_to_json(everything()))), TENSORS)


def test_lists_are_as_long_as_vectors_at_most() -> None:
    def selecting(count: int) -> dict[str, Any]:
        nodes = [{"op": "input", "inputs": [], "name": "x", "size": 1}, {"op": "select", "inputs": [0], "indices": [0] * count}]
        return {"nodes": nodes, "outputs": {"y": 1}, "tensors": {}}

    assert graph_from_json(selecting(MAX_SIZE), {}).sizes == (1, MAX_SIZE)
    with pytest.raises(GraphError, match="'indices' must be a list"):
        graph_from_json(selecting(MAX_SIZE + 1), {})


def test_tensors_that_are_read_are_finite_floats() -> None:
    for bad, reason in ((np.array([0.5, np.nan]), "not finite"), (np.ones(2, np.float16), "expected float32 or float64")):
        data = {
            "nodes": [{"op": "input", "inputs": [], "name": "x", "size": 1}],
            "outputs": {"y": 0},
            "tensors": {"t": tensor_descriptor(bad)},
        }
        with pytest.raises(GraphError, match=reason):
            graph_from_json(data, {"t": bad})


# --- evaluation -------------------------------------------------------------------------------------------------------


class Trace:
    """An algebra whose values are the texts of the calls that made them."""

    def __getattr__(self, op: str) -> Callable[..., str]:
        def call(*operands: str, **attributes: Any) -> str:
            keys = {key: getattr(value, "shape", value) for key, value in attributes.items() if key != "graph"}
            return f"{op}({', '.join([*operands, *(f'{key}={value}' for key, value in sorted(keys.items()))])})"

        return call


def test_evaluators_receive_operands_attributes_and_tensors() -> None:
    nodes = (
        *HEAD,
        node("power", PAIR, exponent=3),
        node("affine", PAIR, weight="W", bias="b2"),
        node("affine", NEXT, weight="W", bias=None),
        node("sub", 5, SINGLE),
        node("recentre", PAIR, graph=inner_graph(), point=(ZERO, ZERO), offset="b"),
    )
    tensors = {**TENSORS, "W": np.ones((2, 2))}
    found = evaluate(Graph(nodes, {"a": 6, "b": 4, "c": 7, "d": 1}, tensors), {"pair": "p", "one": "o"}, Trace())
    assert found == {
        "a": "sub(affine(power(p, exponent=3), bias=None, weight=(2, 2)), o)",
        "b": "affine(p, bias=(2,), weight=(2, 2))",
        "c": "recentre(p, offset=(3,), point=(Fraction(0, 1), Fraction(0, 1)))",
        "d": "o",
    }
