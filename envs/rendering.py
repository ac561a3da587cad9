"""Pictures of plants: pendulums, cart-pole, quadrotor, and for all others the path through the plane of the first two states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lipctrl.core.rationals import floats
from lipctrl.envs.plant import Plant

SIZE = 400  #: pixels of a side
_SCALE = 2  #: drawn this much larger, then averaged: smooth edges
_PAPER, _INK, _BODY, _PUSH, _FAINT = "white", "#222222", "#3b6ea5", "#d1495b", "#c8ccd0"
_Point = tuple[float, float]


class _Canvas:
    """Draws in metres (or state units): the view has ``centre`` in the middle and shows ``width`` across."""

    def __init__(self, centre: _Point, width: float) -> None:
        side = SIZE * _SCALE
        self.image = Image.new("RGB", (side, side), _PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.unit = side / width
        self.left, self.top = centre[0] - width / 2, centre[1] + width / 2

    def pixel(self, point: _Point) -> _Point:
        return (point[0] - self.left) * self.unit, (self.top - point[1]) * self.unit

    def line(self, points: list[_Point], colour: str, thickness: float) -> None:
        self.pen.line([self.pixel(p) for p in points], fill=colour, width=max(1, round(thickness * self.unit)), joint="curve")

    def disc(self, centre: _Point, radius: float, colour: str) -> None:
        (x, y), r = self.pixel(centre), radius * self.unit
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def polygon(self, points: list[_Point], colour: str) -> None:
        self.pen.polygon([self.pixel(p) for p in points], fill=colour)

    def arrow(self, tail: _Point, head: _Point, colour: str, thickness: float) -> None:
        dx, dy = head[0] - tail[0], head[1] - tail[1]
        length = float(np.hypot(dx, dy))
        if length < 1e-3 * thickness:
            return
        ux, uy, wing = dx / length, dy / length, 2 * thickness
        self.line([tail, head], colour, thickness)
        tip = (head[0] + 2 * wing * ux, head[1] + 2 * wing * uy)
        self.polygon([tip, (head[0] - wing * uy, head[1] + wing * ux), (head[0] + wing * uy, head[1] - wing * ux)], colour)

    def array(self) -> np.ndarray:
        return np.asarray(self.image.resize((SIZE, SIZE), Image.Resampling.BOX)).copy()


def draw(plant: Plant, history: np.ndarray, action: np.ndarray) -> np.ndarray:
    """RGB picture (SIZE, SIZE, 3), uint8, of the last of the states ``history`` (T, n) and the action (m,) that led there.

    A state that is not finite gives a blank picture.
    """
    if not np.isfinite(history[-1]).all():
        return np.full((SIZE, SIZE, 3), 255, np.uint8)
    share = action / np.maximum(np.abs(floats(plant.action_low)), np.abs(floats(plant.action_high)))
    painter: Callable[[Plant, Any, np.ndarray], _Canvas] = _PAINTERS.get(plant.name, _phase_plane)
    return painter(plant, history, share).array()


def _pendulum(plant: Plant, history: np.ndarray, share: np.ndarray) -> _Canvas:
    canvas, angle = _Canvas((0.0, 0.0), 3.0), float(history[-1, 0])
    tip = (-float(np.sin(angle)), float(np.cos(angle)))  # positive angles and torques turn to the left
    canvas.line([(0.0, 0.0), (0.0, 1.25)], _FAINT, 0.02)
    canvas.line([(0.0, 0.0), tip], _BODY, 0.12)
    canvas.disc(tip, 0.16, _BODY)
    canvas.disc((0.0, 0.0), 0.06, _INK)
    sweep = 2.4 * float(share[0])
    turns = np.linspace(0, sweep, 24)
    arc = [(-0.45 * float(np.sin(t)), 0.45 * float(np.cos(t))) for t in turns]
    if abs(sweep) > 0.02:
        canvas.line(arc, _PUSH, 0.05)
        canvas.arrow(arc[-2], arc[-1], _PUSH, 0.05)
    return canvas


def _cartpole(plant: Plant, history: np.ndarray, share: np.ndarray) -> _Canvas:
    x, angle = float(history[-1, 0]), float(history[-1, 1])
    canvas = _Canvas((0.0, 0.4), max(5.0, 2 * abs(x) + 2.0))
    canvas.line([(-100.0, 0.0), (100.0, 0.0)], _FAINT, 0.03)
    canvas.polygon([(x - 0.3, -0.12), (x + 0.3, -0.12), (x + 0.3, 0.12), (x - 0.3, 0.12)], _INK)
    tip = (x + float(np.sin(angle)), float(np.cos(angle)))  # a positive angle leans to the right, as the cart's coordinate
    canvas.line([(x, 0.0), tip], _BODY, 0.09)
    canvas.disc(tip, 0.11, _BODY)
    canvas.arrow((x, -0.35), (x + 1.5 * float(share[0]), -0.35), _PUSH, 0.05)
    return canvas


def _quadrotor(plant: Plant, history: np.ndarray, share: np.ndarray) -> _Canvas:
    x, y, angle = (float(v) for v in history[-1, :3])
    canvas = _Canvas((0.0, 0.0), max(2.4, 2 * abs(x) + 0.8, 2 * abs(y) + 0.8))
    cos, sin, arm = float(np.cos(angle)), float(np.sin(angle)), 0.25
    canvas.line([(float(p[0]), float(p[1])) for p in history[-200:]] * (1 if len(history) > 1 else 2), _FAINT, 0.015)
    for side, push in ((1.0, share[0]), (-1.0, share[1])):
        end = (x + side * arm * cos, y + side * arm * sin)
        canvas.arrow(end, (end[0] - 0.4 * float(push) * sin, end[1] + 0.4 * float(push) * cos), _PUSH, 0.03)
        canvas.disc(end, 0.05, _INK)
    canvas.line([(x - arm * cos, y - arm * sin), (x + arm * cos, y + arm * sin)], _BODY, 0.06)
    return canvas


def _phase_plane(plant: Plant, history: np.ndarray, share: np.ndarray) -> _Canvas:
    """The path through the first two coordinates (the first alone: over time), scaled so that the state box fills the view."""
    n = len(plant.state)
    low, high = floats(plant.state_low)[:2], floats(plant.state_high)[:2]
    middle, half = (low + high) / 2, (high - low) / 2
    scaled = (history[:, : min(n, 2)] - middle) / half
    if n == 1:
        scaled = np.column_stack([np.linspace(-1, 1, len(scaled)), scaled[:, 0]])
    rest = ((floats(plant.equilibrium_state)[:2] - middle) / half).tolist()
    canvas = _Canvas((0.0, 0.0), 2.3)
    canvas.line([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0)], _FAINT, 0.01)
    canvas.line([(-1.0, rest[-1]), (1.0, rest[-1])], _FAINT, 0.005)
    if n > 1:
        canvas.line([(rest[0], -1.0), (rest[0], 1.0)], _FAINT, 0.005)
    path = [(float(a), float(b)) for a, b in np.clip(scaled, -2, 2)]
    if len(path) > 1:
        canvas.line(path, _BODY, 0.015)
    canvas.disc(path[-1], 0.035, _INK)
    names = [f"{c.name} [{c.unit}]" for c in plant.state[:2]]
    canvas.pen.text((20, 8), " / ".join(names), fill=_INK, font_size=24)
    canvas.arrow((0.0, -1.08), (float(share[0]), -1.08), _PUSH, 0.02)
    return canvas


_PAINTERS: dict[str, Callable[[Plant, Any, np.ndarray], _Canvas]] = {
    "pendulum": _pendulum,
    "pendulum-small": _pendulum,
    "gym-pendulum": _pendulum,
    "cartpole": _cartpole,
    "quadrotor2d": _quadrotor,
}
