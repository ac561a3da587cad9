"""``lipctrl lipschitz --monotone``: keys, exit codes, files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from loops import Sketch
from runs import linear_policy, lipctrl_json

from lipctrl.certificates.checker.command import main as checker
from lipctrl.cli import main
from lipctrl.core.policy import Policy

KEYS = {
    "verb",
    "status",
    "level",
    "claim",
    "certificates",
    "seconds",
    "upper",
    "lower",
    "norm",
    "property",
    "signs",
    "asked",
    "results",
    "reason",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_policy(tmp_path_factory.mktemp("policy") / "good")


@pytest.fixture(scope="module")
def bent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x + 2 |x| of the first observation, and x - sin(x), which never falls but is not proved where x = 0, of the second."""
    s = Sketch()
    x = s.input("observation", 2)
    first, second = (s("select", x, indices=(i,)) for i in (0, 1))
    y = s("add", first, s("mul", s("abs", first), s.constant(Fraction(2))))
    z = s("sub", second, s("sin", second))
    names = {"observation": [("a", "m"), ("b", "m")], "action": [("u", "N"), ("v", "N")]}
    folder = tmp_path_factory.mktemp("policy") / "bent"
    Policy(s.graph(action=s("concatenate", y, z)), **names, dt=None, provenance={}).save(folder)
    return folder


def monotone(capsys: Any, policy: Path, out: Path, *words: Any) -> tuple[int, dict[str, Any]]:
    code, found = lipctrl_json(capsys, "lipschitz", policy, "--monotone", *words, "--out", out)
    assert set(found) == KEYS and (found["upper"], found["lower"], found["norm"]) == (None, None, None)
    assert json.loads((out / "results.json").read_text())["status"] == found["status"]
    return code, found


def test_signs_are_found(policy, tmp_path, capsys):
    code, found = monotone(capsys, policy, tmp_path)
    assert (code, found["status"], found["level"], found["property"]) == (0, "ok", "proved", "monotone")
    assert found["signs"] == [[-1, -1]] and found["asked"] is None and not found["reason"]
    assert found["claim"] == "no output ever rises when an input rises while the other inputs stay as they are, everywhere"
    assert [entry["kind"] for entry in found["results"]] == ["monotonicity"]
    assert found["certificates"] == [str(tmp_path / "certificate")]
    assert main(["check", *found["certificates"], "--about", str(policy)]) == 0
    assert "no output ever rises" in capsys.readouterr().out
    assert checker(found["certificates"]) == 0
    assert main(["lipschitz", str(policy), "--monotone", "--out", str(tmp_path)]) == 0
    assert "output 1: - -" in capsys.readouterr().out.splitlines()


def test_signs_that_are_asked_are_proved_on_a_box(bent, tmp_path, capsys):
    box = ("--low", 0, "1/3", "--high", "1/2", 1)
    code, found = monotone(capsys, bent, tmp_path, "--signs", 1, 0, 0, 1, *box)
    assert (code, found["signs"], found["asked"]) == (0, [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    assert "in the box 0 <= x1 <= 0.5, 0.333334 <= x2 <= 1" in found["claim"]
    ball = ("--centre", "1/4", "2/3", "--radius", "1/4")
    assert monotone(capsys, bent, tmp_path, *ball)[1]["signs"] == [[1, 1], [1, 1]]


def test_a_refuted_sign_exits_with_1(bent, tmp_path, capsys):
    code, found = monotone(capsys, bent, tmp_path, "--signs", 1, 0, 0, 0, "--low", -1, -1, "--high", 1, 1)
    assert (code, found["status"], found["level"], found["property"], found["signs"]) == (1, "refuted", "falsified", None, None)
    assert found["claim"].startswith("the network is not monotone as claimed: output 1 falls when x1 rises")
    assert main(["check", *found["certificates"]]) == 1


def test_a_sign_that_stays_open_exits_with_3(bent, tmp_path, capsys):
    box = ("--low", -1, -1, "--high", -0.5, 1, "--budget-s", 1)
    code, found = monotone(capsys, bent, tmp_path / "part", "--signs", -1, 0, 0, 1, *box)
    assert (code, found["status"], found["level"], found["claim"]) == (3, "unknown", "unknown", "")
    assert found["signs"] == [[-1, 0], [0, 0]] and found["reason"].startswith("1 of 2 signs")
    assert found["results"][0]["level"] == "proved" and main(["check", *found["certificates"]]) == 0
    capsys.readouterr()
    code, found = monotone(capsys, bent, tmp_path / "nothing", "--signs", 0, 0, 0, 1, *box)
    assert (code, found["status"], found["certificates"], found["results"]) == (3, "unknown", [], [])
    assert found["reason"].startswith("no sign could be proved")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--monotone --signs 1", "--signs has 1 numbers, expected 2"),
        ("--monotone --signs 0 0", "not all of them 0"),
        ("--monotone --signs 1 2", "--signs"),
        ("--signs 1 1", "expected both or only --monotone"),
        ("--monotone --low 0 --high 1", "--low has 1 numbers, expected 2"),
        ("--monotone --low 0 0 --high 0 0", "no input varies"),
        ("--monotone --low 0 0 --high 0 1 --signs 1 1", "x1, which does not vary"),
        ("--monotone --low 0 0", "--low and --high"),
    ],
)
def test_wrong_words_exit_with_2(policy, tmp_path, capsys, words, message):
    code, found = lipctrl_json(capsys, "lipschitz", policy, *words.split(), "--out", tmp_path / "out")
    assert (code, found["status"]) == (2, "error") and message in found["message"]
