"""Graphs: programs without branches or loops over vectors, from a closed list of operations.

Plants, observation maps, policies and networks are all Graphs. A Graph is data: its constants are exact rationals, its
weights are tensors whose stored bytes count, and its digest covers both. Evaluators (exact, ball, interval, NumPy,
torch, CasADi) read the same nodes, so what is simulated is what is proved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

MAX_NODES = 20_000
MAX_SIZE = 16_384
MAX_NESTING = 2

ELEMENTWISE = (
    "neg abs sin cos tan exp log sqrt erf tanh sigmoid softplus relu gelu silu".split()
)  #: one operand, no attribute, acts coordinate by coordinate
BINARY = "add sub mul div min max".split()  #: two operands of equal size, or one of size 1 that is repeated
IMPLICIT_ACTIVATIONS = "relu sigmoid softplus tanh".split()  #: what implicit layers apply: all have slopes in [0, 1]
TENSOR_KEYS = ("weight", "bias", "offset", "metric")  #: attributes that name tensors


class GraphError(ValueError):
    """A graph that is not well formed; the message names the node and what was expected."""


@dataclass(frozen=True)
class Node:
    """One operation. ``inputs`` are indices of earlier nodes; ``attributes`` holds the operation's constants.

    ``input``: ``name``, ``size``. ``constant``: ``values``. ``power``: ``exponent`` (integer >= 0).
    ``clip``: ``low``, ``high`` (one rational per coordinate). ``leaky_relu``: ``slope``. ``affine``: ``weight`` (n_out, n_in),
    ``bias`` (n_out) or ``None``, both names of tensors. ``group_sort``: ``group_size``, sorts ascending inside consecutive groups,
    a leftover group is smaller (MaxMin is group size 2). ``select``: ``indices``. ``concatenate``: none.
    ``recentre``: ``graph`` (one input, one output), ``point``, ``offset`` (tensor): over the reals
    ``graph(x) - graph(point)``, in floating point ``graph(x) - offset``. ``implicit``: ``weight`` D (n, n), ``metric`` (n),
    ``activation`` phi: the z with z = phi(D z + v), v the operand. It exists, and is the only one, where the metric shows it, see
    :mod:`lipctrl.certificates.checker.implicit`; a graph as such does not promise that.
    """

    op: str
    inputs: tuple[int, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A program: ``nodes`` in evaluation order, named ``outputs``, and the tensors that ``affine`` nodes refer to.

    Inputs are the nodes with op ``input``, in order. ``sizes[i]`` is the length of node ``i``'s vector.
    Raises GraphError where a node is not well formed.
    """

    nodes: tuple[Node, ...]
    outputs: Mapping[str, int]
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    nesting: int = 0
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.nodes) > MAX_NODES:
            raise GraphError(f"graph has {len(self.nodes)} nodes, at most {MAX_NODES} are allowed")
        if self.nesting > MAX_NESTING:
            raise GraphError(f"graphs may be nested {MAX_NESTING} deep at most")
        if self.nesting == 0:  # nested graphs share these tensors: once is enough
            for name, tensor in self.tensors.items():
                _check_tensor(name, tensor)
        sizes: list[int] = []
        for index, node in enumerate(self.nodes):
            try:
                size = _size_of(node, sizes, self)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise GraphError(f"node {index} ({node.op!r}): malformed attribute or operand: {error}") from error
            except GraphError as error:
                raise GraphError(f"node {index} ({node.op!r}): {error}") from error
            if not 1 <= size <= MAX_SIZE:
                raise GraphError(f"node {index} ({node.op!r}): size {size} is outside 1..{MAX_SIZE}")
            sizes.append(size)
        names = [node.attributes["name"] for node in self.nodes if node.op == "input"]
        if len(set(names)) != len(names):
            raise GraphError(f"input names repeat: {names}")
        if not self.outputs:
            raise GraphError("graph has no output")
        for name, index in self.outputs.items():
            if not (isinstance(name, str) and type(index) is int and 0 <= index < len(sizes)):
                raise GraphError(f"output {name!r} refers to node {index!r}, expected 0..{len(sizes) - 1}")
        object.__setattr__(self, "sizes", tuple(sizes))

    @property
    def input_sizes(self) -> dict[str, int]:
        """Length of each input vector, by name, in order."""
        return {n.attributes["name"]: n.attributes["size"] for n in self.nodes if n.op == "input"}

    @property
    def output_sizes(self) -> dict[str, int]:
        """Length of each output vector, by name."""
        return {name: self.sizes[index] for name, index in self.outputs.items()}

    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON, which names each tensor's dtype, shape and bytes."""
        return hashlib.sha256(canonical_json(graph_to_json(self)).encode()).hexdigest()


def _check_tensor(name: object, tensor: Any) -> None:
    if not (isinstance(name, str) and isinstance(tensor, np.ndarray)):
        raise GraphError(f"tensor {name!r} is not a NumPy array")
    if tensor.dtype.name not in ("float32", "float64") or tensor.ndim not in (1, 2) or tensor.size == 0:
        raise GraphError(f"tensor {name!r} has dtype {tensor.dtype} and shape {tensor.shape}, expected float32 or float64, 1-D or 2-D")
    if not np.isfinite(tensor).all():
        raise GraphError(f"tensor {name!r} has a value that is not finite")


def _rationals(values: object, length: int | None = None) -> None:
    if not isinstance(values, tuple) or not all(type(v) is Fraction for v in values):
        raise GraphError(f"expected a tuple of Fractions, got {values!r}")
    if length is not None and len(values) != length:
        raise GraphError(f"expected {length} rationals, got {len(values)}")


def _tensor_shape(graph: Graph, name: object, ndim: int) -> tuple[int, ...]:
    tensor = graph.tensors.get(name) if isinstance(name, str) else None
    if tensor is None or tensor.ndim != ndim:
        raise GraphError(f"needs a {ndim}-D tensor, {name!r} is not one; tensors: {sorted(graph.tensors)}")
    return tensor.shape


def _whole(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise GraphError(f"expected an integer in {low}..{high}, got {value!r}")
    return value


_ATTRIBUTES: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "input": (0, ("name", "size")),
    "constant": (0, ("values",)),
    "power": (1, ("exponent",)),
    "clip": (1, ("high", "low")),
    "leaky_relu": (1, ("slope",)),
    "affine": (1, ("bias", "weight")),
    "group_sort": (1, ("group_size",)),
    "implicit": (1, ("activation", "metric", "weight")),
    "select": (1, ("indices",)),
    "concatenate": (None, ()),
    "recentre": (1, ("graph", "offset", "point")),
    **{op: (1, ()) for op in ELEMENTWISE},
    **{op: (2, ()) for op in BINARY},
}

OPERATIONS = tuple(sorted(_ATTRIBUTES))  #: the closed list


def _size_of(node: Node, sizes: Sequence[int], graph: Graph) -> int:
    """Check one node against the closed list and return the length of its vector."""
    if node.op not in _ATTRIBUTES:
        raise GraphError(f"unknown operation; the closed list is {', '.join(OPERATIONS)}")
    arity, keys = _ATTRIBUTES[node.op]
    if tuple(sorted(node.attributes)) != keys:
        raise GraphError(f"attributes {sorted(node.attributes)}, expected {list(keys)}")
    if not all(type(i) is int and 0 <= i < len(sizes) for i in node.inputs):
        raise GraphError(f"operands {node.inputs} must be earlier nodes")
    if (arity is not None and len(node.inputs) != arity) or (arity is None and not node.inputs):
        raise GraphError(f"has {len(node.inputs)} operands, expected {'at least one' if arity is None else arity}")
    operands = [sizes[i] for i in node.inputs]
    rule: Callable[[Node, list[int], Graph], int] = _RULES.get(node.op, _same_size)
    return rule(node, operands, graph)


def _same_size(node: Node, operands: list[int], graph: Graph) -> int:
    if len({n for n in operands if n != 1}) > 1:
        raise GraphError(f"operands have sizes {operands}, expected equal sizes or 1")
    return max(operands)


def _input_size(node: Node, operands: list[int], graph: Graph) -> int:
    if not isinstance(node.attributes["name"], str):
        raise GraphError("input name must be a string")
    return _whole(node.attributes["size"], 1, MAX_SIZE)


def _constant_size(node: Node, operands: list[int], graph: Graph) -> int:
    _rationals(node.attributes["values"])
    return len(node.attributes["values"])


def _power_size(node: Node, operands: list[int], graph: Graph) -> int:
    _whole(node.attributes["exponent"], 0, 64)
    return operands[0]


def _clip_size(node: Node, operands: list[int], graph: Graph) -> int:
    low, high = node.attributes["low"], node.attributes["high"]
    _rationals(low, operands[0])
    _rationals(high, operands[0])
    if not all(lo < hi for lo, hi in zip(low, high, strict=True)):
        raise GraphError("clip needs low < high in every coordinate")
    return operands[0]


def _leaky_size(node: Node, operands: list[int], graph: Graph) -> int:
    _rationals((node.attributes["slope"],))
    return operands[0]


def _affine_size(node: Node, operands: list[int], graph: Graph) -> int:
    rows, columns = _tensor_shape(graph, node.attributes["weight"], 2)
    bias = node.attributes["bias"]
    if columns != operands[0] or (bias is not None and _tensor_shape(graph, bias, 1) != (rows,)):
        raise GraphError(f"weight {rows}x{columns} does not fit its operand of size {operands[0]} or its bias")
    return rows


def _group_size(node: Node, operands: list[int], graph: Graph) -> int:
    _whole(node.attributes["group_size"], 2, MAX_SIZE)
    return operands[0]


def _implicit_size(node: Node, operands: list[int], graph: Graph) -> int:
    size, activation = operands[0], node.attributes["activation"]
    if activation not in IMPLICIT_ACTIVATIONS:
        raise GraphError(f"activation is {activation!r}, expected one of {', '.join(IMPLICIT_ACTIVATIONS)}")
    shapes = _tensor_shape(graph, node.attributes["weight"], 2), _tensor_shape(graph, node.attributes["metric"], 1)
    if shapes != ((size, size), (size,)):
        raise GraphError(f"weight and metric have shapes {shapes[0]} and {shapes[1]}, expected {(size, size)} and {(size,)}")
    return size


def _select_size(node: Node, operands: list[int], graph: Graph) -> int:
    indices = node.attributes["indices"]
    if not isinstance(indices, tuple) or not indices:
        raise GraphError("select needs a non-empty tuple of indices")
    for index in indices:
        _whole(index, 0, operands[0] - 1)
    return len(indices)


def _recentre_size(node: Node, operands: list[int], graph: Graph) -> int:
    inner = node.attributes["graph"]
    if not isinstance(inner, Graph) or len(inner.input_sizes) != 1 or len(inner.outputs) != 1:
        raise GraphError("recentre needs a graph with one input and one output")
    (size,), (out,) = inner.input_sizes.values(), inner.output_sizes.values()
    _rationals(node.attributes["point"], size)
    if size != operands[0] or _tensor_shape(graph, node.attributes["offset"], 1) != (out,):
        raise GraphError(f"inner graph maps {size} to {out}: operand of size {operands[0]} or the offset does not fit")
    return out


_RULES: dict[str, Callable[[Node, list[int], Graph], int]] = {
    "input": _input_size,
    "constant": _constant_size,
    "power": _power_size,
    "clip": _clip_size,
    "leaky_relu": _leaky_size,
    "affine": _affine_size,
    "group_sort": _group_size,
    "implicit": _implicit_size,
    "select": _select_size,
    "concatenate": lambda node, operands, graph: sum(operands),
    "recentre": _recentre_size,
}


# --- JSON -------------------------------------------------------------------------------------------------------------


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no blanks, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def rational_to_text(value: Fraction) -> str:
    """``"3/20"`` or ``"-2"``: the one text of a rational (lowest terms, positive denominator)."""
    return str(value)


def rational_from_text(text: object) -> Fraction:
    """Read a rational written by :func:`rational_to_text`. Raises GraphError for anything else."""
    if not isinstance(text, str) or not 1 <= len(text) <= 4096 or not set(text) <= set("0123456789-/"):
        raise GraphError(f"expected a rational such as '3/20', got {str(text)[:60]!r}")
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise GraphError(f"expected a rational such as '3/20', got {text[:60]!r}") from error
    if str(value) != text:
        raise GraphError(f"rational {text[:60]!r} is not in lowest terms, expected {str(value)[:60]!r}")
    return value


def tensor_descriptor(tensor: np.ndarray) -> dict[str, Any]:
    """dtype, shape and SHA-256 of the row-major little-endian bytes of a tensor."""
    data = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes()
    return {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "sha256": hashlib.sha256(data).hexdigest()}


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The graph as JSON data; tensors appear as descriptors, their bytes travel in a safetensors file."""
    data: dict[str, Any] = {"nodes": [_node_to_json(n) for n in graph.nodes], "outputs": dict(graph.outputs)}
    if graph.nesting == 0:
        data["tensors"] = {name: tensor_descriptor(t) for name, t in graph.tensors.items()}
    return data


def _node_to_json(node: Node) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for key, value in node.attributes.items():
        if isinstance(value, Graph):
            value = graph_to_json(value)
        elif isinstance(value, Fraction):
            value = rational_to_text(value)
        elif isinstance(value, tuple):
            value = [rational_to_text(v) if isinstance(v, Fraction) else v for v in value]
        attributes[key] = value
    return {"op": node.op, "inputs": list(node.inputs), **attributes}


def graph_from_json(data: object, tensors: Mapping[str, np.ndarray], nesting: int = 0) -> Graph:
    """Rebuild a graph; ``tensors`` holds at least the arrays that its JSON names. Raises GraphError on any mismatch."""
    keys = {"nodes", "outputs", "tensors"} if nesting == 0 else {"nodes", "outputs"}
    if not isinstance(data, dict) or set(data) != keys:
        raise GraphError(f"a graph needs exactly the keys {sorted(keys)}")
    if not isinstance(data["nodes"], list) or not isinstance(data["outputs"], dict) or len(data["nodes"]) > MAX_NODES:
        raise GraphError("a graph needs a list of nodes and a table of outputs")
    if nesting > MAX_NESTING:
        raise GraphError(f"graphs may be nested {MAX_NESTING} deep at most")
    if nesting == 0:
        if not isinstance(data["tensors"], dict) or not set(data["tensors"]) <= set(tensors):
            raise GraphError("graph names tensors that are not in the weights file")
        tensors = {name: tensors[name] for name in data["tensors"]}
        for name, descriptor in data["tensors"].items():
            if descriptor != tensor_descriptor(tensors[name]):
                raise GraphError(f"tensor {name!r} differs from its descriptor (dtype, shape or SHA-256)")
    nodes = tuple(_node_from_json(item, tensors, nesting) for item in data["nodes"])
    return Graph(nodes, data["outputs"], tensors, nesting)


_RATIONAL_KEYS = {"slope"}
_RATIONAL_LIST_KEYS = {"values", "low", "high", "point"}


def _node_from_json(item: object, tensors: Mapping[str, np.ndarray], nesting: int) -> Node:
    if not isinstance(item, dict) or not isinstance(item.get("op"), str) or not isinstance(item.get("inputs"), list):
        raise GraphError("a node needs 'op' and 'inputs'")
    attributes: dict[str, Any] = {}
    for key, value in item.items():
        if key in ("op", "inputs"):
            continue
        if key == "graph":
            value = graph_from_json(value, tensors, nesting + 1)
        elif key in _RATIONAL_KEYS:
            value = rational_from_text(value)
        elif key in _RATIONAL_LIST_KEYS or key == "indices":
            if not isinstance(value, list) or len(value) > MAX_SIZE:
                raise GraphError(f"attribute {key!r} must be a list")
            value = tuple(value) if key == "indices" else tuple(rational_from_text(v) for v in value)
        attributes[key] = value
    return Node(item["op"], tuple(item["inputs"]), attributes)


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(graph: Graph, inputs: Mapping[str, Any], algebra: Any) -> dict[str, Any]:
    """Run the graph in an algebra: an object with one method per operation, named as the operation.

    Operands come first, then the attributes by keyword; tensors (arrays, a bias may be ``None``) stand in place of their names.
    ``inputs`` maps input names to values of the algebra. Returns the outputs by name.
    """
    values: list[Any] = []
    for node in graph.nodes:
        attributes = dict(node.attributes)
        if node.op == "input":
            values.append(inputs[attributes["name"]])
            continue
        for key in TENSOR_KEYS:
            if attributes.get(key) is not None:
                attributes[key] = graph.tensors[attributes[key]]
        values.append(getattr(algebra, node.op)(*(values[i] for i in node.inputs), **attributes))
    return {name: values[index] for name, index in graph.outputs.items()}
