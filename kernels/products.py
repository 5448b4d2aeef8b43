"""Chooses how a product of codes runs on a GPU, from the tables and from what first use has shown."""

from __future__ import annotations

from dataclasses import replace

import torch

from . import cases
from .cases import ProductOutputs
from .checks import BLOCKS
from .first_use import is_usable
from .tables import KernelConfig, choose_config
from .tiles import GemmShape

KERNEL_NAMES = {
    (backend, block): f"{title} product, {'row scales' if block is None else f'block {block}'}"
    for backend, title in (("triton", "fixed"), ("triton_v2", "persistent"))
    for block in (None, *BLOCKS)
}
"""Names in the log, by backend and scale block."""


def choose_product(
    backend: str, shape: GemmShape, outputs: ProductOutputs, device: torch.device
) -> KernelConfig | None:
    """Choose how to run a product, and check the kernel at its first use.

    Args:
        backend: "triton", "triton_v2", or "auto" for the fastest in the tables.
        shape: Of the product.
        outputs: How its results are stored.
        device: A GPU, or the CPU for Triton's interpreter.

    Returns:
        The configuration; None if its kernel is disabled.

    Raises:
        KernelError: The kernel is wrong, and Triton was asked for by name.
    """
    from .gpu.device import get_device_info  # needs Triton

    config = choose_config(backend, shape, get_device_info(device))
    if outputs.quantized and shape.block and config.tile.columns < shape.block:
        config = replace(config, tile=replace(config.tile, columns=shape.block))
    name = KERNEL_NAMES[config.backend, shape.block]
    variant = config.tile, outputs, shape.k % config.tile.depth == 0
    usable = is_usable(name, device, backend, variant, lambda: [cases.product(config, shape, outputs, device)])
    return config if usable else None
