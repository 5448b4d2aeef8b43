"""Runs one job of `Host.call` in ComfyUI's interpreter: ``runner.py COMFYUI JOB MODULE:FUNCTION [OPTION...]``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

CHECKOUT = Path(__file__).resolve().parents[3]


def main(comfyui: str, job: Path, reference: str, *options: str) -> None:
    """Call a function with ``JOB/inputs`` and write its dict to ``JOB/outputs`` (values.py)."""
    sys.path[0] = comfyui  # in the place of this file's folder, as for ComfyUI's main.py
    sys.argv[1:] = ["--cpu", "--base-directory", str(job), *options]
    import comfy.options

    comfy.options.enable_args_parsing()
    import_checkout()
    from calibrated_rounding.tools.comfyui.values import read_values, write_values

    module, _, name = reference.partition(":")
    function = getattr(importlib.import_module(f"calibrated_rounding.{module}"), name)
    inputs = read_values(job / "inputs")
    with torch.inference_mode():
        outputs = function(**inputs)
    write_values(job / "outputs", outputs)


def import_checkout() -> ModuleType:
    """Import this checkout as the package ``calibrated_rounding``; its nodes are not imported by that."""
    spec = importlib.util.spec_from_file_location(
        "calibrated_rounding", CHECKOUT / "__init__.py", submodule_search_locations=[str(CHECKOUT)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["calibrated_rounding"] = package
    spec.loader.exec_module(package)
    return package


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
