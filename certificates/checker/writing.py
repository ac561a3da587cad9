"""Writing of certificate folders, for the search side; nothing here is trusted, everything is read back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lipctrl.certificates.checker.bundle import CERTIFICATE, MAX_BYTES, PROVENANCE, WEIGHTS, parse_certificate
from lipctrl.certificates.checker.graph import Graph, canonical_json, graph_to_json


def certificate_bytes(
    *,
    kind: str,
    claim: Mapping[str, Any],
    policy: Graph,
    plant: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
    arithmetic: str = "real",
    requires: Sequence[str] = (),
    tensors: Mapping[str, np.ndarray] | None = None,
) -> tuple[bytes, bytes]:
    """The bytes of ``certificate.json`` and ``weights.safetensors``; equal inputs give equal bytes.

    ``plant`` is a plant subject as JSON data; ``tensors`` are extra arrays of the evidence, their names start with ``evidence/``.
    ``parse_certificate(*certificate_bytes(...))`` is the certificate in memory.
    """
    weights = safetensors.numpy.save({name: np.ascontiguousarray(t) for name, t in {**policy.tensors, **(tensors or {})}.items()})
    subject = {"policy": graph_to_json(policy), **({} if plant is None else {"plant": plant})}
    data = {
        "format": "lipctrl-certificate",
        "version": 1,
        "kind": kind,
        "arithmetic": arithmetic,
        "claim": claim,
        "subject": subject,
        "evidence": evidence or {},
        "tensors": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
        "requires": list(requires),
    }
    return canonical_json(data).encode() + b"\n", weights


def write_certificate(folder: str | os.PathLike[str], *, provenance: Mapping[str, Any] | None = None, **parts: Any) -> Path:
    """Write a certificate folder, replacing an earlier certificate there in one step. Returns the folder.

    ``parts`` are those of :func:`certificate_bytes`; ``provenance`` is written beside, outside all digests. Raises ValueError
    where the folder holds anything but a certificate, Rejected where the parts do not make a well-formed one.
    """
    certificate, weights = certificate_bytes(**parts)
    parse_certificate(certificate, weights)
    members = {CERTIFICATE: certificate, WEIGHTS: weights}
    if provenance is not None:
        members[PROVENANCE] = json.dumps(provenance, indent=1, sort_keys=True).encode() + b"\n"
    replace_folder(Path(folder), members)
    return Path(folder)


def replace_folder(folder: Path, members: Mapping[str, bytes]) -> None:
    """Put ``members`` into ``folder`` in one step. Raises ValueError where it holds files that this would lose."""
    if folder.exists() and (not folder.is_dir() or {entry.name for entry in folder.iterdir()} - {*MAX_BYTES, PROVENANCE}):
        raise ValueError(f"{folder} exists and holds more than a certificate: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (fresh / "new").mkdir()
        for name, data in members.items():
            (fresh / "new" / name).write_bytes(data)
        put_in_place(folder, fresh / "new", fresh / "old")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def put_in_place(target: Path, fresh: Path, old: Path) -> None:
    """Rename ``fresh`` to ``target``, and what was there to ``old``; where that fails, what was there comes back."""
    moved = target.exists()
    if moved:
        os.replace(target, old)
    try:
        os.replace(fresh, target)
    except OSError:
        if moved:
            os.replace(old, target)
        raise
