"""The vocabulary of the example text encoder: a SentencePiece model trained on its prompts."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from example_encoder import PAD
from example_prompts import ALPHABET

IDS = {"pad_id": PAD, "eos_id": 1, "bos_id": 2, "unk_id": 3}  # as in Gemma
LOWER = "lower.tsv"


class Tokenizer:
    """Turns prompts into token ids as ComfyUI does: the begin token first, ``padding`` pad tokens last."""

    def __init__(self, vocabulary: bytes, padding: int) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_proto=vocabulary, add_bos=True)
        self.padding = [PAD] * padding

    def __call__(self, text: str) -> Tensor:
        return torch.tensor(self.model.encode(text) + self.padding)


def train_vocabulary(texts: Sequence[str], size: int) -> bytes:
    """Train a SentencePiece model: lower case, a token for each digit, bytes for unknown characters."""
    model = io.BytesIO()
    with work_in_new_folder() as folder:
        # The model stores the file's name.
        (folder / LOWER).write_text("".join(f"{ord(c.upper()):X}\t{ord(c):X}\n" for c in ALPHABET), encoding="ascii")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            normalization_rule_tsv=LOWER,
            split_digits=True,
            byte_fallback=True,
            num_threads=1,
            minloglevel=2,
            **IDS,
        )
    return model.getvalue()


@contextmanager
def work_in_new_folder() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
