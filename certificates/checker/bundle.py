"""Certificate files and policy folders: strict reading of untrusted bytes.

A certificate is ``certificate.json`` and ``weights.safetensors`` in a folder or in one zip of it. Reading either ends in a
:class:`Certificate` whose subject was rebuilt and whose digests match, or raises :class:`Rejected`. Nothing is executed,
nothing is extracted to disk, and every size is capped before memory is spent on it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lipctrl.certificates.checker.graph import Graph, GraphError, canonical_json, graph_from_json, rational_from_text
from lipctrl.certificates.checker.implicit import require_well_posed
from lipctrl.certificates.checker.verdict import Rejected

CERTIFICATE, WEIGHTS, POLICY, PROVENANCE = "certificate.json", "weights.safetensors", "policy.json", "provenance.json"
MAX_BYTES = {CERTIFICATE: 64 << 20, POLICY: 64 << 20, WEIGHTS: 256 << 20}
MAX_HEADER = 1 << 20  #: bytes of a safetensors header
MAX_DIRECTORY = 1 << 20  #: bytes of a zip's central directory
MAX_TOKENS = 2_000_000  #: brackets and commas in one JSON text: bounds the memory that its objects take
MAX_VALUES = 1_000_000  #: vector entries that one evaluation of a graph computes
MAX_PRODUCTS = 30_000_000  #: multiplications in affine and implicit nodes that one evaluation of a graph computes
IMPLICIT_PRODUCTS = 16  #: products with its weight that stand for solving an implicit layer
MAX_REQUIRES = 8  #: certificates that one certificate may rest on
EVIDENCE_PREFIX = "evidence/"  #: tensors of a certificate that belong to no graph

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_LABEL = re.compile(r"[\w /^*·.,'()²³°+-]{1,60}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"(?!\.\.?/)[^/\\:\0]+/|")  #: of the entries of a zip: one, or none
_HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]{1,13}p[+-]\d{1,4}")
_PLANT_KEYS = ("state", "action", "observation", "dt", "scheme", "state_box", "action_box", "equilibrium", "dynamics", "observe")


@dataclass(frozen=True)
class PlantSubject:
    """A plant as certificates carry it: equations, boxes and equilibrium as exact data, nothing to execute.

    ``state``, ``action``, ``observation`` are (name, unit) pairs; ``dynamics`` maps ``state``, ``action`` to ``next_state``,
    ``observe`` maps ``state`` to ``observation``; boxes and equilibrium are rationals, one per coordinate.
    """

    state: tuple[tuple[str, str], ...]
    action: tuple[tuple[str, str], ...]
    observation: tuple[tuple[str, str], ...]
    dt: Fraction
    scheme: str
    state_low: tuple[Fraction, ...]
    state_high: tuple[Fraction, ...]
    action_low: tuple[Fraction, ...]
    action_high: tuple[Fraction, ...]
    equilibrium_state: tuple[Fraction, ...]
    equilibrium_action: tuple[Fraction, ...]
    dynamics: Graph
    observe: Graph
    digest: str


@dataclass(frozen=True)
class Certificate:
    """A certificate as read: well formed, digests consistent, **nothing about its claim verified yet**.

    ``subject`` maps ``policy`` to a Graph and, for closed loops, ``plant`` to a :class:`PlantSubject`. ``sha256`` is of
    ``certificate.json``. A certificate has no truth value; ``kinds.check(certificate)`` gives a Verdict.
    """

    kind: str
    arithmetic: str
    claim: Mapping[str, Any]
    subject: Mapping[str, Any]
    evidence: Mapping[str, Any]
    requires: tuple[str, ...]
    tensors: Mapping[str, np.ndarray]
    sha256: str

    @property
    def policy(self) -> Graph:
        """The network that the claim is about."""
        policy: Graph = self.subject["policy"]
        return policy

    @property
    def plant(self) -> PlantSubject:
        """The plant that the claim is about. Raises Rejected where the certificate carries none."""
        plant: PlantSubject | None = self.subject.get("plant")
        if plant is None:
            raise Rejected(f"a certificate of kind {self.kind!r} needs a plant in its subject")
        return plant

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each part of the subject, by name."""
        return {name: part.digest if isinstance(part, PlantSubject) else part.digest() for name, part in self.subject.items()}

    def __bool__(self) -> NoReturn:
        raise TypeError("a Certificate has no truth value: only a Verdict, made by kinds.check(certificate), carries a level")


# --- numbers and fields -----------------------------------------------------------------------------------------------


def fields(data: object, keys: Sequence[str], what: str, optional: Sequence[str] = ()) -> dict[str, Any]:
    """The table ``data`` if it has exactly ``keys`` (and perhaps ``optional`` ones). Raises Rejected otherwise."""
    if not isinstance(data, dict):
        raise Rejected(f"{what} must be a table with the keys {sorted(keys)}")
    missing, unknown = set(keys) - set(data), set(data) - set(keys) - set(optional)
    if missing or unknown:
        raise Rejected(f"{what}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}")
    return data


def number(text: object, what: str = "number") -> Fraction:
    """The exact value of a rational (``"3/20"``) or hex float (``"0x1.8p-3"``) text. Raises Rejected for all else."""
    if isinstance(text, str) and "x" in text:
        if not (_HEX_FLOAT.fullmatch(text) and _exponent(text) <= 1023 and float.fromhex(text).hex() == text):
            raise Rejected(f"{what}: {text[:40]!r} is not a hex float as float.hex() writes it")
        return Fraction(float.fromhex(text))
    try:
        return rational_from_text(text)
    except GraphError as error:
        raise Rejected(f"{what}: {error}") from error


def _exponent(text: str) -> int:
    return int(text.partition("p")[2])


def numbers(values: object, length: int | None, what: str = "numbers") -> tuple[Fraction, ...]:
    """A list of :func:`number` texts, of the given length where it is not ``None``. Raises Rejected for all else."""
    if not isinstance(values, list) or (length is not None and len(values) != length):
        raise Rejected(f"{what} must be a list of {'numbers' if length is None else f'{length} numbers'}")
    return tuple(number(v, what) for v in values)


def floats(values: object, length: int | None, what: str = "numbers") -> np.ndarray:
    """A list of numbers that are exactly float64, as an array of that type. Raises Rejected for all else."""
    exact = numbers(values, length, what)
    try:
        rounded = np.array([float(v) for v in exact], dtype=np.float64)
    except OverflowError as error:
        raise Rejected(f"{what}: a number is too large for float64") from error
    if any(Fraction(float(r)) != v for r, v in zip(rounded, exact, strict=True)):
        raise Rejected(f"{what}: a number is not exactly a float64")
    return rounded


# --- bytes ------------------------------------------------------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Rejected("JSON: a key appears twice in one table")
    return table


def _integer(text: str) -> int:
    if len(text) > 16:
        raise Rejected(f"JSON: integer {text[:20]}... is too long")
    return int(text)


def _refused(text: str) -> NoReturn:
    raise Rejected(f"JSON: {text[:30]} is not allowed, numbers that matter are rational or hex float texts")


def _finite(text: str) -> float:
    value = float(text)
    return value if np.isfinite(value) else _refused(text)


def parse_json(data: bytes, what: str, decimals: bool = False) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, no decimals unless ``decimals``, bounded. Raises Rejected."""
    if sum(data.count(mark) for mark in (b"{", b"[", b",")) > MAX_TOKENS:
        raise Rejected(f"{what}: more than {MAX_TOKENS} values")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_int=_integer,
            parse_float=_finite if decimals else _refused,
            parse_constant=_refused,
        )
    except RecursionError as error:
        raise Rejected(f"{what}: nested too deep") from error
    except ValueError as error:
        raise Rejected(f"{what} is not JSON: {error}") from error


def parse_tensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: F32 or F64, finite, 1-D or 2-D, covering the file exactly. Raises Rejected."""
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise Rejected(f"{WEIGHTS}: header length {length} does not fit the file")
    header = parse_json(data[8 : 8 + length], f"{WEIGHTS} header")
    if not isinstance(header, dict):
        raise Rejected(f"{WEIGHTS}: header is not a table")
    header.pop("__metadata__", None)
    body, end = memoryview(data)[8 + length :], 0
    tensors: dict[str, np.ndarray] = {}
    entries = {name: fields(entry, ("dtype", "shape", "data_offsets"), f"tensor {name!r}") for name, entry in header.items()}
    for name, entry in entries.items():
        shape, offsets = entry["shape"], entry["data_offsets"]
        whole = all(isinstance(v, list) and all(type(i) is int and i >= 0 for i in v) for v in (shape, offsets))
        if entry["dtype"] not in ("F32", "F64") or not whole or len(shape) not in (1, 2) or len(offsets) != 2 or 0 in shape:
            raise Rejected(f"tensor {name!r}: expected F32 or F64, one or two sizes, two offsets")
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = np.dtype("<f4" if entry["dtype"] == "F32" else "<f8")
        (rows, columns), (start, stop) = ([1, *entry["shape"]])[-2:], entry["data_offsets"]
        if start != end or stop - start != rows * columns * dtype.itemsize or stop > len(body):
            raise Rejected(f"tensor {name!r}: offsets {start}..{stop} do not fit its shape, its neighbours or the file")
        tensor = np.frombuffer(body[start:stop], dtype).reshape(entry["shape"]).astype(dtype.newbyteorder("="), copy=False)
        if not np.isfinite(tensor).all():
            raise Rejected(f"tensor {name!r} has a value that is not finite")
        tensors[name], end = tensor, stop
    if end != len(body):
        raise Rejected(f"{WEIGHTS}: {len(body) - end} bytes belong to no tensor")
    return tensors


def _read_member(folder: Path, name: str) -> bytes:
    """One regular file of a folder; links, pipes and files over the cap are refused."""
    try:
        handle = os.open(folder / name, _OPEN_FLAGS)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise Rejected(f"{name} is not a regular file")
            return _capped(file, name)
    except OSError as error:
        raise Rejected(f"cannot read {name}: {error.strerror or error}") from error


def _capped(file: Any, name: str) -> bytes:
    data = bytearray()
    while piece := file.read(MAX_DIRECTORY):  # as much as _BoundedReader hands out a call
        data += piece
        if len(data) > MAX_BYTES[name]:
            raise Rejected(f"{name} is larger than {MAX_BYTES[name]} bytes")
    return bytes(data)


class _BoundedReader(io.BytesIO):
    """Bytes that hand out ``MAX_DIRECTORY`` of them a call at most, so that zipfile never indexes millions of entries."""

    def read(self, size: int | None = -1) -> bytes:
        left = len(self.getbuffer()) - self.tell()
        if left > MAX_DIRECTORY and (size is None or not 0 <= size <= MAX_DIRECTORY):
            raise Rejected("zip: its table of contents is too large")
        return super().read(size)


def _read_zip(path: Path) -> dict[str, bytes]:
    """Both files of a zip, whose entries may lie in one folder. Never extracts; names, sizes and methods are checked."""
    limit = sum(MAX_BYTES[name] for name in (CERTIFICATE, WEIGHTS)) + MAX_DIRECTORY
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Rejected(f"zip is larger than {limit} bytes")
    try:
        with zipfile.ZipFile(_BoundedReader(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            prefixes = {entry.filename[: entry.filename.rfind("/") + 1] for entry in entries}
            names = [entry.filename.rpartition("/")[2] for entry in entries]
            one_folder = len(prefixes) == 1 and _FOLDER.fullmatch(next(iter(prefixes))) is not None
            if not one_folder or len(set(names)) != len(names) or set(names) - {CERTIFICATE, WEIGHTS, PROVENANCE}:
                raise Rejected(f"zip: expected {CERTIFICATE} and {WEIGHTS} in one folder and nothing else, got {sorted(names)[:5]}")
            members = {}
            for name, entry in zip(names, entries, strict=True):
                if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise Rejected(f"zip: {name} is encrypted or uses an unusual compression")
                if name != PROVENANCE:
                    with archive.open(entry) as file:
                        members[name] = _capped(file, name)
            return members
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, NotImplementedError, OverflowError) as error:
        raise Rejected(f"neither a folder nor a readable zip: {error}") from error


# --- certificates -----------------------------------------------------------------------------------------------------


def read_certificate(path: str | os.PathLike[str]) -> Certificate:
    """Read a certificate from its folder, its ``certificate.json`` or a zip. Raises Rejected with the reason."""
    path = Path(path)
    if path.is_dir() or path.name == CERTIFICATE:
        folder = path if path.is_dir() else path.parent
        members = {name: _read_member(folder, name) for name in (CERTIFICATE, WEIGHTS)}
    elif path.is_file():
        members = _read_zip(path)
    else:
        raise Rejected("no such file or folder")
    if set(members) != {CERTIFICATE, WEIGHTS}:
        raise Rejected(f"needs both {CERTIFICATE} and {WEIGHTS}")
    return parse_certificate(members[CERTIFICATE], members[WEIGHTS])


def parse_certificate(certificate: bytes, weights: bytes) -> Certificate:
    """The certificate in these bytes. Raises Rejected with the reason."""
    keys = ("format", "version", "kind", "arithmetic", "claim", "subject", "evidence", "tensors", "requires")
    data = fields(parse_json(certificate, CERTIFICATE), keys, CERTIFICATE)
    if data["format"] != "lipctrl-certificate" or type(data["version"]) is not int or data["version"] != 1:
        raise Rejected("expected format 'lipctrl-certificate', version 1")
    if data["arithmetic"] not in ("real", "float32") or not isinstance(data["kind"], str):
        raise Rejected("arithmetic must be 'real' or 'float32', kind a text")
    if not isinstance(data["claim"], dict) or not isinstance(data["evidence"], dict):
        raise Rejected("claim and evidence must be tables")
    requires = data["requires"]
    if not isinstance(requires, list) or len(requires) > MAX_REQUIRES or not all(_DIGEST.fullmatch(str(r)) for r in requires):
        raise Rejected(f"requires must be a list of at most {MAX_REQUIRES} SHA-256 digests")
    if data["tensors"] != {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()}:
        raise Rejected(f"{WEIGHTS} differs from the digest in {CERTIFICATE}")
    tensors = parse_tensors(weights)
    parts = fields(data["subject"], ("policy",), "subject", optional=("plant",))
    subject: dict[str, Any] = {"policy": _graph(parts["policy"], tensors, "policy")}
    if {name for name in tensors if not name.startswith(EVIDENCE_PREFIX)} != set(subject["policy"].tensors):
        raise Rejected(f"{WEIGHTS} and the policy graph do not name the same tensors")
    if "plant" in parts:
        subject["plant"] = parse_plant(parts["plant"])
    digest = hashlib.sha256(certificate).hexdigest()
    return Certificate(data["kind"], data["arithmetic"], data["claim"], subject, data["evidence"], tuple(requires), tensors, digest)


def _graph(data: object, tensors: Mapping[str, np.ndarray], what: str) -> Graph:
    """A graph whose one evaluation is a bounded amount of work."""
    try:
        graph = graph_from_json(data, tensors)
    except GraphError as error:
        raise Rejected(f"{what} graph: {error}") from error
    values, products = graph_cost(graph)
    if values > MAX_VALUES or products > MAX_PRODUCTS:
        raise Rejected(f"{what} graph: {values} values, {products} products an evaluation, at most {MAX_VALUES}, {MAX_PRODUCTS} allowed")
    try:
        require_well_posed(graph)  # whatever a certificate says about a graph, the graph must mean something
    except GraphError as error:
        raise Rejected(f"{what} graph: {error}") from error
    return graph


def graph_cost(graph: Graph) -> tuple[int, int]:
    """(vector entries, products in affine and implicit nodes) that one evaluation computes; a recentred graph counts twice."""
    values, products = sum(graph.sizes), 0
    for node in graph.nodes:
        if node.op == "affine":
            products += graph.tensors[node.attributes["weight"]].size
        elif node.op == "implicit":
            products += IMPLICIT_PRODUCTS * graph.tensors[node.attributes["weight"]].size
        elif node.op == "recentre":
            inner = graph_cost(node.attributes["graph"])
            values, products = values + 2 * inner[0], products + 2 * inner[1]
    return values, products


def _coordinates(data: object, what: str) -> tuple[tuple[str, str], ...]:
    pairs = data if isinstance(data, list) else []
    if not pairs or not all(isinstance(p, list) and len(p) == 2 and all(_is_label(text) for text in p) for p in pairs):
        raise Rejected(f"{what} must be a list of [name, unit]")
    return tuple((name, unit) for name, unit in pairs)


def _is_label(text: object) -> bool:
    return isinstance(text, str) and _LABEL.fullmatch(text) is not None


def parse_plant(data: object) -> PlantSubject:
    """A plant subject from its JSON. Raises Rejected where sizes, boxes, equilibrium or graphs do not fit together."""
    table = fields(data, _PLANT_KEYS, "plant")
    state, action, observation = (_coordinates(table[key], f"plant {key}") for key in ("state", "action", "observation"))
    boxes = {}
    for name, coordinates in (("state", state), ("action", action)):
        box = table[f"{name}_box"]
        if not isinstance(box, list) or len(box) != 2:
            raise Rejected(f"plant {name}_box must be [low, high]")
        low, high = (numbers(end, len(coordinates), f"plant {name}_box") for end in box)
        rest = numbers(fields(table["equilibrium"], ("state", "action"), "plant equilibrium")[name], len(coordinates), "plant equilibrium")
        if not all(lo < x < hi for lo, x, hi in zip(low, rest, high, strict=True)):
            raise Rejected(f"plant equilibrium {name} must lie strictly inside {name}_box")
        boxes[name] = (low, high, rest)
    dynamics, observe = _graph(table["dynamics"], {}, "dynamics"), _graph(table["observe"], {}, "observe")
    n, m, k = len(state), len(action), len(observation)
    expected = ({"state": n, "action": m}, {"next_state": n}, {"state": n}, {"observation": k})
    if (dynamics.input_sizes, dynamics.output_sizes, observe.input_sizes, observe.output_sizes) != expected:
        raise Rejected(f"plant graphs do not have the inputs and outputs {expected}")
    dt = number(table["dt"], "plant dt")
    if dt <= 0 or not _is_label(table["scheme"]):
        raise Rejected("plant dt must be positive and its scheme a short text")
    (state_low, state_high, x), (action_low, action_high, u) = boxes["state"], boxes["action"]
    digest = hashlib.sha256(canonical_json(data).encode()).hexdigest()
    names = (state, action, observation, dt, table["scheme"])
    return PlantSubject(*names, state_low, state_high, action_low, action_high, x, u, dynamics, observe, digest)


def read_policy_folder(path: str | os.PathLike[str]) -> tuple[Graph, dict[str, Any]]:
    """The graph of a policy folder, and its ``observation``, ``action`` (name, unit pairs), ``dt`` and ``provenance``.

    Raises Rejected where the folder is not a well-formed policy. Its digest is ``graph.digest()``.
    """
    folder = Path(path)
    members = {name: _read_member(folder, name) for name in (POLICY, WEIGHTS)}
    keys = ("format", "version", "graph", "observation", "action", "dt", "provenance")
    data = fields(parse_json(members[POLICY], POLICY, decimals=True), keys, POLICY)
    if data["format"] != "lipctrl-policy" or type(data["version"]) is not int or data["version"] != 1:
        raise Rejected("expected format 'lipctrl-policy', version 1")
    graph = _graph(data["graph"], parse_tensors(members[WEIGHTS]), "policy")
    metadata = {key: _coordinates(data[key], f"policy {key}") for key in ("observation", "action")}
    if (graph.input_sizes, graph.output_sizes) != tuple({key: len(pairs)} for key, pairs in metadata.items()):
        raise Rejected("policy graph must map 'observation' to 'action', in the sizes that the folder names")
    dt = None if data["dt"] is None else number(data["dt"], "policy dt")
    return graph, {**metadata, "dt": dt, "provenance": data["provenance"]}
