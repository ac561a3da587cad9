"""Whatever chooses actions: policies, MPC, experts and Stable-Baselines3 models are interchangeable."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Controller(Protocol):
    """Anything with Stable-Baselines3's ``predict``."""

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Action, shape (m,) or (batch, m), for an observation, shape (p,) or (batch, p), and the controller's next memory.

        ``state`` is the memory that the previous call returned (``None`` at the start and for controllers without one);
        ``episode_start`` (batch,) marks observations that begin an episode.
        """
        ...
