"""Draw bytes a weight against closeness: `python benchmarks/plot.py`.

Reads benchmarks/results/sampling.json and writes examples/closeness.png, the plot of the README. Needs matplotlib (the
extra ``plots``).
"""

from __future__ import annotations

from pathlib import Path

from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.planning.recommendation import bytes_per_weight
from document import CASES, read_figures
from matplotlib import pyplot

PICTURE = Path(__file__).parents[1] / "examples" / "closeness.png"
METRIC = "mean PSNR of latents"
SHOWN = ("int8_convrot", "float8_e4m3fn", "float8_e4m3fn, FP8 units", "mxfp8", "w6a8", "w4a8", "nvfp4")
ON_THE_LEFT = {"float8_e4m3fn", "nvfp4"}
"""Labels that would lie over others on the right."""
STYLES = {"nearest": "white", "calibrated": "tab:blue"}
"""Face colour of the marker of each rounding."""


def main() -> None:
    figures = read_figures("sampling")
    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    for title in SHOWN:
        values = [figures.get(f"{CASES[title]}, {rounding}", {}).get(METRIC) for rounding in STYLES]
        if None in values:
            continue
        size = bytes_per_weight(FORMATS[title.partition(", ")[0]])
        axes.plot([size, size], values, color="tab:blue", linewidth=1, zorder=1)
        for value, colour in zip(values, STYLES.values(), strict=True):
            axes.scatter(size, value, facecolor=colour, edgecolor="tab:blue", zorder=2)
        place = {"xytext": (-6, 0), "ha": "right"} if title in ON_THE_LEFT else {"xytext": (6, 0)}
        label = title.replace(", ", ",\n")
        axes.annotate(label, (size, max(values)), textcoords="offset points", va="center", fontsize=7, **place)
    for rounding, colour in STYLES.items():
        axes.scatter([], [], facecolor=colour, edgecolor="tab:blue", label=rounding)
    axes.set(xlabel="bytes a weight", ylabel="PSNR of latents in dB", xlim=(0.45, 1.2))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
