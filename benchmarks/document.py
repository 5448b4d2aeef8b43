"""Write the tables of README.md and BENCHMARKS.md from the figures in benchmarks/results.

    python benchmarks/document.py

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``, as in MANUAL.md. A figure that a result file
lacks leaves its cell empty. tests/test_documents.py fails if a document differs from the result files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tools.manual import render

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
DOCUMENTS = ("README.md", "BENCHMARKS.md")

Figures = Mapping[str, Mapping[str, float | None]]
"""By case and metric, as a result file has them."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    case: str
    """The case in the result file; {} stands for the row's part."""
    cell: str
    """Format of the case's figures, by metric."""


@dataclass(frozen=True, kw_only=True)
class Table:
    results: str
    """Name of the result file."""
    head: str
    rows: Mapping[str, str]
    """Label of each row -> its part of the columns' cases."""
    columns: Sequence[Column]

    def format(self) -> str:
        figures = read_figures(self.results)
        lines = [[self.head, *(column.title for column in self.columns)], ["---"] * (1 + len(self.columns))]
        for label, row in self.rows.items():
            cells = (_format_cell(figures, column.case.format(row), column.cell) for column in self.columns)
            lines.append([label, *cells])
        return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)


def read_figures(results: str) -> Figures:
    """Read a result file by case and metric; older files say "peer" for convert-to-quant."""
    figures: dict[str, dict[str, float | None]] = {}
    for row in json.loads((RESULTS / f"{results}.json").read_text(encoding="utf-8"))["rows"]:
        case, metric = (row[key].replace("peer", "convert-to-quant") for key in ("case", "metric"))
        figures.setdefault(case, {})[metric] = row["value"]
    return figures


def update_tables(document: str) -> str:
    """Replace every table in a document's text."""
    return render(document, {name: table.format for name, table in TABLES.items()})


def _format_cell(figures: Figures, case: str, cell: str) -> str:
    try:
        return cell.format_map(figures.get(case, {}))
    except (KeyError, TypeError):  # not measured
        return ""


PSNR = "{mean PSNR of latents:.1f} dB"
LATENTS = PSNR + " ({relative error of latents:.4f})"
RATIO_A16, RATIO_A8 = "{W8A16 to nearest:.2f}", "{W8A8 to nearest:.2f}"
TIMED = ("int8_row", "int8_convrot", "float8_e4m3fn")
CASES = {
    **{name: name for name in ("int8_convrot", "int8_blockwise", "int8_row", "int8_tensor")},
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e4m3fn, FP8 units": "float8_e4m3fn, FP8 units",
    **{name: name for name in ("mxfp8", "float8_e5m2", "w6a8", "w4a8", "nvfp4")},
}
"""Label of each format -> its part of the cases in sampling.json."""


def bytes_per_weight(name: str) -> float:
    """Bytes that a format takes for each weight of a layer of 1,024 x 1,024, its scales included."""
    shape = (1024, 1024)
    layout = FORMATS[name].layout(shape).values()
    return sum(dtype.itemsize * prod(size) for dtype, size in layout) / prod(shape)


def _label(title: str) -> str:
    name, _, card = title.partition(", ")
    return f"`{name}`{f', {card}' if card else ''} ({bytes_per_weight(name):.2f})"


BY_CLOSENESS = {_label(title): case for title, case in CASES.items()}
FEW_BITS = ("w6a8", "w4a8", "nvfp4")
FEW_BITS_COLUMNS = (
    Column("W8A16, nearest", "{}, nearest", "{W8A16:.4f}"),
    Column("svd", "{}, svd", "{W8A16 to nearest:.2f}"),
    Column("svd, inputs", "{}, svd, inputs", "{W8A16 to nearest:.2f}"),
    Column("calibrated", "{}, calibrated", "{W8A16 to nearest:.2f}"),
    Column("worst layer", "{}, calibrated", "{W8A16 to nearest, worst:.2f}"),
    Column("inputs rounded, nearest", "{}, nearest", "{W8A8:.4f}"),
    Column("calibrated", "{}, calibrated", "{W8A8 to nearest:.2f}"),
)
GROUPED_STEPS = (
    *("scales of nearest", "neighbouring scales", "all candidates", "one pass", "two passes", "six passes"),
    *("smaller channel scales", "larger channel scales", "fitted codebook", "groups of 8"),
)
LAYER_FORMATS = ("int8_convrot", "int8_row", "int8_blockwise", "float8_e4m3fn", "mxfp8")
LAYERS = {
    "FP8, 1024 x 1024": "1024 x 1024, FP8",
    "INT8 row, 1024 x 1024": "1024 x 1024, INT8 row",
    "INT8 ConvRot, 1024 x 1024": "1024 x 1024, INT8 row, rotated",
    "FP8, shipped model": "trained, digits_wan, FP8",
    "INT8 row, shipped model": "trained, digits_wan, INT8 row",
    "INT8 ConvRot, shipped model": "trained, digits_wan, INT8 row, rotated",
    "FP8, MiniLM": "trained, all-MiniLM-L6-v2, FP8",
    "INT8 row, MiniLM": "trained, all-MiniLM-L6-v2, INT8 row",
    "INT8 ConvRot, MiniLM": "trained, all-MiniLM-L6-v2, INT8 row, rotated",
}

TABLES = {
    "closeness": Table(
        results="sampling",
        head="format (bytes a weight)",
        rows=BY_CLOSENESS,
        columns=(
            Column("nearest", "{}, nearest", PSNR),
            Column("calibrated", "{}, calibrated", PSNR),
            Column("calibrated, layers chosen by `auto`", "{}, calibrated, chosen", PSNR),
            Column("convert-to-quant 1.3.4, its default", "{}, convert-to-quant, learned", PSNR),
        ),
    ),
    "sampled latents": Table(
        results="sampling",
        head="format (bytes a weight)",
        rows=BY_CLOSENESS,
        columns=(
            Column("nearest", "{}, nearest", LATENTS),
            Column("svd", "{}, svd", LATENTS),
            Column("calibrated", "{}, calibrated", LATENTS),
            Column("calibrated, chosen", "{}, calibrated, chosen", LATENTS),
            Column("convert-to-quant, nearest", "{}, convert-to-quant, nearest", LATENTS),
            Column("convert-to-quant, learned", "{}, convert-to-quant, learned", LATENTS),
        ),
    ),
    "layers": Table(
        results="quality",
        head="network, format",
        rows={
            f"{title}, `{fmt}`": f"{name}, {fmt}"
            for title, name in {"shipped model": "digits", "MiniLM": "MiniLM"}.items()
            for fmt in LAYER_FORMATS
        },
        columns=(
            Column("W8A16, nearest", "{}, nearest", "{W8A16:.4f}"),
            Column("svd", "{}, svd", RATIO_A16),
            Column("svd, inputs", "{}, svd, inputs", RATIO_A16),
            Column("calibrated", "{}, calibrated", RATIO_A16),
            Column("convert-to-quant", "{}, convert-to-quant", RATIO_A16),
            Column("W8A8, nearest", "{}, nearest", "{W8A8:.4f}"),
            Column("calibrated", "{}, calibrated", RATIO_A8),
            Column("convert-to-quant", "{}, convert-to-quant", RATIO_A8),
        ),
    ),
    "layers of few bits": Table(
        results="quality_few_bits",
        head="network, format",
        rows={
            f"{title}, `{fmt}`": f"{name}, {fmt}"
            for title, name in {"shipped model": "digits", "MiniLM": "MiniLM"}.items()
            for fmt in FEW_BITS
        },
        columns=FEW_BITS_COLUMNS,
    ),
    "layers of a language model": Table(
        results="quality_smollm2",
        head="network, format",
        rows={f"SmolLM2, `{fmt}`": f"SmolLM2, {fmt}" for fmt in FEW_BITS},
        columns=FEW_BITS_COLUMNS,
    ),
    "rounding in groups": Table(
        results="grouped",
        head="W8A16, relative to nearest",
        rows={step: step for step in GROUPED_STEPS},
        columns=tuple(
            Column(f"{title}, `{fmt}`", f"{name}, {fmt}, {{}}", "{W8A16 to nearest:.3f}")
            for title, name in {"shipped model": "digits", "MiniLM": "MiniLM"}.items()
            for fmt in FEW_BITS
        ),
    ),
    "cost of a layer": Table(
        results="cost",
        head="format, 3072 x 12288",
        rows={f"`{name}`": f"3072 x 12288, {name}, calibrated" for name in TIMED},
        columns=(
            Column("seconds", "{}", "{time:.0f}"),
            Column("in Cholesky factorizations of the Hessian", "{}", "{time, in Choleskys:.1f}"),
        ),
    ),
    "cost of a model": Table(
        results="cost",
        head="format, shipped model",
        rows={f"`{name}`": f"shipped model, {name}" for name in TIMED},
        columns=(
            Column("nearest, seconds", "{}, nearest", "{time:.2f}"),
            Column("calibrated, seconds", "{}, calibrated", "{time:.2f}"),
            Column("calibrated / nearest", "{}, calibrated", "{time, in nearest's:.0f}"),
        ),
    ),
    "learned rounding": Table(
        results="peer_layers",
        head="format, layers",
        rows={label: f"{case}, svd" for label, case in LAYERS.items()},
        columns=(
            Column("projected error, this pack", "{}", "{projected error / nearest, ours:.2f}"),
            Column("convert-to-quant", "{}", "{projected error / nearest, convert-to-quant:.2f}"),
            Column("weight error, this pack", "{}", "{weight error, ours:.4f}"),
            Column("convert-to-quant", "{}", "{weight error, convert-to-quant:.4f}"),
            Column("seconds, this pack", "{}", "{time, ours:.1f}"),
            Column("convert-to-quant", "{}", "{time, convert-to-quant:.1f}"),
            Column("time ratio", "{}", "{time, ours / convert-to-quant:.2f}"),
        ),
    ),
    "large file": Table(
        results="peer",
        head="2 GB file",
        rows={
            "FP8": "2 GB, FP8, nearest",
            "INT8 row": "2 GB, INT8 row, nearest",
            "INT8 ConvRot": "2 GB, INT8 row, rotated, nearest",
        },
        columns=(
            Column("seconds, this pack", "{}", "{time, ours:.0f}"),
            Column("convert-to-quant", "{}", "{time, convert-to-quant:.0f}"),
            Column("time ratio", "{}", "{time, ours / convert-to-quant:.2f}"),
            Column("peak MB, this pack", "{}", "{peak memory, ours:.0f}"),
            Column("convert-to-quant", "{}", "{peak memory, convert-to-quant:.0f}"),
            Column("convert-to-quant, `--low-memory`", "{}", "{peak memory, convert-to-quant, low memory:.0f}"),
        ),
    ),
}


def main() -> None:
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(update_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
