"""Attacks on leaves that are judged with symbols: every form is followed at exact points, and every symbol is known there.

A symbol is the number in [-1, 1] that one unit leaves of its line at a point. From the exact value of the unit follows what it
is, so each form behind it, with all that cancels in it, can be held against the exact value of its signal.
"""

import copy
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import test_attacks_local as attacks
from flint import arb, ctx
from test_attacks_local import Judged, ball, changed, is_in, larger, places_of, points, random_problem, sought, within
from test_local_lipschitz import claim_of, network

from lipctrl.certificates.checker.domain import HalfLine, Leaf
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.unit_splits import MAX_SYMBOLS, HalvedAlgebra, Margins, NoPoint, read_passes
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.local_lipschitz import prove_local, read_problem
from lipctrl.certificates.lipschitz.unit_search import UnitSearch
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction
UNIT_BALL = arb(0, 1)
LIMITS = [0, 1, 2, 3, 5, MAX_SYMBOLS]


@pytest.fixture(autouse=True)
def precision():
    """600 bits while a test runs: weights are of all sizes. Overflow goes unmentioned, as in the checker."""
    saved, ctx.prec = ctx.prec, 600
    with np.errstate(all="ignore"):
        yield
    ctx.prec = saved


# --- graphs with weights of all sizes, and with implicit layers ---------------------------------------------------------------

SIZES = [1e308, 1e-308, 1e150, 1e-160, 5e-324, 1e-320, 2.0**60, 2.0**-60, 0.0, 1.0]


class Wild(attacks.Builder):
    """Random graphs as there, with implicit layers; and every third weight is huge, tiny or subnormal."""

    def affine(self, x, rows):
        if self.generator.random() > 0.3:
            return super().affine(x, rows)
        weight = self.generator.standard_normal((rows, self.sizes[x])) * self.generator.choice(SIZES, (rows, self.sizes[x]))
        weight = self.tensor(np.where(np.isfinite(weight), weight, 1e308))
        return self.add("affine", (x,), rows, {"weight": weight, "bias": None})

    def step(self):
        if self.generator.random() > 0.15:
            super().step()
            return
        x = len(self.nodes) - 1
        n = self.sizes[x]
        weight = self.generator.standard_normal((n, n))
        names = {"weight": self.tensor(0.5 * weight / np.abs(weight).sum(1).max()), "metric": self.tensor(np.ones(n))}
        self.add("implicit", (x,), n, {**names, "activation": self.pick("relu", "relu", "tanh", "softplus")})


def implicit_value(weight, activation, v):
    """The solution by iteration: |weight| <= 1/2 in the maximum norm, so it is no further off than twice the last step."""
    phi = {"relu": lambda t: larger(t, arb(0)), **{name: attacks.UNARY[name] for name in ("tanh", "softplus")}}[activation]

    def step(z):
        return [phi(sum((ball(w) * c for w, c in zip(row, z, strict=True)), a)) for row, a in zip(weight, v, strict=True)]

    z = [arb(0)] * len(v)
    for _ in range(200):
        z = [arb(c.mid()) for c in step(z)]
    miss = max(float(abs(a - b).upper()) for a, b in zip(z, step(z), strict=True))
    return [c + UNIT_BALL * ball(3 * miss + 1e-300) for c in z]


def exactly(graph, x):
    """What enters the nodes and what leaves them at a point, by their places."""
    entering, leaving, original = {}, {}, attacks._value

    def noted(graph, node, operands, x, entering, path):
        if node.op == "implicit":
            value = implicit_value(graph.tensors[node.attributes["weight"]], node.attributes["activation"], operands[0])
        else:
            value = original(graph, node, operands, x, entering, path)
        if entering is not None:
            leaving[path if len(path) > 1 else path[0]] = [1 / v for v in operands[1]] if node.op == "div" else value
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "_value", noted)
        output = attacks.evaluated(graph, [ball(v) for v in x], entering)
    return entering, leaving, output


# --- forms at points ------------------------------------------------------------------------------------------------------------


class Followed(HalvedAlgebra):
    """A pass that looks at its forms at some exact points of the leaf."""

    points = ()  #: (x, entering, leaving)

    def follow(self, inside):
        """Look at these points, (x, entering, leaving, output) each, from now on."""
        middle, _ = Interval(self._cells.low, self._cells.high).centre_radius()
        self.points = inside
        self.free = [[ball(x[i] - F(float(middle[0, i]))) for i in self._cells.free] for x, *_ in inside]
        self.noise = [[] for _ in inside]  # the symbols at each point
        self.seen = 0

    def image(self, number, linear, column):
        """Of a point's coordinates under the linear part of a form, or of a margin."""
        ends = [np.asarray(end).reshape(len(end), -1) for end in (linear.low, linear.high)]
        column = column if ends[0].shape[1] > 1 else 0
        rows = zip(self.free[number] + self.noise[number], ends[0][:, column].tolist(), ends[1][:, column].tolist(), strict=False)
        return sum((y * within(a, b) for y, a, b in rows if math.isfinite(a) and math.isfinite(b)), arb(0))

    def judge(self, local, true, number):
        """A form and a value against what is true at a point."""
        n = local.value.low.shape[1]
        parts = [local.value.low, local.value.high, local.centre.low, local.centre.high, local.error]
        finite = local.linear is None or bool(np.isfinite(local.linear.magnitude).all())
        for j, t in enumerate(true * n if len(true) == 1 else true):
            low, high, a, b, error = (float(np.broadcast_to(part, (1, n))[0, j]) for part in parts)
            assert not low > high and not (math.isfinite(low) and t < ball(low)) and not (math.isfinite(high) and t > ball(high))
            if finite and all(map(math.isfinite, (a, b, error))):
                linear = arb(0) if local.linear is None else self.image(number, local.linear, j)
                assert (t - within(a, b) - linear).overlaps(UNIT_BALL * ball(error))
                self.seen += 1

    def _deviating(self, local, deviation):
        before, result = self.symbols, super()._deviating(local, deviation)
        for number, (_, entering, leaving, _) in enumerate(self.points):
            true = leaving[self._place]
            if self._node.op in ("min", "max"):
                true = [larger(v, arb(0)) for v in entering[self._place]]
            for symbol in range(before, self.symbols):
                row = result.linear.low[len(self._cells.free) + symbol, 0]
                (j,) = np.flatnonzero(row)
                t = true[j if len(true) > 1 else 0]
                old = within(*(float(np.broadcast_to(end, (1, len(row)))[0, j]) for end in (local.centre.low, local.centre.high)))
                off = t - old - self.image(number, local.linear, j)
                off += UNIT_BALL * ball(float(np.broadcast_to(local.error, (1, len(row)))[0, j]))
                assert (off / ball(row[j])).overlaps(UNIT_BALL)
                self.noise[number].append((off / ball(row[j])).intersection(UNIT_BALL))
            self.judge(result, true, number)
        return result

    def _narrowed(self, x):
        try:
            narrowed = super()._narrowed(x)
        except NoPoint:
            assert not self.points
            raise
        for number, (_, entering, *_) in enumerate(self.points):
            self.judge(narrowed, entering[self._place], number)
            for half, constant in enumerate(self.margins.constant):
                if math.isfinite(constant):
                    assert not ball(constant) + self.image(number, self.margins.linear, half) < 0
        return narrowed


def leaf_through(problem, known, generator):
    """Half-lines that a point satisfies, most of them: thresholds are its own values and their neighbours, kinks and middles."""
    places, half_lines = list(places_of(problem.graph)), []
    for _ in range(generator.integers(0, 5)):
        place, size = places[generator.integers(len(places))]
        place, index = (
            (attacks._key(place), int(generator.integers(size))) if not half_lines or generator.random() < 0.6 else half_lines[-1][:2]
        )
        values = [entered[place][index % len(entered[place])] for _, entered, *_ in known]
        here, there = (float(values[i].mid()) for i in (0, generator.integers(len(values))))
        near = [0.0, here, math.nextafter(here, math.inf), math.nextafter(here, -math.inf), there, here / 2 + there / 2]
        threshold = near[generator.integers(len(near))]
        threshold = threshold if math.isfinite(threshold) else 0.0
        above = bool(values[0] >= arb(threshold)) != bool(generator.random() < 0.04)
        half_lines += [(place, index, threshold, above)] * generator.integers(1, 3)
    return tuple(HalfLine(*half) for half in half_lines)


def passes_of(problem, leaf, generator):
    """From linear programs, or at random, with huge and subnormal factors; up to four."""
    if leaf.half_lines and generator.random() < 0.5:
        return sought(problem, leaf) * generator.integers(1, 3)
    count, filed = len(leaf.half_lines), []
    for _ in range(generator.integers(1, 5)):
        factors = [0.0, 1.0, 0.5, generator.random(), generator.exponential(), 1e-300, 5e-324, 1e150, 1e308]
        rows = [
            [place, int(generator.integers(size)), end, [float(generator.choice(factors)).hex() for _ in range(count)]]
            for place, size in (places_of(problem.graph) if count else ())
            for end in ("low", "high")
        ]
        filed.append(rows)
    return read_passes(filed, problem.graph, count)


def followed(problem, leaf, passes, limit, inside):
    """What the passes find, with everything on the way held against the points; and how much that was."""
    cells, empty = problem.domain.cells(leaf.low[None], leaf.high[None])
    margins, found, seen = Margins.unknown(len(leaf.half_lines), len(cells.free)), None, 0
    assert not empty[0]
    for ends in passes:
        algebra = Followed(cells, leaf.half_lines, ends, margins, problem.remembered, limit)
        algebra.follow(inside)
        try:
            found = algebra.whole(problem.graph)
        except NoPoint:
            return None, seen
        for number, (*_, output) in enumerate(inside):
            algebra.judge(found.output, output, number)
        margins, seen = algebra.margins, seen + algebra.seen
        assert algebra.symbols <= limit
    return found, seen


@pytest.mark.parametrize("seed", range(24))
def test_symbols_hold_at_exact_points(seed, monkeypatch):
    if seed % 3:
        monkeypatch.setattr(attacks, "Builder", Wild)
    graph, claim, generator = random_problem(seed, False, 6)
    problem, _ = read_problem(graph, claim)
    if not len(problem.domain.free) or not any(True for _ in places_of(problem.graph)):
        return
    known = [(x, *exactly(problem.graph, x)) for x in points(problem.domain, generator, 5)]
    for _ in range(4):
        leaf = Leaf(*problem.domain.box(), None, leaf_through(problem, known, generator))
        inside = [point for point in known if is_in(leaf.half_lines, point[1])]
        limit = int(generator.choice(LIMITS))
        try:
            passes = passes_of(problem, leaf, generator)
            found, seen = followed(problem, leaf, passes, limit, inside)
            again = problem.slopes_in_leaf(leaf, passes, limit)
        except Rejected as error:
            assert "not finite" in str(error)
            continue
        assert (found is None) == (again is None)
        if found is None:
            assert not inside
            continue
        assert seen or not inside
        gain = float(problem.gains(again, 1)[0])
        for (x, _, _, at_x), (y, _, _, at_y) in itertools.combinations(inside, 2):
            if x != y and all(v.is_finite() for v in [*at_x, *at_y]):
                assert Judged(problem, x, y, at_x, at_y).is_at_most(gain, problem.norm)


# --- edits of what a search found ----------------------------------------------------------------------------------------------

NUMBERS = ["0", "1", "1/2", "2", *(float(v).hex() for v in (2.0**900, 5e-324, 2.0**-30, 1.7e308))]


def lattice(kind, generator):
    """A small network of two layers of units, with weights on a lattice: kinks meet, and leaves touch each other."""

    def numbers(*shape):
        return np.round(8 * generator.standard_normal(shape)) / 8

    if kind == "relu":
        return network((numbers(3, 2), numbers(3)), kind, (numbers(3, 3), numbers(3)), kind, (numbers(2, 3), None), size=2)
    weight = numbers(3, 3)
    tensors = {"a": numbers(3, 2), "b": numbers(3, 2), "c": numbers(2, 3), "s": numbers(3)}
    tensors |= {"d": 0.5 * weight / np.abs(weight).sum(1).max(), "m": np.ones(3)}
    middle = {
        "switches": [Node("max", (1, 2)), Node("relu", (3,)), Node("min", (4, 1))],
        "products": [Node("relu", (1,)), Node("abs", (2,)), Node("mul", (3, 4))],
        "implicit": [Node("implicit", (1,), {"weight": "d", "metric": "m", "activation": "relu"}), Node("sub", (3, 2)), Node("relu", (4,))],
    }[kind]
    maps = [Node("affine", (0,), {"weight": "a", "bias": "s"}), Node("affine", (0,), {"weight": "b", "bias": None})]
    nodes = (Node("input", (), {"name": "x", "size": 2}), *maps, *middle, Node("affine", (5,), {"weight": "c", "bias": None}))
    used = {name for node in nodes for name in node.attributes.values()}
    return Graph(nodes, {"u": 6}, {name: values for name, values in tensors.items() if name in used})


def edited(evidence, generator):
    """Numbers, symbols, passes and places of leaves that are not those of the search."""
    if generator.random() < 0.4:
        return changed(evidence, generator)
    evidence = copy.deepcopy(evidence)
    leaves = [entry for entry in evidence["tree"] if isinstance(entry, dict)]
    for _ in range(generator.integers(1, 4)):
        here, there = (leaves[generator.integers(len(leaves))] for _ in range(2))
        edit = generator.integers(5)
        if edit == 0:
            here["symbols"] = int(generator.choice(LIMITS))
        elif edit == 1:
            here["ranges"], there["ranges"] = there["ranges"], here["ranges"]
        elif edit == 2:
            here["ranges"] = [*here["ranges"][::-1], *there["ranges"]][:4]
        for ranges in here["ranges"] if edit > 2 else []:
            for one in ranges:
                one[2] = one[2] if generator.random() < 0.8 else ("low" if one[2] == "high" else "high")
                one[3] = [text if generator.random() < 0.7 else NUMBERS[generator.integers(len(NUMBERS))] for text in one[3]]
    return evidence


@pytest.mark.parametrize("kind", ["relu", "switches", "products", "implicit"])
def test_no_edit_of_a_tree_with_symbols_proves_less_than_pairs_show(kind):
    generator = np.random.default_rng(5)
    graph, claim = lattice(kind, generator), claim_of([-1, -1], [1, 0.5], 1.0)
    search = UnitSearch(read_problem(graph, claim)[0])
    while not search.exhausted and search.cells < 11:
        search.step(0.0, 10.0)
    bound = search.upper * (1 + 1e-9)
    tree, proofs = search.tree(bound)
    evidence = {"method": "cells", "tree": tree, "proofs": proofs}
    assert prove_local(graph, {**claim, "bound": bound.hex()}, evidence) == bound
    assert any(isinstance(entry, dict) and entry["symbols"] for entry in tree)
    x, direction = generator.uniform([-1, -1], [1, 0.5], (4000, 2)), generator.standard_normal((4000, 2))
    y = np.clip(x + 1e-4 * direction / np.linalg.norm(direction, axis=1, keepdims=True), [-1, -1], [1, 0.5])
    run = compile_numpy(graph)
    slope = (np.linalg.norm(run(x=x)["u"] - run(x=y)["u"], axis=1) / np.linalg.norm(x - y, axis=1)).max()
    assert slope < bound * (1 + 1e-6)
    less = {**claim, "bound": float(slope * (1 - 1e-5)).hex()}
    for _ in range(25):
        with pytest.raises(Rejected):
            prove_local(graph, less, edited(evidence, generator))
