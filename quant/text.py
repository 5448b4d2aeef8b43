"""Tables and lines of text.

Names come from files, so nothing in them may break a line or steer a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MOST_NAMES = 4
LONGEST_VALUE = 60


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Rows of cells as aligned lines, cells escaped; the columns in ``right`` are aligned to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(_cells(row, widths, right)).rstrip() for row in cells]


def markdown_table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Rows of cells, the first of them the titles, as the lines of a Markdown table that is aligned as text as well.

    Args:
        rows: At least one; cells are escaped.
        right: Columns that are aligned to the right.
    """
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = [f"{'-' * (width - 1)}:" if i in right else "-" * width for i, width in enumerate(widths)]
    return [f"| {' | '.join(_cells(row, widths, right))} |" for row in (cells[0], rule, *cells[1:])]


def printable(text: str) -> str:
    """``text`` as one line: line breaks and all that a terminal would obey as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def clipped(text: str, length: int) -> str:
    """``text`` cut to ``length`` characters, with the number of all of them."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def show_value(value: object) -> str:
    """A value as a message shows it: short, and on one line."""
    try:
        text = f"'{value}'" if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # too many digits to print, or lists in lists
        return f"of type {type(value).__name__}"
    return printable(text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}...")


def _cells(row: Sequence[str], widths: Sequence[int], right: frozenset[int]) -> Iterable[str]:
    for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield cell.rjust(width) if i in right else cell.ljust(width)


def megabytes(count: int) -> str:
    """Bytes in 10^6 bytes."""
    return f"{count / 1e6:.2f}"


def percent(share: float, digits: int = 2) -> str:
    """An error or another share: ``2.10%``."""
    return f"{share:.{digits}%}"


def counted(count: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def dimensions(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def shortened(names: Sequence[str]) -> str:
    """The first `MOST_NAMES` names and the number of the others."""
    rest = len(names) - MOST_NAMES
    return ", ".join(map(printable, names[:MOST_NAMES])) + (f" and {rest} more" if rest > 0 else "")


def grouped(entries: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each different text, with the names that it applies to; entries are (text, name)."""
    groups: dict[str, list[str]] = {}
    for text, name in entries:
        groups.setdefault(text, []).append(name)
    return [f"{printable(text)} ({len(names)}): {shortened(names)}" for text, names in groups.items()]


def kept_lines(kept: Iterable[tuple[str, str, str]], removed: Mapping[str, str]) -> list[str]:
    """Tensors that are not quantized, a line for each reason.

    Args:
        kept: name, reason, and the source of the reason (or an empty text) of every kept tensor.
        removed: the reason of every removed tensor, by name.
    """
    reasons = ((f"kept: {reason}" + (f" [{source}]" if source else ""), name) for name, reason, source in kept)
    return grouped([*reasons, *((f"removed: {reason}", name) for name, reason in removed.items())])
