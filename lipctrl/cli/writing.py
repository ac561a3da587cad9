"""Output folders and results files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipctrl.certificates.checker.bundle import CERTIFICATE, POLICY
from lipctrl.cli.verb import Outcome
from lipctrl.core.errors import InputError
from lipctrl.core.run_folder import CONFIG, write_atomically

RESULTS = "results.json"
#: What a folder may hold that no verb writes over, by the file that tells.
CONTENT = {POLICY: "a policy", CERTIFICATE: "a certificate", "data/main_data.hdf5": "a data set"}


def refuse_other_content(path: str | Path, verb: str, config: Mapping[str, Any] | None = None) -> None:
    """Raise InputError at once where ``--out`` holds something else; reads two small files, and makes nothing.

    ``verb`` is the word in ``results.json``. ``config`` is what is known so far of the run's configuration, None for a verb that
    keeps no run: then a folder with any run is refused.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write to {folder}: it is a file, expected a folder; choose another one with --out")
    stored = _read(folder / CONFIG, tomllib.loads)
    if stored is None:
        found = [f"holds {what}" for name, what in CONTENT.items() if (folder / name).exists()]
        other = (_read(folder / RESULTS, json.loads) or {}).get("verb", verb)
        found += [] if other == verb else [f"holds the results of lipctrl {other}"]
    elif config is None:
        found = [f"holds a run of {stored.get('algorithm', 'another verb')}"]
    else:
        found = [f"holds another run: {difference}" for difference in _differences(stored, config)]
    if found:
        raise InputError(f"{folder} {found[0]}; choose another folder with --out")


def _read(path: Path, parse: Any) -> Mapping[str, Any] | None:
    """The table in a file, or None where there is no such file. Raises InputError where it cannot be read."""
    if not path.is_file():
        return None
    try:
        table = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); choose another folder with --out, or delete it") from error
    return table if isinstance(table, Mapping) else {}


def _differences(stored: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Where a stored configuration differs from what is known of a new one, entries of tables by their own names."""
    found = []
    for name, mine in known.items():
        theirs = stored.get(name)
        if isinstance(mine, Mapping):
            found += _differences(theirs if isinstance(theirs, Mapping) else {}, mine)
        elif theirs != (list(mine) if isinstance(mine, tuple) else mine):
            found.append(f"{name} is {theirs!r} there and {mine!r} here")
    return found


def output_folder(path: str | Path) -> Path:
    """The folder, made if need be. Raises InputError where it cannot be made or written to."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".lipctrl-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error
    return folder


def new_folder(path: str | Path) -> Path:
    """A folder that does not exist yet, in one that can be written to. Raises InputError otherwise."""
    folder = Path(path)
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another folder with --out, or delete it")
    output_folder(folder.parent)
    return folder


def write_results(path: str | Path, verb: str, outcome: Outcome) -> Path:
    """Write the outcome as ``results.json`` into a folder; no clock times, so that equal runs give equal bytes."""
    found = outcome.to_json(verb, 0.0)
    del found["seconds"]
    target = output_folder(path) / RESULTS
    write_atomically(target, json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return target
