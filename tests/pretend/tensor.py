"""Tensors that compute on the CPU and say that they are on ``cuda:0``, or on another CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("cuda", 0)
"""The first device."""


class Handler(Protocol):
    """Carries out the operations on pretend tensors."""

    def handle(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any: ...


handlers: list[Handler] = []
"""The devices that are in use, the current one last. Threads share them, as they share a GPU."""


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of the module of a device."""

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """The generator of the CPU is the only one."""

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def get_rng_state(device: object = 0) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: object = 0) -> None:
        """As `manual_seed_all`."""


# Any build of torch has guards for this device, and no build has CUDA's without CUDA.
backend_registration._setup_privateuseone_for_python_backend("pretend", _Module())
INSIDE = "pretend"
"""Type of the device on which torch's own code takes the tensors to be."""


def is_device(device: object) -> bool:
    """Whether a device is a pretend one, under either of its names."""
    return torch.device(device).type in (DEVICE.type, INSIDE)  # type: ignore[call-overload]


def find_index(device: object) -> int:
    """The index of a pretend device."""
    return torch.device(device).index or 0  # type: ignore[call-overload]


def to_inside(value: Any) -> Any:
    """Replace a pretend device by the name that torch's own code knows it by."""
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith(DEVICE.type)):
        return torch.device(INSIDE, find_index(value)) if is_device(value) else value
    return value


class PretendTensor(torch.Tensor):
    """A tensor on a pretend device; `values` holds its values on the CPU."""

    values: torch.Tensor
    index: int
    """Of the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor, index: int = 0) -> PretendTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(INSIDE, index),
        )
        tensor.values, tensor.index = values, index
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Threads that the device's mode does not reach come here."""
        if not handlers:
            raise RuntimeError(f"{func} on a tensor of a pretend device that is closed")
        return handlers[-1].handle(func, args, dict(kwargs or {}))

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(DEVICE.type, self.index)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        # Else a tensor would be copied to the device that it is on.
        return super().to(*map(to_inside, args), **{name: to_inside(value) for name, value in kwargs.items()})

    def __matmul__(self, other: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        # torch's own product with a vector reshapes its result in place, past the wrapper.
        return self.unsqueeze(0).mm(other).squeeze(0) if self.dim() == 1 else super().__matmul__(other)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=self.dtype).to(self.device)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({list(self.shape)}, {self.dtype})"


def unwrap(tree: Any) -> Any:
    """Replace pretend tensors within a tree of arguments by their values."""
    return tree_map_only(PretendTensor, lambda tensor: tensor.values, tree)
