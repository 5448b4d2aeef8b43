"""Has ComfyUI's own ``int8_tensorwise`` layers computed by the pack's per-row kernels, by comfy-kitchen's registry.

That holds for the whole process and is off unless the environment variable `VARIABLE` is "on", or it is "auto" (the
default) and a measurement in the table of this GPU's architecture has found the pack's kernels faster. None is shipped.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_kitchen import registry
from comfy_kitchen.constraints import FunctionConstraints, ParamConstraint
from torch import Tensor

from .. import ops, tables
from ..checks import ACTIVATIONS, GROUPS, LONGEST
from ..errors import KernelError

VARIABLE = "CALIBRATED_ROUNDING_STOCK_INT8"
logger = logging.getLogger(__name__)

BACKEND = "calibrated_rounding"
"""The pack's name among comfy-kitchen's backends."""

FUNCTION = "int8_linear"
SPEEDUP = "stock_int8_speedup"
"""Key of a table: comfy-kitchen's time over the pack's, for the products of a diffusion model."""


def apply_setting() -> None:
    """Do what the environment variable says. Raises KernelError for a value that it does not know."""
    chosen = os.environ.get(VARIABLE, "auto")
    if chosen not in ACTIONS:
        raise KernelError(f"{VARIABLE} is {chosen!r}; choose {', '.join(ACTIONS)}.")
    ACTIONS[chosen]()


def enable() -> None:
    """Put the pack before comfy-kitchen's other backends; what it does not compute goes on to them."""
    constraints = FunctionConstraints({"x": ParamConstraint(dtypes=frozenset(ACTIVATIONS))})
    registry.register(BACKEND, sys.modules[__name__], {FUNCTION: constraints})
    registry.set_priority([BACKEND, *_others()])
    logger.info("calibrated-rounding: ComfyUI's own int8_tensorwise layers are computed by this pack's kernels.")


def disable() -> None:
    """Undo `enable`."""
    registry.set_priority(_others())


def enable_if_faster() -> None:
    """`enable` where this GPU's table holds a measured speed-up above 1, else `disable`."""
    (enable if _measured_speedup() > 1 else disable)()


ACTIONS: Mapping[str, Callable[[], None]] = {"auto": enable_if_faster, "on": enable, "off": disable}


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    convrot: bool = False,
    convrot_groupsize: int = 256,
    **fused: Any,
) -> Tensor:
    """comfy-kitchen's function of this name. ``fused``: what newer versions do on the way; left to others if used."""
    group = convrot_groupsize if convrot else None
    scale = weight_scale.reshape(()) if weight_scale.numel() == 1 else weight_scale
    plain = not any(isinstance(value, (str, Tensor)) for value in fused.values())
    known = (group is None or group in GROUPS) and x.shape[-1] <= LONGEST and scale.shape in ((), (weight.shape[0], 1))
    if plain and known and out_dtype == x.dtype:
        return ops.row_linear(x, weight, scale, bias, group)
    given = dict(x=x, weight=weight, weight_scale=weight_scale, bias=bias, out_dtype=out_dtype, convrot=convrot)
    result: Tensor = _next({**given, "convrot_groupsize": convrot_groupsize, **fused})
    return result


def _next(arguments: Mapping[str, Any]) -> Any:
    """The result of the first other backend that takes the arguments."""
    takes = (name for name in _others() if registry.validate_backend_for_call(name, FUNCTION, arguments).success)
    return registry.get_implementation(FUNCTION, backend=next(takes, "eager"))(**arguments)


def _others() -> list[str]:
    return [name for name in registry._priority if name != BACKEND]


def _measured_speedup() -> float:
    """As this GPU's table says; 0 where there is no GPU, no Triton, no table or no such entry."""
    try:
        table = json.loads((tables.PACKAGED / f"{_architecture()}.json").read_text(encoding="utf-8"))
        return float(table[SPEEDUP])
    except (ImportError, OSError, ValueError, KeyError, TypeError):
        return 0.0


def _architecture() -> str:
    """What the GPU's table is named by; empty without a GPU."""
    if not torch.cuda.is_available():
        return ""
    from ..gpu.device import device_of

    return device_of(torch.device("cuda")).arch
