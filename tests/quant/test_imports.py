"""What importing and running the engine brings in: neither comfy-kitchen nor Triton, so that both may be missing."""

from __future__ import annotations

import subprocess
import sys

from calibrated_rounding import quant
from calibrated_rounding.quant import public

ABSENT = """
import sys

ABSENT = {"comfy_kitchen", "triton", "packaging", "prodigyplus"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocker())
"""

RUN = """
import torch
from calibrated_rounding.quant import InputStatistics, Recipe, quantize_state_dict
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.recipe import SvdSettings

weights = {"a.weight": torch.randn(128, 128)}
statistics = {"a": InputStatistics(rows=torch.randn(64, 128))}
for name in FORMATS:
    for rounding in ("nearest", "svd", "calibrated"):
        settings = SvdSettings(optimizer="feedback")
        recipe = Recipe(format=name, profile="generic", rounding=rounding, svd=settings)
        tensors, _ = quantize_state_dict(weights, recipe, statistics=statistics)
        quantize_state_dict(tensors, Recipe(profile="generic", dequantize=True))
print("done")
"""

WALK = """
import pkgutil
from importlib import import_module
from calibrated_rounding import kernels, quant

for package in (quant, kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(("calibrated_rounding.kernels.gpu", "calibrated_rounding.kernels.layouts")):
            if not module.name.endswith("__main__"):
                import_module(module.name)
print("done")
"""


def run_without_packages(code: str) -> str:
    """Run code where comfy-kitchen, Triton and packages that nothing declares cannot be imported."""
    done = subprocess.run([sys.executable, "-c", ABSENT + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_format_and_rounding_runs_without_comfy_kitchen() -> None:
    assert run_without_packages(RUN) == "done\n"


def test_every_module_imports_without_comfy_kitchen() -> None:
    assert run_without_packages(WALK) == "done\n"


def test_importing_the_packages_imports_no_torch() -> None:
    code = "import sys; from calibrated_rounding import kernels, quant; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_package_exports_public_names() -> None:
    assert all(getattr(quant, name) is getattr(public, name) for name in public.__all__)
    assert not hasattr(quant, "no_such_name")
