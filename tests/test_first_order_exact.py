"""Models of signals of degree 2 and 3, operation by operation: every bound against exact rational numbers."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb, arb_series
from loops import Sketch
from test_first_order_slopes import SERIES, cells

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.curved import (
    Curved,
    CurvedAlgebra,
    Model,
    Taylor,
    _cubic,
    _narrowed,
    _parabola,
    _without_subnormals,
    curved_slopes,
)
from lipctrl.certificates.checker.derivatives import higher_derivatives
from lipctrl.certificates.checker.graph import Node
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.local_slopes import Cells, local_slopes

F = Fraction


pytestmark = pytest.mark.usefixtures("quiet")


def one(x: float) -> Interval:
    return Interval(*2 * (np.full((1, 1), float(x)),))


class Operands:
    """Models of one signal of one input, |x - c| <= ``radius``; some of their numbers are 0, so that no rounding hides behind another."""

    def __init__(self, seed: int, order: int) -> None:
        self.random = np.random.default_rng(seed)
        self.radius = float(self.random.uniform(0.5, 2))
        self.algebra = CurvedAlgebra(cells([-1], [1]))
        self.algebra.order = order
        self.algebra._radius = np.full((1, 1, 1), self.radius)

    def number(self, positive: bool = False) -> float:
        x = float(self.random.uniform(0.5, 2)) * (self.random.random() < 0.6)
        return x if positive or self.random.random() < 0.5 else -x

    def model(self) -> Model:
        linear, bend = one(self.number()), one(self.number())
        linear, bend = (Interval(end.low[None], end.high[None]) for end in (linear, bend))
        bend = None if self.random.random() < 0.2 else Interval(bend.low[None], bend.high[None])
        twist = None if self.random.random() < 0.2 or self.algebra.order == 2 else iv.point(np.full((1, 1, 1), self.number()))
        error, play = np.full((1, 1), self.number(True)), np.full((1, 1, 1), self.number(True))
        return self.algebra._model(one(self.number()), linear, bend, error, play, twist)

    def signal(self, model: Model) -> Curved:
        wide = Interval(np.full((1, 1), -1e9), np.full((1, 1), 1e9))
        return Curved(wide, model.centre, model.linear, model.linear, np.full((1, 1), 1e9), model)


def exactly(x: Any) -> F:
    return F(float(np.asarray(x).ravel()[0]))


class Exact:
    """The numbers of a model, and what they are at most, by degree from 0 on."""

    def __init__(self, model: Model, radius: float) -> None:
        r = F(radius)
        self.centre, self.linear = exactly(model.centre.low), exactly(model.linear.low)
        self.bend, self.twist = (F(0) if x is None else exactly(x.low) for x in (model.bend, model.twist))
        self.error, self.play = exactly(model.error), exactly(model.play)
        self.sizes = [abs(self.centre), abs(self.linear) * r, abs(self.bend) * r**2 / 2, abs(self.twist) * r**3 / 6]
        self.swings = [F(0), abs(self.linear), abs(self.bend) * r, abs(self.twist) * r**2 / 2]


def bounds(found: Any, exact: F) -> None:
    assert exact <= exactly(found) <= exact * (1 + F(1, 10**12)) + F(1, 10**100), (float(exactly(found) - exact), float(exact))


def encloses(found: Interval | None, exact: F) -> None:
    if found is None:
        assert exact == 0
        return
    low, high = exactly(found.low), exactly(found.high)
    assert low <= exact <= high and high - low <= F(2, 10**13)


def gained(x: Exact, size: F, certain: list[F], doubt: F, order: int) -> F:
    """``certain`` by degree from 1 on. Products of parts of degrees i and j have slopes of degree i + j - 1, kept below the order."""
    made = sum(x.swings[j] * (doubt + sum(part for i, part in enumerate(certain, 1) if i + j > order)) for j in (1, 2, 3))
    return (size + sum(certain) + doubt) * x.play + made


def dropped(a: list[F], b: list[F], order: int) -> F:
    return sum((x * y for i, x in enumerate(a) for j, y in enumerate(b) if i + j > order), F(0))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("seed", range(60))
def test_products_of_models_in_exact_numbers(seed: int, order: int) -> None:
    made = Operands(seed, order)
    x, y = made.model(), made.model()
    found = made.algebra.mul(made.signal(x), made.signal(y)).model
    a, b = Exact(x, made.radius), Exact(y, made.radius)
    bounds(found.error, sum(a.sizes) * b.error + sum(b.sizes) * a.error + a.error * b.error + dropped(a.sizes, b.sizes, order))
    bounds(found.play, gained(b, a.sizes[0], a.sizes[1:], a.error, order) + gained(a, b.sizes[0], b.sizes[1:], b.error, order))
    encloses(found.centre, a.centre * b.centre)
    encloses(Interval(found.linear.low[0], found.linear.high[0]), a.centre * b.linear + b.centre * a.linear)
    encloses(found.bend, a.centre * b.bend + b.centre * a.bend + 2 * a.linear * b.linear)
    third = a.centre * b.twist + b.centre * a.twist + 3 * a.linear * b.bend + 3 * b.linear * a.bend
    encloses(found.twist, third if order == 3 else F(0))
    has_the_sizes(found, made.radius, order)


def has_the_sizes(model: Model, radius: float, order: int) -> None:
    entries = [exactly(x.magnitude) if x is not None else F(0) for x in (model.linear, model.bend, model.twist)]
    assert len(model.sizes) == len(model.swings) == order
    for degree, (size, swing) in enumerate(zip(model.sizes, model.swings, strict=True), 1):
        bounds(swing, entries[degree - 1] * F(radius) ** (degree - 1) / (1, 1, 2)[degree - 1])
        bounds(size, entries[degree - 1] * F(radius) ** degree / (1, 2, 6)[degree - 1])


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("seed", range(60))
def test_sums_and_multiples_of_models_in_exact_numbers(seed: int, order: int) -> None:
    made = Operands(seed, order)
    x, y, factor = made.model(), made.model(), made.number()
    a, b = Exact(x, made.radius), Exact(y, made.radius)
    found = made.algebra.add(made.signal(x), made.signal(y)).model
    bounds(found.error, a.error + b.error)
    bounds(found.play, a.play + b.play)
    encloses(found.bend, a.bend + b.bend)
    encloses(found.twist, a.twist + b.twist)
    has_the_sizes(found, made.radius, order)
    constant = local_slopes_of(factor)
    for operands in ((made.signal(x), constant), (constant, made.signal(x))):
        scaled, moved = made.algebra.mul(*operands).model, made.algebra.add(*operands).model
        bounds(scaled.error, abs(F(factor)) * a.error)
        bounds(scaled.play, abs(F(factor)) * a.play)
        encloses(scaled.bend, F(factor) * a.bend)
        encloses(scaled.twist, F(factor) * a.twist)
        encloses(scaled.centre, F(factor) * a.centre)
        encloses(moved.centre, F(factor) + a.centre)
        assert exactly(moved.error) == a.error and exactly(moved.play) == a.play and exactly(moved.linear.low) == a.linear
        for before, after in ((x.bend, moved.bend), (x.twist, moved.twist)):
            assert (before is None) is (after is None)
            assert before is None or after is None or ((before.low == after.low).all() and (before.high == after.high).all())
    opposite = made.algebra.neg(made.signal(x)).model
    assert exactly(opposite.centre.low) == -a.centre and exactly(opposite.linear.high) == -a.linear
    encloses(opposite.bend, -a.bend)
    encloses(opposite.twist, -a.twist)
    assert opposite.error is x.error and opposite.play is x.play and opposite.swings is x.swings and opposite.sizes is x.sizes


def local_slopes_of(value: float) -> Any:
    """A constant."""
    s = Sketch()
    s.input("x", 1)
    return local_slopes(s.graph(u=s.constant(F(value))), cells([-1], [1])).output


@pytest.mark.parametrize(("order", "degree"), [(2, 1), (2, 2), (3, 1), (3, 3)])
@pytest.mark.parametrize("seed", range(60))
def test_functions_of_models_in_exact_numbers(seed: int, order: int, degree: int) -> None:
    """With w = v - m the polynomial is of p = P - P(0), and what is left of its powers is counted: of w^2, and of w^3 more than is left."""
    made = Operands(seed, order)
    x, factor, curve, third, doubt = made.model(), made.number(), made.number(), made.number(), made.number(True)
    low = made.number()
    rest, middle = Interval(np.full((1, 1), low), np.full((1, 1), low + made.number(True))), made.number()
    more = [np.full((1, 1), number) for number in (middle, curve, third)][: degree if degree > 1 else 0]
    found = made.algebra._composed(x, Taylor(np.full((1, 1), factor), rest, np.full((1, 1), doubt), *more))
    a, s = Exact(x, made.radius), F(factor)
    b, t = F(curve) if degree > 1 else F(0), F(third) if degree > 2 else F(0)
    away, (_, p, q, o) = abs(a.centre - F(middle)) + a.error, a.sizes
    off = q + o + away
    shift = exactly(0.5 * rest.low + 0.5 * rest.high)
    half = max(exactly(rest.high) - shift, shift - exactly(rest.low))
    parts = [F(0), *a.sizes[1:]]
    square = dropped(parts, parts, order) + 2 * sum(parts) * away + away**2
    bounds(found.error, abs(s) * a.error + half + abs(b) / 2 * square + abs(t) / 2 * off * (p + off) ** 2)
    left = F(doubt) + abs(b) * (o + away) + abs(t) / 2 * off * (2 * p + off)
    bounds(found.play, gained(a, abs(s), [abs(b) * p, abs(b) * q + abs(t) / 2 * p**2], left, order))
    encloses(found.centre, s * a.centre + shift)
    encloses(found.bend, s * a.bend + b * a.linear**2)
    encloses(found.twist, s * a.twist + (3 * b * a.linear * a.bend + t * a.linear**3 if order == 3 and degree == 3 else 0))
    has_the_sizes(found, made.radius, order)


@pytest.mark.parametrize("degree", [_parabola, _cubic])
@pytest.mark.parametrize("op", ["tanh", "gelu", "exp", "silu"])
def test_a_polynomial_and_the_slopes_that_it_leaves(op: str, degree: Any) -> None:
    s = Sketch()
    s(op, s.input("x", 1))
    for low, high, at in ((0.5, 0.75, 0.625), (-1.0, 1.5, 0.25), (-0.25, 0.5, -0.25), (-0.25, 0.5, 0.5), (1.0, 1.0, 1.0)):
        seen: list[Any] = []

        class Watching(CurvedAlgebra):
            def _scalar(self, x: Any, function: Any, quotients: Any, seen: list[Any] = seen) -> Any:
                seen.append((function, quotients))
                return super()._scalar(x, function, quotients)

        watching = Watching(cells([-1], [1]))
        watching.run(s.graph(u=1), watching.entering(), ())
        (function, quotients), higher = seen[0], higher_derivatives(Node(op, (0,)))
        assert higher is not None
        v = Interval(np.full((1, 1), low), np.full((1, 1), high))
        made = degree(np.full((1, 1), at), v, function, quotients, higher)
        f, b, c = (arb(0 if x is None else x.item()) for x in (made.factor, made.curve, made.third))
        points = [arb(low) + (arb(high) - arb(low)) * i / 16 for i in range(17)]
        for t in points:
            series = SERIES[op](arb_series([t, 1], prec=3))
            left = series[0] - f * t - b * (t - at) ** 2 / 2 - c * (t - at) ** 3 / 6
            slope = series[1] - f - b * (t - at) - c * (t - at) ** 2 / 2
            assert not left < arb(made.rest.low.item()) and not left > arb(made.rest.high.item())
            assert not abs(slope) > arb(made.doubt.item())
        reach, order = max(high - at, at - low), 3 if made.third is None else 4
        size = max(abs(float(SERIES[op](arb_series([t, 1], prec=5))[order].mid())) for t in points) * (6, 24)[order - 3]
        assert made.doubt.item() <= 3.6 * size * reach ** (order - 1) / (2, 6)[order - 3] + 1e-12
        width = made.rest.high.item() - made.rest.low.item()
        assert width <= 2 * made.doubt.item() * reach / (1, 4)[order - 3] + 1e-12


def test_a_second_derivative_between_two_floats_counts_on_both_sides() -> None:
    u = 2.0**-53
    between = Interval(np.ones((1, 1)), np.full((1, 1), 1 + 2 * u))  # the parabola takes 1
    zero, v = one(0), Interval(np.full((1, 1), -1.0), np.ones((1, 1)))
    for degree in (_parabola, _cubic):
        found = degree(np.zeros((1, 1)), v, lambda t: zero, lambda t: zero, lambda t: (between, zero, zero))
        assert found.curve is not None and found.curve.item() == 1 and found.doubt.item() - abs(found.factor.item()) >= 2 * u
        assert min(-found.rest.low.item(), found.rest.high.item()) >= 2 * u


def test_what_is_not_known_of_derivatives_counts_at_the_ends() -> None:
    """Derivatives of all orders up to the fourth that are known up to 1 / 2, on [-3, 1] around 0: 3^j / j! for each."""
    zero, wide = one(0), Interval(np.full((1, 1), -0.5), np.full((1, 1), 0.5))
    v = Interval(np.full((1, 1), -3.0), np.ones((1, 1)))
    for number, slopes in enumerate((0.5, 0.5 * 3, 0.5 * 9 / 2, 0.5 * 27 / 6)):
        known = [wide if j == number else zero for j in range(4)]
        found = _cubic(np.zeros((1, 1)), v, lambda t: zero, lambda t, k=known: k[0], lambda t, k=known: (k[1], k[2], k[3]))
        assert slopes <= found.doubt.item() < slopes + 1e-12
        most = 3 * slopes / (4 if number == 3 else 1)
        assert most <= found.rest.high.item() < most + 1e-12 and most <= -found.rest.low.item() < most + 1e-12


def test_a_parabola_is_used_where_it_leaves_less_than_half() -> None:
    s = Sketch()
    graph = s.graph(u=s("tanh", s.input("x", 1)))
    small, wide = (curved_slopes(graph, cells([0.5 - r], [0.5 + r])).output for r in (0.01, 3.0))
    assert isinstance(small, Curved) and isinstance(wide, Curved) and small.model is not None and wide.model is not None
    assert small.model.bend is not None and wide.model.bend is None
    assert np.isclose(small.model.bend.low, -2 * np.tanh(0.5) * (1 - np.tanh(0.5) ** 2), rtol=1e-3).all()
    both = curved_slopes(s.graph(u=1), Cells(np.array([[0.49], [-2.5]]), np.array([[0.51], [3.5]]), np.arange(1))).output
    assert isinstance(both, Curved) and both.model is not None and both.model.bend is not None
    assert abs(both.model.bend.low[0, 0, 0, 0]) > 0.5 and abs(both.model.bend.low[0, 0, 1, 0]) < 1e-200


def test_numbers_near_zero_are_moved_outwards() -> None:
    tiny = 2.0**-1060
    found = _without_subnormals(Interval(np.array([-tiny, tiny, 0.0, -1.0]), np.array([tiny, 2 * tiny, 0.0, 1.0])))
    assert found.low[0] == -(2.0**-900) and found.high[0] == 2.0**-900 and found.low[1] == 0 and found.high[1] == 2.0**-900
    assert found.low[2] == found.high[2] == 0 and found.low[3] == -1 and found.high[3] == 1
    found = _without_subnormals(Interval(np.array([-1.0, -tiny, -2.0, tiny]), np.array([tiny, 1.0, -tiny, 3.0])))
    assert found.low.tolist() == [-1, -(2.0**-900), -2, 0] and found.high.tolist() == [2.0**-900, 1, 0, 3]


def test_what_is_narrowed() -> None:
    known = Interval(np.array([0.0, 0, np.nan, -1]), np.array([4.0, 4, np.nan, 1]))
    found = _narrowed(known, Interval(np.array([1.0, 1, 1, np.nan]), np.array([2.0, 9, 2, np.nan])), np.array([0.5, 0.5, 1, 1]))
    assert np.allclose(found.low[:2], 0.5) and np.allclose(found.high[:2], [2.5, 4]) and found.low[0] < 0.5 and found.high[0] > 2.5
    assert np.isnan(found.low[2]) and found.low[3] == -1 and found.high[3] == 1


@pytest.mark.parametrize(("low", "high", "play"), [(-1, 3, 0.75), (-3, 1, 0.75), (1, 3, 0), (-3, -1, 0)])
def test_the_slopes_of_a_kink_are_as_far_from_the_chord_as_they_may_be(low: float, high: float, play: float) -> None:
    s = Sketch()
    found = curved_slopes(s.graph(u=s("relu", s.input("x", 1))), cells([low], [high])).output
    assert isinstance(found, Curved) and found.model is not None
    assert abs(found.model.play[0, 0, 0] - play) < 1e-12 and found.model.bend is None


def test_slopes_and_values_are_narrowed_to_what_the_model_allows() -> None:
    made = Operands(0, 2)
    made.algebra._radius = np.full((1, 1, 1), 0.5)
    numbers = {"linear": 2.0, "bend": 3.0, "error": 0.25, "play": 0.125}
    linear, bend = (iv.point(np.full(shape, numbers[name])) for name, shape in (("linear", (1, 1, 1)), ("bend", (1, 1, 1, 1))))
    model = made.algebra._model(one(7.0), linear, bend, np.full((1, 1), 0.25), np.full((1, 1, 1), 0.125))
    wide = made.signal(model)
    found = made.algebra._with(
        Curved(wide.value, wide.centre, Interval(-1e9 * bend.low[0], 1e9 * bend.low[0]), linear, wide.error, None), model
    )
    low, high = exactly(found.slope.low), exactly(found.slope.high)
    assert low <= F(2) - F(13, 8) and high >= F(2) + F(13, 8) and high - low < F(26, 8) + F(1, 10**9)  # 3 / 2 and 1 / 8
    low, high = exactly(found.value.low), exactly(found.value.high)
    assert low <= F(7) - F(13, 8) and high >= F(7) + F(13, 8) and high - low < F(26, 8) + F(1, 10**9)  # 1, 3 / 8 and 1 / 4


def test_squares_of_slopes_that_are_not_known_exactly() -> None:
    made = Operands(1, 2)
    for low, high in ((1.0, 2.0), (-2.0, -1.0), (-1.0, 2.0)):
        linear = Interval(np.full((1, 1, 1), low), np.full((1, 1, 1), high))
        model = made.algebra._model(one(0), linear, None, np.zeros((1, 1)), np.zeros((1, 1, 1)))
        found = made.algebra._composed(model, Taylor(np.ones((1, 1)), one(0), *np.zeros((2, 1, 1)), np.full((1, 1), 3.0)))
        squares = [a * b for a in (low, high) for b in (low, high)]
        assert found.bend is not None and abs(found.bend.low.item() - 3 * min(squares)) < 1e-12
        assert abs(found.bend.high.item() - 3 * max(squares)) < 1e-12
        other = made.algebra._model(one(0), iv.point(np.ones((1, 1, 1))), None, np.zeros((1, 1)), np.zeros((1, 1, 1)))
        for pair in ((model, other), (other, model)):
            product = made.algebra.mul(*map(made.signal, pair)).model
            assert abs(product.bend.low.item() - 2 * low) < 1e-12 and abs(product.bend.high.item() - 2 * high) < 1e-12


def test_where_an_operand_has_no_model_neither_has_the_result() -> None:
    s = Sketch()
    x = s.input("x", 2)
    s.tensors.update(D=np.array([[0.25, -0.5], [0.5, 0.0]]), metric=np.ones(2))
    z = s("implicit", x, weight="D", metric="metric", activation="tanh")
    half = s("select", z, indices=(1, 0))
    results = [s("neg", z), s("add", z, x), s("add", x, z), s("mul", z, x), s("mul", x, z), s("tanh", z), half, s("mul", z, s.constant(2))]
    results += [s("concatenate", x, z), s("affine", z, weight="D", bias=None), s("add", s.constant(3), z), s("max", x, z)]
    for result in results:
        graph, box = s.graph(u=result), cells([0.1, -0.2], [0.3, 0.1])
        found, plain = curved_slopes(graph, box).output, local_slopes(graph, box).output
        assert getattr(found, "model", None) is None
        for a, b in ((found.value, plain.value), (found.slope, plain.slope)):
            assert np.allclose(a.low, b.low, atol=1e-12) and np.allclose(a.high, b.high, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_parts_of_signals_keep_their_models(order: int) -> None:
    s = Sketch()
    x = s.input("x", 2)
    y = s("concatenate", s.constant(5), s("tanh", x), s("select", x, indices=(0,)))
    graphs, models = (s.graph(u=y), s.graph(u=s("select", y, indices=(2, 3, 0))), s.graph(u=2)), []
    for graph in graphs:
        algebra = CurvedAlgebra(cells([0.1, -0.2], [0.3, 0.1]))
        algebra.order = order
        output = algebra.whole(graph).output
        assert isinstance(output, Curved) and output.model is not None
        models.append(output.model)
    a, b, tanh = models
    assert a.centre.low[0, 0] == a.centre.high[0, 0] == 5 and (a.linear.low[:, 0, 0] == 0).all() and (a.play[:, 0, 0] == 0).all()
    names = ["centre", "linear", "bend", "twist"][: order + 1]
    assert (a.twist is None) is (order == 2)
    for name, end in itertools.product(names, ("low", "high")):
        whole, inside, part = (getattr(getattr(model, name), end) for model in (a, tanh, b))
        assert (whole[..., 1:3] == inside).all() and (part == whole[..., [2, 3, 0]]).all()
    for inside, outside, part in ((a.error, tanh.error, b.error), (a.play, tanh.play, b.play)):
        assert (inside[..., 1:3] == outside).all() and (part == inside[..., [2, 3, 0]]).all()
    for degree in range(order):
        for of in (lambda model: model.sizes, lambda model: model.swings):
            assert (of(a)[degree][..., 1:3] == of(tanh)[degree]).all() and (of(b)[degree] == of(a)[degree][..., [2, 3, 0]]).all()
    assert (a.linear.low[:, 0, 3] == [1, 0]).all() and a.error[0, 3] == 0
    for part in [a.bend, a.twist][: order - 1]:
        assert part is not None and (part.magnitude[..., 3] < 1e-200).all() and (part.magnitude[..., 0] < 1e-200).all()


def test_parts_that_are_all_curved_stay_curved() -> None:
    s = Sketch()
    x = s.input("x", 1)
    tanh, sin = s("tanh", x), s("sin", x)
    joined, box = s.graph(u=s("concatenate", tanh, sin)), cells([0.4], [0.6])
    found = curved_slopes(joined, box).output
    assert isinstance(found, Curved) and found.model is not None and found.model.bend is not None
    for place, node in enumerate((tanh, sin)):
        alone = curved_slopes(s.graph(u=node), box).output
        assert isinstance(alone, Curved) and alone.model is not None and alone.model.bend is not None
        assert (found.model.bend.low[..., place] == alone.model.bend.low[..., 0]).all() and alone.model.bend.high.max() < 0
