"""Exact and ball arithmetic, operation by operation: the number that comes out, what is refused, and what the work costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx, fmpq

from lipctrl.certificates.checker import balls as ball_arithmetic
from lipctrl.certificates.checker import exact as exact_arithmetic
from lipctrl.certificates.checker.balls import PRECISION, BallAlgebra, ball, evaluate_balls
from lipctrl.certificates.checker.exact import MAX_BITS, MAX_TOTAL_BITS, ExactAlgebra, Inexact, evaluate_exact
from lipctrl.certificates.checker.graph import Graph, Node

F = Fraction
LONGEST = F(2 ** (MAX_BITS - 1))  #: MAX_BITS bits


def spent(algebra: ExactAlgebra) -> int:
    return MAX_TOTAL_BITS - algebra._bits_left


# --- exact: limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, x: a.add(x, (F(0),)),
        lambda a, x: a.sub(x, (F(0),)),
        lambda a, x: a.mul(x, (F(1),)),
        lambda a, x: a.div(x, (F(1),)),
        lambda a, x: a.min(x, x),
        lambda a, x: a.max(x, x),
        lambda a, x: a.power(x, 1),
        lambda a, x: a.clip(x, x, x),
        lambda a, x: a.leaky_relu(x, F(1)),
        lambda a, x: a.group_sort(x, 2),
        lambda a, x: a.sqrt(tuple(v * v for v in x)),
    ],
)
def test_numbers_may_have_so_many_bits_and_no_more(operation: Callable[[ExactAlgebra, tuple[F, ...]], object]) -> None:
    for allowed in (LONGEST, 1 / LONGEST, LONGEST / (LONGEST - 1)):
        assert operation(ExactAlgebra(), (allowed,)) == (allowed,)
    for too_long in (2 * LONGEST, 1 / (2 * LONGEST), (2 * LONGEST) / 3, 3 / (2 * LONGEST)):
        with pytest.raises(Inexact, match="bits"):
            operation(ExactAlgebra(), (F(1), too_long))


def test_work_is_counted_in_bits() -> None:
    x, y = (F(5), F(1, 8)), (F(3, 4), F(7))  # 3 + 1 and 1 + 4 bits
    for operation, result in (
        ("add", (F(23, 4), F(57, 8))),
        ("sub", (F(17, 4), F(-55, 8))),
        ("mul", (F(15, 4), F(7, 8))),
        ("div", (F(20, 3), F(1, 56))),
        ("min", (F(3, 4), F(1, 8))),
        ("max", (F(5), F(7))),
    ):
        algebra = ExactAlgebra()
        assert getattr(algebra, operation)(x, y) == result
        assert spent(algebra) == sum(v.numerator.bit_length() + v.denominator.bit_length() for v in result)
    for group_size, times in ((1, 1), (2, 2), (3, 2), (4, 3), (100, 3)):
        algebra = ExactAlgebra()
        algebra.group_sort((F(1), F(1), F(1), F(1)), group_size)
        assert spent(algebra) == times * 8  # each number has one bit above and one below
    for bits in (1, 14, 15, 16, 30, 31, 32):
        algebra = ExactAlgebra()
        algebra.affine((F(2 ** (bits - 1)), F(0), F(1, 2)), np.zeros((2, 3)), None)
        assert spent(algebra) == 6 * (1 + (bits + 1) // 16) + 2  # twice the numbers are whole; the two results are 0/1
    algebra = ExactAlgebra()
    algebra.affine((F(2**15 - 1), F(3)), np.zeros((1, 2)), None)
    assert spent(algebra) == 2 + 1


def test_work_ends_where_the_count_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (2, 6):  # 1/1 has 2 bits and 7/1 has 4
        monkeypatch.setattr(exact_arithmetic, "MAX_TOTAL_BITS", limit)
        algebra = ExactAlgebra()
        assert algebra.add((F(1),), (F(0),)) == (1,)
        if limit == 6:
            assert algebra.add((F(3),), (F(4),)) == (7,)
        assert algebra._bits_left == 0
        with pytest.raises(Inexact, match="more than"):
            algebra.add((F(1),), (F(-1),))


def test_one_evaluation_has_one_count(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (Node("input", (), {"name": "x", "size": 1}), Node("add", (0, 0)), Node("add", (1, 1)))
    graph = Graph(nodes, {"y": 2})
    monkeypatch.setattr(exact_arithmetic, "MAX_TOTAL_BITS", 3 + 4)  # 2/1 and 4/1
    for _ in range(2):
        assert evaluate_exact(graph, {"x": (F(1),)}) == {"y": (F(4),)}
    monkeypatch.setattr(exact_arithmetic, "MAX_TOTAL_BITS", 3 + 3)
    with pytest.raises(Inexact):
        evaluate_exact(graph, {"x": (F(1),)})


class Unpowered(Fraction):
    """A number that must not be raised to a power."""

    def __pow__(self, other: object) -> Fraction:  # type: ignore[override]
        raise AssertionError("a power was computed")


def test_powers_that_would_be_too_long_are_not_computed() -> None:
    algebra = ExactAlgebra()
    for base in (F(2**40), F(1, 2**40), F(-(2**40))):
        for x in ((Unpowered(base),), (Unpowered(1), Unpowered(base))):
            with pytest.raises(Inexact, match="bits"):
                algebra.power(x, 1000)
    assert algebra.power((F(1), F(-1)), 2 * MAX_BITS) == (1, 1)
    with pytest.raises(Inexact):
        algebra.power((F(1),), 2 * MAX_BITS + 1)
    assert algebra.power((F(-2, 3), F(0)), 3) == (F(-8, 27), 0) and algebra.power((F(0), F(5)), 0) == (1, 1)


# --- exact: values ------------------------------------------------------------------------------------------------------


def test_rules_at_zero_hold_for_every_entry() -> None:
    algebra = ExactAlgebra()
    for name, value in (
        ("sin", 0),
        ("cos", 1),
        ("tan", 0),
        ("exp", 1),
        ("erf", 0),
        ("tanh", 0),
        ("sigmoid", F(1, 2)),
        ("gelu", 0),
        ("silu", 0),
    ):
        rule = getattr(algebra, name)
        assert rule((F(0), F(0), F(0))) == (value,) * 3
        for x in ((F(0), F(1)), (F(1), F(0)), (F(1), F(1))):
            with pytest.raises(Inexact, match=name):
                rule(x)
    with pytest.raises(Inexact, match="softplus"):
        algebra.softplus((F(0),))
    assert algebra.log((F(1), F(1))) == (0, 0)
    for x in ((F(1), F(2)), (F(2), F(1)), (F(0),)):
        with pytest.raises(Inexact, match="log"):
            algebra.log(x)


def test_exact_operations_on_both_signs() -> None:
    algebra, x = ExactAlgebra(), (F(-2), F(0), F(1, 3))
    assert algebra.neg(x) == (2, 0, F(-1, 3)) and algebra.abs(x) == (2, 0, F(1, 3)) and algebra.relu(x) == (0, 0, F(1, 3))
    assert algebra.leaky_relu(x, F(1, 4)) == (F(-1, 2), 0, F(1, 3)) and algebra.leaky_relu(x, F(-1)) == (2, 0, F(1, 3))
    assert algebra.clip(x, (F(-1),) * 3, (F(0), F(1), F(1, 4))) == (-1, 0, F(1, 4))
    assert algebra.select(x, (2, 0)) == (F(1, 3), -2) and algebra.concatenate(x, (F(9),)) == (*x, 9) and algebra.constant(x) is x
    assert algebra.group_sort((F(2), F(1), F(0), F(-1), F(-3)), 3) == (0, 1, 2, -3, -1)
    assert algebra.add(x, (F(1),)) == (-1, 1, F(4, 3)) == algebra.add((F(1),), x)
    assert algebra.sub((F(1),), x) == (3, 1, F(2, 3)) and algebra.sub(x, x) == (0, 0, 0)
    for divisor in ((F(1), F(0), F(2)), (F(0),)):
        with pytest.raises(Inexact, match="zero"):
            algebra.div(x, divisor)
    assert algebra.sqrt((F(0), F(9, 4))) == (0, F(3, 2))
    for bad, message in ((F(-1), "negative"), (F(2), "square"), (F(1, 2), "square"), (F(4, 3), "square"), (F(2, 9), "square")):
        with pytest.raises(Inexact, match=message):
            algebra.sqrt((F(1), bad))


def test_exact_affine_maps() -> None:
    weight = np.array([[1.0, -2.0, 0.0], [2.0**-1074, 2.0**1000, 0.1]])
    algebra, x = ExactAlgebra(), (F(1, 3), F(0), F(-1, 4))
    assert algebra.affine(x, weight, None) == (F(1, 3), F(2**-1074) / 3 - F(0.1) / 4)
    assert algebra.affine(x, weight, np.array([1.0, -1.0])) == (F(4, 3), F(2**-1074) / 3 - F(0.1) / 4 - 1)
    assert algebra.affine((F(0),) * 3, weight, None) == (0, 0) and algebra.affine((F(0),) * 3, weight, np.array([3.0, 0.1])) == (3, F(0.1))
    assert algebra.affine((F(3), F(5), F(7)), weight[:1].astype(np.float32), None) == (-7,)
    assert algebra.affine((F(0), F(0), F(7)), weight[:1], None) == (0,)
    half = 1 / LONGEST
    assert algebra.affine((half,), np.zeros((1, 1)), None) == (0,)
    with pytest.raises(Inexact, match="bits"):
        algebra.affine((half / 2,), np.zeros((1, 1)), None)
    with pytest.raises(Inexact, match="bits"):  # each is short, but not their common denominator
        algebra.affine((1 / F(2**9000), 1 / F(3**6000)), np.zeros((1, 2)), None)


def test_operands_of_other_lengths_are_refused() -> None:
    """A graph has none; what calls an algebra in another way gets no shortened answer."""
    x, y = (F(1), F(2)), (F(1), F(2), F(3))
    exact, in_balls = ExactAlgebra(), BallAlgebra()
    long, short = [arb(1)] * 3, [arb(1)] * 2
    for call in (
        lambda: exact.add(x, y),
        lambda: exact.clip(y, x, y),
        lambda: exact.clip(y, y, x),
        lambda: exact.affine(y, np.ones((2, 2)), None),
        lambda: exact.affine(x, np.ones((2, 3)), None),
        lambda: exact.affine(x, np.ones((2, 2)), np.ones(1)),
        lambda: in_balls.add(long, short),
        lambda: in_balls.clip(long, x, y),
        lambda: in_balls.clip(long, y, x),
        lambda: in_balls.affine(long, np.ones((2, 2)), None),
        lambda: in_balls.affine(short, np.ones((2, 3)), None),
    ):
        with pytest.raises(ValueError):
            call()


def test_recentred_values() -> None:
    nodes = (Node("input", (), {"name": "x", "size": 2}), Node("abs", (0,)))
    inner, offset = Graph(nodes, {"y": 1}), np.zeros(2)
    algebra, point = ExactAlgebra(), (F(1), F(-1))
    assert algebra.recentre(point, inner, point, offset) == (0, 0) and spent(algebra) == 0
    assert algebra.recentre((F(3), F(-1)), inner, point, offset) == (2, 0)
    with ctx.workprec(100):
        assert [v.mid() for v in BallAlgebra().recentre([arb(3), arb(-1)], inner, point, offset)] == [2, 0]


# --- balls --------------------------------------------------------------------------------------------------------------


def ends(x: arb) -> tuple[float, float]:
    return float(x.lower()), float(x.upper())


def close(x: arb, low: float, high: float) -> bool:
    """Whether a ball is an interval, up to the few bits of its radius (30) that rounding may lose."""
    return (
        ends(x) == pytest.approx((low, high), rel=1e-7, abs=1e-7) and float(x.lower()) <= low + 1e-15 and float(x.upper()) >= high - 1e-15
    )


WIDE = [arb(1, 2), arb(-3, 0.5), arb(4, 1)]  #: -1..3, -3.5..-2.5, 3..5


def test_operations_on_wide_balls() -> None:
    algebra = BallAlgebra()
    expected: dict[str, list[tuple[float, float]]] = {
        "neg": [(-3, 1), (2.5, 3.5), (-5, -3)],
        "abs": [(0, 3), (2.5, 3.5), (3, 5)],
        "relu": [(0, 3), (0, 0), (3, 5)],
        "tanh": [(math.tanh(a), math.tanh(b)) for a, b in map(ends, WIDE)],
        "exp": [(math.exp(a), math.exp(b)) for a, b in map(ends, WIDE)],
        "erf": [(math.erf(a), math.erf(b)) for a, b in map(ends, WIDE)],
        "sigmoid": [(1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))) for a, b in map(ends, WIDE)],
    }
    for name, intervals in expected.items():
        for found, (low, high) in zip(getattr(algebra, name)(WIDE), intervals, strict=True):
            assert float(found.lower()) <= low + 1e-15 and float(found.upper()) >= high - 1e-15, name
            assert found.upper() - found.lower() <= 2 * (high - low) + 0.01, name
    slopes = algebra.leaky_relu(WIDE, F(1, 2))
    assert float(slopes[0].lower()) <= -0.5 and float(slopes[0].upper()) >= 3
    assert close(slopes[1], -1.75, -1.25) and close(slopes[2], 3, 5)
    for found, (low, high) in zip(algebra.softplus(WIDE), map(ends, WIDE), strict=True):
        assert float(found.lower()) <= math.log1p(math.exp(low)) and math.log1p(math.exp(high)) <= float(found.upper()) < high + 1.5 + 4 * (
            low < 0
        )
    clipped = algebra.clip(WIDE, (F(0), F(-3), F(1, 3)), (F(2), F(0), F(1)))
    assert close(clipped[0], 0, 2) and close(clipped[1], -3, -2.5) and close(clipped[2], 1, 1)
    assert algebra.min(WIDE, [arb(0)])[0].lower() <= -1 and float(algebra.min(WIDE, [arb(0)])[0].upper()) == pytest.approx(0, abs=1e-7)
    assert float(algebra.max(WIDE, [arb(0)])[0].upper()) >= 3 and float(algebra.max(WIDE, [arb(0)])[0].lower()) == pytest.approx(
        0, abs=1e-7
    )


def test_arithmetic_of_balls() -> None:
    algebra, x, y = BallAlgebra(), [arb(6, 1), arb(-2)], [arb(2)]
    for name, values in (
        ("add", [(7, 9), (0, 0)]),
        ("sub", [(3, 5), (-4, -4)]),
        ("mul", [(10, 14), (-4, -4)]),
        ("div", [(2.5, 3.5), (-1, -1)]),
    ):
        assert all(close(v, *interval) for v, interval in zip(getattr(algebra, name)(x, y), values, strict=True)), name
    assert [float(v.mid()) for v in algebra.sub(y, x)] == [-4, 4] and len(algebra.mul(x, x)) == 2
    assert [float(v.mid()) for v in algebra.select(x, (1, 0, 1))] == [-2, 6, -2] and len(algebra.concatenate(x, y, x)) == 5
    affine = algebra.affine([arb(3), arb(5), arb(7, 1)], np.array([[1.0, 10.0, 100.0], [0.5, 0.0, -1.0]]), np.array([1000.0, 0.25]))
    assert close(affine[0], 1653, 1853) and close(affine[1], -6.25, -4.25) and len(affine) == 2
    plain = algebra.affine([arb(3), arb(5), arb(7, 1)], np.array([[1.0, 10.0, 100.0]]), None)
    assert close(plain[0], 653, 853) and len(plain) == 1


@pytest.mark.parametrize("exponent", range(9))
def test_powers_of_balls(exponent: int) -> None:
    for low, high in ((-2, 3), (-3, 2), (-3, -2), (2, 3), (0, 2), (1.5, 1.5), (-1.5, -1.5)):
        (found,) = BallAlgebra().power([arb((low + high) / 2, (high - low) / 2)], exponent)
        values = [low**exponent, high**exponent] + [0] * (low < 0 < high and exponent > 0)
        assert float(found.lower()) <= min(values) and float(found.upper()) >= max(values)
        greatest = max(abs(low), abs(high)) ** exponent
        assert abs(found).upper() <= greatest * (1 + 1e-7)
    assert not BallAlgebra().power([arb.nan()], exponent)[0].is_finite()


def test_sorted_balls_are_ranked_end_by_end() -> None:
    found = BallAlgebra().group_sort([arb(2, 1), arb(0, 0.5), arb(1, 2), arb(7), arb(6)], 3)
    assert all(close(v, *interval) for v, interval in zip(found, [(-1, 0.5), (-0.5, 3), (1, 3), (6, 6), (7, 7)], strict=True))
    for place in range(3):
        group = [arb(1), arb(2), arb(3)]
        group[place] = arb.nan()
        sorted_group = BallAlgebra().group_sort([*group, arb(5), arb(4)], 3)
        assert [v.is_finite() for v in sorted_group] == [False] * 3 + [True] * 2


def test_products_of_error_functions() -> None:
    for x in (-3.0, -0.5, 0.0, 0.5, 2.0):
        (gelu,), (silu,) = BallAlgebra().gelu([arb(x)]), BallAlgebra().silu([arb(x)])
        assert float(gelu) == pytest.approx(x * (1 + math.erf(x / math.sqrt(2))) / 2, rel=1e-14)
        assert float(silu) == pytest.approx(x / (1 + math.exp(-x)), rel=1e-14)


def test_increasing_functions_take_the_ends_of_wide_balls() -> None:
    """Of a ball of radius 1 or more; below, arb's own answer is used, and is as good."""
    seen: list[arb] = []

    def twice(x: arb) -> arb:
        seen.append(x)
        return 2 * x

    assert close(ball_arithmetic._increasing(twice, arb(3, 1)), 4, 8) and len(seen) == 2
    assert close(ball_arithmetic._increasing(twice, arb(3, 0.75)), 4.5, 7.5) and len(seen) == 3
    assert not ball_arithmetic._increasing(arb.tanh, arb.nan()).is_finite()


def test_balls_of_numbers_and_precision() -> None:
    with ctx.workprec(64):
        assert ball(0.1).rad() == 0 and ball(0.1).mid().fmpq() == fmpq(*(0.1).as_integer_ratio())
        assert ball(F(1, 3)).contains(fmpq(1, 3)) and 0 < ball(F(1, 3)).rad() < 2.0**-60
    graph = Graph(
        (Node("input", (), {"name": "x", "size": 1}), Node("constant", attributes={"values": (F(1, 3),)}), Node("mul", (0, 1))), {"y": 2}
    )
    before = ctx.prec
    (fine,), (coarse,) = evaluate_balls(graph, {"x": [arb(1)]})["y"], evaluate_balls(graph, {"x": [arb(1)]}, 40)["y"]
    assert ctx.prec == before and fine.rad() < 2.0 ** (5 - PRECISION) < 2.0**-45 < coarse.rad() < 2.0**-35
    for inputs in ({}, {"x": [arb(1), arb(1)]}, {"z": [arb(1)]}):
        with pytest.raises(ValueError, match="names and lengths"):
            evaluate_balls(graph, inputs)
        with pytest.raises(ValueError, match="names and lengths"):
            evaluate_exact(graph, inputs)
