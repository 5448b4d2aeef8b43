"""Judge digits that `example_sample.py` made, and draw them on one sheet.

    python tools/example_check.py digits.safetensors --sheet examples/models/samples.png

The judge is a support vector machine that knows the real digits alone. It sees the decoded picture, and separately the
latent folded back into a picture, so that a fault of the autoencoder shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from torch import Tensor

from example_data import CLASSES, from_model_latent, from_wan_latent, load_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="+", help="files that example_sample.py wrote")
    parser.add_argument("--sheet", type=Path, help="PNG to draw the first file's pictures on, a row for each digit")
    options = parser.parse_args()
    judge = fitted_judge()
    for path in options.samples:
        made = load_file(path)
        seen = {
            "decoded": made["pictures"].mean(-1)[:, None],
            "latent": from_model_latent(from_wan_latent(made["latents"])),
        }
        shares = (f"{name} {recognised_share(judge, gray, made['asked']):.1%}" for name, gray in seen.items())
        print(f"{path.name}: recognised {', '.join(shares)}")
    if options.sheet:
        draw_sheet(load_file(options.samples[0])["pictures"], options.sheet)


def fitted_judge() -> SVC:
    pictures, classes = load_pictures()
    rows, targets = pictures.flatten(1).numpy(), classes.numpy()
    judge = SVC(gamma=0.05, C=10)
    print(f"the judge is right on {cross_val_score(judge, rows, targets, cv=5).mean():.1%} of real digits held out")
    return judge.fit(rows, targets)


def recognised_share(judge: SVC, gray: Tensor, asked: Tensor) -> float:
    """Share of gray pictures [N, 1, H, W] in [0, 1] that the judge takes for the digit asked for."""
    return float(judge.score(F.adaptive_avg_pool2d(gray, 8).flatten(1).numpy(), asked.numpy()))


def draw_sheet(pictures: Tensor, path: Path) -> None:
    """Pictures [CLASSES * each, 64, 64, 3], classes in order, as a grid of `each` columns, half as large."""
    from PIL import Image

    framed = F.pad(F.avg_pool2d(pictures.mean(-1), 2), (1, 1, 1, 1), value=0.3)
    grid = framed.unflatten(0, (CLASSES, -1)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    Image.fromarray((grid * 255).round().to(torch.uint8).numpy()).save(path, optimize=True)


if __name__ == "__main__":
    main()
