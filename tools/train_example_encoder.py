"""Train the example text encoder from nothing: `python tools/train_example_encoder.py --models examples/models`.

Needs the packages of train_example.py and sentencepiece; no ComfyUI and no download. The diffusion transformer and its
class table in the folder are only read. The encoder learns to condition the transformer with a prompt's tokens as the
requested class's row does with its four. The result is the same for the same versions of the libraries on the same kind
of processor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from example_data import CLASSES, NO_CLASS, enlarge, load_pictures, to_model_latent
from example_encoder import GemmaEncoder, Sizes
from example_model import TIMESTEPS, WanTransformer
from example_prompts import HELD_OUT, SEEN, fill_template, generate_prompts
from example_vocabulary import Tokenizer, train_vocabulary
from train_example import BLOCKS, DIM, FFN_DIM, SEED, TEXT_DIM, THREADS, TRAINING_SHIFT, shift_time, to_tensors, train

PROMPTS = 8000
FAMILY = "gemma2_2b"
"""ComfyUI's name for the architecture."""
SIZES = Sizes(
    vocab_size=512,
    hidden_size=TEXT_DIM,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
)
PADDING = 4
"""Pad tokens after every prompt, which attend to all of it; without them "7" would be a single token."""
LAST_SHARE = 0.2  # of the samples that learn the hidden state after the last block, for CLIP Set Last Layer at -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with the example models; gets the encoder")
    parser.add_argument("--steps", type=int, default=1600, help="training steps (default 1600)")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    texts = generate_prompts(PROMPTS, Random(SEED))
    vocabulary = train_vocabulary([text for text, _ in texts if text.isascii()], SIZES.vocab_size)
    tokenizer, teacher = Tokenizer(vocabulary, PADDING), Teacher(options.models)
    encoder = train_encoder(teacher, Batches(tokenizer, texts), options.steps)
    save_encoder(encoder, vocabulary, options.models)
    for name, templates in (("seen", SEEN), ("held-out", HELD_OUT)):
        print(f"{name} prompts: {share_missed(encoder, teacher, tokenizer, templates):.2%} of the class is missed")


class Teacher:
    """The shipped diffusion transformer, frozen, and its class table ``[CLASSES + 1, tokens, TEXT_DIM]``."""

    def __init__(self, folder: Path) -> None:
        self.model = WanTransformer(DIM, FFN_DIM, BLOCKS, TEXT_DIM)
        self.model.load_state_dict(load_file(folder / "diffusion_models" / "digits_wan.safetensors"))
        self.model.requires_grad_(False)
        self.table = load_file(folder / "conditioning" / "digits_conditioning.safetensors")["conditioning"]
        pictures, classes = load_pictures()
        self.latents = to_model_latent(enlarge(pictures, 32))
        self.members = [torch.nonzero(classes == digit).flatten() for digit in range(CLASSES)]
        self.members.append(torch.arange(len(classes)))

    def draw_noisy(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Draw noisy real digits of the requested classes (any digit for `NO_CLASS`), and their timesteps."""
        rows = [self.members[row][torch.randint(len(self.members[row]), ())] for row in asked.tolist()]
        clean = self.latents[torch.stack(rows)]
        sigma = shift_time(torch.rand(len(asked)), TRAINING_SHIFT)
        return torch.lerp(clean, torch.randn_like(clean), sigma.view(-1, 1, 1, 1, 1)), sigma * TIMESTEPS

    def error(self, context: Tensor, asked: Tensor) -> Tensor:
        """Mean squared difference of the velocity with ``context [N, tokens, TEXT_DIM]`` and with the classes' rows."""
        noisy, timestep = self.draw_noisy(asked)
        with torch.no_grad():
            reference = self.model(noisy, timestep, self.table[asked])
        return F.mse_loss(self.model(noisy, timestep, context), reference)


class Batches:
    """Prompts grouped by their number of tokens: the transformer has no padding, so a batch has one length."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[tuple[str, int]]) -> None:
        encoded = [(tokenizer(text), asked) for text, asked in texts]
        self.lengths = [len(tokens) for tokens, _ in encoded]
        self.groups = {length: _stack(encoded, length) for length in sorted(set(self.lengths))}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens ``[N, length]`` and requested classes ``[N]`` for every length."""
        return iter(self.groups.values())

    def select(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Select as many prompts as there are indices, all of the first one's length: tokens and classes."""
        tokens, asked = self.groups[self.lengths[int(indices[0])]]
        chosen = indices % len(tokens)
        return tokens[chosen], asked[chosen]


def _stack(encoded: Sequence[tuple[Tensor, int]], length: int) -> tuple[Tensor, Tensor]:
    group = [(tokens, asked) for tokens, asked in encoded if len(tokens) == length]
    return torch.stack([tokens for tokens, _ in group]), torch.tensor([asked for _, asked in group])


def train_encoder(teacher: Teacher, batches: Batches, steps: int) -> GemmaEncoder:
    """Train an encoder with which the transformer predicts the same velocity as with the requested class's row."""
    torch.manual_seed(SEED)
    encoder = GemmaEncoder(SIZES)

    def loss(indices: Tensor) -> Tensor:
        tokens, asked = batches.select(indices)
        usual, last = encoder(tokens)
        return teacher.error(torch.where(torch.rand(len(asked), 1, 1) < LAST_SHARE, last, usual), asked)

    train("encoder", encoder, loss, len(batches.lengths), steps, batch=64, learning_rate=2e-3)
    return encoder


@torch.inference_mode()
def share_missed(encoder: GemmaEncoder, teacher: Teacher, tokenizer: Tokenizer, templates: Sequence[str]) -> float:
    """Compute the velocity's error with prompts, as a share of the error with the row for no class."""
    torch.manual_seed(SEED)
    texts = [
        (fill_template(template, digit, numeral), digit)
        for template in templates
        for digit in range(CLASSES)
        for numeral in (False, True)
    ]
    missed = nothing = 0.0
    for tokens, asked in Batches(tokenizer, texts):
        missed += float(teacher.error(encoder(tokens)[0], asked)) * len(asked)
        nothing += float(teacher.error(teacher.table[torch.full_like(asked, NO_CLASS)], asked)) * len(asked)
    return missed / nothing


def save_encoder(encoder: GemmaEncoder, vocabulary: bytes, folder: Path) -> None:
    """Save the encoder with its vocabulary, and a header with the sizes that the tensors do not show."""
    path = folder / "text_encoders" / "digits_gemma2.safetensors"
    path.parent.mkdir(exist_ok=True)
    spiece = torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8)
    config = json.dumps({FAMILY: asdict(SIZES), "min_padding": PADDING})
    save_file(to_tensors(encoder, torch.bfloat16) | {"spiece_model": spiece}, path, {"format": "pt", "config": config})


if __name__ == "__main__":
    main()
