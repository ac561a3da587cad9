"""The pictures of one run, as PNG bytes with a title and a caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lipctrl.certificates.checker.bundle import Certificate, PlantSubject
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.report.figures import learning_curve, lipschitz_slopes, margin_map, phase_portrait, policy_surface, time_series
from lipctrl.report.loop import ClosedLoop, Fates, sampled_slopes
from lipctrl.report.run import Entry, RunContents
from lipctrl.report.style import figure, png

PROVED_LEVELS = ("proved", "proved-for-model")


@dataclass(frozen=True)
class Picture:
    """``name`` is the file's, ``alt`` says in words what the picture shows, ``caption`` how to read it."""

    name: str
    title: str
    alt: str
    caption: str
    data: bytes


def pictures(run: RunContents) -> Iterator[Picture]:
    """All pictures that the parts of the run allow, in the order of the report."""
    loops = [entry for entry in run.entries if entry.certificate is not None and "plant" in entry.certificate.subject]
    if loops:
        entry = loops[0]
        loop = ClosedLoop.of(_certificate(entry))
        yield from _portraits(entry, loop)
        yield from _trajectories(loop)
    yield from _surfaces(run, ClosedLoop.of(_certificate(loops[0])).plant if loops else None)
    yield from _bounds(run)
    if any("training_loss" in record for record in run.history):
        made, (ax,) = figure(7.2, 4.2)
        learning_curve(ax, run.history)
        caption = "Loss of each evaluation. Errors are in halves of the action box; those beyond the box cost nothing."
        yield Picture("learning_curve", "Learning curve", "Training and held-out loss over gradient steps.", caption, png(made))


def _certificate(entry: Entry) -> Certificate:
    if entry.certificate is None:
        raise ValueError(f"{entry.name} could not be read")
    return entry.certificate


def _portraits(entry: Entry, loop: ClosedLoop) -> Iterator[Picture]:
    level, n = entry.verdict.level, len(loop.plant.state)
    planes = [(i, i + 1) for i in range(0, n - 1, 2)] or []
    for number, axes in enumerate(planes):
        suffix = "" if len(planes) == 1 else f"_{number}"
        made, (ax,) = figure(7.6, 6.8)
        fates = loop.fates(axes)
        phase_portrait(ax, loop, fates, axes=axes, level=level)
        caption = _portrait_caption(loop, level, fates, axes)
        alt = f"Plane of {loop.plant.state[axes[0]][0]} and {loop.plant.state[axes[1]][0]} with the region of attraction."
        yield Picture(f"phase_portrait{suffix}", "Phase portrait", alt, caption, png(made))
        if loop.region is not None:
            made, (ax,) = figure(7.6, 6.4)
            margin_map(ax, loop, axes=axes)
            caption = (
                "Sampled decrease of the Lyapunov function V along one step. Inside the solid line the certificate claims at least the "
                "stated rate; this picture is float64 sampling, the proof covers every state in between."
            )
            yield Picture(f"margin_map{suffix}", "Margin", "Decrease of V in one step over the state plane.", caption, png(made))


def _portrait_caption(loop: ClosedLoop, level: str, fates: Fates, axes: tuple[int, int]) -> str:
    if len(loop.plant.state) != 2:
        return f"A slice; coordinates that are not shown are at rest. Filled blue: {level}. Everything else that is drawn is simulation."
    unit = " ".join(loop.plant.state[i][1] for i in axes)
    return (
        f"Filled blue: {level}, nothing is left to sampling. The rest comes from simulating the centres of a 200 x 200 grid "
        f"(numerical): cells that arrive cover an area of {fates.area:.4g} {unit}, those that arrive without leaving the box "
        f"{fates.area_inside:.4g} {unit}."
    )


def _trajectories(loop: ClosedLoop) -> Iterator[Picture]:
    plant, count = loop.plant, 24
    low, high = loop.box
    starts = np.random.default_rng(0).uniform(low, high, size=(20 * count, len(low)))
    if loop.region is not None:
        starts = starts[loop.region.contains(starts - loop.rest)]
    states = loop.trajectories(starts[:count], _steps_shown(plant))
    act, observe = compile_numpy(loop.policy), compile_numpy(plant.observe)
    actions = act(observation=observe(state=states)["observation"])["action"]
    shown = min(2, len(plant.state))
    made, axes = figure(4.0 * (shown + 1), 3.4, columns=shown + 1)
    times = np.arange(states.shape[1], dtype=np.float64) * float(plant.dt)
    for i in range(shown):
        time_series(axes[i], times, states[:, :, i], name=plant.state[i])
    bounds = float(plant.action_low[0]), float(plant.action_high[0])
    time_series(axes[shown], times, actions[:, :, 0], name=plant.action[0], bounds=bounds)
    inside = "inside the region" if loop.region is not None else "in the state box"
    caption = f"{len(states)} simulated episodes of the policy from random states {inside}; dashed: ends of the action box. Numerical."
    yield Picture("rollouts", "Closed-loop simulation", "States and actions over time.", caption, png(made))


def _steps_shown(plant: PlantSubject) -> int:
    return min(1000, round(10 / float(plant.dt)))


def _surfaces(run: RunContents, plant: PlantSubject | None) -> Iterator[Picture]:
    policy = run.policy
    if policy is None or len(policy.observation) < 2:
        return
    box = _observation_box(run, plant)
    if box is None:
        return
    low, high, rest = box
    for component, action in enumerate(policy.action):
        made, (ax,) = figure(7.6, 5.6)
        samples = run.samples
        policy_surface(ax, policy.graph, policy.observation, action, low, high, rest=rest, component=component, samples=samples)
        suffix = "" if len(policy.action) == 1 else f"_{component}"
        others = "" if len(policy.observation) == 2 else " The other observations are at rest."
        caption = f"The action over the first two observations.{others}"
        yield Picture(f"policy_surface{suffix}", "Policy surface", f"Contours of {action.name}.", caption, png(made))


def _observation_box(run: RunContents, plant: PlantSubject | None) -> tuple[list[float], list[float], list[float]] | None:
    """A box of observations to draw: of the plant's state box, else of the demonstrations."""
    if plant is not None:
        ends = [np.array([float(v) for v in end]) for end in (plant.state_low, plant.state_high, plant.equilibrium_state)]
        states = np.random.default_rng(0).uniform(ends[0], ends[1], size=(4096, len(ends[0])))
        observe = compile_numpy(plant.observe)
        seen = observe(state=np.vstack([states, *ends]))["observation"]
        return seen.min(0).tolist(), seen.max(0).tolist(), seen[-1].tolist()
    if run.samples is not None:
        return run.samples.min(0).tolist(), run.samples.max(0).tolist(), np.median(run.samples, 0).tolist()
    return None


def _bounds(run: RunContents) -> Iterator[Picture]:
    for entry in run.entries:
        upper = entry.verdict.numbers.get("lipschitz")
        if entry.certificate is None or upper is None:
            continue
        graph = entry.certificate.policy
        box = _observation_box(run, _plant(run))
        size = graph.input_sizes["observation"]
        low, high = ([-1.0] * size, [1.0] * size) if box is None else box[:2]
        slopes = sampled_slopes(graph, low, high)
        made, (ax,) = figure(7.2, 4.6)
        known = run.results.get("lipschitz")
        lower = known.get("lower") if isinstance(known, dict) else run.results.get("lower")
        lipschitz_slopes(ax, slopes, upper=upper, lower=lower, level=entry.verdict.level)
        caption = (
            "Every sampled slope is only a lower estimate of the Lipschitz constant: however many there are, they never bound it. "
            "The solid line is the bound of the certificate."
        )
        yield Picture("lipschitz", "Lipschitz bound", "Histogram of sampled slopes and the upper bound.", caption, png(made))
        return


def _plant(run: RunContents) -> PlantSubject | None:
    for entry in run.entries:
        if entry.certificate is not None and "plant" in entry.certificate.subject:
            return entry.certificate.plant
    return None
