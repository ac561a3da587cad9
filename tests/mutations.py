"""Seeded mutants of a valid certificate, every hash made consistent again, so that only the mathematics can tell them apart.

A mutant that the checker accepts must be true: the tests of each kind prove its claim again from scratch.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lipctrl.certificates.checker.bundle import CERTIFICATE, WEIGHTS, Certificate, parse_certificate, parse_tensors
from lipctrl.certificates.checker.graph import tensor_descriptor
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Rejected

NUMBER = re.compile(r"-?\d+(/\d+)?|-?0x[01]\.[0-9a-f]+p[+-]\d+")
SPECIAL = ("nan", "inf", "-inf", "0x0.0p+0", "-1", "0", "1", "0x1.fffffffffffffp+1023")

Path_ = tuple[Any, ...]


@dataclass(frozen=True)
class Mutant:
    """The two files of a mutated certificate, and what was changed where."""

    change: str
    section: str
    certificate: bytes
    weights: bytes

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CERTIFICATE).write_bytes(self.certificate)
        (folder / WEIGHTS).write_bytes(self.weights)
        return folder


def mutants(folder: Path, count: int, seed: int = 0) -> Iterator[Mutant]:
    """``count`` different mutants of the certificate in ``folder``, four fifths of them in claim, evidence and subject."""
    generator = np.random.default_rng(seed)
    original = json.loads((folder / CERTIFICATE).read_bytes())
    weights = parse_tensors((folder / WEIGHTS).read_bytes())
    seen = {_bytes(copy.deepcopy(original), weights)}
    sections = ["claim", "evidence", "subject", "weights", "anything"]
    while count:
        data, tensors = copy.deepcopy(original), {name: t.copy() for name, t in weights.items()}
        section = str(generator.choice(sections, p=[0.3, 0.25, 0.25, 0.15, 0.05]))
        if section == "weights":
            change = _mutate_weights(tensors, generator)
        else:
            change = _mutate_json(data, () if section == "anything" else (section,), generator)
        made = _bytes(data, tensors)
        if change and made not in seen:
            seen.add(made)
            count -= 1
            yield Mutant(change, section, *made)


def accepted(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Certificate]]:
    """Those of ``count`` mutants that the checker accepts: what was changed, and the certificate. The others must have a reason."""
    for mutant in mutants(folder, count, seed):
        try:
            certificate = parse_certificate(mutant.certificate, mutant.weights)
        except Rejected:
            continue
        verdict = check(certificate)
        if verdict.status == "rejected":
            assert verdict.reason and "stopped" not in verdict.reason, (mutant.change, verdict.reason)
        else:
            yield mutant.change, certificate


def _bytes(data: Any, tensors: dict[str, np.ndarray]) -> tuple[bytes, bytes]:
    """Both files, with the descriptors of tensors and the digest of the weights file recomputed."""
    weights = safetensors.numpy.save(tensors)
    described = _at(data, ("subject", "policy", "tensors"))
    if isinstance(described, dict):
        described.update({name: tensor_descriptor(tensors[name]) for name in described if name in tensors})
    if isinstance(_at(data, ("tensors",)), dict):
        data["tensors"]["sha256"] = hashlib.sha256(weights).hexdigest()
    return json.dumps(data, sort_keys=True).encode(), weights


def _at(data: Any, path: Path_) -> Any:
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def _places(data: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every value below ``data``, tensor descriptors left out (they are recomputed anyway)."""
    if "sha256" in path or path[-2:-1] == ("tensors",):
        return
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _mutate_json(data: Any, root: Path_, generator: np.random.Generator) -> str:
    places = [root + path for path in _places(_at(data, root))]
    if not places:
        return ""
    numeric = [path for path in places if _is_number(_at(data, path))]
    action = str(generator.choice(["number", "number", "number", "special", "delete", "add", "rename", "swap", "text", "type"]))
    if action == "number" and numeric:
        path = numeric[generator.integers(len(numeric))]
        parent, old = _at(data, path[:-1]), _at(data, path)
        parent[path[-1]] = new = _nudged(old, generator)
        return f"{'.'.join(map(str, path))}: {old} -> {new}"
    path = places[generator.integers(len(places))]
    parent, key, old = _at(data, path[:-1]), path[-1], _at(data, path)
    return f"{action} at {'.'.join(map(str, path))}" if _edit(action, parent, key, old, generator) else ""


def _edit(action: str, parent: Any, key: Any, old: Any, generator: np.random.Generator) -> bool:
    """One edit in place; whether it applied."""
    if action == "special":
        parent[key] = str(generator.choice(SPECIAL))
    elif action == "delete":
        del parent[key]
    elif action == "add":
        if isinstance(parent, dict):
            parent[f"{key}_too"] = old
        else:
            parent.insert(key, old)
    elif action == "rename" and isinstance(parent, dict):
        parent[f"{key}_renamed"] = parent.pop(key)
    elif action == "swap" and len(parent) > 1:
        other = list(parent)[generator.integers(len(parent))] if isinstance(parent, dict) else int(generator.integers(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif action == "text" and isinstance(old, str) and old:
        parent[key] = _changed_text(old, generator)
    elif action == "type":
        parent[key] = [None, True, [], {}, [old], str(old), float("nan"), 0.5][generator.integers(8)]
    else:
        return False
    return True


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and NUMBER.fullmatch(value) is not None)


def _nudged(value: Any, generator: np.random.Generator) -> Any:
    """A number changed by one unit in the last place, by 1 %, in sign, or (integers) by one."""
    if type(value) is int:
        return value + int(generator.choice([-1, 1]))
    step = generator.choice(["ulp", "percent", "sign"], p=[0.45, 0.45, 0.1])
    towards = generator.choice([-1.0, 1.0])
    if "x" in value:
        number = float.fromhex(value)
        changed = {"ulp": math.nextafter(number, towards * math.inf), "percent": number * (1 + towards / 100), "sign": -number}[str(step)]
        return changed.hex()
    exact = Fraction(value)
    if step == "ulp":
        near = math.nextafter(float(exact), towards * math.inf)
        return str(generator.choice([near.hex(), str(Fraction(near))]))
    return str(-exact if step == "sign" else exact * (1 + Fraction(int(towards), 100)))


def _changed_text(text: str, generator: np.random.Generator) -> str:
    """A character of a text, or a byte inside a compressed one, changed; a compressed one may also lose or gain a byte."""
    try:
        inside = bytearray(zlib.decompress(base64.b64decode(text, validate=True)))
    except (ValueError, zlib.error):
        inside = bytearray()
    if not inside:
        at = int(generator.integers(len(text)))
        return text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
    at, action = int(generator.integers(len(inside))), generator.choice(["flip", "flip", "cut", "grow"])
    if action == "flip":
        inside[at] ^= 1 << int(generator.integers(3))
    elif action == "cut":
        del inside[at]
    else:
        inside.insert(at, inside[at])
    return base64.b64encode(zlib.compress(bytes(inside), 9)).decode()


# --- weights ------------------------------------------------------------------------------------------------------------


def _mutate_weights(tensors: dict[str, np.ndarray], generator: np.random.Generator) -> str:
    if not tensors:
        return ""
    names = sorted(tensors)
    name = names[generator.integers(len(names))]
    flat = tensors[name].reshape(-1)
    i, j = (int(k) for k in generator.integers(flat.size, size=2))
    action = str(generator.choice(["ulp", "percent", "sign", "zero", "swap", "nan", "inf", "transpose", "dtype", "drop", "exchange"]))
    if action == "ulp":
        flat[i] = np.nextafter(flat[i], flat.dtype.type(generator.choice([-np.inf, np.inf])))
    elif action == "percent":
        flat[i] *= flat.dtype.type(generator.choice([0.99, 1.01]))
    elif action == "sign":
        flat[i] = -flat[i]
    elif action in ("zero", "nan", "inf"):
        flat[i] = {"zero": 0.0, "nan": np.nan, "inf": np.inf}[action]
    elif action == "swap":
        flat[[i, j]] = flat[[j, i]]
    elif action == "transpose":
        tensors[name] = np.ascontiguousarray(tensors[name].T)
    elif action == "dtype":
        tensors[name] = tensors[name].astype(np.float64 if flat.dtype == np.float32 else np.float32)
    elif action == "drop":
        del tensors[name]
    else:
        other = names[generator.integers(len(names))]
        tensors[name], tensors[other] = tensors[other], tensors[name]
    return f"{action} in {name}[{i}]"
