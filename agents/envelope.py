"""The midpoint envelope: an L-Lipschitz policy straight from labelled states, without any training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from lipctrl.agents.limits import checked_samples
from lipctrl.core.errors import InputError

_DISTANCES_AT_ONCE = 4_000_000


class MidpointEnvelope:
    """Halfway between the largest and the smallest L-Lipschitz function that the samples allow.

    ``observations`` (N, n), ``actions`` (N, m), ``lipschitz`` L in action units per observation unit (l2 on both sides). Among
    L-Lipschitz functions of a scalar action it has the smallest possible error at the samples, e*(L). Vector actions get
    L / sqrt(m) per component, which makes the whole L-Lipschitz. The baseline that every learner must beat; a query costs N
    distances. The constant holds over the reals; in floating point up to rounding (``numerical``).

    Raises InputError where the samples do not fit together, are not finite, or L is not positive.
    """

    def __init__(self, observations: ArrayLike, actions: ArrayLike, lipschitz: float) -> None:
        if not (math.isfinite(lipschitz) and lipschitz > 0):
            raise InputError(f"the envelope's Lipschitz constant is {lipschitz}, expected a positive number")
        self._observations, self._actions = checked_samples(observations, actions)
        self.lipschitz = float(lipschitz)
        self._slope = self.lipschitz / math.sqrt(self._actions.shape[1])

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float64], tuple[np.ndarray, ...] | None]:
        """Actions (..., m) for observations (..., n); ``state`` comes back as it is."""
        x = np.asarray(observation, dtype=np.float64)
        flat = x.reshape(-1, self._observations.shape[1])
        rows = max(1, _DISTANCES_AT_ONCE // len(self._observations))
        parts = [self._block(flat[start : start + rows]) for start in range(0, len(flat), rows)]
        return np.concatenate(parts).reshape(*x.shape[:-1], self._actions.shape[1]), state

    def _block(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        reach = self._slope * cdist(x, self._observations)
        columns = [((u + reach).min(1) + (u - reach).max(1)) / 2 for u in self._actions.T]
        return np.stack(columns, axis=1)
