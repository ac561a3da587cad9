"""The table of kinds, certificates that rest on others, and the writing of folders: every rule, directly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificate_files import policy_folder
from loops import gain, saturated_scalar

from lipctrl.certificates.checker import kinds, writing
from lipctrl.certificates.checker.bundle import CERTIFICATE, POLICY, PROVENANCE, WEIGHTS, Certificate, parse_certificate, read_certificate
from lipctrl.certificates.checker.graph import graph_to_json
from lipctrl.certificates.checker.kinds import KINDS, check, resolve_about
from lipctrl.certificates.checker.verdict import Verdict, verified
from lipctrl.certificates.checker.writing import certificate_bytes, replace_folder, write_certificate

ASSUMPTIONS = {"sure": (), "tanh": ("tanh is good to 1 ulp",), "model": ("the model error is at most 1/10",)}


class Verifier:
    """Verifies everything, under the assumptions of its kind; counts what it verified."""

    def __init__(self, kind: str) -> None:
        self.assumptions, self.seen = ASSUMPTIONS[kind], list[str]()

    def verify(self, certificate: Certificate) -> Verdict:
        self.seen.append(certificate.sha256)
        if "error" in certificate.claim:
            raise {"deep": RecursionError("stack"), "zero": ZeroDivisionError("by zero")}[certificate.claim["error"]]
        parts = {"claim": "it holds", "arithmetic": certificate.arithmetic, "subject": certificate.digests, "numbers": {"bound": 2.0}}
        return verified(kind=certificate.kind, property="p", assumptions=self.assumptions, **parts)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Verifier]:
    table = {name: Verifier(name) for name in ASSUMPTIONS}
    monkeypatch.setattr(kinds, "KINDS", {name: name for name in table})
    monkeypatch.setattr(kinds, "import_module", table.__getitem__)
    return table


def write(folder: Path, kind: str = "sure", *requires: Path, **claim: Any) -> Path:
    digests = [read_certificate(path).sha256 for path in requires]
    return write_certificate(folder, kind=kind, claim=claim, policy=gain([1.0]), requires=digests)


# --- check --------------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_verifier_of_its_name() -> None:
    assert {"closed-loop-lyapunov-bab", "counterexample", "lipschitz-bound"} <= set(KINDS)
    for kind, module in KINDS.items():
        assert module == "lipctrl.certificates.checker.verifiers." + kind.replace("-", "_")
        assert callable(import_module(module).verify)


def test_reasons_of_rejections(tmp_path: Path, table: dict[str, Verifier]) -> None:
    verdict = check(write(tmp_path / "a", "astrology", property="luck"))
    assert verdict.reason == "unknown kind 'astrology', this checker knows sure, tanh, model"
    assert (verdict.kind, verdict.property, verdict.arithmetic) == ("astrology", "luck", "real")
    assert dict(verdict.subject) == {"policy": gain([1.0]).digest()}
    assert check(write(tmp_path / "a", "sure", error="deep")).reason == "nested too deep"
    assert check(write(tmp_path / "a", "sure", error="zero")).reason == "the checker stopped: ZeroDivisionError: by zero"
    nowhere = check(tmp_path / "nowhere")
    assert (nowhere.reason, nowhere.kind, nowhere.property, dict(nowhere.subject)) == ("no such file or folder", "", "", {})
    assert check(write(tmp_path / "a", "x" * 100)).reason.startswith(f"unknown kind '{'x' * 60}', this")
    assert check(write(tmp_path / "a", "astrology", property=["luck"])).property == ""


def test_certificates_may_come_as_paths_or_as_read(tmp_path: Path, table: dict[str, Verifier]) -> None:
    folder = write(tmp_path / "a")
    for source in (folder, str(folder), folder / CERTIFICATE, read_certificate(folder)):
        verdict = check(source)
        assert (verdict.status, verdict.level, verdict.claim, dict(verdict.numbers)) == ("verified", "proved", "it holds", {"bound": 2.0})
    assert len(table["sure"].seen) == 4


def test_what_a_certificate_must_be_about(tmp_path: Path, table: dict[str, Verifier], monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = parse_certificate(*certificate_bytes(kind="sure", claim={}, **saturated_scalar()))
    policy, plant = certificate.digests["policy"], certificate.digests["plant"]
    same, other = policy_folder(tmp_path / "same", gain([-0.5])), policy_folder(tmp_path / "other", gain([0.5]))
    names = tmp_path / "plant_digests.json"
    names.write_text(json.dumps({"gym-pendulum": plant, "van-der-pol": "0" * 64}))
    monkeypatch.setattr(kinds, "PLANT_DIGESTS", names)
    for about in (same, str(same), "gym-pendulum", "GymPendulum-v0", "lipctrl/GymPendulum-v0", ("policy", policy), ("plant", plant), None):
        assert check(certificate, about).status == "verified"
    reason = f"the certificate is about another policy: {policy}, not {gain([0.5]).digest()}"
    assert check(certificate, other).reason == check(certificate, resolve_about(other)).reason == reason
    assert check(certificate, "van-der-pol").reason == f"the certificate is about another plant: {plant}, not {'0' * 64}"
    bare = parse_certificate(*certificate_bytes(kind="sure", claim={}, policy=gain([-0.5])))
    assert check(bare, "gym-pendulum").reason == f"the certificate is about another plant: None, not {plant}"
    assert check(bare, same).status == "verified"
    assert resolve_about(same) == ("policy", policy) and resolve_about("VanDerPol-v0") == ("plant", "0" * 64)
    with pytest.raises(ValueError, match="'nothing' is neither a policy folder nor a shipped plant: gym-pendulum, van-der-pol"):
        check(certificate, "nothing")
    (other / POLICY).write_text("{")
    with pytest.raises(ValueError, match="other is not a readable policy folder"):
        check(certificate, other)


def test_the_shipped_plants_have_digests() -> None:
    digests = kinds._plant_digests()
    assert "pendulum" in digests and all(len(digest) == 64 for digest in digests.values())
    assert resolve_about("pendulum") == resolve_about("lipctrl/Pendulum-v0") == ("plant", digests["pendulum"])


# --- requires -----------------------------------------------------------------------------------------------------------


def test_assumptions_are_added_in_order_and_once(tmp_path: Path, table: dict[str, Verifier]) -> None:
    tanh, model = write(tmp_path / "tanh", "tanh"), write(tmp_path / "model", "model")
    verdict = check(write(tmp_path / "a", "sure", tanh, model))
    assert (verdict.level, verdict.assumptions) == ("proved-for-model", (*ASSUMPTIONS["tanh"], *ASSUMPTIONS["model"]))
    assert (verdict.kind, verdict.property, verdict.claim, verdict.arithmetic) == ("sure", "p", "it holds", "real")
    assert dict(verdict.numbers) == {"bound": 2.0} and dict(verdict.subject) == {"policy": gain([1.0]).digest()}
    assert check(write(tmp_path / "b", "model", tanh, model)).assumptions == (*ASSUMPTIONS["model"], *ASSUMPTIONS["tanh"])
    assert check(write(tmp_path / "c", "tanh", write(tmp_path / "tanh2", "tanh", n=2))).assumptions == ASSUMPTIONS["tanh"]
    sure = check(write(tmp_path / "d", "sure", write(tmp_path / "sure2", "sure", n=2)))
    assert (sure.level, sure.assumptions) == ("proved", ())
    assert check(write(tmp_path / "e", "sure", tmp_path / "a")).assumptions == (*ASSUMPTIONS["tanh"], *ASSUMPTIONS["model"])


def test_required_certificates_are_searched_beside_and_among_those_given(tmp_path: Path, table: dict[str, Verifier]) -> None:
    base = write(tmp_path / "far" / "base", "tanh")
    top = write(tmp_path / "near" / "top", "sure", base)
    reason = f"rests on certificate {read_certificate(base).sha256}, which was not found beside it or among those given"
    assert check(top).reason == reason
    (tmp_path / "near" / "junk").mkdir()
    (tmp_path / "near" / "junk" / CERTIFICATE).write_text("{")
    assert check(top, required=[tmp_path / "nowhere", tmp_path / "near" / "junk", base]).level == "proved-for-model"
    assert check(read_certificate(top)).reason == reason
    assert check(read_certificate(top), required=[base]).level == "proved-for-model"
    beside = write(tmp_path / "far" / "top", "sure", base)
    (tmp_path / "link").symlink_to(beside)
    for source in (beside, beside / CERTIFICATE, tmp_path / "link", str(beside)):
        assert check(source).level == "proved-for-model"


def test_only_so_many_folders_beside_are_searched(tmp_path: Path, table: dict[str, Verifier], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "MAX_BESIDE", 3)
    folder = tmp_path / "run"
    third, fourth = write(folder / "3", "sure", n=3), write(folder / "4", "sure", n=4)
    (folder / "0").mkdir()  # without a certificate: not counted
    write(folder / "1", "sure", n=1), write(folder / "2", "sure", n=2)
    assert check(write(folder / "9", "sure", third)).level == "proved"
    assert "was not found" in check(write(folder / "9", "sure", fourth)).reason


def test_only_what_is_proved_carries_others(tmp_path: Path, table: dict[str, Verifier], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = write(tmp_path / "broken", "sure", error="zero")
    name = read_certificate(broken).sha256[:12]
    reason = f"rests on certificate {name}, which is not proved: the checker stopped: ZeroDivisionError: by zero"
    assert check(write(tmp_path / "top", "sure", broken)).reason == reason
    monkeypatch.setitem(ASSUMPTIONS, "counterexample", ())
    table["counterexample"] = Verifier("counterexample")
    monkeypatch.setitem(kinds.KINDS, "counterexample", "counterexample")
    false = write(tmp_path / "false", "counterexample")
    assert check(false).level == "falsified"
    assert check(write(tmp_path / "top", "sure", false)).reason.endswith("which is not proved: falsified")


def test_chains_of_three_are_the_longest(tmp_path: Path, table: dict[str, Verifier]) -> None:
    last = write(tmp_path / "0")
    for depth in range(1, 5):
        last = write(tmp_path / str(depth), "sure", last)
        verdict = check(last)
        assert verdict.status == ("verified" if depth <= 3 else "rejected")
    assert "more than 3 certificates rest on each other" in verdict.reason


def test_every_certificate_is_read_and_verified_once(tmp_path: Path, table: dict[str, Verifier], monkeypatch: pytest.MonkeyPatch) -> None:
    base = write(tmp_path / "base", "tanh")
    middle = [write(tmp_path / f"middle{k}", "model", base, n=k) for k in range(3)]
    top = write(tmp_path / "top", "sure", *middle)
    read: list[str] = []

    def counted(path: Any) -> Certificate:
        read.append(Path(path).name)
        return read_certificate(path)

    monkeypatch.setattr(kinds, "read_certificate", counted)
    assert check(top).level == "proved-for-model"
    assert (len(table["tanh"].seen), len(table["model"].seen)) == (1, 3)
    assert sorted(read) == sorted(["top", *(path.name for path in tmp_path.iterdir()), *(path.name for path in middle), "base"])


def test_a_certificate_that_changes_while_it_is_read_carries_nothing(
    tmp_path: Path, table: dict[str, Verifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other = write(tmp_path / "base", "tanh"), read_certificate(write(tmp_path / "other", "sure", n=1))
    top = write(tmp_path / "top", "sure", base)
    found = [read_certificate(base), other]

    def changing(path: Any) -> Certificate:
        return found.pop(0) if Path(path).name == "base" else read_certificate(path)

    monkeypatch.setattr(kinds, "read_certificate", changing)
    assert "changed while it was read" in check(top).reason and table["sure"].seen == []


# --- writing ------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Any] = {"kind": "k", "claim": {"property": "p"}, "policy": gain([1.0])}


def test_the_parts_of_a_certificate() -> None:
    data = json.loads(certificate_bytes(**PARTS)[0])
    policy = graph_to_json(PARTS["policy"])
    fixed = {"format": "lipctrl-certificate", "version": 1, "kind": "k", "arithmetic": "real", "claim": {"property": "p"}, "requires": []}
    assert {key: data[key] for key in fixed} == fixed
    assert data["subject"] == {"policy": policy} and data["evidence"] == {} and set(data["tensors"]) == {"file", "sha256"}
    more = {"evidence": {"e": [1]}, "arithmetic": "float32", "requires": ("0" * 64,), "plant": saturated_scalar()["plant"]}
    text, weights = certificate_bytes(**PARTS, **more, tensors={"evidence/x": np.array([[1.0, 2.0], [3.0, 4.0]]).T})
    data = json.loads(text)
    assert text.endswith(b"}\n") and data["subject"] == {"policy": policy, "plant": more["plant"]}
    assert (data["evidence"], data["arithmetic"], data["requires"]) == ({"e": [1]}, "float32", ["0" * 64])
    assert parse_certificate(text, weights).tensors["evidence/x"].tolist() == [[1, 3], [2, 4]]


def test_folders_are_written_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    assert write_certificate(folder, **PARTS) == folder and isinstance(write_certificate(str(folder), **PARTS), Path)
    expected = dict(zip((CERTIFICATE, WEIGHTS), certificate_bytes(**PARTS), strict=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    write_certificate(folder, provenance={"b": 1, "a": {}}, **PARTS)
    assert (folder / PROVENANCE).read_bytes() == b'{\n "a": {},\n "b": 1\n}\n'
    write_certificate(folder, provenance={}, **PARTS)
    assert (folder / PROVENANCE).read_bytes() == b"{}\n"
    write_certificate(folder, **PARTS)
    assert not (folder / PROVENANCE).exists() and [path.name for path in folder.parent.iterdir()] == ["c"]


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    members = {CERTIFICATE: b"{}"}
    (tmp_path / "file").write_text("")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("")
    for name in ("file", "work"):
        with pytest.raises(ValueError, match=f"{name} exists and holds more than a certificate"):
            replace_folder(tmp_path / name, members)
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    for name in (CERTIFICATE, WEIGHTS, POLICY, PROVENANCE):
        (tmp_path / "run" / name).write_text("")
    for name in ("empty", "run"):
        replace_folder(tmp_path / name, members)
        assert [(path.name, path.read_bytes()) for path in (tmp_path / name).iterdir()] == [(CERTIFICATE, b"{}")]
    assert {path.name for path in tmp_path.iterdir()} == {"file", "work", "empty", "run"}


def _fails_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = [0]

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise OSError("disk full")
        return function(*arguments, **options)

    return failing


def test_a_failed_write_leaves_the_earlier_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_certificate(tmp_path / "c", **PARTS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for call in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", _fails_at(call, Path.write_bytes))
            with pytest.raises(OSError, match="disk full"):
                write_certificate(folder, **{**PARTS, "kind": "other"})
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["c"]
    with pytest.raises(Exception, match="arithmetic must be"):
        write_certificate(folder, **{**PARTS, "arithmetic": "float16"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_new_folders_are_made_beside_the_old_one_and_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only within one file system is a folder moved in one step."""
    moves: list[tuple[Path, Path]] = []

    def noted(source: Any, target: Any) -> None:
        moves.append((Path(source), Path(target)))
        os.rename(source, target)

    monkeypatch.setattr(writing.os, "replace", noted)
    for _ in range(2):
        write_certificate(tmp_path / "c", **PARTS)
    (new, folder), (old, aside), (again, _) = moves
    assert folder == old == tmp_path / "c" and aside.name == "old" and new.name == again.name == "new"
    assert all(path.parent.name.startswith(".c-") and path.parent.parent == tmp_path for path in (new, aside, again))
