"""Implicit layers in torch: solved as in :mod:`lipctrl.core.implicit_solver`, differentiated by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lipctrl.certificates.checker.implicit import NEWTON_STEPS, NEWTON_TURN, SPLITTINGS, TURNS
from lipctrl.core.errors import InputError
from lipctrl.core.implicit_solver import SINGULAR, ImplicitSolver


def _softplus(w: Tensor) -> Tensor:
    return torch.logaddexp(w, torch.zeros((), dtype=w.dtype, device=w.device))


_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, lambda w: (w > 0).to(w.dtype)),
    "sigmoid": (torch.sigmoid, lambda w: torch.sigmoid(w) * torch.sigmoid(-w)),
    "softplus": (_softplus, torch.sigmoid),
    "tanh": (torch.tanh, lambda w: 1 - torch.tanh(w) ** 2),
}  #: functions and their derivatives


def implicit_layer(weight: Tensor, operand: Tensor, activation: str) -> Tensor:
    """The z (..., n) with z = activation(``weight`` z + ``operand``), for ``operand`` (..., n); rows that are not finite give NaN.

    ``weight`` D (n, n) is well-posed, as it is where 2 L - L D - D^T L is positive definite for some positive diagonal L. Gradients
    flow to both, once. Splitting runs in float64 on the device of ``operand``, rows that it does not solve go to NumPy; the result has
    the dtype of ``operand``. Raises LipctrlError where a row is not solved to rounding errors, InputError where 2 I - D is singular.
    """
    result: Tensor = _Implicit.apply(weight, operand, activation)  # type: ignore[no-untyped-call]
    return result


class _Implicit(torch.autograd.Function):
    """With slopes S at the solution, dz = (I - S D)^-1 S (dD z + dv)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, operand: Tensor, activation: str) -> Tensor:
        matrix, rows = weight.double(), operand.reshape(-1, operand.shape[-1]).double()
        finite = torch.isfinite(rows).all(-1, keepdim=True)
        z = _solved(matrix, torch.where(finite, rows, 0.0), activation)
        slopes = _ACTIVATIONS[activation][1](z @ matrix.mT + rows)
        z = torch.where(finite, z, torch.nan)
        ctx.save_for_backward(matrix, z, slopes)
        ctx.weight_dtype = weight.dtype
        return z.reshape(operand.shape).to(operand.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, z, slopes = ctx.saved_tensors
        rows = gradient.reshape(z.shape).double()
        system = _system(weight, slopes).mT
        at_operand = slopes * torch.linalg.solve(system, rows[..., None])[..., 0]
        at_weight, at_operand = at_operand.mT @ z, at_operand.reshape(gradient.shape)
        return at_weight.to(ctx.weight_dtype), at_operand.to(gradient.dtype), None


def _system(weight: Tensor, slopes: Tensor) -> Tensor:
    """I - S D for each row, (rows, n, n)."""
    return torch.eye(len(weight), dtype=weight.dtype, device=weight.device) - slopes[..., None] * weight


def _solved(weight: Tensor, v: Tensor, activation: str) -> Tensor:
    phi, _ = _ACTIVATIONS[activation]
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    resolvent, singular = torch.linalg.inv_ex(2 * identity - weight)
    if bool(singular):
        raise InputError(SINGULAR)
    y, z, done = v, v, torch.zeros(len(v), dtype=torch.bool, device=v.device)
    for turn in range(TURNS):
        for _ in range(SPLITTINGS):
            reflected = 2 * phi(y) - y
            y = 2 * ((reflected + v) @ resolvent.mT) - reflected
        z, done = _polished(weight, phi(y), v, activation, NEWTON_STEPS if turn >= NEWTON_TURN else 0)
        if bool(done.all()):
            return z
    left = torch.nonzero(~done)[:, 0]
    solver = ImplicitSolver(weight.detach().cpu().numpy(), activation)
    z[left] = torch.as_tensor(solver.follow(v[left].detach().cpu().numpy())).to(z)
    return z


def _polished(weight: Tensor, z: Tensor, v: Tensor, activation: str, steps: int) -> tuple[Tensor, Tensor]:
    """Better solutions by Newton steps where they help, and which are as good as rounding allows."""
    phi, derivative = _ACTIVATIONS[activation]
    miss, done = _miss(weight, z, v, phi)
    for _ in range(steps):
        if bool(done.all()):
            break
        left = torch.nonzero(~done)[:, 0]
        system = _system(weight, derivative(z[left] @ weight.mT + v[left]))
        better = z[left] + torch.linalg.solve_ex(system, miss[left][..., None])[0][..., 0]
        after, good = _miss(weight, better, v[left], phi)
        closer = after.abs().amax(-1) < miss[left].abs().amax(-1)
        z, miss, done = z.clone(), miss.clone(), done.clone()
        z[left[closer]], miss[left[closer]], done[left[closer]] = better[closer], after[closer], good[closer]
    return z, done


def _miss(weight: Tensor, z: Tensor, v: Tensor, phi: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """phi(D z + v) - z, and whether it is a matter of rounding."""
    miss = phi(z @ weight.mT + v) - z
    scale = (v.abs() + z.abs() @ weight.abs().mT + z.abs()).amax(-1)
    return miss, miss.abs().amax(-1) <= 16 * torch.finfo(v.dtype).eps * scale
