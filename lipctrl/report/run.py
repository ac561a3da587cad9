"""What a run folder holds, read for its report: certificates with the checker's verdicts, policy, journal, demonstrations."""

from __future__ import annotations

import contextlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.certificates.checker.bundle import CERTIFICATE, POLICY, Certificate, PlantSubject, parse_plant, read_certificate
from lipctrl.certificates.checker.kinds import PLANT_DIGESTS, check
from lipctrl.certificates.checker.verdict import Rejected, Verdict
from lipctrl.core.errors import InputError
from lipctrl.core.policy import Policy
from lipctrl.core.run_folder import CONFIG, JOURNAL
from lipctrl.envs import make_plant

DEPTH = 3  #: folders below the run folder that are searched
DEMONSTRATIONS, RESULTS = "demonstrations", "results.json"


@dataclass(frozen=True)
class Entry:
    """A certificate of the run, as ``name`` (its path in the folder); ``certificate`` is None where it could not be read."""

    name: str
    certificate: Certificate | None
    verdict: Verdict

    @property
    def rank(self) -> tuple[int, str]:
        """Bounds first, then the real-valued loop, then the float32 one, then the rest."""
        order = ["lipschitz", "exponentially_stable", "asymptotically_stable", "practically_stable"]
        place = order.index(self.verdict.property) if self.verdict.property in order else len(order)
        return place, self.name


@dataclass(frozen=True)
class RunContents:
    """Everything of a run folder that a report can show; parts that are not there are None or empty.

    ``plant`` is that of a certificate, else the shipped one whose digest the configuration holds. ``samples`` are demonstrated
    observations (N, p).
    """

    folder: Path
    config: Mapping[str, Any]
    entries: tuple[Entry, ...]
    policy: Policy | None
    policy_name: str
    plant: PlantSubject | None
    history: tuple[Mapping[str, Any], ...]
    samples: np.ndarray | None
    results: Mapping[str, Any]


def read_run(folder: str | os.PathLike[str], verdicts: Mapping[Path, Verdict] | None = None) -> RunContents:
    """Read a run folder, whoever wrote it, and check its certificates.

    ``verdicts`` are those that this process has just had from the checker, by path; all others are checked now. Raises
    InputError where the folder does not exist, or holds neither certificate, policy nor journal.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder, expected a run folder")
    known = {path.resolve(): verdict for path, verdict in (verdicts or {}).items()}
    entries = tuple(sorted((_entry(path, root, known) for path in _folders_with(root, CERTIFICATE)), key=lambda entry: entry.rank))
    policies, journals = _folders_with(root, POLICY), _folders_with(root, JOURNAL)
    if not (entries or policies or journals):
        raise InputError(
            f"{root} holds no certificate, no policy and no journal, expected a folder that quickstart, train or stability wrote"
        )
    config = _config(root)
    return RunContents(
        folder=root,
        config=config,
        entries=entries,
        policy=Policy.load(policies[0]) if policies else None,
        policy_name=str(policies[0].relative_to(root)) if policies else "",
        plant=_plant(entries, config),
        history=_history(journals[0]) if journals else (),
        samples=_samples(root),
        results=_results(root),
    )


def _folders_with(root: Path, name: str) -> list[Path]:
    """Folders that hold this file, the nearest first; hidden ones are left out."""
    found = [path.parent for depth in range(DEPTH + 1) for path in root.glob("*/" * depth + name)]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def _entry(path: Path, root: Path, known: Mapping[Path, Verdict]) -> Entry:
    certificate = None
    with contextlib.suppress(Rejected):
        certificate = read_certificate(path)
    verdict = known.get(path.resolve())
    return Entry(str(path.relative_to(root)), certificate, check(path) if verdict is None else verdict)


def _config(root: Path) -> dict[str, Any]:
    path = root / CONFIG
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected the configuration of a run") from error


def _plant(entries: tuple[Entry, ...], config: Mapping[str, Any]) -> PlantSubject | None:
    for entry in entries:
        if entry.certificate is not None and "plant" in entry.certificate.subject:
            return entry.certificate.plant
    digests: dict[str, str] = json.loads(PLANT_DIGESTS.read_text(encoding="utf-8")) if PLANT_DIGESTS.exists() else {}
    named = [name for name, digest in digests.items() if digest == config.get("plant_digest")]
    return parse_plant(make_plant(named[0]).subject()) if named else None


def _history(folder: Path) -> tuple[Mapping[str, Any], ...]:
    lines = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return tuple(records)


def _samples(root: Path) -> np.ndarray | None:
    from lipctrl.agents.demonstrations import Demonstrations

    folder = root / DEMONSTRATIONS
    return Demonstrations.load(folder).samples()[0] if folder.is_dir() else None


def _results(root: Path) -> dict[str, Any]:
    path = root / RESULTS
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
