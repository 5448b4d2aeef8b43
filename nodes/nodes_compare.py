"""The node that compares models by the latents that they sample from the same noise."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..quant import QuantError
from ..quant.notices import Notice, render
from .compare.latents import CandidateRow, LatentComparison, Trace, compare_traces, tabulate
from .compare.pictures import choose_amplification, draw_side_by_side
from .compare.reference_cache import Key, ReferenceCache
from .compare.seeds import parse_seeds
from .compare.verdict import judge, judge_all
from .host import running
from .host.optional import import_optional
from .host.origin import read_provenance, read_source_names
from .host.sampling import Sampling, SamplingBar, condition_inputs, step_inputs
from .host.server import send_text
from .page.shown import UI_KEY
from .pipeline.naming import make_words, name_model
from .schema import CATEGORY

NO_VAE = "Compare Models has no picture to give without a VAE: connect one, or disconnect the picture output."

OTHERS = ("candidate_b", "candidate_c", "candidate_d")
"""Inputs of more candidates."""

_references = ReferenceCache()


class CompareModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCompareModels",
            display_name="Compare Models",
            category=CATEGORY,
            description="Samples models from the same noise, seed by seed, and reports how far apart their latents are "
            "at each step and at the end: the cost of quantizing in the result itself, in words and figures.",
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
                io.Vae.Input("vae", optional=True, tooltip="Decodes the latents of the models for the picture."),
                *(
                    io.Model.Input(name, optional=True, tooltip="One more model to judge; one table shows all of them.")
                    for name in OTHERS
                ),
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
                    tooltip="PSNR of the first candidate's finished latents, the mean over the seeds; infinite if they "
                    "are identical.",
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
        others = {name: settings.pop(name, None) for name in OTHERS}
        models = {"candidate": candidate} | {name: model for name, model in others.items() if model is not None}
        sampling, numbers = Sampling(**settings), parse_seeds(seeds)
        for model in models.values():
            refuse_unlike(sampling, reference, model)
        sampler = _Sampler(sampling, numbers, cls.hidden.unique_id, samplings=1 + len(models))
        # One after the other, so that the models need not be in memory together.
        references = sampler.trace_reference(reference)
        traces = {name: sampler.trace(model, name) for name, model in models.items()}
        rows = [
            CandidateRow(
                name=name_candidate(name, models[name]),
                nbytes=models[name].model_size(),
                seconds=sampler.seconds.get(name),
                comparison=LatentComparison(tuple(map(compare_traces, numbers, found, references))),
            )
            for name, found in traces.items()
        ]
        psnr = rows[0].psnr_db
        verdict, texts, report = describe(rows)
        shown = {UI_KEY: [{"text": texts, "notices": [entry.to_dict() for entry in verdict]}]}
        shown["text"] = [join_parts(verdict, texts)]
        if vae is None:
            return io.NodeOutput(_block_picture(), report, psnr, ui=shown)
        drawn = [
            draw_comparison(vae, row.comparison, found, references, name)
            for row, (name, found) in zip(rows, traces.items(), strict=True)
        ]
        picture = torch.cat(drawn)
        return io.NodeOutput(picture, report, psnr, ui=shown | ui.PreviewImage(picture).as_dict())


def describe(rows: Sequence[CandidateRow]) -> tuple[list[Notice], str, str]:
    """The verdict, the table that the node shows, and the whole report."""
    first = rows[0].comparison
    if len(rows) == 1:
        verdict = judge(first.mean.psnr_db)
        verdicts, summary, details = [] if verdict is None else [verdict], first.summary(), [first.table()]
    else:
        verdicts, summary = judge_all(rows), tabulate(rows)
        details = [summary, *(f"{row.name}\n\n{row.comparison.table()}" for row in rows)]
    return verdicts, summary, join_parts(verdicts, *details)


def join_parts(verdicts: Sequence[Notice], *parts: str) -> str:
    """A report: the verdict, a line for each notice, and its other parts."""
    words = "\n".join(map(render, verdicts))
    return "\n\n".join([*([words] if words else []), *parts])


def name_candidate(name: str, model: Any) -> str:
    """The name of an input, and what it is known to be: the file, or how it was quantized."""
    provenance, files = read_provenance(model), read_source_names(model)
    if provenance is not None:
        words = make_words("", provenance.recipe)
        return f"{name}: {words['format']}, {words['rounding']}"
    return f"{name}: {name_model(files[0])}" if len(files) == 1 else name


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


class _Sampler:
    """Samples models at the same seeds, under one progress bar."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], node_id: str | None, *, samplings: int) -> None:
        self._sampling, self._seeds, self._node_id = sampling, seeds, node_id
        self._bar, self._done = SamplingBar(samplings * len(seeds), sampling.steps, node_id), 0
        self.seconds: dict[str, float] = {}
        """Title of a model -> seconds of one step, the median over all seeds; the first step of each is left out."""

    def trace_reference(self, model: Any) -> list[Trace]:
        """`trace`, or the traces of the last run where nothing has changed since."""
        sampling = self._sampling
        key = Key(
            model=weakref.ref(model),
            patches=getattr(model, "patches_uuid", None),
            inputs=(sampling.positive, sampling.negative, sampling.latent_image),
            settings=(tuple(self._seeds), sampling.steps, sampling.cfg, sampling.sampler_name, sampling.scheduler),
        )
        found = _references.find(key)
        if found is None:
            found = self.trace(model, "reference")
            _references.keep(key, found)
        else:
            self._done += len(self._seeds)
        return found

    def trace(self, model: Any, title: str) -> list[Trace]:
        """Sample ``model`` at every seed."""
        times: list[float] = []
        traces = [self._trace_seed(model, seed, f"{title}, seed {seed}", times) for seed in self._seeds]
        if times:
            self.seconds[title] = statistics.median(times)
        return traces

    def _trace_seed(self, model: Any, seed: int, text: str, times: list[float]) -> Trace:
        send_text(text, self._node_id)
        steps, show = list[Tensor](), self._bar.follow(model, self._done)
        ended: list[float] = []

        def keep(step: int, predicted: Tensor, latents: Tensor, count: int) -> None:
            # Into the space of the finished latents.
            steps.append(model.model.process_latent_out(predicted.detach().to("cpu", torch.float32, copy=True)))
            ended.append(time.perf_counter())
            show(step, predicted, latents, count)

        final = self._sampling.sample(model, seed, keep)
        times += [after - before for before, after in pairwise(ended)]
        self._done += 1
        return Trace(steps, final.to("cpu", torch.float32))


def draw_comparison(
    vae: Any, comparison: LatentComparison, candidates: list[Trace], references: list[Trace], name: str = "candidate"
) -> Tensor:
    """Draw the pictures of all seeds, each with its labels, with one amplification for all.

    Args:
        vae: Decodes the latents.
        comparison: Of the same seeds.
        candidates: The candidate's sampling at each seed.
        references: The reference's.
        name: Of the candidate.

    Returns:
        Pictures ``[N, H, W, 3]``.
    """
    pairs = [(decode(vae, r.final), decode(vae, c.final)) for r, c in zip(references, candidates, strict=True)]
    factor = choose_amplification(*map(torch.cat, zip(*pairs, strict=True)))
    rows = []
    for seed, (reference, candidate) in zip(comparison.seeds, pairs, strict=True):
        psnr = seed.final.psnr_db
        closeness = "identical" if psnr == math.inf else f"{psnr:.1f} dB"
        labels = (f"reference, seed {seed.seed}", f"{name}, {closeness}", f"difference x {factor}")
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
