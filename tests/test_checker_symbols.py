"""Affine forms with symbols: the same numbers e(x) in [-1, 1] make every value, exactly, and what cancels does cancel."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from test_local_lipschitz import ACTIVATIONS, all_values, network, random_network

from lipctrl.certificates.checker import intervals as iv
from lipctrl.certificates.checker.enclosure import Remembered
from lipctrl.certificates.checker.intervals import Interval
from lipctrl.certificates.checker.local_slopes import Cells, Local, LocalAlgebra, entering
from lipctrl.certificates.checker.sorts import without_sorts
from lipctrl.certificates.checker.symbols import SymbolAlgebra

KINKS = ("relu", "abs", "leaky_relu", "clip")


def box(low, high):
    low, high = np.array([low], dtype=float), np.array([high], dtype=float)
    return Cells(low, high, np.flatnonzero(low[0] < high[0]))


class Keeping(SymbolAlgebra):
    """Keeps the form of every node, and what the symbols stand for: (node, coordinate, rest of the form there)."""

    def __init__(self, cells, limit):
        super().__init__(cells, Remembered(), limit)
        self.forms, self.meaning = {}, []

    def _deviating(self, local, deviation):
        before = self.symbols
        result = super()._deviating(local, deviation)
        rows = result.linear.high[len(self._cells.free) + before :, 0] if result.linear is not None else np.zeros((0, 1))
        for row in rows:
            (j,) = np.flatnonzero(row)
            self.meaning.append((self._place, j, row[j], local))
        self.forms[self._place] = result
        return result


def form_at(local, j, y):
    """Ends of what a form without its error is, at coordinates y (N, k + symbols so far)."""
    count = len(local.linear.low)
    mid, radius = local.linear.centre_radius()
    j_linear = min(j, mid.shape[2] - 1)
    mid, radius = mid[:, 0, j_linear], radius[:, 0, j_linear]
    centre = 0.5 * (local.centre.low[0, j] + local.centre.high[0, j])
    return centre + y[:, :count] @ mid, np.abs(y[:, :count]) @ radius + (local.centre.high - local.centre.low)[0, j]


@pytest.mark.parametrize("seed", range(40))
def test_one_set_of_symbols_makes_every_value(seed):
    """The symbols are found from the units, one after the other; each is in [-1, 1], and with them all forms hold."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    graph = without_sorts(random_network(rng, generator, KINKS if seed % 2 else ACTIVATIONS, rng.randint(1, 3)))
    (size,) = graph.input_sizes.values()
    cells = box(-generator.random(size), generator.random(size) + 0.01)
    algebra = Keeping(cells, int(rng.choice([1, 5, 512])))
    output = algebra.run(graph, entering(cells), ())
    x = cells.low + (cells.high - cells.low) * generator.random((200, size))
    values = all_values(graph, x)
    y = np.column_stack([x - 0.5 * (cells.low + cells.high), np.zeros((len(x), algebra.symbols))])[
        :, np.r_[cells.free, size : size + algebra.symbols]
    ]
    for number, (place, j, height, local) in enumerate(algebra.meaning):
        known, slack = form_at(local, j, y)
        error = np.broadcast_to(local.error, local.value.low.shape)[0, j]
        found = (values[place][:, j] - known) / height
        with np.errstate(over="ignore"):
            noise = (1e-9 * (1 + np.abs(values[place][:, j]).max()) + slack + error) / height
        assert (np.abs(found) <= 1 + noise).all()
        y[:, len(cells.free) + number] = np.clip(found, -1, 1)
    assert algebra.symbols == len(algebra.meaning)
    for node, local in {**algebra.forms, len(graph.nodes) - 1: output}.items():
        if local.linear is None:
            continue
        for j in range(local.value.low.shape[1]):
            known, slack = form_at(local, j, y)
            room = slack + np.broadcast_to(local.error, local.value.low.shape)[0, j] + 1e-7 * (1 + np.abs(known).max())
            assert (np.abs(values[node][:, j] - known) <= room).all()
        assert (values[node] >= local.value.low - 1e-9).all() and (values[node] <= local.value.high + 1e-9).all()


def test_what_cancels_does_cancel():
    twice = network(([[1], [1]], None), "relu", ([[1, 1], [1, 1]], None), "relu", ([[1, -1]], None), size=1)
    cells = box([-1], [1])
    for limit, width in ((0, 1.0), (1, 0.5), (4, 0.0)):
        output = SymbolAlgebra(cells, None, limit).run(twice, entering(cells), ())
        assert width / 2 <= float((output.value.high - output.value.low)[0, 0]) <= 4 * width + 1e-12


def test_without_symbols_nothing_changes():
    graph = network(([[1, 2], [3, -1], [1, 1]], [0.1, 0.2, 0]), "relu", ([[1, -1, 2]], None), size=2)
    cells = box([-1, -1], [1, 1])
    plain, none = (algebra.run(graph, entering(cells), ()) for algebra in (LocalAlgebra(cells), SymbolAlgebra(cells, None, 0)))
    assert none.linear.low.shape == plain.linear.low.shape
    for one, other in ((none.value, plain.value), (none.linear, plain.linear), (none.slope, plain.slope)):
        assert np.allclose(one.low, other.low, rtol=1e-14) and np.allclose(one.high, other.high, rtol=1e-14)
    assert (none.value.low <= plain.value.low).all() and np.allclose(none.error, plain.error, rtol=1e-14)


def deviating(deviation, value, limit, symbols=0):
    cells = box([0.0], [1.0])
    algebra = SymbolAlgebra(cells, None, limit)
    algebra.symbols = symbols
    n = len(deviation)
    linear = Interval(np.ones((1, 1, n)), np.full((1, 1, n), 2.0))
    local = Local(Interval(-np.array([value]), np.array([value])), iv.point(np.zeros((1, n))), linear, linear, np.zeros((1, n)))
    return algebra, algebra._deviating(local, np.array([deviation]))


def test_the_greatest_deviations_become_symbols():
    algebra, found = deviating([1.0, 3.0, 0.0, 2.0], [10.0] * 4, 2)
    assert algebra.symbols == 2 == algebra.coordinates - 1
    assert found.linear.low[1:, 0].tolist() == found.linear.high[1:, 0].tolist() == [[0, 3, 0, 0], [0, 0, 0, 2]]
    assert found.linear.high[0, 0].tolist() == [2, 2, 2, 2]
    assert 1 <= found.error[0, 0] < 1 + 1e-12 and (found.error[0, 1:] < 1e-300).all()
    assert found.linear.low[0, 0].tolist() == [1, 1, 1, 1]


def test_symbols_count_on_from_those_before():
    algebra, found = deviating([1.0, 3.0], [10.0, 10.0], 4, symbols=3)
    assert algebra.symbols == 4 and found.linear.low[:, 0].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [0, 3]]
    algebra, found = deviating([1.0, 3.0], [10.0, 10.0], 3, symbols=3)
    assert algebra.symbols == 3 and found.linear.low.shape == (4, 1, 2) and found.error[0].tolist() == pytest.approx([1, 3])


@pytest.mark.parametrize("size", [np.inf, np.nan])
def test_what_is_not_finite_is_no_symbol(size):
    algebra, found = deviating([size, 1.0], [10.0, 10.0], 8)
    assert algebra.symbols == 1 and not np.isfinite(found.error[0, 0]) and found.error[0, 1] < 1e-300
    assert np.isfinite(found.linear.high).all()


def test_rounding_is_no_symbol():
    least = np.nextafter(2.0**-40, 1)
    algebra, found = deviating([2.0**-40, least], [1.0, 1.0], 8)
    assert algebra.symbols == 1 and found.linear.high[1, 0].tolist() == [0, least] and found.error[0, 0] >= 2.0**-40


def test_spread_adds_symbols_as_they_are():
    cells = box([-1.0, 0.0], [1.0, 4.0])
    algebra = SymbolAlgebra(cells, None, 9)
    size = np.array([1.0, 0.25, 3.0, 0.5])[:, None, None]
    assert 5.0 <= algebra._spread(size)[0, 0] <= 5.0 + 1e-12
    ball = Cells(cells.low, cells.high, cells.free, np.array([1.0]), np.array([1.0, 0.5]))
    inside = SymbolAlgebra(ball, None, 9)._spread(size)[0, 0]
    assert np.hypot(1, 0.5) + 3.5 <= inside <= np.hypot(1, 0.5) + 3.5 + 1e-12


def test_sums_of_symbols_are_rounded_up():
    algebra, generator = SymbolAlgebra(box([-1.0], [1.0]), None, 9), np.random.default_rng(0)
    assert algebra._spread(np.array([0.0, 3.0, 0.5])[:, None, None])[0, 0] >= 3.5
    for many in (generator.random(500), np.append(2.0**53, np.ones(499))):  # each sum with 1 is rounded down
        size = np.append(0.0, many)
        found = float(algebra._spread(size[:, None, None])[0, 0])
        exact = sum(map(Fraction, size.tolist()))
        assert exact <= Fraction(found) <= exact * (1 + Fraction(1, 10**12))
