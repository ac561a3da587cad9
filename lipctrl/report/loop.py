"""The closed loop of a certificate, as figures need it: simulated in float64, so everything here is ``numerical``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.certificates.checker.bundle import Certificate, PlantSubject, numbers
from lipctrl.certificates.checker.graph import Graph
from lipctrl.certificates.stability.simulation import step_function
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.core.rationals import floats

Array = NDArray[np.float64]

MAX_WORK = 2_000_000  #: steps of single states that a grid gets to show where it goes
ARRIVED = 1e-3  #: distance from the equilibrium, relative to the box, that counts as arrived


@dataclass(frozen=True)
class Region:
    """The set {y: low <= y <= high, y'Py <= rho} of a stability claim, y the deviation (n,) from the equilibrium."""

    P: Array
    rho: float
    low: Array
    high: Array
    rate: float

    @classmethod
    def of(cls, certificate: Certificate) -> Region | None:
        """The region that a certificate states, or None where it states none."""
        region = certificate.claim.get("region")
        if not isinstance(region, dict) or set(region) != {"low", "high", "P", "rho"}:
            return None
        low, high, *rows = (floats(numbers(values, None)) for values in (region["low"], region["high"], *region["P"]))
        (rho,), (rate,) = (floats(numbers([value], 1)) for value in (region["rho"], certificate.claim.get("decrease_rate", "0")))
        return cls(np.array(rows), float(rho), low, high, float(rate))

    def level(self, deviation: Array) -> Array:
        """V(y) = y'Py of deviations (N, n)."""
        value: Array = np.einsum("bi,ij,bj->b", deviation, self.P, deviation)
        return value

    def contains(self, deviation: Array) -> NDArray[np.bool_]:
        """Which deviations (N, n) lie inside, as floating point sees it."""
        inside: NDArray[np.bool_] = (self.level(deviation) <= self.rho) & ((deviation >= self.low) & (deviation <= self.high)).all(axis=1)
        return inside


@dataclass(frozen=True)
class Fates:
    """What simulation says of a grid of states: ``arrives`` and ``escapes`` (rows: second axis), neither where time was up.

    ``stays`` are those that arrive without ever leaving the state box. ``x`` and ``y`` are the cell centres, ``cell`` the area
    of a cell.
    """

    x: Array
    y: Array
    arrives: NDArray[np.bool_]
    stays: NDArray[np.bool_]
    escapes: NDArray[np.bool_]
    cell: float

    @property
    def area(self) -> float:
        """Area of the cells whose centre arrives, in units of the two axes."""
        return float(self.arrives.sum() * self.cell)

    @property
    def area_inside(self) -> float:
        """Area of the cells whose centre arrives without leaving the state box."""
        return float(self.stays.sum() * self.cell)


@dataclass(frozen=True)
class ClosedLoop:
    """A plant and a policy, and the region that was claimed for them (None: nothing was)."""

    plant: PlantSubject
    policy: Graph
    region: Region | None = None

    @classmethod
    def of(cls, certificate: Certificate) -> ClosedLoop:
        """The loop that a certificate is about. Raises Rejected where it carries no plant."""
        return cls(certificate.plant, certificate.policy, Region.of(certificate))

    @property
    def rest(self) -> Array:
        """The equilibrium state (n,)."""
        return floats(self.plant.equilibrium_state)

    @property
    def box(self) -> tuple[Array, Array]:
        """Ends of the state box (n,), (n,)."""
        return floats(self.plant.state_low), floats(self.plant.state_high)

    def grid(self, axes: tuple[int, int], cells: int) -> tuple[Array, Array, Array]:
        """Cell centres along two axes of the box, and the states (cells^2, n) there; other coordinates are at rest."""
        low, high = self.box
        centres = [low[i] + (high[i] - low[i]) * (np.arange(cells) + 0.5) / cells for i in axes]
        states = np.tile(self.rest, (cells * cells, 1))
        states[:, axes[0]] = np.tile(centres[0], cells)
        states[:, axes[1]] = np.repeat(centres[1], cells)
        return centres[0], centres[1], states

    def trajectories(self, states: Array, steps: int) -> Array:
        """States (N, steps + 1, n) from initial states (N, n)."""
        step, rest = step_function(self.plant, self.policy), self.rest
        visited = [np.asarray(states, np.float64)]
        with np.errstate(all="ignore"):
            for _ in range(steps):
                visited.append(rest + step(visited[-1] - rest))
        return np.stack(visited, axis=1)

    def fates(self, axes: tuple[int, int] = (0, 1), cells: int = 200, trust_region: bool = True) -> Fates:
        """Simulate every cell centre of a grid on two axes of the state box until it arrives, escapes or time is up.

        A state that enters the claimed region counts as arrived (``trust_region``), which saves most of the steps. A state may
        leave the box and come back; beyond a thousand times the box it has escaped.
        """
        x, y, states = self.grid(axes, cells)
        step, rest = step_function(self.plant, self.policy), self.rest
        low, high = self.box
        width = (high - low) / 2
        deviation, active = states - rest, np.arange(len(states))
        arrives, escapes, left = (np.zeros(len(states), bool) for _ in range(3))
        work = 0
        while len(active) and work < MAX_WORK:
            left[active] |= ~((deviation >= low - rest) & (deviation <= high - rest)).all(axis=1)
            size = np.abs(deviation / width).max(axis=1)
            there = size <= ARRIVED
            if self.region is not None and trust_region:
                there |= self.region.contains(deviation)
            gone = ~(size < 1000)
            arrives[active[there]], escapes[active[gone]] = True, True
            active, deviation = active[~(there | gone)], deviation[~(there | gone)]
            work += len(active)
            with np.errstate(all="ignore"):
                deviation = step(deviation)
        area = float((x[1] - x[0]) * (y[1] - y[0]))
        shape = cells, cells
        return Fates(x, y, arrives.reshape(shape), (arrives & ~left).reshape(shape), escapes.reshape(shape), area)

    def decrease(self, axes: tuple[int, int] = (0, 1), cells: int = 200) -> tuple[Array, Array, Array]:
        """Cell centres and 1 - V(y+) / V(y) on a grid (rows: second axis), float64. Raises ValueError without a region."""
        if self.region is None:
            raise ValueError("a decrease needs a claimed region, this loop has none")
        x, y, states = self.grid(axes, cells)
        deviation = states - self.rest
        with np.errstate(all="ignore"):
            after = step_function(self.plant, self.policy)(deviation)
            share = 1 - self.region.level(after) / self.region.level(deviation)
        return x, y, share.reshape(cells, cells)


def sampled_slopes(policy: Graph, low: Sequence[float], high: Sequence[float], *, count: int = 4000, seed: int = 0) -> Array:
    """|f(x) - f(y)| / |x - y| for ``count`` random pairs of observations in a box: half of them near, half far apart.

    Each is a lower estimate of the Lipschitz constant, never a bound on it.
    """
    generator = np.random.default_rng(seed)
    ends = np.asarray(low, np.float64), np.asarray(high, np.float64)
    run = compile_numpy(policy)
    x = generator.uniform(*ends, size=(count, len(ends[0])))
    y = generator.uniform(*ends, size=x.shape)
    near = np.arange(count) % 2 == 0
    y[near] = x[near] + 1e-4 * (y[near] - x[near])
    rise = np.linalg.norm(run(observation=x)["action"] - run(observation=y)["action"], axis=1)
    slopes: Array = rise / np.linalg.norm(x - y, axis=1)
    return slopes
