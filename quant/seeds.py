"""Seeds that do not depend on the order in which layers are processed."""

from __future__ import annotations

import zlib


def layer_seed(name: str, seed: int) -> int:
    """A seed of its own for each layer, whatever the order in which they are done."""
    return zlib.crc32(name.encode()) ^ seed
