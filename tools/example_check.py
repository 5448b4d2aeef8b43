"""Classify the digits that `example_sample.py` sampled, and draw them on one sheet.

    python tools/example_check.py digits.safetensors --sheet examples/models/samples.png

The classifier is a support vector machine trained on the real digits. It classifies the decoded pictures, and
separately the latents folded back into pictures, so that an error of the autoencoder shows.
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
    classifier = fit_classifier()
    for path in options.samples:
        samples = load_file(path)
        pictures = {
            "decoded": samples["pictures"].mean(-1)[:, None],
            "latent": from_model_latent(from_wan_latent(samples["latents"])),
        }
        shares = {name: share_recognised(classifier, gray, samples["asked"]) for name, gray in pictures.items()}
        print(f"{path.name}: recognised {', '.join(f'{name} {share:.1%}' for name, share in shares.items())}")
    if options.sheet:
        draw_sheet(load_file(options.samples[0])["pictures"], options.sheet)


def fit_classifier() -> SVC:
    pictures, classes = load_pictures()
    rows, targets = pictures.flatten(1).numpy(), classes.numpy()
    classifier = SVC(gamma=0.05, C=10)
    accuracy = cross_val_score(classifier, rows, targets, cv=5).mean()
    print(f"the classifier recognises {accuracy:.1%} of held-out real digits")
    return classifier.fit(rows, targets)


def share_recognised(classifier: SVC, gray: Tensor, asked: Tensor) -> float:
    """Compute the share of pictures that are classified as the requested digit.

    Args:
        classifier: From `fit_classifier`.
        gray: Pictures ``[N, 1, H, W]`` in [0, 1].
        asked: Requested digits, int64 ``[N]``.
    """
    return float(classifier.score(F.adaptive_avg_pool2d(gray, 8).flatten(1).numpy(), asked.numpy()))


def draw_sheet(pictures: Tensor, path: Path) -> None:
    """Draw pictures ``[CLASSES * each, 64, 64, 3]``, classes in order, as a grid of ``each`` columns, half as large."""
    from PIL import Image

    framed = F.pad(F.avg_pool2d(pictures.mean(-1), 2), (1, 1, 1, 1), value=0.3)
    grid = framed.unflatten(0, (CLASSES, -1)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    Image.fromarray((grid * 255).round().to(torch.uint8).numpy()).save(path, optimize=True)


if __name__ == "__main__":
    main()
