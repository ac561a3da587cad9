"""Monotonicity, vertices and implicit layers under attack: what is claimed of random networks against exact rational values."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from loops import Sketch

from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.graph import Graph, GraphError, Node
from lipctrl.certificates.checker.implicit import margin
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.local_slopes import Cells, local_slopes
from lipctrl.certificates.checker.signs import signs_everywhere
from lipctrl.certificates.checker.sorts import with_comparators
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_lipschitz
from lipctrl.certificates.checker.verifiers.monotonicity import leaf_batches, prove_monotone, read_claim
from lipctrl.certificates.checker.writing import certificate_bytes
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.core.errors import LipctrlError

F = Fraction
Point = list[Any]  #: Fractions, and nan for a coordinate that has no value
NAN = float("nan")


# --- exact values, by rules of their own --------------------------------------------------------------------------------


def exact_value(graph: Graph, x: Point) -> Point:
    """The output at a rational point."""
    values: list[Point] = []
    for node in graph.nodes:
        values.append(list(x) if node.op == "input" else node_value(graph, node, [values[i] for i in node.inputs]))
    (output,) = graph.outputs.values()
    return values[output]


def matrix(graph: Graph, name: str) -> list[Point]:
    return [[F(float(w)) for w in row] for row in graph.tensors[name]]


def pick(choose: Any, values: Point) -> Any:
    """min or max, nan if one of the values is."""
    return next((v for v in values if v != v), None) or choose(values)


def dot(row: Point, x: Point) -> Fraction:
    return sum((w * v for w, v in zip(row, x, strict=True)), F(0))


def node_value(graph: Graph, node: Node, operands: list[Point]) -> Point:
    a, x = node.attributes, operands[0] if operands else []
    size = max(map(len, operands), default=0)
    pairs = list(zip(*(v * (size // len(v)) for v in operands), strict=True)) if len(operands) == 2 and node.op != "concatenate" else []
    match node.op:
        case "constant":
            return list(a["values"])
        case "neg":
            return [-v for v in x]
        case "abs":
            return [abs(v) for v in x]
        case "relu":
            return [max(v, F(0)) for v in x]
        case "leaky_relu":
            return [v if v > 0 else a["slope"] * v for v in x]
        case "power":
            return [v if v != v else v ** a["exponent"] for v in x]
        case "clip":
            return [min(max(v, low), high) for v, low, high in zip(x, a["low"], a["high"], strict=True)]
        case "min" | "max":
            return [pick(min if node.op == "min" else max, [*pair]) for pair in pairs]
        case "add" | "sub" | "mul":
            return [p * q if node.op == "mul" else p + q if node.op == "add" else p - q for p, q in pairs]
        case "div":
            return [p / q if q else NAN for p, q in pairs]
        case "affine":
            bias = [F(0)] * size if a["bias"] is None else [F(float(b)) for b in graph.tensors[a["bias"]]]
            rows = matrix(graph, a["weight"])
            return [dot(row, x) + (bias[i] if a["bias"] else 0) for i, row in enumerate(rows)]
        case "select":
            return [x[i] for i in a["indices"]]
        case "concatenate":
            return [v for part in operands for v in part]
        case "group_sort":
            groups = [x[i : i + a["group_size"]] for i in range(0, size, a["group_size"])]
            return [v for group in groups for v in (sorted(group) if all(v == v for v in group) else [NAN] * len(group))]
        case "recentre":
            return [p - q for p, q in zip(exact_value(a["graph"], x), exact_value(a["graph"], list(a["point"])), strict=True)]
        case "implicit":
            return solution(matrix(graph, a["weight"]), x) if all(v == v for v in x) else [NAN] * size
    raise KeyError(node.op)


def solved(system: list[Point], right: Point) -> Point:
    """x with system x = right, by elimination."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(system, right, strict=True)]
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        for i in range(n):
            if i != k and rows[i][k]:
                rows[i] = [v - rows[i][k] * w for v, w in zip(rows[i], rows[k], strict=True)]
    return [row[n] for row in rows]


def resolvent(weight: list[Point], slopes: tuple[int, ...]) -> list[Point]:
    """I - S D."""
    return [[F(i == j) - s * w for j, w in enumerate(row)] for i, (s, row) in enumerate(zip(slopes, weight, strict=True))]


def solution(weight: list[Point], v: Point) -> Point:
    """z = relu(D z + v), by trying which units are open."""
    for slopes in itertools.product((0, 1), repeat=len(v)):
        z = solved(resolvent(weight, slopes), [s * value for s, value in zip(slopes, v, strict=True)])
        entering = [dot(row, z) + value for row, value in zip(weight, v, strict=True)]
        if all(w >= 0 if s else w <= 0 for s, w in zip(slopes, entering, strict=True)):
            return z
    raise AssertionError("a well-posed layer has a solution")


# --- random networks ----------------------------------------------------------------------------------------------------

KINDS = ["kink"] * 3 + ["binary"] * 5 + ["constant"] * 4 + ["affine"] * 3 + "power clip leaky sort select join recentre implicit".split()


class Maker:
    """Random graphs of operations with rational values, some of them undefined somewhere."""

    def __init__(self, generator: np.random.Generator, inputs: int, steps: int, nesting: int = 0, tensors: Any = None) -> None:
        self.r, self.nesting, self.tensors = generator, nesting, {} if tensors is None else tensors
        self.nodes, self.sizes = [Node("input", (), {"name": "x", "size": inputs})], [inputs]
        while len(self.nodes) <= steps:
            self.step(str(self.r.choice(KINDS)))
        self.graph = Graph(tuple(self.nodes), {"y": len(self.nodes) - 1}, self.tensors, nesting)

    def add(self, op: str, inputs: tuple[int, ...], length: int, /, **attributes: Any) -> int:
        self.nodes.append(Node(op, inputs, attributes))
        self.sizes.append(length)
        return len(self.nodes) - 1

    def tensor(self, values: Any) -> str:
        self.tensors[f"t{len(self.tensors)}"] = np.array(values)
        return f"t{len(self.tensors) - 1}"

    def weights(self, *shape: int) -> str:
        values = self.r.integers(-3, 4, shape) / 2
        if self.r.random() < 0.3:
            values = np.abs(values)
        if self.r.random() < 0.2:
            values = np.where(self.r.random(shape) < 0.4, self.r.choice([0.0, -0.0, 5e-324, -5e-324, 1e30, -1e-30], shape), values)
        return self.tensor(values)

    def rationals(self, count: int) -> tuple[Fraction, ...]:
        return tuple(F(int(self.r.integers(-9, 10)), int(self.r.integers(1, 6))) for _ in range(count))

    def step(self, kind: str) -> None:
        x = int(self.r.integers(max(0, len(self.nodes) - 4), len(self.nodes)))
        n, r = self.sizes[x], self.r
        if kind == "kink":
            self.add(str(r.choice(["relu", "abs", "neg"])), (x,), n)
        elif kind in ("binary", "constant"):
            if kind == "constant":
                length = n if r.random() < 0.5 else 1
                y = self.add("constant", (), length, values=self.rationals(length))
            else:
                y = int(r.choice([i for i, size in enumerate(self.sizes) if size in (1, n)]))
            op = str(r.choice(["add", "sub", "mul", "min", "max", "div"]))
            self.add(op, (x, y) if r.random() < 0.5 else (y, x), max(n, self.sizes[y]))
        elif kind == "affine":
            rows = int(r.integers(1, 4))
            self.add("affine", (x,), rows, weight=self.weights(rows, n), bias=self.weights(rows) if r.random() < 0.6 else None)
        elif kind == "power":
            self.add("power", (x,), n, exponent=int(r.integers(0, 4)))
        elif kind == "clip":
            low = self.rationals(n)
            self.add("clip", (x,), n, low=low, high=tuple(v + F(int(r.integers(1, 9)), 4) for v in low))
        elif kind == "leaky":
            self.add("leaky_relu", (x,), n, slope=F(str(r.choice(["1/10", "-1/5", "0", "3", "1"]))))
        elif kind == "sort":
            self.add("group_sort", (x,), n, group_size=int(r.integers(2, 4)))
        elif kind == "select":
            indices = tuple(r.integers(0, n, int(r.integers(1, 4))).tolist())
            self.add("select", (x,), len(indices), indices=indices)
        elif kind == "join" and n < 4:
            self.add("concatenate", (x, 0), n + self.sizes[0])
        elif kind == "recentre" and self.nesting < 2:
            inner = Maker(r, n, int(r.integers(1, 4)), self.nesting + 1, self.tensors).graph
            length = next(iter(inner.output_sizes.values()))
            point = tuple(F(int(v)) for v in r.integers(-1, 2, n))
            self.add("recentre", (x,), length, graph=inner, point=point, offset=self.tensor(np.zeros(length)))
        elif kind == "implicit" and n <= 3:
            weight, metric = layer(r, n)
            self.add("implicit", (x,), n, weight=self.tensor(weight), metric=self.tensor(metric), activation="relu")


def layer(r: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The weight and metric of a layer that is well-posed, or nearly so."""
    a, b = r.standard_normal((2, n, n))
    least, metric = 10.0 ** -r.uniform(0, 6), np.ones(n) if r.random() < 0.5 else 10.0 ** r.uniform(-3, 3, n)
    weight = (1 - least) * np.eye(n) - r.choice([0, 1, 10]) * a.T @ a + r.choice([0, 1, 10]) * (b - b.T)
    if r.random() < 0.4:
        weight = (1 - least) * np.abs(a) / np.linalg.eigvalsh((np.abs(a) + np.abs(a).T) / 2)[-1]
    return weight / np.sqrt(metric)[:, None] * np.sqrt(metric), metric


def made(size: int, build: Any) -> Graph:
    s = Sketch()
    return s.graph(y=build(s, s.input("x", size)))


# --- monotonicity -------------------------------------------------------------------------------------------------------


def claim_of(signs: np.ndarray, box: list[tuple[Fraction, Fraction]] | None) -> dict[str, Any]:
    ends = None if box is None else {key: [str(pair[end]) for pair in box] for end, key in enumerate(("low", "high"))}
    return {"property": "monotone", "signs": signs.tolist(), "domain": ends}


def provable(graph: Graph, box: list[tuple[Fraction, Fraction]] | None, tree: list[Any]) -> Iterator[np.ndarray]:
    """All signs that are proved on a box that varies in every input, or everywhere; what is constant has both."""
    (n,), (m,) = graph.input_sizes.values(), graph.output_sizes.values()
    if box is None:
        with contextlib.suppress(Rejected):
            moves = signs_everywhere(with_comparators(graph))
            for against, sign in ((moves.down, 1), (moves.up, -1)):
                yield sign * (~against[:, 0].T).astype(int)
        return
    problem = read_claim(graph, claim_of(np.ones((m, n), dtype=int), box))
    against = np.zeros((2, n, m), dtype=bool)
    for leaves, moves, finite in leaf_batches(problem, problem.domain, tree):
        if not finite.all():
            return
        against |= np.stack([np.broadcast_to(end, (n, len(leaves), m)).any(1) for end in (moves.down, moves.up)])
    yield (~against[0].T).astype(int)
    yield -(~against[1].T).astype(int)


def split_tree(r: np.random.Generator, box: list[tuple[Fraction, Fraction]], depth: int = 0) -> list[Any]:
    axis = int(r.integers(len(box)))
    low, high = box[axis]
    threshold = 0.0 if low < 0 < high and r.random() < 0.6 else float(low) + float(high - low) * float(r.choice([0.5, 0.2]))
    if depth == 3 or r.random() < 0.4 or not low < F(threshold) < high:
        return [None]
    halves = [[*box[:axis], half, *box[axis + 1 :]] for half in ((low, F(threshold)), (F(threshold), high))]
    return [[axis, threshold.hex()], *split_tree(r, halves[0], depth + 1), *split_tree(r, halves[1], depth + 1)]


def somewhere(r: np.random.Generator, low: Fraction, high: Fraction) -> Fraction:
    share = [F(0), F(1), F(float(r.random())), F(float(10.0 ** -r.uniform(1, 12)))][int(r.integers(4))]
    return F(0) if low <= 0 <= high and r.random() < 0.2 else low + (high - low) * share


def contradictions(graph: Graph, signs: np.ndarray, box: list[tuple[Fraction, Fraction]], r: np.random.Generator) -> Iterator[Any]:
    for _ in range(6):
        x, j = [somewhere(r, *pair) for pair in box], int(r.integers(len(box)))
        first, second = sorted((x[j], somewhere(r, *box[j])))
        before, after = (exact_value(graph, [*x[:j], v, *x[j + 1 :]]) for v in (first, second))
        for i, sign in enumerate(signs[:, j].tolist()):
            if not sign * (after[i] - before[i]) >= 0:
                yield i, j, x, first, second


@pytest.mark.parametrize("seed", range(5))
def test_no_proved_sign_is_contradicted(seed: int) -> None:
    r = np.random.default_rng(seed)
    claims = 0
    for _ in range(16):
        graph = Maker(r, int(r.integers(1, 4)), int(r.integers(1, 9))).graph
        (n,) = graph.input_sizes.values()
        box = [
            (low := F(int(r.integers(-9, 6)), int(r.integers(1, 4))), low + F(int(r.integers(1, 9)), int(r.integers(1, 50))))
            for _ in range(n)
        ]
        for domain, where in ((None, [(F(-100), F(100))] * n), (box, box)):
            tree = split_tree(r, box)
            for signs in provable(graph, domain, tree):
                if signs.any():
                    evidence = {"method": "signs"} if domain is None else {"method": "cells", "tree": tree}
                    prove_monotone(graph, claim_of(signs, domain), evidence)
                    claims += int(np.abs(signs).sum())
                    assert not list(contradictions(graph, signs, where, r))
    assert claims > 40


def test_no_proved_sign_of_an_implicit_layer_is_contradicted() -> None:
    r, claims = np.random.default_rng(7), 0
    for _ in range(40):
        n = int(r.integers(2, 4))
        weight, metric = layer(r, n)
        nodes = (Node("input", (), {"name": "x", "size": n}), Node("implicit", (0,), {"weight": "D", "metric": "m", "activation": "relu"}))
        graph, box = Graph(nodes, {"z": 1}, {"D": weight, "m": metric}), [(F(-2), F(3))] * n
        for domain in (None, box):
            for signs in provable(graph, domain, [None]):
                claims += int(np.abs(signs).sum())
                assert not list(contradictions(graph, signs, box, r))
    assert claims > 40


def one_over(s: Sketch, x: int) -> int:
    return s("div", s.constant(1), x)


#: Functions of one input that are undefined at 0, behind operations that would hide it.
HIDDEN = {
    "clip": lambda s, x: s("clip", one_over(s, x), low=(F(-1),), high=(F(1),)),
    "tanh": lambda s, x: s("tanh", one_over(s, x)),
    "min": lambda s, x: s("min", one_over(s, x), s.constant(5)),
    "weight 0": lambda s, x: s("sub", s.affine(one_over(s, x), [[0]]), x),
    "factor 0": lambda s, x: s("sub", s("mul", s.constant(0), one_over(s, x)), x),
    "power 0": lambda s, x: s("sub", s("power", s("log", x), exponent=0), x),
    "power 0 of a quotient": lambda s, x: s("sub", s("power", one_over(s, x), exponent=0), x),
    "sorted": lambda s, x: s("neg", s("select", s("group_sort", s("concatenate", one_over(s, x), x), group_size=2), indices=(0,))),
    "sin": lambda s, x: s("sub", s("sin", one_over(s, x)), s("mul", x, s.constant(9))),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_undefined_stays_undefined(name: str) -> None:
    graph = made(1, HIDDEN[name])
    for tree in ([None], [[0, (0.0).hex()], None, None], [[0, (0.5).hex()], None, None]):
        with pytest.raises(Rejected, match="finite values|no value"):
            prove_monotone(graph, claim_of(-np.ones((1, 1), dtype=int), [(F(-1), F(1))]), {"method": "cells", "tree": tree})
    with pytest.raises(Rejected):
        prove_monotone(graph, claim_of(-np.ones((1, 1), dtype=int), None), {"method": "signs"})


TINY_STEP = F(1, 10**400)

#: Functions of one input, the one sign that they have, and a box.
TOUCHING = [
    (lambda s, x: s("abs", x), 1, (F(0), F(2))),
    (lambda s, x: s("power", x, exponent=2), 1, (F(0), F(2))),
    (lambda s, x: s("mul", x, x), -1, (F(-2), F(0))),
    (lambda s, x: s("min", x, x), 1, (F(-2), F(2))),
    (lambda s, x: s.affine(s.affine(x, [[5e-324], [1]], dtype=np.float64), [[-5e-324, 0.0]], dtype=np.float64), -1, (F(-1), F(1))),
    (lambda s, x: s("mul", s.constant(-TINY_STEP), x), -1, (F(-1), F(1))),
    (lambda s, x: s("leaky_relu", x, slope=-TINY_STEP), 1, (F(0), F(1))),
]


@pytest.mark.parametrize(("build", "sign", "box"), TOUCHING)
def test_a_box_that_goes_beyond_a_kink_by_nearly_nothing(build: Any, sign: int, box: tuple[Fraction, Fraction]) -> None:
    graph, evidence, claimed = made(1, build), {"method": "cells", "tree": [None]}, np.array([[sign]])
    prove_monotone(graph, claim_of(claimed, [box]), evidence)
    with pytest.raises(Rejected):
        prove_monotone(graph, claim_of(-claimed, [box]), evidence)
    beyond = (box[0] - TINY_STEP, box[1] + TINY_STEP)
    values = [exact_value(graph, [v])[0] for v in (beyond[0], box[0], box[1], beyond[1])]
    if any(sign * (b - a) < 0 for a, b in itertools.pairwise(values)):
        with pytest.raises(Rejected):
            prove_monotone(graph, claim_of(claimed, [beyond]), evidence)


# --- vertices -----------------------------------------------------------------------------------------------------------

RANGES = {"relu": (0.0, 1.0), "abs": (-1.0, 1.0), "clip": (0.0, 1.0), "min": (0.0, 1.0), "max": (0.0, 1.0), "sigmoid": (0.0, 0.25)}


def network(r: np.random.Generator) -> Graph:
    """Few units: runs of coordinate-wise maps, skips, differences, choices, signals that are read twice."""
    s = Sketch()
    n = int(r.integers(1, 4))
    places, sizes = [s.input("x", n)], [n]

    def keep(place: int, size: int) -> None:
        places.append(place)
        sizes.append(size)

    def mix() -> None:
        keep(s.affine(places[-1], r.standard_normal((2, sizes[-1])), dtype=np.float64), 2)

    mix()
    for _ in range(int(r.integers(2, 4))):
        for kind in r.choice(
            ["relu", "relu", "abs", "sigmoid", "leaky", "clip", "neg", "sum", "min", "select", "scale"], int(r.integers(1, 4))
        ):
            x, size = places[-1], sizes[-1]
            if kind == "leaky":
                keep(s("leaky_relu", x, slope=F(str(r.choice(["1/10", "-1/3", "2", "-7/2"])))), size)
            elif kind == "clip":
                keep(s("clip", x, low=(F(-1),) * size, high=(F(1, 2),) * size), size)
            elif kind in ("sum", "min"):
                other = places[int(r.choice([i for i, length in enumerate(sizes) if length == size]))]
                keep(s(str(r.choice(["add", "sub"] if kind == "sum" else ["min", "max"])), x, other), size)
            elif kind == "select":
                indices = tuple(r.integers(0, size, int(r.integers(1, 4))).tolist())
                keep(s("select", x, indices=indices), len(indices))
            elif kind == "scale":
                keep(s("mul", s.constant(F(-3, 7)), x), size)
            else:
                keep(s(str(kind), x), size)
        mix()
    return s.graph(y=places[-1])


def units(graph: Graph) -> list[tuple[int, int, float, float]]:
    """Node, coordinate and ends of the slopes of everything that the output rests on."""
    (output,) = graph.outputs.values()
    needed = {output}
    for index in range(output, -1, -1):
        needed |= set(graph.nodes[index].inputs) if index in needed else set()
    found = []
    for index in sorted(needed):
        node = graph.nodes[index]
        slope = float(node.attributes.get("slope", 1))
        low, high = RANGES.get(node.op, (min(slope, 1.0), max(slope, 1.0)))
        found += [(index, i, low, high) for i in range(graph.sizes[index]) if low < high]
    return found


def jacobian(graph: Graph, slopes: dict[tuple[int, int], float]) -> np.ndarray:
    values: list[np.ndarray] = []
    for index, node in enumerate(graph.nodes):
        x, size = [values[i] for i in node.inputs], graph.sizes[index]
        s = np.array([slopes.get((index, i), 1.0) for i in range(size)])[:, None]
        match node.op:
            case "input":
                here = np.eye(size)
            case "constant":
                here = np.zeros((size, graph.sizes[0]))
            case "affine":
                here = graph.tensors[node.attributes["weight"]] @ x[0]
            case "neg":
                here = -x[0]
            case "add" | "sub":
                here = x[0] + (1 if node.op == "add" else -1) * x[1]
            case "min" | "max":
                here = s * x[0] + (1 - s) * x[1]
            case "mul":
                here = float(graph.nodes[node.inputs[0]].attributes["values"][0]) * x[1]
            case "select":
                here = x[0][list(node.attributes["indices"])]
            case _:
                here = s * x[0]
        values.append(here)
    return values[next(iter(graph.outputs.values()))]


def greatest_gain(graph: Graph, order: float) -> float:
    """The greatest gain of all vertices of the slopes."""
    found = units(graph)
    ends = itertools.product(*[(low, high) for *_, low, high in found])
    gains = [jacobian(graph, {(index, i): end for (index, i, *_), end in zip(found, some, strict=True)}) for some in ends]
    return max(float(np.linalg.norm(gain, order)) for gain in gains)


def forged(evidence: dict[str, Any], r: np.random.Generator) -> dict[str, Any]:
    changed = copy.deepcopy(evidence)
    tree, proofs = changed["tree"], changed["proofs"]
    at, how = int(r.integers(len(tree))), int(r.integers(5))
    if how == 0:
        tree[at] = int(r.integers(len(proofs)))
    elif how == 1:
        del tree[at]
    elif how == 2:
        tree.insert(at, copy.deepcopy(tree[int(r.integers(len(tree)))]))
    elif how == 3:
        r.shuffle(proofs)
    elif isinstance(tree[at], list):  # a whole subtree becomes one leaf
        end, open_ends = at, 1
        while open_ends:
            open_ends += 1 if isinstance(tree[end], list) else -1
            end += 1
        tree[at:end] = [int(r.integers(len(proofs)))]
    return changed


@pytest.mark.parametrize("seed", range(4))
def test_no_bound_is_below_the_greatest_vertex(seed: int) -> None:
    r = np.random.default_rng(100 + seed)
    split = 0
    while split < 2:
        graph, norm = network(r), str(r.choice(["l2", "l2", "linf"]))
        if not 2 < len(units(graph)) < 8:
            continue
        truth = greatest_gain(graph, 2 if norm == "l2" else np.inf)
        if truth == 0:  # such as x - x: there is no floor for a search to go to
            continue
        found = certify_lipschitz(graph, norm, splits=1000, tolerance=1e-6, witness=False).upper
        assert truth * (1 - 1e-9) <= found.value <= truth * (1 + 1e-5)
        evidence = json.loads(json.dumps(found.evidence))
        if evidence["method"] != "vertices":
            continue
        split += 1
        for _ in range(25):
            bound = found.value * float(r.choice([1, 1, 1 - 1e-4, 0.95, 0.8]))
            claim = {"property": "lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "bound": bound.hex()}
            try:
                prove_lipschitz(graph, claim, forged(evidence, r))
            except Rejected:
                continue
            assert bound >= truth * (1 - 1e-9)


# --- implicit layers ----------------------------------------------------------------------------------------------------


def is_semidefinite(form: list[Point]) -> bool:
    """By exact elimination with the greatest pivot first."""
    left = list(range(len(form)))
    while left:
        k = max(left, key=lambda i: form[i][i])
        if form[k][k] <= 0:
            return all(form[i][j] == 0 for i in left for j in left)
        left.remove(k)
        for i, j in itertools.product(left, left):
            form[i][j] -= form[i][k] * form[k][j] / form[k][k] if i != k else 0
    return True


def test_margins_hold_exactly() -> None:
    r, proved = np.random.default_rng(0), 0
    for _ in range(150):
        n = int(r.integers(1, 5))
        weight, metric = layer(r, n)
        if r.random() < 0.5:
            metric = metric * 10.0 ** r.uniform(-100, 100)
        if r.random() < 0.3:
            weight[r.integers(n), r.integers(n)] = r.choice([5e-324, 1e-200, 1.0, 1 - 2.0**-53, 1e200])
        dtype = np.float32 if r.random() < 0.3 else np.float64
        with np.errstate(all="ignore"):
            weight, metric = weight.astype(dtype), metric.astype(dtype)
        try:
            kappa = F(margin(weight, metric))
        except GraphError:
            continue
        proved += 1
        scale, rows = [F(float(w)) for w in metric], [[F(float(w)) for w in row] for row in weight]
        form = [
            [-scale[i] * rows[i][j] - scale[j] * rows[j][i] + (2 * (1 - kappa) * scale[i] if i == j else 0) for j in range(n)]
            for i in range(n)
        ]
        assert kappa > 0 and min(scale) > 0 and is_semidefinite(form)
    assert proved > 60


def implicit_graph(r: np.random.Generator, n: int) -> Graph:
    weight, metric = layer(r, n)
    tensors = {"D": weight, "m": metric, "V": r.standard_normal((n, 2)), "b": r.standard_normal(n)}
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("affine", (0,), {"weight": "V", "bias": "b"}),
        Node("implicit", (1,), {"weight": "D", "metric": "m", "activation": "relu"}),
    )
    return Graph(nodes, {"z": 2}, tensors)


@pytest.mark.parametrize("seed", range(3))
def test_enclosures_hold_the_exact_solution_and_its_slopes(seed: int) -> None:
    r = np.random.default_rng(seed)
    for _ in range(12):
        graph = implicit_graph(r, int(r.integers(1, 4)))
        middle, radius = r.standard_normal(2) * 10.0 ** r.uniform(-1, 2), 10.0 ** r.uniform(-8, 3, 2)
        low, high = middle - radius, middle + radius
        with np.errstate(all="ignore"):
            found = local_slopes(graph, Cells(low[None], high[None], np.arange(2))).output
        assert found.slope is not None and np.isfinite(found.slope.magnitude).all()
        points = [[somewhere(r, F(float(a)), F(float(b))) for a, b in zip(low, high, strict=True)] for _ in range(5)]
        values = [exact_value(graph, x) for x in points]
        for value in values:
            assert all(F(float(a)) <= v <= F(float(b)) for a, v, b in zip(found.value.low[0], value, found.value.high[0], strict=True))
        for (x, u), (y, v) in itertools.combinations(zip(points, values, strict=True), 2):
            for i in range(len(u)):
                ends = [[F(float(end[k, 0, i])) * (x[k] - y[k]) for end in (found.slope.low, found.slope.high)] for k in range(2)]
                assert sum(map(min, ends)) <= u[i] - v[i] <= sum(map(max, ends))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bounds_of_implicit_layers_are_above_every_vertex(norm: str) -> None:
    r = np.random.default_rng(3)
    for _ in range(12):
        n = int(r.integers(1, 4))
        graph = implicit_graph(r, n)
        try:
            bound = certify_lipschitz(graph, norm, witness=False, tolerance=1e-3).upper.value
        except LipctrlError:
            continue
        weight, entering = matrix(graph, "D"), matrix(graph, "V")
        for slopes in itertools.product((0, 1), repeat=n):
            columns = [solved(resolvent(weight, slopes), [s * row[k] for s, row in zip(slopes, entering, strict=True)]) for k in range(2)]
            gain = np.array([[float(v) for v in column] for column in columns]).T
            assert np.linalg.norm(gain, 2 if norm == "l2" else np.inf) <= bound * (1 + 1e-12)


BOX = {"low": ["-1"], "high": ["1"]}
SCALES: dict[str, Any] = {"input_scale": None, "output_scale": None}
BOUND = {**SCALES, "bound": (1e9).hex()}
#: One certificate of each kind about a policy with one input, which is true of z = relu(z / 2 + x).
CERTIFICATES: dict[str, dict[str, Any]] = {
    "everywhere": {"kind": "monotonicity", "claim": claim_of(np.ones((1, 1), dtype=int), None), "evidence": {"method": "signs"}},
    "cells": {
        "kind": "monotonicity",
        "claim": claim_of(np.ones((1, 1), dtype=int), [(F(-1), F(1))]),
        "evidence": {"method": "cells", "tree": [None]},
    },
    "product": {
        "kind": "lipschitz-bound",
        "claim": {"property": "lipschitz", "norm": "l2", **BOUND},
        "evidence": {"method": "norm-product"},
    },
    "rows": {
        "kind": "lipschitz-bound",
        "claim": {"property": "lipschitz", "norm": "linf", **BOUND},
        "evidence": {"method": "absolute-product"},
    },
    "local": {
        "kind": "lipschitz-bound",
        "claim": {"property": "local_lipschitz", "norm": "l2", **BOUND, "domain": BOX},
        "evidence": {"method": "cells", "tree": [None], "proofs": []},
    },
    "stretched": {
        "kind": "counterexample",
        "claim": {"property": "lipschitz", "region": {"norm": "l2", "bound": "1", **SCALES}},
        "evidence": {"first": ["0"], "second": ["1"]},
    },
    "falling": {
        "kind": "counterexample",
        "claim": {"property": "monotone", "region": {"signs": [[-1]], "domain": None}},
        "evidence": {"first": ["0"], "second": ["1"]},
    },
}


def judged(name: str, weight: float, metric: float, nested: bool) -> str:
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("implicit", (0,), {"weight": "D", "metric": "m", "activation": "relu"}))
    tensors = {"D": np.array([[weight]]), "m": np.array([metric]), "o": np.zeros(1)}
    graph = Graph(nodes, {"z": 1}, tensors, int(nested))
    if nested:
        outer = Node("recentre", (0,), {"graph": graph, "point": (F(0),), "offset": "o"})
        graph = Graph((nodes[0], outer), {"z": 1}, tensors)
    tensors.pop("o") if not nested else None
    try:
        return check(parse_certificate(*certificate_bytes(policy=graph, **CERTIFICATES[name]))).level
    except Rejected as error:
        return str(error)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", CERTIFICATES)
def test_no_kind_says_anything_about_a_layer_that_is_not_well_posed(name: str, nested: bool) -> None:
    assert judged(name, 0.5, 1.0, nested) == ("falsified" if CERTIFICATES[name]["kind"] == "counterexample" else "proved")
    for weight, metric in ((2.0, 1.0), (2.0, -1.0), (1.0, 1.0), (1 + 2.0**-52, 5e-324), (0.5, 0.0), (0.5, -0.0)):
        assert "implicit layer" in judged(name, weight, metric, nested)
