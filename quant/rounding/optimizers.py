"""The optimizers of the `svd` method: each moves a continuous position, given the gradient of the error on the grid.

They differ in nothing but the step. ``position`` is float32 ``[N, K]`` in weight units and is updated in place;
``progress`` runs from 0 to 1 and anneals every step size linearly, because a code flips until the steps are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import RecipeError


class Stepper(Protocol):
    def step(self, gradient: Tensor, loss: float, progress: float) -> None: ...


class AdaptiveStep:
    """Plain gradient descent whose step halves whenever the loss on the grid is above the one of nearest rounding.

    The objective's curvature is 1 (its two bases are orthonormal), so the step needs no tuning by layer: below 1 the
    continuous problem converges.
    """

    def __init__(self, position: Tensor, gap: Tensor, lr: float) -> None:
        self._position, self._lr = position, lr

    def step(self, gradient: Tensor, loss: float, progress: float) -> None:
        if loss > 1.0:
            self._lr *= 0.5
        self._position.sub_(gradient, alpha=self._lr * (1.0 - progress))


class TorchStep:
    """Any `torch.optim.Optimizer`, working on offsets in units of the distance between grid points."""

    def __init__(
        self, optimizer: Callable[..., torch.optim.Optimizer], position: Tensor, gap: Tensor, lr: float, **options: Any
    ) -> None:
        self._start, self._position, self._gap = position.clone(), position, gap
        self._unit = gap.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        self._offset = torch.nn.Parameter(torch.zeros_like(position))
        self._optimizer, self._lr = optimizer([self._offset], lr=lr, **options), lr

    def step(self, gradient: Tensor, loss: float, progress: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * (1.0 - progress)
        self._offset.grad = gradient * self._gap / self._unit
        self._optimizer.step()
        torch.addcmul(self._start, self._offset.detach(), self._gap, out=self._position)


def _adaptive(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    return AdaptiveStep(position, gap, 0.3 if lr is None else lr)


def _adamw(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    return TorchStep(torch.optim.AdamW, position, gap, 0.02 if lr is None else lr, weight_decay=0.0, betas=(0.5, 0.99))


def _radam(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    return TorchStep(torch.optim.RAdam, position, gap, 0.05 if lr is None else lr)


def _prodigy(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    try:
        from prodigyplus import ProdigyPlusScheduleFree
    except ImportError:
        raise RecipeError(
            "The optimizer 'prodigy' needs the package prodigy-plus-schedule-free; "
            "install it with pip, or choose original, adamw, radam or feedback."
        ) from None
    # Its averaged weights lag behind the iterate whose codes are judged, so schedule-free mode is off.
    options = {"use_schedulefree": False, "d0": 1e-4, "weight_decay": 0.0, "split_groups": False}
    return TorchStep(ProdigyPlusScheduleFree, position, gap, 1.0 if lr is None else lr, **options)


STEPPERS: Mapping[str, Callable[[Tensor, Tensor, float | None], Stepper]] = {
    "original": _adaptive,
    "adamw": _adamw,
    "radam": _radam,
    "prodigy": _prodigy,
}
