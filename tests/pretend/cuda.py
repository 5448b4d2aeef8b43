"""Pretend CUDA devices: everything that `quant` does on ``cuda:0`` runs on the CPU, and is counted.

    with PretendCuda() as cuda:
        quantize_file(source, target, recipe, device="cuda:0")
    assert cuda.ledger.wait_count <= 3, cuda.ledger

Operands on two devices raise as CUDA does, and so do operations on FP8 tensors that CUDA does not have. Kernels are the
eager ones. `PretendCuda(count=2)` is two devices, which share the ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from calibrated_rounding.kernels.backend import kernel_backend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .ledger import Ledger
from .tensor import PretendTensor, find_index, handlers, is_device, unwrap

MEMORY = 1 << 34

WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "bincount"),
    *("_linalg_check_errors", "_linalg_svd", "linalg_cholesky_ex", "repeat_interleave"),
}
"""Operations for whose result, or its shape, the CPU waits."""

VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "detach", "expand", "as_strided"),
    *("unsqueeze", "squeeze", "alias", "diagonal", "split", "split_with_sizes", "unbind", "unfold", "lift_fresh"),
    *("_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}
"""Operations that launch nothing."""

COPIES = {"copy_", "_to_copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

STRICT = {
    *("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "addmv", "addr", "addr_", "dot", "cat", "stack", "gather"),
    *("index_select", "linalg_qr", "linalg_solve_triangular", "linalg_eigh"),
}
"""Operations that take no scalar from the CPU either."""

FLOAT8 = {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}
ON_FLOAT8 = VIEWS | COPIES | {"clone", "fill_", "zero_", "zeros", "zeros_like", "new_zeros"}
"""Operations on FP8 tensors that CUDA has had since PyTorch 2.7."""


class PretendCuda(TorchDispatchMode):
    """The devices, for a with-block."""

    def __init__(self, memory: int = MEMORY, count: int = 1) -> None:
        super().__init__()
        self.ledger = Ledger()
        self._memory, self._count_devices = memory, count
        self._patches = ExitStack()

    def __enter__(self) -> PretendCuda:
        answers = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: self._count_devices,
            "current_device": lambda: 0,
            "synchronize": lambda device=None: None,
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "mem_get_info": lambda device=None: (self._free, self._memory),
            "get_rng_state": lambda device=0: torch.get_rng_state(),
            "set_rng_state": lambda state, device=0: None,
        }
        for name, answer in answers.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, answer))
        # torch makes these past every mode.
        self._patches.enter_context(mock.patch.object(torch, "tensor", _make_tensor))
        self._patches.enter_context(kernel_backend("eager"))
        self._patches.enter_context(mock.patch.object(threading.Thread, "run", self._reach(threading.Thread.run)))
        handlers.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        handlers.remove(self)
        self._patches.close()

    def _reach(self, run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
        """Let threads that are started within the block make tensors on the devices; a mode is of one thread."""

        def run_on_devices(thread: threading.Thread) -> None:
            with _ThreadMode(self):
                run(thread)

        return run_on_devices

    @property
    def _free(self) -> int:
        return self._memory - self.ledger.memory.live

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return self.handle(func, args, dict(kwargs or {}))

    def handle(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Carry out one operation of torch, on whichever device it is."""
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        others = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
        device = kwargs.get("device")
        if not ours and (device is None or not is_device(device)):
            return func(*args, **kwargs)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        index = find_index(device) if device is not None else (args[0] if name == "copy_" else ours[0]).index
        down = bool(ours) and device is not None and not is_device(device)
        down |= name == "copy_" and not isinstance(args[0], PretendTensor)
        self._refuse(name, tensors, others)
        self._count(name, args, tensors, others, down)
        results = func(*unwrap(args), **unwrap(kwargs))
        if down:
            return args[0] if name == "copy_" else _own(results, ours)
        return self._wrap(results, ours, index)

    def _wrap(self, results: Any, ours: Sequence[PretendTensor], index: int) -> Any:
        """Put results on a device; an operand that was changed in place stays the same tensor."""
        operands = {id(tensor.values): tensor for tensor in ours}

        def wrap(values: torch.Tensor) -> torch.Tensor:
            if id(values) in operands:
                operand = operands[id(values)]
                assert operand.shape == values.shape, "the pretend device cannot reshape in place"
                return operand
            tensor = PretendTensor(values, index)
            self.ledger.memory.hold(tensor, values)
            return tensor

        return tree_map_only(torch.Tensor, wrap, results)

    def _refuse(self, name: str, tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
        found = sorted({str(tensor.device) for tensor in tensors if isinstance(tensor, PretendTensor)})
        free = name in COPIES or name in INDEXING or name == "lift_fresh"
        if not free and found and any(x.dim() or name in STRICT for x in others):
            found.append("cpu")
        if len(found) > 1 and name not in COPIES:
            names = " and ".join(found)
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {names} (pretend: {name})")
        if name not in ON_FLOAT8 and any(tensor.dtype in FLOAT8 for tensor in tensors):
            raise NotImplementedError(f"CUDA has no {name} for FP8")

    def _count(
        self,
        name: str,
        args: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        others: Sequence[torch.Tensor],
        down: bool,
    ) -> None:
        self.ledger.launches += name not in VIEWS
        if name in COPIES and down:
            self.ledger.wait("copy to the CPU")
            self.ledger.bytes_down += tensors[-1].nbytes
        elif name in COPIES:
            self.ledger.bytes_up += sum(tensor.nbytes for tensor in others)
        elif name in WAITING:
            self.ledger.wait(name)
        elif name in INDEXING:
            indices = [index for index in args[1] or () if isinstance(index, torch.Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.ledger.wait(f"{name} by a mask")
            elif any(not isinstance(index, PretendTensor) for index in indices):
                self.ledger.wait(f"{name} by indices on the CPU")


class _ThreadMode(TorchDispatchMode):
    """The mode of another thread."""

    def __init__(self, cuda: PretendCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return self._cuda.handle(func, args, dict(kwargs or {}))


_torch_tensor = torch.tensor


def _make_tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """`torch.tensor`, which copies to the device what it made on the CPU."""
    if device is None or not is_device(device):
        return _torch_tensor(data, device=device, **options)
    return _torch_tensor(data, **options).to(device)


def _own(results: Any, ours: Sequence[PretendTensor]) -> Any:
    """Copy a result that is an operand's own values: the CPU has memory of its own."""
    held = [tensor.values for tensor in ours]
    return tree_map_only(torch.Tensor, lambda x: x.clone() if any(x is values for values in held) else x, results)
