"""``lipctrl-check``: verify certificates from the command line, with the checker and nothing else.

Exit codes: 0 every certificate is verified and its property holds, 1 one was rejected or is a verified counterexample,
2 the command was wrong or an input does not exist. A rejected file refutes nothing: its level is unknown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipctrl.certificates.checker.kinds import check, resolve_about
from lipctrl.certificates.checker.verdict import FALSIFIED, LEVELS, UNKNOWN, Verdict

EXAMPLE = """example:
  lipctrl-check run/certificates/stability --about run/policy
  lipctrl-check certificate.zip --about pendulum --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's own by default) and return its exit code."""
    parser = argparse.ArgumentParser("lipctrl-check", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("certificates", nargs="+", metavar="CERTIFICATE", help="a certificate: its folder, certificate.json or a zip of it")
    parser.add_argument(
        "--about", metavar="POLICY|PLANT", help="also require that the claims are about this policy folder or shipped plant"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    return run(options.certificates, about=options.about, as_json=options.json)


def run(certificates: Sequence[str], about: str | None = None, as_json: bool = False) -> int:
    """Check these certificates, print what was found, and return the exit code; what is wrong goes to standard error."""
    start = time.perf_counter()
    missing = [path for path in certificates if not Path(path).exists()]
    try:
        if not certificates:
            raise ValueError("no certificate was given")
        if missing:
            raise ValueError(f"no such file or folder: {missing[0]}")
        if about is not None and about.endswith(".py"):
            raise ValueError(f"{about} is code, which this command never executes; use lipctrl check --about {about}")
        if about is not None:
            resolve_about(about)
    except ValueError as error:
        return _usage_error(str(error), certificates, as_json)
    verdicts = [(path, check(path, about, [other for other in certificates if other != path])) for path in certificates]
    if as_json:
        print(json.dumps(report(verdicts, time.perf_counter() - start)))
    else:
        for path, verdict in verdicts:
            print(describe(path, verdict))
    return 0 if holds(verdicts) else 1


def _usage_error(message: str, certificates: Sequence[str], as_json: bool) -> int:
    print(f"lipctrl-check: {message}", file=sys.stderr)
    if as_json:
        found = {"level": UNKNOWN, "claim": "", "certificates": list(certificates), "seconds": 0.0, "results": []}
        print(json.dumps({"verb": "check", "status": "error", "message": message, **found}))
    return 2


def holds(verdicts: Sequence[tuple[str, Verdict]]) -> bool:
    """Whether all are verified and none of them is a counterexample."""
    return all(verdict.status == "verified" and verdict.level != FALSIFIED for _, verdict in verdicts)


def summary(verdicts: Sequence[tuple[str, Verdict]]) -> str:
    """``ok`` where all hold, ``refuted`` where one is a verified counterexample, else ``unknown``: a rejected file refutes nothing."""
    if holds(verdicts):
        return "ok"
    return "refuted" if any(verdict.level == FALSIFIED for _, verdict in verdicts) else "unknown"


def report(verdicts: Sequence[tuple[str, Verdict]], seconds: float) -> dict[str, Any]:
    """What ``--json`` prints. The level of all together is the weakest."""
    results = [
        {
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
        for path, verdict in verdicts
    ]
    return {
        "verb": "check",
        "status": summary(verdicts),
        "level": max((verdict.level for _, verdict in verdicts), key=LEVELS.index),
        "claim": " ".join(verdict.claim for _, verdict in verdicts if verdict.claim),
        "certificates": [str(path) for path, _ in verdicts],
        "seconds": seconds,
        "results": results,
    }


def describe(path: str, verdict: Verdict) -> str:
    """A few lines for people: status, level, claim or reason, assumptions, and what it is about."""
    lines = [f"{path}: {verdict.status}, level {verdict.level}", f"  {verdict.claim or verdict.reason}"]
    lines += [f"  assuming: {assumption}" for assumption in verdict.assumptions]
    lines += [f"  {name} {digest}" for name, digest in verdict.subject.items()]
    return "\n".join(lines)
