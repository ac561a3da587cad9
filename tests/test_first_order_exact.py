"""Models of signals to second order, operation by operation: every bound against exact rational numbers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb, arb_series
from loops import Sketch
from test_first_order_slopes import SERIES, cells

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.curved import Curved, CurvedAlgebra, Model, _narrowed, _parabola, _without_subnormals, curved_slopes
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

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.radius = float(self.random.uniform(0.5, 2))
        self.algebra = CurvedAlgebra(cells([-1], [1]))
        self.algebra._radius = np.full((1, 1, 1), self.radius)

    def number(self, positive: bool = False) -> float:
        x = float(self.random.uniform(0.5, 2)) * (self.random.random() < 0.6)
        return x if positive or self.random.random() < 0.5 else -x

    def model(self) -> Model:
        linear, bend = one(self.number()), one(self.number())
        linear, bend = (Interval(end.low[None], end.high[None]) for end in (linear, bend))
        bend = None if self.random.random() < 0.2 else Interval(bend.low[None], bend.high[None])
        error, play = np.full((1, 1), self.number(True)), np.full((1, 1, 1), self.number(True))
        return self.algebra._model(one(self.number()), linear, bend, error, play)

    def signal(self, model: Model) -> Curved:
        wide = Interval(np.full((1, 1), -1e9), np.full((1, 1), 1e9))
        return Curved(wide, model.centre, model.linear, model.linear, np.full((1, 1), 1e9), model)


def exactly(x: Any) -> F:
    return F(float(np.asarray(x).ravel()[0]))


class Exact:
    """The numbers of a model, and what they are at most."""

    def __init__(self, model: Model, radius: float) -> None:
        r = F(radius)
        self.centre, self.linear = exactly(model.centre.low), exactly(model.linear.low)
        self.bend = F(0) if model.bend is None else exactly(model.bend.low)
        self.error, self.play = exactly(model.error), exactly(model.play)
        self.spread, self.swing, self.sag = abs(self.linear) * r, abs(self.bend) * r, abs(self.bend) * r * r / 2
        self.off = self.sag + self.error


def bounds(found: Any, exact: F) -> None:
    assert exact <= exactly(found) <= exact * (1 + F(1, 10**12)) + F(1, 10**100), (float(exactly(found) - exact), float(exact))


def encloses(found: Interval | None, exact: F) -> None:
    if found is None:
        assert exact == 0
        return
    low, high = exactly(found.low), exactly(found.high)
    assert low <= exact <= high and high - low <= F(1, 10**13)


def gained(x: Exact, size: F, certain: F, doubt: F) -> F:
    return (size + certain + doubt) * x.play + doubt * (abs(x.linear) + x.swing) + certain * x.swing


@pytest.mark.parametrize("seed", range(60))
def test_products_of_models_in_exact_numbers(seed: int) -> None:
    made = Operands(seed)
    x, y = made.model(), made.model()
    found = made.algebra.mul(made.signal(x), made.signal(y)).model
    a, b = Exact(x, made.radius), Exact(y, made.radius)
    bounds(found.error, abs(a.centre) * b.error + abs(b.centre) * a.error + a.spread * b.off + a.off * b.spread + a.off * b.off)
    bounds(found.play, gained(b, abs(a.centre), a.spread, a.off) + gained(a, abs(b.centre), b.spread, b.off))
    encloses(found.centre, a.centre * b.centre)
    encloses(Interval(found.linear.low[0], found.linear.high[0]), a.centre * b.linear + b.centre * a.linear)
    encloses(found.bend, a.centre * b.bend + b.centre * a.bend + 2 * a.linear * b.linear)
    bounds(found.swing, abs(exactly(found.bend.magnitude)) * F(made.radius))
    bounds(found.sag, abs(exactly(found.bend.magnitude)) * F(made.radius) ** 2 / 2)


@pytest.mark.parametrize("seed", range(60))
def test_sums_and_multiples_of_models_in_exact_numbers(seed: int) -> None:
    made = Operands(seed)
    x, y, factor = made.model(), made.model(), made.number()
    a, b = Exact(x, made.radius), Exact(y, made.radius)
    found = made.algebra.add(made.signal(x), made.signal(y)).model
    bounds(found.error, a.error + b.error)
    bounds(found.play, a.play + b.play)
    encloses(found.bend, a.bend + b.bend)
    constant = local_slopes_of(factor)
    for operands in ((made.signal(x), constant), (constant, made.signal(x))):
        scaled, moved = made.algebra.mul(*operands).model, made.algebra.add(*operands).model
        bounds(scaled.error, abs(F(factor)) * a.error)
        bounds(scaled.play, abs(F(factor)) * a.play)
        encloses(scaled.bend, F(factor) * a.bend)
        encloses(scaled.centre, F(factor) * a.centre)
        encloses(moved.centre, F(factor) + a.centre)
        assert exactly(moved.error) == a.error and exactly(moved.play) == a.play and exactly(moved.linear.low) == a.linear
    opposite = made.algebra.neg(made.signal(x)).model
    assert exactly(opposite.centre.low) == -a.centre and exactly(opposite.linear.high) == -a.linear
    assert opposite.error is x.error and opposite.play is x.play and opposite.swing is x.swing and opposite.sag is x.sag


def local_slopes_of(value: float) -> Any:
    """A constant."""
    s = Sketch()
    s.input("x", 1)
    return local_slopes(s.graph(u=s.constant(F(value))), cells([-1], [1])).output


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("curved", [False, True])
def test_functions_of_models_in_exact_numbers(seed: int, curved: bool) -> None:
    made = Operands(seed)
    x, factor, curve, doubt = made.model(), made.number(), made.number(), made.number(True)
    low = made.number()
    rest, middle = Interval(np.full((1, 1), low), np.full((1, 1), low + made.number(True))), made.number()
    more = (np.full((1, 1), middle), np.full((1, 1), curve)) if curved else ()
    found = made.algebra._composed(x, np.full((1, 1), factor), rest, np.full((1, 1), doubt), *more)
    a, s, b = Exact(x, made.radius), F(factor), F(curve) if curved else F(0)
    off = abs(a.centre - F(middle)) + a.off
    half = (exactly(rest.high) - exactly(rest.low)) / 2
    bounds(found.error, abs(s) * a.error + half + abs(b) / 2 * off * (2 * a.spread + off))
    bounds(found.play, gained(a, abs(s), abs(b) * a.spread, F(doubt) + abs(b) * off))
    encloses(found.centre, s * a.centre + (exactly(rest.high) + exactly(rest.low)) / 2)
    encloses(found.bend, s * a.bend + b * a.linear**2)


@pytest.mark.parametrize("op", ["tanh", "gelu", "exp", "silu"])
def test_a_parabola_and_the_slopes_that_it_leaves(op: str) -> None:
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
        curve, factor, rest, doubt = (x for x in _parabola(np.full((1, 1), at), v, function, quotients, higher))
        b, f = arb(float(curve[0, 0])), arb(float(factor[0, 0]))
        points = [arb(low) + (arb(high) - arb(low)) * i / 16 for i in range(17)]
        for t in points:
            series = SERIES[op](arb_series([t, 1], prec=3))
            left, slope = series[0] - f * t - b * (t - at) ** 2 / 2, series[1] - f - b * (t - at)
            assert not left < arb(float(rest.low[0, 0])) and not left > arb(float(rest.high[0, 0]))
            assert not abs(slope) > arb(float(doubt[0, 0]))
        reach = max(high - at, at - low)
        third = max(abs(float(6 * SERIES[op](arb_series([t, 1], prec=4))[3].mid())) for t in points)
        assert float(doubt[0, 0]) <= (1.5 if op in ("tanh", "exp") else 3) * third * reach**2 / 2 + 1e-12


def test_a_second_derivative_between_two_floats_counts_on_both_sides() -> None:
    u = 2.0**-53
    between = Interval(np.ones((1, 1)), np.full((1, 1), 1 + 2 * u))  # the parabola takes 1
    zero, v = one(0), Interval(np.full((1, 1), -1.0), np.ones((1, 1)))
    curve, factor, rest, doubt = _parabola(np.zeros((1, 1)), v, lambda t: zero, lambda t: zero, lambda t: (between, zero))
    assert curve.item() == 1 and doubt.item() - abs(factor.item()) >= 2 * u and min(-rest.low.item(), rest.high.item()) >= 2 * u


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
    made = Operands(0)
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
    made = Operands(1)
    for low, high in ((1.0, 2.0), (-2.0, -1.0), (-1.0, 2.0)):
        linear = Interval(np.full((1, 1, 1), low), np.full((1, 1, 1), high))
        model = made.algebra._model(one(0), linear, None, np.zeros((1, 1)), np.zeros((1, 1, 1)))
        found = made.algebra._composed(model, np.ones((1, 1)), one(0), np.zeros((1, 1)), np.zeros((1, 1)), np.full((1, 1), 3.0))
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


def test_parts_of_signals_keep_their_models() -> None:
    s = Sketch()
    x = s.input("x", 2)
    y = s("concatenate", s.constant(5), s("tanh", x), s("select", x, indices=(0,)))
    whole, box = s.graph(u=y), cells([0.1, -0.2], [0.3, 0.1])
    part = s.graph(u=s("select", y, indices=(2, 3, 0)))
    found, taken = curved_slopes(whole, box).output, curved_slopes(part, box).output
    alone = curved_slopes(s.graph(u=2), box).output
    assert isinstance(found, Curved) and isinstance(taken, Curved) and isinstance(alone, Curved)
    a, b, tanh = found.model, taken.model, alone.model
    assert a is not None and b is not None and tanh is not None and a.bend is not None and b.bend is not None and tanh.bend is not None
    assert a.centre.low[0, 0] == a.centre.high[0, 0] == 5 and (a.linear.low[:, 0, 0] == 0).all() and (a.play[:, 0, 0] == 0).all()
    for inside, outside in ((a.centre, tanh.centre), (a.linear, tanh.linear), (a.bend, tanh.bend)):
        assert (inside.low[..., 1:3] == outside.low).all() and (inside.high[..., 1:3] == outside.high).all()
    assert (a.error[:, 1:3] == tanh.error).all() and (a.play[..., 1:3] == tanh.play).all() and (a.swing[..., 1:3] == tanh.swing).all()
    assert (a.linear.low[:, 0, 3] == [1, 0]).all() and a.error[0, 3] == 0 and (np.abs(a.bend.magnitude[..., 3]) < 1e-200).all()
    for end in ("low", "high"):
        for name in ("centre", "linear", "bend"):
            assert (getattr(getattr(b, name), end) == getattr(getattr(a, name), end)[..., [2, 3, 0]]).all()
    for name in ("error", "play", "swing", "sag"):
        assert (getattr(b, name) == getattr(a, name)[..., [2, 3, 0]]).all()


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
