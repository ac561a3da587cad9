"""Leaves of local Lipschitz claims that are cut by units: what the checker believes, against points, by hand and under attack."""

from __future__ import annotations

import copy
import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local_lipschitz import ACTIVATIONS, STEP_UP, ZERO, all_values, claim_of, network, random_network, texts

from lipctrl.certificates.checker import domain as splitting
from lipctrl.certificates.checker import unit_splits
from lipctrl.certificates.checker import work as counting
from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.domain import HalfLine, Leaf, read_leaves, read_place
from lipctrl.certificates.checker.enclosure import Remembered
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.jacobian import quick_gains
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.local_slopes import COORDINATE_WISE, Cells, Local
from lipctrl.certificates.checker.sorts import without_sorts
from lipctrl.certificates.checker.unit_splits import MAX_SYMBOLS, read_passes
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import local_lipschitz as module
from lipctrl.certificates.checker.verifiers.local_lipschitz import prove_local, read_problem
from lipctrl.certificates.checker.writing import certificate_bytes

F = Fraction

# relu(x) - relu(-x - 1): slope 1 below -1 and above 0, but never both. One cell proves 2.
APART = network(([[1], [-1]], [0, -1]), "relu", ([[1, -1]], None), size=1)
BELOW: dict = {"ranges": [[]], "proof": None}
ABOVE: dict = {"ranges": [[[2, 1, "high", ["1"]]]], "proof": None}  # -x - 1 <= (-x - 1) + 1 x = -1 where x >= 0
TREE = [[2, 0, "0"], BELOW, ABOVE]
CLAIM = claim_of([-2], [2], 1 + 1e-9)


def cells(*tree, proofs=()):
    return {"method": "cells", "tree": copy.deepcopy(list(tree)), "proofs": list(proofs)}


def refuses(tree, why, graph=APART, claim=CLAIM, proofs=()):
    with pytest.raises(Rejected, match=why):
        prove_local(graph, claim, cells(*tree, proofs=proofs))


# --- by hand ----------------------------------------------------------------------------------------------------------------


def test_a_split_by_a_unit_proves_what_one_cell_cannot():
    assert prove_local(APART, CLAIM, cells(*TREE)) == 1 + 1e-9
    refuses([None], "not proved")
    refuses(TREE, "not proved", claim=claim_of([-2], [2], 0.99))
    assert prove_local(APART, claim_of([-2], [2], 1 + 1e-9, "linf"), cells(*TREE)) > 1
    verdict = check(parse_certificate(*certificate_bytes(kind="lipschitz-bound", claim=CLAIM, policy=APART, evidence=cells(*TREE))))
    assert (verdict.level, verdict.property) == ("proved", "local_lipschitz")


def test_leaves_may_rest_on_slopes_or_on_proofs_of_their_own():
    product = {"method": "norm-product"}
    assert prove_local(APART, CLAIM, cells([2, 0, "0"], None, ABOVE)) > 1
    loose = claim_of([-2], [2], 2.1)
    assert prove_local(APART, loose, cells([2, 0, "0"], 0, {**ABOVE, "proof": 0}, proofs=[product])) == 2.1
    refuses([[2, 0, "0"], None, {**ABOVE, "proof": 0}], "index of a proof")
    refuses([[2, 0, "0"], None, {**ABOVE, "proof": 0}], "expected method", proofs=[{"method": "nothing"}])
    refuses([[2, 0, "0"], {**BELOW, "proof": 0}, ABOVE], "product of norms is", proofs=[product], claim=claim_of([-2], [2], 0.5))


def test_parts_in_the_wrong_place_prove_nothing():
    refuses([TREE[0], ABOVE, BELOW], "not proved")
    refuses([[2, 1, "0"], BELOW, ABOVE], "not proved")
    refuses([[2, 0, "-3"], BELOW, ABOVE], "not proved")  # the upper part is everything
    refuses([[2, 0, "0"], None, None], "not proved")


@pytest.mark.parametrize("factor", ["0", "1/2", "3"])
def test_poor_factors_prove_less_and_never_too_much(factor):
    refuses([[2, 0, "0"], BELOW, {"ranges": [[[2, 1, "high", [factor]]]], "proof": None}], "not proved")


def test_a_part_without_points_needs_no_proof():
    """x <= -3 in [-2, 2], or x <= -1/2 and x >= 1/2; also where only factors show it."""
    nothing = claim_of([-2], [2], 1e-12)
    for tree in ([[2, 0, "-3"], BELOW, None], [[2, 0, "1/2"], [2, 0, "3/4"], None, None, None]):
        refuses(tree, "not proved", claim=nothing)
    problem, _ = read_problem(APART, nothing)
    for half_lines, empty in (
        ([(-3.0, False)], True),
        ([(-1.5, False)], False),
        ([(0.5, True), (0.25, False)], True),
        ([(0.5, True), (0.5, False)], False),
    ):
        parts = tuple(HalfLine(2, 0, threshold, above) for threshold, above in half_lines)
        assert (problem.slopes_in_leaf(Leaf(*problem.domain.box(), None, parts), [{}]) is None) == empty
    both = [[2, 0, "0"], None, [2, 1, "0"], None, {"ranges": [[[2, 1, "high", ["1", "0"]]]], "proof": None}]
    both[3] = {"ranges": [[[2, 1, "high", ["1", "0"]]]], "proof": None}
    assert prove_local(APART, CLAIM, cells(*both)) > 1  # x >= 0 and -x - 1 >= 0
    both[4] = None
    refuses(both, "not proved")


@pytest.mark.parametrize(("low", "high", "constant"), [(1, 5, 1.0), (11, 20, 0.0), (5, 15, 1.0)])
def test_a_ramp_split_by_its_units(low, high, constant):
    bound = constant * (1 + 1e-12) + 1e-12
    tree = [[2, 0, "0"], None, [2, 1, "0"], None, None]
    claim = claim_of([low], [high], bound)
    assert prove_local(STEP_UP, claim, cells(*tree)) == bound
    if constant:
        refuses(tree, "not proved", STEP_UP, claim_of([low], [high], 0.99))


def test_units_that_mirror_each_other_stay_independent_in_the_point_between():
    """0 = relu(x + 10) - 10 - relu(x) + relu(-x): -x >= 0 is known up to rounding only, and that leaves a slope of 1, no more."""
    tree = [[2, 1, "0"], {"ranges": [[[2, 2, "low", ["1"]]]], "proof": None}, {"ranges": [[[2, 2, "high", ["1"]]]], "proof": None}]
    assert prove_local(ZERO, claim_of([-5], [5], 1 + 1e-9), cells(*tree)) > 1
    refuses(tree, "not proved", ZERO, claim_of([-5], [5], 0.99))


def test_a_unit_that_never_varies():
    graph = network(([[0], [1]], [1, 0]), "relu", ([[1, 1]], None), size=1)
    claim = claim_of([1], [2], 1 + 1e-9)
    for threshold in ("0", "1", "2"):
        assert prove_local(graph, claim, cells([2, 0, threshold], None, None)) > 1
        refuses([[2, 0, threshold], None, None], "not proved", graph, claim_of([1], [2], 0.99))


def test_units_inside_recentre_have_a_path():
    inner = Graph(APART.nodes, APART.outputs, APART.tensors, nesting=1)
    nodes = (APART.nodes[0], Node("recentre", (0,), {"graph": inner, "point": (F(0),), "offset": "o"}))
    graph = Graph(nodes, {"u": 1}, {**APART.tensors, "o": np.zeros(1)})
    high = [[[[1, 2], 1, "high", ["1"]]]]
    tree = [[[1, 2], 0, "0"], None, {"ranges": high, "proof": None}]
    assert prove_local(graph, CLAIM, cells(*tree)) > 1
    for place in (2, [1], [1, 2, 2], [0, 2], [2, 1], [1, 9], (1, 2), "2", None, 1.0, True, [1, True]):
        refuses([[place, 0, "0"], *tree[1:]], r"not the place|\[input", graph)
    assert read_place([1, 2], graph) == ((1, 2), 2)


# --- attacks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "why"),
    [
        ([0, 0, "0"], "not the place of a coordinate-wise node"),
        ([1, 0, "0"], "not the place of a coordinate-wise node"),
        ([3, 0, "0"], "not the place of a coordinate-wise node"),
        ([-1, 0, "0"], "not the place of a coordinate-wise node"),
        ([4, 0, "0"], "not the place of a coordinate-wise node"),
        ([True, 0, "0"], "not the place of a coordinate-wise node"),
        ([[2], 0, "0"], "not the place of a coordinate-wise node"),
        ([[], 0, "0"], "not the place of a coordinate-wise node"),
        ([2, 2, "0"], "needs an index from 0 to 1"),
        ([2, -1, "0"], "needs an index from 0 to 1"),
        ([2, True, "0"], "needs an index from 0 to 1"),
        ([2, "0", "0"], "needs an index from 0 to 1"),
        ([2, 0, "nan"], "threshold"),
        ([2, 0, "inf"], "threshold"),
        ([2, 0, 0], "threshold"),
        ([2, 0, "1/3"], "exactly a float64"),
        ([2, 0, "1" + "0" * 400], "too large for float64"),
        ([2, 0, "0", "0"], r"\[input, threshold\]"),
    ],
)
def test_splits_that_are_refused(split, why):
    refuses([split, BELOW, ABOVE], why)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ranges": None}, "list of 1 to"),
        ({"ranges": []}, "list of 1 to"),
        ({"ranges": [[]] * 5}, "list of 1 to"),
        ({"ranges": [None]}, "list of 1 to"),
        ({"ranges": [[None]]}, "a range must be"),
        ({"ranges": [[[2, 1, "high"]]]}, "a range must be"),
        ({"ranges": [[[2, 1, "both", ["1"]]]]}, "a range must be"),
        ({"ranges": [[[2, 1, ["high"], ["1"]]]]}, "a range must be"),
        ({"ranges": [[[3, 0, "high", ["1"]]]]}, "not the place"),
        ({"ranges": [[[2, 2, "high", ["1"]]]]}, "needs an index from 0 to 1"),
        ({"ranges": [[[2, -1, "high", ["1"]]]]}, "needs an index from 0 to 1"),
        ({"ranges": [[[2, True, "high", ["1"]]]]}, "needs an index from 0 to 1"),
        ({"ranges": [[[2, 1, "high", ["-1"]]]]}, "factor of a range is negative"),
        ({"ranges": [[[2, 1, "high", ["-0x1.0p-1074"]]]]}, "factor"),
        ({"ranges": [[[2, 1, "high", ["nan"]]]]}, "factors"),
        ({"ranges": [[[2, 1, "high", ["inf"]]]]}, "factors"),
        ({"ranges": [[[2, 1, "high", [1]]]]}, "factors"),
        ({"ranges": [[[2, 1, "high", []]]]}, "list of 1 numbers"),
        ({"ranges": [[[2, 1, "high", ["1", "1"]]]]}, "list of 1 numbers"),
        ({"proof": 0}, "index of a proof"),
        ({"proof": True}, "index of a proof"),
        ({"proof": {}}, "index of a proof"),
        ({"empty": True}, "unknown keys"),
        ({"range": {}}, "unknown keys"),
    ],
)
def test_leaves_that_are_refused(change, why):
    refuses([TREE[0], BELOW, {**ABOVE, **change}], why)


def test_every_pass_and_every_factor_is_read():
    assert prove_local(APART, CLAIM, cells(TREE[0], None, {"ranges": [[]] * 3 + ABOVE["ranges"], "proof": None})) > 1
    refuses([TREE[0], None, {"ranges": [[], None], "proof": None}], "list of 1 to")
    both = [TREE[0], None, [2, 1, "-1"], None]
    for factors in (["1", "-1"], ["-1", "1"]):
        refuses([*both, {"ranges": [[[2, 1, "high", factors]]], "proof": None}], "factor of a range is negative")


def test_tables_are_for_all_leaves():
    assert prove_local(APART, claim_of([-2], [2], 2.1), cells(BELOW)) == 2.1
    assert prove_local(APART, claim_of([-2], [2], 2.1), cells([0, "0"], BELOW, None)) == 2.1
    refuses([ABOVE], "list of 0 numbers")
    without = {"ranges": [[[2, 1, "high", []]]], "proof": None}
    assert prove_local(APART, claim_of([-2], [2], 2.1), cells(without)) == 2.1
    refuses([[2, 0, "0"], {"ranges": [[]]}, ABOVE], "missing keys")


@pytest.mark.parametrize("symbols", [-1, MAX_SYMBOLS + 1, True, 1.0, "1", None, [1]])
def test_symbols_that_are_refused(symbols):
    refuses([TREE[0], {**BELOW, "symbols": symbols}, ABOVE], "must be an integer from 0 to 512")
    for accepted in (0, MAX_SYMBOLS):
        assert prove_local(APART, CLAIM, cells(TREE[0], {**BELOW, "symbols": accepted}, ABOVE)) == 1 + 1e-9


def test_symbols_count_for_every_factor():
    problem, _ = read_problem(APART, CLAIM)
    one = read_passes(ABOVE["ranges"], problem.graph, 1)
    for symbols in (0, 7):
        more = module.work_of_passes(problem, 1, one, symbols) - module.work_of_passes(problem, 1, [{}], symbols)
        assert more == 2 * (module.PER_FACTOR + 1 + symbols) + module.PER_FORM * (1 + symbols)  # one factor and one end
        more = module.work_of_passes(problem, 5, [{}, {}], symbols) - module.work_of_passes(problem, 2, [{}, {}], symbols)
        assert more == 2 * 3 * (module.PER_HALF_LINE + 1 + symbols)


def test_symbols_count_as_work_and_need_room(monkeypatch):
    tree = [TREE[0], {**BELOW, "symbols": MAX_SYMBOLS}, ABOVE]
    few, many = (read_problem(APART, CLAIM)[0].work(count) for count in (0, MAX_SYMBOLS))
    assert many.cell > 10 * few.cell and many.floats > 10 * few.floats
    with monkeypatch.context() as patch:
        patch.setattr(module, "MAX_WORK", 3 * (few.cell + few.batch))
        assert prove_local(APART, CLAIM, cells(*TREE))
        refuses(tree, "ranges in 2 leaves are more work")
    monkeypatch.setattr(counting, "MAX_FLOATS", few.floats * 3)
    assert prove_local(APART, CLAIM, cells(*TREE))
    refuses(tree, "512 symbols are more than this network leaves room for")


def test_ends_are_judged_in_parts(monkeypatch):
    entries = [[2, index, end, [factor]] for factor in ("1", "0", "1/2") for index in (0, 1) for end in ("low", "high")]
    for at_once in (1, 5, unit_splits.AT_ONCE):
        monkeypatch.setattr(unit_splits, "AT_ONCE", at_once)
        assert prove_local(APART, CLAIM, cells(TREE[0], BELOW, {"ranges": [entries], "proof": None})) > 1
    parts = read_passes([entries], APART, 1)[0][2].parts(5)
    assert [len(part.index) for part in parts] == [5, 5, 2] and parts[2].factors.tolist() == [[0.5], [0.5]]
    assert parts[1].upper.tolist() == [True, False, True, False, True]


def test_margins_without_symbols_are_rounded_up():
    generator = np.random.default_rng(0)
    for inputs, symbols in ((2, 0), (0, 1), (1, 3), (2, 300)):
        middle, width = generator.standard_normal((inputs + symbols, 4)), generator.random((inputs + symbols, 4))
        margins = unit_splits.Margins(generator.standard_normal(4), Interval(middle - width, middle + width))
        found = margins.without_symbols(inputs)
        assert (found.linear.low == margins.linear.low[:inputs]).all() and (found.linear.high == margins.linear.high[:inputs]).all()
        found.linear.low[:], found.linear.high[:] = -9, 9  # nothing is shared with the margins of another pass
        assert (margins.linear.low[:inputs] > -9).all() and (margins.linear.high[:inputs] < 9).all()
        for number in range(4):
            sizes = [
                max(-F(low), F(high))
                for low, high in zip(margins.linear.low[inputs:, number], margins.linear.high[inputs:, number], strict=True)
            ]
            exact = F(margins.constant[number]) + sum(sizes)
            assert exact <= F(found.constant[number]) <= exact + F(1, 10**12) * (1 + sum(sizes))


def test_a_pass_does_not_change_the_margins_before_it():
    (cells_, _), problem = read_problem(APART, CLAIM)[0].domain.cells(np.array([[-2.0]]), np.array([[2.0]])), read_problem(APART, CLAIM)[0]
    before = unit_splits.Margins.unknown(1, 1)
    algebra = unit_splits.HalvedAlgebra(cells_, [HalfLine(2, 0, 0.0, True)], {}, before, Remembered(), 4)
    algebra.whole(problem.graph)
    assert before.constant.tolist() == [0] and before.linear.high.tolist() == [[0]] and algebra.margins.linear.high[0, 0] > 0.9


def test_units_that_do_not_vary_may_be_split_by():
    nodes = (
        Node("input", (), {"name": "x", "size": 1}),
        Node("constant", (), {"values": (F(1), F(2))}),
        Node("relu", (1,)),
        Node("abs", (0,)),
        Node("add", (2, 3)),
    )
    graph = Graph(nodes, {"y": 4}, {})
    claim = claim_of([-2], [2], 1.5)
    filed = {"ranges": [[[2, 1, "high", ["1"]], [2, 1, "low", ["0"]]]], "proof": None}
    assert prove_local(graph, claim_of([-2], [2], 1.5), cells([2, 0, "1/2"], filed, {**filed, "symbols": 3})) == 1.5
    problem, _ = read_problem(graph, claim)
    for above, empty in ((True, False), (False, True)):
        half = HalfLine(2, 0, 0.5, above)
        assert (problem.slopes_in_leaf(Leaf(*problem.domain.box(), None, (half,)), [{}]) is None) == empty


def test_half_lines_and_work_are_bounded(monkeypatch):
    def deep(count):
        return [*[[2, 0, "3"]] * count, *[None] * (count + 1)]

    loose = claim_of([-2], [2], 2.1)
    assert prove_local(APART, loose, cells(*deep(64))) == 2.1
    refuses(deep(65), "splits more than 64 times by units", claim=loose)
    monkeypatch.setattr(splitting, "MAX_DEPTH", 3)
    assert prove_local(APART, loose, cells(*deep(3))) == 2.1
    refuses(deep(4), "more than 3 times in a row", claim=loose)
    problem, _ = read_problem(APART, CLAIM)
    work = problem.work()
    each = work.cell + work.batch + module.PER_HALF_LINE + 1
    extra = 2 * each + 2 * (module.PER_FACTOR + 1) + module.PER_FORM  # one factor and one end
    monkeypatch.setattr(module, "MAX_WORK", max(extra, work.total(2)))
    if extra >= work.total(2):
        assert prove_local(APART, CLAIM, cells(*TREE)) > 1
    monkeypatch.setattr(module, "MAX_WORK", max(extra - 1, work.total(2)))
    if extra > work.total(2):
        refuses(TREE, "ranges in 2 leaves are more work")


def test_trees_of_other_claims_have_no_units():
    problem, _ = read_problem(APART, CLAIM)
    with pytest.raises(Rejected, match=r"\[input, threshold\]"):
        read_leaves([[2, 0, "0"], None, None], problem.domain, 10)
    leaves = read_leaves([[2, 0, "0"], "a", [0, "1"], "b", "c"], problem.domain, 10, problem.graph)
    below, above = HalfLine(2, 0, 0.0, False), HalfLine(2, 0, 0.0, True)
    assert [(leaf.entry, leaf.half_lines, leaf.low[0], leaf.high[0]) for leaf in leaves] == [
        ("a", (below,), -2, 2),
        ("b", (above,), -2, 1),
        ("c", (above,), 1, 2),
    ]


def test_values_that_are_not_finite_split_nothing():
    """1 / x has no value at 0, so its halves do not cover a box around it; nor do those of what the output does not rest on."""
    nodes = (
        Node("input", (), {"name": "x", "size": 1}),
        Node("constant", (), {"values": (F(1),)}),
        Node("div", (1, 0)),
        Node("relu", (2,)),
        Node("relu", (0,)),
        Node("relu", (4,)),
    )
    graph = Graph(nodes, {"u": 4}, {})
    claim = claim_of([-1], [1], 1 + 1e-9)
    refuses([[3, 0, "0"], None, None], "not finite where the tree splits", graph, claim)
    refuses([[5, 0, "0"], None, None], "does not rest on", graph, claim)
    assert prove_local(graph, claim, cells([4, 0, "0"], None, None)) > 1
    huge = network(([[1e308]], None), "relu", ([[1e-308]], None), size=1)
    refuses([[2, 0, "0"], None, None], "not finite where the tree splits", huge, claim_of([100], [200], 2.0))


# --- against points ---------------------------------------------------------------------------------------------------------


def selection(rng, generator, graph, values):
    """Half-lines by values that occur, or at 0, and which points satisfy them."""
    places = [index for index, node in enumerate(graph.nodes) if node.op in COORDINATE_WISE]
    chosen, inside = [], np.ones(len(values[0]), dtype=bool)
    for _ in range(rng.randint(1, 4)):
        place = rng.choice(places)
        index = rng.randrange(graph.sizes[place])
        entering = entering_values(graph, values, place)[:, index]
        threshold = 0.0 if rng.random() < 0.5 else float(rng.choice(entering[inside] if inside.any() else entering))
        above = rng.random() < 0.5
        chosen.append(HalfLine(place, index, threshold, above))
        inside &= (entering >= threshold) if above else (entering <= threshold)
    return tuple(chosen), inside


def entering_values(graph, values, place):
    node = graph.nodes[place]
    first = values[node.inputs[0]]
    if node.op not in ("min", "max"):
        return first
    second = values[node.inputs[1]]
    if graph.nodes[node.inputs[0]].op == "constant":
        first, second = second, first
    return first - second if node.op == "max" else second - first


def random_ranges(rng, generator, graph, count):
    places = [index for index, node in enumerate(graph.nodes) if node.op in COORDINATE_WISE]
    ranges = []
    for _ in range(rng.randint(1, 3)):
        filed: list = []
        rows = [(place, index) for place in places for index in range(graph.sizes[place])]
        factors = generator.exponential(1.0, (len(rows), 2, count)) * (generator.random((len(rows), 2, count)) < 0.6)
        for (place, index), row in zip(rows, factors, strict=True):
            ends = zip(("low", "high"), row, strict=True)
            filed += [[place, index, end, [float(v).hex() for v in values]] for end, values in ends]
        ranges.append(filed)
    return ranges


def against_points(rng, generator, graph, domain, points, noise=1e-10):
    """Judge a leaf of random half-lines and factors; True where the checker says that it is empty."""
    (size,) = graph.input_sizes.values()
    problem, _ = read_problem(graph, {**claim_of([0] * size, [1] * size, 1.0), "domain": domain})
    values = all_values(problem.graph, points)
    half_lines, inside = selection(rng, generator, problem.graph, values)
    passes = read_passes(random_ranges(rng, generator, problem.graph, len(half_lines)), problem.graph, len(half_lines))
    found = problem.slopes_in_leaf(Leaf(*problem.domain.box(), None, half_lines), passes, rng.choice([0, 1, 4, MAX_SYMBOLS]))
    if found is None:
        assert not inside.any()
        return True
    if not inside.any():
        return False
    output, some = values[-1], np.flatnonzero(inside)
    span = np.abs(output).max() + 1
    assert (output[some] >= found.output.value.low - noise * span).all() and (output[some] <= found.output.value.high + noise * span).all()
    i, j = generator.choice(some, 300), generator.choice(some, 300)
    gain = quick_gains(problem.matrices(found, 1))[0]
    rise, run = np.linalg.norm(output[i] - output[j], axis=1), np.linalg.norm(points[i] - points[j], axis=1)
    assert (rise <= gain * run + noise * span).all()
    return False


@pytest.mark.parametrize("block", range(4))
def test_leaves_hold_for_their_points_and_only_empty_ones_are_empty(block):
    empty = 0
    for seed in range(12 * block, 12 * block + 12):
        rng, generator = random.Random(seed), np.random.default_rng(seed)
        graph = without_sorts(random_network(rng, generator, ACTIVATIONS, rng.randint(1, 3)))
        (size,) = graph.input_sizes.values()
        centre, radius = generator.standard_normal(size), 10.0 ** generator.uniform(-1, 1)
        points = generator.uniform(centre - radius, centre + radius, (2000, size))
        points = np.vstack([points, centre + (points - centre) * generator.random((2000, 1))])
        domain = {"low": texts(centre - radius), "high": texts(centre + radius)}
        if rng.random() < 0.4:
            points = points[np.linalg.norm(points - centre, axis=1) <= radius * (1 - 1e-12)]
            domain = {"centre": texts(centre), "radius": str(F(radius))}
        empty += against_points(rng, generator, graph, domain, points)
    assert 0 < empty < 12


@pytest.mark.parametrize("op", ["min", "max"])
@pytest.mark.parametrize("kind", ["signals", "constant first", "constant second"])
def test_switches_are_split_by_the_difference_that_decides(op, kind):
    generator = np.random.default_rng(0)
    tensors = {"a": generator.standard_normal((3, 2)), "b": generator.standard_normal((3, 2)), "c": generator.standard_normal((2, 3))}
    constant = Node("constant", (), {"values": tuple(F(float(v)) for v in generator.standard_normal(3))})
    second = Node("affine", (0,), {"weight": "b", "bias": None}) if kind == "signals" else constant
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("affine", (0,), {"weight": "a", "bias": None}),
        second,
        Node(op, (2, 1) if kind == "constant first" else (1, 2)),
        Node("affine", (3,), {"weight": "c", "bias": None}),
    )
    graph = Graph(nodes, {"u": 4}, tensors if kind == "signals" else {"a": tensors["a"], "c": tensors["c"]})
    points = generator.uniform(-1, 1, (3000, 2))
    for seed in range(12):
        against_points(random.Random(seed), np.random.default_rng(seed), graph, {"low": ["-1", "-1"], "high": ["1", "1"]}, points)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), factor=st.floats(0, 1e6), threshold=st.floats(-3, 3), above=st.booleans())
def test_no_factors_make_a_point_vanish(seed, factor, threshold, above):
    """A leaf with a point that is well inside is never called empty, nor is the point's value outside of any range."""
    generator = np.random.default_rng(seed)
    graph = network(
        (generator.standard_normal((3, 2)), generator.standard_normal(3)), "relu", (generator.standard_normal((1, 3)), None), size=2
    )
    point = generator.uniform(-1, 1, (1, 2))
    values = all_values(graph, point)
    if (values[1][0, 0] >= threshold) != above or abs(values[1][0, 0] - threshold) < 1e-9:
        return
    problem, _ = read_problem(graph, claim_of([-1, -1], [1, 1], 1.0))
    half = HalfLine(2, 0, threshold, above)
    rows = [[2, index, end, [factor.hex()]] for index in range(3) for end in ("low", "high")]
    found = problem.slopes_in_leaf(Leaf(*problem.domain.box(), None, (half,)), read_passes([rows, rows], problem.graph, 1))
    assert found is not None
    assert found.output.value.low[0, 0] - 1e-9 <= values[-1][0, 0] <= found.output.value.high[0, 0] + 1e-9


def test_ranges_are_rounded_outwards():
    """x >= t for an x in [0, 1/10]: the upper end of -x by the factor 1 is -t, and never below it."""
    graph = network(([[1], [-1]], None), "relu", ([[1, 1]], None), size=1)
    for number in range(1, 40):
        threshold = float(F(number, 401))
        problem, _ = read_problem(graph, claim_of([0], [F(1, 10)], 1.0))
        half = HalfLine(2, 0, threshold, True)
        algebra = unit_splits.HalvedAlgebra(
            problem.domain.cells(*(end[None] for end in problem.domain.box()))[0],
            (half,),
            read_passes([[[2, 1, "high", ["1"]]]], graph, 1)[0],
            unit_splits.Margins.unknown(1, 1),
            problem.remembered,
        )
        seen = {}
        narrowed = algebra._narrowed
        algebra._narrowed = lambda x, seen=seen, narrowed=narrowed: seen.setdefault("x", narrowed(x))
        algebra.whole(graph)
        assert -threshold <= seen["x"].value.high[0, 1] <= -threshold + 1e-15
        assert seen["x"].value.low[0, 0] == threshold


def algebra_of(half_lines, inputs=2):
    """A pass over the box [-1, 1]^inputs with nothing known yet."""
    ends = np.ones((1, inputs))
    cells = Cells(-ends, ends, np.arange(inputs))
    return unit_splits.HalvedAlgebra(cells, half_lines, {}, unit_splits.Margins.unknown(len(half_lines), inputs), Remembered())


def form(centre, linear, error):
    """One value: centre and linear part as pairs of ends, far apart so that a wrong one shows."""
    low, high = (np.array([[part] for part in side], dtype=float)[:, :, None] for side in zip(*linear, strict=True))
    middle = Interval(*(np.array([[end]], dtype=float) for end in centre))
    unknown = Interval(np.array([[-100.0]]), np.array([[100.0]]))
    return Local(unknown, middle, Interval(low, high), Interval(low, high), np.array([[error]], dtype=float))


def test_margins_and_ends_take_the_worst_of_their_enclosures():
    """v in [1, 3] + [4, 7] d1 + [-2, -1] d2 +- 1/2. v >= 1/4: the margin is at most 13/4 + ...; v <= 1/4: at most -1/4 + ..."""
    x = form((1, 3), ((4, 7), (-2, -1)), 0.5)
    algebra = algebra_of((HalfLine(0, 0, 0.25, True), HalfLine(0, 0, 0.25, False)))
    algebra._note(0, algebra.half_lines[0], x)
    algebra._note(1, algebra.half_lines[1], x)
    assert algebra.margins.constant == pytest.approx([3 - 0.25 + 0.5, 0.25 - 1 + 0.5])
    assert (algebra.margins.constant >= [3.25, -0.25]).all()
    np.testing.assert_array_equal(algebra.margins.linear.low, [[4, -7], [-2, 1]])
    np.testing.assert_array_equal(algebra.margins.linear.high, [[7, -4], [-1, 2]])
    ends = unit_splits.Ends(np.array([0, 0, 0]), np.array([True, False, True]), np.array([[0.0, 0], [0, 0], [2, 1]]))
    algebra._place = 5
    most = algebra._most(x, 1, ends)
    plain = 3 + 0.5 + 7 + 2, -1 + 0.5 + 7 + 2
    # twice the first margin and once the second: slopes in [4, 7] + 2 [4, 7] + [-7, -4] and [-2, -1] + 2 [-2, -1] + [1, 2]
    added = 3 + 0.5 + 2 * 3.25 - 0.25 + 17 + 5
    assert most == pytest.approx([*plain, added]) and (most >= [*plain, added]).all()
    narrowed = np.array([most[0], -most[1]])
    algebra.ends[5] = ends
    value = algebra._narrowed(x).value
    assert (value.high[0, 0], value.low[0, 0]) == (narrowed[0], narrowed[1])


def test_forms_of_which_one_part_is_not_finite_split_nothing():
    for x in (form((np.nan, 1), ((0, 1), (0, 1)), 1), form((0, 1), ((0, 1), (0, np.inf)), 1), form((0, 1), ((0, 1), (0, 1)), np.inf)):
        algebra = algebra_of((HalfLine(0, 0, 0.0, True),))
        with pytest.raises(Rejected, match="not finite"):
            algebra._note(0, algebra.half_lines[0], x)


def test_roundings_of_margins_go_outwards():
    """In exact rationals: margins and ends of random forms are never below what their parts add up to."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        centre, slopes, error, threshold, factor = (generator.standard_normal(k) for k in (1, 2, 1, 1, 1))
        error, factor = abs(error), abs(factor)
        x = form((centre[0], centre[0]), ((slopes[0],) * 2, (slopes[1],) * 2), error[0])
        algebra = algebra_of((HalfLine(0, 0, float(threshold[0]), True),))
        algebra._note(0, algebra.half_lines[0], x)
        c, e, t, f = (F(float(part[0])) for part in (centre, error, threshold, factor))
        assert F(float(algebra.margins.constant[0])) >= c - t + e
        ends = unit_splits.Ends(np.array([0, 0]), np.array([True, False]), np.full((2, 1), factor[0]))
        most = algebra._most(x, 1, ends)
        size = [abs(F(float(s))) for s in slopes]
        assert F(float(most[0])) >= c + e + f * (c - t + e) + (1 + f) * sum(size)
        assert F(float(most[1])) >= -c + e + f * (c - t + e) + abs(f - 1) * sum(size)


def test_margins_of_later_units_serve_earlier_ones_in_the_next_pass():
    """relu(2 x) >= 5/4: then its chord says that 2 x >= 1/2, which the first layer knows in pass two and not in pass one."""
    graph = network(([[2]], None), "relu", ([[1]], [-1.25]), "relu", size=1)
    problem, _ = read_problem(graph, claim_of([-1], [1], 1.0))
    half = HalfLine(4, 0, 0.0, True)
    row = [2, 0, "low", ["2"]]
    for passes, open_ in (([[row]], False), ([[row], [row]], True), ([[], [row]], True)):
        found = problem.slopes_in_leaf(Leaf(*problem.domain.box(), None, (half,)), read_passes(passes, problem.graph, 1))
        assert (found.nodes[2].low[0, 0] == 1) == open_


def test_every_pair_of_ends_is_kept():
    """Many ends of one unit: all of them hold, the tightest counts."""
    rows = [[2, 1, "high", [factor]] for factor in ("0", "1", "1/2")]
    for order in itertools.permutations(rows):
        tree = [TREE[0], None, {"ranges": [list(order)], "proof": None}]
        assert prove_local(APART, CLAIM, cells(*tree)) > 1
