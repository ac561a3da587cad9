"""Reading of untrusted certificate files: what is accepted is exactly what was written, all else is refused with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import safetensors.numpy
from certificate_files import NAMES, entry, policy_folder, safetensors_file, zipped
from hypothesis import given
from hypothesis import strategies as st
from loops import Sketch, counterexample, gain, identity, interval, linear_plant, saturated_scalar

from lipctrl.certificates.checker import bundle
from lipctrl.certificates.checker.bundle import (
    CERTIFICATE,
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
from lipctrl.certificates.checker.graph import Graph, canonical_json, graph_to_json
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.writing import certificate_bytes, write_certificate


@pytest.fixture
def folder(tmp_path):
    return counterexample(
        tmp_path / "c", "forward_invariant", interval("25.1", -6, 6), evidence={"state": ["500999/100000"]}, **saturated_scalar()
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_hex_floats_are_read_exactly(value):
    assert number(value.hex()) == Fraction(value)
    assert floats([value.hex()], 1)[0] == value


@given(st.fractions())
def test_rationals_are_read_exactly(value):
    assert number(str(value)) == value


@pytest.mark.parametrize(
    "text", ["", "1.5", "1e3", "nan", "inf", " 1", "1/0", "2/4", "+1", "1/-2", "-0", "--1", "1_0", "\u0663", "9" * 5000]
)
def test_other_rationals_are_refused(text):
    with pytest.raises(Rejected):
        number(text)


@pytest.mark.parametrize(
    "text", ["0xinf", "0x1p3", "0X1.8p+1", "0x1.8p+1 ", "0x1.8p+9999", "0x1.80p+1", "0x1.8p+1024", "0x1.8000000000000p+01"]
)
def test_other_hex_floats_are_refused(text):
    with pytest.raises(Rejected):
        number(text)


@pytest.mark.parametrize("text", [1, 1.5, None, ["1"], True, b"1"])
def test_other_numbers_are_refused(text):
    with pytest.raises(Rejected):
        number(text)


def test_integers_are_short():
    assert parse_json(b"[9999999999999999, -999999999999999]", "file") == [9999999999999999, -999999999999999]
    with pytest.raises(Rejected, match="too long"):
        parse_json(b"[10000000000000000]", "file")


def test_number_lists():
    assert numbers(["1", "2", "3"], None) == (1, 2, 3)
    assert numbers([], None) == ()
    assert numbers(["1", "1/2"], 2) == (1, Fraction(1, 2))
    for bad in (["1"], "12", None, ["1", None]):
        with pytest.raises(Rejected):
            numbers(bad, 2)
    with pytest.raises(Rejected, match="not exactly a float64"):
        floats(["1/3"], 1)
    with pytest.raises(Rejected, match="too large"):
        floats(["1" + "0" * 400], 1)


def test_fields_want_exactly_the_keys():
    assert fields({"a": 1}, ("a",), "x", optional=("b",)) == {"a": 1}
    for bad in ({}, {"a": 1, "c": 2}, [], None, "a"):
        with pytest.raises(Rejected):
            fields(bad, ("a",), "x", optional=("b",))


# --- JSON and tensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"b": {"a": 1, "a": 1}}', "twice"),
        (b"[1.5]", "not allowed"),
        (b"[1e3]", "not allowed"),
        (b"[NaN]", "not allowed"),
        (b"[-Infinity]", "not allowed"),
        (b"[" + b"1" * 5000 + b"]", "too long"),
        (b"\xff", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deep"),
        (b"[" + b"[]," * 3_000_000 + b"1]", "more than"),
    ],
)
def test_json_is_strict(text, reason):
    with pytest.raises(Rejected, match=reason):
        parse_json(text, "file")


def test_decimals_only_where_nothing_rests_on_them():
    assert parse_json(b"[1.5]", "file", decimals=True) == [1.5]
    with pytest.raises(Rejected):
        parse_json(b"[1e999]", "file", decimals=True)


tensor_values = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=12)


@given(st.dictionaries(st.text(max_size=5), st.tuples(tensor_values, st.sampled_from([np.float32, np.float64])), max_size=4))
def test_tensors_agree_with_the_safetensors_library(table):
    tensors = {f"t{name}": np.array(values, dtype) for name, (values, dtype) in table.items()}
    data = safetensors.numpy.save({name: t.reshape(1, -1) if len(t) % 2 else t for name, t in tensors.items()})
    read, expected = parse_tensors(data), safetensors.numpy.load(data)
    assert read.keys() == expected.keys()
    for name, tensor in read.items():
        assert tensor.dtype == expected[name].dtype
        np.testing.assert_array_equal(tensor, expected[name])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        safetensors_file(b"[]"),
        safetensors_file(b'{"a": ' + json.dumps(entry()).encode() + b', "a": ' + json.dumps(entry()).encode() + b"}", bytes(4)),
        safetensors_file({"a": entry()}),
        safetensors_file({"a": entry()}, bytes(5)),
        safetensors_file({}, bytes(4)),
        safetensors_file({"a": entry("F16", (2,))}, bytes(4)),
        safetensors_file({"a": entry("BOOL", (4,))}, bytes(4)),
        safetensors_file({"a": entry(shape=(2,))}, bytes(4)),
        safetensors_file({"a": entry(shape=())}, bytes(4)),
        safetensors_file({"a": entry(shape=(1, 1, 1))}, bytes(4)),
        safetensors_file({"a": entry(shape=(0,), offsets=(0, 0))}),
        safetensors_file({"a": entry(shape=(-1, -1))}, bytes(4)),
        safetensors_file({"a": entry(shape=(True,))}, bytes(4)),
        safetensors_file({"a": entry(shape=(2**40, 2**40))}, bytes(4)),
        safetensors_file({"a": entry(offsets=(4, 0))}, bytes(4)),
        safetensors_file({"a": entry(offsets=(0, 4, 4))}, bytes(4)),
        safetensors_file({"a": entry(), "b": entry()}, bytes(4)),
        safetensors_file({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
        safetensors_file({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
        safetensors_file({"a": {**entry(), "extra": 1}}, bytes(4)),
        safetensors_file({"a": entry()}, struct.pack("<f", np.nan)),
        safetensors_file({"a": entry()}, struct.pack("<f", np.inf)),
        safetensors_file({"a": 3}, bytes(4)),
        safetensors_file({"a": {**entry(), "shape": 1}}, bytes(4)),
        safetensors_file({"a": {**entry(), "shape": {}}}, bytes(4)),
        safetensors_file({"a": {**entry(), "data_offsets": None}}, bytes(4)),
        safetensors_file({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    ],
)
def test_malformed_tensors_are_refused(data):
    with pytest.raises(Rejected):
        parse_tensors(data)


def test_metadata_of_other_writers_is_left_alone():
    data = safetensors.numpy.save({"a": np.ones(2)}, metadata={"format": "pt"})
    np.testing.assert_array_equal(parse_tensors(data)["a"], np.ones(2))


def test_a_header_may_be_large_only_up_to_its_cap():
    with pytest.raises(Rejected, match="header length"):
        parse_tensors(safetensors_file(b"{" + b" " * bundle.MAX_HEADER + b"}"))


# --- certificates -------------------------------------------------------------------------------------------------------


def test_folder_file_and_zip_read_alike(folder, tmp_path):
    expected = read_certificate(folder)
    shutil.make_archive(str(tmp_path / "flat"), "zip", root_dir=folder)
    shutil.make_archive(str(tmp_path / "nested"), "zip", root_dir=tmp_path, base_dir="c")
    for path in (folder / CERTIFICATE, str(folder), tmp_path / "flat.zip", tmp_path / "nested.zip"):
        found = read_certificate(path)
        assert found.sha256 == expected.sha256 == hashlib.sha256((folder / CERTIFICATE).read_bytes()).hexdigest()
        assert found.digests == expected.digests
    assert expected.digests["policy"] == saturated_scalar()["policy"].digest()
    assert expected.digests["plant"] == hashlib.sha256(canonical_json(saturated_scalar()["plant"]).encode()).hexdigest()
    with pytest.raises(TypeError, match="no truth value"):
        bool(expected)


def test_equal_inputs_give_equal_bytes_and_replace_in_one_step(tmp_path):
    parts = {"kind": "counterexample", "claim": {"property": "p", "region": {}}, **saturated_scalar()}
    first = write_certificate(tmp_path / "c", provenance={"seconds": 1.5}, **parts)
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    assert write_certificate(tmp_path / "c", provenance={"seconds": 2.5}, **parts) == first
    after = {p.name: p.read_bytes() for p in first.iterdir()}
    assert before.pop("provenance.json") != after.pop("provenance.json")
    assert before == after == dict(zip((CERTIFICATE, WEIGHTS), certificate_bytes(**parts), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_writing_refuses_to_lose_files_and_keeps_the_earlier_certificate(folder, tmp_path):
    before = (folder / CERTIFICATE).read_bytes()
    with pytest.raises(Rejected):
        write_certificate(folder, kind="k", claim={}, policy=gain([1.0]), arithmetic="float16")
    assert (folder / CERTIFICATE).read_bytes() == before
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="choose another folder"):
        write_certificate(tmp_path / "work", kind="k", claim={}, policy=gain([1.0]))
    assert {p.name for p in tmp_path.iterdir()} == {"c", "work"}


def test_evidence_tensors_are_bound_and_others_refused():
    parts = {"kind": "k", "claim": {}, "policy": gain([1.0])}
    data = certificate_bytes(tensors={"evidence/a": np.ones(3)}, **parts)
    np.testing.assert_array_equal(parse_certificate(*data).tensors["evidence/a"], np.ones(3))
    with pytest.raises(Rejected, match="same tensors"):
        parse_certificate(*certificate_bytes(tensors={"a": np.ones(3)}, **parts))
    with pytest.raises(Rejected, match="differs from the digest"):
        parse_certificate(data[0], certificate_bytes(tensors={"evidence/a": np.zeros(3)}, **parts)[1])


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"version": True},
        {"version": "1"},
        {"kind": 3},
        {"arithmetic": "float16"},
        {"arithmetic": ["real"]},
        {"claim": []},
        {"evidence": None},
        {"requires": ["x"]},
        {"requires": ["0" * 64] * 9},
        {"requires": [["0" * 64]]},
        {"requires": {}},
        {"tensors": {}},
        {"tensors": {"file": "../../etc/passwd", "sha256": ""}},
        {"subject": {}},
        {"subject": {"policy": {}}},
        {"subject": {"policy": []}},
        {"level": "proved"},
        {"claim": None, "prose": "all is well"},
    ],
)
def test_certificates_of_another_form_are_refused(folder, change):
    data = {**json.loads((folder / CERTIFICATE).read_text()), **change}
    with pytest.raises(Rejected):
        parse_certificate(json.dumps(data).encode(), (folder / WEIGHTS).read_bytes())


def test_missing_keys_are_refused(folder):
    data = json.loads((folder / CERTIFICATE).read_text())
    for key in data:
        with pytest.raises(Rejected, match="missing keys"):
            parse_certificate(json.dumps({k: v for k, v in data.items() if k != key}).encode(), (folder / WEIGHTS).read_bytes())


def test_graphs_that_would_take_too_long_are_refused():
    s = Sketch()
    x = s.affine(s.input("observation", 1), np.ones((1000, 1)))
    wide = s.affine(x, np.ones((1000, 1000)))
    for _ in range(40):
        wide = s("affine", wide, weight="t1", bias=None)
    with pytest.raises(Rejected, match="products"):
        parse_certificate(*certificate_bytes(kind="k", claim={}, policy=s.graph(action=s("select", wide, indices=(0,)))))
    s = Sketch()
    wide = s("select", s.input("observation", 1), indices=(0,) * 10_000)
    for _ in range(120):
        wide = s("sin", wide)
    with pytest.raises(Rejected, match="values"):
        parse_certificate(*certificate_bytes(kind="k", claim={}, policy=s.graph(action=wide)))


def test_the_cost_of_a_recentred_graph_counts_twice():
    s = Sketch()
    inner = s.affine(s.input("z", 3), np.ones((2, 3)))
    inner = Graph(tuple(s.nodes), {"v": inner}, {**s.tensors, "offset": np.zeros(2)}, nesting=1)
    s = Sketch()
    s.tensors.update(inner.tensors)
    outer = s.affine(s("recentre", s.input("x", 3), graph=inner, point=(Fraction(0),) * 3, offset="offset"), np.ones((5, 2)))
    assert graph_cost(inner) == (5, 6)
    assert graph_cost(s.graph(y=outer)) == (3 + 2 + 5 + 2 * 5, 10 + 2 * 6)


def test_a_certificate_without_a_plant_says_so():
    certificate = parse_certificate(*certificate_bytes(kind="k", claim={}, policy=gain([1.0])))
    assert certificate.policy.digest() == gain([1.0]).digest()
    with pytest.raises(Rejected, match="needs a plant"):
        _ = certificate.plant
    certificate = parse_certificate(*certificate_bytes(kind="k", claim={}, **saturated_scalar()))
    assert certificate.plant.digest == certificate.digests["plant"]


# --- plants and policies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"state": []},
        {"state": [["x", "1"], ["y", "1"]]},
        {"state": [["x"]]},
        {"state": [["x\x1b[2J", "1"]]},
        {"state": [["x" * 61, "1"]]},
        {"state": [['x". The loop is proved', "1"]]},
        {"dt": "0"},
        {"dt": "-1/20"},
        {"dt": None},
        {"scheme": 3},
        {"scheme": ""},
        {"state_box": [["-1"], ["-1"]]},
        {"state_box": [["1"], ["-1"]]},
        {"state_box": [["-1"]]},
        {"state_box": [["-1", "-1"], ["1", "1"]]},
        {"action_box": [["0"], ["1"]]},
        {"action_box": [["-1"], ["nan"]]},
        {"equilibrium": {"state": ["0"], "action": ["1"]}},
        {"equilibrium": {"state": ["101"], "action": ["0"]}},
        {"equilibrium": {"state": ["0"]}},
        {"dynamics": graph_to_json(gain([1.0]))},
        {"dynamics": graph_to_json(identity(1))},
        {"observe": linear_plant([["6/5"]], [[1]])["dynamics"]},
        {"observe": graph_to_json(identity(2))},
        {"observe": None},
        {"extra": 1},
    ],
)
def test_plants_of_another_form_are_refused(change):
    plant = linear_plant([["6/5"]], [[1]])
    assert parse_plant(plant).state == (("x0", "1"),)
    with pytest.raises(Rejected):
        parse_plant({**plant, **change})


def test_policy_folders(tmp_path):
    policy = gain([-0.5])
    graph, metadata = read_policy_folder(policy_folder(tmp_path / "p", policy))
    assert graph.digest() == policy.digest()
    assert metadata["dt"] == Fraction(1, 20)
    assert metadata["action"] == (("u", "1"),)
    assert metadata["provenance"] == {"seconds": 1.5}
    assert read_policy_folder(policy_folder(tmp_path / "q", policy, {**NAMES, "dt": None}))[1]["dt"] is None
    changes = (
        {"version": 2},
        {"version": True},
        {"format": "x"},
        {"dt": "0.05"},
        {"dt": 1},
        {"observation": [["x", "1"], ["y", "1"]]},
        {"extra": 0},
        {"graph": {}},
    )
    for index, change in enumerate(changes):
        with pytest.raises(Rejected):
            read_policy_folder(policy_folder(tmp_path / str(index), policy, {**NAMES, **change}))
    with pytest.raises(Rejected, match="cannot read"):
        read_policy_folder(tmp_path / "nowhere")


# --- hostile folders and zips -------------------------------------------------------------------------------------------


def test_links_and_pipes_are_not_followed(folder, tmp_path):
    secret = tmp_path / "secret"
    (folder / WEIGHTS).rename(secret)
    (folder / WEIGHTS).symlink_to(secret)
    assert "cannot read" in check(folder).reason
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert "not a regular file" in check(folder).reason
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert check(folder).status == "rejected"
    shutil.rmtree(folder / WEIGHTS)
    assert "cannot read" in check(folder).reason


def test_files_over_the_cap_are_not_read(folder):
    with open(folder / CERTIFICATE, "r+b") as file:
        file.truncate(bundle.MAX_BYTES[CERTIFICATE] + 1)
    assert "larger than" in check(folder).reason


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "rename",
    [
        lambda c, w: [("../" + CERTIFICATE, c), ("../" + WEIGHTS, w)],
        lambda c, w: [("/" + CERTIFICATE, c), ("/" + WEIGHTS, w)],
        lambda c, w: [("a/b/" + CERTIFICATE, c), ("a/b/" + WEIGHTS, w)],
        lambda c, w: [("C:\\x/" + CERTIFICATE, c), ("C:\\x/" + WEIGHTS, w)],
        lambda c, w: [("a/" + CERTIFICATE, c), ("b/" + WEIGHTS, w)],
        lambda c, w: [(CERTIFICATE, c), ("a/" + WEIGHTS, w)],
        lambda c, w: [(CERTIFICATE, c), (WEIGHTS, w), (CERTIFICATE, c)],
        lambda c, w: [(CERTIFICATE, c), (WEIGHTS, w), ("run.py", b"")],
        lambda c, w: [(CERTIFICATE, c)],
        lambda c, w: [(WEIGHTS, w)],
        lambda c, w: [],
    ],
)
def test_zips_of_another_form_are_refused(folder, tmp_path, rename):
    members = (folder / CERTIFICATE).read_bytes(), (folder / WEIGHTS).read_bytes()
    assert check(zipped(tmp_path / "good.zip", zip((CERTIFICATE, WEIGHTS), members, strict=True))).status == "verified"
    assert check(zipped(tmp_path / "bad.zip", rename(*members))).status == "rejected"


def test_zip_bombs_are_cut_off(folder, tmp_path):
    weights = (folder / WEIGHTS).read_bytes()
    bomb = zipped(
        tmp_path / "a.zip",
        [(CERTIFICATE, b" " * (bundle.MAX_BYTES[CERTIFICATE] + 1)), (WEIGHTS, weights)],
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 1 << 20
    assert "larger than" in check(bomb).reason


def test_large_members_of_a_zip_may_be_stored_without_compression(tmp_path):
    large = b" " * (3 * bundle.MAX_DIRECTORY)
    assert bundle._read_zip(zipped(tmp_path / "a.zip", [(CERTIFICATE, b"{}"), (WEIGHTS, large)]))[WEIGHTS] == large


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(folder, tmp_path, method):
    members = [(name, (folder / name).read_bytes()) for name in (CERTIFICATE, WEIGHTS)]
    assert "unusual compression" in check(zipped(tmp_path / "a.zip", members, compression=method)).reason


def test_a_zip_with_a_million_entries_is_not_indexed(tmp_path):
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    path = tmp_path / "many.zip"
    path.write_bytes(directory + end)
    assert "table of contents is too large" in check(path).reason
