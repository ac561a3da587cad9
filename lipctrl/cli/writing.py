"""Output folders and results files."""

from __future__ import annotations

import json
from pathlib import Path

from lipctrl.cli.verb import Outcome
from lipctrl.core.errors import InputError
from lipctrl.core.run_folder import write_atomically

RESULTS = "results.json"


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
