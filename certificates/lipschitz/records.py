"""What a Lipschitz search returns: an interval [lower, upper] with the evidence for both ends."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Verdict
from lipctrl.certificates.checker.verifiers.lipschitz_bound import KIND
from lipctrl.certificates.checker.writing import certificate_bytes, write_certificate


def rounded_down(value: float, digits: int = 6) -> str:
    """A decimal text of at most ``value`` >= 0 with this many significant digits: how lower bounds are printed."""
    if value == 0:
        return "0"
    exact = Decimal(value)
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{exact.quantize(step, rounding=ROUND_FLOOR).normalize():f}"


class Filed(ABC):
    """A finding that a certificate folder can hold. Only the checker says what it is worth, so it has no truth value."""

    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """The arguments of :func:`lipctrl.certificates.checker.writing.certificate_bytes`."""

    def __bool__(self) -> NoReturn:
        raise TypeError(f"a finding ({type(self).__name__}) has no truth value: let the checker judge, .check(), or compare its bound")

    def check(self) -> Verdict:
        """The checker's verdict on the certificate's bytes: the only thing that carries a level."""
        return check(parse_certificate(*certificate_bytes(**self._parts())))

    def write(self, folder: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> Path:
        """Write the certificate folder, replacing an earlier certificate there in one step."""
        return write_certificate(folder, provenance=provenance, **self._parts())


@dataclass(frozen=True)
class UpperBound:
    """|f(x) - f(y)| <= ``value`` |x - y| for all x, y: ``claim`` and ``evidence`` are what the checker accepted in this process.

    ``method`` is ``"norm-product"``, ``"absolute-product"`` (linf), ``"multipliers"``, ``"windows"`` or ``"vertices"``. ``gap`` is how far,
    relatively, the value may lie above the best that multipliers can prove, by the solver's own account (``numerical``), or ``None``.
    """

    value: float
    method: str
    claim: Mapping[str, Any]
    evidence: Mapping[str, Any]
    gap: float | None = None


@dataclass(frozen=True)
class LowerBound:
    """|f(x) - f(y)| >= ``value`` |x - y| for this one pair ``x``, ``y``: evaluated in ball arithmetic and rounded down."""

    value: float
    x: tuple[Fraction, ...]
    y: tuple[Fraction, ...]


@dataclass(frozen=True)
class LipschitzCertificate(Filed):
    """A proved upper bound of the Lipschitz constant of ``graph``, ready to be written, with a witness from below.

    ``floor`` is *not* a lower bound: it is (``numerical``) the slope of some activation pattern, which no method that
    ignores the biases can go below; no input is known to reach the pattern. ``None`` where it was not sought.
    """

    graph: Graph
    upper: UpperBound
    lower: LowerBound | None
    floor: float | None

    def _parts(self) -> dict[str, Any]:
        return {"kind": KIND, "claim": self.upper.claim, "policy": self.graph, "evidence": self.upper.evidence}
