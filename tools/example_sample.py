"""Sample the example models in a real ComfyUI, in this process; run it with ComfyUI's own interpreter.

    PYTHON tools/example_sample.py --comfyui DIR --models examples/models --out digits.safetensors

Writes ``pictures``, float32 ``[N, 64, 64, 3]`` in [0, 1], decoded by the stock VAE, ``latents [N, 16, 1, 8, 8]`` and
``asked``, the requested digits, int64 ``[N]``. N is 10 * each, requested by the rows of the class table; with --encoder
it is that for each template and for words and numerals. `example_check.py` classifies them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from example_prompts import HELD_OUT, NOTHING, SEEN, fill_template

TEMPLATES = {"seen": SEEN, "held-out": HELD_OUT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--models", type=Path, required=True, help="folder with the example models")
    parser.add_argument("--model", type=Path, help="another diffusion model than digits_wan.safetensors")
    parser.add_argument("--encoder", type=Path, help="request digits by prompts, with this text encoder")
    parser.add_argument("--prompts", choices=TEMPLATES, default="held-out", help="(default held-out)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=10, help="samples of each digit, or each prompt (default 10)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance, ComfyUI's cfg")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start_comfyui(options.comfyui)
    with torch.inference_mode():
        save_file(sample(options), options.out)


def start_comfyui(checkout: Path) -> None:
    """Make `comfy` importable, on the CPU."""
    sys.path.insert(0, str(checkout))
    sys.argv = [sys.argv[0], "--cpu"]
    from comfy import options

    options.enable_args_parsing()


def sample(options: argparse.Namespace) -> dict[str, Tensor]:
    import comfy.sample
    import comfy.sd

    model = comfy.sd.load_diffusion_model(
        str(options.model or options.models / "diffusion_models" / "digits_wan.safetensors")
    )
    vae = comfy.sd.VAE(sd=load_file(options.models / "vae" / "digits_vae.safetensors"))
    latents, asked = [], []
    for seed, (digits, positive, negative) in enumerate(make_batches(options), options.seed):
        empty = torch.zeros(len(digits), 16, 1, 8, 8)
        noise = comfy.sample.prepare_noise(empty, seed)
        latents.append(
            comfy.sample.sample(
                model, noise, options.steps, options.guidance, options.sampler, options.scheduler,
                [[positive, {}]], [[negative, {}]], empty, seed=seed, disable_pbar=True,
            )
        )  # fmt: skip
        asked.append(digits)
    latent = torch.cat(latents)
    pictures = vae.decode(latent)[:, 0]
    return {"pictures": pictures.contiguous(), "latents": latent.contiguous(), "asked": torch.cat(asked)}


def make_batches(options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches: the requested digits ``[N]``, their conditionings, and the conditioning without a digit."""
    if options.encoder is None:
        table = load_file(options.models / "conditioning" / "digits_conditioning.safetensors")["conditioning"]
        for digit in range(10):
            yield torch.full((options.each,), digit), table[digit : digit + 1], table[NOTHING:]
        return
    clip = load_encoder(options.encoder)
    nothing = encode(clip, "")
    for template in TEMPLATES[options.prompts]:
        for numeral in (False, True):
            rows = [encode(clip, fill_template(template, digit, numeral)) for digit in range(10)]
            yield torch.arange(10).repeat(options.each), torch.cat(rows).repeat(options.each, 1, 1), nothing


def load_encoder(path: Path) -> Any:
    """Load a CLIP with the sizes and the padding in the file's header."""
    import comfy.sd

    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    padding = config.pop("min_padding")
    ((family, sizes),) = config.items()
    options = {f"{family}_model_config": sizes}
    clip = comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType.LUMINA2, model_options=options)
    clip.set_tokenizer_option(f"{family}_min_padding", padding)
    return clip


def encode(clip: Any, prompt: str) -> Tensor:
    """Encode a prompt as CLIP Text Encode does: ``[1, tokens, width]``."""
    rows: Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
    return rows


if __name__ == "__main__":
    main()
