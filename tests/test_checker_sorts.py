"""Sorted groups rewritten as absolute values, or as comparisons: the same function, exactly, within the limit of products."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from loops import Sketch

from lipctrl.certificates.checker import sorts
from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import MAX_NODES, Graph, Node
from lipctrl.certificates.checker.verdict import Rejected

F = Fraction


def recentred(inner: Graph, *point: Any) -> Graph:
    (size,) = inner.output_sizes.values()
    s = Sketch()
    s.tensors["offset"] = np.zeros(size)
    return s.graph(u=s("recentre", s.input("x", len(point)), graph=inner, point=tuple(map(F, point)), offset="offset"))


def sorting(size: int, *groups: int, tensors: Any = None) -> Graph:
    nodes = [Node("input", (), {"name": "x", "size": size})]
    for group in groups:
        nodes.append(Node("group_sort", (len(nodes) - 1,), {"group_size": group}))
    return Graph(tuple(nodes), {"u": len(nodes) - 1}, tensors or {})


@pytest.mark.parametrize(
    ("size", "groups"), [(1, [2]), (2, [2]), (3, [2]), (4, [2]), (5, [9]), (5, [3]), (7, [3, 2]), (8, [4]), (6, [5, 4])]
)
@pytest.mark.parametrize(
    ("rewrite", "operations"),
    [
        (sorts.without_sorts, {"input", "affine", "abs", "concatenate"}),
        (sorts.with_comparators, {"input", "select", "min", "max", "concatenate"}),
    ],
)
def test_rewritten_sorts_are_exact(rewrite: Any, operations: set[str], size: int, groups: list[int]) -> None:
    rng, graph = random.Random(size), sorting(size, *groups)
    rewritten = rewrite(graph)
    assert {node.op for node in rewritten.nodes} <= operations
    orders = [tuple(range(size, 0, -1)), *(tuple(rng.randint(-3, 3) for _ in range(size)) for _ in range(12))]
    for values in orders:
        point = {"x": tuple(F(v, 3) for v in values)}
        assert evaluate_exact(rewritten, point) == evaluate_exact(graph, point)


def test_a_pair_takes_one_round_and_a_group_as_many_as_members() -> None:
    assert [node.op for node in sorts.without_sorts(sorting(2, 2)).nodes] == ["input", "affine", "abs", "concatenate", "affine"]
    assert len(sorts.without_sorts(sorting(4, 4)).nodes) == 17
    assert len(sorts.without_sorts(sorting(1, 2)).nodes) == 1


@pytest.mark.parametrize(
    ("graph", "products"), [((4, 2), 32), ((4, 2, 2), 64), ((4, 4), 128), ((3, 7), 54), ((3, 3), 54), ((5, 2, 3), 200)]
)
def test_the_products_of_all_sorts_are_counted(monkeypatch: pytest.MonkeyPatch, graph: Any, products: int) -> None:
    monkeypatch.setattr(sorts, "MAX_PRODUCTS", products)
    sorts.without_sorts(sorting(*graph))
    monkeypatch.setattr(sorts, "MAX_PRODUCTS", products - 1)
    with pytest.raises(Rejected, match="needs more than"):
        sorts.without_sorts(sorting(*graph))


def test_graphs_without_sorts_stay_and_names_do_not_collide() -> None:
    s = Sketch()
    plain = s.graph(u=s("tanh", s.affine(s.input("x", 2), [[1, 2]])))
    assert sorts.without_sorts(plain) is plain
    taken = {"sort 0": np.full((2, 2), 9.0), "sort 0'": np.ones(1)}
    nodes = (*sorting(2, 2).nodes, Node("affine", (1,), {"weight": "sort 0", "bias": None}))
    graph = Graph(nodes, {"u": 2, "v": 1}, taken)
    rewritten = sorts.without_sorts(graph)
    point = {"x": (F(3), F(1))}
    assert evaluate_exact(rewritten, point) == evaluate_exact(graph, point) == {"u": (36, 36), "v": (1, 3)}
    assert rewritten.tensors.keys() >= taken.keys() and rewritten.tensors["sort 0''"].tolist() == [[-1, 1]]


def test_sorts_in_recentred_graphs_are_replaced_there(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Graph((Node("input", (), {"name": "y", "size": 2}), Node("group_sort", (0,), {"group_size": 2})), {"v": 1}, {}, 1)
    flat = recentred(inner, 1, 5)
    rewritten = sorts.without_sorts(flat)
    nested = rewritten.nodes[1].attributes["graph"]
    assert nested.nesting == 1 and [node.op for node in nested.nodes] == ["input", "affine", "abs", "concatenate", "affine"]
    point = {"x": (F(7), F(2))}
    assert evaluate_exact(rewritten, point) == evaluate_exact(flat, point) == {"u": (1, 2)}
    same = recentred(Graph((Node("input", (), {"name": "y", "size": 1}), Node("relu", (0,))), {"v": 1}, {}, 1), 1)
    assert sorts.without_sorts(same) is same
    monkeypatch.setattr(sorts, "MAX_PRODUCTS", 15)  # outer and inner sorts share the limit
    two = Graph((*flat.nodes, Node("group_sort", (1,), {"group_size": 2})), {"u": 2}, flat.tensors)
    with pytest.raises(Rejected):
        sorts.without_sorts(two)
    monkeypatch.setattr(sorts, "MAX_PRODUCTS", 16)
    assert evaluate_exact(sorts.without_sorts(two), point) == {"u": (1, 2)}


def test_comparisons_read_neighbours_and_leave_the_rest() -> None:
    nodes = sorts.with_comparators(sorting(3, 2)).nodes
    assert [node.op for node in nodes] == ["input", "select", "select", "min", "max", "concatenate", "select"]
    assert [node.attributes["indices"] for node in nodes if node.op == "select"] == [(0,), (1,), (3, 4, 2)]
    assert [node.inputs for node in nodes[3:]] == [(1, 2), (1, 2), (0, 3, 4), (5,)]
    assert len(sorts.with_comparators(sorting(4, 4)).nodes) == 25
    same = sorting(2)
    assert sorts.with_comparators(same) is same


@pytest.mark.parametrize(("graph", "products"), [((4, 2), 32), ((4, 2, 2), 64), ((4, 4), 128), ((3, 7), 72), ((200, 2), 1600)])
def test_comparisons_are_counted(monkeypatch: pytest.MonkeyPatch, graph: Any, products: int) -> None:
    monkeypatch.setattr(sorts, "MAX_PRODUCTS", products)
    sorts.with_comparators(sorting(*graph))
    monkeypatch.setattr(sorts, "MAX_PRODUCTS", products - 1)
    with pytest.raises(Rejected, match=f"^sorting {graph[0]} signals in groups of {graph[-1]} needs more than {products - 1} products$"):
        sorts.with_comparators(sorting(*graph))


def test_comparisons_in_recentred_graphs() -> None:
    inner = Graph((Node("input", (), {"name": "y", "size": 2}), Node("group_sort", (0,), {"group_size": 2})), {"v": 1}, {}, 1)
    rewritten = sorts.with_comparators(recentred(inner, 1, 5))
    assert [node.op for node in rewritten.nodes[1].attributes["graph"].nodes][3:5] == ["min", "max"]
    assert evaluate_exact(rewritten, {"x": (F(7), F(2))}) == {"u": (1, 2)}


def test_more_nodes_than_a_graph_may_have_are_refused() -> None:
    with pytest.raises(Rejected, match="^sorting 3334 signals"):
        sorts.with_comparators(sorting(3334, 3334))
    with pytest.raises(Rejected, match=f"^sorts written as comparisons: .* at most {MAX_NODES} are allowed$"):
        sorts.with_comparators(Graph(sorting(2, *[2] * 4000).nodes, {"u": 4000}))
