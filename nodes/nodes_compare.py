"""Two models sampled from the same noise, and how far apart they end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..quant import QuantError
from .compare.latents import LatentComparison, Trace, compare_traces
from .compare.pictures import amplification, side_by_side
from .compare.seeds import parse_seeds
from .host import running
from .host.sampling import RunsBar, Sampling, condition_inputs, step_inputs
from .schema import CATEGORY

NO_VAE = "Compare Models has no picture to give without a VAE: connect one, or disconnect what takes the picture."


class CompareModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCompareModels",
            display_name="Compare Models",
            category=CATEGORY,
            description="Samples two models from the same noise, seed by seed, and tells how far apart their latents "
            "are at each step and at the end: what quantizing has cost where it counts.",
            search_aliases=["psnr", "quality", "quantization error", "difference", "benchmark"],
            inputs=[
                io.Model.Input("reference", tooltip="The model to come close to, such as the float one."),
                io.Model.Input("candidate", tooltip="The model to judge, such as the quantized one."),
                *condition_inputs(),
                io.String.Input(
                    "seeds",
                    default="1-4",
                    tooltip="Numbers and ranges, such as 1, 2, 8-11. Take seeds that calibration has not seen.",
                ),
                *step_inputs(),
                io.Vae.Input("vae", optional=True, tooltip="Decodes what both have sampled, for the picture."),
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
                    tooltip="Of the finished latents, the mean over the seeds; infinite where they are identical.",
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
        both = Runs(sampling, numbers, cls.hidden.unique_id)
        # One after the other, so that the models need not lie in memory together.
        wanted, made = both.of(reference, "reference"), both.of(candidate, "candidate")
        found = LatentComparison(tuple(map(compare_traces, numbers, made, wanted)))
        shown: dict[str, Any] = {"text": [found.summary()]}
        if vae is None:
            return io.NodeOutput(ExecutionBlocker(NO_VAE), found.table(), found.mean.psnr_db, ui=shown)
        picture = drawn(vae, found, made, wanted)
        shown |= ui.PreviewImage(picture).as_dict()
        return io.NodeOutput(picture, found.table(), found.mean.psnr_db, ui=shown)


def refuse_unlike(sampling: Sampling, reference: Any, candidate: Any) -> None:
    """Raise QuantError for models whose latents cannot be compared."""
    latents = [sampling.latents(model) for model in (reference, candidate)]
    if any(latent.is_nested for latent in latents):
        raise QuantError("Latents of several parts, such as video with sound, cannot be compared.")
    shapes = [list(latent.shape) for latent in latents]
    if shapes[0] != shapes[1]:
        raise QuantError(
            f"The reference samples latents of {shapes[0]} and the candidate of {shapes[1]}: they are not versions of "
            "one model, and cannot be compared."
        )


class Runs:
    """Samples two models at the same seeds, under one bar."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], node_id: str | None) -> None:
        self._sampling, self._seeds, self._node_id = sampling, seeds, node_id
        self._bar, self._done = RunsBar(2 * len(seeds), sampling.steps, node_id), 0

    def of(self, model: Any, title: str) -> list[Trace]:
        """What ``model`` samples, by seed."""
        return [self._trace(model, seed, f"{title}, seed {seed}") for seed in self._seeds]

    def _trace(self, model: Any, seed: int, text: str) -> Trace:
        running.send_text(text, self._node_id)
        steps, show = list[Tensor](), self._bar.follow(model, self._done)

        def keep(step: int, predicted: Tensor, latents: Tensor, count: int) -> None:
            # In the space of the finished latents, as the host hands them out.
            steps.append(model.model.process_latent_out(predicted.detach().to("cpu", torch.float32, copy=True)))
            show(step, predicted, latents, count)

        final = self._sampling.run(model, seed, keep)
        self._done += 1
        return Trace(steps, final.to("cpu", torch.float32))


def drawn(vae: Any, found: LatentComparison, made: list[Trace], wanted: list[Trace]) -> Tensor:
    """All pictures under each other's labels, ``[N, H, W, 3]``; one amplification for all."""
    references, candidates = ([decoded(vae, trace.final) for trace in traces] for traces in (wanted, made))
    factor = amplification(torch.cat(references), torch.cat(candidates))
    rows = []
    for run, reference, candidate in zip(found.seeds, references, candidates, strict=True):
        psnr = run.final.psnr_db
        closeness = "identical" if psnr == math.inf else f"{psnr:.1f} dB"
        labels = (f"reference, seed {run.seed}", f"candidate, {closeness}", f"difference x {factor}")
        rows.append(side_by_side(reference, candidate, labels, factor))
    return torch.cat(rows)


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pictures ``[N, H, W, 3]`` in [0, 1], the frames of a video one after the other."""
    running.stop_if_interrupted()
    pictures = vae.decode(latents)
    return pictures.reshape(-1, *pictures.shape[-3:])[..., :3].float().cpu()
