"""Entries of the key ``results``: one for each certificate, in the same form for every verb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipctrl.certificates.checker.verdict import Verdict


def entry(name: str, path: Path | None, verdict: Verdict | None, reason: str) -> dict[str, Any]:
    """What the checker said about a certificate, or why there is none."""
    if verdict is None:
        nothing = {"certificate": None, "status": "unknown", "level": "unknown", "kind": None, "property": None, "claim": ""}
        return {"name": name, **nothing, "reason": reason}
    return {
        "name": name,
        "certificate": str(path),
        "status": verdict.status,
        "level": verdict.level,
        "kind": verdict.kind,
        "property": verdict.property,
        "claim": verdict.claim,
        "reason": verdict.reason,
        "subject": dict(verdict.subject),
        "arithmetic": verdict.arithmetic,
        "assumptions": list(verdict.assumptions),
        "numbers": dict(verdict.numbers),
    }
