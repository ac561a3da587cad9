"""``check`` and ``lipctrl-check``: any bytes end in a verdict, exit codes can be relied on, nothing else is imported."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from certificate_files import policy_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import counterexample, gain, interval, linear_plant, saturated_scalar
from mutations import mutants

from lipctrl.certificates.checker import kinds
from lipctrl.certificates.checker.bundle import CERTIFICATE, WEIGHTS, read_certificate
from lipctrl.certificates.checker.command import describe, main
from lipctrl.certificates.checker.kinds import KINDS, check, resolve_about
from lipctrl.certificates.checker.verdict import Rejected, verified
from lipctrl.certificates.checker.writing import write_certificate


@pytest.fixture
def folder(tmp_path):
    evidence = {"state": ["500999/100000"]}
    return counterexample(tmp_path / "c", "forward_invariant", interval("251/10", -6, 6), evidence=evidence, **saturated_scalar())


class _Stub:
    """A verifier for tests of everything around verifiers."""

    def __init__(self, assumptions=(), error=None):
        self.assumptions, self.error = assumptions, error

    def verify(self, certificate):
        if self.error is not None:
            raise self.error
        claim = str(certificate.claim.get("sentence", "it holds"))
        return verified(
            kind=certificate.kind, property="p", claim=claim, arithmetic="real", subject=certificate.digests, assumptions=self.assumptions
        )


@pytest.fixture
def stubs(monkeypatch):
    table = {"sure": _Stub(), "assuming": _Stub(("tanh is good to 1 ulp",)), "other": _Stub(("the model error is at most 1/10",))}
    table |= {"broken": _Stub(error=ZeroDivisionError("no")), "deep": _Stub(error=RecursionError()), "greedy": _Stub(error=MemoryError())}
    monkeypatch.setattr(kinds, "KINDS", {name: name for name in table})
    monkeypatch.setattr(kinds, "import_module", table.__getitem__)
    return table


def write(folder, kind, requires=(), **claim):
    return write_certificate(folder, kind=kind, claim=claim, policy=gain([1.0]), requires=requires)


def digest(folder):
    return read_certificate(folder).sha256


# --- check --------------------------------------------------------------------------------------------------------------


def test_every_kind_of_the_table_has_a_verifier():
    folder = Path(kinds.__file__).parent / "verifiers"
    assert {name.rpartition(".")[2] for name in KINDS.values()} == {
        file.stem for file in folder.glob("*.py") if "\ndef verify(" in file.read_text()
    }


@pytest.mark.parametrize("path", ["", "nowhere", "/dev/null", "/dev/zero", "a\0b", "."])
def test_paths_that_hold_no_certificate(path):
    assert check(path).status == "rejected"


def test_a_rejection_names_what_was_read(tmp_path):
    verdict = check(write(tmp_path / "a", "astrology", property="luck"))
    assert (verdict.kind, verdict.property, verdict.arithmetic) == ("astrology", "luck", "real")
    assert verdict.subject == {"policy": gain([1.0]).digest()}
    for claim in ({}, {"property": 3}):
        assert check(write(tmp_path / "a", "astrology", **claim)).property == ""


def test_unknown_kinds_are_rejected(tmp_path):
    assert "unknown kind 'astrology'" in check(write(tmp_path / "a", "astrology")).reason
    assert check(write(tmp_path / "b", "os")).status == "rejected"


@pytest.mark.parametrize("kind", ["broken", "deep", "greedy"])
def test_a_verifier_that_stops_proves_nothing(tmp_path, stubs, kind):
    verdict = check(write(tmp_path / "a", kind))
    assert (verdict.status, verdict.level, verdict.kind) == ("rejected", "unknown", kind)
    assert verdict.subject == {"policy": gain([1.0]).digest()}


def test_ctrl_c_is_not_a_verdict(tmp_path, stubs):
    stubs["sure"].error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        check(write(tmp_path / "a", "sure"))


# --- requires -----------------------------------------------------------------------------------------------------------


def test_required_certificates_are_found_beside_or_given_and_weaken_the_level(tmp_path, stubs):
    base = write(tmp_path / "a" / "base", "assuming")
    beside, far = (write(tmp_path / name / "top", "sure", [digest(base)]) for name in ("a", "b"))
    for path in (beside, beside / CERTIFICATE):
        verdict = check(path)
        assert (verdict.level, verdict.assumptions) == ("proved-for-model", ("tanh is good to 1 ulp",))
        assert verdict.claim == "it holds"
    assert "was not found" in check(far).reason
    assert "was not found" in check(read_certificate(beside)).reason
    assert check(far, required=[tmp_path / "nowhere", base]).level == "proved-for-model"
    both = write(tmp_path / "c", "other", [digest(base), digest(write(tmp_path / "sure", "sure"))])
    assert check(both, required=[base]).assumptions == ("the model error is at most 1/10", "tanh is good to 1 ulp")
    assert check(write(tmp_path / "a" / "strong", "sure", [digest(write(tmp_path / "a" / "sure", "sure"))])).level == "proved"


def test_certificates_that_do_not_hold_carry_nothing(tmp_path, stubs):
    broken = write(tmp_path / "broken", "broken")
    assert "not proved" in check(write(tmp_path / "top", "sure", [digest(broken)])).reason


def test_a_counterexample_carries_nothing(tmp_path, folder, monkeypatch):
    table = {"counterexample": kinds.import_module(KINDS["counterexample"]), "sure": _Stub()}
    monkeypatch.setattr(kinds, "KINDS", {name: name for name in table})
    monkeypatch.setattr(kinds, "import_module", table.__getitem__)
    assert "falsified" in check(write(tmp_path / "top", "sure", [digest(folder)])).reason


def test_chains_are_short(tmp_path, stubs):
    below = write(tmp_path / "0", "sure")
    for depth in range(1, 6):
        below = write(tmp_path / str(depth), "sure", [digest(below)])
        assert check(below).status == ("verified" if depth <= kinds.MAX_CHAIN else "rejected")


# --- about --------------------------------------------------------------------------------------------------------------


def test_about_compares_digests(tmp_path, folder, monkeypatch):
    table = tmp_path / "plant_digests.json"
    digests = read_certificate(folder).digests
    table.write_text(json.dumps({"gym-pendulum": digests["plant"], "van-der-pol": "0" * 64}))
    monkeypatch.setattr(kinds, "PLANT_DIGESTS", table)
    same, other = (policy_folder(tmp_path / str(g), gain([g])) for g in (-0.5, -0.25))
    for about in (same, str(same), "gym-pendulum", "lipctrl/GymPendulum-v0", "GymPendulum-v0"):
        assert check(folder, about=about).status == "verified"
    for about in (other, "van-der-pol", "lipctrl/VanDerPol-v0"):
        assert "about another" in check(folder, about=about).reason
    assert check(counterexample(tmp_path / "p", "lipschitz", {}, gain([-0.5])), about="gym-pendulum").reason.startswith(
        "the certificate is about"
    )
    assert check(folder, about=resolve_about(same)).status == "verified"
    assert "about another policy" in check(folder, about=resolve_about(other)).reason
    for about in ("nothing", "", tmp_path):
        with pytest.raises(ValueError, match="neither a policy folder nor a shipped plant: gym-pendulum, van-der-pol"):
            resolve_about(about)
    (same / "policy.json").write_text("{")
    with pytest.raises(ValueError, match="not a readable policy folder"):
        resolve_about(same)
    monkeypatch.setattr(kinds, "PLANT_DIGESTS", tmp_path / "none.json")
    with pytest.raises(ValueError, match="shipped plant: none"):
        resolve_about("gym-pendulum")


# --- the command --------------------------------------------------------------------------------------------------------


def test_exit_codes(tmp_path, stubs, capsys):
    good, bad = write(tmp_path / "good", "sure"), write(tmp_path / "bad", "broken")
    assert main([str(good)]) == 0
    assert main([str(good), str(good)]) == 0
    assert main([str(good), str(bad)]) == 1
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(good), "--about", "nothing"]) == 2
    assert main([]) == 2
    assert main(["--unknown"]) == 2
    assert main(["--help"]) == 0
    assert "example:" in capsys.readouterr().out


def test_a_verified_counterexample_means_that_the_property_does_not_hold(folder, capsys):
    assert main([str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["level"], report["results"][0]["status"]) == ("refuted", "falsified", "verified")


def test_a_rejected_file_refutes_nothing_and_hides_no_counterexample(tmp_path, folder, capsys):
    junk = tmp_path / "junk.json"
    junk.write_bytes(b"\0")
    for paths, status, level in (
        ([junk], "unknown", "unknown"),
        ([junk, folder], "refuted", "unknown"),
        ([folder], "refuted", "falsified"),
    ):
        assert main([*map(str, paths), "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert (report["status"], report["level"]) == (status, level)


def test_code_is_never_executed(tmp_path, folder, capsys):
    plant = tmp_path / "plant.py"
    plant.write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    assert main([str(folder), "--about", str(plant), "--json"]) == 2
    assert f"use lipctrl check --about {plant}" in json.loads(capsys.readouterr().out)["message"]
    assert not (tmp_path / "trace").exists()


def test_json_is_one_object_with_the_promised_keys(tmp_path, stubs, capsys):
    good, bad = str(write(tmp_path / "good", "assuming")), str(write(tmp_path / "bad", "broken"))
    assert main([good, bad, "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert (report["verb"], report["status"], report["level"]) == ("check", "unknown", "unknown")
    assert report["certificates"] == [good, bad]
    assert report["claim"] == "it holds"
    assert report["seconds"] >= 0
    keys = {"certificate", "status", "level", "kind", "property", "claim", "reason", "subject"}
    assert all(keys <= set(result) for result in report["results"])
    assert [result["level"] for result in report["results"]] == ["proved-for-model", "unknown"]
    assert main([good, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
    assert main([good, "nowhere", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "error"
    assert "no such file or folder: nowhere" in captured.err


def test_what_people_read_names_level_claim_assumptions_and_subject(tmp_path, stubs):
    path = write(tmp_path / "a", "assuming", sentence="it\x1b[2J holds")
    text = describe("a", check(path))
    assert text.splitlines() == [
        "a: verified, level proved-for-model",
        "  it\\x1b[2J holds",
        "  assuming: tanh is good to 1 ulp",
        f"  policy {gain([1.0]).digest()}",
    ]


def test_the_checker_imports_nothing_but_its_own_floor(folder):
    code = (
        "import sys; from lipctrl.certificates.checker.command import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'cvxpy', 'scipy', 'casadi', 'tyro', 'gymnasium', 'matplotlib'} & set(sys.modules);"
        "own = {m for m in sys.modules if m.startswith('lipctrl.') and not m.startswith('lipctrl.certificates')};"
        "sys.exit(f'{heavy} {own}' if heavy or own else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "level falsified" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "lipctrl.certificates.checker", str(folder)], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 1


# --- any bytes ----------------------------------------------------------------------------------------------------------


def is_rejected(path):
    verdict = check(path)
    return verdict.status == "rejected" and verdict.level == "unknown" and verdict.reason != "" and verdict.reason.isprintable()


@settings(max_examples=150)
@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from([b"", b"{", b"PK\3\4", b"PK\5\6" + bytes(18), b'{"format":']))
def test_random_bytes(tmp_path_factory, first, second, start):
    folder = tmp_path_factory.mktemp("x")
    (folder / CERTIFICATE).write_bytes(start + first)
    (folder / WEIGHTS).write_bytes(second)
    assert is_rejected(folder)
    assert is_rejected(folder / WEIGHTS)


def test_damaged_zips(folder, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (CERTIFICATE, WEIGHTS):
            archive.write(folder / name, name)
    data, path, generator = buffer.getvalue(), tmp_path / "a.zip", random.Random(0)
    path.write_bytes(data)
    assert check(path).status == "verified"
    for size in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:size])
        assert is_rejected(path)
    accepted = 0
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(changed))
        if check(path).status == "verified":  # a flip in a date or another field without meaning
            accepted += 1
            assert read_certificate(path).sha256 == digest(folder)
    assert accepted < 100


def test_damaged_json(folder, tmp_path):
    text, generator = (folder / CERTIFICATE).read_bytes(), random.Random(1)
    weights = (folder / WEIGHTS).read_bytes()
    target = tmp_path / "d"
    target.mkdir()
    (target / WEIGHTS).write_bytes(weights)
    for _ in range(400):
        start, length = generator.randrange(len(text)), generator.randint(0, 40)
        junk = generator.choice([b"", b"[", b"null", b'"x"', b"1e999", b"-", bytes([generator.randrange(256)]), b"[" * 1000])
        (target / CERTIFICATE).write_bytes(text[:start] + junk + text[start + length :])
        verdict = check(target)
        assert verdict.status in ("verified", "rejected")
        if verdict.status == "verified":
            assert verdict.level == "falsified"


def test_mutants_through_the_command(folder, tmp_path, capsys):
    """Mutants end in a verdict: exit code 1 (a rejected file, or a counterexample that still holds), never 0 and never a traceback."""
    for index, mutant in enumerate(mutants(folder, 50, seed=3)):
        assert main([str(mutant.write(tmp_path / str(index))), "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["level"] in ("unknown", "falsified")


def test_hostile_files_end_quickly(tmp_path):
    blanks, tokens = b" " * (60 << 20), b"[" + b"0," * 1_500_000 + b"0]"
    cases = [blanks, tokens, b'"' + b"a" * (60 << 20) + b'"', b"[" * 1_900_000, b"[" + b"1" * (30 << 20) + b"]"]
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"")
    start = time.perf_counter()
    for data in cases:
        (folder / CERTIFICATE).write_bytes(data)
        assert is_rejected(folder)
    assert time.perf_counter() - start < 20


def test_a_policy_with_large_numbers_everywhere_is_bounded(tmp_path):
    huge = float(np.finfo(np.float32).max)
    plant = linear_plant([["1" + "0" * 4000]], [["1/" + "9" * 4000]])
    start = time.perf_counter()
    path = counterexample(tmp_path / "c", "asymptotically_stable", {}, gain([huge], bias=[huge]), plant=plant)
    assert check(path).status == "rejected"
    assert time.perf_counter() - start < 10


def test_reading_raises_only_rejected(tmp_path):
    for name in ("missing", "dir"):
        (tmp_path / "dir").mkdir(exist_ok=True)
        with pytest.raises(Rejected):
            read_certificate(tmp_path / name)


def test_a_certificate_that_many_rest_on_is_verified_once(tmp_path, stubs):
    """Eight that rest on eight that rest on eight would be 584 verifications."""
    verified = []
    stubs["sure"].verify = lambda certificate: verified.append(certificate.sha256) or _Stub().verify(certificate)
    layer = [digest(write(tmp_path / "0", "sure"))]
    for depth in (1, 2):
        layer = [digest(write(tmp_path / f"{depth}{k}", "sure", layer * (8 if depth == 1 else 1), name=k)) for k in range(8)]
    assert check(write(tmp_path / "top", "sure", layer)).level == "proved"
    assert len(verified) == len(set(verified)) == 18
