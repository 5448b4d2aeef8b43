"""The quantization engine: tensors and files in; tensors, files and a report out. Knows no ComfyUI.

>>> from calibrated_rounding.quant import Recipe, quantize_file
>>> report = quantize_file("model.safetensors", "model_int8.safetensors", Recipe(format="int8_convrot"))
>>> print(report.summary())
"""

from .api import plan_file, quantize_file, quantize_state_dict, quantize_tensor
from .calibration.statistics import InputStatistics
from .errors import AlreadyQuantizedError, Cancelled, CheckpointError, LayerError, ProfileError, QuantError, RecipeError
from .recipe import Recipe, SvdSettings
from .reports.progress import Progress
from .reports.report import KeptReport, LayerReport, Report
from .version import VERSION

__version__ = VERSION
__all__ = [
    "AlreadyQuantizedError",
    "Cancelled",
    "CheckpointError",
    "InputStatistics",
    "KeptReport",
    "LayerError",
    "LayerReport",
    "ProfileError",
    "Progress",
    "QuantError",
    "Recipe",
    "RecipeError",
    "Report",
    "SvdSettings",
    "plan_file",
    "quantize_file",
    "quantize_state_dict",
    "quantize_tensor",
]
