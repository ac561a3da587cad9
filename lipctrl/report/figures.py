"""The figures. Each function draws on an Axes that it is given, returns what it drew, and changes no global style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lipctrl.report.loop import ClosedLoop, Fates, Region
from lipctrl.report.style import INK, MUTED, PROVED, REFUTED, RULE, UNKNOWN, label, legend, rounded, tidy

Array = NDArray[np.float64]


def phase_portrait(
    ax: Axes, loop: ClosedLoop, fates: Fates | None = None, *, axes: tuple[int, int] = (0, 1), level: str, seed: int = 0
) -> dict[str, Any]:
    """The plane of two state coordinates: proved region, simulated fates, where the loop moves, a few trajectories.

    The region is filled as proved only where ``level`` says so; the rest of the box is unknown, except where simulated states
    escape. Of more than two states this is the slice with the others at rest, and says so.
    """
    drawn: dict[str, Any] = {}
    low, high = (end[list(axes)] for end in loop.box)
    pad = 0.03 * (high - low)
    ax.set_xlim(low[0] - pad[0], high[0] + pad[0])
    ax.set_ylim(low[1] - pad[1], high[1] + pad[1])
    drawn["box"] = ax.add_patch(Rectangle(tuple(low), *(high - low), facecolor=UNKNOWN.face, edgecolor=UNKNOWN.edge, zorder=0))
    handles: list[Any] = [Patch(**UNKNOWN.patch(label="state box: not proved"))]
    if fates is not None:
        handles += _draw_fates(ax, fates, drawn)
    if loop.region is not None and level in ("proved", "proved-for-model"):
        drawn["region"] = _draw_region(ax, loop, loop.region, axes)
        handles.append(Patch(**PROVED.patch(label=f"region of attraction ({level})", linewidth=1.8)))
    drawn["field"] = _draw_field(ax, loop, axes)
    drawn["trajectories"] = _draw_trajectories(ax, loop, axes, seed)
    handles.append(Line2D([], [], color=INK, linewidth=1.3, marker="o", markersize=4, label="simulated trajectories"))
    rest = loop.rest[list(axes)]
    drawn["equilibrium"] = ax.plot(*rest, marker="+", color=INK, markersize=13, markeredgewidth=2, linestyle="none", zorder=6)
    handles.append(Line2D([], [], marker="+", color=INK, markersize=11, markeredgewidth=2, linestyle="none", label="equilibrium"))
    names = [loop.plant.state[i] for i in axes]
    ax.set_xlabel(label(*names[0]))
    ax.set_ylabel(label(*names[1]))
    ax.set_title(_slice_title(loop, axes))
    tidy(ax)
    legend(ax, handles, columns=2)
    return drawn


def _draw_fates(ax: Axes, fates: Fates, drawn: dict[str, Any]) -> list[Any]:
    handles: list[Any] = []
    if fates.escapes.any():
        drawn["escapes"] = ax.contourf(
            fates.x, fates.y, fates.escapes.astype(float), levels=[0.5, 1.5], colors=[REFUTED.face], hatches=[REFUTED.hatch], zorder=1
        )
        drawn["escapes"].set_edgecolor(REFUTED.edge)
        drawn["escapes"].set_linewidth(0.0)
        handles.append(Patch(**REFUTED.patch(label="escapes in simulation (numerical)")))
    kinds: list[tuple[str, Any, Any, str]] = [
        ("arrives", fates.arrives, "--", "edge of what arrives in simulation (numerical)"),
        ("stays", fates.stays, ":", "... without leaving the box (numerical)"),
    ]
    for name, cells, line, words in kinds:
        if cells.any():
            drawn[name] = ax.contour(*_closed(fates, cells), levels=[0.5], colors=[INK], linestyles=line, linewidths=1.6, zorder=4)
            handles.append(Line2D([], [], color=INK, linestyle=line, linewidth=1.6, label=words))
    return handles


def _closed(fates: Fates, cells: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """The grid with a border of empty cells, which closes a contour along the edges of the box."""
    x, y = (np.concatenate([[c[0] - 0.01 * (c[1] - c[0])], c, [c[-1] + 0.01 * (c[1] - c[0])]]) for c in (fates.x, fates.y))
    return x, y, np.pad(cells.astype(float), 1)


def _draw_region(ax: Axes, loop: ClosedLoop, region: Region, axes: tuple[int, int]) -> Any:
    """Fill of the section of {V <= rho} with the box, others at rest, from V on a fine grid."""
    x, y, states = loop.grid(axes, 400)
    deviation = states - loop.rest
    value = np.where(_in_box(region, deviation), region.level(deviation), np.inf).reshape(len(y), len(x))
    value = np.minimum(value, 4 * region.rho)
    filled = ax.contourf(x, y, value, levels=[-1.0, region.rho], colors=[PROVED.face], zorder=2)
    ax.contour(x, y, value, levels=[region.rho], colors=[PROVED.edge], linewidths=1.8, zorder=3)
    return filled


def _in_box(region: Region, deviation: Array) -> NDArray[np.bool_]:
    inside = ((deviation >= region.low) & (deviation <= region.high)).all(axis=1)
    return np.asarray(inside)


def _draw_field(ax: Axes, loop: ClosedLoop, axes: tuple[int, int]) -> Any:
    x, y, states = loop.grid(axes, 30)
    moved = (loop.trajectories(states, 1)[:, 1] - states)[:, list(axes)].reshape(len(y), len(x), 2)
    return ax.streamplot(x, y, moved[..., 0], moved[..., 1], color=MUTED, linewidth=0.6, density=1.1, arrowsize=0.9, zorder=3)


def _draw_trajectories(ax: Axes, loop: ClosedLoop, axes: tuple[int, int], seed: int, count: int = 6) -> list[Any]:
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count
    directions = np.zeros((count, len(loop.rest)))
    directions[:, axes[0]], directions[:, axes[1]] = np.cos(angles), np.sin(angles)
    low, high = loop.box
    directions *= np.minimum(high - loop.rest, loop.rest - low)
    reach = np.full(count, 0.8)
    if loop.region is not None:  # just inside the region
        reach = 0.97 * np.minimum(np.sqrt(loop.region.rho / loop.region.level(directions)), 1.0)
    starts = loop.rest + reach[:, None] * directions
    lines = []
    for states in loop.trajectories(starts, 300)[:, :, list(axes)]:
        lines += ax.plot(states[:, 0], states[:, 1], color=INK, linewidth=1.3, zorder=5)
        lines += ax.plot(*states[0], color=INK, marker="o", markersize=4, zorder=5)
    return lines


def _slice_title(loop: ClosedLoop, axes: tuple[int, int]) -> str:
    others = [f"{name} = {value:g} {unit if unit != '1' else ''}".strip() for i, ((name, unit), value) in _with_rest(loop) if i not in axes]
    return f"Slice with {', '.join(others)}" if others else "State plane of the closed loop"


def _with_rest(loop: ClosedLoop) -> list[tuple[int, tuple[tuple[str, str], float]]]:
    return list(enumerate(zip(loop.plant.state, loop.rest.tolist(), strict=True)))


def margin_map(ax: Axes, loop: ClosedLoop, *, axes: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """How much V decreases in one step, 1 - V(y+)/V(y), sampled on a grid; the proof needs the stated rate inside the region.

    Raises ValueError for a loop without a claimed region.
    """
    if loop.region is None:
        raise ValueError("a margin map needs a claimed region, this loop has none")
    x, y, share = loop.decrease(axes)
    shown = np.clip(share, -0.25, 0.25)
    drawn: dict[str, Any] = {"image": ax.pcolormesh(x, y, shown, cmap="PuOr", vmin=-0.25, vmax=0.25, shading="nearest", rasterized=True)}
    bar = ax.figure.colorbar(drawn["image"], ax=ax, extend="both", shrink=0.9)
    bar.set_label("decrease of V in one step, share of V (numerical)", fontsize=10)
    states = loop.grid(axes, len(x))[2] - loop.rest
    value = loop.region.level(states).reshape(share.shape)
    drawn["region"] = ax.contour(x, y, value, levels=[loop.region.rho], colors=[PROVED.edge], linewidths=2.0)
    drawn["rate"] = ax.contour(x, y, share, levels=[loop.region.rate], colors=[INK], linestyles="--", linewidths=1.4)
    names = [loop.plant.state[i] for i in axes]
    ax.set_xlabel(label(*names[0]))
    ax.set_ylabel(label(*names[1]))
    ax.set_title(_slice_title(loop, axes).replace("State plane of the closed loop", "Margin of the decrease condition"))
    tidy(ax)
    handles = [
        Line2D([], [], color=PROVED.edge, linewidth=2, label="edge of the claimed region"),
        Line2D([], [], color=INK, linestyle="--", linewidth=1.4, label=f"decrease = {loop.region.rate:g}, the claimed rate"),
    ]
    legend(ax, handles, columns=2)
    return drawn


def learning_curve(ax: Axes, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Losses over gradient steps, on a logarithmic axis; rounds of DAgger follow each other, a rule marks each beginning.

    Raises ValueError where no record of the history holds a step and a loss.
    """
    rows = [row for row in history if "step" in row and "training_loss" in row]
    if not rows:
        raise ValueError("a learning curve needs records with step and training_loss, the history has none")
    last: dict[int, int] = {}
    for row in rows:
        last[row.get("round", 0)] = max(last.get(row.get("round", 0), 0), row["step"])
    offset, total = {}, 0
    for index in sorted(last):
        offset[index], total = total, total + last[index]
    steps = [offset[row.get("round", 0)] + row["step"] for row in rows]
    drawn: dict[str, Any] = {"training": ax.plot(steps, [row["training_loss"] for row in rows], color=INK, linewidth=1.6)}
    handles = [Line2D([], [], color=INK, linewidth=1.6, label="training")]
    held = [(step, row["validation_loss"]) for step, row in zip(steps, rows, strict=True) if "validation_loss" in row]
    if held:
        drawn["validation"] = ax.plot(*zip(*held, strict=True), color=PROVED.edge, linewidth=1.6, linestyle="--")
        handles.append(Line2D([], [], color=PROVED.edge, linewidth=1.6, linestyle="--", label="held-out episodes"))
    for index in sorted(offset)[1:]:
        ax.axvline(offset[index], color=RULE, linewidth=1.0, zorder=0)
        ax.annotate(
            f"round {index}",
            (offset[index], 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            ha="center",
            textcoords="offset points",
            fontsize=9,
        )
    ax.set_yscale("log")
    ax.set_xlabel("gradient step")
    ax.set_ylabel("loss, half action boxes (Huber)")
    ax.set_title("Learning curve", pad=18 if len(offset) > 1 else None)
    ax.grid(axis="y", color=RULE, linewidth=0.6)
    tidy(ax)
    legend(ax, handles, columns=2)
    return drawn


def round_returns(ax: Axes, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean return of whoever acted in each round of DAgger: the expert in round 0, then the policy.

    Raises ValueError where no record of the history holds a return.
    """
    rows = [(row["round"], row["mean_return"]) for row in history if "mean_return" in row]
    if not rows:
        raise ValueError("returns of rounds need records with round and mean_return, the history has none")
    drawn: dict[str, Any] = {"policy": ax.plot(*zip(*rows[1:], strict=True), color=INK, marker="o")} if len(rows) > 1 else {}
    drawn["expert"] = ax.axhline(rows[0][1], color=MUTED, linestyle="--", linewidth=1.4)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("round")
    ax.set_ylabel("mean return")
    ax.set_title("Return while gathering data")
    tidy(ax)
    handles = [
        Line2D([], [], color=INK, marker="o", label="policy (numerical)"),
        Line2D([], [], color=MUTED, linestyle="--", label="expert (numerical)"),
    ]
    legend(ax, handles, columns=2)
    return drawn


def policy_surface(
    ax: Axes,
    act: Callable[[Array], Array],
    coordinates: Sequence[tuple[str, str]],
    action: tuple[str, str],
    low: Array,
    high: Array,
    *,
    axes: tuple[int, int] = (0, 1),
    rest: Array | None = None,
    component: int = 0,
    samples: Array | None = None,
) -> dict[str, Any]:
    """One component of the action over two coordinates from ``low`` to ``high``; the others are at ``rest``.

    ``act`` maps points (N, p) to actions (N, m); ``coordinates`` are their names and units. ``samples`` (N, p) are
    demonstrated points, drawn as dots.
    """
    cells = 200
    centre = (np.asarray(low) + np.asarray(high)) / 2 if rest is None else rest
    grid = [np.linspace(low[i], high[i], cells) for i in axes]
    points = np.tile(np.asarray(centre, np.float64), (cells * cells, 1))
    points[:, axes[0]], points[:, axes[1]] = np.tile(grid[0], cells), np.repeat(grid[1], cells)
    value = act(points)[:, component].reshape(cells, cells)
    drawn: dict[str, Any] = {"image": ax.pcolormesh(*grid, value, cmap="cividis", shading="gouraud", rasterized=True)}
    bar = ax.figure.colorbar(drawn["image"], ax=ax, shrink=0.9)
    bar.set_label(label(*action), fontsize=10)
    if np.ptp(value) > 0:
        inner = value.min() + 0.02 * np.ptp(value), value.max() - 0.02 * np.ptp(value)  # the ends are plateaus of the clip
        levels = [level for level in MaxNLocator(8).tick_values(*inner) if inner[0] < level < inner[1]]
        drawn["lines"] = ax.contour(*grid, value, levels=levels, colors="white", linewidths=0.9, linestyles="solid")
        ax.clabel(drawn["lines"], fontsize=8.5, fmt="%g")
    if samples is not None:
        shown = samples[:: max(1, len(samples) // 1500)]
        drawn["samples"] = ax.scatter(shown[:, axes[0]], shown[:, axes[1]], s=7, color="white", edgecolors=INK, linewidths=0.4)
        legend(
            ax,
            [
                Line2D(
                    [],
                    [],
                    marker="o",
                    markerfacecolor="white",
                    markeredgecolor=INK,
                    markersize=5,
                    linestyle="none",
                    label="demonstrated states",
                )
            ],
        )
    ax.set_xlim(low[axes[0]], high[axes[0]])
    ax.set_ylim(low[axes[1]], high[axes[1]])
    ax.set_xlabel(label(*coordinates[axes[0]]))
    ax.set_ylabel(label(*coordinates[axes[1]]))
    ax.set_title(f"Policy: {action[0]}")
    tidy(ax)
    return drawn


def lipschitz_slopes(
    ax: Axes, slopes: Array, *, upper: float | None, lower: float | None = None, level: str, unit: str = ""
) -> dict[str, Any]:
    """Sampled slopes (N,), which are lower estimates only, beside the upper bound, whose ``level`` is written at its line."""
    ends = [value for value in (upper, lower, float(slopes.max())) if value is not None]
    right = 1.12 * max(ends)
    drawn: dict[str, Any] = {"slopes": ax.hist(slopes, bins=np.linspace(0, right, 60).tolist(), color=UNKNOWN.edge, alpha=0.75)}
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)
    handles: list[Any] = [Patch(color=UNKNOWN.edge, alpha=0.75, label="slopes of random pairs: lower estimates (numerical)")]
    if lower is not None:
        drawn["lower"] = ax.axvline(lower, color=INK, linestyle=":", linewidth=2)
        handles.append(
            Line2D([], [], color=INK, linestyle=":", linewidth=2, label=f"steepest pair found: at least {rounded(lower, 'down')}")
        )
    if upper is not None:
        fill = PROVED if level in ("proved", "proved-for-model") else UNKNOWN
        drawn["upper"] = ax.axvline(upper, color=fill.edge, linewidth=2.4)
        handles.append(Line2D([], [], color=fill.edge, linewidth=2.4, label=f"upper bound: at most {rounded(upper, 'up')} ({level})"))
    ax.set_xlim(0, right)
    ax.set_xlabel(f"slope |f(x) - f(y)| / |x - y| {unit}".strip())
    ax.set_ylabel("pairs")
    ax.set_title("Lipschitz bound and sampled slopes")
    tidy(ax)
    legend(ax, handles)
    return drawn


def time_series(
    ax: Axes, times: Array, values: Array, *, name: tuple[str, str], bounds: tuple[float, float] | None = None, title: str = ""
) -> dict[str, Any]:
    """One coordinate of several episodes, ``values`` (episodes, T), over ``times`` (T,) in seconds; ``bounds`` are its box."""
    drawn: dict[str, Any] = {"lines": ax.plot(times, values.T, color=INK, linewidth=0.9, alpha=0.6)}
    if bounds is not None:
        for end in bounds:
            ax.axhline(end, color=MUTED, linestyle="--", linewidth=1.0)
    ax.set_xlabel("time [s]")
    ax.set_ylabel(label(*name))
    ax.set_title(title)
    tidy(ax)
    return drawn
