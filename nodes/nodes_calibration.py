"""The nodes that record calibrations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..quant import QuantError
from ..quant.calibration.collector import BUDGET, ROWS
from .host.encoding import calibrate_encoder
from .host.probing import SamplingProbe
from .host.recording import SamplingRecorder, attach_recorder
from .host.sampling import Sampling, SamplingBar, condition_inputs, step_inputs
from .host.server import send_text
from .page.shown import show_calibration
from .prompts import PROMPTS
from .recipe.values import lines
from .schema import CATEGORY, calibration_outputs, to_node_output

CalibrationRecorder = io.Custom("CALIBRATION_RECORDER")

GIB = 2**30
ROWS_OF_SAMPLING = "Calibration rows of each layer: a uniform sample of its inputs over all steps, prompts and runs."
ROWS_OF_ENCODING = "Calibration rows of each layer: a uniform sample of its inputs over all tokens of all prompts."


def size_inputs(rows: str = ROWS_OF_SAMPLING) -> list[io.Input]:
    return [
        io.Int.Input(
            "rows",
            default=ROWS,
            min=64,
            max=65536,
            advanced=True,
            tooltip=rows,
        ),
        io.Float.Input(
            "budget_gib",
            default=BUDGET / GIB,
            min=0.01,
            max=1024.0,
            step=0.25,
            round=0.01,
            advanced=True,
            tooltip="Memory budget of all rows together, in GiB of RAM, for any number of steps. Beyond it, fewer rows "
            "of every layer are kept.",
        ),
    ]


class RecordCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingRecordCalibration",
            display_name="Record Calibration",
            category=CATEGORY,
            description="Passes a diffusion model on. Every sampling with it also records the inputs of its layers. "
            "Images stay the same, bit for bit unless ComfyUI runs with --fast. Recordings add up while this node is "
            "not changed: queue again with other seeds and prompts to widen the sample. To start over, change an input "
            "of this node or restart ComfyUI.",
            search_aliases=["calibration", "activation statistics", "quantization calibration"],
            inputs=[io.Model.Input("model", tooltip="The float diffusion model, with its LoRAs."), *size_inputs()],
            outputs=[
                io.Model.Output(tooltip="Sample with this model, with any sampler, any number of times."),
                CalibrationRecorder.Output("recorder", tooltip="For Collect Calibration."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, rows: int, budget_gib: float) -> io.NodeOutput:
        return io.NodeOutput(*attach_recorder(model, rows, int(budget_gib * GIB)))


class CollectCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCollectCalibration",
            display_name="Collect Calibration",
            category=CATEGORY,
            description="Gives the calibration that Record Calibration has recorded, when the sampling is done.",
            search_aliases=["calibration", "finish calibration"],
            inputs=[
                CalibrationRecorder.Input("recorder", tooltip="From Record Calibration."),
                io.AnyType.Input(
                    "after",
                    tooltip="Any output of the sampling, or of the last one if there are several. Collecting waits for "
                    "it, and runs again when it changes, with everything that was recorded by then.",
                ),
            ],
            outputs=calibration_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, recorder: SamplingRecorder, after: Any) -> io.NodeOutput:
        calibration = recorder.calibration()
        return to_node_output(calibration, show_calibration(calibration))


class CalibrateModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCalibrateModel",
            display_name="Calibrate Model",
            category=CATEGORY,
            description="Samples a few times and records the inputs of the model's layers. For your own samplings, "
            "with several prompts or other samplers, use Record Calibration and Collect Calibration.",
            search_aliases=["calibration", "activation statistics", "quantization calibration"],
            inputs=[
                io.Model.Input("model", tooltip="The float diffusion model, with its LoRAs."),
                *condition_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the first run; every further run uses the next one.",
                ),
                io.Int.Input("runs", default=1, min=1, max=1000, tooltip="How many times to sample."),
                *step_inputs(),
                *size_inputs(),
                io.Int.Input(
                    "probe_steps",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    tooltip="Measure the sensitivity of every layer: how strongly the result reacts when the layer is "
                    "perturbed. The format auto then spends bytes where they matter. Each layer is perturbed in a "
                    "sampling of this many steps, so this takes layers x probe_steps more steps; 4 to 8 tell the "
                    "layers apart. 0: do not measure.",
                ),
            ],
            outputs=calibration_outputs(),
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, model: Any, seed: int, runs: int, rows: int, budget_gib: float, probe_steps: int = 0, **settings: Any
    ) -> io.NodeOutput:
        recording, recorder = attach_recorder(model, rows, int(budget_gib * GIB))
        sampling = Sampling(**settings)
        bar = SamplingBar(runs, sampling.steps, cls.hidden.unique_id)
        for run in range(runs):
            send_text(f"run {run + 1} of {runs}", cls.hidden.unique_id)
            sampling.sample(recording, (seed + run) % 2**64, bar.follow(recording, run))
        calibration = recorder.calibration()
        if probe_steps:
            probing = replace(sampling, steps=probe_steps)
            sensitivities = cls._measure_sensitivities(model, list(calibration), probing, seed)
            calibration = replace(calibration, sensitivities=sensitivities)
        return to_node_output(calibration, show_calibration(calibration))

    @classmethod
    def _measure_sensitivities(cls, model: Any, layers: list[str], sampling: Sampling, seed: int) -> dict[str, float]:
        node_id, titles = cls.hidden.unique_id, ["nothing perturbed", *layers]
        bar = SamplingBar(len(titles), sampling.steps, node_id)

        def sample(probing: Any, index: int) -> Any:
            send_text(f"probing {index} of {len(layers)} layers: {titles[index]}", node_id)
            return sampling.sample(probing, seed, bar.follow(probing, index))

        return SamplingProbe(model).measure(layers, sample)


class CalibrateTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCalibrateTextEncoder",
            display_name="Calibrate Text Encoder",
            category=CATEGORY,
            description="Encodes prompts and records the inputs of the layers of a T5-XXL or llama-style text encoder. "
            "Other encoders are refused, as by Quantize Text Encoder; beside an encoder that is recorded, they are "
            "left out.",
            search_aliases=["calibration", "calibrate clip", "calibrate t5", "activation statistics"],
            inputs=[
                io.Clip.Input("clip", tooltip="The float text encoder, with its LoRAs."),
                io.String.Input(
                    "prompts",
                    default=PROMPTS,
                    multiline=True,
                    tooltip="One per line. Use prompts like your own, long and short, and also negative prompts; a "
                    "dozen are enough.",
                ),
                *size_inputs(ROWS_OF_ENCODING),
            ],
            outputs=calibration_outputs(),
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, clip: Any, prompts: str, rows: int, budget_gib: float) -> io.NodeOutput:
        texts = lines(prompts)
        if not texts:
            raise QuantError("There is no prompt to calibrate with; write some, one per line.")
        calibration = calibrate_encoder(clip, texts, rows, int(budget_gib * GIB), cls.hidden.unique_id)
        return to_node_output(calibration, show_calibration(calibration))
