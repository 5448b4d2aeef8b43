"""Optimizers of the `svd` method: each moves a continuous position along the gradient of the error on the grid.

They differ only in the step. Every step size is annealed linearly to zero, because codes keep flipping until steps are
small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import RecipeError


class Stepper(Protocol):
    """Moves a position, float32 ``[N, K]`` in units of the weight, in place."""

    def step(self, gradient: Tensor, loss: float, progress: float) -> None:
        """Take one step.

        Args:
            gradient: Gradient of the loss at the codes that the position rounds to, ``[N, K]``.
            loss: Loss of these codes, relative to nearest rounding.
            progress: From 0 at the first step to 1 after the last.
        """


class AdaptiveStepper:
    """Gradient descent whose step size halves whenever the loss is above the loss of nearest rounding.

    The objective's curvature is 1 (its two bases are orthonormal), so the step size needs no tuning by layer: below 1
    the continuous problem converges.
    """

    def __init__(self, position: Tensor, lr: float) -> None:
        self._position, self._lr = position, lr

    def step(self, gradient: Tensor, loss: float, progress: float) -> None:
        if loss > 1.0:
            self._lr *= 0.5
        self._position.sub_(gradient, alpha=self._lr * (1.0 - progress))


class TorchStepper:
    """Any `torch.optim.Optimizer`, applied to offsets in units of the distance between grid points."""

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


def make_stepper(optimizer: str, position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    """Make the stepper of an optimizer.

    Args:
        optimizer: A key of `STEPPERS`.
        position: Where to start, float32 ``[N, K]``; the stepper moves it in place.
        gap: Distance between the two grid points around each weight, ``[N, K]``.
        lr: Size of the first step; None: the optimizer's own default.

    Raises:
        RecipeError: The optimizer's package is not installed.
    """
    return STEPPERS[optimizer](position, gap, lr)


def _make_adaptive(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    return AdaptiveStepper(position, 0.3 if lr is None else lr)


def _make_adamw(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    lr = 0.02 if lr is None else lr
    return TorchStepper(torch.optim.AdamW, position, gap, lr, weight_decay=0.0, betas=(0.5, 0.99))


def _make_radam(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    return TorchStepper(torch.optim.RAdam, position, gap, 0.05 if lr is None else lr)


def _make_prodigy(position: Tensor, gap: Tensor, lr: float | None) -> Stepper:
    try:
        from prodigyplus import ProdigyPlusScheduleFree
    except ImportError:
        raise RecipeError(
            "The optimizer 'prodigy' needs the package prodigy-plus-schedule-free; "
            "install it with pip, or choose original, adamw, radam or feedback."
        ) from None
    # Its averaged weights lag behind the iterate whose codes are evaluated, so schedule-free mode is off.
    options = {"use_schedulefree": False, "d0": 1e-4, "weight_decay": 0.0, "split_groups": False}
    return TorchStepper(ProdigyPlusScheduleFree, position, gap, 1.0 if lr is None else lr, **options)


STEPPERS: Mapping[str, Callable[[Tensor, Tensor, float | None], Stepper]] = {
    "original": _make_adaptive,
    "adamw": _make_adamw,
    "radam": _make_radam,
    "prodigy": _make_prodigy,
}
