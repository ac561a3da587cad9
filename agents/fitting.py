"""Fitting a Lipschitz policy to labelled observations: the loss, the loop, and a state that can be saved and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipctrl.agents.training import TrainingOptions
from lipctrl.core.errors import LipctrlError
from lipctrl.core.rationals import floats
from lipctrl.nn import LipschitzPolicy

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Observations (N, n) and the expert's actions (N, m), physical units."""

    observations: Tensor
    actions: Tensor

    @classmethod
    def of(cls, observations: Array, actions: Array, dtype: torch.dtype) -> Samples:
        """From arrays (N, n) and (N, m), in the dtype of the network."""
        return cls(torch.as_tensor(observations, dtype=dtype), torch.as_tensor(actions, dtype=dtype))

    def __len__(self) -> int:
        return len(self.observations)


@dataclass(frozen=True)
class ActionBox:
    """Ends of the action box and half its width, the unit of the loss, (m,) each."""

    low: Tensor
    high: Tensor
    half_width: Tensor

    @classmethod
    def of(cls, policy: LipschitzPolicy, dtype: torch.dtype) -> ActionBox:
        """The box that the policy clips to."""
        low, high = (torch.as_tensor(floats(end), dtype=dtype) for end in (policy.action_low, policy.action_high))
        return cls(low, high, (high - low) / 2)


def one_sided_huber(prediction: Tensor, label: Tensor, box: ActionBox, delta: float) -> Tensor:
    """Mean Huber loss (a scalar) of actions (N, m) before the clip, in units of half the action box.

    Where the label sits on an end of the box, an action beyond that end costs nothing: the actuator clips it anyway, and a policy
    of bounded slope needs the freedom to overshoot.
    """
    error = prediction - label
    edge = 1e-6 * box.half_width
    beyond = ((label >= box.high - edge) & (error > 0)) | ((label <= box.low + edge) & (error < 0))
    error = torch.where(beyond, torch.zeros_like(error), error) / box.half_width
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=delta)


class Fit:
    """One fit in progress: policy, Adam, minibatch generator, step count, best held-out loss.

    ``run`` may be left by an exception at any time; ``tensors`` and ``values`` hold everything that ``restore`` needs to go on
    with the same bytes.
    """

    def __init__(self, policy: LipschitzPolicy, options: TrainingOptions, seed: int) -> None:
        self.policy, self.options = policy, options
        self.generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        self.start()

    def start(self) -> None:
        """Begin a round: keep the parameters and the generator, forget the optimiser and the best loss."""
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=self.options.learning_rate, fused=True)
        self.step, self.stale, self.best_loss = 0, 0, math.inf
        self.best = self._parameters()

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the held-out loss stopped falling."""
        return self.step >= self.options.steps or 0 < self.options.patience <= self.stale

    def run(self, training: Samples, validation: Samples | None, after: Callable[[dict[str, Any]], None]) -> None:
        """Go on until finished. ``after`` gets one record per evaluation, at a point where the state may be saved.

        Raises LipctrlError where the loss is no longer finite.
        """
        box = ActionBox.of(self.policy, training.actions.dtype)
        while not self.finished:
            losses: list[float] = []
            target = min(self.step + self.options.evaluate_every, self.options.steps)
            while self.step < target:
                losses.append(self._advance(training, box))
            record: dict[str, Any] = {"step": self.step, "training_loss": float(np.mean(losses))}
            if validation is not None:
                record["validation_loss"] = self._evaluate(validation, box)
            if not all(map(math.isfinite, record.values())):
                raise LipctrlError(
                    f"training has diverged: its loss at step {self.step} is not finite, "
                    "expected to learn with a smaller Lipschitz constant or learning rate"
                )
            self._judge(record.get("validation_loss"))
            after(record)
        if self.options.patience > 0 and validation is not None:
            self.keep_best()

    def keep_best(self) -> None:
        """Put the parameters with the lowest held-out loss into the policy."""
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(self.best[name])

    def _advance(self, training: Samples, box: ActionBox) -> float:
        options = self.options
        fall = (1 + math.cos(math.pi * self.step / options.steps)) / 2
        for group in self.optimiser.param_groups:
            group["lr"] = options.final_learning_rate + (options.learning_rate - options.final_learning_rate) * fall
        chosen = torch.from_numpy(self.generator.integers(len(training), size=min(options.batch_size, len(training))))
        self.optimiser.zero_grad(set_to_none=True)
        with self.policy.materialised():
            loss = one_sided_huber(self.policy(training.observations[chosen]), training.actions[chosen], box, options.huber)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def _evaluate(self, samples: Samples, box: ActionBox) -> float:
        with torch.no_grad(), self.policy.materialised():
            return float(one_sided_huber(self.policy(samples.observations), samples.actions, box, self.options.huber))

    def _judge(self, loss: float | None) -> None:
        if loss is None:
            return
        if loss < self.best_loss:
            self.best_loss, self.stale, self.best = loss, 0, self._parameters()
        else:
            self.stale += 1

    # --- saved state --------------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.policy.named_parameters()}

    def tensors(self) -> dict[str, np.ndarray]:
        """Parameters, best parameters, and Adam's moments."""
        saved: dict[str, Tensor] = {}
        for name, parameter in self.policy.named_parameters():
            saved[f"parameter/{name}"], saved[f"best/{name}"] = parameter.detach(), self.best[name]
            for moment, value in self.optimiser.state[parameter].items():
                saved[f"adam/{moment}/{name}"] = value
        return {key: value.numpy().copy() for key, value in saved.items()}

    def values(self) -> dict[str, Any]:
        """Counters, the best loss (hex), and the generator's state."""
        return {
            "step": self.step,
            "stale": self.stale,
            "best_loss": self.best_loss.hex(),
            "generator": self.generator.bit_generator.state,
        }

    def restore(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Go back to a saved state, bit for bit."""
        self.start()
        self.step, self.stale = values["step"], values["stale"]
        self.best_loss = float.fromhex(values["best_loss"])
        self.generator.bit_generator.state = values["generator"]
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(torch.from_numpy(tensors[f"parameter/{name}"]))
                self.best[name] = torch.from_numpy(tensors[f"best/{name}"])
                moments = [key for key in tensors if key.startswith("adam/") and key.endswith(f"/{name}")]
                if moments:
                    self.optimiser.state[parameter] = {key.split("/")[1]: torch.from_numpy(tensors[key]) for key in moments}
