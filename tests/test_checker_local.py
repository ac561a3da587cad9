"""The verifier of claims about a domain, rule by rule: each is met exactly and missed by the least amount."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from verifying import of_several_ends, unsafe_arithmetic

from lipctrl.certificates.checker import work as counting
from lipctrl.certificates.checker.bundle import Certificate
from lipctrl.certificates.checker.definite import OutOfRange
from lipctrl.certificates.checker.domain import Domain, halves
from lipctrl.certificates.checker.graph import Graph, GraphError, Node
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import lipschitz_bound as global_bounds
from lipctrl.certificates.checker.verifiers import local_lipschitz as module
from lipctrl.certificates.checker.verifiers.local_lipschitz import (
    products_of,
    prove_local,
    read_problem,
    verify_local,
    where_it_holds,
)
from lipctrl.certificates.checker.work import Work, work_of_graph
from lipctrl.certificates.lipschitz.local_multipliers import bound_cell

F = Fraction
PRODUCT, ABSOLUTE = {"method": "norm-product"}, {"method": "absolute-product"}


def layers(*weights, op="relu"):
    """Weights with an activation between them."""
    nodes = [Node("input", (), {"name": "x", "size": np.shape(weights[0])[1]})]
    for k in range(len(weights)):
        nodes += [Node(op, (len(nodes) - 1,), {})] if k else []
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
    return Graph(tuple(nodes), {"u": len(nodes) - 1}, {f"w{k}": np.array(weight, np.float64) for k, weight in enumerate(weights)})


SIX = layers([[3.0]], [[2.0]])  # 2 relu(3 x)
TURN = layers([[3.0, -4.0], [4.0, 3.0]])
ABOVE = 6 * (1 + 1e-12)


def claim_of(bound, low=("1",), high=("2",), norm="l2", **changes):
    table = {"property": "local_lipschitz", "norm": norm, "input_scale": None, "output_scale": None}
    return {**table, "bound": float(bound).hex(), "domain": {"low": list(low), "high": list(high)}, **changes}


def evidence(*tree, proofs=()):
    return {"method": "cells", "tree": list(tree), "proofs": list(proofs)}


PLAIN = evidence(None)


def proves(graph, claim, filed=PLAIN):
    try:
        return prove_local(graph, claim, filed) == float.fromhex(claim["bound"])
    except Rejected:
        return False


def refuses(claim, why, filed=PLAIN, graph=SIX):
    with pytest.raises(Rejected, match=why):
        prove_local(graph, claim, filed)


def problem_of(graph, low, high, norm="l2", **changes):
    return read_problem(graph, claim_of(1, low, high, norm, **changes))[0]


# --- claims and evidence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"property": "lipschitz"}, "^claim: expected property"),
        ({"norm": "l1"}, "^claim: expected property"),
        ({"norm": None}, "^claim: expected property"),
        ({"bound": (-(2.0**-30)).hex()}, "finite and not negative"),
        ({"bound": "-1"}, "finite and not negative"),
        ({"bound": "inf"}, "bound"),
        ({"input_scale": ["0"]}, "not positive"),
        ({"output_scale": ["1", "1"]}, "scale"),
        ({"input_scale": [str(10**400)]}, "too large for float64"),
        ({"output_scale": [str(10**400)]}, "too large for float64"),
        ({"domain": {"low": ["0", "0"], "high": ["1", "1"]}}, "domain"),
        ({"other": 1}, "claim"),
    ],
)
def test_claims_that_are_refused(changes, why):
    refuses({**claim_of(ABOVE), **changes}, why)


def test_graphs_have_one_input_and_one_output():
    for graph in of_several_ends(1):
        refuses(claim_of(1), "one input and one output", graph=graph)


def test_evidence_that_is_refused(monkeypatch):
    why = "expected method 'cells' and a list of at most"
    for filed in ({**PLAIN, "method": "leaves"}, {**PLAIN, "proofs": None}, {**PLAIN, "proofs": {}}):
        refuses(claim_of(ABOVE), why, filed)
    refuses(claim_of(ABOVE), "evidence", {"method": "cells", "tree": [None]})
    monkeypatch.setattr(module, "MAX_PROOFS", 1)
    assert proves(SIX, claim_of(ABOVE), evidence(0, proofs=[PRODUCT]))
    refuses(claim_of(ABOVE), why, evidence(0, proofs=[PRODUCT, PRODUCT]))
    assert proves(SIX, claim_of(ABOVE), evidence([0, "3/2"], None, 0, proofs=[PRODUCT]))
    refuses(claim_of(ABOVE), "2 leaves have proofs of their own, at most 1 are accepted", evidence([0, "3/2"], 0, 0, proofs=[PRODUCT]))


@pytest.mark.parametrize("entry", [True, False, -1, 1, 2, 0.0, "0", [None]])
def test_leaves_are_null_or_the_index_of_a_proof(entry):
    with pytest.raises(Rejected, match=r"null or the index of a proof|\[input, threshold\]"):
        prove_local(SIX, claim_of(ABOVE), evidence(entry, proofs=[PRODUCT]))
    refuses(claim_of(ABOVE), "index of a proof", evidence(0, proofs=[None]))
    refuses(claim_of(ABOVE), "index of a proof", evidence(0))


def test_leaves_and_ends_up_to_the_limit(monkeypatch):
    split = evidence([0, "1/2"], None, None)
    claim = claim_of(6, ["0", "0"], ["1", "1"])
    for name, accepted, refused in (("MAX_LEAVES", 2, 1), ("MAX_ENDS", 4, 3)):
        monkeypatch.setattr(module, name, accepted)
        assert proves(TURN, claim, split)
        monkeypatch.setattr(module, name, refused)
        refuses(claim, "more than 1 leaves", split, TURN)
        monkeypatch.undo()


def test_the_arithmetic_is_probed(monkeypatch):
    orders = unsafe_arithmetic(monkeypatch, module)
    refuses(claim_of(ABOVE), "rounds upwards")
    assert orders == [256]


def test_what_is_out_of_range_is_refused(monkeypatch):
    def prove(*_):
        raise OutOfRange("a number is too small")

    monkeypatch.setattr(module, "prove_network", prove)
    refuses(claim_of(ABOVE), "a number is too small", evidence(0, proofs=[PRODUCT]))


def test_what_cannot_be_enclosed_is_refused(monkeypatch):
    for error, why in ((GraphError("no slopes of this"), "no slopes of this"), (OverflowError("int"), "too large for float64")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(module, "local_slopes", fail)
        refuses(claim_of(ABOVE), why)


# --- work ---------------------------------------------------------------------------------------------------------------


def test_work_is_counted_before_it_is_done(monkeypatch):
    work = problem_of(SIX, ["1"], ["2"]).work()
    split = evidence([0, "3/2"], None, None)
    monkeypatch.setattr(module, "MAX_WORK", work.total(2))
    assert proves(SIX, claim_of(ABOVE), split)
    monkeypatch.setattr(module, "MAX_WORK", work.total(2) - 1)
    refuses(claim_of(ABOVE), "2 leaves of this network are more work", split)
    monkeypatch.undo()
    monkeypatch.setattr(counting, "MAX_FLOATS", work.floats - 1)
    refuses(claim_of(ABOVE), "more work")


@pytest.mark.parametrize(
    ("outputs", "inputs", "norm", "careful"),
    [(1, 3, "l2", 0), (3, 1, "l2", 0), (3, 2, "linf", 0), (30, 20, "l2", 30_000 + 800), (20, 30, "l2", 30_000 + 800)],
)
def test_the_work_on_a_leaf(outputs, inputs, norm, careful):
    """The enclosure three times over in 2 k + 8 coordinates, the matrix, and where one is needed the proof of its gain."""
    graph = layers(np.ones((outputs, inputs)))
    cell, batch, kept = work_of_graph(graph, 2 * inputs + 8)
    work = problem_of(graph, ["0"] * inputs, ["1"] * inputs, norm).work()
    assert work == Work(3 * cell + 20 * inputs * outputs + careful, 3 * batch, 2 * kept + 12 * inputs * outputs)


def test_proofs_of_leaves_are_counted(monkeypatch):
    graph = layers([[3.0]], [[2.0]], op="tanh")
    each = products_of(module.read_network(graph), "l2", False) + 4 * module.PER_VALUE
    split = evidence([0, "3/2"], 0, 0, proofs=[PRODUCT])
    monkeypatch.setattr(module, "MAX_PRODUCTS", 2 * each)
    assert proves(graph, claim_of(7), split)
    monkeypatch.setattr(module, "MAX_PRODUCTS", 2 * each - 1)
    refuses(claim_of(7), "more work than the checker does", split, graph)


def test_balls_count_for_the_leaves_that_follow(monkeypatch):
    graph = layers([[3.0]], [[2.0]], op="tanh")
    problem, _ = module.read_problem(graph, claim_of(7))
    proofs = []
    for low, high in halves(*problem.domain.box(), 0, 1.5):
        found, _ = problem.slopes(low[None], high[None])
        bound, _ = bound_cell(problem, problem.network(found, 0), 1e-3, 1.0)
        proofs.append(dict(bound.evidence))
    network, split = module.read_network(graph), evidence([0, "3/2"], 0, 1, proofs=proofs)
    cheap, dear = products_of(network, "l2", False) + 4 * module.PER_VALUE, products_of(network, "l2", True)
    monkeypatch.setattr(module, "MAX_PRODUCTS", 2 * cheap)
    assert proves(graph, claim_of(7), split)

    def out_of_range(form):
        raise OutOfRange("too small")

    monkeypatch.setattr(global_bounds, "is_semidefinite", out_of_range)
    refuses(claim_of(7), "more work than the checker does", split, graph)
    monkeypatch.setattr(module, "MAX_PRODUCTS", 2 * cheap + dear)
    assert proves(graph, claim_of(7), split)
    monkeypatch.setattr(module, "MAX_PRODUCTS", 2 * cheap + dear - 1)
    refuses(claim_of(7), "more work than the checker does", split, graph)


def test_products_of_a_proof(monkeypatch):
    """300 for one multiplication in balls: order^2 (order + squares) for each matrix, weights order; and 30 for each norm."""
    network = module.read_network(layers(np.ones((5, 2)), np.ones((3, 5))))  # 2 inputs, 5 activations, 3 outputs
    norms = 2 * 5 * 2 + 3 * 5 * 3
    assert products_of(network, "l2", True) == 300 * (7**2 * (7 + 3) + 25 * 7) + 30 * norms
    assert products_of(network, "linf", True) == 300 * (3 * 7**2 * (7 + 1) + 25 * 7) + 30 * norms
    assert products_of(network, "l2", False) == 3 * (7**2 * (7 + 3) + 25 * 7) + 30 * norms
    monkeypatch.setattr(module, "MAX_BALL_ORDER", 7)
    assert products_of(network, "l2", True) == 300 * (7**2 * (7 + 3) + 25 * 7) + 30 * norms
    monkeypatch.setattr(module, "MAX_BALL_ORDER", 6)
    assert products_of(network, "l2", True) == 3 * (7**2 * (7 + 3) + 25 * 7) + 30 * norms


# --- proofs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_constants_are_proved_and_nothing_below(norm):
    turn = 5 if norm == "l2" else 7
    for graph, low, high, constant in ((SIX, ["1"], ["2"], 6), (SIX, ["-1"], ["1"], 6), (TURN, ["0", "0"], ["1", "1"], turn)):
        assert proves(graph, claim_of(constant * (1 + 1e-11), low, high, norm))
        refuses(claim_of(constant * (1 - 1e-11), low, high, norm), r"the slopes in the leaf \[.*\] \.\. \[.*\] are not proved", graph=graph)
    assert proves(SIX, claim_of(2.0**-400, ["-2"], ["-1"], norm)) and proves(SIX, claim_of(0, ["1"], ["1"], norm), evidence(0))
    refuses(claim_of(5.9, norm=norm), r"in the leaf \[1.0\] .. \[2.0\] are not proved to allow 5.9 at most")


def test_gains_are_met_exactly(monkeypatch):
    problem = problem_of(SIX, ["1"], ["2"])
    matrices = problem.matrices(problem.slopes(*ends([1], [2]))[0], 1)
    rows, quick = float(module.row_gains(matrices)[0]), float(module.quick_gains(matrices)[0])
    assert proves(SIX, claim_of(rows, norm="linf")) and not proves(SIX, claim_of(math.nextafter(rows, 0), norm="linf"))
    monkeypatch.setattr(module, "gain_is_at_most", lambda *_: False)
    assert proves(SIX, claim_of(quick)) and not proves(SIX, claim_of(math.nextafter(quick, 0)))
    monkeypatch.setattr(module, "gain_is_at_most", lambda *_: True)
    refuses(claim_of(5.9, norm="linf"), "not proved")  # a Euclidean gain says nothing about the maximum norm


def ends(low, high):
    return np.array([low], dtype=float), np.array([high], dtype=float)


def test_scales_of_both_ends():
    scales = {"input_scale": ["2"], "output_scale": ["1/3"]}
    for filed in (PLAIN, evidence(0, proofs=[PRODUCT])):
        assert proves(SIX, claim_of(1 + 1e-11, **scales), filed) and not proves(SIX, claim_of(1 - 1e-11, **scales), filed)


def test_only_inputs_that_vary_count():
    scales = {"input_scale": ["2", "1/1000"]}
    for filed, norm in ((PLAIN, "l2"), (PLAIN, "linf"), (evidence(0, proofs=[ABSOLUTE]), "linf")):
        for graph, low, high, constant in (
            (layers([[3.0, 100.0]], [[2.0]]), ["1", "1/3"], ["2", "1/3"], 3),
            (layers([[100.0, 3.0]], [[2.0]]), ["1", "1"], ["1", "2"], 6000),
        ):
            assert proves(graph, claim_of(constant * (1 + 1e-11), low, high, norm, **scales), filed)
            assert not proves(graph, claim_of(constant * (1 - 1e-11), low, high, norm, **scales), filed)


def test_constants_have_no_slope():
    nodes = (Node("input", (), {"name": "x", "size": 2}), Node("constant", (), {"values": (F(1), F(2), F(3))}))
    graph = Graph(nodes, {"u": 1}, {})
    for norm in ("l2", "linf"):
        assert proves(graph, claim_of(2.0**-400, ["0", "0"], ["1", "1"], norm))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_leaf_is_judged_whatever_the_batch(monkeypatch, batch):
    monkeypatch.setattr(counting, "BATCH", batch)
    forward = evidence([0, "-1"], None, [0, "-1/2"], None, [0, "-1/4"], None, [0, "-1/8"], None, None)
    backward = evidence([0, "1"], [0, "1/2"], [0, "1/4"], [0, "1/8"], None, None, None, None, None)
    for graph, low, high, filed in ((SIX, "-2", "1/4", forward), (layers([[-3.0]], [[2.0]]), "-1/4", "2", backward)):
        assert proves(graph, claim_of(ABOVE, [low], [high]), filed)  # the slope is 0 in all leaves but one
        refuses(claim_of(5.9, [low], [high]), "the slopes in the leaf", filed, graph)


def test_leaves_with_proofs_are_judged_in_their_own_cell():
    """2 relu(3 x) - 2 relu(-3 x): one unit is dead on either side, so the product is 6, and around 0 it is 12."""
    graph = layers([[3.0], [-3.0]], [[2.0, -2.0]])
    filed = evidence(0, proofs=[ABSOLUTE])
    for low, high in (("1", "2"), ("-2", "-1")):
        assert proves(graph, claim_of(ABOVE, [low], [high], "linf"), filed)
        assert not proves(graph, claim_of(5.9, [low], [high], "linf"), filed)
    assert not proves(graph, claim_of(ABOVE, ["-1"], ["2"], "linf"), filed)
    assert not proves(graph, claim_of(ABOVE, ["-2"], ["1"], "linf"), filed)
    two = evidence([0, "3/2"], 0, 1, proofs=[ABSOLUTE, {"method": "nothing"}])
    refuses(claim_of(ABOVE, norm="linf"), "evidence: expected method", two, graph)
    assert proves(graph, claim_of(ABOVE, norm="linf"), evidence([0, "3/2"], 0, None, proofs=[ABSOLUTE]))
    refuses(claim_of(5.9, norm="linf"), "the slopes in the leaf", evidence([0, "3/2"], 0, None, proofs=[ABSOLUTE]), graph)


def test_leaves_without_a_point_of_the_ball_prove_themselves():
    domain = {"centre": ["0", "0"], "radius": "1"}
    graph = layers([[3.0, 0.0]], [[2.0]])
    tree = [[0, "-15/16"], [1, "15/16"], [1, "-15/16"]]
    for empty in (None, 0):
        filed = evidence(*tree, empty, 0, empty, 0, proofs=[PRODUCT])
        assert proves(graph, {**claim_of(ABOVE), "domain": domain}, filed)
    shifted = layers([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]])
    corner = evidence([0, "3/4"], 0, [1, "3/4"], 0, 1, proofs=[{"method": "norm-product"}, {"method": "nothing"}])
    assert proves(shifted, {**claim_of(2), "domain": domain}, corner)  # no point has x1, x2 >= 3/4: its proof is not read
    plain = evidence([0, "3/4"], 0, [1, "3/4"], 0, None, proofs=[PRODUCT])
    assert proves(layers([[1.0, 0.0]]), {**claim_of(1.0001), "domain": domain}, plain)


def test_slopes_of_a_cell_of_several():
    graph = layers([[3.0], [-3.0]], [[2.0, -2.0]])
    problem = problem_of(graph, ["-2"], ["2"])
    found, empty = problem.slopes(np.array([[-2.0], [1.0]]), np.array([[-1.0], [2.0]]))
    assert empty.tolist() == [False, False]
    gains = [[layer.gain.tolist() for layer in problem.network(found, index).layers] for index in (0, 1)]
    assert gains == [[[0, 1]], [[1, 0]]]


def test_empty_cells_say_so():
    problem, _ = read_problem(TURN, {**claim_of(1), "domain": {"centre": ["0", "0"], "radius": "1"}})
    _, empty = problem.slopes(np.array([[0.9, 0.9], [0, 0]]), np.array([[1.0, 1.0], [1.0, 1.0]]))
    assert empty.tolist() == [True, False]


def test_cells_without_a_point_pass_whatever_their_slopes(monkeypatch):
    domain = {"centre": ["0", "0"], "radius": "1"}
    filed = evidence([0, "3/4"], None, [1, "3/4"], None, None)
    judged = []

    def gains(matrices):
        judged.append(len(matrices.low))
        return np.array([0.0, 0.0, math.inf])

    monkeypatch.setattr(module, "quick_gains", gains)
    assert proves(TURN, {**claim_of(5), "domain": domain}, filed) and judged == [3]


# --- the verdict --------------------------------------------------------------------------------------------------------


def certificate(**changes):
    return dataclasses.replace(Certificate("lipschitz-bound", "real", claim_of(ABOVE), {"policy": SIX}, PLAIN, (), {}, ""), **changes)


def test_the_verdict_says_what_was_proved():
    verdict = verify_local(certificate())
    assert (verdict.level, verdict.kind, verdict.property) == ("proved", "lipschitz-bound", "local_lipschitz")
    assert verdict.claim == (
        "|f(x) - f(y)| <= 6.00001 |x - y| for all x and y in the box 1 <= x1 <= 2, "
        "in the Euclidean norm, in the units of the policy's input and output"
    )
    assert verdict.numbers == {"local_lipschitz": ABOVE}
    assert verify_local(certificate(claim=claim_of(ABOVE, norm="linf"))).numbers == {"local_lipschitz_linf": ABOVE}
    with pytest.raises(Rejected, match="not proved"):
        verify_local(certificate(claim=claim_of(5.9)))


def box(*ends_):
    return Domain(tuple(F(low) for low, _ in ends_), tuple(F(high) for _, high in ends_))


def test_domains_in_words():
    assert where_it_holds(box((0, 1), ("-1/3", "1/3"))) == "in the box 0 <= x1 <= 1, -0.333333 <= x2 <= 0.333333"
    assert where_it_holds(box(("1/3", "2/3"))) == "in the box 0.333334 <= x1 <= 0.666666"
    assert where_it_holds(box((0, 0))) == "in the box 0 <= x1 <= 0"
    assert where_it_holds(box((0, 1), ("1/3", "1/3"))) == "in the box that the claim names, which is too thin to be written here"
    assert where_it_holds(box(*[(0, 1)] * 6)).endswith("0 <= x6 <= 1")
    assert where_it_holds(box(*[(0, 1)] * 7)) == "in the box of 7 inputs that the claim names"
    ball = Domain((F(0),) * 2, (F(1),) * 2, (F(1, 2), F(1, 3)), F(2, 3), (F(1),) * 2)
    assert where_it_holds(ball) == "in the ball of radius 0.666666 around the claim's centre, about (0.5, 0.333333)"
    seven = Domain((F(0),) * 7, (F(1),) * 7, (F(0),) * 7, F(1), (F(1),) * 7)
    assert where_it_holds(seven) == "in the ball of 7 inputs that the claim names"
