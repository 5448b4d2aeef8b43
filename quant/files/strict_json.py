"""JSON that comes from a file of unknown origin: every way to be malformed is a CheckpointError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import CheckpointError


def parse_object(raw: bytes, path: Path, what: str) -> dict[str, Any]:
    """Parse UTF-8 JSON whose top value is an object; `what` names the text in the message ("the header").

    Raises CheckpointError when it is not UTF-8, not JSON, nested beyond reason, not an object, names a key twice, or
    holds a string that UTF-8 cannot express.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys)
    except _DuplicateKey as error:
        raise CheckpointError(f"{path}: {what} names {quoted(error.args[0])} twice.") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: {what} is not valid JSON; the file is damaged, fetch it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {what} is not a JSON object; the file is damaged, fetch it again.")
    return value


def quoted(value: object) -> str:
    """`value` fit for one line of a message: escaped, in quotes if a string, and never long."""
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:180]}... ({len(text)} characters)"


def is_text(value: object) -> TypeGuard[str]:
    """Whether `value` is a string that UTF-8 can express (JSON's escapes can smuggle in lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _DuplicateKey(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateKey(key)
        if not is_text(key):
            raise ValueError(key)
        result[key] = value
    return result
