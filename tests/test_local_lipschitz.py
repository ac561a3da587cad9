"""Local Lipschitz claims: enclosed slopes against samples, oracles with known constants, and files made to cheat."""

import copy
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.domain import Domain, read_domain, read_leaves
from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.jacobian import gain_is_at_most, quick_gains, row_gains
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.local_slopes import SMOOTH, Cells, local_slopes
from lipctrl.certificates.checker.sorts import without_sorts
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.local_lipschitz import prove_local
from lipctrl.certificates.checker.writing import certificate_bytes
from lipctrl.core.numpy_evaluation import compile_numpy

F = Fraction
ACTIVATIONS = ["relu", "leaky_relu", "abs", "clip", "tanh", "sigmoid", "softplus", "sin", "cos", "gelu", "silu", "erf", "maxmin", "sort3"]


def texts(values):
    return [str(F(v)) for v in values]


def claim_of(low, high, bound, norm="l2", **scales):
    domain = {"low": texts(low), "high": texts(high)}
    table = {"property": "local_lipschitz", "norm": norm, "input_scale": None, "output_scale": None, "domain": domain}
    return {**table, **scales, "bound": float(bound).hex()}


def plain(tree=(None,)):
    return {"method": "cells", "tree": list(tree), "proofs": []}


def network(*layers, size):
    """Affine maps as (weight, bias) and activations as names between them."""
    nodes, tensors = [Node("input", (), {"name": "x", "size": size})], {}
    for layer in layers:
        index, width = len(nodes) - 1, size
        if isinstance(layer, str):
            extra = {
                "leaky_relu": {"slope": F(1, 10)},
                "clip": {"low": (F(-1, 3),) * width, "high": (F(2, 3),) * width},
                "maxmin": {"group_size": 2},
                "sort3": {"group_size": 3},
            }.get(layer, {})
            nodes.append(Node("group_sort" if layer in ("maxmin", "sort3") else layer, (index,), extra))
            continue
        weight, bias = (None if part is None else np.array(part, dtype=np.float64) for part in layer)
        name = f"w{len(tensors)}"
        tensors[name] = weight
        if bias is not None:
            tensors[name + "b"] = bias
        nodes.append(Node("affine", (index,), {"weight": name, "bias": None if bias is None else name + "b"}))
        size = len(weight)
    return Graph(tuple(nodes), {"u": len(nodes) - 1}, tensors)


def random_network(rng, generator, activations, depth, scale=1.0):
    sizes = [rng.randint(1, 4), *(rng.randint(2, 6) for _ in range(depth)), rng.randint(1, 3)]
    layers = []
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers.append((generator.standard_normal((after, before)) * scale * 1.5 / math.sqrt(before), generator.standard_normal(after)))
        if k < depth:
            layers.append(rng.choice(activations))
    return network(*layers, size=sizes[0])


STEP_UP = network(([[1], [1]], [0, -10]), "relu", ([[1, -1]], None), size=1)  # relu(x) - relu(x - 10)
ZERO = network(([[1], [1], [-1]], [10, 0, 0]), "relu", ([[1, -1, 1]], [-10]), size=1)  # 0 on [-10, inf)


# --- known constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "constant"), [(1, 5, 1.0), (11, 20, 0.0), (5, 15, 1.0), (10.25, 12, 0.0), (0, 10, 1.0)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_ramp_has_its_slope_where_it_rises(low, high, constant, norm):
    """Also where a kink lies on the border, at 0: no pair of points of the interval sees the other side."""
    bound = constant * (1 + 1e-12) + 1e-12
    tree = [[0, "10"], None, None] if low < 10 < high else [None]
    assert prove_local(STEP_UP, claim_of([low], [high], bound, norm), plain(tree)) == bound
    if constant:
        with pytest.raises(Rejected, match="not proved"):
            prove_local(STEP_UP, claim_of([low], [high], 1 - 1e-9, norm), plain(tree))


def test_slopes_of_units_are_independent_of_each_other_in_one_cell():
    """0 = relu(x + 10) - 10 - relu(x) + relu(-x) on [-5, 5]: a cell that holds the kink proves 1, cells beside it prove 0."""
    assert prove_local(ZERO, claim_of([-5], [5], 1 + 1e-9), plain()) > 1
    with pytest.raises(Rejected):
        prove_local(ZERO, claim_of([-5], [5], 0.999), plain([[0, "1/8"], None, None]))
    for low, high in ((-5, F(-1, 1024)), (F(1, 1024), 5)):
        assert prove_local(ZERO, claim_of([low], [high], 1e-12), plain()) == 1e-12


def test_one_point_has_the_constant_zero():
    assert prove_local(ZERO, claim_of([2], [2], 0.0), plain()) == 0
    with pytest.raises(Rejected, match="does not vary"):
        prove_local(ZERO, claim_of([2], [2], 0.0), plain([[0, "2"], None, None]))


def test_inputs_that_do_not_move_do_not_count():
    graph = network(([[1, 1000]], None), "relu", size=2)
    assert prove_local(graph, claim_of([0, "1/3"], [1, "1/3"], 1 + 1e-12), plain()) > 1
    with pytest.raises(Rejected):
        prove_local(graph, claim_of([0, F(1, 3)], [1, F(1, 3) + F(1, 10**30)], 1 + 1e-12), plain())


@pytest.mark.parametrize("seed", range(8))
def test_one_input_against_all_breakpoints(seed):
    """Piecewise linear functions of one input: the exact constant from the slopes between breakpoints, approached from above."""
    from lipctrl.certificates.lipschitz.local import Budget, certify_local_lipschitz

    rng, generator = random.Random(seed), np.random.default_rng(seed)
    widths = [1, rng.randint(2, 4), rng.randint(2, 4), 1]
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [(np.round(generator.standard_normal((after, before)) * 8) / 8, np.round(generator.standard_normal(after) * 8) / 8)]
        layers += [rng.choice(["relu", "abs", "maxmin"])]
    graph = network(*layers[:-1], size=1)
    points = [F(i, 4096) for i in range(-8192, 8193, 8)]
    values = [evaluate_exact(graph, {"x": (p,)})["u"][0] for p in points]
    sampled = max(abs(b - a) / (q - p) for (p, a), (q, b) in itertools.pairwise(zip(points, values, strict=True)))
    found = certify_local_lipschitz(graph, low=[-2], high=[2], budget=Budget(1.5, 20_000, 1e-3))
    assert sampled <= found.upper.value <= float(sampled) * 1.01 + 1e-6
    assert found.lower.value <= found.upper.value
    assert found.check().level == "proved"


# --- enclosures against samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_constants_of_smooth_functions(name):
    """Second derivatives stay below the stated bound and come near it; derivatives are monotone between the stated extrema."""
    run = compile_numpy(network(name, size=1))
    x = np.linspace(-8, 8, 64_001)
    value = run(x=x[:, None])["u"][:, 0]
    step = x[1] - x[0]
    second = np.diff(value, 2) / step**2
    extrema, curvature = SMOOTH[name]
    assert 0.999 * curvature < np.abs(second).max() < curvature * (1 + 1e-4)
    slopes = np.diff(value) / step
    ends = [-8.0, *sorted(low for low, _ in extrema), 8.0]
    for a, b in itertools.pairwise(ends):
        inside = slopes[(x[:-1] > a) & (x[1:] < b)]
        assert (np.diff(inside) >= -1e-9).all() or (np.diff(inside) <= 1e-9).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_slopes_and_values_hold_for_sampled_pairs(activation, seed):
    """Every coordinate-wise node, and the whole graph, on boxes of all sizes, against difference quotients of pairs."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    graph = without_sorts(random_network(rng, generator, [activation], rng.randint(1, 4)))
    (size,) = graph.input_sizes.values()
    centre, radius = generator.standard_normal((6, size)), 10.0 ** generator.uniform(-4, 1, (6, 1))
    low, high = centre - radius, centre + radius * generator.random((6, size))
    found = local_slopes(graph, Cells(low, high, np.arange(size)))
    for b in range(6):
        points = np.vstack([low[b], high[b], generator.uniform(low[b], high[b], (60, size))])
        nodes = all_values(graph, points)
        output = nodes[-1]
        span = np.abs(output).max(0) + 1
        assert (output >= found.output.value.low[b] - 1e-12 * span).all() and (output <= found.output.value.high[b] + 1e-12 * span).all()
        for place, slopes in found.nodes.items():
            before, after = nodes[graph.nodes[place].inputs[0]], nodes[place]
            rise, run = after[:, None] - after[None, :], before[:, None] - before[None, :]
            noise = 1e-13 * (np.abs(after).max() + np.abs(before).max() + 1)
            assert (rise <= np.where(run > 0, slopes.high[b] * run, slopes.low[b] * run) + noise).all()
            assert (rise >= np.where(run > 0, slopes.low[b] * run, slopes.high[b] * run) - noise).all()
        bound = quick_gains(matrices(found, b))[0]
        rise = np.linalg.norm(output[:, None] - output[None, :], axis=-1)
        assert (rise <= bound * np.linalg.norm(points[:, None] - points[None, :], axis=-1) + 1e-12 * span.max()).all()


def matrices(found, b):
    slope = found.output.slope
    return iv.Interval(slope.low[:, b].T[None], slope.high[:, b].T[None])


def all_values(graph, points):
    """The value of every node at every point, by NumPy."""
    values = []
    for index, node in enumerate(graph.nodes):
        part = Graph(graph.nodes[: index + 1], {"v": index}, graph.tensors)
        value = points if node.op == "input" else compile_numpy(part)(x=points)["v"]
        values.append(np.broadcast_to(value, (len(points), graph.sizes[index])))
    return values


def test_small_boxes_leave_only_rounding():
    """On a box of radius 1e-9 the gain of the enclosed slopes is the norm of the Jacobian."""
    generator = np.random.default_rng(0)
    w = [generator.standard_normal(shape) for shape in ((5, 3), (5, 5), (2, 5))]
    graph = network((w[0], None), "tanh", (w[1], None), "sigmoid", (w[2], None), size=3)
    x = generator.standard_normal(3)
    v = w[0] @ x
    s = 1 / (1 + np.exp(-w[1] @ np.tanh(v)))
    jacobian = w[2] @ np.diag(s * (1 - s)) @ w[1] @ np.diag(1 - np.tanh(v) ** 2) @ w[0]
    exact = np.linalg.norm(jacobian, 2)
    low, high = x - 1e-9, x + 1e-9
    assert prove_local(graph, claim_of(low, high, exact * (1 + 1e-6)), plain())
    with pytest.raises(Rejected):
        prove_local(graph, claim_of(low, high, exact * (1 - 1e-6)), plain())
    rows = np.abs(jacobian).sum(1).max()
    assert prove_local(graph, claim_of(low, high, rows * (1 + 1e-6), "linf"), plain())
    with pytest.raises(Rejected):
        prove_local(graph, claim_of(low, high, rows * (1 - 1e-6), "linf"), plain())


@pytest.mark.parametrize("group_size", [2, 3, 4, 7])
def test_sorts_as_absolute_values_are_the_same_function(group_size):
    rng = random.Random(group_size)
    graph = Graph((Node("input", (), {"name": "x", "size": 6}), Node("group_sort", (0,), {"group_size": group_size})), {"u": 1}, {})
    inner = Graph(graph.nodes, graph.outputs, {}, nesting=1)
    point, offset = (F(1),) * 6, {"o": np.ones(6)}
    nested = Graph((graph.nodes[0], Node("recentre", (0,), {"graph": inner, "point": point, "offset": "o"})), {"u": 1}, offset)
    for given in (graph, nested):
        other = without_sorts(given)
        assert "group_sort" not in str(other.nodes)
        for _ in range(40):
            x = {"x": tuple(F(rng.randint(-3, 3)) for _ in range(6))}
            assert evaluate_exact(given, x) == evaluate_exact(other, x)


def test_sorts_that_would_be_huge_are_refused():
    graph = Graph((Node("input", (), {"name": "x", "size": 4096}), Node("group_sort", (0,), {"group_size": 64})), {"u": 1}, {})
    with pytest.raises(Rejected, match="needs more than"):
        without_sorts(graph)


def test_products_quotients_and_maxima_of_signals():
    """x y / (1 + max(x, y)^2) on boxes: not a network form, but its slopes are enclosed."""
    nodes = (
        Node("input", (), {"name": "x", "size": 2}),
        Node("select", (0,), {"indices": (0,)}),
        Node("select", (0,), {"indices": (1,)}),
        Node("mul", (1, 2)),
        Node("max", (1, 2)),
        Node("power", (4,), {"exponent": 2}),
        Node("constant", (), {"values": (F(1),)}),
        Node("add", (5, 6)),
        Node("div", (3, 7)),
    )
    graph = Graph(nodes, {"u": 8}, {})
    generator = np.random.default_rng(1)
    for radius in (1.0, 0.1, 0.001):
        low = generator.standard_normal((20, 2))
        found = local_slopes(graph, Cells(low, low + radius, np.arange(2)))
        for b in range(20):
            points = generator.uniform(low[b], low[b] + radius, (50, 2))
            value = compile_numpy(graph)(x=points)["u"][:, 0]
            rise, run = value[:, None] - value, points[:, None] - points
            slope = iv.Interval(found.output.slope.low[:, b, 0], found.output.slope.high[:, b, 0])
            top = np.where(run > 0, run * slope.high, run * slope.low).sum(-1)
            assert (rise <= top + 1e-12).all()
    assert prove_local(graph, claim_of([0, 0], [1, 1], 10.0), plain()) == 10


def test_gains_of_interval_matrices():
    generator = np.random.default_rng(0)
    for _ in range(30):
        m, n = generator.integers(1, 5, 2)
        middle, radius = generator.standard_normal((m, n)), generator.random((m, n)) * 10.0 ** generator.integers(-8, 1)
        matrix = iv.Interval(middle - radius, middle + radius)
        batch = iv.Interval(matrix.low[None], matrix.high[None])
        worst = max(np.linalg.norm(middle + radius * generator.choice([-1, 1], (m, n)), 2) for _ in range(50))
        assert worst <= quick_gains(batch)[0]
        assert not gain_is_at_most(matrix, worst * (1 - 1e-9))
        assert gain_is_at_most(matrix, np.linalg.norm(middle, 2) * (1 + 1e-9) + np.linalg.norm(radius) * (1 + 1e-9) + 1e-12)
        assert row_gains(batch)[0] >= np.abs(middle + radius).sum(1).max() * (1 - 1e-12)
    assert not gain_is_at_most(iv.point(np.array([[np.nan]])), 1.0) and not gain_is_at_most(iv.point(np.array([[np.inf]])), 1.0)


# --- domains --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_cells_of_a_ball_hold_its_points(seed):
    """Points of a weighted ball that lie in a box are in its cell, within its reach; only cells without points are empty."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 5))
    centre, scale = (tuple(F(float(v)) for v in part) for part in (generator.standard_normal(n), 10.0 ** generator.uniform(-1, 1, n)))
    domain = read_domain({"centre": texts(centre), "radius": "3/2"}, n, "l2", scale)
    c, s = (np.array([float(v) for v in part]) for part in (centre, scale))
    direction = generator.standard_normal((4000, n))
    direction *= 1.5 * (1 - 1e-9) * generator.random((4000, 1)) ** (1 / n) / np.linalg.norm(direction, axis=1, keepdims=True)
    points = c + direction / s
    low, high = domain.box()
    assert ((points >= low) & (points <= high)).all()
    for _ in range(40):
        a, b = np.sort(generator.uniform(low, high, (2, n)), axis=0)
        cells, empty = domain.cells(a[None], b[None])
        inside = points[((points >= a) & (points <= b)).all(1)]
        if len(inside):
            middle, _ = iv.Interval(cells.low, cells.high).centre_radius()
            assert not empty[0]
            assert ((inside >= cells.low[0]) & (inside <= cells.high[0])).all()
            assert (np.linalg.norm((inside - middle[0]) * s, axis=1) <= cells.reach[0]).all()
    corner = low + 0.01 * (high - low)
    if n > 1:
        assert domain.cells(low[None], corner[None])[1][0]


def test_a_ball_is_better_than_the_box_around_it():
    graph = network((np.ones((1, 16)), [-2.0]), "relu", ([[1.0]], None), size=16)
    domain = {"centre": ["0"] * 16, "radius": "1/4"}
    claim = {**claim_of([0] * 16, [1] * 16, 1e-9), "domain": domain}
    assert prove_local(graph, claim, plain()) == 1e-9  # |1^T x| <= 1 in the ball, 4 in the box
    with pytest.raises(Rejected):
        prove_local(graph, claim_of([-F(1, 4)] * 16, [F(1, 4)] * 16, 1e-9), plain())


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ([[0, "-5"], None, None], "strictly inside"),
        ([[0, "5"], None, None], "strictly inside"),
        ([[0, "7"], None, None], "strictly inside"),
        ([[0, "0"], None], "ends too early"),
        ([[0, "0"], None, None, None], "left over"),
        ([], "ends too early"),
        ([[1, "0"], None, None], "does not vary"),
        ([[-1, "0"], None, None], "does not vary"),
        ([[True, "0"], None, None], r"\[input, threshold\]"),
        ([[0, "nan"], None, None], "threshold"),
        ([[0, "1/3"], None, None], "exactly a float64"),
        ([[0, "0", "0", "0"], None, None], r"\[input, threshold\]"),
        ([[0, "0", "0"], None, None], "not the place of a coordinate-wise node"),
        ([0], "index of a proof"),
        ([True], "index of a proof"),
        (["plain"], "index of a proof"),
        ([{"method": "multipliers"}], "leaf: missing keys"),
        (None, "list in preorder"),
    ],
)
def test_trees_that_do_not_cover_the_domain_are_rejected(tree, reason):
    with pytest.raises(Rejected, match=reason):
        prove_local(ZERO, claim_of([-5], [5], 2.0), {"method": "cells", "tree": tree, "proofs": []})


@pytest.mark.parametrize(
    "change",
    [
        {"domain": {"low": ["6"], "high": ["5"]}},
        {"domain": {"low": ["0"]}},
        {"domain": {"low": ["0"], "high": ["1"], "radius": "1"}},
        {"domain": {"low": ["0", "0"], "high": ["1", "1"]}},
        {"domain": {"low": ["nan"], "high": ["1"]}},
        {"domain": {"centre": ["0"], "radius": "-1"}},
        {"domain": {"low": ["-1" + "0" * 400], "high": ["1"]}},
        {"domain": None},
        {"bound": "inf"},
        {"bound": "-1"},
        {"bound": "nan"},
        {"norm": "l1"},
        {"property": "lipschitz"},
        {"extra": 1},
        {"input_scale": ["0"]},
    ],
)
def test_malformed_claims_are_rejected(change):
    with pytest.raises(Rejected):
        prove_local(ZERO, {**claim_of([-5], [5], 2.0), **change}, plain())


def test_huge_boxes_are_rejected_or_bounded_in_words():
    for size in (1e300, 1.7e308):
        for name in ("relu", "tanh", "softplus", "exp"):
            graph = network(([[1e10]], None), name, ([[1.0]], None), size=1)
            try:
                bound = prove_local(graph, claim_of([-size], [size], 1e11), plain())
            except Rejected:
                continue
            assert name != "exp" and bound == 1e11


def test_many_leaves_are_counted_before_they_are_judged(monkeypatch):
    import lipctrl.certificates.checker.verifiers.local_lipschitz as module

    monkeypatch.setattr(module, "MAX_LEAVES", 2)
    with pytest.raises(Rejected, match="more than 2 leaves"):
        prove_local(ZERO, claim_of([-5], [5], 2.0), plain([[0, "0"], [0, "-1"], None, None, None]))
    monkeypatch.setattr(module, "MAX_LEAVES", 10)
    monkeypatch.setattr(module, "MAX_WORK", 100)
    with pytest.raises(Rejected, match="more work"):
        prove_local(ZERO, claim_of([-5], [5], 2.0), plain())


def test_deep_trees_are_refused():
    domain = Domain((F(0),), (F(1),))
    for depth in (199, 201):
        tree = [*([0, str(F(1, 2**k))] for k in range(1, depth + 1)), *[None] * (depth + 1)]
        if depth < 200:
            assert len(read_leaves(tree, domain, 1000)) == depth + 1
            continue
        with pytest.raises(Rejected, match="times in a row"):
            read_leaves(tree, domain, 1000)


def test_a_local_claim_is_never_called_a_global_one():
    """Property, sentence and number of the verdict all say that the claim is about a domain; a global claim stays as it was."""
    claim = claim_of([1], [5], 1 + 1e-9)
    verdict = check(parse_certificate(*certificate_bytes(kind="lipschitz-bound", claim=claim, policy=STEP_UP, evidence=plain())))
    assert (verdict.level, verdict.property, set(verdict.numbers)) == ("proved", "local_lipschitz", {"local_lipschitz"})
    assert "in the box 1 <= x1 <= 5" in verdict.claim
    stripped = copy.deepcopy(claim)
    del stripped["domain"]
    for property_ in ("lipschitz", "local_lipschitz"):
        data = certificate_bytes(kind="lipschitz-bound", claim={**stripped, "property": property_}, policy=STEP_UP, evidence=plain())
        assert check(parse_certificate(*data)).status == "rejected"


def test_ends_in_sentences_are_rounded_inwards():
    graph = network(([[1.0, 1.0]], None), size=2)
    claim = claim_of([F(1, 3), -F(1, 7)], [F(2, 3), F(1, 7)], 2.0)
    verdict = check(parse_certificate(*certificate_bytes(kind="lipschitz-bound", claim=claim, policy=graph, evidence=plain())))
    assert "0.333334 <= x1 <= 0.666666, -0.142857 <= x2 <= 0.142857" in verdict.claim


def test_numbers_beyond_float64_are_refused_in_words():
    huge, relu = str(10**400), Graph((Node("input", (), {"name": "x", "size": 1}), Node("relu", (0,))), {"u": 1})
    constant = (Node("input", (), {"name": "x", "size": 1}), Node("constant", (), {"values": (F(10**400),)}), Node("min", (0, 1)))
    box, ball = claim_of([0], [1], 2.0), {**claim_of([0], [1], 2.0), "domain": {"centre": ["0"], "radius": str(10**200)}}
    scaled = [{**claim, name: [huge]} for claim in (box, ball) for name in ("input_scale", "output_scale")]
    for graph, claim in [(Graph(constant, {"u": 2}), box), (relu, ball), *((relu, claim) for claim in scaled)]:
        with pytest.raises(Rejected, match="too large for float64"):
            prove_local(graph, claim, plain())
