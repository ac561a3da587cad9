"""The table of kinds, and ``check``: any bytes in, a Verdict out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from lipctrl.certificates.checker.bundle import CERTIFICATE, POLICY, Certificate, read_certificate, read_policy_folder
from lipctrl.certificates.checker.verdict import PROVED, PROVED_FOR_MODEL, Rejected, Verdict, rejected, verified

_VERIFIERS = "lipctrl.certificates.checker.verifiers."
KINDS = {
    "action-deviation": _VERIFIERS + "action_deviation",
    "closed-loop-lyapunov-bab": _VERIFIERS + "closed_loop_lyapunov_bab",
    "counterexample": _VERIFIERS + "counterexample",
    "lipschitz-bound": _VERIFIERS + "lipschitz_bound",
    "monotonicity": _VERIFIERS + "monotonicity",
}  #: modules whose ``verify(certificate)`` returns a Verdict or raises Rejected; the closed list

MAX_CHAIN = 3  #: certificates that rest on certificates that rest on ...
MAX_BESIDE = 32  #: folders beside a certificate that are searched for those it rests on
PLANT_DIGESTS = Path(__file__).with_name("plant_digests.json")

Source = str | os.PathLike[str]


def check(certificate: Source | Certificate, about: Source | tuple[str, str] | None = None, required: Sequence[Source] = ()) -> Verdict:
    """Verify one certificate: its folder, ``certificate.json``, zip, or as read. Ends in a Verdict whatever the bytes are.

    ``about`` names what the claim must be about (see :func:`resolve_about`, whose ValueError passes through), or is what that
    returns. ``required`` are certificates that this one may rest on; those in folders beside it are found too.
    """
    expected = about if about is None or isinstance(about, tuple) else resolve_about(about)
    return _check(certificate, expected, _Library(tuple(required)), MAX_CHAIN)


@dataclass
class _Library:
    """Certificates that others may rest on. Each is read for its digest once, and verified once."""

    given: tuple[Source, ...]
    seen: set[str] = field(default_factory=set)
    found: dict[str, Source] = field(default_factory=dict)  #: by the SHA-256 of certificate.json
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def look(self, candidates: Sequence[Source]) -> None:
        """Note the digests of these certificates; what cannot be read is passed over."""
        for candidate in candidates:
            if str(candidate) not in self.seen:
                self.seen.add(str(candidate))
                try:
                    self.found.setdefault(read_certificate(candidate).sha256, candidate)
                except Rejected:
                    continue


def _check(source: Source | Certificate, expected: tuple[str, str] | None, library: _Library, depth: int) -> Verdict:
    found: Certificate | None = None
    try:
        found = source if isinstance(source, Certificate) else read_certificate(source)
        if found.kind not in KINDS:
            raise Rejected(f"unknown kind {found.kind[:60]!r}, this checker knows {', '.join(KINDS)}")
        if expected is not None and found.digests.get(expected[0]) != expected[1]:
            raise Rejected(f"the certificate is about another {expected[0]}: {found.digests.get(expected[0])}, not {expected[1]}")
        supports = [_support(digest, source, library, depth) for digest in dict.fromkeys(found.requires)]
        verdict: Verdict = import_module(KINDS[found.kind]).verify(found)
    except Rejected as error:
        return _rejection(str(error), found)
    except RecursionError:
        return _rejection("nested too deep", found)
    except Exception as error:  # whatever a hostile file provokes ends in a rejection
        return _rejection(f"the checker stopped: {type(error).__name__}: {error}", found)
    return _weakened(verdict, supports)


def _rejection(reason: str, certificate: Certificate | None) -> Verdict:
    if certificate is None:
        return rejected(reason)
    name = certificate.claim.get("property")
    return rejected(
        reason,
        kind=certificate.kind,
        property=name if isinstance(name, str) else "",
        arithmetic=certificate.arithmetic,
        subject=certificate.digests,
    )


def _support(digest: str, source: Source | Certificate, library: _Library, depth: int) -> Verdict:
    """The verdict about a certificate that this one rests on. Raises Rejected where it is missing or does not hold."""
    if depth == 0:
        raise Rejected(f"more than {MAX_CHAIN} certificates rest on each other")
    if digest not in library.verdicts:
        library.look([*library.given, *_beside(source)])
        if digest not in library.found:
            raise Rejected(f"rests on certificate {digest}, which was not found beside it or among those given")
        other = read_certificate(library.found[digest])
        if other.sha256 != digest:
            raise Rejected(f"certificate {digest[:12]} changed while it was read")
        verdict = _check(other, None, library, depth - 1)
        if verdict.level not in (PROVED, PROVED_FOR_MODEL):
            raise Rejected(f"rests on certificate {digest[:12]}, which is not proved: {verdict.reason or verdict.level}")
        library.verdicts[digest] = verdict
    return library.verdicts[digest]


def _beside(source: Source | Certificate) -> list[Path]:
    if isinstance(source, Certificate):
        return []
    path = Path(source)
    folder = (path.parent if path.name == CERTIFICATE else path).resolve()
    return sorted(entry for entry in folder.parent.iterdir() if (entry / CERTIFICATE).is_file())[:MAX_BESIDE]


def _weakened(verdict: Verdict, supports: Sequence[Verdict]) -> Verdict:
    """The level is at most the weakest of the certificates that it rests on: their assumptions become its own."""
    assumptions = dict.fromkeys([*verdict.assumptions, *(a for support in supports for a in support.assumptions)])
    if tuple(assumptions) == verdict.assumptions:
        return verdict
    return verified(
        kind=verdict.kind,
        property=verdict.property,
        claim=verdict.claim,
        arithmetic=verdict.arithmetic,
        subject=verdict.subject,
        assumptions=tuple(assumptions),
        numbers=verdict.numbers,
    )


def resolve_about(about: Source) -> tuple[str, str]:
    """The part of a subject and its digest that ``about`` names: a policy folder, or a shipped plant.

    Plants are named as in ``pendulum`` or ``lipctrl/Pendulum-v0``. Raises ValueError where it is neither.
    """
    path = Path(about)
    if (path / POLICY).exists():
        try:
            return "policy", read_policy_folder(path)[0].digest()
        except Rejected as error:
            raise ValueError(f"{path} is not a readable policy folder: {error}") from error
    digests = {_bare(name): digest for name, digest in _plant_digests().items()}
    if _bare(str(about)) not in digests:
        raise ValueError(f"{str(about)!r} is neither a policy folder nor a shipped plant: {', '.join(_plant_digests()) or 'none'}")
    return "plant", digests[_bare(str(about))]


def _plant_digests() -> dict[str, str]:
    return dict(json.loads(PLANT_DIGESTS.read_text())) if PLANT_DIGESTS.exists() else {}


def _bare(name: str) -> str:
    """``lipctrl/GymPendulum-v0`` and ``gym-pendulum`` are the same plant."""
    return name.removeprefix("lipctrl/").removesuffix("-v0").replace("-", "").lower()
