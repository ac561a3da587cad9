"""What every verb has: common options, and the outcome that it hands back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

if TYPE_CHECKING:
    from lipctrl.cli.console import Console

Status = Literal["ok", "refuted", "unknown", "error"]
EXIT_CODES: Mapping[str, int] = {"ok": 0, "refuted": 1, "error": 2, "unknown": 3}
INTERRUPTED = 130  #: the exit code after Ctrl-C

Folder = Annotated[str, tyro.conf.arg(metavar="DIR")]
OptionalFolder = Annotated[str | None, tyro.conf.arg(metavar="DIR")]
EnvironmentId = Annotated[str, tyro.conf.arg(metavar="ID|FILE.py")]


@dataclass(frozen=True)
class Outcome:
    """What a verb found: the keys that ``--json`` prints beside ``verb`` and ``seconds``, and ``lines`` for people.

    ``level`` and ``claim`` are set where a claim was made, ``certificates`` are paths written or read. ``code`` is the exit code
    where the status does not decide it.
    """

    lines: Sequence[str]
    status: Status = "ok"
    level: str | None = None
    claim: str = ""
    certificates: Sequence[str] = ()
    keys: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    code: int | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        if self.code is not None:
            return self.code
        return INTERRUPTED if self.interrupted else EXIT_CODES[self.status]

    def to_json(self, verb: str, seconds: float) -> dict[str, Any]:
        """The JSON object of ``--json``."""
        common = {"verb": verb, "status": self.status, "level": self.level, "claim": self.claim}
        found = {**common, "certificates": list(self.certificates), "seconds": round(seconds, 3), **self.keys}
        return {key: finite(value) for key, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class Verb:
    """Options that every verb takes."""

    EXAMPLE: ClassVar[str] = ""

    json: bool = False
    """Print exactly one JSON object on standard output; progress still goes to standard error."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    traceback: bool = False
    """Show where in the code an unexpected error came from."""

    def run(self, console: Console) -> Outcome:
        """Do the work. Raises InputError for a user's mistake."""
        raise TypeError(f"{type(self).__name__} cannot be run")


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NumPy numbers become Python's, what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
