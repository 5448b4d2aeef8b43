"""The node that compares two models by the latents that they sample from the same noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..quant import QuantError
from .compare.latents import LatentComparison, Trace, compare_traces
from .compare.pictures import choose_amplification, draw_side_by_side
from .compare.seeds import parse_seeds
from .host import running
from .host.optional import import_optional
from .host.sampling import Sampling, SamplingBar, condition_inputs, step_inputs
from .host.server import send_text
from .schema import CATEGORY

NO_VAE = "Compare Models has no picture to give without a VAE: connect one, or disconnect the picture output."


class CompareModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCompareModels",
            display_name="Compare Models",
            category=CATEGORY,
            description="Samples two models from the same noise, seed by seed, and reports how far apart their latents "
            "are at each step and at the end: the cost of quantizing in the result itself.",
            search_aliases=["psnr", "quality", "quantization error", "difference", "benchmark"],
            inputs=[
                io.Model.Input("reference", tooltip="The model to compare with, such as the float one."),
                io.Model.Input("candidate", tooltip="The model to judge, such as the quantized one."),
                *condition_inputs(),
                io.String.Input(
                    "seeds",
                    default="1-4",
                    tooltip="Numbers and ranges, such as 1, 2, 8-11. Use seeds that the calibration has not seen.",
                ),
                *step_inputs(),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the latents of both models for the picture."),
            ],
            outputs=[
                io.Image.Output(
                    "picture",
                    tooltip="With a VAE: for each picture reference, candidate and their difference, amplified.",
                ),
                io.String.Output("report", tooltip="PSNR, cosine and relative error of the latents by seed and step."),
                io.Float.Output(
                    "psnr_db",
                    display_name="PSNR (dB)",
                    tooltip="PSNR of the finished latents, the mean over the seeds; infinite if they are identical.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, seeds: str | None = None) -> bool | str:
        """Before anything runs, unless the seeds come from another node."""
        try:
            return seeds is None or bool(parse_seeds(seeds))
        except QuantError as error:
            return str(error)

    @classmethod
    def execute(
        cls, reference: Any, candidate: Any, seeds: str, vae: Any | None = None, **settings: Any
    ) -> io.NodeOutput:
        sampling, numbers = Sampling(**settings), parse_seeds(seeds)
        refuse_unlike(sampling, reference, candidate)
        sampler = _PairSampler(sampling, numbers, cls.hidden.unique_id)
        # One after the other, so that the models need not be in memory together.
        references = sampler.trace(reference, "reference")
        candidates = sampler.trace(candidate, "candidate")
        comparison = LatentComparison(tuple(map(compare_traces, numbers, candidates, references)))
        texts: dict[str, Any] = {"text": [comparison.summary()]}
        if vae is None:
            return io.NodeOutput(_block_picture(), comparison.table(), comparison.mean.psnr_db, ui=texts)
        picture = draw_comparison(vae, comparison, candidates, references)
        preview = ui.PreviewImage(picture).as_dict()
        return io.NodeOutput(picture, comparison.table(), comparison.mean.psnr_db, ui=texts | preview)


def refuse_unlike(sampling: Sampling, reference: Any, candidate: Any) -> None:
    """Refuse models whose latents cannot be compared.

    Raises:
        QuantError: if the latents have several streams, or different shapes.
    """
    latents = [sampling.initial_latents(model) for model in (reference, candidate)]
    if any(latent.is_nested for latent in latents):
        raise QuantError("Latents of several parts, such as video with sound, cannot be compared.")
    shapes = [list(latent.shape) for latent in latents]
    if shapes[0] != shapes[1]:
        raise QuantError(
            f"The reference samples latents of {shapes[0]} and the candidate of {shapes[1]}: they are not versions of "
            "one model, and cannot be compared."
        )


class _PairSampler:
    """Samples two models at the same seeds, under one progress bar."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], node_id: str | None) -> None:
        self._sampling, self._seeds, self._node_id = sampling, seeds, node_id
        self._bar, self._done = SamplingBar(2 * len(seeds), sampling.steps, node_id), 0

    def trace(self, model: Any, title: str) -> list[Trace]:
        """Sample ``model`` at every seed."""
        return [self._trace_seed(model, seed, f"{title}, seed {seed}") for seed in self._seeds]

    def _trace_seed(self, model: Any, seed: int, text: str) -> Trace:
        send_text(text, self._node_id)
        steps, show = list[Tensor](), self._bar.follow(model, self._done)

        def keep(step: int, predicted: Tensor, latents: Tensor, count: int) -> None:
            # Into the space of the finished latents.
            steps.append(model.model.process_latent_out(predicted.detach().to("cpu", torch.float32, copy=True)))
            show(step, predicted, latents, count)

        final = self._sampling.sample(model, seed, keep)
        self._done += 1
        return Trace(steps, final.to("cpu", torch.float32))


def draw_comparison(vae: Any, comparison: LatentComparison, candidates: list[Trace], references: list[Trace]) -> Tensor:
    """Draw the pictures of all seeds, each with its labels, with one amplification for all.

    Args:
        vae: Decodes the latents.
        comparison: Of the same seeds.
        candidates: The candidate's sampling at each seed.
        references: The reference's.

    Returns:
        Pictures ``[N, H, W, 3]``.
    """
    pairs = [(decode(vae, r.final), decode(vae, c.final)) for r, c in zip(references, candidates, strict=True)]
    factor = choose_amplification(*map(torch.cat, zip(*pairs, strict=True)))
    rows = []
    for seed, (reference, candidate) in zip(comparison.seeds, pairs, strict=True):
        psnr = seed.final.psnr_db
        closeness = "identical" if psnr == math.inf else f"{psnr:.1f} dB"
        labels = (f"reference, seed {seed.seed}", f"candidate, {closeness}", f"difference x {factor}")
        rows.append(draw_side_by_side(reference, candidate, labels, factor))
    return torch.cat(rows)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents to pictures ``[N, H, W, 3]`` in [0, 1]; a video gives its frames."""
    running.stop_if_interrupted()
    pictures = vae.decode(latents)
    return pictures.reshape(-1, *pictures.shape[-3:])[..., :3].float().cpu()


def _block_picture() -> Any | None:
    """Stops only the nodes that take the picture; without ComfyUI's blocker, they get none."""
    loss = "without a VAE, nodes that take the picture of Compare Models fail without a word"
    blocker = import_optional("comfy_execution.graph_utils", "ExecutionBlocker", loss)
    return None if blocker is None else blocker(NO_VAE)
