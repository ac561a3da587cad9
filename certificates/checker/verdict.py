"""Verdicts: what the checker says about a certificate, and the only objects that carry a level of claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, NoReturn

PROVED, PROVED_FOR_MODEL, FALSIFIED, UNKNOWN = "proved", "proved-for-model", "falsified", "unknown"
LEVELS = (PROVED, PROVED_FOR_MODEL, "numerical", "statistical", FALSIFIED, UNKNOWN)  #: every word for a level, no others

_SEAL = object()


class Rejected(Exception):  # noqa: N818 - a verdict that travels as an exception, not an error of the program
    """Raised inside the checker where a certificate fails; the message is the reason that the verdict will show."""


@dataclass(frozen=True)
class Verdict:
    """The checker's answer about one certificate; only :func:`verified` and :func:`rejected` make one.

    ``claim`` is the sentence that may be printed, derived by the checker. ``subject`` maps ``policy`` and ``plant`` to
    SHA-256 digests. ``assumptions`` are what the claim rests on without proof. ``numbers`` are proved numbers by name,
    already rounded to the safe side. ``level`` is derived from all of it. A verdict has no truth value: compare ``status`` or ``level``.
    """

    seal: InitVar[object]
    status: Literal["verified", "rejected"]
    kind: str
    property: str
    claim: str
    reason: str
    arithmetic: str
    subject: Mapping[str, str]
    assumptions: tuple[str, ...]
    numbers: Mapping[str, float]
    level: str = field(init=False)

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a Verdict is made by the checker only: call lipctrl.certificates.checker.kinds.check(certificate)")
        if self.status == "rejected":
            level = UNKNOWN
        elif self.kind == "counterexample":
            level = FALSIFIED
        else:
            level = PROVED_FOR_MODEL if self.assumptions else PROVED
        for name, text in (("kind", self.kind), ("property", self.property), ("claim", self.claim), ("reason", self.reason)):
            object.__setattr__(self, name, plain(text))
        object.__setattr__(self, "subject", MappingProxyType(dict(self.subject)))
        object.__setattr__(self, "numbers", MappingProxyType(dict(self.numbers)))
        object.__setattr__(self, "level", level)

    def __bool__(self) -> NoReturn:
        raise TypeError("a Verdict has no truth value: compare verdict.status == 'verified' or verdict.level == 'proved'")


def plain(text: str) -> str:
    """Text that is safe to print: anything a file could use to draw on a terminal is escaped, the length is bounded."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:2000])
    return shown if len(text) <= 2000 else shown + " ..."


def shown(value: Fraction, towards: Literal["up", "down", "nearest"] = "nearest") -> str:
    """Six digits of an exact number for a sentence, rounded in the direction that keeps the sentence true."""
    rounding = {"up": ROUND_CEILING, "down": ROUND_FLOOR, "nearest": ROUND_HALF_EVEN}[towards]
    quotient = Context(prec=6, rounding=rounding).divide(Decimal(value.numerator), Decimal(value.denominator))
    text = f"{quotient:f}"
    return f"{quotient:e}" if len(text) > 14 else text.rstrip("0").rstrip(".") if "." in text else text


def verified(
    *,
    kind: str,
    property: str,
    claim: str,
    arithmetic: str,
    subject: Mapping[str, str],
    assumptions: tuple[str, ...] = (),
    numbers: Mapping[str, float] | None = None,
) -> Verdict:
    """A certificate whose evidence was verified. For verifiers (and ``check``, which adds the assumptions of required ones)."""
    return Verdict(_SEAL, "verified", kind, property, claim, "", arithmetic, subject, assumptions, numbers or {})


def rejected(reason: str, *, kind: str = "", property: str = "", arithmetic: str = "", subject: Mapping[str, str] | None = None) -> Verdict:
    """A certificate that proves nothing, and why."""
    return Verdict(_SEAL, "rejected", kind, property, "", reason, arithmetic, subject or {}, (), {})
