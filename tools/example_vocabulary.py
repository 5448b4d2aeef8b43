"""The vocabulary of the example text encoder: a SentencePiece model that is trained on its prompts."""

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

IDS = {"pad_id": PAD, "eos_id": 1, "bos_id": 2, "unk_id": 3}  # as Gemma has them
LOWER = "lower.tsv"


class Tokenizer:
    """Prompts to token ids as ComfyUI makes them: the begin token first, ``padding`` pad tokens last."""

    def __init__(self, vocabulary: bytes, padding: int) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_proto=vocabulary, add_bos=True)
        self.padding = [PAD] * padding

    def __call__(self, text: str) -> Tensor:
        return torch.tensor(self.model.encode(text) + self.padding)


def trained_vocabulary(texts: Sequence[str], size: int) -> bytes:
    """A SentencePiece model over these texts: lower case, a token for each digit, bytes for what it has not met."""
    model = io.BytesIO()
    with working_in_a_new_folder() as folder:
        # The model keeps the file's name as it was given.
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
def working_in_a_new_folder() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
