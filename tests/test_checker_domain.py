"""Boxes and balls as cells, against exact rationals, and split trees, rule by rule."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipctrl.certificates.checker import domain as module
from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.domain import Domain, halves, read_domain, read_leaves
from lipctrl.certificates.checker.verdict import Rejected

F = Fraction
ONE, TWO = (F(1),), (F(1), F(1))


def ball(centre, radius, scale) -> Domain:
    return read_domain({"centre": [str(F(c)) for c in centre], "radius": str(F(radius))}, len(centre), "l2", tuple(map(F, scale)))


def cell_of(domain, low, high):
    cells, empty = domain.cells(np.array([low], dtype=float), np.array([high], dtype=float))
    assert cells.low.shape == cells.high.shape == (1, len(low)) and empty.shape == cells.reach.shape == (1,)
    return cells, bool(empty[0])


# --- domains ------------------------------------------------------------------------------------------------------------


def test_a_box_is_read_as_it_is():
    domain = read_domain({"low": ["0", "1/3"], "high": ["1", "1/3"]}, 2, "l2", TWO)
    assert domain == Domain((F(0), F(1, 3)), (F(1), F(1, 3)))
    assert (domain.centre, domain.radius, domain.scale) == (None, 0, ())
    assert domain.free.tolist() == [0]
    low, high = domain.box()
    assert Fraction(low[1]) < F(1, 3) < Fraction(high[1]) == Fraction(np.nextafter(low[1], 1)) and (low[0], high[0]) == (0, 1)


def test_the_border_of_what_is_empty():
    assert read_domain({"low": ["1"], "high": ["1"]}, 1, "l2", ONE).free.tolist() == []
    for low, high in ((["1"], ["1023/1024"]), (["0", "1"], ["1", "0"]), (["1", "0"], ["0", "1"])):
        with pytest.raises(Rejected, match="empty: needs low <= high"):
            read_domain({"low": low, "high": high}, len(low), "l2", TWO)


def test_balls_of_both_norms_are_scaled():
    data = {"centre": ["1", "-1/3"], "radius": "3"}
    scale = (F(2), F(1, 5))
    low, high = (F(1) - F(3, 2), F(-1, 3) - 15), (F(1) + F(3, 2), F(-1, 3) + 15)
    assert read_domain(data, 2, "linf", scale) == Domain(low, high)
    assert read_domain(data, 2, "l2", scale) == Domain(low, high, (F(1), F(-1, 3)), F(3), scale)


def test_a_ball_may_be_a_point_and_not_less():
    assert ball([1], 0, ONE) == Domain(ONE, ONE, ONE, F(0), ONE)
    for radius in ("-1/1024", "-1"):
        with pytest.raises(Rejected, match="radius of the domain is negative"):
            read_domain({"centre": ["1"], "radius": radius}, 1, "l2", ONE)


@pytest.mark.parametrize("data", [None, [], "centre", {"low": ["0"]}, {"centre": ["0"]}, {"centre": ["0"], "radius": "1", "low": ["0"]}])
def test_other_domains_are_refused(data):
    with pytest.raises(Rejected, match="domain"):
        read_domain(data, 1, "l2", ONE)


@pytest.mark.parametrize("exponent", [400, 308])
def test_ends_beyond_float64_are_refused(exponent):
    """Too large for a float, and so near its largest number that outwards is infinity."""
    end = F(10**400) if exponent == 400 else F(float(np.finfo(float).max)) + 1
    for low, high in (((-end, F(0)), TWO), ((F(0), -end), TWO), (TWO, (end, F(2))), (TWO, (F(2), end))):
        with pytest.raises(Rejected, match="^the domain is too large for float64"):
            Domain(low, high).box()


# --- cells --------------------------------------------------------------------------------------------------------------


def test_cells_of_a_box_are_the_boxes():
    domain = read_domain({"low": ["0", "1", "0"], "high": ["1", "1", "1"]}, 3, "l2", (F(1),) * 3)
    low, high = np.array([[0.0, 1, 0], [0.5, 1, 0]]), np.array([[0.5, 1, 1], [1.0, 1, 1]])
    cells, empty = domain.cells(low, high)
    assert cells.low is low and cells.high is high and cells.free.tolist() == [0, 2]
    assert cells.reach is None and cells.scale is None and empty.tolist() == [False, False]


def exact_ends(domain, low, high):
    """For each input, what the others leave of the squared radius, and whether a point is left; exactly."""
    n = len(domain.low)
    low, high = [F(v) for v in low], [F(v) for v in high]
    gaps = [max(F(0), low[i] - domain.centre[i], domain.centre[i] - high[i]) * domain.scale[i] for i in range(n)]
    left = [domain.radius**2 - sum(gaps[j] ** 2 for j in range(n) if j != i) for i in range(n)]
    return left, sum(g**2 for g in gaps) > domain.radius**2


def holds_exactly(domain, low, high, slack):
    """The cell holds the ball's part of the box, and is larger by no more than ``slack`` radii; the reach holds as derived."""
    cells, empty = cell_of(domain, low, high)
    left, no_point = exact_ends(domain, low, high)
    if empty:
        assert no_point
        assert cells.low[0].tolist() == list(low) and cells.high[0].tolist() == list(high)
        return True
    for i, rest in enumerate(left):
        c, s, room = domain.centre[i], domain.scale[i], F(slack) * domain.radius / domain.scale[i]
        assert low[i] <= cells.low[0, i] <= cells.high[0, i] <= high[i]
        for end, limit in ((F(cells.high[0, i]) - c, F(high[i]) - c), (c - F(cells.low[0, i]), c - F(low[i]))):
            assert end == limit or (end >= 0 and (end * s) ** 2 >= rest)
            inner = end - room
            assert inner <= 0 or (inner * s) ** 2 <= rest
    reach_holds(domain, cells, slack)
    return False


def whole(domain, part=1.0):
    """The box of a domain without the lower ``1 - part`` of each half axis."""
    low, high = domain.box()
    return low + (1 - part) * (high - low) / 2, high


def reach_holds(domain, cells, slack):
    middle, radius = (part[0] for part in iv.Interval(cells.low, cells.high).centre_radius())
    ball, corner = domain.radius**2, F(0)
    for c, s, m, r in zip(domain.centre, domain.scale, map(F, middle), map(F, radius), strict=True):
        ball += s**2 * (2 * abs(c - m) * r - (c - m) ** 2)
        corner += s**2 * r**2
    squared, exact = F(cells.reach[0]) ** 2, min(max(ball, F(0)), corner)
    assert exact <= squared <= exact + F(slack) * domain.radius**2 + F(1, 2**900)
    return ball < corner


@pytest.mark.parametrize("seed", range(3))
def test_cells_of_balls_against_exact_rationals(seed):
    generator = np.random.default_rng(seed)
    for n in (1, 2, 3, 6):
        for _ in range(12):
            centre = [F(int(v), 3) for v in generator.integers(-5, 6, n)]
            scale = [F(int(v), 7) for v in generator.integers(1, 30, n)]
            domain = ball(centre, F(3, 2), scale)
            low, high = domain.box()
            a, b = np.sort(generator.uniform(low, high, (2, n)), axis=0)
            holds_exactly(domain, a, b, 1e-12)
            assert not holds_exactly(domain, low, high, 1e-12)


def test_cells_by_hand():
    """The 3-4-5 circle: at y >= 3 the x lie within 4, at y in [3, 4] too, on either side of the centre."""
    for sign in (1, -1):
        low, high = sorted((sign * 3.0, sign * 5.0))
        cells, empty = cell_of(ball([0, 0], 5, TWO), [-5, low], [5, high])
        assert not empty and cells.low[0] == pytest.approx([-4, low], rel=1e-15) and cells.high[0] == pytest.approx([4, high], rel=1e-15)
        assert cells.low[0, 0] < -4 and cells.high[0, 0] > 4 and cells.scale.tolist() == [1, 1]
    cells, empty = cell_of(ball([0, 0], 5, (F(2), F(1))), [-5, 3], [5, 5])
    assert cells.high[0, 0] == pytest.approx(2, rel=1e-15) and cells.scale.tolist() == [2, 1]


def test_cells_where_nearly_nothing_is_left():
    """What the other inputs leave of the radius is a small difference of large numbers: every rounding shows."""
    for k in range(20, 27):
        for n in (2, 3, 8):
            for near in (1 - 2.0**-k, 1 - 3 * 2.0**-k):
                low, high = [near] + [-1.0] * (n - 1), [1.0] * n
                assert not holds_exactly(ball([0] * n, 1, [1] * n), low, high, 2.0 ** (k - 45))
                assert not holds_exactly(ball([0] * n, F(1, 3), [F(1, 3)] * n), low, high, 2.0 ** (k - 45))


@pytest.mark.parametrize("far", [F(0), F(10**6, 3), F(-(10**6), 7)])
def test_cells_far_from_zero(far):
    """Distances from the centre are small differences too, and the centre is no float."""
    for n in (2, 3, 8):
        domain = ball([far] * n, 3, [F(3)] * n)
        for near in (1 - 2.0**-10, 1 - 2.0**-12):
            for sign in (1, -1):
                ends = sorted((float(far) + sign * near, float(far) + sign))
                assert not holds_exactly(domain, [ends[0]] + [float(far) - 1] * (n - 1), [ends[1]] + [float(far) + 1] * (n - 1), 1e-4)


def test_the_reach_by_the_ball_and_by_the_corner():
    """Where the ball says more than the corners of the cell, and the other way around; both with off-centre middles."""
    for n, part, by_ball in ((6, 0.75, True), (6, 0.9, True), (8, 0.8, True), (6, 0.25, False), (2, 0.5, False), (1, 0.7, False)):
        for centre, radius, scale in ((F(0), F(1), F(1)), (F(5, 3), F(7, 3), F(2, 3)), (F(-5), F(5, 2), F(3))):
            domain = ball([centre] * n, radius, [scale + i for i in range(n)])
            cells, empty = cell_of(domain, *whole(domain, part))
            assert not empty and reach_holds(domain, cells, 1e-12) == by_ball


def test_the_reach_of_tiny_cells_with_large_scales():
    """Squares of distances underflow, and the scale makes what they lose as large as the radius."""
    for n in (1, 6, 8):
        for exponent in (520, 530, 535, 536, 537, 538, 540):
            domain = ball([0] * n, F(1, 2 ** (exponent - 200)), [2**200] * n)
            for part in (0.8, 0.75, 0.1, -0.5, -0.9):
                low, high = whole(domain, part)
                for a, b in ((low, high), (-high, -low)):
                    cells, empty = cell_of(domain, a, b)
                    assert empty or reach_holds(domain, cells, 1e6) in (True, False)


def test_the_reach_leaves_room_for_any_order_of_summation():
    for n in (1, 2, 3, 4, 8, 32):
        for part in (0.8, 0.1):
            cells, _ = cell_of(domain := ball([0] * n, 1, [1] * n), *whole(domain, part))
            middle, radius = (F(v[0, 0]) for v in iv.Interval(cells.low, cells.high).centre_radius())
            shift = 2 * abs(middle) * radius - middle**2
            round_, corner, unit = 1 + n * shift, n * radius**2, F(iv.UNIT)
            assert F(cells.reach[0]) ** 2 >= min(round_ + (n + 2) * unit * (1 + n * abs(shift)), corner * (1 + n * unit))


def test_differences_below_the_rounding_of_a_sum_prove_nothing():
    """What is taken from the radius by inputs that reach hardly beyond their centre is less than the sum of squares is off."""
    for n in (1, 2, 3, 4, 64):
        domain = ball([0] * n, 1, [1] * n)
        ends = []
        for gap in (0.0, (0.5 * n * iv.UNIT) ** 0.5):
            low = [0.999] + [gap] * min(1, n - 1) + [0.0] * (n - 2)
            ends.append(cell_of(domain, low, [2.0] * n)[0].high[0, 0])
        assert ends[0] == ends[1] == cell_of(domain, [0.0] * n, [2.0] * n)[0].high[0, 0]


def test_ends_are_not_inside_the_root_of_the_squared_radius():
    for radius in (F(1), F(1, 3), F(3, 7)):
        cells, _ = cell_of(ball([0], radius, ONE), [-2], [2])
        root = iv.sqrt(iv.from_fractions((radius**2,))) / iv.from_fractions(ONE)
        assert cells.high[0, 0] >= (iv.point(np.zeros(1)) + root).high[0] and cells.low[0, 0] == -cells.high[0, 0]


def test_cells_that_are_points():
    assert not cell_of(ball([0], 1, ONE), [0.5], [0.5])[1] and cell_of(ball([0], 1, ONE), [1.5], [1.5])[1]
    domain = ball([F(1, 3)], 0, ONE)
    cells, empty = cell_of(domain, *domain.box())  # no input varies: the ends are those of the box
    assert not empty and F(cells.low[0, 0]) < F(1, 3) < F(cells.high[0, 0]) and cells.free.tolist() == []


def test_only_cells_without_a_point_are_empty():
    domain = ball([0, 0], 1, TWO)
    above, root = float(np.nextafter(1, 2)), 0.5**0.5  # root is above the square root of one half
    assert not cell_of(domain, [1, 0], [2, 2])[1] and not cell_of(domain, [-2, -2], [-1, 0])[1]
    assert cell_of(domain, [1 + 2.0**-40, 0], [2, 2])[1] and cell_of(domain, [-2, -2], [0, -1 - 2.0**-40])[1]
    assert cell_of(domain, [root + 2.0**-40] * 2, [2, 2])[1] and not cell_of(domain, [root - 2.0**-53] * 2, [2, 2])[1]
    assert cell_of(domain, [3, 3], [4, 4])[1] and cell_of(domain, [0, 3], [1, 4])[1]
    cells, empty = domain.cells(np.array([[3.0, 0], [0, 0], [0, 3]]), np.array([[above + 3, 1], [1, 1], [1, 4]]))
    assert empty.tolist() == [True, False, True] and np.isfinite(cells.reach).all()


def test_inputs_that_do_not_vary_keep_their_ends():
    """No domain that is read has such an input beside others, but cells are made for the free ones alone."""
    domain = Domain((F(-1), F(2), F(-1)), (F(1), F(2), F(1)), (F(0), F(2), F(0)), F(1), (F(1), F(5), F(3)))
    cells, empty = cell_of(domain, [0.6, 2, -1], [1, 2, 1])
    assert not empty and cells.free.tolist() == [0, 2] and cells.scale.tolist() == [1, 3]
    assert cells.high[0] == pytest.approx([1, 2, 0.8 / 3], rel=1e-12) and cells.low[0] == pytest.approx([0.6, 2, -0.8 / 3], rel=1e-14)


def test_scales_that_are_no_floats_are_rounded_down():
    cells, _ = cell_of(ball([0], 1, [F(1, 10)]), [-10], [10])
    assert F(cells.scale[0]) < F(1, 10)


def test_squares_of_radii_are_floats():
    Domain(ONE, ONE, ONE, F(10**154), ONE).box()
    with pytest.raises(Rejected, match="too large for float64"):
        Domain(ONE, ONE, ONE, F(10**155), ONE).box()


def test_numbers_that_are_not_known_are_not_empty():
    cells, empty = cell_of(ball([0, 0], 1, TWO), [np.nan, 0], [np.nan, 1])
    assert not empty and not np.isfinite(cells.reach[0])


def test_a_tiny_ball_has_a_reach():
    cells, empty = cell_of(ball([0], F(1, 2**600), ONE), [-(2.0**-600)], [2.0**-600])
    assert not empty and 2.0**-600 <= cells.reach[0] < 2.0**-499


# --- split trees --------------------------------------------------------------------------------------------------------

SQUARE = Domain((F(0), F(0), F(1)), (F(1), F(1), F(1)))


def test_leaves_come_in_preorder_with_their_boxes_and_entries():
    leaves = read_leaves([[0, "1/4"], [1, "1/2"], "a", None, 7], SQUARE, 3)
    assert [(leaf.low.tolist(), leaf.high.tolist(), leaf.entry) for leaf in leaves] == [
        ([0, 0, 1], [0.25, 0.5, 1], "a"),
        ([0, 0.5, 1], [0.25, 1, 1], None),
        ([0.25, 0, 1], [1, 1, 1], 7),
    ]


def test_halves_share_the_threshold_and_leave_the_box_alone():
    low, high = np.array([0.0, -1]), np.array([1.0, 1])
    (a, b), (c, d) = halves(low, high, 1, 0.25)
    assert [part.tolist() for part in (a, b, c, d)] == [[0, -1], [1, 0.25], [0, 0.25], [1, 1]]
    assert low.tolist() == [0, -1] and high.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ("tree", "must be a list in preorder"),
        ({}, "must be a list in preorder"),
        ([], "ends too early"),
        ([[0, "1/2"], None], "ends too early"),
        ([None, None], "entries left over"),
        ([[0, "1/2"], None, None, None], "entries left over"),
        ([[2, "1"], None, None], "does not vary"),
        ([[3, "1"], None, None], "does not vary"),
        ([[-1, "1/2"], None, None], "does not vary"),
        ([[0, "0"], None, None], "strictly inside"),
        ([[0, "1"], None, None], "strictly inside"),
        ([[0, "2"], None, None], "strictly inside"),
        ([[0, "-1"], None, None], "strictly inside"),
        ([[0, "1/2"], [0, "1/2"], None, None, None], "strictly inside"),
        ([[0, "1/2"], None, [0, "1/2"], None, None], "strictly inside"),
        ([[0], None, None], r"\[input, threshold\]"),
        ([[], None, None], r"\[input, threshold\]"),
        ([[0, "1/2", "1/2"], None, None], r"\[input, threshold\]"),
        ([[0.0, "1/2"], None, None], r"\[input, threshold\]"),
        ([[False, "1/2"], None, None], r"\[input, threshold\]"),
        ([["0", "1/2"], None, None], r"\[input, threshold\]"),
        ([[0, None], None, None], "threshold"),
        ([[0, "nan"], None, None], "threshold"),
        ([[0, "1/3"], None, None], "threshold"),
        ([[0, "1/2"], None, None, [0, "1/4"]], "entries left over"),
    ],
)
def test_trees_that_are_refused(tree, why):
    with pytest.raises(Rejected, match=why):
        read_leaves(tree, SQUARE, 10)


def test_leaves_up_to_the_limit():
    tree = [[0, "1/2"], None, None]
    assert len(read_leaves(tree, SQUARE, 2)) == 2
    with pytest.raises(Rejected, match="more than 1 leaves"):
        read_leaves(tree, SQUARE, 1)


def test_splits_up_to_the_depth(monkeypatch):
    monkeypatch.setattr(module, "MAX_DEPTH", 2)
    two = [[0, "1/2"], [1, "1/2"], None, None, [1, "1/2"], None, None]
    assert len(read_leaves(two, SQUARE, 10)) == 4
    for tree in ([[0, "1/2"], [1, "1/2"], [0, "1/4"], *[None] * 4], [[0, "1/2"], None, [1, "1/2"], None, [0, "3/4"], None, None]):
        with pytest.raises(Rejected, match="more than 2 times in a row"):
            read_leaves(tree, SQUARE, 10)
