"""The quantization engine: tensors and files in; tensors, files and a report out. Knows no ComfyUI.

>>> from calibrated_rounding.quant import Recipe, quantize_file
>>> report = quantize_file("model.safetensors", "model_int8.safetensors", Recipe(format="int8_convrot"))
>>> print(report.summary())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import VERSION

if TYPE_CHECKING:
    from .public import *  # noqa: F403

__version__ = VERSION


def __getattr__(name: str) -> Any:
    """Import the names of `public` when the first of them is used (PEP 562).

    Importing this package alone imports nothing, so that ``python -m quant`` works in a checkout: see `__main__`.
    """
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".public", __name__), name)
