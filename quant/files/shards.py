"""The index of a checkpoint in several files: which shard holds which tensor."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path, PureWindowsPath

from ..errors import CheckpointError
from .header import MAX_HEADER_BYTES, refuse_too_many
from .source_file import SourceFile
from .strict_json import parse_object, quoted

INDEX_SUFFIX = ".safetensors.index.json"
_SHARD_NAME = re.compile(r"(?:part[-_ ]?(?=\d+of)|(?=\d+[-_ ]of[-_ ]))(\d+)[-_ ]?of[-_ ]?(\d+)\.\w+$", re.IGNORECASE)


def read_weight_map(path: Path) -> dict[str, str]:
    """Read a `*.safetensors.index.json`: tensor name -> shard, a relative path that stays within the folder.

    Raises CheckpointError when the file is not such an index or a shard's path leads elsewhere.
    """
    with SourceFile(path) as source:
        if source.size > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} is too large for an index ({source.size} bytes).")
        index = parse_object(bytes(source.read(0, source.size)), path, "the index")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path} has no weight_map, so it is not an index of safetensors shards.")
    refuse_too_many(len(weight_map), path)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _stays_within(shard):
            raise CheckpointError(f"{path} places tensor {quoted(name)} in {quoted(shard)}, not a file beside it.")
    return weight_map


def read_shard_number(name: str) -> str | None:
    """Which shard of how many a file is, by its name; None: the name says nothing of it.

    >>> read_shard_number("model-00001-of-00003.safetensors")
    '1 of 3 shards'
    """
    numbers = _SHARD_NAME.search(name)
    return f"{int(numbers[1])} of {int(numbers[2])} shards" if numbers and int(numbers[2]) > 1 else None


def find_siblings(path: Path) -> str | None:
    """Which shards belong to the file at ``path``, by its name or an index beside it; None: it is the whole model."""
    numbered = read_shard_number(path.name)
    if numbered is not None:
        return numbered
    with suppress(OSError):
        for index in sorted(path.parent.glob(f"*{INDEX_SUFFIX}")):
            with suppress(CheckpointError):
                shards = set(read_weight_map(index).values())
                if path.name in shards and len(shards) > 1:
                    return f"one of the {len(shards)} shards of {index.name}"
    return None


def _stays_within(shard: str) -> bool:
    # By the name alone: a download cache keeps its shards as symbolic links that lead out of the folder.
    parts = PureWindowsPath(shard)  # splits at both kinds of slash and knows drives
    return bool(parts.name) and not parts.anchor and ".." not in parts.parts and shard.isprintable()
