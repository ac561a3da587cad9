"""The state behind an observation, for plants that show each state coordinate as it is, or an angle as cosine and sine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.core.errors import InputError
from lipctrl.core.numpy_evaluation import compile_numpy
from lipctrl.envs.plant import Plant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StateRecovery:
    """For each state coordinate the index of the observation that equals it, or the pair (cosine, sine) of an angle.

    A recovered angle lies in [-pi, pi].
    """

    sources: tuple[int | tuple[int, int], ...]

    @classmethod
    def of_plant(cls, plant: Plant) -> StateRecovery:
        """Found by evaluating the observation map at a few states. Raises InputError where some coordinate cannot be recovered."""
        n = len(plant.state)
        states = np.random.default_rng(0).uniform(-1.5, 1.5, (8, n))
        seen = compile_numpy(plant.observe)(state=states)["observation"].T
        sources: list[int | tuple[int, int]] = []
        for coordinate, values in zip(plant.state, states.T, strict=True):
            same, cosine, sine = (_index_of(form, seen) for form in (values, np.cos(values), np.sin(values)))
            if same is not None:
                sources.append(same)
            elif cosine is not None and sine is not None:
                sources.append((cosine, sine))
            else:
                raise InputError(
                    f"the state coordinate {coordinate.name!r} of the plant {plant.name} cannot be recovered from its observation; "
                    "expected it among the observations, or as cosine and sine"
                )
        return cls(tuple(sources))

    def __call__(self, observation: ArrayLike) -> Array:
        """States (..., n) for observations (..., p)."""
        y = np.asarray(observation, dtype=np.float64)
        columns = [y[..., s] if isinstance(s, int) else np.arctan2(y[..., s[1]], y[..., s[0]]) for s in self.sources]
        return np.stack(columns, axis=-1)

    @property
    def wrapped(self) -> NDArray[np.bool_]:
        """Which state coordinates are angles known up to full turns (n,)."""
        return np.array([not isinstance(source, int) for source in self.sources])


def _index_of(values: Array, seen: Array) -> int | None:
    matches = [index for index, row in enumerate(seen) if np.allclose(row, values, rtol=1e-12, atol=1e-12)]
    return matches[0] if matches else None
