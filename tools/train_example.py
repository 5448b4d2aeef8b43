"""Train the example models from nothing: `python tools/train_example.py --out examples/models`.

Needs torch, numpy, scikit-learn and safetensors; no ComfyUI and no download. Writes a diffusion transformer, its
table of class conditionings and an autoencoder, for ComfyUI's own loaders. Two CPU cores need about a quarter of an
hour. The result is the same for the same versions of the libraries on the same kind of processor.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.svm import SVC
from torch import Tensor, nn

from example_data import (
    CLASSES,
    NO_CLASS,
    enlarge,
    from_model_latent,
    from_wan_latent,
    load_pictures,
    to_model_latent,
    to_wan_latent,
)
from example_model import TIMESTEPS, WanTransformer
from example_vae import WanAutoencoder

THREADS = 2
SEED = 0

DIM, FFN_DIM, BLOCKS = 256, 512, 2
TEXT_TOKENS, TEXT_DIM = 4, 64
AUTOENCODER_DIM = 8

DROP_CLASS = 0.12  # share of training samples without a class, for classifier-free guidance
TRAINING_SHIFT = 3.0  # how far training leans to noisy samples; sampling leans further
SAMPLING_SHIFT = 8.0  # ComfyUI's setting for WAN 2.1
EMA = 0.998
REPORT_EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the three files to")
    parser.add_argument("--steps", type=int, default=4000, help="training steps of the transformer (default 4000)")
    parser.add_argument("--autoencoder-steps", type=int, default=700, help="of the autoencoder (default 700)")
    options = parser.parse_args()
    for kind in ("diffusion_models", "vae", "conditioning"):
        (options.out / kind).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    pictures, classes = load_pictures()

    model, table = train_transformer(pictures, classes, options.steps)
    save_transformer(model, table, options.out)
    for guidance in (1.0, 3.0):
        share = share_recognised(model, table, pictures, classes, guidance)
        print(f"guidance {guidance:g}: {share:.1%} of the samples are recognised as the requested digit")

    autoencoder = train_autoencoder(pictures, options.autoencoder_steps)
    save_file(to_tensors(autoencoder, torch.float16), options.out / "vae" / "digits_vae.safetensors", {"format": "pt"})


def train_transformer(pictures: Tensor, classes: Tensor, steps: int) -> tuple[WanTransformer, Tensor]:
    """Train the transformer and its conditioning table ``[CLASSES + 1, TEXT_TOKENS, TEXT_DIM]``."""
    torch.manual_seed(SEED)
    latents = to_model_latent(enlarge(pictures, 32))
    model = WanTransformer(DIM, FFN_DIM, BLOCKS, TEXT_DIM)
    table = nn.Embedding(CLASSES + 1, TEXT_TOKENS * TEXT_DIM)

    def loss(indices: Tensor) -> Tensor:
        clean, count = latents[indices], len(indices)
        asked = torch.where(torch.rand(count) < DROP_CLASS, NO_CLASS, classes[indices])
        context = table(asked).view(count, TEXT_TOKENS, TEXT_DIM)
        sigma = shift_time(torch.rand(count), TRAINING_SHIFT)
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        return F.mse_loss(model(noisy, sigma * TIMESTEPS, context), noise - clean)

    train("transformer", nn.ModuleList([model, table]), loss, len(latents), steps, batch=64, learning_rate=1e-3)
    return model, table.weight.detach().view(CLASSES + 1, TEXT_TOKENS, TEXT_DIM)


def train_autoencoder(pictures: Tensor, steps: int) -> WanAutoencoder:
    """Train an autoencoder between pictures of 64x64 and the transformer's latents."""
    torch.manual_seed(SEED)
    latents = to_model_latent(enlarge(pictures, 32)).squeeze(2)
    rgb = enlarge(pictures, 64).expand(-1, 3, -1, -1) * 2 - 1
    autoencoder = WanAutoencoder(AUTOENCODER_DIM)

    def loss(indices: Tensor) -> Tensor:
        latent = latents[indices].contiguous(memory_format=torch.channels_last)
        picture = rgb[indices].contiguous(memory_format=torch.channels_last)
        unclean = latent + 0.05 * torch.randn_like(latent)
        decoded = autoencoder.decode(to_wan_latent(unclean))
        encoded = from_wan_latent(autoencoder.encode(picture))
        return F.mse_loss(decoded, picture) + F.mse_loss(encoded, latent)

    train("autoencoder", autoencoder, loss, len(latents), steps, batch=16, learning_rate=3e-3)
    return autoencoder


def train(
    name: str,
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    samples: int,
    steps: int,
    batch: int,
    learning_rate: float,
) -> None:
    """Train a module in place with AdamW; it ends with the exponential moving average of its weights.

    Args:
        name: For the progress.
        module: What is trained.
        loss: Loss of the samples with some indices.
        samples: Number of samples.
        steps: Training steps.
        batch: Samples per step.
        learning_rate: The highest of the schedule.
    """
    average = copy.deepcopy(module).requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    started, recent = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        value = loss(torch.randint(samples, (batch,)))
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(EMA, (1 + step) / (10 + step))
        for kept, current in zip(average.parameters(), module.parameters(), strict=True):
            kept.lerp_(current.detach(), 1 - decay)
        recent += value.item() / REPORT_EVERY
        if step % REPORT_EVERY == 0:
            print(f"{name} step {step} of {steps}: loss {recent:.4f}, {time.monotonic() - started:.0f} s", flush=True)
            recent = 0.0
    module.load_state_dict(average.state_dict())
    module.requires_grad_(False)


def shift_time(time_left: Tensor, shift: float) -> Tensor:
    """Map times in [0, 1] to noise levels in [0, 1], shifted to noisy samples as in rectified-flow models."""
    return shift * time_left / (1 + (shift - 1) * time_left)


@torch.inference_mode()
def sample(model: WanTransformer, table: Tensor, asked: Tensor, guidance: float, steps: int = 20) -> Tensor:
    """Sample latents ``[N, 16, 1, 8, 8]`` of the requested classes: Euler's method, ComfyUI's simple schedule."""
    sigmas = shift_time(torch.linspace(1, 0, steps + 1), SAMPLING_SHIFT)
    latent = torch.randn(len(asked), 16, 1, 8, 8)
    nothing = torch.full_like(asked, NO_CLASS)
    for sigma, following in pairwise(sigmas):
        timestep = (sigma * TIMESTEPS).expand(len(asked))
        without, toward = (model(latent, timestep, table[rows]) for rows in (nothing, asked))
        latent = latent + (following - sigma) * torch.lerp(without, toward, guidance)
    return latent


def share_recognised(
    model: WanTransformer, table: Tensor, pictures: Tensor, classes: Tensor, guidance: float, each: int = 20
) -> float:
    """Compute the share of samples that a classifier, trained on the real digits, gives the requested class."""
    classifier = SVC(gamma=0.05, C=10).fit(pictures.flatten(1).numpy(), classes.numpy())
    asked = torch.arange(CLASSES).repeat_interleave(each)
    small = F.avg_pool2d(from_model_latent(sample(model, table, asked, guidance)), 4)
    return float(classifier.score(small.flatten(1).numpy(), asked.numpy()))


def save_transformer(model: WanTransformer, table: Tensor, folder: Path) -> None:
    """Save the model with the header that ComfyUI builds it from, and the table with the meaning of its rows."""
    config = json.dumps({"transformer": {"text_dim": TEXT_DIM}})
    save_file(
        to_tensors(model, torch.bfloat16),
        folder / "diffusion_models" / "digits_wan.safetensors",
        {"format": "pt", "config": config},
    )
    rows = json.dumps([str(digit) for digit in range(CLASSES)] + ["nothing"])
    save_file(
        {"conditioning": table.contiguous()},
        folder / "conditioning" / "digits_conditioning.safetensors",
        {"rows": rows},
    )


def to_tensors(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype).contiguous() for name, tensor in module.state_dict().items()}


if __name__ == "__main__":
    main()
