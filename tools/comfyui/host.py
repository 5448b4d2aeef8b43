"""An installed ComfyUI: where it is, and functions of this checkout that its interpreter runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkout import PACK
from .values import read_values, write_values

OLDEST = (0, 27)
RUNNER = Path(__file__).parent / "inside" / "runner.py"
INTERPRETERS = tuple(f"{env}/{python}" for env in (".venv", "venv") for python in ("bin/python", "Scripts/python.exe"))

FP8_COMPUTE = "--supports-fp8-compute"
"""Option of ComfyUI that makes FP8 layers quantize their inputs, as they do on a GPU with FP8 units."""


class HostMissing(Exception):
    """There is no ComfyUI to use; the message says why."""


class HostError(AssertionError):
    """ComfyUI refused or failed; the message ends with its log."""


@dataclass(frozen=True)
class Host:
    """An installed ComfyUI."""

    path: Path
    """Folder of ComfyUI."""
    python: Path
    """Interpreter that runs it."""
    version: str

    def call(
        self, function: str, /, *, options: Sequence[str] = (), timeout: float = 600, **inputs: Any
    ) -> dict[str, Any]:
        """Call a function of this checkout in a new process of ComfyUI's interpreter.

        It runs on the CPU and under inference mode. Its module may import ComfyUI's, and this checkout's as
        ``calibrated_rounding...``; the pack's nodes are loaded only if it loads them (inside/pack.py).

        Args:
            function: "module:function", the module named from the checkout's root.
            options: More of ComfyUI's command line.
            timeout: Seconds until the process is ended.
            **inputs: The function's arguments: tensors, paths and whatever JSON holds, at any depth.

        Returns:
            The dict that the function returns; its values are of the same kinds.

        Raises:
            HostError: The function raised, or the process took too long.
        """
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder)
            write_values(job / "inputs", inputs)
            log = job / "log.txt"
            command = list(map(str, (self.python, RUNNER, self.path, job, function, *options)))
            with log.open("w", encoding="utf-8") as file:
                try:
                    status = subprocess.run(
                        command, cwd=job, env=comfyui_environment(), stdout=file, stderr=file, timeout=timeout
                    ).returncode
                except subprocess.TimeoutExpired:
                    raise HostError(f"{function} did not end within {timeout:.0f} s.\n{read_tail(log)}") from None
            if status != 0:
                raise HostError(f"{function} failed ({status}).\n{read_tail(log)}")
            return read_values(job / "outputs")


def find_host(environment: Mapping[str, str] = os.environ) -> Host:
    """Find the ComfyUI named by COMFYUI_PATH, else the one that the pack is installed in, else ``~/ComfyUI``.

    Raises:
        HostMissing: There is none, it is too old, or its interpreter is not found.
    """
    named = environment.get("COMFYUI_PATH")
    places = [Path(named).expanduser()] if named else [PACK.parents[1], Path.home() / "ComfyUI"]
    path = next((place for place in places if (place / "comfyui_version.py").is_file()), None)
    if path is None and named:
        raise HostMissing(f"no ComfyUI at {named}, which COMFYUI_PATH names")
    if path is None:
        raise HostMissing("no ComfyUI found (COMFYUI_PATH, the folder that the pack is installed in, ~/ComfyUI)")
    version = _read_version(path)
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise HostMissing(f"ComfyUI {version} at {path} is older than {'.'.join(map(str, OLDEST))}")
    return Host(path, _find_interpreter(path, environment.get("COMFYUI_PYTHON")), version)


def comfyui_environment() -> dict[str, str]:
    """Copy this process's environment without what would lead ComfyUI to this checkout or another interpreter."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # Threads that wait at full speed starve whatever else runs on a machine of few cores.
    return {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"} | kept


def read_tail(log: Path, characters: int = 6000) -> str:
    """Read the end of a log."""
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]


def _read_version(path: Path) -> str:
    match = re.search(r'__version__ = "(\d+\.\d+[^"]*)"', (path / "comfyui_version.py").read_text(encoding="utf-8"))
    if match is None:
        raise HostMissing(f"the version of the ComfyUI at {path} cannot be read")
    return match[1]


def _find_interpreter(path: Path, named: str | None) -> Path:
    if named:
        executable = shutil.which(named)
        if executable is None:
            raise HostMissing(f"COMFYUI_PYTHON is {named}, which cannot be run")
        return Path(executable)
    for python in INTERPRETERS:
        if (path / python).is_file():
            return path / python
    raise HostMissing(f"ComfyUI at {path} has no .venv or venv; name its interpreter in COMFYUI_PYTHON")
