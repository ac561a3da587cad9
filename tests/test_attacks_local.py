"""Attacks on local bounds: random graphs over every operation, with 300-bit numbers as the judge, which share no code with the checker."""

import copy
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, arb_series, ctx
from test_local_lipschitz import claim_of, network, texts

from lipctrl.certificates.checker.derivatives import higher_derivatives, reciprocal
from lipctrl.certificates.checker.domain import HalfLine, Leaf
from lipctrl.certificates.checker.expansion import record, remainder, row_remainders
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.local_slopes import COORDINATE_WISE
from lipctrl.certificates.checker.unit_splits import MAX_SYMBOLS, Margins, NoPoint, read_passes
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.local_lipschitz import prove_local, read_problem
from lipctrl.certificates.lipschitz import Budget, certify_local_lipschitz
from lipctrl.certificates.lipschitz.unit_search import Narrowing

F = Fraction

# --- the judge --------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def precision():
    """300 bits while a test runs; overflow goes unmentioned, as in the checker."""
    saved, ctx.prec = ctx.prec, 300
    with np.errstate(all="ignore"):
        yield
    ctx.prec = saved


def ball(value):
    return arb(value.numerator) / arb(value.denominator) if isinstance(value, F) else arb(float(value))


def larger(a, b):
    return a if a > b else b if b > a else a.max(b)


UNARY = {
    "neg": lambda v: -v,
    "abs": abs,
    "relu": lambda v: larger(v, arb(0)),
    "sin": arb.sin,
    "cos": arb.cos,
    "tan": arb.tan,
    "exp": arb.exp,
    "log": arb.log,
    "sqrt": arb.sqrt,
    "erf": arb.erf,
    "tanh": arb.tanh,
    "sigmoid": lambda v: (1 + (v / 2).tanh()) / 2,
    "softplus": lambda v: (1 + v.exp()).log(),
    "gelu": lambda v: v * (1 + (v / arb(2).sqrt()).erf()) / 2,
    "silu": lambda v: v * (1 + (v / 2).tanh()) / 2,
}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": larger,
    "min": lambda a, b: -larger(-a, -b),
}


def evaluated(graph, x, entering=None, path=()):
    """The output at x, a list of balls; ``entering`` collects what enters the nodes by their place."""
    values = []
    for index, node in enumerate(graph.nodes):
        operands, place = [values[i] for i in node.inputs], (*path, index) if path else index
        values.append(_value(graph, node, operands, x, entering, (*path, index)))
        if entering is not None and operands:
            entering[place] = operands[0]
            if node.op in ("min", "max"):
                first, second = operands[::-1] if graph.nodes[node.inputs[0]].op == "constant" else operands
                difference = _by_pairs(BINARY["sub"], first, second)
                entering[place] = difference if node.op == "max" else [-v for v in difference]
    (output,) = graph.outputs.values()
    return values[output]


def _by_pairs(function, first, second):
    size = max(len(first), len(second))
    return [function(a, b) for a, b in zip(*(v * size if len(v) == 1 else v for v in (first, second)), strict=True)]


def _value(graph, node, operands, x, entering, path):
    v, known = operands[0] if operands else x, node.attributes
    if node.op in UNARY:
        return [UNARY[node.op](c) for c in v]
    if node.op in BINARY:
        return _by_pairs(BINARY[node.op], *operands)
    if node.op == "recentre":
        there = evaluated(known["graph"], [ball(c) for c in known["point"]])
        return _by_pairs(BINARY["sub"], evaluated(known["graph"], v, entering, path), there)
    if node.op == "affine":
        weight, bias = (None if known[key] is None else graph.tensors[known[key]] for key in ("weight", "bias"))
        sums = [sum((ball(w) * c for w, c in zip(row, v, strict=True)), arb(0)) for row in weight]
        return sums if bias is None else [a + ball(b) for a, b in zip(sums, bias, strict=True)]
    if node.op == "group_sort":
        groups = (v[i : i + known["group_size"]] for i in range(0, len(v), known["group_size"]))
        return [c for group in groups for c in sorted(group, key=lambda c: float(c.mid()))]
    return {
        "input": lambda: list(x),
        "constant": lambda: [ball(c) for c in known["values"]],
        "power": lambda: [math.prod([c] * known["exponent"], start=arb(1)) for c in v],
        "clip": lambda: [-larger(-larger(c, ball(a)), -ball(b)) for c, a, b in zip(v, known["low"], known["high"], strict=True)],
        "leaky_relu": lambda: [c if c >= 0 else ball(known["slope"]) * c for c in v],
        "select": lambda: [v[i] for i in known["indices"]],
        "concatenate": lambda: [c for part in operands for c in part],
    }[node.op]()


# --- what is judged -----------------------------------------------------------------------------------------------------------

SMOOTH, KINKED = "sin cos tanh sigmoid softplus erf gelu silu neg".split(), ["relu", "abs"]


class Builder:
    """A random graph, node by node; ``smooth`` without kinks."""

    def __init__(self, generator, inputs, smooth, nesting=0, tensors=None):
        self.generator, self.smooth, self.nesting = generator, smooth, nesting
        self.nodes, self.sizes, self.tensors = [], [], {} if tensors is None else tensors
        self.add("input", (), inputs, {"name": "x", "size": inputs})

    def add(self, op, operands, size, attributes=None):
        self.nodes.append(Node(op, tuple(operands), attributes or {}))
        self.sizes.append(size)
        return len(self.nodes) - 1

    def tensor(self, array):
        self.tensors[name := f"t{len(self.tensors)}"] = array
        return name

    def pick(self, *options):
        return options[self.generator.integers(len(options))]

    def constant(self, size):
        return self.add("constant", (), size, {"values": tuple(F(int(self.generator.integers(-60, 60)), 31) for _ in range(size))})

    def affine(self, x, rows):
        weight = self.generator.standard_normal((rows, self.sizes[x])) / math.sqrt(self.sizes[x])
        bias = self.tensor(self.generator.standard_normal(rows)) if self.pick(True, False) else None
        return self.add("affine", (x,), rows, {"weight": self.tensor(weight.astype(self.pick(np.float32, np.float64))), "bias": bias})

    def positive(self, x):
        square = self.add("power", (x,), self.sizes[x], {"exponent": 2})
        return self.add("add", (square, self.add("constant", (), 1, {"values": (F(3, 4),)})), self.sizes[x])

    def step(self):
        x = self.pick(len(self.nodes) - 1, int(self.generator.integers(len(self.nodes))))
        kinds = [self.map, self.scalar, self.scalar, self.pair, self.pair, self.parts, self.ratio, self.inner]
        self.pick(*kinds[: 7 if self.nesting else 8])(x, self.sizes[x])

    def map(self, x, n):
        self.affine(x, int(self.generator.integers(1, 5)))

    def scalar(self, x, n):
        op = self.pick(*SMOOTH, "power", "exp", *([] if self.smooth else [*KINKED * 3, "clip", "leaky_relu", "group_sort"]))
        x = self.add("tanh", (x,), n) if op == "exp" else x
        attributes = {
            "power": {"exponent": int(self.generator.integers(0, 4))},
            "clip": {"low": (F(-1, 3),) * n, "high": (F(2, 3),) * n},
            "leaky_relu": {"slope": self.pick(F(1, 10), F(3, 2), F(-1, 2))},
            "group_sort": {"group_size": self.pick(2, 3)},
        }
        self.add(op, (x,), n, attributes.get(op))

    def pair(self, x, n):
        other = self.pick(self.constant(self.pick(1, n)), *(i for i, m in enumerate(self.sizes) if m in (1, n) or n == 1))
        operands = self.pick((x, other), (other, x))
        self.add(self.pick("add", "sub", "mul", "mul", *([] if self.smooth else ["min", "max"])), operands, max(n, self.sizes[other]))

    def parts(self, x, n):
        other = int(self.generator.integers(len(self.nodes)))
        if n + self.sizes[other] <= 8 and self.pick(True, False):
            self.add("concatenate", (x, other), n + self.sizes[other])
        else:
            self.add("select", (x,), 3, {"indices": tuple(self.generator.integers(0, n, 3).tolist())})

    def ratio(self, x, n):
        other = self.positive(self.pick(*(i for i, m in enumerate(self.sizes) if m in (1, n))))
        self.pick(lambda: self.add(self.pick("log", "sqrt"), (self.positive(x),), n), lambda: self.add("div", (x, other), n))()

    def inner(self, x, n):
        builder = Builder(self.generator, n, self.smooth, 1, self.tensors)
        for _ in range(3):
            builder.step()
        graph = Graph(tuple(builder.nodes), {"z": len(builder.nodes) - 1}, self.tensors, 1)
        point, offset = tuple(F(int(v), 7) for v in self.generator.integers(-9, 9, n)), self.tensor(np.zeros(builder.sizes[-1]))
        self.add("recentre", (x,), builder.sizes[-1], {"graph": graph, "point": point, "offset": offset})


def random_problem(seed, smooth, steps=5):
    """A graph, and a claim about a box or ball of any size."""
    generator = np.random.default_rng(seed)
    builder = Builder(generator, int(generator.integers(1, 4)), smooth)
    for _ in range(steps):
        builder.step()
    if builder.sizes[-1] > 3:
        builder.affine(len(builder.nodes) - 1, int(generator.integers(1, 4)))
    graph, inputs = Graph(tuple(builder.nodes), {"u": len(builder.nodes) - 1}, builder.tensors), builder.sizes[0]
    norm, size = builder.pick("l2", "linf"), F(builder.pick(1e-9, 1e-3, 0.1, 0.5, 1.0))
    centre = [F(int(v), 16) for v in generator.integers(-20, 20, inputs)]
    width = [size * int(v) / 4 for v in generator.integers(0, 5, inputs)]  # 0: a fixed input
    low, high = centre, [c + w for c, w in zip(centre, width, strict=True)]
    domain = builder.pick({"centre": texts(centre), "radius": str(size)}, {"low": texts(low), "high": texts(high)})
    scales = [builder.pick(None, texts(generator.integers(1, 9, n))) for n in (inputs, builder.sizes[-1])]
    claim = {
        "property": "local_lipschitz",
        "norm": norm,
        "domain": domain,
        "bound": "1",
        "input_scale": scales[0],
        "output_scale": scales[1],
    }
    return graph, claim, generator


def points(domain, generator, count):
    """Exact points of a domain: corners and others, some of them close to each other."""
    found = []
    while len(found) < count:
        t = generator.random(len(domain.low))
        t = np.round(t) if generator.random() < 0.3 else t
        x = [a + (b - a) * F(float(s)) for a, b, s in zip(domain.low, domain.high, t, strict=True)]
        if found and generator.random() < 0.4:
            share = F(10) ** -int(generator.integers(1, 10))
            x = [a + (b - a) * share for a, b in zip(found[-1], x, strict=True)]
        if domain.centre is not None:
            square = sum((s * (a - c)) ** 2 for s, a, c in zip(domain.scale, x, domain.centre, strict=True))
            shrink = F(1) if square <= domain.radius**2 else F(math.sqrt(domain.radius**2 / square) * (1 - 1e-12))
            x = [c + (a - c) * shrink for a, c in zip(x, domain.centre, strict=True)]
        found.append(x)
    return found


def norm_of(vector, norm):
    return sum((v * v for v in vector), arb(0)).sqrt() if norm == "l2" else max((abs(v) for v in vector), key=lambda v: float(v.mid()))


def within(low, high):
    return arb.union(ball(low), ball(high))


class Judged:
    """Pairs of points with what the function does to them, scaled: ``rise`` and ``run``; ``middle`` of the two, ``half`` of the way."""

    def __init__(self, problem, x, y, at_x, at_y):
        self.free, scale_out = problem.domain.free, problem.scale_out
        self.rise = [ball(s) * (a - b) for s, a, b in zip(scale_out, at_x, at_y, strict=True)]
        self.run = [ball(problem.scale_in[i] * (x[i] - y[i])) for i in self.free]
        self.middle = [(x[i] + y[i]) / 2 for i in self.free]
        self.half = [(x[i] - y[i]) / 2 for i in self.free]

    def is_at_most(self, bound, norm):
        return not math.isfinite(bound) or not norm_of(self.rise, norm) > ball(bound) * norm_of(self.run, norm)

    def image(self, low, high, extra=None):
        """Of the increment under an interval matrix (m, k), where ``extra`` (i, j) is added to its entries."""
        return [
            sum(
                (v * (within(a, b) + (extra(i, j) if extra else 0)) for j, (a, b, v) in enumerate(zip(*row, self.run, strict=True))), arb(0)
            )
            for i, row in enumerate(zip(low, high, strict=True))
        ]


def pairs_of(problem, graph, generator, count):
    found = points(problem.domain, generator, count)
    values = [evaluated(graph, [ball(v) for v in x]) for x in found]
    assert all(v.is_finite() for value in values for v in value)
    return [Judged(problem, found[i], found[j], values[i], values[j]) for i, j in itertools.pairwise(range(count)) if found[i] != found[j]]


def polynomial(family, pair, centre, error):
    """The increment's image under the family, in the mean over the segment between both points."""
    d = [ball(m - F(float(c))) for m, c in zip(pair.middle, centre[pair.free], strict=True)]

    def bent(i, j):
        more = within(-family.error[0, i, j], family.error[0, i, j]) if error else arb(0)
        for k, v in enumerate(d):
            if family.parts is not None:
                more += v * within(family.parts.low[k, 0, i, j], family.parts.high[k, 0, i, j])
            for h, w in enumerate(d) if family.curves is not None else ():
                square = v * w + ball(pair.half[k] * pair.half[h] / 3)
                more += square * within(family.curves.low[k, h, 0, i, j], family.curves.high[k, h, 0, i, j]) / 2
        return more

    return pair.image(family.centre.low[0], family.centre.high[0], bent)


@pytest.mark.parametrize(("seed", "smooth"), [*((s, True) for s in range(14)), *((s, False) for s in range(100, 110))])
def test_every_enclosure_holds_the_increments_of_random_graphs(seed, smooth):
    graph, claim, generator = random_problem(seed, smooth)
    problem, _ = read_problem(graph, claim)
    low, high = problem.domain.box()
    cells, _ = problem.domain.cells(low[None], high[None])
    found, _ = problem.slopes(low[None], high[None])
    gain, matrices, family = float(problem.gains(found, 1)[0]), problem.matrices(found, 1), problem.family(found, 1)
    centre, _ = Interval(cells.low[0], cells.high[0]).centre_radius()
    recorded, errors = record(problem.graph, cells, problem.remembered) if family is not None and problem.curved else (None, None)
    third = None if errors is None else problem.family(recorded, 1)
    expanded = problem.expanded(low, high) if errors is not None else math.nan
    for pair in pairs_of(problem, graph, generator, 8):
        assert pair.is_at_most(gain, problem.norm) and pair.is_at_most(expanded, problem.norm)
        assert all(a.overlaps(b) for a, b in zip(pair.rise, pair.image(matrices.low[0], matrices.high[0]), strict=True))
        if errors is None:
            continue
        for known in (family, third):
            assert all(a.overlaps(b) for a, b in zip(pair.rise, polynomial(known, pair, centre, True), strict=True))
        left = [a - b for a, b in zip(pair.rise, polynomial(third, pair, centre, False), strict=True)]
        scales = problem._scales()
        assert not norm_of(left, "l2") > ball(remainder(errors, *scales, family.spread)) * norm_of(pair.run, "l2")
        rows = row_remainders(errors, *scales, family.spread)
        assert not any(abs(v) > ball(r) * norm_of(pair.run, "linf") for v, r in zip(left, rows, strict=True))
    assert math.isfinite(gain)


def after_tanh(op):
    """tanh(3 x1 + x2), alone a signal of length 1, then an operation, then the sum of all that this gives."""
    inner = Graph((Node("input", (), {"name": "x", "size": 1}), Node("neg", (0,))), {"z": 1}, {"o": np.zeros(1)}, 1)
    nodes = [
        Node("input", (), {"name": "x", "size": 2}),
        Node("affine", (0,), {"weight": "w", "bias": None}),
        Node("tanh", (1,)),
        Node("constant", (), {"values": (F(1), F(2), F(3))}),
        *{
            "neg": [Node("neg", (2,))],
            "select": [Node("select", (2,), {"indices": (0, 0, 0)})],
            "concatenate": [Node("concatenate", (2, 0, 2))],
            "add": [Node("add", (2, 3))],
            "add itself": [Node("add", (2, 2))],
            "sub": [Node("sub", (3, 2))],
            "mul": [Node("mul", (3, 2))],
            "recentre": [Node("recentre", (2,), {"graph": inner, "point": (F(1),), "offset": "o"})],
            "max": [Node("neg", (3,)), Node("max", (4, 2))],
            "min": [Node("min", (2, 3))],
            "power": [Node("power", (2,), {"exponent": 1})],
            "div": [Node("div", (2, 3))],
            "clip": [Node("clip", (2,), {"low": (F(-9),), "high": (F(9),)})],
            "leaky_relu": [Node("leaky_relu", (2,), {"slope": F(1)})],
            "mul signals": [Node("concatenate", (0, 2)), Node("mul", (4, 2))],
            "div signals": [Node("exp", (2,)), Node("div", (3, 4))],
        }[op],
    ]
    tensors = {"w": np.array([[3.0, 1.0]]), "o": np.zeros(1)}
    rows = Graph(tuple(nodes), {"u": len(nodes) - 1}, tensors).sizes[-1]
    tensors["sum"] = np.ones((1, rows))
    return Graph((*nodes, Node("affine", (len(nodes) - 1,), {"weight": "sum", "bias": None})), {"u": len(nodes)}, tensors)


AFTER = [
    *"neg select concatenate add sub mul recentre max min power div clip leaky_relu".split(),
    "add itself",
    "mul signals",
    "div signals",
]


@pytest.mark.parametrize("op", AFTER)
def test_the_expansion_forgets_no_operation(op):
    """Where an operation were not recorded, all errors before it would be lost; here they are great."""
    graph, claim = after_tanh(op), {**random_problem(0, True)[1], "domain": {"low": ["-1", "-1/2"], "high": ["1", "3/4"]}}
    problem, _ = read_problem(graph, {**claim, "norm": "l2", "input_scale": None, "output_scale": None})
    low, high = problem.domain.box()
    cells, _ = problem.domain.cells(low[None], high[None])
    found, errors = record(problem.graph, cells, problem.remembered)
    family, scales, most = problem.family(found, 1), problem._scales(), 0.0
    for pair in pairs_of(problem, graph, np.random.default_rng(1), 40):
        left = [a - b for a, b in zip(pair.rise, polynomial(family, pair, 0.5 * low + 0.5 * high, False), strict=True)]
        for kind, bound in (
            ("l2", remainder(errors, *scales, family.spread)),
            ("linf", float(row_remainders(errors, *scales, family.spread)[0])),
        ):
            assert not norm_of(left, kind) > ball(bound) * norm_of(pair.run, kind)
            most = max(most, float((norm_of(left, kind) / norm_of(pair.run, kind)).mid()) / bound)
    assert most > 0.15  # the bounds are within reach, so that a lost part would show


# --- leaves that are cut by units ---------------------------------------------------------------------------------------------


def places_of(graph, path=()):
    """(place, size) of the nodes that may be split, also inside ``recentre``."""
    for index, node in enumerate(graph.nodes):
        if node.op in COORDINATE_WISE:
            yield ([*path, index] if path else index), graph.sizes[index]
        if node.op == "recentre":
            yield from places_of(node.attributes["graph"], (*path, index))


def random_leaf(problem, known, generator):
    """Half-lines through points (or not), repeated units, exact thresholds; ranges with factors of every size."""
    places, half_lines = list(places_of(problem.graph)), []
    for _ in range(generator.integers(1, 4)):
        place, size = places[generator.integers(len(places))]
        place, index = (place, int(generator.integers(size))) if not half_lines or generator.random() < 0.7 else half_lines[-1][:2]
        values = [float(entered[_key(place)][index % len(entered[_key(place)])].mid()) for _, entered, _ in known]
        here, there = values[0], values[generator.integers(len(values))]
        threshold = float(generator.choice([0.0, here, there, here / 2 + there / 2]))
        half_lines.append((place, index, threshold, bool(here >= threshold) != bool(generator.random() < 0.1)))
    passes = []
    for _ in range(generator.integers(1, 4)):
        ranges = []
        for place, size in places * 2:
            factors = generator.choice(
                [0.0, 1.0, 0.5, generator.random(), 1e-300, 5e-324, 1e150, 1e308], len(half_lines), p=[0.4, 0.2, 0.1, 0.1, *[0.05] * 4]
            )
            ranges.append([place, int(generator.integers(size)), str(generator.choice(["low", "high"])), [float(v).hex() for v in factors]])
        passes.append(ranges)
    return tuple(HalfLine(_key(place), *rest) for place, *rest in half_lines), passes


def _key(place):
    return tuple(place) if isinstance(place, list) else place


def is_in(half_lines, entered):
    for half in half_lines:
        values = entered[half.place]
        value, threshold = values[half.index % len(values)], arb(half.threshold)
        if not (value >= threshold if half.above else value <= threshold):
            return False
    return True


def sought(problem, leaf):
    """Two passes with the factors that linear programs find."""
    margins, passes = Margins.unknown(len(leaf.half_lines), len(problem.domain.free)), []
    for _ in range(2):
        try:
            algebra = Narrowing(problem, leaf, margins)
            passes.append(algebra.ends)
            algebra.whole(problem.graph)
        except NoPoint:
            break
        margins = algebra.margins
    return passes or [{}]


@pytest.mark.parametrize("seed", range(24))
def test_what_is_believed_about_leaves_holds_for_their_points(seed):
    graph, claim, generator = random_problem(seed, False, 6)
    problem, _ = read_problem(graph, claim)
    if not any(True for _ in places_of(problem.graph)):
        return
    known = []
    for x in points(problem.domain, generator, 14):
        entered = {}
        known.append((x, entered, evaluated(problem.graph, [ball(v) for v in x], entered)))
    for _ in range(3):
        half_lines, ranges = random_leaf(problem, known, generator)
        leaf = Leaf(*problem.domain.box(), None, half_lines)
        try:
            passes = read_passes(ranges, problem.graph, len(half_lines)) if seed % 2 else sought(problem, leaf)
            found = problem.slopes_in_leaf(leaf, passes, int(generator.choice([0, 1, 3, MAX_SYMBOLS])))
        except Rejected as error:
            assert "not finite" in str(error)
            continue
        inside = [(x, at) for x, entered, at in known if is_in(half_lines, entered)]
        if found is None:
            assert not inside
            continue
        gain, matrices = float(problem.gains(found, 1)[0]), problem.matrices(found, 1)
        for (x, at_x), (y, at_y) in itertools.combinations(inside[:8], 2):
            if x != y:
                pair = Judged(problem, x, y, at_x, at_y)
                assert pair.is_at_most(gain, problem.norm)
                assert all(a.overlaps(b) for a, b in zip(pair.rise, pair.image(matrices.low[0], matrices.high[0]), strict=True))


# --- derivatives --------------------------------------------------------------------------------------------------------------

SERIES = {
    "tanh": lambda s: 1 - 2 / ((2 * s).exp() + 1),
    "sigmoid": lambda s: 1 / (1 + (-s).exp()),
    "softplus": lambda s: (1 + s.exp()).log(),
    "silu": lambda s: s / (1 + (-s).exp()),
    "gelu": lambda s: s * (1 + (s / arb(2).sqrt()).erf()) / 2,
    **{name: getattr(arb_series, name) for name in "erf exp log sqrt sin cos tan".split()},
    "reciprocal": lambda s: 1 / s,
    **{f"power {n}": (lambda s, n=n: math.prod([s] * n, start=arb_series([1]))) for n in (0, 1, 2, 3, 4, 7)},
}


@pytest.mark.parametrize("name", SERIES)
def test_higher_derivatives_against_series(name):
    """Also on wide intervals, and where the derivatives have extrema or a factor is 0."""
    op, _, exponent = name.partition(" ")
    higher = reciprocal if op == "reciprocal" else higher_derivatives(Node(op, (0,), {"exponent": int(exponent)} if exponent else {}))
    generator, seen = np.random.default_rng(3), 0
    for _ in range(40):
        middle = generator.choice(
            [0, 1, -1, 2**0.5, 0.65847894846240835, 3 * generator.standard_normal(), 20 * generator.standard_normal()]
        )
        width = 10.0 ** generator.choice([-300, -12, -3, -1, 0, 1]) * generator.random(2)
        low, high = middle - width[0], middle + width[1]
        if op in ("log", "sqrt"):
            low, high = sorted((abs(low) + 1e-9, abs(high) + 1e-9))
        enclosed = higher(Interval(np.array([[low]]), np.array([[high]])))
        for t in np.clip([low, high, *(low + (high - low) * generator.random(3))], low, high):
            terms = SERIES[name](arb_series([arb(float(t)), 1], 5))
            for order, found in zip((2, 3, 4), enclosed, strict=True):
                true, ends = terms[order] * math.factorial(order), (found.low.item(), found.high.item())
                if true.is_finite() and all(map(math.isfinite, ends)):
                    seen += 1
                    assert ball(ends[0]) <= true <= ball(ends[1]) or within(*ends).overlaps(true)
    assert seen > 100


# --- false claims, great and small files, what searches must not lose --------------------------------------------------------


def changed(evidence, generator):
    """One to three edits of a tree with splits by units, ranges and expansions."""
    evidence = copy.deepcopy(evidence)
    tree, some = evidence["tree"], lambda *options: options[generator.integers(len(options))]
    for _ in range(generator.integers(1, 4)):
        i = int(generator.integers(len(tree)))
        entry = tree[i]
        if isinstance(entry, dict) and (ranges := some(*entry["ranges"])):
            one = some(*ranges)
            edit = some("end", "index", "place", "factors", "copy")
            if edit == "copy":
                entry["ranges"] = (entry["ranges"] * 2)[:4]
            else:
                at = {"place": 0, "index": 1, "end": 2, "factors": 3}[edit]
                one[at] = [some(2, 4), some(0, 1, 2, 3), some("low", "high"), [some("0", "1", "1/2", "0x1p+900") for _ in one[3]]][at]
        elif isinstance(entry, list):
            entry[-1] = some("0", float(generator.standard_normal() * 0.3).hex(), "-0x1p+60", "0x1p-1074")
            entry[:-1] = some(entry[:-1], [2, some(0, 1, 2)], [0])
        else:
            j = int(generator.integers(len(tree)))
            tree[i], tree[j] = some((tree[j], entry), (some(None, 0), tree[j]))
    return evidence


@pytest.mark.parametrize("activations", [("relu", "relu"), ("abs", "maxmin"), ("tanh", "sin"), ("relu", "tanh")])
def test_no_edit_of_the_evidence_proves_less_than_a_pair_shows(activations):
    generator = np.random.default_rng(len(activations[0]))
    first, second, third = (np.round(8 * generator.standard_normal(shape)) / 8 for shape in ((4, 2), (4, 4), (2, 4)))
    graph = network((first, [0.25, 0, -0.5, 0]), activations[0], (second, None), activations[1], (third, None), size=2)
    certificate = certify_local_lipschitz(graph, low=[-1, -1], high=[1, 0.5], budget=Budget(0.8, 500, 1e-3))
    assert certificate.lower.value <= certificate.upper.value
    claim = {**certificate.upper.claim, "bound": (certificate.lower.value * (1 - 1e-6)).hex()}
    evidence = {**certificate.upper.evidence, "proofs": [*certificate.upper.evidence["proofs"], {"method": "expansion"}]}
    for _ in range(60):
        with pytest.raises(Rejected):
            prove_local(graph, claim, changed(evidence, generator))


def test_products_and_constants_are_bounded():
    """A product of signals has no network form, and slopes that are errors about 0 are tiny beyond what exact proofs take."""
    square = Graph((Node("input", (), {"name": "x", "size": 2}), Node("tanh", (0,)), Node("mul", (0, 1))), {"u": 2})
    slope = math.tanh(1) + 1 / math.cosh(1) ** 2
    for norm in ("l2", "linf"):
        found = certify_local_lipschitz(square, norm, low=[0, 0], high=[1, 1], budget=Budget(1.0))
        assert slope * (1 - 1e-9) < found.upper.value < 1.1 * slope
    for weights in ([[0.3, -0.7], [1.1, 0.9]], [[0, 0], [1, 0.9]]):
        flat = network((np.array(weights), [-9, -9]), "relu", ([[0.1, 2], [0.7, -1]], None), size=2)
        assert certify_local_lipschitz(flat, low=[0, 0], high=[1, 1], budget=Budget(0.5)).upper.value <= 1e-40


def test_work_grows_with_the_square_and_cube_of_outputs():
    """Bases of singular vectors: 16,384 outputs would need gigabytes, and 2,000 of them seconds for one cell."""
    for outputs, curved in ((16_384, False), (2000, True)):
        graph = network((np.ones((outputs, 1)), None), "tanh", size=1)
        problem, _ = read_problem(
            graph, {**random_problem(0, True)[1], "input_scale": None, "output_scale": None, "domain": {"low": ["0"], "high": ["1"]}}
        )
        work = problem.work()
        assert problem.curved is curved and 8 * outputs**2 * work.cells_at_once * curved < 2**30
        assert not curved or work.cell > outputs**3 / 200


@pytest.mark.parametrize("count", [2, 100])
def test_a_short_signal_counts_as_often_as_a_product_repeats_it(count):
    """The sum of x relu(x), so many times, with one relu for all: the constant on [-1, 1] is twice their number."""
    nodes = (
        Node("input", (), {"name": "x", "size": 1}),
        Node("affine", (0,), {"weight": "many", "bias": None}),
        Node("relu", (0,)),
        Node("mul", (1, 2)),
        Node("affine", (3,), {"weight": "sum", "bias": None}),
    )
    graph = Graph(nodes, {"y": 4}, {"many": np.ones((count, 1)), "sum": np.ones((1, count))})
    for bound, accepted in ((1.99 * count, False), (4.0 * count, True)):
        claim = claim_of([-1], [1], bound)
        evidence = {"method": "cells", "tree": [0], "proofs": [{"method": "expansion"}]}
        try:
            proved = prove_local(graph, claim, evidence) == bound
        except Rejected:
            proved = False
        assert proved == accepted
