"""Recording symbols: values that write down, on a tape, the operations that plain Python code applies to them.

A symbol implements Python's operators, NumPy's ``__array_ufunc__`` and ``__array_function__`` and torch's
``__torch_function__``; what the functions of those libraries do to symbols is a table, :data:`FUNCTIONS`, filled by
``recorded_functions``. Whatever would need a symbol's value (``if``, ``==``, ``float``) raises and names the user's line.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np

from lipctrl.certificates.checker.graph import ELEMENTWISE, TENSOR_KEYS, Graph, GraphError, Node
from lipctrl.core.errors import InputError
from lipctrl.core.rationals import rational

#: What recorded functions do, by name (``sin``, ``stack``, ``linear``, ...); NumPy, torch and methods share the table.
FUNCTIONS: dict[str, Callable[..., Any]] = {}

_RECORDABLE = f"+ - * / ** @, {', '.join(ELEMENTWISE[1:])}, leaky_relu, minimum, maximum, clip, stack, concatenate, sum, dot, norm, linear"
_COMPARISONS = "a symbol has no value to compare or branch on"
_NO_BRANCH = "write the cases with np.minimum, np.maximum, np.clip or abs"
_NO_NUMBER = "a symbol has no number yet"
_NO_FLOAT = "use np.sin, np.cos, ... in place of math.sin, math.cos, ..., and np.stack in place of assigning into an array"
_INSTEAD = {
    "where": _NO_BRANCH,
    "select": _NO_BRANCH,
    "piecewise": _NO_BRANCH,
    "heaviside": _NO_BRANCH,
    "sign": _NO_BRANCH,
    "greater": _NO_BRANCH,
    "less": _NO_BRANCH,
    "equal": _NO_BRANCH,
    "arctan2": "observe the angle's cos and sin instead",
    "remainder": "leave the angle unwrapped, or observe its cos and sin",
    "array_equal": _NO_BRANCH,
    "zeros_like": "use np.stack with zeros in it",
    "ones_like": "use np.stack with ones in it",
}


class RecordingError(InputError):
    """Code that cannot be recorded as a Graph; the message names its line and the replacement."""


def user_line() -> str:
    """``file:line: source`` of the innermost frame that is neither ours nor NumPy's nor torch's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_library(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    path, number = frame.f_code.co_filename, frame.f_lineno
    return f"{path}:{number}: {linecache.getline(path, number).strip()}".rstrip(": ")


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in ("numpy", "torch") or module.startswith(("lipctrl.core.symbols", "lipctrl.core.record"))


def refuse(what: str, instead: str) -> NoReturn:
    """Raise RecordingError at the user's line."""
    raise RecordingError(f"{user_line()}: {what}; {instead}")


class Tape:
    """The nodes recorded so far. Equal nodes are recorded once; ``exact`` turns float matrices into exact constants."""

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.nodes: list[Node] = []
        self.sizes: list[int] = []
        self.tensors: dict[str, np.ndarray] = {}
        self._known: dict[object, int] = {}
        self._tensor_names: dict[object, str] = {}

    def node(self, op: str, inputs: Sequence[int], size: int, /, **attributes: Any) -> int:
        """Append a node, or find the equal one; returns its index."""
        key = (op, tuple(inputs), tuple(sorted((k, id(v) if isinstance(v, Graph) else v) for k, v in attributes.items())))
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(Node(op, tuple(inputs), attributes))
            self.sizes.append(size)
        return self._known[key]

    def constant(self, values: Sequence[Fraction]) -> int:
        """The index of a constant node."""
        return self.node("constant", (), len(values), values=tuple(values))

    def tensor(self, array: np.ndarray) -> str:
        """Keep a float32 or float64 tensor; returns its name. Equal tensors are kept once."""
        array = np.array(array)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._tensor_names:
            self._tensor_names[key] = f"tensor{len(self.tensors)}"
            self.tensors[self._tensor_names[key]] = array
        return self._tensor_names[key]

    def adopt(self, graph: Graph, nesting: int = 1) -> Graph:
        """A nested graph with its tensors kept on this tape, under this tape's names: a file holds all tensors together."""
        nodes = tuple(Node(node.op, node.inputs, self.kept(graph, node, nesting + 1)) for node in graph.nodes)
        return Graph(nodes, graph.outputs, {name: self.tensors[name] for name in _tensor_names(nodes)}, nesting)

    def kept(self, graph: Graph, node: Node, nesting: int = 1) -> dict[str, Any]:
        """The attributes of another graph's node, its tensors and nested graph kept on this tape."""
        attributes = dict(node.attributes)
        for key in TENSOR_KEYS:
            if attributes.get(key) is not None:
                attributes[key] = self.tensor(graph.tensors[attributes[key]])
        if "graph" in attributes:
            attributes["graph"] = self.adopt(attributes["graph"], nesting)
        return attributes

    def symbol(self, index: int, scalar: bool) -> Symbol:
        """The symbol that stands for a node."""
        return Scalar(self, index) if scalar else Vector(self, index)

    def concatenate(self, parts: Sequence[int]) -> int:
        """One vector from several; a single part is itself."""
        if not parts:
            refuse("an empty vector cannot be recorded", "give at least one component")
        if len(parts) == 1:
            return parts[0]
        return self.node("concatenate", parts, sum(self.sizes[i] for i in parts))

    def lift(self, value: object) -> Symbol:
        """A symbol for anything that stands in an expression: symbol, number, text, sequence, array, tensor."""
        if isinstance(value, Symbol):
            if value.tape is not self:
                refuse("this symbol belongs to another recording", "use only the arguments of the recorded function")
            return value
        value = detached(value)
        if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
            if isinstance(value, np.ndarray):
                return self.lift(value.item())
            return self.symbol(self.constant((self._number(value),)), scalar=True)
        if getattr(value, "ndim", 1) > 1:
            refuse(f"an array of shape {getattr(value, 'shape', '?')} stands where a vector is expected", "use one dimension")
        items = list(value)
        if any(isinstance(item, Symbol) or np.ndim(detached(item)) for item in items):
            return self.symbol(self.concatenate([self.lift(item).index for item in items]), scalar=False)
        if not items:
            refuse("an empty vector cannot be recorded", "give at least one component")
        return self.symbol(self.constant([self._number(item) for item in items]), scalar=False)

    @staticmethod
    def _number(value: object) -> Fraction:
        try:
            return rational(value, "constant")
        except InputError as error:
            raise RecordingError(f"{user_line()}: {error}") from error

    def graph(self, outputs: Mapping[str, int]) -> Graph:
        """The recorded Graph, without the nodes and tensors that no output needs."""
        needed = set(outputs.values())
        for index in range(len(self.nodes) - 1, -1, -1):
            if index in needed:
                needed.update(self.nodes[index].inputs)
        kept = [i for i, node in enumerate(self.nodes) if i in needed or node.op == "input"]
        place = {old: new for new, old in enumerate(kept)}
        nodes = tuple(Node(n.op, tuple(place[i] for i in n.inputs), n.attributes) for n in (self.nodes[i] for i in kept))
        names = set(_tensor_names(nodes))
        try:
            return Graph(nodes, {k: place[i] for k, i in outputs.items()}, {k: t for k, t in self.tensors.items() if k in names})
        except GraphError as error:
            raise RecordingError(str(error)) from error


def _tensor_names(nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        yield from (node.attributes[key] for key in TENSOR_KEYS if node.attributes.get(key) is not None)
        if "graph" in node.attributes:
            yield from _tensor_names(node.attributes["graph"].nodes)


def detached(value: Any) -> Any:
    """A torch tensor as a NumPy array (torch is not imported for it); anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def tape_of(values: Iterable[Any]) -> Tape:
    """The tape of the first symbol among values and sequences of values."""
    for value in values:
        if isinstance(value, Symbol):
            return value.tape
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
            try:
                return tape_of(value.flat if isinstance(value, np.ndarray) else value)
            except LookupError:
                continue
    raise LookupError("no symbol among the values")


def combine(op: str, left: object, right: object) -> Symbol:
    """A binary operation of the graph; one operand at least is a symbol. Sizes must be equal, or one of them 1."""
    tape = tape_of((left, right))
    a, b = tape.lift(left), tape.lift(right)
    sizes = tape.sizes[a.index], tape.sizes[b.index]
    if sizes[0] != sizes[1] and 1 not in sizes:
        refuse(f"{op} of vectors of {sizes[0]} and {sizes[1]} components", "sizes must be equal, or one of them 1")
    return tape.symbol(tape.node(op, (a.index, b.index), max(sizes)), isinstance(a, Scalar) and isinstance(b, Scalar))


def elementwise(op: str, value: Symbol, **attributes: Any) -> Symbol:
    """An operation of the graph on each coordinate of one symbol."""
    index = value.tape.node(op, (value.index,), value.tape.sizes[value.index], **attributes)
    return value.tape.symbol(index, isinstance(value, Scalar))


def call(name: str, library: str, *arguments: Any, **keywords: Any) -> Any:
    """Record a library function by name, or refuse it by name."""
    name = name.strip("_")
    if name not in FUNCTIONS:
        instead = _INSTEAD.get(name, f"recordable are {_RECORDABLE}")
        refuse(f"{library}{name} is not in the closed list of operations", instead)
    return FUNCTIONS[name](*arguments, **keywords)


def _method(name: str) -> Callable[..., Any]:
    def method(self: Symbol, *arguments: Any, **keywords: Any) -> Any:
        return call(name, "the method ", self, *arguments, **keywords)

    method.__doc__ = f"Record ``{name}`` of this symbol."
    return method


def _refusing(what: str, instead: str) -> Callable[..., Any]:
    def method(self: Symbol, *arguments: Any) -> NoReturn:
        refuse(what, instead)

    return method


class Symbol:
    """A recorded value: node ``index`` of a tape. Use the subclasses."""

    __slots__ = ("index", "tape")

    def __init__(self, tape: Tape, index: int) -> None:
        self.tape = tape
        self.index = index

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()} symbol {self.index} ({self.tape.nodes[self.index].op}, size {self.tape.sizes[self.index]})"

    def __add__(self, other: object) -> Symbol:
        return combine("add", self, other)

    def __radd__(self, other: object) -> Symbol:
        return combine("add", other, self)

    def __sub__(self, other: object) -> Symbol:
        return combine("sub", self, other)

    def __rsub__(self, other: object) -> Symbol:
        return combine("sub", other, self)

    def __mul__(self, other: object) -> Symbol:
        return combine("mul", self, other)

    def __rmul__(self, other: object) -> Symbol:
        return combine("mul", other, self)

    def __truediv__(self, other: object) -> Symbol:
        return combine("div", self, other)

    def __rtruediv__(self, other: object) -> Symbol:
        return combine("div", other, self)

    def __neg__(self) -> Symbol:
        return elementwise("neg", self)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return elementwise("abs", self)

    def __pow__(self, exponent: object) -> Any:
        return call("power", "", self, exponent)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        """Record a NumPy ufunc; of its methods only ``reduce`` (sum, min, max)."""
        if keywords.pop("out", None) is not None or method not in ("__call__", "reduce"):
            refuse(f"np.{ufunc.__name__} with out= or as .{method}", "use the plain function")
        if method == "__call__" and keywords:
            refuse(f"np.{ufunc.__name__} with {', '.join(keywords)}=", "leave it out")
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}_reduce"
        return call(name, "np.", *inputs, **keywords)

    def __array_function__(self, function: Any, types: object, arguments: Any, keywords: Any) -> Any:
        """Record a NumPy function."""
        return call(function.__name__, "np.", *arguments, **keywords)

    @classmethod
    def __torch_function__(cls, function: Any, types: object, arguments: Any = (), keywords: Any = None) -> Any:
        """Record a torch function."""
        return call(function.__name__, "torch.", *arguments, **(keywords or {}))

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refusing(_COMPARISONS, _NO_BRANCH)
    __float__ = __int__ = __index__ = __complex__ = _refusing(_NO_NUMBER, _NO_FLOAT)
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __round__ = __floor__ = __ceil__ = __trunc__ = _refusing(
        "rounding and remainders are not in the closed list of operations", _INSTEAD["remainder"]
    )
    __rpow__ = _refusing("a symbol as exponent is not in the closed list of operations", "use np.exp")
    __setitem__ = _refusing("symbols cannot be changed in place", "build the vector with np.stack or np.concatenate")

    sin, cos, tan, exp, log, sqrt = (_method(name) for name in "sin cos tan exp log sqrt".split())
    erf, tanh, sigmoid, relu, abs, neg = (_method(name) for name in "erf tanh sigmoid relu abs neg".split())
    add, sub, mul, div, pow, square = (_method(name) for name in "add sub mul div pow square".split())
    clip, clamp, sum, dot, mean, reciprocal = (_method(name) for name in "clip clamp sum dot mean reciprocal".split())


class Scalar(Symbol):
    """One number; it has no length, so that NumPy takes it as an element of an object array."""

    __slots__ = ()


class Vector(Symbol):
    """A vector, one-dimensional: it can be indexed, sliced, unpacked and multiplied by constant matrices."""

    __slots__ = ()

    ndim = 1

    def __len__(self) -> int:
        return self.tape.sizes[self.index]

    @property
    def shape(self) -> tuple[int]:
        """``(size,)``."""
        return (len(self),)

    @property
    def size(self) -> int:
        """The number of components."""
        return len(self)

    @property
    def T(self) -> Vector:
        """A vector is its own transpose."""
        return self

    def copy(self) -> Vector:
        """Itself: symbols never change."""
        return self

    def __iter__(self) -> Iterator[Symbol]:
        return iter([self[i] for i in range(len(self))])

    def __getitem__(self, key: Any) -> Symbol:
        if isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis:
            key = key[1]
        if key is Ellipsis or isinstance(key, Symbol):
            return self if key is Ellipsis else refuse("a symbol as index", "use a plain integer")
        try:
            picked = np.asarray(np.arange(len(self))[key])
        except (IndexError, TypeError) as error:
            raise RecordingError(f"{user_line()}: index {key!r} does not fit a vector of {len(self)} components") from error
        if picked.ndim > 1 or picked.size == 0:
            refuse(f"index {key!r} gives shape {picked.shape}", "symbols are vectors with at least one component")
        indices = tuple(int(i) for i in np.atleast_1d(picked))
        if picked.ndim == 1 and indices == tuple(range(len(self))):
            return self
        return self.tape.symbol(self.tape.node("select", (self.index,), len(indices), indices=indices), picked.ndim == 0)

    def __matmul__(self, other: object) -> Any:
        return call("matmul", "", self, other)

    def __rmatmul__(self, other: object) -> Any:
        return call("matmul", "", other, self)
