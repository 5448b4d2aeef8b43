"""Lets the pack's per-row kernels compute ComfyUI's own ``int8_tensorwise`` layers, through comfy-kitchen's registry.

The setting holds for the whole process. It is off unless the environment variable `VARIABLE` is "on", or "auto" (the
default) and the tuned table of this GPU's architecture says that the pack's kernels are faster. No table is shipped.
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
from ..checks import ACTIVATION_DTYPES, GROUPS, MAX_K
from ..errors import KernelError

VARIABLE = "CALIBRATED_ROUNDING_STOCK_INT8"
logger = logging.getLogger(__name__)

BACKEND = "calibrated_rounding"
"""The pack's name among comfy-kitchen's backends."""

FUNCTION = "int8_linear"
SPEEDUP = "stock_int8_speedup"
"""Key in a table: comfy-kitchen's time over the pack's, for the products of a diffusion model."""


def apply_setting() -> None:
    """Apply the environment variable `VARIABLE`.

    Raises:
        KernelError: Its value is unknown.
    """
    chosen = os.environ.get(VARIABLE, "auto")
    if chosen not in ACTIONS:
        raise KernelError(f"{VARIABLE} is {chosen!r}; choose {', '.join(ACTIONS)}.")
    ACTIONS[chosen]()


def enable() -> None:
    """Give the pack priority over comfy-kitchen's other backends, which compute what the pack does not support."""
    constraints = FunctionConstraints({"x": ParamConstraint(dtypes=frozenset(ACTIVATION_DTYPES))})
    registry.register(BACKEND, sys.modules[__name__], {FUNCTION: constraints})
    registry.set_priority([BACKEND, *_list_others()])
    logger.info("calibrated-rounding: ComfyUI's own int8_tensorwise layers are computed by this pack's kernels.")


def disable() -> None:
    """Undo `enable`."""
    registry.set_priority(_list_others())


def enable_if_faster() -> None:
    """Call `enable` if this GPU's table holds a measured speed-up above 1, else `disable`."""
    (enable if _read_speedup() > 1 else disable)()


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
    """Replace comfy-kitchen's function of this name.

    Args:
        x: Activation ``[..., K]``.
        weight: Codes int8 ``[N, K]``.
        weight_scale: Float32, one or ``[N, 1]``.
        bias: ``[N]`` or None.
        out_dtype: Of the result.
        convrot: Rotate the activation first.
        convrot_groupsize: Group of the rotation.
        fused: Operations that newer versions fuse; calls that use any are left to the other backends.

    Returns:
        ``[..., N]`` in ``out_dtype``.
    """
    group = convrot_groupsize if convrot else None
    scale = weight_scale.reshape(()) if weight_scale.numel() == 1 else weight_scale
    plain = not any(isinstance(value, (str, Tensor)) for value in fused.values())
    fits = (group is None or group in GROUPS) and x.shape[-1] <= MAX_K and scale.shape in ((), (weight.shape[0], 1))
    if plain and fits and out_dtype == x.dtype:
        return ops.row_linear(x, weight, scale, bias, group)
    args = dict(x=x, weight=weight, weight_scale=weight_scale, bias=bias, out_dtype=out_dtype)
    result: Tensor = _call_next_backend(dict(args, convrot=convrot, convrot_groupsize=convrot_groupsize, **fused))
    return result


def _call_next_backend(args: Mapping[str, Any]) -> Any:
    """Call the first other backend that accepts the arguments."""
    accepting = (name for name in _list_others() if registry.validate_backend_for_call(name, FUNCTION, args).success)
    return registry.get_implementation(FUNCTION, backend=next(accepting, "eager"))(**args)


def _list_others() -> list[str]:
    return [name for name in registry._priority if name != BACKEND]


def _read_speedup() -> float:
    """Read the speed-up from this GPU's table; 0 without a GPU, Triton, a table or the entry."""
    try:
        table = json.loads((tables.PACKAGED / f"{_find_architecture()}.json").read_text(encoding="utf-8"))
        return float(table[SPEEDUP])
    except (ImportError, OSError, ValueError, KeyError, TypeError):
        return 0.0


def _find_architecture() -> str:
    """Return the GPU's architecture, which names its table; empty without a GPU."""
    if not torch.cuda.is_available():
        return ""
    from ..gpu.device import get_device_info

    return get_device_info(torch.device("cuda")).arch
