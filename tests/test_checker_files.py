"""Every rule of reading a certificate, a plant or a policy folder, each with the smallest file that breaks it; limits on both sides."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificate_files import Change, entry, policy_folder, put, safetensors_file, zipped
from loops import Sketch, gain, identity, linear_plant, saturated_scalar

from lipctrl.certificates.checker import bundle
from lipctrl.certificates.checker.bundle import (
    CERTIFICATE,
    PROVENANCE,
    WEIGHTS,
    fields,
    floats,
    graph_cost,
    number,
    numbers,
    parse_certificate,
    parse_json,
    parse_plant,
    parse_tensors,
    read_certificate,
    read_policy_folder,
)
from lipctrl.certificates.checker.graph import Graph, Node, graph_to_json
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.writing import certificate_bytes, write_certificate


def refused(reason: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(Rejected, match=reason):
        function(*arguments, **options)


# --- fields and numbers -----------------------------------------------------------------------------------------------


def test_fields_name_what_is_wrong() -> None:
    assert fields({"a": 1, "b": 2}, ("a",), "table", optional=("b",)) == {"a": 1, "b": 2}
    refused(r"table must be a table with the keys \['a', 'c'\]", fields, ["a"], ("c", "a"), "table")
    refused(r"table: missing keys \['a'\], unknown keys \[\]", fields, {}, ("a",), "table")
    refused(r"table: missing keys \[\], unknown keys \['c'\]", fields, {"a": 1, "c": 2}, ("a",), "table", optional=("b",))
    refused(r"table: missing keys \['a'\], unknown keys \[\]", fields, {"b": 1}, ("a",), "table", optional=("b",))


def test_the_greatest_and_the_smallest_hex_floats() -> None:
    for text in ("0x1.fffffffffffffp+1023", "-0x1.fffffffffffffp+1023", "0x0.0000000000001p-1022", "0x1.0000000000000p-1022", "0x0.0p+0"):
        assert number(text) == Fraction(float.fromhex(text))
    for text in ("0x1.fffffffffffffp+1024", "0x1.0000000000000p+9999", "0x1.0000000000000p-1075", "-0x1.8p+1", "0x1.8p+1x", "x"):
        refused("what: .* is not a hex float as float.hex", number, text, "what")
    refused("what: expected a rational", number, "1.5", "what")


def test_lists_of_numbers_have_their_length() -> None:
    assert numbers(["1", "2"], 2) == (1, 2) and numbers([], 0) == ()
    refused("what must be a list of 2 numbers", numbers, ["1", "2", "3"], 2, "what")
    refused("what must be a list of 0 numbers", numbers, ["1"], 0, "what")
    refused("what must be a list of numbers", numbers, "12", None, "what")
    refused("what must be a list of 2 numbers", numbers, {"1": 1, "2": 2}, 2, "what")
    exact = floats(["1/2", "0x1.0000000000000p-1022"], 2)
    assert exact.dtype == np.float64 and exact.tolist() == [0.5, 2.0**-1022]
    refused("what: a number is not exactly", floats, ["1/2", "1/3"], 2, "what")
    refused("what: a number is too large", floats, ["1" + "0" * 309], 1, "what")
    refused("what must be a list of 2 numbers", floats, ["1"], 2, "what")


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_has_a_greatest_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_TOKENS", 3)
    for text in ("[1,2,3]", '{"a":[1,2]}', "[[[]]]", '{"a":1,"b":2,"c":3}'):
        assert parse_json(text.encode(), "file") == json.loads(text)
    for text in ("[1,2,3,4]", '{"a":[1,2,3]}', "[[[[]]]]", '{"a":1,"b":2,"c":3,"d":4}', "{" * 4):
        refused("file: more than 3 values", parse_json, text.encode(), "file")


def test_integers_and_decimals_of_json() -> None:
    assert parse_json(b"[1234567890123456, -1.5e3]", "file", decimals=True) == [1234567890123456, -1500.0]
    refused("integer 12345678901234567... is too long", parse_json, b"12345678901234567", "file")
    refused("1e999 is not allowed", parse_json, b"[1e999]", "file", decimals=True)
    refused("-1e999 is not allowed", parse_json, b"[-1e999]", "file", decimals=True)
    refused("Infinity is not allowed", parse_json, b"[Infinity]", "file", decimals=True)
    refused("1.5 is not allowed", parse_json, b"[1.5]", "file")


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_are_rows_of_little_endian_floats() -> None:
    header = {"b": entry("F64", (2,), (24, 40)), "a": entry("F32", (3, 2), (0, 24)), "__metadata__": {"x": "y"}}
    read = parse_tensors(safetensors_file(header, struct.pack("<6f2d", 1, 2, 3, 4, 5, 6, 0.1, -2)))
    assert list(read) == ["a", "b"] and [t.dtype for t in read.values()] == [np.float32, np.float64]
    assert read["a"].tolist() == [[1, 2], [3, 4], [5, 6]] and read["b"].tolist() == [0.1, -2]
    assert parse_tensors(safetensors_file({})) == {}


FITS = "offsets .* do not fit"
FORM = "expected F32 or F64, one or two sizes, two offsets"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header length 0 does not fit"),
        (b"\2\0\0\0\0\0\0", "header length 2 does not fit"),
        (struct.pack("<Q", 0), "header is not JSON"),
        (struct.pack("<Q", 3) + b"{}", "header length 3 does not fit"),
        (struct.pack("<Q", 1) + b"{}", "header is not JSON"),
        (safetensors_file(b"[]"), "header is not a table"),
        (safetensors_file({"a": 3}), "tensor 'a' must be a table"),
        (safetensors_file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), r"tensor 'a': missing keys \['data_offsets'\]"),
        (safetensors_file({"a": entry("F16", (2,))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=())}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=(1, 1, 1))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=(0,), offsets=(0, 0))}), FORM),
        (safetensors_file({"a": entry(shape=(1, 0), offsets=(0, 0))}), FORM),
        (safetensors_file({"a": entry(shape=(-1, -1))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=(-1,), offsets=(0, -4))}), FORM),
        (safetensors_file({"a": entry(shape=(True,))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=(True, 1))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=(1, True))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=(1, -1))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(offsets=(False, 4))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(offsets=(0, -4))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(shape=(1.0,))}, bytes(4)), "not allowed"),
        (safetensors_file({"a": {**entry(), "shape": {}}}, bytes(4)), FORM),
        (safetensors_file({"a": {**entry(), "shape": "1"}}, bytes(4)), FORM),
        (safetensors_file({"a": entry(offsets=(0,))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(offsets=(0, 4, 4))}, bytes(4)), FORM),
        (safetensors_file({"a": entry(offsets=("0", "4"))}, bytes(4)), FORM),
        (safetensors_file({"a": {**entry(), "data_offsets": None}}, bytes(4)), FORM),
        (safetensors_file({"a": {**entry(), "data_offsets": {"0": 4}}}, bytes(4)), FORM),
        (safetensors_file({"a": entry(offsets=(4, 8))}, bytes(8)), FITS),
        (safetensors_file({"a": entry(offsets=(4, 0))}, bytes(4)), FITS),
        (safetensors_file({"a": entry(offsets=(0, 8))}, bytes(8)), FITS),
        (safetensors_file({"a": entry(shape=(2,))}, bytes(4)), FITS),
        (safetensors_file({"a": entry("F64")}, bytes(4)), FITS),
        (safetensors_file({"a": entry(shape=(2, 3), offsets=(0, 20))}, bytes(20)), FITS),
        (safetensors_file({"a": entry()}, bytes(3)), FITS),
        (safetensors_file({"a": entry()}), FITS),
        (safetensors_file({"a": entry(), "b": entry()}, bytes(4)), FITS),
        (safetensors_file({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), FITS),
        (safetensors_file({"a": entry()}, struct.pack("<f", np.nan)), "not finite"),
        (safetensors_file({"a": entry(shape=(2,), offsets=(0, 8))}, struct.pack("<2f", 1, -np.inf)), "not finite"),
        (safetensors_file({"a": entry()}, bytes(5)), "1 bytes belong to no tensor"),
        (safetensors_file({}, bytes(4)), "4 bytes belong to no tensor"),
    ],
)
def test_every_rule_of_the_weights_file(data: bytes, reason: str) -> None:
    refused(reason, parse_tensors, data)


def test_a_header_is_as_long_as_its_cap_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_HEADER", 10)
    assert parse_tensors(safetensors_file(b"{" + b" " * 8 + b"}")) == {}
    refused("header length 11 does not fit", parse_tensors, safetensors_file(b"{" + b" " * 9 + b"}"))


# --- certificates -----------------------------------------------------------------------------------------------------

PARTS: dict[str, Any] = {"kind": "k", "claim": {"property": "p"}, "evidence": {"e": 1}, **saturated_scalar()}


def test_a_certificate_is_read_whole() -> None:
    requires = [f"{k:064x}" for k in range(8)]
    data, weights = certificate_bytes(**PARTS, requires=requires, arithmetic="float32", tensors={"evidence/x": np.array([0.5])})
    read = parse_certificate(data, weights)
    assert (read.kind, read.arithmetic, read.claim, read.evidence) == ("k", "float32", {"property": "p"}, {"e": 1})
    assert read.requires == tuple(requires) and read.sha256 == hashlib.sha256(data).hexdigest()
    assert read.tensors["evidence/x"].tolist() == [0.5] and set(read.tensors) == {"t0", "evidence/x"}
    assert set(read.policy.tensors) == {"t0"}
    assert read.digests == {
        "policy": "90dcb7ea340a4b977f77aa90d2245395f451662a3a5970a3edb97f2b139da3f7",
        "plant": "94cd682e32223fe0da9eee33a6b6dd4c6edd7229b4f3bdd7a46170f82774a18f",
    }


def test_the_bytes_of_a_certificate_are_pinned() -> None:
    data, weights = certificate_bytes(**PARTS)
    assert hashlib.sha256(data).hexdigest() == "e164c3fd9cf105e41dc7ea7f07378c96d3cee2c3912ac298fa2b0eb4234196ff"
    assert hashlib.sha256(weights).hexdigest() == "3870934eedb699beada72eeda0ce411eafb05e28f9c6e25c4fa17777b35f1797"


CHANGES: list[tuple[Change, str]] = [
    (lambda data: [data], "must be a table"),
    (put("format", "lipctrl-policy"), "expected format"),
    (put("version", 2), "expected format"),
    (put("version", True), "expected format"),
    (put("version", "1"), "expected format"),
    (put("kind", 3), "kind a text"),
    (put("arithmetic", "float64"), "arithmetic must be"),
    (put("arithmetic", None), "arithmetic must be"),
    (put("claim", []), "claim and evidence must be tables"),
    (put("evidence", []), "claim and evidence must be tables"),
    (put("requires", {}), "requires must be a list of at most 8"),
    (put("requires", ["0" * 64] * 9), "requires must be a list of at most 8"),
    (put("requires", ["0" * 64, "0" * 63]), "requires must be"),
    (put("requires", ["0" * 65]), "requires must be"),
    (put("requires", ["A" * 64]), "requires must be"),
    (put("requires", ["g" * 64]), "requires must be"),
    (put("requires", [["0" * 64]]), "requires must be"),
    (put("tensors.sha256", "0" * 64), "differs from the digest"),
    (put("tensors.file", "other"), "differs from the digest"),
    (put("tensors.extra", 1), "differs from the digest"),
    (put("subject", None), "subject must be a table"),
    (put("subject", {}), r"subject: missing keys \['policy'\]"),
    (put("subject.world", 1), r"subject: missing keys \[\], unknown keys \['world'\]"),
    (put("subject.policy", None), "policy graph: a graph needs exactly"),
    (put("subject.policy.tensors", {}), "policy graph: "),
    (put("subject.policy.tensors.t0.sha256", "0" * 64), "policy graph: .* differs from its descriptor"),
    (put("subject.plant", None), "plant must be a table"),
    (put("subject.plant.dt", "0"), "plant dt must be positive"),
    (put("extra", 1), r"unknown keys \['extra'\]"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=range(len(CHANGES)))
def test_every_rule_of_a_certificate(change: Change, reason: str) -> None:
    data, weights = certificate_bytes(**PARTS)
    refused(reason, parse_certificate, json.dumps(change(json.loads(data))).encode(), weights)


def test_all_tensors_belong_to_the_policy_or_the_evidence() -> None:
    for name in ("evidenc", "evidence", "a/evidence/", "t1"):
        refused("do not name the same tensors", parse_certificate, *certificate_bytes(**PARTS, tensors={name: np.ones(1)}))
    unused = gain([1.0])
    named = Graph(unused.nodes, unused.outputs, {**unused.tensors, "evidence/x": np.ones(1)})
    refused("do not name the same tensors", parse_certificate, *certificate_bytes(kind="k", claim={}, policy=named))


def test_one_evaluation_of_a_graph_is_a_bounded_amount_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    data = certificate_bytes(kind="k", claim={}, policy=gain([1.0, 2.0]))
    assert graph_cost(gain([1.0, 2.0])) == (3, 2)
    monkeypatch.setattr(bundle, "MAX_VALUES", 3)
    monkeypatch.setattr(bundle, "MAX_PRODUCTS", 2)
    assert parse_certificate(*data).policy.sizes == (2, 1)
    monkeypatch.setattr(bundle, "MAX_VALUES", 2)
    refused("policy graph: 3 values, 2 products an evaluation, at most 2, 2 allowed", parse_certificate, *data)
    monkeypatch.setattr(bundle, "MAX_VALUES", 3)
    monkeypatch.setattr(bundle, "MAX_PRODUCTS", 1)
    refused("policy graph: 3 values, 2 products an evaluation, at most 3, 1 allowed", parse_certificate, *data)


# --- plants -----------------------------------------------------------------------------------------------------------


def two_states() -> dict[str, Any]:
    plant = linear_plant([["6/5", 0], [0, "1/2"]], [[1], [0]])
    plant["state_box"] = [["-3", "-4"], ["5", "6"]]
    plant["action_box"] = [["-1"], ["2"]]
    plant["equilibrium"] = {"state": ["1/2", "-1/4"], "action": ["1/8"]}
    return plant


def test_a_plant_is_read_whole() -> None:
    read = parse_plant(two_states())
    assert read.state == (("x0", "1"), ("x1", "1")) and read.action == (("u0", "1"),) and read.observation == read.state
    assert (read.dt, read.scheme) == (Fraction(1, 20), "Euler")
    assert (read.state_low, read.state_high, read.action_low, read.action_high) == ((-3, -4), (5, 6), (-1,), (2,))
    assert (read.equilibrium_state, read.equilibrium_action) == ((Fraction(1, 2), Fraction(-1, 4)), (Fraction(1, 8),))
    assert read.dynamics.input_sizes == {"state": 2, "action": 1} and read.observe.output_sizes == {"observation": 2}
    assert read.digest == "e1f5fce48e2d8faed9c1be2152a7217b2fdf131b1d2badf597baf426a1aed948"
    longest = put("scheme", "x" * 60)(put("state.0", ["²³°" * 20, "m / s^2"])(two_states()))
    assert parse_plant(longest).scheme == "x" * 60


PLANTS: list[tuple[Change, str]] = [
    (lambda data: None, "plant must be a table"),
    (put("state", []), "plant state must be a list"),
    (put("state", {}), "plant state must be a list"),
    (put("state", ["xy", "zw"]), "plant state must be a list"),
    (put("state.1", ["x1"]), "plant state must be a list"),
    (put("state.1", ["x1", "1", "1"]), "plant state must be a list"),
    (put("state.1", ["x1", 1]), "plant state must be a list"),
    (put("state.1", [None, "1"]), "plant state must be a list"),
    (put("state.1", ["", "1"]), "plant state must be a list"),
    (put("state.1", ["x" * 61, "1"]), "plant state must be a list"),
    (put("state.1", ["x\n", "1"]), "plant state must be a list"),
    (put("state.1", ["x", "1."]), None),  # type: ignore[list-item]
    (put("action", []), "plant action must be a list"),
    (put("observation", []), "plant observation must be a list"),
    (put("state", [["x0", "1"]]), "plant state_box must be a list of 1 numbers"),
    (put("state_box", {}), r"plant state_box must be \[low, high\]"),
    (put("state_box", [["-3", "-4"]]), r"plant state_box must be \[low, high\]"),
    (put("state_box", [["-3", "-4"]] * 3), r"plant state_box must be \[low, high\]"),
    (put("action_box", [["-1"]]), r"plant action_box must be \[low, high\]"),
    (put("state_box.0", ["-3"]), "plant state_box must be a list of 2 numbers"),
    (put("action_box.1", ["2", "2"]), "plant action_box must be a list of 1 numbers"),
    (put("equilibrium", []), "plant equilibrium must be a table"),
    (put("equilibrium.other", []), "plant equilibrium: missing keys"),
    (put("equilibrium.state", ["0"]), "plant equilibrium must be a list of 2 numbers"),
    (put("equilibrium.action", ["0", "0"]), "plant equilibrium must be a list of 1 numbers"),
    (put("equilibrium.state.0", "-3"), "equilibrium state must lie strictly inside"),
    (put("equilibrium.state.1", "6"), "equilibrium state must lie strictly inside"),
    (put("equilibrium.state.1", "7"), "equilibrium state must lie strictly inside"),
    (put("equilibrium.action.0", "-1"), "equilibrium action must lie strictly inside"),
    (put("equilibrium.action.0", "2"), "equilibrium action must lie strictly inside"),
    (put("equilibrium.action.0", "-2"), "equilibrium action must lie strictly inside"),
    (put("dynamics", graph_to_json(identity(2))), "plant graphs do not have"),
    (put("dynamics.outputs", {"state": 1}), "plant graphs do not have"),
    (put("dynamics.nodes.1.size", 2), "graph"),
    (put("observe", graph_to_json(identity(1))), "plant graphs do not have"),
    (put("observe.outputs", {"observation": 0, "more": 0}), "plant graphs do not have"),
    (put("observation", [["x0", "1"]]), "plant graphs do not have"),
    (put("dynamics", graph_to_json(gain([1.0]))), "dynamics graph: graph names tensors that are not"),
    (put("observe", None), "observe graph: a graph needs"),
    (put("dt", "0"), "plant dt must be positive"),
    (put("dt", "-1/20"), "plant dt must be positive"),
    (put("dt", 1), "plant dt: expected a rational"),
    (put("scheme", ""), "its scheme a short text"),
    (put("scheme", "x" * 61), "its scheme a short text"),
    (put("scheme", None), "its scheme a short text"),
    (put("extra", 1), r"plant: missing keys \[\], unknown keys"),
]


@pytest.mark.parametrize(("change", "reason"), PLANTS, ids=range(len(PLANTS)))
def test_every_rule_of_a_plant(change: Change, reason: str | None) -> None:
    if reason is None:
        assert parse_plant(change(two_states())).state[1] == ("x", "1.")
    else:
        refused(reason, parse_plant, change(copy.deepcopy(two_states())))


# --- policy folders ---------------------------------------------------------------------------------------------------


NAMES = {"observation": [["x", "1"], ["v", "m / s"]], "action": [["u", "1"]]}


def gain_folder(folder: Path, change: Change = lambda data: data) -> Path:
    return policy_folder(folder, gain([-0.5, 0.25]), NAMES, change)


def test_a_policy_folder_is_read_whole(tmp_path: Path) -> None:
    policy, found = read_policy_folder(gain_folder(tmp_path / "p"))
    assert policy.digest() == gain([-0.5, 0.25]).digest()
    names = {"observation": (("x", "1"), ("v", "m / s")), "action": (("u", "1"),)}
    assert found == {**names, "dt": Fraction(1, 20), "provenance": {"seconds": 1.5}}
    assert read_policy_folder(gain_folder(tmp_path / "q", put("dt", None)))[1]["dt"] is None


POLICIES: list[tuple[Change, str]] = [
    (put("format", "lipctrl-certificate"), "expected format 'lipctrl-policy', version 1"),
    (put("version", 2), "expected format 'lipctrl-policy', version 1"),
    (put("version", True), "expected format 'lipctrl-policy', version 1"),
    (put("graph", {}), "policy graph: a graph needs"),
    (put("graph.outputs", {"other": 1}), "must map 'observation' to 'action'"),
    (put("observation", [["x", "1"]]), "must map 'observation' to 'action'"),
    (put("action", [["u", "1"], ["w", "1"]]), "must map 'observation' to 'action'"),
    (put("action", []), "policy action must be a list"),
    (put("observation", "x"), "policy observation must be a list"),
    (put("dt", 0.05), "policy dt: expected a rational"),
    (put("extra", 1), r"policy.json: missing keys \[\], unknown keys"),
]


@pytest.mark.parametrize(("change", "reason"), POLICIES, ids=range(len(POLICIES)))
def test_every_rule_of_a_policy_folder(tmp_path: Path, change: Change, reason: str) -> None:
    refused(reason, read_policy_folder, gain_folder(tmp_path / "p", change))


# --- folders and zips -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_certificate(tmp_path / "c", provenance={"seconds": 1}, **PARTS)


def test_files_are_as_long_as_their_cap_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CERTIFICATE, WEIGHTS):
        size = (folder / name).stat().st_size
        with monkeypatch.context() as patch:
            patch.setitem(bundle.MAX_BYTES, name, size)
            assert read_certificate(folder).kind == "k"
            patch.setitem(bundle.MAX_BYTES, name, size - 1)
            refused(f"{name} is larger than {size - 1} bytes", read_certificate, folder)


def test_every_rule_of_a_folder(folder: Path, tmp_path: Path) -> None:
    assert read_certificate(folder / CERTIFICATE).sha256 == read_certificate(folder).sha256
    refused("no such file or folder", read_certificate, tmp_path / "nowhere")
    refused("neither a folder nor a readable zip", read_certificate, folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    refused(f"cannot read {WEIGHTS}: No such file", read_certificate, folder)
    (folder / WEIGHTS).symlink_to("/dev/null")
    refused(f"cannot read {WEIGHTS}: Too many levels", read_certificate, folder)
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)  # opening it must not wait for a writer
    refused(f"{WEIGHTS} is not a regular file", read_certificate, folder)
    refused(f"cannot read {CERTIFICATE}: No such file", read_certificate, tmp_path / "nowhere" / CERTIFICATE)


@pytest.mark.parametrize("prefix", ["", "run/", "a b/", "..a/", ".../", ".a/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_hold_one_folder_or_none(tmp_path: Path, prefix: str, method: int) -> None:
    data, weights = certificate_bytes(**PARTS)
    members = [(prefix + CERTIFICATE, data), (prefix + PROVENANCE, b"{}"), (prefix + WEIGHTS, weights)]
    if prefix:
        members.insert(0, (prefix, b""))
    read = read_certificate(zipped(tmp_path / "a.zip", members, compression=method))
    assert read.sha256 == hashlib.sha256(data).hexdigest() and read.digests == parse_certificate(data, weights).digests
    assert set(bundle._read_zip(tmp_path / "a.zip")) == {CERTIFICATE, WEIGHTS}


ONE_FOLDER = "in one folder and nothing else"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], ONE_FOLDER),
        ([CERTIFICATE], "needs both"),
        ([WEIGHTS], "needs both"),
        ([PROVENANCE], "needs both"),
        ([CERTIFICATE, WEIGHTS, "run.py"], ONE_FOLDER),
        ([CERTIFICATE, WEIGHTS, CERTIFICATE], ONE_FOLDER),
        ([CERTIFICATE, WEIGHTS, PROVENANCE, PROVENANCE], ONE_FOLDER),
        ([CERTIFICATE, "a/" + WEIGHTS], ONE_FOLDER),
        (["a/" + CERTIFICATE, "b/" + WEIGHTS], ONE_FOLDER),
        (["a/b/" + CERTIFICATE, "a/b/" + WEIGHTS], ONE_FOLDER),
        (["/" + CERTIFICATE, "/" + WEIGHTS], ONE_FOLDER),
        (["/" + CERTIFICATE, WEIGHTS], ONE_FOLDER),
        ([CERTIFICATE, "/" + WEIGHTS], ONE_FOLDER),
        (["/a/" + CERTIFICATE, "/a/" + WEIGHTS], ONE_FOLDER),
        (["../" + CERTIFICATE, "../" + WEIGHTS], ONE_FOLDER),
        (["./" + CERTIFICATE, "./" + WEIGHTS], ONE_FOLDER),
        (["a\\b/" + CERTIFICATE, "a\\b/" + WEIGHTS], ONE_FOLDER),
        (["C:/" + CERTIFICATE, "C:/" + WEIGHTS], ONE_FOLDER),
        (["policy.json", WEIGHTS], ONE_FOLDER),
    ],
)
def test_every_rule_of_a_zip(tmp_path: Path, names: list[str], reason: str) -> None:
    data = dict(zip((CERTIFICATE, WEIGHTS), certificate_bytes(**PARTS), strict=True))
    path = zipped(tmp_path / "a.zip", [(name, data.get(name.rpartition("/")[2], b"")) for name in names])
    refused(reason, read_certificate, path)


def test_members_of_a_zip_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = list(zip((CERTIFICATE, WEIGHTS), certificate_bytes(**PARTS), strict=True))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused(f"{CERTIFICATE} is encrypted or", read_certificate, zipped(tmp_path / "a.zip", members, compression=method))
    for flag in (1, 3):
        path = zipped(tmp_path / "b.zip", members)
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\1\2") + 8] = flag
        path.write_bytes(data)
        refused(f"{CERTIFICATE} is encrypted or", read_certificate, path)
    path = zipped(tmp_path / "c.zip", members)
    monkeypatch.setitem(bundle.MAX_BYTES, WEIGHTS, len(members[1][1]) - 1)
    refused(f"{WEIGHTS} is larger than", read_certificate, path)


def test_a_zip_is_as_long_as_its_caps_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = zip((CERTIFICATE, WEIGHTS), certificate_bytes(**PARTS), strict=True)
    data = bytes(9000) + zipped(tmp_path / "a.zip", members).read_bytes()  # what precedes the first entry has no meaning
    (tmp_path / "a.zip").write_bytes(data)
    monkeypatch.setattr(bundle, "MAX_DIRECTORY", 5000)
    monkeypatch.setitem(bundle.MAX_BYTES, WEIGHTS, 1000)
    monkeypatch.setitem(bundle.MAX_BYTES, CERTIFICATE, len(data) - 6000)
    assert read_certificate(tmp_path / "a.zip").kind == "k"
    monkeypatch.setitem(bundle.MAX_BYTES, CERTIFICATE, len(data) - 6001)
    refused(f"zip is larger than {len(data) - 1} bytes", read_certificate, tmp_path / "a.zip")


def test_bytes_are_handed_out_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_DIRECTORY", 4)
    assert bundle._BoundedReader(b"12345").read(4) == b"1234"
    assert bundle._BoundedReader(b"12345").read(0) == b""
    for size in (5, -1, None):
        refused("table of contents is too large", bundle._BoundedReader(b"12345").read, size)
        assert bundle._BoundedReader(b"1234").read(size) == b"1234"
    reader = bundle._BoundedReader(b"12345")
    assert reader.read(1) == b"1" and reader.read(-1) == b"2345"


def test_the_cost_of_a_graph_within_a_graph() -> None:
    tensors = {"W": np.ones((2, 3)), "offset": np.zeros(2)}
    inner = Graph((Node("input", (), {"name": "z", "size": 3}), Node("affine", (0,), {"weight": "W", "bias": None})), {"v": 1}, tensors, 1)
    s = Sketch()
    s.tensors = tensors
    x, point = s.input("x", 3), (Fraction(0),) * 3
    first, second = (s("recentre", x, graph=inner, point=point, offset="offset") for _ in range(2))
    assert graph_cost(inner) == (5, 6)
    assert graph_cost(s.graph(a=first, b=second)) == (3 + 2 + 2 + 2 * 2 * 5, 2 * 2 * 6)
