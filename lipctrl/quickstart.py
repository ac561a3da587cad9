"""From an expert's demonstrations to a policy with proofs: each step is a function, :func:`quickstart` runs them all.

    demonstrations = demonstrate(plant, seed=0)
    trained = fit(demonstrations, choose_lipschitz(demonstrations))
    findings = prove(trained.policy.graph(), plant, "certificates")

Everything is deterministic under a seed: completed runs give equal bytes, except for times in ``provenance.json``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import numpy as np

from lipctrl.agents.behaviour_cloning import train_behaviour_cloning
from lipctrl.agents.demonstrations import Demonstrations, collect
from lipctrl.agents.experts import make_expert
from lipctrl.agents.limits import interpolation_constant
from lipctrl.agents.stabilisation import plant_stabilisation_floor
from lipctrl.agents.training import TrainingOptions, TrainingResult, export_policy
from lipctrl.certificates.checker.bundle import CERTIFICATE, read_certificate
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import FALSIFIED, PROVED, Verdict
from lipctrl.certificates.lipschitz import certify_lipschitz
from lipctrl.certificates.stability import certify_stability
from lipctrl.core.controller import Controller
from lipctrl.core.errors import InputError, LipctrlError
from lipctrl.core.progress import Progress, no_progress
from lipctrl.core.rationals import floats
from lipctrl.core.run_folder import RunFolder, write_atomically
from lipctrl.envs import PlantEnv, make_plant, rollout
from lipctrl.envs.plant import Plant
from lipctrl.report.loop import ClosedLoop, Fates

DEMONSTRATIONS, TRAINING, POLICY, CERTIFICATES = "demonstrations", "training", "policy", "certificates"
RESULTS, PROVENANCE = "results.json", "provenance.json"
STABILITY = ("stability-real", "stability-float32")
DECIMALS_OF_L = 2  #: the chosen Lipschitz constant is rounded up to this many decimals


@dataclass(frozen=True)
class QuickstartOptions:
    """What the run is made of; the defaults take well under a minute on two cores."""

    plant: str = "pendulum"
    """A shipped plant."""
    expert: str = "lqr"
    """The expert that is imitated."""
    episodes: int = 40
    """Episodes of the expert, from states all over the plant's box."""
    margin: float = 0.05
    """The policy's Lipschitz constant is the steepest slope in the data and this share more."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the policy's hidden layers (sandwich layers, ReLU)."""
    steps: int = 1500
    """Gradient steps."""
    budget_s: float = 60.0
    """Seconds for the search of the stability proofs."""

    def table(self) -> dict[str, Any]:
        """As a table for the run's configuration."""
        named = {name: getattr(self, name) for name in ("plant", "expert", "episodes", "margin", "steps", "budget_s")}
        return {**named, "hidden": list(self.hidden)}


DEFAULTS = QuickstartOptions()


@dataclass(frozen=True)
class Finding:
    """What was found for one wanted certificate: the checker's verdict on the files at ``path``, or why there are none."""

    name: str
    path: Path | None
    verdict: Verdict | None
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The level of claim: the verdict's, or ``unknown``."""
        return "unknown" if self.verdict is None else self.verdict.level

    def __bool__(self) -> NoReturn:
        raise TypeError("a Finding has no truth value: look at its level")


@dataclass(frozen=True)
class QuickstartResult:
    """A run: its folder, what was found for each certificate, the numbers of ``results.json``, and seconds per step."""

    folder: Path
    findings: tuple[Finding, ...]
    results: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that are not proved."""
        return tuple(finding for finding in self.findings if finding.level != PROVED)

    @property
    def status(self) -> str:
        """``ok`` (all proved), ``refuted`` (a counterexample was verified) or ``unknown``."""
        if not self.failed:
            return "ok"
        return "refuted" if any(finding.level == FALSIFIED for finding in self.failed) else "unknown"

    def __bool__(self) -> NoReturn:
        raise TypeError("a QuickstartResult has no truth value: look at its status")


def quickstart(
    folder: str | os.PathLike[str], options: QuickstartOptions = DEFAULTS, *, seed: int = 0, progress: Progress = no_progress
) -> QuickstartResult:
    """Demonstrations, policy, proofs and report in a run folder; finished parts of the same run are used again.

    Raises InputError where the folder holds another run or an option is out of its range. A proof that is not found is no
    error: see the result's ``status`` and ``failed``.
    """
    plant, progress = make_plant(options.plant), _forwards(progress)
    for name in ("episodes", "steps", "margin", "budget_s"):
        if not 0 < getattr(options, name) < math.inf:
            raise InputError(f"the quickstart's option {name} is {getattr(options, name)}, expected a positive number")
    run = RunFolder(Path(folder), {"algorithm": "quickstart", "seed": seed, "plant_digest": plant.digest, **options.table()})
    seconds: dict[str, float] = {}
    with _timed(seconds, "demonstrations"):
        demonstrations = _demonstrations(run.path, plant, options, seed, _span(progress, 0.0, 0.05))
    with _timed(seconds, "training"):
        lipschitz = choose_lipschitz(demonstrations, options.margin)
        fitting = TrainingOptions(hidden=options.hidden, steps=options.steps, patience=0)
        trained = fit(demonstrations, lipschitz, fitting, seed=seed, folder=run.path / TRAINING, progress=_span(progress, 0.05, 0.5))
        if not trained.completed:
            raise KeyboardInterrupt
        policy = export_policy(trained.policy, demonstrations.interface, {"run": "quickstart", "seed": seed})
        policy.save(run.path / POLICY)
    with _timed(seconds, "proofs"):
        findings = prove(
            policy.graph, plant, run.path / CERTIFICATES, budget_s=options.budget_s, seed=seed, progress=_span(progress, 0.5, 0.8)
        )
    with _timed(seconds, "simulation"):
        progress(0.8, "simulating", None)
        returns = compare(plant, make_expert(options.expert, PlantEnv(plant)), policy, seed=seed)
        fates = simulated_fates(findings)
    results = _results(plant, lipschitz, findings, returns, fates)
    write_atomically(run.path / RESULTS, json.dumps(results, indent=1, sort_keys=True, allow_nan=False) + "\n")
    with _timed(seconds, "report"):
        from lipctrl.report.writing import write_report  # matplotlib is slow to load

        verdicts = {finding.path: finding.verdict for finding in findings if finding.path is not None and finding.verdict is not None}
        write_report(run.path, verdicts=verdicts, progress=_span(progress, 0.85, 1.0))
    write_atomically(run.path / PROVENANCE, json.dumps(_provenance(seconds), indent=1, sort_keys=True) + "\n")
    return QuickstartResult(run.path, findings, results, seconds)


def demonstrate(
    plant: Plant, expert: str = "lqr", *, episodes: int = DEFAULTS.episodes, seed: int = 0, progress: Progress = no_progress
) -> Demonstrations:
    """Episodes of an expert from states drawn uniformly from the plant's whole box, where the proof will have to hold."""
    env: gymnasium.Env[Any, Any] = gymnasium.wrappers.TimeLimit(PlantEnv(plant), plant.max_episode_steps)
    starts = np.random.default_rng(seed).uniform(floats(plant.state_low), floats(plant.state_high), size=(episodes, len(plant.state)))
    return collect(env, make_expert(expert, env), episodes, seed, expert=expert, initial_states=starts, progress=progress)


def choose_lipschitz(demonstrations: Demonstrations, margin: float = DEFAULTS.margin) -> float:
    """The steepest slope between two samples and ``margin`` more, rounded up to two decimals (action per observation unit).

    Raises InputError where that slope is zero or infinite.
    """
    steepest: float = interpolation_constant(*demonstrations.samples())
    if not 0 < steepest < math.inf:
        raise InputError(
            f"the steepest slope of the demonstrations is {steepest}, expected a positive number: they fit no Lipschitz policy"
        )
    scale = 10.0**DECIMALS_OF_L
    return math.ceil((1 + margin) * steepest * scale) / scale


def fit(
    demonstrations: Demonstrations,
    lipschitz: float,
    options: TrainingOptions | None = None,
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Clone the expert with a policy of at most this Lipschitz constant; see ``train_behaviour_cloning``."""
    chosen = TrainingOptions(hidden=DEFAULTS.hidden, steps=DEFAULTS.steps, patience=0) if options is None else options
    where = None if folder is None else Path(folder)
    return train_behaviour_cloning(demonstrations, lipschitz, options=chosen, seed=seed, folder=where, progress=progress)


def prove(
    policy: Graph,
    plant: Plant,
    out: str | os.PathLike[str],
    *,
    budget_s: float = DEFAULTS.budget_s,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Finding, ...]:
    """Lipschitz bound, stability of the real-valued loop, stability of the float32 loop: each a folder in ``out``, judged by the checker.

    Stability certificates in ``out`` that are about this policy and plant and pass the checker are not searched again.
    """
    folder = Path(out)
    found = {"lipschitz": _lipschitz(policy, folder, seed, _span(progress, 0.0, 0.1))}
    standing = {name: _standing(folder / name, policy, plant) for name in STABILITY}
    found |= {name: finding for name, finding in standing.items() if finding is not None}
    missing = [name for name in STABILITY if name not in found]
    if missing:
        readings = [name.removeprefix("stability-") for name in missing]
        searched = certify_stability(
            plant.subject(), policy, folder, readings=readings, budget_s=budget_s, seed=seed, progress=_span(progress, 0.1, 1.0)
        )
        for result in searched:
            name = f"stability-{result.arithmetic}"
            numbers = {} if result.verdict is None else result.verdict.numbers
            found[name] = Finding(name, result.path, result.verdict, result.reason, numbers)
        for name in missing:
            found.setdefault(name, Finding(name, None, None, searched[0].reason))
    return tuple(found[name] for name in ("lipschitz", *STABILITY))


def compare(plant: Plant, expert: Controller, policy: Controller, *, episodes: int = 50, seed: int = 0) -> dict[str, float]:
    """Mean return of expert and policy over the same episodes, started by the plant's reset law."""
    starts = plant.initial_states(np.random.default_rng([seed, 1]), episodes)
    return {name: float(rollout(plant, who, starts).returns.mean()) for name, who in (("expert", expert), ("policy", policy))}


def simulated_fates(findings: tuple[Finding, ...]) -> Fates | None:
    """Where a 200 x 200 grid of the state box goes in simulation (``numerical``); None beyond two states and without a proof."""
    for finding in findings:
        if finding.name.startswith("stability") and finding.path is not None:
            loop = ClosedLoop.of(read_certificate(finding.path))
            if loop.region is not None and len(loop.plant.state) == 2:
                return loop.fates()
    return None


def _demonstrations(folder: Path, plant: Plant, options: QuickstartOptions, seed: int, progress: Progress) -> Demonstrations:
    """Those of an earlier, killed run where they are there: the folder appears whole or not at all."""
    env: gymnasium.Env[Any, Any] = gymnasium.wrappers.TimeLimit(PlantEnv(plant), plant.max_episode_steps)
    path = folder / DEMONSTRATIONS
    if path.exists():
        return Demonstrations.load(path, env)
    demonstrations = demonstrate(plant, options.expert, episodes=options.episodes, seed=seed, progress=progress)
    demonstrations.save(path)
    return demonstrations


def _standing(path: Path, policy: Graph, plant: Plant) -> Finding | None:
    """A certificate of an earlier run that is about this loop and proved, or None."""
    if not (path / CERTIFICATE).exists():
        return None
    verdict = check(path)
    about = {"policy": policy.digest(), "plant": plant.digest}
    same = all(about[name] == digest for name, digest in verdict.subject.items())
    return Finding(path.name, path, verdict, "", verdict.numbers) if verdict.level == PROVED and same else None


def _lipschitz(policy: Graph, folder: Path, seed: int, progress: Progress) -> Finding:
    try:
        certificate = certify_lipschitz(policy, seed=seed, progress=progress)
    except LipctrlError as error:
        return Finding("lipschitz", None, None, str(error))
    path = certificate.write(folder / "lipschitz")
    verdict = check(path)
    lower = {} if certificate.lower is None else {"lower": certificate.lower.value}
    return Finding("lipschitz", path, verdict, verdict.reason, {**verdict.numbers, **lower})


def _results(
    plant: Plant, lipschitz: float, findings: tuple[Finding, ...], returns: Mapping[str, float], fates: Fates | None
) -> dict[str, Any]:
    floor = plant_stabilisation_floor(plant)
    numbers = {finding.name: finding.numbers for finding in findings}
    return {
        "lipschitz": {
            "design": lipschitz,
            "upper": numbers["lipschitz"].get("lipschitz"),
            "lower": numbers["lipschitz"].get("lower"),
            "stabilisation_floor": floor.lipschitz,
        },
        "region": {
            "real": numbers["stability-real"].get("volume"),
            "float32": numbers["stability-float32"].get("volume"),
            "simulated": None if fates is None else fates.area,
            "simulated_in_box": None if fates is None else fates.area_inside,
        },
        "mean_return": dict(returns),
        "results": [
            {
                "name": finding.name,
                "certificate": None if finding.path is None else f"{CERTIFICATES}/{finding.path.name}",
                "level": finding.level,
                "claim": "" if finding.verdict is None else finding.verdict.claim,
                "reason": finding.reason,
            }
            for finding in findings
        ],
    }


def _provenance(seconds: Mapping[str, float]) -> dict[str, Any]:
    packages = ("lipctrl", "numpy", "torch", "scipy", "python-flint", "gymnasium")
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": platform.platform(),
    }


def _span(progress: Progress, start: float, stop: float) -> Progress:
    """A part of a longer progress, from ``start`` to ``stop``."""
    return lambda fraction, message, best: progress(start + (stop - start) * min(max(fraction, 0.0), 1.0), message, best)


def _forwards(progress: Progress) -> Progress:
    """The same progress, never going back."""
    furthest = 0.0

    def forwards(fraction: float, message: str, best: object) -> None:
        nonlocal furthest
        furthest = max(furthest, fraction)
        progress(furthest, message, best)

    return forwards


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
