"""Whether a GPU has room for what is measured on it."""

from __future__ import annotations

import torch


def fits(nbytes: int, device: torch.device) -> bool:
    """Return whether so much memory is free on a GPU, with what torch holds and does not use; always on the CPU."""
    if device.type != "cuda":
        return True
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return nbytes <= torch.cuda.mem_get_info(device)[0] + unused


def describe_size(nbytes: int) -> str:
    """Return a size in GiB with one decimal."""
    return f"{nbytes / 2**30:.1f} GiB"
