"""Write the tables of README.md and BENCHMARKS.md from the figures in benchmarks/results.

    python benchmarks/document.py

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``, as in MANUAL.md. A figure that a result file
lacks leaves its cell empty; a row without figures is left out. tests/test_documents.py fails if a document differs from
the result files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.planning.machine import CARDS, Machine, Way, list_products
from calibrated_rounding.quant.planning.recommendation import Situation, bytes_per_weight, list_formats, rank_formats
from calibrated_rounding.tools.manual import render

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
DOCUMENTS = ("README.md", "BENCHMARKS.md")

Figures = Mapping[str, Mapping[str, float | None]]
"""By case and metric, as a result file has them."""


@dataclass(frozen=True, kw_only=True)
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
            cells = [_format_cell(figures, column.case.format(row), column.cell) for column in self.columns]
            lines += [[label, *cells]] if any(cells) else []
        return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)


class CardTable:
    """How cards run each format, and what is recommended for them."""

    WAYS: Mapping[Way, str] = {"8 bits": "8 bits", "4 bits": "4 bits", "memory": "only saves memory"}
    PRESETS = ("balanced", "small")

    def format(self) -> str:
        machines = [Machine(title=card.names, computes=list_products(card.capability)) for card in CARDS]
        lines = [["format (bytes a weight)", *(machine.title for machine in machines)], ["---"] * (1 + len(machines))]
        for row in list_formats(machines[0]):
            ways = (self.WAYS[machine.runs(FORMATS[row.name])] for machine in machines)
            lines.append([f"`{row.name}` ({row.bytes_per_weight:.2f})", *ways])
        for preset in self.PRESETS:
            chosen = (rank_formats(Situation(machine=machine, preset=preset))[0] for machine in machines)
            lines.append([f"**recommended**, `{preset}`", *(f"`{name}`" for name in chosen)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def _label(title: str) -> str:
    name, _, card = title.partition(", ")
    return f"`{name}`{f', {card}' if card else ''} ({bytes_per_weight(FORMATS[name]):.2f})"


BY_CLOSENESS = {_label(title): case for title, case in CASES.items()}
FEW_BITS = ("w6a8", "w4a8", "nvfp4")
FEW_BITS_COLUMNS = (
    Column(title="W8A16, nearest", case="{}, nearest", cell="{W8A16:.4f}"),
    Column(title="svd", case="{}, svd", cell=RATIO_A16),
    Column(title="svd, inputs", case="{}, svd, inputs", cell=RATIO_A16),
    Column(title="calibrated", case="{}, calibrated", cell=RATIO_A16),
    Column(title="worst layer", case="{}, calibrated", cell="{W8A16 to nearest, worst:.2f}"),
    Column(title="inputs rounded, nearest", case="{}, nearest", cell="{W8A8:.4f}"),
    Column(title="calibrated", case="{}, calibrated", cell=RATIO_A8),
)
GROUPED_STEPS = (
    *("scales of nearest", "neighbouring scales", "all candidates", "one pass", "two passes", "six passes"),
    *("smaller channel scales", "larger channel scales", "fitted channel scales", "searched scale of the weight"),
    *("fitted codebook", "groups of 8", "damping of text encoders"),
)
ENCODER_FORMATS = ("int8_convrot", "float8_e4m3fn", *FEW_BITS)
ENCODERS = {"shipped": "shipped encoder"}
"""Title of each text encoder -> its part of the cases in encoders.json."""
LEARNED_FROM = ("4096 rows", "quantized inputs", "corrected target", "in order", "in order, corrected")
CHOICES = ("smallest error", "chosen")
NETWORKS = {"shipped model": "digits", "MiniLM": "MiniLM", "SmolLM2": "SmolLM2"}


def _compare_outputs(variants: Sequence[str], cell: str) -> Table:
    """What variants of calibrated rounding do to whole networks."""
    return Table(
        results="outputs",
        head="network, format",
        rows={
            f"{title}, `{fmt}`": f"{name}, {fmt}"
            for fmt in ("w4a8", "nvfp4", "w6a8", "int8_convrot")
            for title, name in NETWORKS.items()
        },
        columns=tuple(Column(title=v, case=f"{{}}, {v}", cell=cell) for v in variants),
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

TABLES: Mapping[str, Table | CardTable] = {
    "cards": CardTable(),
    "closeness": Table(
        results="sampling",
        head="format (bytes a weight)",
        rows=BY_CLOSENESS,
        columns=(
            Column(title="nearest", case="{}, nearest", cell=PSNR),
            Column(title="calibrated", case="{}, calibrated", cell=PSNR),
            Column(title="calibrated, layers chosen by `auto`", case="{}, calibrated, chosen", cell=PSNR),
            Column(title="convert-to-quant 1.3.4, its default", case="{}, convert-to-quant, learned", cell=PSNR),
        ),
    ),
    "sampled latents": Table(
        results="sampling",
        head="format (bytes a weight)",
        rows=BY_CLOSENESS,
        columns=(
            Column(title="nearest", case="{}, nearest", cell=LATENTS),
            Column(title="svd", case="{}, svd", cell=LATENTS),
            Column(title="calibrated", case="{}, calibrated", cell=LATENTS),
            Column(title="calibrated, chosen", case="{}, calibrated, chosen", cell=LATENTS),
            Column(title="convert-to-quant, nearest", case="{}, convert-to-quant, nearest", cell=LATENTS),
            Column(title="convert-to-quant, learned", case="{}, convert-to-quant, learned", cell=LATENTS),
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
            Column(title="W8A16, nearest", case="{}, nearest", cell="{W8A16:.4f}"),
            Column(title="svd", case="{}, svd", cell=RATIO_A16),
            Column(title="svd, inputs", case="{}, svd, inputs", cell=RATIO_A16),
            Column(title="calibrated", case="{}, calibrated", cell=RATIO_A16),
            Column(title="convert-to-quant", case="{}, convert-to-quant", cell=RATIO_A16),
            Column(title="W8A8, nearest", case="{}, nearest", cell="{W8A8:.4f}"),
            Column(title="calibrated", case="{}, calibrated", cell=RATIO_A8),
            Column(title="convert-to-quant", case="{}, convert-to-quant", cell=RATIO_A8),
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
    "text encoders": Table(
        results="encoders",
        head="format (bytes a weight)",
        rows={_label(name): name for name in ENCODER_FORMATS}
        | {"GGUF `Q8_0` (1.06)": "Q8_0", "FP8 without a scale (1.00)": "FP8 cast"},
        columns=tuple(
            Column(title=f"{title}, {method}", case=f"{name}, {{}}, {method}", cell="{SNR:.1f} dB ({cosine:.5f})")
            for title, name in ENCODERS.items()
            for method in ("nearest", "calibrated")
        ),
    ),
    "rounding in groups": Table(
        results="grouped",
        head="W8A16, relative to nearest",
        rows={step: step for step in GROUPED_STEPS},
        columns=tuple(
            Column(title=f"{title}, `{fmt}`", case=f"{name}, {fmt}, {{}}", cell="{W8A16 to nearest:.3f}")
            for title, name in {"shipped model": "digits", "MiniLM": "MiniLM"}.items()
            for fmt in FEW_BITS
        ),
    ),
    "learned from": _compare_outputs(
        LEARNED_FROM, "{layers to calibrated:.3f}; {output to calibrated:.3f} ± {standard error:.3f}"
    ),
    "choices": _compare_outputs(
        CHOICES,
        "{layers to calibrated:.3f} ({worst layer:.3f}); {output to calibrated:.3f} ± {standard error:.3f}",
    ),
    "cost of a layer": Table(
        results="cost",
        head="format, 3072 x 12288",
        rows={f"`{name}`": f"3072 x 12288, {name}, calibrated" for name in (*TIMED, *FEW_BITS)},
        columns=(
            Column(title="seconds", case="{}", cell="{time:.0f}"),
            Column(title="in Cholesky factorizations of the Hessian", case="{}", cell="{time, in Choleskys:.1f}"),
            Column(title="to `int8_row`", case="{}", cell="{time, in int8_row's:.1f}"),
        ),
    ),
    "cost of a model": Table(
        results="cost",
        head="format, shipped model",
        rows={f"`{name}`": f"shipped model, {name}" for name in TIMED},
        columns=(
            Column(title="nearest, seconds", case="{}, nearest", cell="{time:.2f}"),
            Column(title="calibrated, seconds", case="{}, calibrated", cell="{time:.2f}"),
            Column(title="calibrated / nearest", case="{}, calibrated", cell="{time, in nearest's:.0f}"),
        ),
    ),
    "learned rounding": Table(
        results="peer_layers",
        head="format, layers",
        rows={label: f"{case}, svd" for label, case in LAYERS.items()},
        columns=(
            Column(title="projected error, this pack", case="{}", cell="{projected error / nearest, ours:.2f}"),
            Column(title="convert-to-quant", case="{}", cell="{projected error / nearest, convert-to-quant:.2f}"),
            Column(title="weight error, this pack", case="{}", cell="{weight error, ours:.4f}"),
            Column(title="convert-to-quant", case="{}", cell="{weight error, convert-to-quant:.4f}"),
            Column(title="seconds, this pack", case="{}", cell="{time, ours:.1f}"),
            Column(title="convert-to-quant", case="{}", cell="{time, convert-to-quant:.1f}"),
            Column(title="time ratio", case="{}", cell="{time, ours / convert-to-quant:.2f}"),
        ),
    ),
    "several processes": Table(
        results="scaling",
        head="run, processes",
        rows={
            f"{name}, {count}": f"{name}, {count}" for name in ("2 GB, nearest", "calibrated") for count in (1, 2, 4)
        },
        columns=(
            Column(title="seconds, without start-up", case="{}", cell="{run:.1f}"),
            Column(title="times as fast as one", case="{}", cell="{times as fast as one process:.2f}"),
            Column(title="serial, seconds", case="{}", cell="{serial:.2f}"),
            Column(title="serial share", case="{}", cell="{serial share:.1%}"),
            Column(title="hash of the source, seconds", case="{}", cell="{hash:.2f}"),
            Column(title="start-up, seconds", case="{}", cell="{start-up:.1f}"),
        ),
    ),
    "large file": Table(
        results="peer_large",
        head="2 GB file",
        rows={
            "FP8": "2 GB, FP8, nearest",
            "INT8 row": "2 GB, INT8 row, nearest",
            "INT8 ConvRot": "2 GB, INT8 row, rotated, nearest",
        },
        columns=(
            Column(title="seconds, this pack", case="{}", cell="{time, ours:.0f}"),
            Column(title="convert-to-quant", case="{}", cell="{time, convert-to-quant:.0f}"),
            Column(title="time ratio", case="{}", cell="{time, ours / convert-to-quant:.2f}"),
            Column(title="peak MB, this pack", case="{}", cell="{peak memory, ours:.0f}"),
            Column(title="convert-to-quant", case="{}", cell="{peak memory, convert-to-quant:.0f}"),
            Column(
                title="convert-to-quant, `--low-memory`",
                case="{}",
                cell="{peak memory, convert-to-quant, low memory:.0f}",
            ),
        ),
    ),
}


def main() -> None:
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(update_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
