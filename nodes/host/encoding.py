"""Recording the inputs of a CLIP's text encoders while ComfyUI encodes prompts with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import comfy.utils

from ...quant.calibration.calibration import Calibration
from ...quant.calibration.recorder import Recorder
from . import running
from .encoders import Part, find_runnable_parts, read_part_tensors
from .merging import fingerprint_patched
from .origin import read_source_dtypes
from .plain_forward import plain_forward
from .recording import fingerprint_layers
from .server import send_text


def calibrate_encoder(
    clip: Any, prompts: Sequence[str], rows: int, budget: int, node_id: str | None = None
) -> Calibration:
    """Encode prompts as CLIP Text Encode does and record the encoders that ComfyUI runs quantized.

    Args:
        clip: The CLIP.
        prompts: The prompts.
        rows: Most rows to keep of each layer.
        budget: Memory budget of all rows in bytes.
        node_id: Of the node, for its progress bar.

    Returns:
        The calibration. Layers are named as in the encoder's own file, after `part_prefixes`.

    Raises:
        QuantError: if the CLIP has no such encoder, or is quantized.
    """
    prefixes = part_prefixes(find_runnable_parts(clip))
    fingerprints, patched, dtypes = dict[str, str](), dict[str, str](), read_source_dtypes(clip.patcher)
    for part, prefix in prefixes.items():
        tensors = read_part_tensors(clip, part)
        merged = fingerprint_patched(clip.patcher, tensors, part.prefix, dtypes)
        fingerprints |= {prefix + layer: digest for layer, digest in fingerprint_layers(tensors).items()}
        patched |= {prefix + layer: digest for layer, digest in merged.items()}
    recorder = Recorder(rows, budget)
    with ExitStack() as stack:
        for part, prefix in prefixes.items():
            encoder = clip.cond_stage_model.get_submodule(part.prefix.removesuffix("."))
            stack.enter_context(plain_forward(encoder))
            stack.enter_context(recorder.watch(encoder, prefix, fingerprints))
        _encode(clip, prompts, node_id)
    calibration = recorder.calibration(fingerprints)
    return replace(calibration, patched_fingerprints={k: v for k, v in patched.items() if k in calibration})


def part_prefixes(parts: Sequence[Part]) -> Mapping[Part, str]:
    """Encoder -> prefix of its layer names in a calibration: its name and a dot, or nothing if it is alone."""
    return {part: f"{part.name}." if len(parts) > 1 else "" for part in parts}


def select_part(calibration: Calibration, part: Part) -> Calibration:
    """An encoder's share of a calibration that was recorded with others beside it, or with it alone."""
    return calibration.under(f"{part.name}.") or calibration


def _encode(clip: Any, prompts: Sequence[str], node_id: str | None) -> None:
    bar = comfy.utils.ProgressBar(len(prompts), node_id=node_id)
    for done, prompt in enumerate(prompts):
        running.stop_if_interrupted()
        send_text(f"prompt {done + 1} of {len(prompts)}", node_id)
        clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        bar.update_absolute(done + 1, len(prompts))
