"""Prove that a policy stabilises a plant: candidate, tree, origin, certificate, and the checker's verdict on what was written."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lipctrl.certificates.checker.bundle import parse_plant
from lipctrl.certificates.checker.cells import Loop, Step, level_range
from lipctrl.certificates.checker.graph import Graph, GraphError
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Verdict
from lipctrl.certificates.checker.verifiers.closed_loop_lyapunov_bab import KIND, Claim, derive_leaves, volume_bound
from lipctrl.certificates.checker.writing import write_certificate
from lipctrl.certificates.stability.branch_and_bound import HoleTest, Outcome, branch_and_bound
from lipctrl.certificates.stability.candidates import Candidate, find_candidate, linearisation, spectral_radius
from lipctrl.certificates.stability.origin import ball_radius, contraction, smallest_level
from lipctrl.certificates.stability.simulation import StepFunction, step_function
from lipctrl.core.errors import InputError
from lipctrl.core.progress import Progress, no_progress

Array = np.ndarray
RATE = Fraction(1, 1000)  #: decrease of V per step that is proved
MAX_CELLS = 20_000_000
SHARE = 1 - Fraction(1, 10**9)  #: of the volume computed here that is claimed: on another machine sums may round otherwise
SHRINK = (0.995, 0.97, 0.9, 0.75, 0.5, 0.25, 0.05)  #: levels tried, as shares of the sampled one
PATIENCE = 0.35  #: share of the time left that one level may take while there are others


@dataclass(frozen=True)
class StabilityResult:
    """What :func:`certify_stability` found for one reading of the policy.

    ``verdict`` is the checker's, on the files at ``path``; ``None`` where nothing could be written, with the reason.
    ``claim`` holds P, rho and the box for figures. A result has no truth value.
    """

    arithmetic: str
    path: Path | None
    verdict: Verdict | None
    reason: str
    claim: Claim | None
    cells: Mapping[str, int]
    seconds: float

    @property
    def level(self) -> str:
        """The level of claim: the verdict's, or ``unknown``."""
        return self.verdict.level if self.verdict is not None else "unknown"

    @property
    def status(self) -> str:
        """``ok`` (proved), ``refuted`` (a counterexample was verified) or ``unknown``."""
        return {"proved": "ok", "proved-for-model": "ok", "falsified": "refuted"}.get(self.level, "unknown")

    def __bool__(self) -> NoReturn:
        raise TypeError("a StabilityResult has no truth value: look at its status, level and verdict")


@dataclass(frozen=True)
class _Task:
    """One loop to prove, and the limits of the search."""

    loop: Loop
    plant: Mapping[str, Any]
    deadline: float
    seed: int
    progress: Progress
    rate: Fraction


def certify_stability(
    plant: Mapping[str, Any],
    policy: Graph,
    out: str | os.PathLike[str],
    *,
    readings: Sequence[str] = ("real", "float32"),
    candidate: tuple[Array, float] | None = None,
    rate: Fraction = RATE,
    budget_s: float = 60.0,
    seed: int = 0,
    activation_ulp: int | None = None,
    progress: Progress = no_progress,
) -> list[StabilityResult]:
    """Search a proof that ``policy`` stabilises the equilibrium of ``plant``, write it, and have the checker judge it.

    ``plant`` is a plant subject (``Plant.subject()``), ``policy`` a Graph from ``observation`` to ``action``. Each reading is
    one certificate in a folder of its own under ``out``: ``stability-real`` (exponential stability of the policy's real-valued
    reading, with the region of attraction {y' P y <= rho} in the plant's state box) and ``stability-float32`` (practical
    stability of every float32 evaluation, with the ball). An equilibrium whose linearisation is unstable gives a verified
    counterexample in ``instability``. Everything else is ``unknown`` with the reason.

    ``candidate`` is (P, rho): that sublevel set is tried and no other. ``rate`` is the decrease of V per step that is proved.
    Where the equilibrium is not exact or not a contraction, the real reading falls back to practical stability.
    ``activation_ulp`` is the assumed accuracy of a runtime's float32 tanh and sigmoid (units in the last place): the float32
    claim is then ``proved-for-model``. Equal seeds give equal bytes unless the time budget cuts the search.
    """
    subject, started, out = parse_plant(plant), time.monotonic(), Path(out)
    deadline = started + budget_s
    sizes = {"observation": len(subject.observation)}, {"action": len(subject.action)}
    if (policy.input_sizes, policy.output_sizes) != sizes:
        raise InputError(f"the policy maps {policy.input_sizes} to {policy.output_sizes}, the plant needs {sizes[0]} to {sizes[1]}")
    rest = subject.equilibrium_state
    box = [np.array([float(v - x) for v, x in zip(end, rest, strict=True)]) for end in (subject.state_low, subject.state_high)]
    progress(0.0, "searching a Lyapunov function", None)
    levels = [] if candidate is None else [candidate[1]]
    if candidate is None:
        step = step_function(subject, policy)
        found = _search_candidate(step, box, rate, seed)
        if found is None:
            return [_refuted_or_unknown(plant, policy, out, linearisation(step, *box), rate, started)]
        candidate, levels = (found.P, found.rho), [found.rho * share for share in SHRINK]
    results: list[StabilityResult] = []
    for number, reading in enumerate(readings):
        loop = Loop(subject, policy, reading, activation_ulp if reading == "float32" else None)
        share = (deadline - time.monotonic()) / (len(readings) - number)
        task = _Task(loop, plant, time.monotonic() + share, seed, progress, rate)
        results.append(_certify_reading(task, candidate[0], levels, box, out / f"stability-{reading}"))
        proved = results[-1].claim
        if proved is not None:
            levels = [proved.rho, *(proved.rho * share for share in SHRINK)]  # what failed for one reading fails for the next
    return results


def _search_candidate(step: StepFunction, box: Sequence[Array], rate: Fraction, seed: int) -> Candidate | None:
    """Ask for more decrease than is proved, so that cells need not be tiny; for hardly more where the loop is slow."""
    for factor in (2, 1.1):
        found = find_candidate(step, *box, rate=factor * float(rate), seed=seed)
        if found is not None:
            return found
    return None


def _certify_reading(task: _Task, P: Array, levels: Sequence[float], box: Sequence[Array], out: Path) -> StabilityResult:
    """One certificate: the largest of the levels for which the tree closes."""
    started, reason, leaves = time.monotonic(), "the budget was spent before any level was tried", {}
    waiting = list(levels)
    while len(waiting):
        claim = Claim(_inward(box[0]), _inward(box[1]), P, waiting.pop(0), task.rate, Fraction(0), {})
        patience = (task.deadline - time.monotonic()) * (PATIENCE if len(waiting) else 1.0)
        try:
            found = _prove(replace(task, deadline=time.monotonic() + patience), claim)
        except GraphError as error:
            return StabilityResult(task.loop.arithmetic, None, None, str(error), None, {}, time.monotonic() - started)
        if isinstance(found, str):
            reason = found
            break
        outcome, claim, evidence = found
        leaves = outcome.leaves
        if outcome.tree is None:
            reason = outcome.reason
            waiting = [min(level, 0.98 * outcome.blocking_level) for level in waiting if time.monotonic() < task.deadline]
            continue
        path = _write(task, claim, evidence, out)
        verdict = check(path)
        return StabilityResult(task.loop.arithmetic, path, verdict, verdict.reason, claim, leaves, time.monotonic() - started)
    return StabilityResult(task.loop.arithmetic, None, None, reason, None, leaves, time.monotonic() - started)


def _inward(end: Array) -> Array:
    """Box ends as floats, one step towards 0, so that the claim's box lies in the plant's."""
    inner: Array = np.nextafter(end, np.zeros_like(end))
    return inner


def _prove(task: _Task, claim: Claim) -> tuple[Outcome, Claim, dict[str, Any]] | str:
    """Hole, then tree. Returns the reason where the origin cannot be closed at all."""
    evidence: dict[str, Any] = {}
    local = contraction(task.loop, claim) if task.loop.arithmetic == "real" else "float32 loops have no exact equilibrium"
    if not isinstance(local, str):
        evidence["origin"], rate, hole = local
        claim = replace(claim, extra={"local_rate": str(rate)})
        test = _inside(hole)
    else:
        level = smallest_level(task.loop, claim, task.seed)
        if level is None:
            return f"V does not decrease on any small level set: {local}"
        claim = replace(claim, extra=_practical(claim, level, task.loop))
        test = _below(claim, level)
    outcome = branch_and_bound(task.loop, claim, test, deadline=task.deadline, max_cells=MAX_CELLS, progress=task.progress)
    if outcome.tree is not None:
        evidence["tree"] = outcome.tree
        volume = volume_bound(claim, list(derive_leaves(outcome.tree, claim.low, claim.high, task.loop.dimension)))
        claim = replace(claim, volume=volume * SHARE)
    return outcome, claim, evidence


def _practical(claim: Claim, level: float, loop: Loop) -> dict[str, Any]:
    extra: dict[str, Any] = {"reached_level": level.hex(), "ball": ball_radius(claim.P, level).hex()}
    return {**extra, "activation_ulp": loop.activation_ulp} if loop.arithmetic == "float32" else extra


def _inside(hole: Array) -> HoleTest:
    return lambda low, high, step: np.asarray(((low >= -hole) & (high <= hole)).all(1))


def _below(claim: Claim, level: float) -> HoleTest:
    def test(low: Array, high: Array, step: Step) -> Array:
        top = level_range(claim.P, step.centre, step.radius[:, : claim.P.shape[0]])[1]
        return np.asarray((np.maximum(top, step.highest(claim.P)) <= level) & step.inside(claim.low, claim.high))

    return test


def _write(task: _Task, claim: Claim, evidence: Mapping[str, Any], out: Path) -> Path:
    region = {
        "low": [float(v).hex() for v in claim.low],
        "high": [float(v).hex() for v in claim.high],
        "P": [[float(v).hex() for v in row] for row in claim.P],
        "rho": float(claim.rho).hex(),
    }
    data = {
        "property": "exponentially_stable" if "local_rate" in claim.extra else "practically_stable",
        "region": region,
        "decrease_rate": str(claim.kappa),
        "volume": str(claim.volume),
        **claim.extra,
    }
    loop = task.loop
    return write_certificate(
        out, kind=KIND, claim=data, policy=loop.policy, plant=task.plant, evidence=evidence, arithmetic=loop.arithmetic
    )


def _refuted_or_unknown(plant: Mapping[str, Any], policy: Graph, out: Path, A: Array, rate: Fraction, started: float) -> StabilityResult:
    """No candidate: the linearisation is unstable (a counterexample is written) or too slow for the rate."""
    spectral = spectral_radius(A)
    reason = f"the linearisation at the equilibrium has spectral radius {spectral:.6g}: too much for a decrease of {float(rate):g} a step"
    if spectral > 1:
        claim = {"property": "asymptotically_stable", "region": {}}
        path = write_certificate(out / "instability", kind="counterexample", claim=claim, policy=policy, plant=plant)
        verdict = check(path)
        if verdict.level == "falsified":
            return StabilityResult("real", path, verdict, reason, None, {}, time.monotonic() - started)
        reason += f" (not refuted either: {verdict.reason})"
    return StabilityResult("real", None, None, reason, None, {}, time.monotonic() - started)
