"""``lipctrl-check``: the whole of what it prints and its exit code, for every outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loops import gain

from lipctrl.certificates.checker import command, kinds
from lipctrl.certificates.checker.bundle import read_certificate
from lipctrl.certificates.checker.command import describe, holds, main, report, run, summary
from lipctrl.certificates.checker.verdict import Verdict, rejected, verified
from lipctrl.certificates.checker.writing import write_certificate

DIGEST = gain([1.0]).digest()


def verdict(kind: str = "sure", **parts: Any) -> Verdict:
    given = {"property": "p", "claim": f"{kind} holds", "arithmetic": "real", "subject": {"policy": DIGEST}, **parts}
    return verified(kind=kind, **given)


PROVED, ASSUMED = verdict(), verdict("tanh", assumptions=("tanh is good to 1 ulp",), numbers={"bound": 2.0})
FALSE, REJECTED = verdict("counterexample"), rejected("it does not hold", kind="bad", property="p", arithmetic="real")


class Verifier:
    @staticmethod
    def verify(certificate: Any) -> Verdict:
        return {"sure": PROVED, "tanh": ASSUMED, "counterexample": FALSE}[certificate.kind]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(kinds, "KINDS", dict.fromkeys(("sure", "tanh", "counterexample"), ""))
    monkeypatch.setattr(kinds, "import_module", lambda name: Verifier)
    monkeypatch.chdir(tmp_path)
    for kind in ("sure", "tanh", "counterexample", "bad"):
        write_certificate(Path(kind), kind=kind, claim={}, policy=gain([1.0]))
    requires = [read_certificate("tanh").sha256]
    write_certificate(Path("far") / "top", kind="sure", claim={}, policy=gain([1.0]), requires=requires)
    return {path.name: path.name for path in tmp_path.iterdir()}


EMPTY = {"kind": "", "property": "", "claim": "", "reason": "", "subject": {}, "arithmetic": "", "assumptions": [], "numbers": {}}


def entry(path: str, status: str, level: str, **parts: Any) -> dict[str, Any]:
    return {**EMPTY, "certificate": path, "status": status, "level": level, **parts}


SURE = entry("a", "verified", "proved", kind="sure", property="p", claim="sure holds", subject={"policy": DIGEST}, arithmetic="real")
TANH = {**SURE, "certificate": "b", "level": "proved-for-model", "kind": "tanh", "claim": "tanh holds"}
TANH |= {"assumptions": ["tanh is good to 1 ulp"], "numbers": {"bound": 2.0}}
WRONG = {**SURE, "certificate": "c", "level": "falsified", "kind": "counterexample", "claim": "counterexample holds"}
BAD = entry("d", "rejected", "unknown", kind="bad", property="p", reason="it does not hold", arithmetic="real")


def test_the_json_of_several_verdicts() -> None:
    found = report([("a", PROVED), ("b", ASSUMED)], 1.5)
    assert found == {
        "verb": "check",
        "status": "ok",
        "level": "proved-for-model",
        "claim": "sure holds tanh holds",
        "certificates": ["a", "b"],
        "seconds": 1.5,
        "results": [SURE, TANH],
    }
    found = report([("c", FALSE), ("a", PROVED), ("d", REJECTED)], 0.0)
    assert (found["status"], found["level"], found["claim"]) == ("refuted", "unknown", "counterexample holds sure holds")
    assert (found["certificates"], found["results"]) == (["c", "a", "d"], [WRONG, SURE, BAD])
    json.dumps(found)


@pytest.mark.parametrize(
    ("verdicts", "status", "level"),
    [
        ([PROVED], "ok", "proved"),
        ([ASSUMED, PROVED], "ok", "proved-for-model"),
        ([FALSE], "refuted", "falsified"),
        ([PROVED, FALSE], "refuted", "falsified"),
        ([REJECTED], "unknown", "unknown"),
        ([REJECTED, PROVED], "unknown", "unknown"),
        ([REJECTED, FALSE, PROVED], "refuted", "unknown"),
    ],
)
def test_the_outcome_of_several_verdicts(verdicts: list[Verdict], status: str, level: str) -> None:
    named = [(str(index), verdict) for index, verdict in enumerate(verdicts)]
    assert (summary(named), report(named, 0.0)["level"]) == (status, level)
    assert holds(named) is (status == "ok")


def test_what_people_read() -> None:
    assert describe("a", PROVED) == f"a: verified, level proved\n  sure holds\n  policy {DIGEST}"
    assert describe("d", REJECTED) == "d: rejected, level unknown\n  it does not hold"
    lines = ["b: verified, level proved-for-model", "  tanh holds", "  assuming: tanh is good to 1 ulp", f"  policy {DIGEST}"]
    assert describe("b", ASSUMED).splitlines() == lines


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["sure"], 0),
        (["sure", "tanh"], 0),
        (["sure", "sure"], 0),
        (["counterexample"], 1),
        (["sure", "counterexample"], 1),
        (["bad"], 1),
        (["sure", "bad"], 1),
        (["far/top"], 1),
        (["far/top", "tanh"], 0),
        (["tanh", "far/top"], 0),
        (["sure", "nowhere"], 2),
        (["sure", "--about", "nothing"], 2),
        (["sure", "--about", "pendulum"], 1),
        (["sure", "--about", "plant.py"], 2),
        ([], 2),
        (["sure", "--unknown"], 2),
        (["--help"], 0),
    ],
)
def test_exit_codes(written: dict[str, str], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert bool(captured.err) == (code == 2)
    assert bool(captured.out) == (code != 2)


def test_the_whole_of_the_json(written: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([3.0, 5.5])
    monkeypatch.setattr(command.time, "perf_counter", lambda: next(ticks))
    assert main(["tanh", "counterexample", "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == "" and captured.out.count("\n") == 1
    assert found["results"] == [{**TANH, "certificate": "tanh"}, {**WRONG, "certificate": "counterexample"}]
    assert (found["seconds"], found["verb"], found["certificates"]) == (2.5, "check", ["tanh", "counterexample"])


def test_the_text_of_several(written: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sure", "tanh"]) == 0
    assert capsys.readouterr().out == describe("sure", PROVED) + "\n" + describe("tanh", ASSUMED) + "\n"


@pytest.mark.parametrize(
    ("arguments", "about", "message"),
    [
        ([], None, "no certificate was given"),
        (["sure", "nowhere", "neither"], None, "no such file or folder: nowhere"),
        (["sure"], "plant.py", "plant.py is code, which this command never executes; use lipctrl check --about plant.py"),
    ],
)
def test_mistakes(
    written: dict[str, str], capsys: pytest.CaptureFixture[str], arguments: list[str], about: str | None, message: str
) -> None:
    assert run(arguments, about=about) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"lipctrl-check: {message}\n")
    assert run(arguments, about=about, as_json=True) == 2
    captured = capsys.readouterr()
    expected = {"verb": "check", "status": "error", "message": message, "level": "unknown", "claim": "", "seconds": 0.0, "results": []}
    assert json.loads(captured.out) == {**expected, "certificates": arguments}
    assert captured.err == f"lipctrl-check: {message}\n"
