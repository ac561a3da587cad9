"""One self-contained HTML page: no script, no network, pictures inside."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lipctrl.report.pictures import Picture
from lipctrl.report.run import Entry, RunContents
from lipctrl.report.style import INK, LEVEL_FILLS, MUTED, RULE, rounded

MEANINGS = {
    "proved": "holds over the reals for the stated network, equations and set; the checker verified the evidence with rigorous arithmetic",
    "proved-for-model": "proved, but resting on the assumptions that are listed",
    "falsified": "a concrete counterexample, replayed by the checker",
    "numerical": "a floating-point computation says so; not checked rigorously",
    "statistical": "holds with a stated confidence over a stated distribution",
    "unknown": "nothing is known; the reason says why",
}

TITLES = {
    "lipschitz": "Lipschitz bound",
    "exponentially_stable": "Exponential stability",
    "asymptotically_stable": "Asymptotic stability",
    "practically_stable": "Practical stability",
}
READINGS = {"real": "real-valued network", "float32": "float32 network, as deployed"}
NAMES = {
    "lipschitz design": "Lipschitz constant by design",
    "lipschitz upper": "Lipschitz constant at most",
    "lipschitz lower": "Lipschitz constant at least",
    "lipschitz stabilisation floor": "least Lipschitz constant that can stabilise",
    "region real": "volume of the region, real-valued network",
    "region float32": "volume of the region, float32 network",
    "region simulated": "volume that arrives in simulation (numerical)",
    "region simulated in box": "... without leaving the box (numerical)",
    "mean return expert": "mean return of the expert",
    "mean return policy": "mean return of the policy",
}

#: Results that are bounds: a reader sees them rounded to the side on which they stay true.
DOWN = {
    *("Lipschitz constant at least", "least Lipschitz constant that can stabilise", "lower", "volume", "rho"),
    *("volume of the region, real-valued network", "volume of the region, float32 network"),
    *("interpolation constant", "error floor", "squared error floor"),
}
UP = {"Lipschitz constant at most", "upper"}

STYLE = f"""
:root {{ color-scheme: light; }}
body {{ font: 16px/1.55 system-ui, sans-serif; color: {INK}; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem; background: #fff; }}
h1 {{ font-size: 1.7rem; margin-bottom: .2rem; }}
h2 {{ font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 1px solid {RULE}; padding-bottom: .2rem; }}
.lead {{ color: {MUTED}; margin-top: 0; }}
.claim {{ border: 1px solid {RULE}; border-left-width: .5rem; border-radius: .3rem; padding: .7rem 1rem; margin: 1rem 0; }}
.claim p {{ margin: .35rem 0; }}
.badge {{ display: inline-block; border: 1.5px solid; border-radius: .3rem; padding: 0 .5rem; font-weight: 600; font-size: .9rem; }}
.what {{ font-weight: 600; margin-right: .6rem; }}
code, pre {{ font: .85rem/1.5 ui-monospace, monospace; }}
pre {{ background: #f4f6f8; padding: .7rem .9rem; overflow-x: auto; border-radius: .3rem; }}
.digest {{ color: {MUTED}; overflow-wrap: anywhere; }}
figure {{ margin: 1.6rem 0; }}
figure img {{ max-width: 100%; height: auto; display: block; }}
figcaption {{ color: {MUTED}; font-size: .93rem; max-width: 46rem; }}
table {{ border-collapse: collapse; font-size: .93rem; }}
td {{ padding: .2rem 1.2rem .2rem 0; vertical-align: top; border-bottom: 1px solid {RULE}; }}
"""


def page(run: RunContents, pictures: Sequence[Picture]) -> str:
    """The report of a run."""
    title = f"{run.config.get('plant') or run.config.get('environment') or run.folder.name}: {run.config.get('algorithm', 'run')}"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_summary(run.entries))}</p>',
        *_claims(run),
        *_results(run),
        *(_figure(picture) for picture in pictures),
        *_configuration(run.config),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _summary(entries: Sequence[Entry]) -> str:
    if not entries:
        return "This run made no claim."
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.verdict.level] = counts.get(entry.verdict.level, 0) + 1
    return f"{len(entries)} certificates: " + ", ".join(f"{count} {level}" for level, count in counts.items()) + "."


def badge(level: str) -> str:
    """A level of claim in words and colour."""
    fill = LEVEL_FILLS[level]
    colours = f"background:{fill.face};border-color:{fill.edge}"
    return f'<span class="badge" style="{colours}" title="{escape(MEANINGS[level])}">{escape(level)}</span>'


def _claims(run: RunContents) -> list[str]:
    missing = [_missing(item) for item in _not_found(run)]
    if not run.entries:
        return ["<h2>What was sought</h2>", *missing] if missing else []
    levels = dict.fromkeys(entry.verdict.level for entry in run.entries)
    meanings = [f"<li>{badge(level)} {escape(MEANINGS[level])}</li>" for level in levels]
    about = f" --about {shlex.quote(run.policy_name)}" if run.policy_name else ""
    names = " ".join(shlex.quote(entry.name) for entry in run.entries)
    command = f"lipctrl-check {names}{about}"
    return [
        "<h2>What is claimed</h2>",
        "<p>The sentences below are the checker's own words, derived from the files and not stored in them.</p>",
        *(_claim(entry) for entry in run.entries),
        *missing,
        "<p>Check it yourself, in the run folder and on any machine; it takes NumPy, python-flint and safetensors:</p>",
        f"<pre>{escape(command)}</pre>",
        f"<ul>{''.join(meanings)}</ul>",
    ]


def _not_found(run: RunContents) -> list[Mapping[str, Any]]:
    """Entries of the results that no certificate stands for, such as a proof that was not found."""
    listed = run.results.get("results")
    items = [item for item in listed if isinstance(item, Mapping)] if isinstance(listed, list) else []
    return [item for item in items if item.get("certificate") is None and not item.get("claim")]


def _missing(item: Mapping[str, Any]) -> str:
    name, reason = str(item.get("name", "certificate")), str(item.get("reason", ""))
    lines = f'<p><span class="what">{escape(name)}</span>{badge("unknown")}</p><p>Not proved: {escape(reason)}.</p>'
    return f'<div class="claim" style="border-left-color:{LEVEL_FILLS["unknown"].edge}">{lines}</div>'


def _claim(entry: Entry) -> str:
    verdict = entry.verdict
    fill = LEVEL_FILLS[verdict.level]
    title = TITLES.get(verdict.property, verdict.property.replace("_", " ") or verdict.kind or "certificate")
    reading = READINGS.get(verdict.arithmetic, "")
    head = f'<span class="what">{escape(title)}</span>{badge(verdict.level)}'
    lines = [f'<p>{head} <span class="digest">{escape(reading)}</span></p>']
    lines.append(f"<p>{escape(_sentence(verdict.claim) if verdict.claim else f'{verdict.status}: {verdict.reason}')}</p>")
    lines += [f"<p>Assuming that {escape(assumption)}.</p>" for assumption in verdict.assumptions]
    digests = "".join(f"<br>{escape(name)} {escape(digest)}" for name, digest in verdict.subject.items())
    lines.append(f'<p class="digest"><code>{escape(entry.name)}: {escape(verdict.kind)}, {escape(verdict.status)}{digests}</code></p>')
    return f'<div class="claim" style="border-left-color:{fill.edge}">{"".join(lines)}</div>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _results(run: RunContents) -> list[str]:
    rows = [(name, value) for name, value in _flat(run.results) if not name.startswith(("results", "certificates"))]
    rows = [(name, value) for name, value in rows if name not in ("verb", "status", "level", "claim")]
    return ["<h2>Results</h2>", _table(rows)] if rows else []


def _configuration(config: Mapping[str, Any]) -> list[str]:
    return ["<h2>Configuration</h2>", _table(_flat(config))] if config else []


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    order = list(NAMES.values())
    for key, value in table.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        elif not (isinstance(value, list) and any(isinstance(item, Mapping) for item in value)):
            name = f"{prefix}{key}".replace("_", " ")
            rows.append((NAMES.get(name, name), value))
    return sorted(rows, key=lambda row: order.index(row[0]) if row[0] in order else len(order))


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(_shown(value, name))}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _shown(value: Any, name: str = "") -> str:
    if isinstance(value, float) and name in DOWN | UP:
        return rounded(value, "up" if name in UP else "down", 6)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return "none" if value is None else str(value)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.data).decode()
    image = f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">'
    return f"<h2>{escape(picture.title)}</h2><figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"
