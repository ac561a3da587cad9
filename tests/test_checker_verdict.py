"""Verdicts carry the level, only the checker makes them, and nothing in them can draw on a terminal."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipctrl.certificates.checker.verdict import LEVELS, Verdict, plain, rejected, shown, verified


def _verified(**parts):
    return verified(**{"kind": "k", "property": "p", "claim": "c", "arithmetic": "real", "subject": {"policy": "0" * 64}, **parts})


def test_levels_are_derived():
    assert _verified().level == "proved"
    assert _verified(assumptions=("a",)).level == "proved-for-model"
    assert _verified(kind="counterexample").level == "falsified"
    assert rejected("why", kind="counterexample").level == "unknown"
    assert rejected("why").status == "rejected"


def test_a_verdict_has_no_truth_value_and_cannot_be_made_or_changed_elsewhere():
    with pytest.raises(TypeError, match="no truth value"):
        bool(_verified())
    with pytest.raises(TypeError, match="made by the checker"):
        Verdict(object(), "verified", "k", "p", "c", "", "real", {}, (), {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        rejected("why").level = "proved"
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(rejected("why"), status="verified")
    with pytest.raises(TypeError):
        _verified().subject["policy"] = "1" * 64


@given(st.text(max_size=40))
def test_plain_text_is_printable_and_keeps_printable_text(text):
    assert plain(text).isprintable()
    assert plain(text) == text or not text.isprintable()


def test_plain_text_is_bounded():
    assert plain("x" * 2000) == "x" * 2000
    assert plain("x" * 2001) == "x" * 2000 + " ..."
    assert plain("\x1b[31mproved\udcff\u202e") == "\\x1b[31mproved\\udcff\\u202e"


def test_every_text_of_a_verdict_is_plain():
    verdict = rejected("why\n", kind="k\t", property="p\r")
    assert (verdict.reason, verdict.kind, verdict.property) == ("why\\n", "k\\t", "p\\r")
    assert _verified(claim="c\x1b").claim == "c\\x1b"
    assert (rejected("why").kind, rejected("why").property, rejected("why").claim, rejected("why").arithmetic) == ("", "", "", "")


def test_numbers_of_a_verdict_cannot_be_changed():
    verdict = _verified(numbers={"bound": 2.0})
    assert verdict.numbers["bound"] == 2.0
    assert dict(_verified().numbers) == dict(rejected("why").numbers) == {}
    with pytest.raises(TypeError):
        verdict.numbers["bound"] = 1.0


def test_the_words_for_levels_are_fixed():
    assert LEVELS == ("proved", "proved-for-model", "numerical", "statistical", "falsified", "unknown")


@given(st.fractions())
def test_shown_numbers_are_rounded_to_the_asked_side(value):
    low, near, high = (Fraction(shown(value, towards)) for towards in ("down", "nearest", "up"))
    assert low <= value <= high
    assert near in (low, high)
    assert abs(high - low) <= abs(value) / 10**4


SHOWN = {
    "0": "0",
    "100": "100",
    "-1/3": "-0.333333",
    "5/2": "2.5",
    "1e-5": "0.00001",
    "1234567": "1234570",
    "1e40": "1.00000e+40",
}


@pytest.mark.parametrize("value", SHOWN)
def test_shown_numbers(value):
    assert shown(Fraction(value)) == SHOWN[value]


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (Fraction(12345600000000), "12345600000000", "12345600000000"),  # 14 characters are written out, 15 are not
        (Fraction(123456000000000), "1.23456e+14", "1.23456e+14"),
        (Fraction(123456, 10**12), "0.000000123456", "0.000000123456"),
        (Fraction(123456, 10**13), "1.23456e-8", "1.23456e-8"),
        (Fraction(1, 3), "0.333334", "0.333333"),
        (Fraction(-1, 3), "-0.333333", "-0.333334"),
        (Fraction(999999, 10**6), "0.999999", "0.999999"),
        (Fraction(9999991, 10**7), "1", "0.999999"),
        (Fraction(1000, 1), "1000", "1000"),
    ],
)
def test_shown_numbers_have_six_digits_on_the_asked_side(value, up, down):
    assert (shown(value, "up"), shown(value, "down")) == (up, down)
    assert shown(value) in (up, down)


def test_a_verdict_holds_what_it_was_given():
    verdict = _verified(assumptions=("a", "b"), numbers={"bound": 2.0})
    assert (verdict.status, verdict.kind, verdict.property, verdict.claim, verdict.reason) == ("verified", "k", "p", "c", "")
    assert (verdict.arithmetic, verdict.assumptions, dict(verdict.subject)) == ("real", ("a", "b"), {"policy": "0" * 64})
    refusal = rejected("why", kind="k", property="p", arithmetic="float32", subject={"policy": "1" * 64})
    assert (refusal.kind, refusal.property, refusal.claim, refusal.reason) == ("k", "p", "", "why")
    assert (refusal.arithmetic, refusal.assumptions, dict(refusal.subject), dict(refusal.numbers)) == (
        "float32",
        (),
        {"policy": "1" * 64},
        {},
    )
    assert dict(rejected("why").subject) == {}
    with pytest.raises(TypeError, match="positional"):
        Verdict(None, "verified", "k", "p", "c", "", "real", {}, (), {}, "proved")
    subject = {"policy": "0" * 64}
    verdict = _verified(subject=subject)
    subject["policy"] = "changed"
    assert verdict.subject["policy"] == "0" * 64
