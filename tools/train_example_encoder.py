"""Train the example text encoder from nothing: `python tools/train_example_encoder.py --models examples/models`.

Needs what train_example.py needs, and sentencepiece; no ComfyUI and no download. The diffusion transformer and its
class table in the folder are read and stay as they are: the encoder learns to say to the transformer, in as many tokens
as a prompt has, what the row of the class asked for says to it in four. The result is the same for the same versions of
the libraries on the same kind of processor.
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
from example_prompts import HELD_OUT, SEEN, named, prompts
from example_vocabulary import Tokenizer, trained_vocabulary
from train_example import BLOCKS, DIM, FFN_DIM, SEED, TEXT_DIM, THREADS, TRAINING_SHIFT, shifted, stored, train

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
"""Pad tokens after every prompt. They know all of it: without them "7" would have one token to ask for a 7 with."""
LAST_SHARE = 0.2  # of the samples that learn the hidden state after the last block, for CLIP Set Last Layer at -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with the example models; gets the encoder")
    parser.add_argument("--steps", type=int, default=1600, help="training steps (default 1600)")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    texts = prompts(PROMPTS, Random(SEED))
    vocabulary = trained_vocabulary([text for text, _ in texts if text.isascii()], SIZES.vocab_size)
    tokenizer, teacher = Tokenizer(vocabulary, PADDING), Teacher(options.models)
    encoder = train_encoder(teacher, Batches(tokenizer, texts), options.steps)
    save_encoder(encoder, vocabulary, options.models)
    for name, templates in (("seen", SEEN), ("held-out", HELD_OUT)):
        print(f"{name} prompts: {missed_share(encoder, teacher, tokenizer, templates):.2%} of the class is missed")


class Teacher:
    """The shipped diffusion transformer, frozen, and its class table [CLASSES + 1, tokens, TEXT_DIM]."""

    def __init__(self, folder: Path) -> None:
        self.model = WanTransformer(DIM, FFN_DIM, BLOCKS, TEXT_DIM)
        self.model.load_state_dict(load_file(folder / "diffusion_models" / "digits_wan.safetensors"))
        self.model.requires_grad_(False)
        self.table = load_file(folder / "conditioning" / "digits_conditioning.safetensors")["conditioning"]
        pictures, classes = load_pictures()
        self.latents = to_model_latent(enlarge(pictures, 32))
        self.members = [torch.nonzero(classes == digit).flatten() for digit in range(CLASSES)]
        self.members.append(torch.arange(len(classes)))

    def noisy(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Real digits of the classes asked for, any for none, between clean and noise; and the timesteps."""
        rows = [self.members[row][torch.randint(len(self.members[row]), ())] for row in asked.tolist()]
        clean = self.latents[torch.stack(rows)]
        sigma = shifted(torch.rand(len(asked)), TRAINING_SHIFT)
        return torch.lerp(clean, torch.randn_like(clean), sigma.view(-1, 1, 1, 1, 1)), sigma * TIMESTEPS

    def error(self, context: Tensor, asked: Tensor) -> Tensor:
        """Mean square of what ``context`` [N, tokens, TEXT_DIM] changes in the velocity against the rows asked for."""
        noisy, timestep = self.noisy(asked)
        with torch.no_grad():
            wanted = self.model(noisy, timestep, self.table[asked])
        return F.mse_loss(self.model(noisy, timestep, context), wanted)


class Batches:
    """Prompts by their number of tokens: the transformer knows no padding, so a batch has prompts of one length."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[tuple[str, int]]) -> None:
        encoded = [(tokenizer(text), asked) for text, asked in texts]
        self.lengths = [len(tokens) for tokens, _ in encoded]
        self.groups = {length: _stacked(encoded, length) for length in sorted(set(self.lengths))}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [N, length] and classes asked for [N], for every length."""
        return iter(self.groups.values())

    def like(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The same of as many prompts as there are indices, all as long as the first index's prompt."""
        tokens, asked = self.groups[self.lengths[int(indices[0])]]
        chosen = indices % len(tokens)
        return tokens[chosen], asked[chosen]


def _stacked(encoded: Sequence[tuple[Tensor, int]], length: int) -> tuple[Tensor, Tensor]:
    group = [(tokens, asked) for tokens, asked in encoded if len(tokens) == length]
    return torch.stack([tokens for tokens, _ in group]), torch.tensor([asked for _, asked in group])


def train_encoder(teacher: Teacher, batches: Batches, steps: int) -> GemmaEncoder:
    """An encoder after which the transformer predicts the velocity that it predicts after the row asked for."""
    torch.manual_seed(SEED)
    encoder = GemmaEncoder(SIZES)

    def loss(indices: Tensor) -> Tensor:
        tokens, asked = batches.like(indices)
        usual, last = encoder(tokens)
        return teacher.error(torch.where(torch.rand(len(asked), 1, 1) < LAST_SHARE, last, usual), asked)

    train("encoder", encoder, loss, len(batches.lengths), steps, batch=64, learning_rate=2e-3)
    return encoder


@torch.inference_mode()
def missed_share(encoder: GemmaEncoder, teacher: Teacher, tokenizer: Tokenizer, templates: Sequence[str]) -> float:
    """Error of the velocity after prompts, as a share of the error after the row that asks for nothing."""
    torch.manual_seed(SEED)
    texts = [
        (named(template, digit, numeral), digit)
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
    """The encoder with its vocabulary, and a header with what ComfyUI does not find in the tensors."""
    path = folder / "text_encoders" / "digits_gemma2.safetensors"
    path.parent.mkdir(exist_ok=True)
    spiece = torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8)
    config = json.dumps({FAMILY: asdict(SIZES), "min_padding": PADDING})
    save_file(stored(encoder, torch.bfloat16) | {"spiece_model": spiece}, path, {"format": "pt", "config": config})


if __name__ == "__main__":
    main()
