"""The work of enclosing a step, counted by hand: nodes, entries, slopes, batches and what they keep."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from loops import Sketch, gain, identity, linear_plant

from lipctrl.certificates.checker import work
from lipctrl.certificates.checker.bundle import parse_plant
from lipctrl.certificates.checker.cells import Loop
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.work import BATCH, MAX_FLOATS, Work, work_of_graph, work_of_step

SEEDS = 2
VECTOR = (60, 2000, 30)  #: an input of length 3: 3 entries, 4 operations on value, centre and slopes (5 together); 3 times 10 numbers


def of_one(op: str, operands: int = 1, **attributes: object) -> tuple[int, int, int]:
    """What the operation adds to the work of its operand, a vector of length 3."""
    s = Sketch()
    x = s.input("x", 3)
    y = s.affine(x, np.zeros(attributes["shape"])) if op == "affine" else s(op, *[x] * operands, **attributes)
    total = work_of_graph(s.graph(y=y), SEEDS)
    return tuple(a - b for a, b in zip(total, VECTOR, strict=True))


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (of_one("neg"), (60, 2600, 30)),
        (of_one("add", 2), (60, 3200, 30)),
        (of_one("sin"), (180, 2600, 30)),
        (of_one("silu"), (180, 2600, 30)),
        (of_one("exp"), (3060, 2600, 30)),
        (of_one("gelu"), (3060, 2600, 30)),
        (of_one("power", exponent=7), (135, 2600, 30)),
        (of_one("group_sort", group_size=2), (60, 2600, 33)),
        (of_one("group_sort", group_size=5), (105, 2600, 34)),
        (of_one("select", indices=(0, 0)), (40, 2600, 20)),
        (of_one("concatenate", 3), (180, 3800, 90)),
        (of_one("affine", shape=(128, 3)), (128 * 20 + 15, 2600 + 384, 1280)),
    ],
)
def test_operations(added: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    assert added == expected


def test_vectors_by_the_number_of_seeds() -> None:
    graph = Graph((Node("input", (), {"name": "x", "size": 3}),), {"y": 0})
    assert work_of_graph(graph, SEEDS) == VECTOR
    assert work_of_graph(graph, 10) == (3 * 4 * 13, 2000, 3 * 26)


def test_recentred_graphs_are_evaluated_three_times() -> None:
    inner = Graph((Node("input", (), {"name": "z", "size": 3}), Node("sin", (0,))), {"o": 1}, {}, 1)
    s = Sketch()
    s.tensors["offset"] = np.zeros(3, np.float32)
    graph = s.graph(y=s("recentre", s.input("x", 3), graph=inner, point=(Fraction(0),) * 3, offset="offset"))
    total = work_of_graph(graph, SEEDS)
    assert total == (2 * (60 + 180) + 60 + 60, 2 * (2000 + 2600) + 2600 + 2000, 2 * (30 + 30) + 30 + 30)


def test_batches_and_totals() -> None:
    assert (BATCH, MAX_FLOATS) == (2048, 1 << 25)
    sizes = {1: 2048, 1 << 14: 2048, (1 << 14) + 1: 2047, 1 << 20: 32, MAX_FLOATS: 1, MAX_FLOATS + 1: 0}
    assert {floats: Work(10, 100, floats).cells_at_once for floats in sizes} == sizes
    some = Work(10, 100, 1 << 20)
    assert [some.total(cells) for cells in (0, 1, 32, 33, 64, 65)] == [0, 110, 420, 530, 840, 950]


@pytest.mark.parametrize(("arithmetic", "seeds", "times"), [("real", 2, 1), ("float32", 3, 3)])
def test_steps(arithmetic: str, seeds: int, times: int) -> None:
    """The policy once or, with its errors, three times; the disturbances are seeds too; then the quadratic forms."""
    plant, policy = linear_plant([[1, 2], [3, 4]], [[1], [1]]), gain([1.0, 2.0])
    loop = Loop(parse_plant(plant), policy, arithmetic)
    parts = [work_of_graph(graph, seeds) for graph in (identity(2), loop.plant.dynamics, *[policy] * times)]
    cell, batch, floats = (sum(column) for column in zip(*parts, strict=True))
    forms = {2: (4, 64), 3: (7, 120)}[seeds]  # 2 * 2 * 4 // 4 and 8 * 2 * 4, 2 * 3 * 5 // 4 and 8 * 3 * 5
    assert work_of_step(loop) == Work(cell + forms[0], batch, floats + forms[1])


def test_functions_that_cost_more() -> None:
    assert {name for name, units in work._EXTRA.items() if units == 40} == {"sin", "cos", "tan", "tanh", "sigmoid", "softplus", "silu"}
    assert {name for name, units in work._EXTRA.items() if units == 1000} == {"exp", "log", "erf", "gelu"}
