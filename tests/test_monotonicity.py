"""Certificates of monotonicity: what is known to rise and to fall, networks that are built to, and everything in between."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from flint import ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import Sketch
from strategies import graphs

from lipctrl.certificates.checker.balls import PRECISION, ball, evaluate_balls
from lipctrl.certificates.checker.exact import evaluate_exact
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.lipschitz import Budget, MonotonicityCertificate, NotProved, certify_monotone
from lipctrl.certificates.lipschitz import monotone as module
from lipctrl.core.errors import InputError
from lipctrl.core.recording import record
from lipctrl.nn import InputConvexMLP, MonotoneMLP, lipschitz_policy
from lipctrl.nn.convex import MONOTONE

F = Fraction
SHORT = Budget(seconds=60.0, cells=300)


def made(size: int, build: Callable[[Sketch, int], int]) -> Graph:
    s = Sketch()
    return s.graph(y=build(s, s.input("x", size)))


RELU = made(1, lambda s, x: s("relu", x))
STEP = made(1, lambda s, x: s("sub", s("relu", x), s("relu", s("sub", x, s.constant(1)))))
SQUARE = made(1, lambda s, x: s("power", x, exponent=2))


def exported(network: Any) -> Graph:
    """A network as a graph, in float32."""
    nodes = [Node("input", (), {"name": "x", "size": network.sizes[0]})]

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    output = network.add_nodes(add, 0)
    return Graph(tuple(nodes), {"y": output}, {name: t.detach().numpy().astype(np.float32) for name, t in network.tensors().items()})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def proved(found: MonotonicityCertificate) -> list[list[int]]:
    verdict = found.check()
    assert (verdict.level, verdict.kind, verdict.property) == ("proved", "monotonicity", "monotone"), verdict.reason
    return found.signs.tolist()


# --- what is known -----------------------------------------------------------------------------------------------------------


def test_relu_never_falls():
    found = certify_monotone(RELU)
    assert proved(found) == [[1]] and found.evidence == {"method": "signs"} and found.claim["domain"] is None
    assert found.check().claim == "output 1 never falls when x1 rises, everywhere"
    with pytest.raises(TypeError, match="truth value"):
        bool(found)


def test_a_step_of_two_units_needs_cells():
    with pytest.raises(NotProved, match="on a box more can be proved") as caught:
        certify_monotone(STEP)
    assert caught.value.part is None
    found = certify_monotone(STEP, [[1]], low=[-3], high=[3])
    assert proved(found) == [[1]] and len(found.evidence["tree"]) == 3, "one split tells the units apart"
    assert proved(certify_monotone(STEP, low=["1/3"], high=["7/5"])) == [[1]]
    refuted = certify_monotone(STEP, [[-1]], low=[-3], high=[3])
    assert refuted.kind == "counterexample" and refuted.check().level == "falsified"


@pytest.mark.parametrize("build", [lambda s, x: s("power", x, exponent=2), lambda s, x: s("mul", x, x)])
def test_squares(build):
    square = made(1, build)
    assert proved(certify_monotone(square, low=[0], high=[1])) == [[1]]
    assert proved(certify_monotone(square, low=[-1], high=[0])) == [[-1]]
    with pytest.raises(NotProved, match="^no sign could be proved on this box, on 1 cells$"):
        certify_monotone(square, low=[-1], high=[1])
    for sign in (1, -1):
        found = certify_monotone(square, [[sign]], low=[-1], high=[1])
        assert found.check().level == "falsified" and found.signs.tolist() == [[sign]]
        first, second = (F(found.evidence[key][0]) for key in ("first", "second"))
        assert -1 <= first < second <= 1 and sign * (second**2 - first**2) < 0
    assert certify_monotone(square, [[1]]).check().level == "falsified"


def test_a_violation_in_a_corner_is_found_by_splitting():
    """x + (1 - 100 |x - 0.7|)+ / 30 falls by a tenth of its range, on a hundredth of the box."""

    def build(s: Sketch, x: int) -> int:
        away = s("abs", s("sub", x, s.constant(F(7, 10))))
        bump = s("relu", s("sub", s.constant(1), s("mul", away, s.constant(10_000))))
        return s("add", x, s("mul", bump, s.constant(F(1, 3000))))

    found = certify_monotone(made(1, build), [[1]], low=[0], high=[1])
    assert found.check().level == "falsified"
    assert F(7, 10) <= F(found.evidence["second"][0]) < F(7, 10) + F(1, 1000)


def test_what_touches_zero_stays_open():
    """x - sin(x) never falls, but its slope is 0 at 0, which no enclosure that is rounded can tell."""
    touching = made(1, lambda s, x: s("sub", x, s("sin", x)))
    with pytest.raises(NotProved, match="^no sign could be proved on this box, on [0-9]+ cells$"):
        certify_monotone(touching, [[1]], low=[-1], high=[2], budget=Budget(seconds=60.0, cells=100))
    assert proved(certify_monotone(touching, [[1]], low=["1/100"], high=[2])) == [[1]]


def test_parts_of_what_was_asked_are_kept():
    both = made(1, lambda s, x: s("concatenate", s("tanh", x), s("sub", x, s("sin", x))))
    with pytest.raises(NotProved, match="^1 of 2 signs could be proved on this box") as caught:
        certify_monotone(both, [[1], [1]], low=[-1], high=[1], budget=SHORT)
    assert caught.value.part is not None and proved(caught.value.part) == [[1], [0]]
    with pytest.raises(NotProved) as caught:
        certify_monotone(both, [[1], [1]])
    assert caught.value.part is not None and proved(caught.value.part) == [[1], [0]]
    assert proved(certify_monotone(both, low=[-1], high=[1], budget=SHORT)) == [[1], [0]]
    assert proved(certify_monotone(both)) == [[1], [0]]


def test_every_pair_of_an_output_and_an_input_gets_its_own_sign():
    def equations(x: Any) -> list[Any]:
        return [x[0] ** 3 + np.tanh(x[1]), x[0] * x[1], x[1] - x[2] ** 2, np.exp(-x[0]) / (1 + x[2] ** 2)]

    graph = record(equations, {"x": 3}, output="y")
    found = certify_monotone(graph, low=[0, "1/2", 1], high=[1, 2, 2])
    assert proved(found) == [[1, 1, 1], [1, 1, 1], [1, 1, -1], [-1, 1, -1]], "where an input plays no part both signs hold: 1 is chosen"
    assert proved(certify_monotone(graph, low=[-1, -1, -1], high=[1, 1, 1], budget=SHORT)) == [[1, 1, 1], [0, 0, 1], [1, 1, 0], [-1, 1, 0]]
    asked = [[1, 0, 0], [0, 0, 0], [0, 1, 0], [-1, 0, 0]]
    assert proved(certify_monotone(graph, asked, low=[-1, -1, -1], high=[1, 1, 1])) == asked


def test_maxmin_networks_rise():
    s = Sketch()
    rng = np.random.default_rng(0)
    x = s.input("x", 4)
    for _ in range(3):
        x = s("group_sort", s.affine(x, rng.random((4, 4)), rng.standard_normal(4)), group_size=2)
    assert proved(certify_monotone(s.graph(y=x))) == [[1] * 4] * 4


@pytest.mark.parametrize("ends", [{"low": [0, 0, 0], "high": [1, 0, 1]}, {"centre": ["1/2", 0, "1/2"], "radius": "1/2"}])
def test_boxes_and_boxes_around_balls(ends):
    graph = made(3, lambda s, x: s("power", s.affine(x, [[1, 0, -1], [1, 1, 1]], [1.5, 0.25]), exponent=2))
    found = certify_monotone(graph, **ends)
    if "centre" in ends:
        assert found.claim["domain"] == {"low": ["0", "-1/2", "0"], "high": ["1", "1/2", "1"]}
        assert proved(found) == [[1, 1, -1], [0, 0, 0]]
    else:
        assert proved(found) == [[1, 0, -1], [1, 0, 1]], "an input that does not vary has no sign"


# --- networks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MONOTONE)
def test_monotone_layers_are_proved_everywhere(name):
    network = MonotoneMLP(3, (8, 6), 2, name, directions=(1, -1, 0), generator=generator())
    found = certify_monotone(exported(network))
    assert proved(found) == [[1, -1, 0]] * 2 and found.evidence == {"method": "signs"}
    assert proved(certify_monotone(exported(network), [[1, -1, 0], [0, 0, 0]])) == [[1, -1, 0], [0, 0, 0]]
    assert certify_monotone(exported(network), [[1, 1, 0], [0, 0, 0]]).check().level == "falsified"


def test_input_convex_layers_rise_where_their_skips_do():
    network = InputConvexMLP(2, (6, 6), 1, "softplus", generator=generator())
    with torch.no_grad():
        for raw in network.raw_skip:
            raw[:, 0].abs_()
    assert proved(certify_monotone(exported(network))) == [[1, 0]]


def test_a_shipped_policy_on_a_small_box():
    policy = lipschitz_policy(3, [-2], [2], 5.0, hidden=(32, 32), generator=generator()).export()
    ends = {"low": ["-0.987", "0.607", "0.806"], "high": ["-0.947", "0.647", "0.846"]}
    found = certify_monotone(policy, **ends)
    assert proved(found) == [[1, -1, 1]] and len(found.evidence["tree"]) > 1
    assert certify_monotone(policy, [[1, -1, -1]], **ends).check().level == "falsified"


def test_tanh_networks_are_split():
    rng = np.random.default_rng(1)
    s = Sketch()
    x = s.affine(s.input("x", 2), rng.standard_normal((8, 2)), rng.standard_normal(8))
    y = s.affine(s("tanh", x), rng.standard_normal((1, 8)))
    graph = s.graph(y=s("add", y, s.affine(0, [[3, -3]])))
    found = certify_monotone(graph, low=[-2, -2], high=[2, 2])
    assert proved(found) == [[1, -1]] and len(found.evidence["tree"]) > 1


def test_implicit_layers():
    s = Sketch()
    s.tensors |= {"D": np.array([[0.25, 0.125], [0.5, 0.25]]), "metric": np.ones(2)}
    z = s("implicit", s.affine(s.input("x", 1), [[1], [0]]), weight="D", metric="metric", activation="relu")
    assert proved(certify_monotone(s.graph(y=z))) == [[1], [1]]


# --- arguments, interruptions, files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signs", "ends", "message"),
    [
        ([1], {}, "signs is \\[1\\], expected 1 rows of 1 numbers 1, -1 or 0, not all of them 0"),
        ([[0]], {}, "not all of them 0"),
        ([[2]], {}, "signs is"),
        ([[float("nan")]], {}, "signs is"),
        ([["1"]], {}, "signs is"),
        ([[True]], {}, "signs is"),
        (None, {"low": [0]}, "the domain needs low and high"),
        (None, {"low": [0], "high": [1], "radius": 1}, "the domain needs"),
        (None, {"low": [1], "high": [0]}, "expected low <= high"),
        (None, {"low": [0], "high": [0]}, "no input varies on this box"),
        (None, {"low": [float("nan")], "high": [1]}, "low"),
        (None, {"centre": [0], "radius": -1}, "radius"),
    ],
)
def test_wrong_arguments_are_named(signs, ends, message):
    with pytest.raises(InputError, match=message):
        certify_monotone(RELU, signs, **ends)


def test_signs_of_inputs_that_do_not_vary_are_refused():
    graph = made(2, lambda s, x: s("relu", x))
    with pytest.raises(InputError, match="a sign is asked for x2, which does not vary on this box"):
        certify_monotone(graph, [[1, 0], [0, 1]], low=[0, 1], high=[1, 1])


def test_graphs_that_do_not_fit_are_refused():
    two = Graph((Node("input", (), {"name": "a", "size": 1}), Node("input", (), {"name": "b", "size": 1})), {"y": 0})
    with pytest.raises(InputError, match="expected one of each"):
        certify_monotone(two)
    logarithm = made(1, lambda s, x: s("log", x))
    assert proved(certify_monotone(logarithm, low=["1/9"], high=[2])) == [[1]]
    with pytest.raises(NotProved):
        certify_monotone(logarithm, low=[0], high=[2], budget=SHORT)
    with pytest.raises(NotProved):
        certify_monotone(logarithm)
    with pytest.raises(InputError, match="too large for float64"):
        certify_monotone(SQUARE, low=[0], high=[10**400])


def test_interrupted_searches_keep_what_is_proved():
    touching = made(1, lambda s, x: s("sub", x, s("sin", x)))
    rounds = []

    def interrupt(fraction: float, message: str, best: object) -> None:
        rounds.append(message)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    with pytest.raises(NotProved):
        certify_monotone(touching, [[1]], low=[-3], high=[3], progress=interrupt)
    rounds.clear()
    mixed = made(1, lambda s, x: s("concatenate", s("power", s("add", x, s.constant(4)), exponent=2), s("sub", x, s("sin", x))))
    found = certify_monotone(mixed, low=[-3], high=[3], progress=interrupt)
    assert proved(found) == [[1], [0]] and rounds[0] == "2 signs in question on 1 cells, 1 to split"


def test_what_the_checkers_code_refuses_is_left_out(monkeypatch):
    """Whatever the search believes, here that one cell is enough."""
    monkeypatch.setattr(module.Search, "tree", lambda self: [None])
    monkeypatch.setattr(module.Search, "proved", property(lambda self: np.array([[1], [1]], np.int8)))
    both = made(1, lambda s, x: s("concatenate", s("sub", x, s("sin", x)), s("power", x, exponent=2)))
    with pytest.raises(NotProved, match="^1 of 2 signs") as caught:
        certify_monotone(both, [[1], [1]], low=[0], high=[3], budget=Budget(seconds=1e-9))
    assert caught.value.part is not None and proved(caught.value.part) == [[0], [1]]


def test_equal_seeds_give_equal_certificates(tmp_path):
    policy = lipschitz_policy(2, [-2], [2], 3.0, hidden=(16,), generator=generator()).export()
    first, second = (certify_monotone(policy, low=[0, 0], high=["0.2", "0.3"], budget=Budget(seconds=60.0, cells=200)) for _ in range(2))
    assert (first.claim, first.evidence) == (second.claim, second.evidence)
    folder = first.write(tmp_path / "signs")
    assert check(folder).level == "proved" and check(folder, about=("policy", policy.graph.digest())).level == "proved"


def test_any_object_with_a_graph_will_do():
    class Holder:
        graph = RELU

    assert proved(certify_monotone(Holder())) == [[1]]


# --- against pairs of points -------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data(), st.integers(0, 2**31))
def test_no_pair_of_points_contradicts_a_certificate(data, seed):
    size = data.draw(st.integers(1, 3))
    graph = data.draw(graphs(inputs={"x": size}, max_steps=5))
    box = data.draw(st.booleans())
    low, high = [F(-1, 3)] * size, [F(data.draw(st.integers(0, 8)), 3) for _ in range(size)]
    try:
        found = certify_monotone(graph, **({"low": low, "high": high} if box else {}), budget=Budget(seconds=60.0, cells=30))
    except NotProved:
        return
    signs = proved(found)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        for j in range(size):
            share = [F(int(rng.integers(0, 1001)), 1000) for _ in range(size + 1)]
            ends = list(zip(low, high, strict=True)) if box else [(F(-10), F(10))] * size
            x = [a + (b - a) * s for (a, b), s in zip(ends, share, strict=False)]
            y = [*x[:j], x[j] + (ends[j][1] - x[j]) * share[-1], *x[j + 1 :]]
            with ctx.workprec(PRECISION):
                before, after = (next(iter(evaluate_balls(graph, {"x": [ball(v) for v in p]}).values())) for p in (x, y))
                assert not any(row[j] * (after[i] - before[i]) < 0 for i, row in enumerate(signs))


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from(["relu", "abs", "leaky_relu", "group_sort"]))
def test_signs_of_small_networks_agree_with_exact_values(seed, size, name):
    rng = np.random.default_rng(seed)
    s = Sketch()
    attributes = {"leaky_relu": {"slope": F(1, 10)}, "group_sort": {"group_size": 2}}.get(name, {})
    hidden = s(name, s.affine(s.input("x", size), rng.integers(-4, 5, (4, size)), rng.integers(-2, 3, 4)), **attributes)
    graph = s.graph(y=s.affine(hidden, rng.integers(-1, 4, (2, 4))))
    try:
        signs = proved(certify_monotone(graph, low=[-1] * size, high=[1] * size, budget=Budget(seconds=60.0, cells=30)))
    except NotProved:
        signs = [[0] * size] * 2
    points = [tuple(F(int(v), 8) for v in rng.integers(-8, 9, size)) for _ in range(60)]
    for x in points:
        for j in range(size):
            y = (*x[:j], F(1), *x[j + 1 :])
            before, after = (evaluate_exact(graph, {"x": p})["y"] for p in (x, y))
            assert all(row[j] * (b - a) >= 0 for row, a, b in zip(signs, before, after, strict=True))
