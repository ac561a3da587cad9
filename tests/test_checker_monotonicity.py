"""The ``monotonicity`` verifier and its counterexamples, rule by rule: each is met exactly and missed by the least amount."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from loops import Sketch
from verifying import of_several_ends, unsafe_arithmetic

from lipctrl.certificates.checker.bundle import Certificate
from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.kinds import KINDS, check
from lipctrl.certificates.checker.signs import Moves
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers import monotonicity as module
from lipctrl.certificates.checker.verifiers.monotonicity import prove_monotone, read_claim, signs_in_words, verify
from lipctrl.certificates.checker.work import Work, work_of_graph

F = Fraction
SIGNS: dict[str, Any] = {"method": "signs"}
WHOLE: dict[str, Any] = {"method": "cells", "tree": [None]}


def linear(*rows: Any) -> Graph:
    return Graph(
        (Node("input", (), {"name": "x", "size": len(rows[0])}), Node("affine", (0,), {"weight": "w", "bias": None})),
        {"y": 1},
        {"w": np.array(rows, np.float32)},
    )


def single(*steps: tuple[str, dict[str, Any]]) -> Graph:
    s = Sketch()
    x = s.input("x", 1)
    for op, attributes in steps:
        x = s(op, x, **attributes)
    return s.graph(y=x)


SQUARE, LOG, SINE = single(("power", {"exponent": 2})), single(("log", {})), single(("sin", {}))


def claim_of(*rows: Any, low: Any = None, high: Any = None, **changes: Any) -> dict[str, Any]:
    domain = None if low is None else {"low": list(low), "high": list(high)}
    return {"property": "monotone", "signs": [list(row) for row in rows], "domain": domain, **changes}


def refuses(graph: Graph, claim: Any, evidence: Any, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        prove_monotone(graph, claim, evidence)


def certificate(graph: Graph, claim: Any, evidence: Any, kind: str = "monotonicity", **changes: Any) -> Certificate:
    parts = {"arithmetic": "real", "subject": {"policy": graph}, "requires": (), "tensors": {}, "sha256": ""}
    return Certificate(**{"kind": kind, "claim": claim, "evidence": evidence, **parts, **changes})


# --- claims -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"property": "lipschitz"}, "^claim: expected property 'monotone'$"),
        ({"bound": "1"}, "unknown keys \\['bound'\\]"),
        ({"signs": None}, "^signs must be 2 lists of 2 numbers 1, -1 or 0, not all of them 0$"),
        ({"signs": {}}, "^signs must be"),
        ({"signs": [[1, 0]]}, "^signs must be"),
        ({"signs": [[1, 0]] * 3}, "^signs must be"),
        ({"signs": [[1, 0], [1]]}, "^signs must be"),
        ({"signs": [[1, 0], [1, 0, 0]]}, "^signs must be"),
        ({"signs": [[1, 0], None]}, "^signs must be"),
        ({"signs": [[1, 0], ["1", 0]]}, "^signs must be"),
        ({"signs": [[1, 0], [True, 0]]}, "^signs must be"),
        ({"signs": [[1, 0], [2, 0]]}, "^signs must be"),
        ({"signs": [[1, 0], [0, -2]]}, "^signs must be"),
        ({"signs": [[0, 0], [0, 0]]}, "^signs must be"),
        ({"domain": {"centre": ["0", "0"], "radius": "1"}}, "^domain: missing keys \\['high', 'low'\\]"),
        ({"domain": {"low": ["0", "0"], "high": ["1", "-1"]}}, "^the domain is empty"),
        ({"domain": {"low": ["0", "0"], "high": ["1", "0"]}}, "^input 2 does not vary on the domain, so that a sign for it says nothing$"),
        ({"signs": [[1, 0], [1, 1]], "domain": {"low": ["0", "0"], "high": ["1", "0"]}}, "^input 2 does not vary"),
        ({"domain": {"low": ["0"], "high": ["1"]}}, "^domain low must be a list of 2 numbers"),
        ({"domain": []}, "^domain must be a table"),
    ],
)
def test_claims_are_read_strictly(changes, why):
    refuses(linear([1, -1], [1, 1]), claim_of([1, -1], [1, 1], low=["0", "0"], high=["1", "1"]) | changes, WHOLE, why)


def test_claims_are_about_one_input_and_one_output():
    for graph in of_several_ends(1):
        refuses(graph, claim_of([1]), SIGNS, "^monotonicity is about a graph with one input and one output$")


def test_the_claim_as_read():
    graph = linear([1, -1, 0], [1, 1, 0])
    problem = read_claim(graph, claim_of([1, -1, 0], [0, 1, 0], low=["0", "0", "5"], high=["1", "1/3", "5"]))
    assert problem.signs.tolist() == [[1, -1, 0], [0, 1, 0]]
    assert problem.domain is not None and problem.domain.free.tolist() == [0, 1]
    assert problem.contains((F(0), F(1, 3), F(5))) and problem.contains((F(1), F(0), F(5)))
    for outside in ((F(0), F(1, 3) + F(1, 10**30), F(5)), (F(-1), F(0), F(5)), (F(0), F(0), F(4))):
        assert not problem.contains(outside)
    assert read_claim(graph, claim_of([1, 0, 0], [0, 0, 0])).contains((F(10**400), F(0), F(0)))


def test_ill_posed_layers_are_refused():
    s = Sketch()
    s.tensors |= {"D": np.array([[2.0]]), "metric": np.array([1.0])}
    graph = s.graph(y=s("implicit", s.input("x", 1), weight="D", metric="metric", activation="relu"))
    refuses(graph, claim_of([1]), SIGNS, "not proved to be well-posed")


# --- evidence -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evidence", "why"),
    [
        ({}, "^evidence: expected method 'signs', or 'cells' where the claim has a domain$"),
        ({"method": "windows"}, "^evidence: expected method"),
        ({"method": "signs", "tree": [None]}, "^evidence: .*unknown keys \\['tree'\\]"),
        ({"method": "cells"}, "^evidence: missing keys \\['tree'\\]"),
        ({"method": "cells", "tree": [None], "proofs": []}, "^evidence: .*unknown keys \\['proofs'\\]"),
        ({"method": "cells", "tree": None}, "^the split tree must be a list"),
        ({"method": "cells", "tree": []}, "^the split tree ends too early$"),
        ({"method": "cells", "tree": [0]}, "^a leaf must be null$"),
        ({"method": "cells", "tree": [[0, "0"], None, 0]}, "^a leaf must be null$"),
        ({"method": "cells", "tree": [[0, "0"], None]}, "^the split tree ends too early$"),
        ({"method": "cells", "tree": [None, None]}, "^the split tree has entries left over$"),
        ({"method": "cells", "tree": [[0, "nan"], None, None]}, "^threshold: expected a rational"),
        ({"method": "cells", "tree": [[0, "1"], None, None]}, "^the split tree has a threshold that is not strictly inside"),
        ({"method": "cells", "tree": [[1, "0"], None, None]}, "^the split tree splits input 1"),
        ({"method": "cells", "tree": [[1, 0, "0"], None, None]}, "a split must be"),
    ],
)
def test_evidence_is_read_strictly(evidence, why):
    refuses(SQUARE, claim_of([1], low=["-1"], high=["1"]), evidence, why)


def test_a_claim_about_everything_needs_signs():
    refuses(linear([1]), claim_of([1]), WHOLE, "^evidence: expected method 'signs', or 'cells' where the claim has a domain$")
    prove_monotone(linear([1]), claim_of([1]), SIGNS)
    prove_monotone(linear([1]), claim_of([1], low=["0"], high=["1"]), SIGNS)
    prove_monotone(linear([1]), claim_of([1], low=["0"], high=["1"]), WHOLE)


# --- signs --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", [SIGNS, WHOLE])
def test_every_sign_counts(evidence):
    graph = linear([1, -2, 0], [3, 0, -1])
    box = {"low": ["0"] * 3, "high": ["1"] * 3}
    right = [[1, -1, 1], [1, -1, -1]]
    prove_monotone(graph, claim_of(*right, **box), evidence)
    where = "everywhere" if evidence == SIGNS else "in the leaf \\[0.0, 0.0, 0.0\\] .. \\[1.0, 1.0, 1.0\\]"
    for i, j, direction in ((0, 0, "rise"), (0, 1, "fall"), (1, 0, "rise"), (1, 2, "fall")):
        wrong = [list(row) for row in right]
        wrong[i][j] *= -1
        what = f"^output {i + 1} is not proved never to {direction} when input {j + 1} rises {where}$"
        refuses(graph, claim_of(*wrong, **box), evidence, what)
        wrong[i][j] = 0
        prove_monotone(graph, claim_of(*wrong, **box), evidence)


def test_inputs_that_do_not_vary_are_left_out():
    graph = linear([1, 5, -2])
    box = {"low": ["0", "3", "0"], "high": ["1", "3", "1"]}
    prove_monotone(graph, claim_of([1, 0, -1], **box), WHOLE)
    refuses(graph, claim_of([1, 0, 1], **box), WHOLE, "^output 1 is not proved never to fall when input 3 rises")


def test_cells_prove_what_signs_do_not():
    refuses(SQUARE, claim_of([1]), SIGNS, "^output 1 is not proved never to fall when input 1 rises everywhere$")
    prove_monotone(SQUARE, claim_of([1], low=["0"], high=["1"]), WHOLE)
    prove_monotone(SQUARE, claim_of([-1], low=["-1"], high=["0"]), WHOLE)
    tree = {"method": "cells", "tree": [[0, "0"], None, None]}
    refuses(SQUARE, claim_of([1], low=["-1"], high=["1"]), tree, "in the leaf \\[-1.0\\] .. \\[0.0\\]$")
    refuses(SQUARE, claim_of([-1], low=["-1"], high=["1"]), tree, "rise when input 1 rises in the leaf \\[0.0\\] .. \\[1.0\\]$")
    refuses(SQUARE, claim_of([1], low=["-1/1000000000000000000000000"], high=["1"]), WHOLE, "never to fall")
    half = {"low": ["0"], "high": ["11/7"]}  # above half of pi
    refuses(SINE, claim_of([1], **half), {"method": "cells", "tree": [[0, "3/2"], None, None]}, "in the leaf \\[1.5\\]")
    prove_monotone(SINE, claim_of([1], low=["-3/2"], high=["3/2"]), {"method": "cells", "tree": [[0, "0"], None, None]})


def test_values_must_be_finite():
    prove_monotone(LOG, claim_of([1], low=["1/1000"], high=["1000"]), WHOLE)
    box = claim_of([1], low=["0"], high=["1"])
    refuses(LOG, box, WHOLE, "^the network is not known to have finite values in the leaf \\[0.0\\] .. \\[1.0\\]$")
    refuses(LOG, box, {"method": "cells", "tree": [[0, "1/2"], None, None]}, "finite values in the leaf \\[0.0\\] .. \\[0.5\\]$")
    turned = single(("neg", {}), ("log", {}), ("neg", {}))
    split = {"method": "cells", "tree": [[0, "-1/2"], None, None]}
    refuses(turned, claim_of([1], low=["-1"], high=["0"]), split, "finite values in the leaf \\[-0.5\\] .. \\[0.0\\]$")
    refuses(LOG, claim_of([1]), SIGNS, "^operation 'log' has no value everywhere$")


def test_numbers_beyond_float64_are_refused():
    s = Sketch()
    graph = s.graph(y=s("mul", s.input("x", 1), s.constant(10**400)))
    prove_monotone(graph, claim_of([1]), SIGNS)
    refuses(graph, claim_of([1], low=["0"], high=["1"]), WHOLE, "^a number of the network is too large for float64$")
    refuses(linear([1]), claim_of([1], low=["0"], high=["1" + "0" * 400]), WHOLE, "^the domain is too large for float64$")


def test_sorts_are_known():
    s = Sketch()
    graph = s.graph(y=s("group_sort", s.affine(s.input("x", 2), [[1, -1], [2, -1], [1, 0]]), group_size=3))
    prove_monotone(graph, claim_of(*[[1, -1]] * 3), SIGNS)
    prove_monotone(graph, claim_of(*[[1, -1]] * 3, low=["0", "0"], high=["1", "1"]), WHOLE)
    refuses(graph, claim_of([1, 1], [0, 0], [0, 0]), SIGNS, "never to fall when input 2")
    ordered = {"low": ["2", "1/4"], "high": ["3", "1"]}  # the third is the middle one there
    prove_monotone(graph, claim_of([0, 0], [0, 1], [0, 0], **ordered), WHOLE)
    refuses(graph, claim_of([0, 0], [0, 1], [0, 0], low=["0", "0"], high=["3", "1"]), WHOLE, "output 2 .* input 2")


# --- bounded work -----------------------------------------------------------------------------------------------------------


def test_the_work_is_counted_before_it_is_done(monkeypatch):
    problem = read_claim(SINE, claim_of([1], low=["0"], high=["1"]))
    for curved, seeds in ((problem, 2 * 1 + 8 + 1 * (1 + 2)), (replace(problem, curved=False), 2 * 1 + 8)):
        cell, batch, kept = work_of_graph(SINE, seeds)
        assert curved.work(1) == Work(5 * cell, 4 * batch, 3 * kept)
    claim, tree = claim_of([1], low=["0"], high=["1"]), {"method": "cells", "tree": [[0, "1/2"], None, None]}
    total = problem.work(1).total(2)
    monkeypatch.setattr(module, "MAX_WORK", total)
    prove_monotone(SINE, claim, tree)
    monkeypatch.setattr(module, "MAX_WORK", total - 1)
    refuses(SINE, claim, tree, "^2 leaves of this network are more work than the checker does$")
    everywhere = read_claim(linear([1, 1]), claim_of([1, 1])).work(2)
    monkeypatch.setattr(module, "MAX_WORK", everywhere.cell + everywhere.batch)
    prove_monotone(linear([1, 1]), claim_of([1, 1]), SIGNS)
    monkeypatch.setattr(module, "MAX_WORK", everywhere.cell + everywhere.batch - 1)
    refuses(linear([1, 1]), claim_of([1, 1]), SIGNS, "^the signs of this network are more work than the checker does$")


def test_memory_is_bounded(monkeypatch):
    work = read_claim(linear([1, 1]), claim_of([1, 1])).work(2)
    monkeypatch.setattr(module, "MAX_FLOATS", work.floats)
    prove_monotone(linear([1, 1]), claim_of([1, 1]), SIGNS)
    monkeypatch.setattr(module, "MAX_FLOATS", work.floats - 1)
    refuses(linear([1, 1]), claim_of([1, 1]), SIGNS, "^the signs of this network are more work")
    wide = Graph((Node("input", (), {"name": "x", "size": 16_384}), Node("relu", (0,))), {"y": 1})
    refuses(single(("relu", {})), claim_of([1], low=["0"], high=["1"]), {"method": "cells", "tree": [None] * 2}, "left over")
    signs = np.zeros((16_384, 16_384), dtype=int)
    signs[0, 0] = 1
    monkeypatch.undo()
    monkeypatch.setattr(module, "_read_signs", lambda rows, outputs, inputs: signs.astype(np.int8))
    refuses(wide, claim_of([1]), SIGNS, "^the signs of this network are more work")
    refuses(wide, claim_of([1], low=["0"] * 16_384, high=["1"] * 16_384), WHOLE, "^1 leaves of this network are more work")


def test_smooth_networks_of_few_inputs_are_enclosed_to_first_order(monkeypatch):
    """9 tanh(2 x) / 20 - tanh(x): both slopes fall together."""
    s = Sketch()
    x = s.input("x", 1)
    graph = s.graph(y=s("sub", s("mul", s("tanh", s("mul", x, s.constant(2))), s.constant(F(9, 20))), s("tanh", x)))
    claim = claim_of([-1], low=["3/10"], high=["7/10"])
    problem = read_claim(graph, claim)
    assert problem.curved
    prove_monotone(graph, claim, WHOLE)
    assert not read_claim(graph, claim_of([-1])).curved
    assert not read_claim(linear([1]), claim_of([1], low=["0"], high=["1"])).curved
    monkeypatch.setattr(module, "MAX_CURVED_INPUTS", 1)
    assert read_claim(graph, claim).curved
    monkeypatch.setattr("lipctrl.certificates.checker.work.MAX_FLOATS", problem.work(1).floats - 1)
    assert not read_claim(graph, claim).curved, "where memory does not suffice, or for too many inputs, they are not"
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_CURVED_INPUTS", 0)
    assert not read_claim(graph, claim).curved
    refuses(graph, claim, WHOLE, "never to rise")


def test_leaves_are_counted(monkeypatch):
    tree = {"method": "cells", "tree": [[0, "1/2"], None, None]}
    monkeypatch.setattr(module, "MAX_LEAVES", 1)
    refuses(linear([1]), claim_of([1], low=["0"], high=["1"]), tree, "^the split tree has more than 1 leaves$")
    monkeypatch.setattr(module, "MAX_LEAVES", 2)
    prove_monotone(linear([1]), claim_of([1], low=["0"], high=["1"]), tree)
    monkeypatch.setattr(module, "MAX_ENDS", 3)
    refuses(linear([1, 1]), claim_of([1, 1], low=["0", "0"], high=["1", "1"]), tree, "^the split tree has more than 1 leaves$")


def test_leaves_are_judged_in_batches(monkeypatch):
    seen = []
    found = module.signs_on_cells

    def counted(graph: Graph, notes: Any, curved: bool) -> Any:
        assert not curved
        seen.append(len(notes.cells.low))
        return found(graph, notes, curved)

    monkeypatch.setattr(module, "signs_on_cells", counted)
    monkeypatch.setattr("lipctrl.certificates.checker.work.BATCH", 2)
    tree = {"method": "cells", "tree": [[0, "1/2"], [0, "1/4"], None, None, None]}
    absolute = single(("abs", {}))
    prove_monotone(absolute, claim_of([1], low=["0"], high=["1"]), tree)
    assert seen == [2, 1]
    refuses(absolute, claim_of([-1], low=["-1"], high=["1"]), {"method": "cells", "tree": [[0, "-1/2"], None, [0, "0"], None, None]}, "0.0")
    assert seen == [2, 1, 2, 1], "the last batch alone holds the leaf that fails"


def test_unsafe_arithmetic_is_refused(monkeypatch):
    orders = unsafe_arithmetic(monkeypatch, module)
    refuses(linear([1]), claim_of([1]), SIGNS, "^this process rounds upwards$")
    assert orders == [256]


# --- verdicts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"arithmetic": "float32"}, "^monotonicity is about the real-valued network"),
        ({"requires": ("0" * 64,)}, "^a monotonicity certificate rests on no other certificate$"),
        ({"subject": {"policy": linear([1]), "plant": None}}, "^a monotonicity certificate has a policy as its subject and nothing else$"),
    ],
)
def test_certificates_of_other_things_are_refused(changes, why):
    with pytest.raises(Rejected, match=why):
        verify(certificate(linear([1]), claim_of([1]), SIGNS, **changes))


def test_verdicts_say_what_was_proved():
    verdict = verify(certificate(linear([1]), claim_of([1]), SIGNS))
    assert (verdict.kind, verdict.property, verdict.level, verdict.arithmetic) == ("monotonicity", "monotone", "proved", "real")
    assert verdict.claim == "output 1 never falls when x1 rises, everywhere"
    assert dict(verdict.subject) == {"policy": linear([1]).digest()} and not verdict.assumptions
    box = {"low": ["0", "0"], "high": ["1", "1/3"]}
    verdict = verify(certificate(linear([1, -1]), claim_of([1, -1], **box), WHOLE))
    says = "output 1 never falls when x1 rises and never rises when x2 rises while the other inputs stay as they are"
    assert verdict.claim == f"{says}, in the box 0 <= x1 <= 1, 0 <= x2 <= 0.333333"
    assert KINDS["monotonicity"] == "lipctrl.certificates.checker.verifiers.monotonicity"


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        ([[1]], "output 1 never falls when x1 rises"),
        ([[-1]], "output 1 never rises when x1 rises"),
        ([[1, 1]], "no output ever falls when an input rises"),
        ([[-1], [-1]], "no output ever rises when an input rises"),
        ([[0, 1, 1], [0, 0, 0]], "output 1 never falls when x2 or x3 rises"),
        ([[0, 0], [1, -1]], "output 2 never falls when x1 rises and never rises when x2 rises"),
        ([[0, 1], [-1, 0]], "output 1 never falls when x2 rises, output 2 never rises when x1 rises"),
        ([[1] * 12 + [0]], f"output 1 never falls when {' or '.join(f'x{j + 1}' for j in range(12))} rises"),
        (
            [[1] * 12 + [-1]],
            "outputs never move against the 13 signs that the claim gives to pairs of an output and an input, when an input rises",
        ),
    ],
)
def test_signs_in_words(signs, words):
    assert signs_in_words(np.array(signs)) == words


def test_contradictions_are_both_ways():
    problem = read_claim(linear([1, 1, 1]), claim_of([1, -1, 0]))
    every = np.ones((3, 1, 1), dtype=bool)
    assert problem.contradicted(Moves(every, ~every), np.arange(3))[:, 0, 0].tolist() == [False, True, False]
    assert problem.contradicted(Moves(~every, every), np.arange(3))[:, 0, 0].tolist() == [True, False, False]
    assert problem.contradicted(Moves(every[:2], ~every[:2]), np.array([1, 2]))[:, 0, 0].tolist() == [True, False]


# --- counterexamples --------------------------------------------------------------------------------------------------------


def refuted(graph: Graph, first: Any, second: Any, **region: Any) -> Any:
    table = {"signs": [[1]], "domain": None, **region}
    witness = {"first": list(first), "second": list(second)}
    return check(certificate(graph, {"property": "monotone", "region": table}, witness, kind="counterexample"))


def test_a_pair_of_points_refutes_a_sign():
    verdict = refuted(SQUARE, ["-1"], ["0"])
    assert (verdict.level, verdict.property, verdict.kind) == ("falsified", "monotone", "counterexample")
    assert verdict.claim == "the network is not monotone as claimed: output 1 falls when x1 rises, from where x is (-1)"
    verdict = refuted(SQUARE, ["0"], ["1/1000000000000000000000"], signs=[[-1]])
    assert verdict.claim == "the network is not monotone as claimed: output 1 rises when x1 rises, from where x is (0)"
    verdict = refuted(linear([1, 1], [1, -1]), ["3", "0"], ["3", "1"], signs=[[1, 1], [-1, 1]])
    assert verdict.claim == "the network is not monotone as claimed: output 2 falls when x2 rises, from where x is (3, 0)"
    box = {"low": ["-1"], "high": ["1/3"]}
    assert refuted(SQUARE, ["-1"], ["1/3"], domain=box).level == "falsified"


@pytest.mark.parametrize(
    ("graph", "first", "second", "region", "why"),
    [
        (SQUARE, ["-1"], ["1"], {}, "no output was shown to move against its sign"),
        (SQUARE, ["0"], ["1"], {}, "no output was shown to move against its sign"),
        (SQUARE, ["0"], ["-1"], {}, "greater than the first in one coordinate"),
        (SQUARE, ["0"], ["0"], {}, "greater than the first in one coordinate"),
        (linear([1, -1]), ["0", "0"], ["1", "1"], {"signs": [[1, 1]]}, "greater than the first in one coordinate"),
        (linear([1, -1]), ["0", "0"], ["0", "1"], {"signs": [[1, 0]]}, "no output was shown"),
        (linear([1], [-1]), ["0"], ["1"], {"signs": [[1], [0]]}, "no output was shown"),
        (SQUARE, ["-1"], ["0"], {"domain": {"low": ["-1"], "high": ["-1/1000000"]}}, "an input of the witness is not in the domain"),
        (SQUARE, ["-1"], ["0"], {"domain": {"low": ["-999999/1000000"], "high": ["1"]}}, "an input of the witness is not in the domain"),
        (SQUARE, ["-1", "0"], ["0", "0"], {}, "first must be a list of 1 numbers"),
        (SQUARE, ["-1"], ["nan"], {}, "second: expected a rational"),
        (SQUARE, ["-1"], ["0"], {"signs": [[0]]}, "signs must be"),
        (SQUARE, ["-1"], ["0"], {"more": 1}, "unknown keys"),
        (LOG, ["-1"], ["1"], {}, "no output was shown"),
    ],
)
def test_other_pairs_refute_nothing(graph, first, second, region, why):
    verdict = refuted(graph, first, second, **region)
    assert (verdict.status, verdict.level) == ("rejected", "unknown") and why in verdict.reason
