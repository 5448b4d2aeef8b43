"""comfy-kitchen's own tests of QuantizedTensor, run with the pack's layout registered, if a checkout is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "COMFY_KITCHEN_PATH"


@pytest.mark.parametrize("name", ["test_tensor.py", "test_int8.py"])
def test_comfy_kitchen_tests_pass_with_layout(name: str, tmp_path: Path) -> None:
    checkout = os.environ.get(VARIABLE)
    if checkout is None:
        pytest.skip(f"{VARIABLE} names no checkout of comfy-kitchen, whose wheel has no tests")
    tests = Path(checkout) / "tests" / name
    plugin = ("-p", "calibrated_rounding.tests.kernels.layouts.registered", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", *plugin, "--import-mode=importlib", str(tests)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
