"""Verdicts carry the level, only the checker makes them, and nothing in them can draw on a terminal."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipctrl.certificates.checker.verdict import Verdict, plain, rejected, shown, verified


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
    assert len(plain("x" * 10**6)) < 2100
    assert plain("\x1b[31mproved\udcff\u202e") == "\\x1b[31mproved\\udcff\\u202e"


@given(st.fractions())
def test_shown_numbers_are_rounded_to_the_asked_side(value):
    low, near, high = (Fraction(shown(value, towards)) for towards in ("down", "nearest", "up"))
    assert low <= value <= high
    assert near in (low, high)
    assert abs(high - low) <= abs(value) / 10**4


@pytest.mark.parametrize(
    ("value", "text"),
    [(Fraction(0), "0"), (Fraction(100), "100"), (Fraction(-1, 3), "-0.333333"), (Fraction(10) ** 40, "1.00000e+40"), (Fraction(25), "25")],
)
def test_shown_numbers(value, text):
    assert shown(Fraction(value)) == text
