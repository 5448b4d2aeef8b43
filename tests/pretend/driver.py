"""A pretend GPU for Triton: kernels are compiled to machine code for its architecture, and noted instead of run.

    with PretendDriver(89) as driver:
        gpu.act_quant(x, 128)  # x on the CPU
    assert driver.launches[0].spilled == 0

Everything up to the launch is Triton's own: binding, specialization, compilation, and the check that shared memory
suffices.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import triton
from calibrated_rounding.kernels import products
from calibrated_rounding.kernels.gpu import device, product
from calibrated_rounding.kernels.tiles import DeviceInfo
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED = {75: 65_536, 80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory of a program, by architecture (CUDA C++ Programming Guide, technical specifications)."""
PROCESSORS = 100
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ )?(WARPGROUP\.DEPBAR|[A-Z0-9]+)[\w.]*([^;]*);")
"""A line of machine code: name without suffixes, and operands."""
LARGEST_GRID = (2**31 - 1, 65_535, 65_535)


@dataclass(kw_only=True)
class Launch:
    """A kernel that would have been started."""

    name: str
    constants: Mapping[str, Any]
    shared: int
    """Bytes of shared memory."""
    registers: int
    spilled: int
    """Bytes of registers that did not fit, in each thread."""
    fused: bool
    """Whether the compiler may fuse products with sums."""
    binary: bytes = field(repr=False)

    @cached_property
    def instructions(self) -> Counter[str]:
        """How often each instruction stands in the machine code, by its name without suffixes."""
        return Counter(name for name, _ in self._disassembled)

    @cached_property
    def pending(self) -> int | None:
        """Most products that are still running where the code waits for others; None where it does not wait (sm90)."""
        waits = [int(operands.split(",")[1], 0) for name, operands in self._disassembled if name == "WARPGROUP.DEPBAR"]
        return max(waits, default=None)

    @cached_property
    def _disassembled(self) -> list[tuple[str, str]]:
        matches = INSTRUCTION.finditer(_read_binary(self.binary, "-sass"))
        return [(match[1], match[2]) for match in matches]


def _read_binary(binary: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([TOOL, option, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


class PretendDriver:
    """The GPU, for a with-block; ``arch`` is 89 for compute capability 8.9."""

    def __init__(self, arch: int) -> None:
        self.arch, self.utils, self.launches = arch, self, list[Launch]()
        self._before: Any = None
        info = DeviceInfo(arch=f"sm{arch}", processors=PROCESSORS, shared=SHARED[arch], descriptors=arch >= 90)
        self._replacements = [
            mock.patch.object(device, "get_device_info", lambda device: info),
            mock.patch.object(product, "get_device_info", lambda device: info),
            mock.patch.object(product, "_FITTING", {}),
            # Kernels are not run, so their results are not the reference's.
            mock.patch.object(products, "is_usable", lambda *arguments: True),
        ]

    def __enter__(self) -> PretendDriver:
        self._before = driver._active
        driver.set_active(self)
        for replacement in self._replacements:
            replacement.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replacement in self._replacements:
            replacement.stop()
        for name, module in list(sys.modules.items()):
            if ".gpu.jit." in name:
                for kernel in vars(module).values():
                    if isinstance(kernel, triton.JITFunction):
                        kernel.device_caches.clear()  # they hold this architecture's code
        gc.collect()  # compiled kernels ask their driver to unload them
        driver._active = self._before

    # What Triton asks of a driver, and of its `utils`.

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED[self.arch], "multiprocessor_count": PROCESSORS, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        text = _read_binary(binary, "-res-usage")
        registers, spilled = (
            int(match[1]) for what in ("REG", "STACK") if (match := re.search(rf"{what}:(\d+)", text))
        )
        return object(), (registers, spilled, binary), registers, spilled // 4, 1024

    def unload_module(self, module: Any) -> None:
        """Nothing was loaded."""

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: Any, function: Any, *others: Any) -> None:
            assert all(0 < size <= most for size, most in zip((x, y, z), LARGEST_GRID, strict=True)), (x, y, z)
            arguments = others[len(others) - len(source.fn.arg_names) :]
            named = dict(zip(source.fn.arg_names, arguments, strict=True))
            self.launches.append(
                Launch(
                    name=source.fn.__name__,
                    constants={name: value for name, value in named.items() if name.isupper() and len(name) > 1},
                    shared=metadata.shared,
                    registers=function[0],
                    spilled=function[1],
                    fused=metadata.enable_fp_fusion,
                    binary=function[2],
                )
            )

        return launch
