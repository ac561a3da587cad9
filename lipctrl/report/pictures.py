"""The pictures of one run, as PNG bytes with a title and a caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lipctrl.certificates.checker.graph import Graph
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats
from lipctrl.report.figures import (
    learning_curve,
    lipschitz_slopes,
    margin_map,
    phase_portrait,
    policy_surface,
    round_returns,
    time_series,
)
from lipctrl.report.loop import Array, ClosedLoop, Fates, sampled_slopes
from lipctrl.report.run import RunContents
from lipctrl.report.style import figure, png

PROVED_LEVELS = ("proved", "proved-for-model")
EPISODES = 24  #: shown as curves over time


@dataclass(frozen=True)
class Picture:
    """``name`` is the file's, ``alt`` says in words what the picture shows, ``caption`` how to read it."""

    name: str
    title: str
    alt: str
    caption: str
    data: bytes


@dataclass(frozen=True)
class _Box:
    """Where a policy is drawn: coordinates with names and units, ends and resting point, and the action over points (N, k)."""

    coordinates: tuple[tuple[str, str], ...]
    low: Array
    high: Array
    rest: Array
    act: Callable[[Array], Array]


def pictures(run: RunContents) -> Iterator[Picture]:
    """All pictures that the parts of the run allow, in the order of the report."""
    found = _loop(run)
    if found is not None:
        loop, level = found
        yield from _portraits(loop, level)
        yield _trajectories(loop)
    yield from _surfaces(run)
    yield from _bounds(run)
    yield from _learning(run)


def _loop(run: RunContents) -> tuple[ClosedLoop, str] | None:
    """The loop of the first certificate about one, with its level; else policy and plant with no claim."""
    for entry in run.entries:
        if entry.certificate is not None and "plant" in entry.certificate.subject:
            return ClosedLoop.of(entry.certificate), entry.verdict.level
    policy = run.policy
    if policy is None or run.plant is None or policy.graph.input_sizes != {"observation": len(run.plant.observation)}:
        return None
    return ClosedLoop(run.plant, policy.graph), "unknown"


def _portraits(loop: ClosedLoop, level: str) -> Iterator[Picture]:
    planes = _planes(loop.plant.state)
    cells = 200 if len(loop.plant.state) == 2 and level in PROVED_LEVELS else 100
    for number, axes in enumerate(planes):
        suffix = "" if len(planes) == 1 else f"_{number}"
        names = " and ".join(loop.plant.state[i][0] for i in axes)
        made, (ax,) = figure(7.6, 6.8)
        fates = loop.fates(axes, cells, trust_region=level in PROVED_LEVELS)
        phase_portrait(ax, loop, fates, axes=axes, level=level)
        caption = _portrait_caption(loop, level, fates, axes)
        yield Picture(f"phase_portrait{suffix}", "Phase portrait", f"Plane of {names}: what is proved.", caption, png(made))
        if loop.region is not None:
            made, (ax,) = figure(7.6, 6.4)
            margin_map(ax, loop, axes=axes)
            caption = (
                "Sampled decrease of the Lyapunov function V along one step. Inside the solid line the certificate claims at least the "
                "stated rate; this picture is float64 sampling, the proof covers every state in between."
            )
            yield Picture(f"margin_map{suffix}", "Margin", f"Plane of {names}: decrease of V in one step.", caption, png(made))


def _planes(state: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Pairs of coordinates to draw: each with its rate, told by the units; else neighbours."""
    n = len(state)
    rates = [(i, j) for i in range(n) for j in range(i + 1, n) if state[j][1] == f"{state[i][1]}/s"]
    first: dict[int, tuple[int, int]] = {}
    for i, j in rates:
        if i not in first and j not in {pair[1] for pair in first.values()}:
            first[i] = (i, j)
    return list(first.values()) or [(i, i + 1) for i in range(0, n - 1, 2)]


def _portrait_caption(loop: ClosedLoop, level: str, fates: Fates, axes: tuple[int, int]) -> str:
    proved = loop.region is not None and level in PROVED_LEVELS
    first = f"Filled blue: {level}, nothing is left to sampling." if proved else "Nothing is proved here: all that is drawn is simulation."
    if len(loop.plant.state) != 2:
        return f"A slice; coordinates that are not shown are at rest. {first}"
    unit = " ".join(loop.plant.state[i][1] for i in axes if loop.plant.state[i][1] != "1")
    cells, undecided = len(fates.x), 1 - float((fates.arrives | fates.escapes).mean())
    areas = [f"{area:.4g} {unit}".rstrip() for area in (fates.area, fates.area_inside)]
    late = f" For {100 * undecided:.2g} % of them the time was up." if undecided else ""
    return (
        f"{first} The centres of a {cells} x {cells} grid were simulated (numerical): cells that arrive cover an area of {areas[0]}, "
        f"those that arrive without leaving the box {areas[1]}.{late}"
    )


def _trajectories(loop: ClosedLoop) -> Picture:
    plant = loop.plant
    low, high = loop.box
    starts = np.random.default_rng(0).uniform(low, high, size=(20 * EPISODES, len(low)))
    within = None if loop.region is None else loop.region.contains(starts - loop.rest)
    claimed = within is not None and bool(within.any())
    starts = starts[within] if within is not None and claimed else loop.rest + (starts - loop.rest) / 4
    states = loop.trajectories(starts[:EPISODES], min(1000, round(10 / float(plant.dt))))
    states[(np.abs(states - loop.rest) > 3 * (high - low)).any(axis=2)] = np.nan  # a diverging curve ends
    actions = _over_states(loop.plant.observe, loop.policy)(states)
    shown = min(2, len(plant.state))
    made, axes = figure(4.0 * (shown + 1), 3.4, columns=shown + 1)
    times = np.arange(states.shape[1], dtype=np.float64) * float(plant.dt)
    for i in range(shown):
        time_series(axes[i], times, states[:, :, i], name=plant.state[i])
    bounds = float(plant.action_low[0]), float(plant.action_high[0])
    time_series(axes[shown], times, actions[:, :, 0], name=plant.action[0], bounds=bounds)
    inside = "inside the claimed region" if claimed else "in a quarter of the state box"
    caption = f"{len(states)} simulated episodes of the policy from random states {inside}; dashed: ends of the action box. Numerical."
    return Picture("rollouts", "Closed-loop simulation", "States and actions over time.", caption, png(made))


def _over_states(observe: Graph, policy: Graph) -> Callable[[Array], Array]:
    """The action over states (..., n), float64."""
    see, act = compile_numpy(observe), compile_numpy(policy)

    def action(states: Array) -> Array:
        chosen: Array = act(observation=see(state=states)["observation"])["action"]
        return chosen

    return action


def _box(run: RunContents) -> _Box | None:
    """The plant's state box where a plant is known, else the box of the demonstrated observations, else None."""
    policy, plant = run.policy, run.plant
    if policy is None:
        return None
    if plant is not None and policy.graph.input_sizes == {"observation": len(plant.observation)}:
        low, high, rest = (floats(end) for end in (plant.state_low, plant.state_high, plant.equilibrium_state))
        return _Box(plant.state, low, high, rest, _over_states(plant.observe, policy.graph))
    if run.samples is None or run.samples.shape[1] != len(policy.observation):
        return None
    act = compile_numpy(policy.graph)
    low, high, rest = run.samples.min(0), run.samples.max(0), np.median(run.samples, 0)
    return _Box(policy.observation, low, high, rest, lambda points: act(observation=points)["action"])


def _surfaces(run: RunContents) -> Iterator[Picture]:
    box, policy = _box(run), run.policy
    if box is None or policy is None or len(box.low) < 2:
        return
    same = box.coordinates == tuple(map(tuple, policy.observation))
    samples = run.samples if same else None
    for component, action in enumerate(policy.action):
        made, (ax,) = figure(7.6, 5.8)
        policy_surface(ax, box.act, box.coordinates, action, box.low, box.high, rest=box.rest, component=component, samples=samples)
        suffix = "" if len(policy.action) == 1 else f"_{component}"
        others = "" if len(box.low) == 2 else " The other coordinates are at rest."
        caption = f"The action over {box.coordinates[0][0]} and {box.coordinates[1][0]}.{others}"
        yield Picture(f"policy_surface{suffix}", "Policy surface", f"Contours of {action.name}.", caption, png(made))


def _bounds(run: RunContents) -> Iterator[Picture]:
    """Sampled slopes beside the first Lipschitz bound, over the observations that matter here."""
    for entry in run.entries:
        upper = entry.verdict.numbers.get("lipschitz")
        if entry.certificate is None or upper is None:
            continue
        graph = entry.certificate.policy
        low, high = _observation_box(run, graph.input_sizes["observation"])
        made, (ax,) = figure(7.2, 4.8)
        known = run.results.get("lipschitz")
        lower = known.get("lower") if isinstance(known, dict) else run.results.get("lower")
        units = "" if run.policy is None else f"[{run.policy.action[0].unit} per observation unit]"
        lipschitz_slopes(ax, sampled_slopes(graph, low, high), upper=upper, lower=lower, level=entry.verdict.level, unit=units)
        caption = (
            "Every sampled slope is only a lower estimate of the Lipschitz constant: however many there are, they never bound it. "
            "The solid line is the bound of the certificate."
        )
        yield Picture("lipschitz", "Lipschitz bound", "Histogram of sampled slopes and the upper bound.", caption, png(made))
        return


def _observation_box(run: RunContents, size: int) -> tuple[list[float], list[float]]:
    if run.plant is not None and len(run.plant.observation) == size:
        low, high = floats(run.plant.state_low), floats(run.plant.state_high)
        states = np.random.default_rng(0).uniform(low, high, size=(4096, len(low)))
        seen = compile_numpy(run.plant.observe)(state=np.vstack([states, low, high]))["observation"]
        return seen.min(0).tolist(), seen.max(0).tolist()
    if run.samples is not None and run.samples.shape[1] == size:
        return run.samples.min(0).tolist(), run.samples.max(0).tolist()
    return [-1.0] * size, [1.0] * size


def _learning(run: RunContents) -> Iterator[Picture]:
    if any("training_loss" in record for record in run.history):
        made, (ax,) = figure(7.2, 4.2)
        learning_curve(ax, run.history)
        caption = (
            "Loss of each evaluation. Errors are in halves of the action box; where the expert sits on an end of the box, going "
            "beyond it costs nothing."
        )
        yield Picture("learning_curve", "Learning curve", "Loss over gradient steps.", caption, png(made))
    if sum("mean_return" in record for record in run.history) > 1:
        made, (ax,) = figure(6.0, 3.8)
        round_returns(ax, run.history)
        caption = "Mean return of the episodes that each round gathered. Numerical: no claim is made about other episodes."
        yield Picture("round_returns", "Rounds", "Mean return of each round.", caption, png(made))
