"""Sample the example models in a real ComfyUI, in this process; run it with ComfyUI's own interpreter.

    PYTHON tools/example_sample.py --comfyui DIR --models examples/models --out digits.safetensors

Writes `pictures` float32 [10 * each, 64, 64, 3] in [0, 1], decoded by the stock VAE, `latents` [10 * each, 16, 1, 8, 8]
and `asked` int64 [10 * each], the digit that each was asked for. `example_check.py` judges them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NOTHING = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--models", type=Path, required=True, help="folder with the example models")
    parser.add_argument("--model", type=Path, help="another diffusion model than digits_wan.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=10, help="samples of each digit (default 10)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance, ComfyUI's cfg")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start_comfyui(options.comfyui)
    with torch.inference_mode():
        save_file(sampled(options), options.out)


def start_comfyui(checkout: Path) -> None:
    """Make `comfy` importable, on the CPU."""
    sys.path.insert(0, str(checkout))
    sys.argv = [sys.argv[0], "--cpu"]
    from comfy import options

    options.enable_args_parsing()


def sampled(options: argparse.Namespace) -> dict[str, Tensor]:
    import comfy.sample
    import comfy.sd

    model = comfy.sd.load_diffusion_model(
        str(options.model or options.models / "diffusion_models" / "digits_wan.safetensors")
    )
    vae = comfy.sd.VAE(sd=load_file(options.models / "vae" / "digits_vae.safetensors"))
    table = load_file(options.models / "conditioning" / "digits_conditioning.safetensors")["conditioning"]
    latents = []
    for digit in range(10):
        positive, negative = ([[table[row : row + 1], {}]] for row in (digit, NOTHING))
        empty = torch.zeros(options.each, 16, 1, 8, 8)
        seed = options.seed + digit
        noise = comfy.sample.prepare_noise(empty, seed)
        latents.append(
            comfy.sample.sample(
                model, noise, options.steps, options.guidance, options.sampler, options.scheduler,
                positive, negative, empty, seed=seed, disable_pbar=True,
            )
        )  # fmt: skip
    latent = torch.cat(latents)
    pictures = vae.decode(latent)[:, 0]
    asked = torch.arange(10).repeat_interleave(options.each)
    return {"pictures": pictures.contiguous(), "latents": latent.contiguous(), "asked": asked}


if __name__ == "__main__":
    main()
