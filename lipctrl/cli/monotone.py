"""``lipctrl lipschitz --monotone``: what every output does when an input rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipctrl.cli.results import entry
from lipctrl.cli.verb import Outcome
from lipctrl.core.errors import InputError

if TYPE_CHECKING:
    from lipctrl.certificates.checker.graph import Graph
    from lipctrl.certificates.lipschitz import Budget, MonotonicityCertificate
    from lipctrl.cli.console import Console

Rows = list[list[int]]


def monotone_outcome(
    graph: Graph, signs: Sequence[int], domain: Mapping[str, Any], budget: Budget, folder: Path, console: Console
) -> Outcome:
    """Prove signs of a network and write the certificate; ``signs`` are those that are asked, row after row, or none to find them."""
    from lipctrl.certificates.checker.kinds import check
    from lipctrl.certificates.lipschitz import NotProved, certify_monotone

    asked, reason = _rows(signs, *graph.output_sizes.values(), *graph.input_sizes.values()), ""
    found: MonotonicityCertificate | None
    with console.task("proving signs") as progress:
        try:
            found = certify_monotone(graph, asked, **domain, budget=budget, progress=progress)
        except NotProved as error:
            found, reason = error.part, str(error)
    keys: dict[str, Any] = {"upper": None, "lower": None, "norm": None, "property": None, "signs": None, "asked": asked, "results": []}
    if found is None:
        return Outcome(lines=[reason], status="unknown", level="unknown", keys={**keys, "reason": reason})
    path = found.write(folder / "certificate")
    verdict = check(path)
    refuted, proved, lines = (
        verdict.level == "falsified",
        verdict.level == "proved",
        [f"{verdict.claim or verdict.reason} ({verdict.level})"],
    )
    if proved:
        keys |= {"property": verdict.property, "signs": found.signs.tolist()}
        lines += _table(found.signs.tolist())
    complete = refuted or (proved and not reason)
    return Outcome(
        lines=[*lines, *([f"more was asked: {reason}"] if reason else []), f"certificate: {path}"],
        status="refuted" if refuted else "ok" if complete else "unknown",
        level=verdict.level if complete else "unknown",
        claim=verdict.claim if complete else "",
        certificates=[str(path)],
        keys={**keys, "results": [entry("monotonicity", path, verdict, verdict.reason)], "reason": reason or verdict.reason},
    )


def _table(signs: Rows) -> list[str]:
    """A row for each output, with a mark for each input, where that fits on a screen."""
    if len(signs) > 16 or len(signs[0]) > 48:
        return []
    marks = {1: "+", -1: "-", 0: "."}
    return [f"output {i + 1}: {' '.join(marks[s] for s in row)}" for i, row in enumerate(signs)]


def _rows(signs: Sequence[int], outputs: int, inputs: int) -> Rows | None:
    if not signs:
        return None
    if len(signs) != outputs * inputs:
        raise InputError(
            f"--signs has {len(signs)} numbers, expected {outputs * inputs}: one row for each output, one number for each input"
        )
    return [list(signs[i * inputs : (i + 1) * inputs]) for i in range(outputs)]
