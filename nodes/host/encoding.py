"""Recording what a CLIP's text encoders are fed while ComfyUI encodes prompts with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import comfy.utils

from ...quant.calibration.calibration import Calibration
from ...quant.calibration.recorder import Recorder
from . import running
from .encoders import Part, part_tensors, runnable_parts
from .recording import float_fingerprints


def calibrate_encoder(
    clip: Any, prompts: Sequence[str], rows: int, budget: int, node_id: str | None = None
) -> Calibration:
    """Encode every prompt as CLIP Text Encode does and record the layers of the encoders that ComfyUI runs quantized.

    Layers are named as in an encoder's own file; those of several encoders begin with the encoder's name and a dot.
    Raises QuantError for a CLIP with no such encoder, or a quantized one.
    """
    prefixes = part_prefixes(runnable_parts(clip))
    fingerprints = {
        prefix + layer: found
        for part, prefix in prefixes.items()
        for layer, found in float_fingerprints(part_tensors(clip, part)).items()
    }
    recorder = Recorder(rows, budget)
    with ExitStack() as stack:
        for part, prefix in prefixes.items():
            encoder = clip.cond_stage_model.get_submodule(part.prefix.removesuffix("."))
            stack.enter_context(recorder.watch(encoder, prefix, fingerprints))
        _encode(clip, prompts, node_id)
    return recorder.calibration(fingerprints)


def part_prefixes(parts: Sequence[Part]) -> Mapping[Part, str]:
    """What the names of each encoder's layers begin with in a calibration: nothing where there is one encoder."""
    return {part: f"{part.name}." if len(parts) > 1 else "" for part in parts}


def calibration_of(part: Part, calibration: Calibration) -> Calibration:
    """An encoder's share of a calibration that was recorded with others beside it, or with it alone."""
    return calibration.under(f"{part.name}.") or calibration


def _encode(clip: Any, prompts: Sequence[str], node_id: str | None) -> None:
    bar = comfy.utils.ProgressBar(len(prompts), node_id=node_id)
    for done, prompt in enumerate(prompts):
        running.stop_if_interrupted()
        running.send_text(f"prompt {done + 1} of {len(prompts)}", node_id)
        clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        bar.update_absolute(done + 1, len(prompts))
