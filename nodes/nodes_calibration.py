"""Calibration in the graph: recording the inputs of a model's layers in any sampling, and keeping them as a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..quant import QuantError
from ..quant.calibration.calibration import Calibration
from ..quant.calibration.collector import BUDGET, ROWS
from .host import running
from .host.encoding import calibrate_encoder
from .host.probing import SamplingProbe
from .host.recording import SamplingRecorder, record
from .host.sampling import RunsBar, Sampling, condition_inputs, step_inputs
from .pipeline import files
from .prompts import PROMPTS
from .recipe.inputs import QuantCalibration
from .recipe.values import lines
from .schema import CATEGORY

CalibrationRecorder = io.Custom("CALIBRATION_RECORDER")

GIB = 2**30
FOR_QUANTIZING = "For the calibration input of quantize nodes."
ROWS_OF_SAMPLING = "Input rows kept of each layer: a uniform sample over all steps, prompts and runs."
ROWS_OF_ENCODING = "Input rows kept of each layer: a uniform sample over all tokens of all prompts."


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
            tooltip="Memory that all rows together may take, in GiB of the computer's memory, however many steps there "
            "are; beyond it, fewer rows of every layer are kept.",
        ),
    ]


def given(calibration: Calibration) -> io.NodeOutput:
    text = calibration.summary()
    return io.NodeOutput(calibration, text, ui={"text": [text]})


def calibration_outputs() -> list[io.Output]:
    return [
        QuantCalibration.Output("calibration", tooltip=FOR_QUANTIZING),
        io.String.Output("report", tooltip="How many layers and rows, and how large."),
    ]


class RecordCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingRecordCalibration",
            display_name="Record Calibration",
            category=CATEGORY,
            description="Passes a diffusion model on so that every sampling with it also records what its layers are "
            "fed. Images stay the same, bit for bit. Recordings add up while this node stays as it is: queue again "
            "with other seeds and prompts to widen the sample; change an input here, or restart, to begin anew.",
            search_aliases=["calibration", "activation statistics", "quantization calibration"],
            inputs=[io.Model.Input("model", tooltip="The float diffusion model, with its LoRAs."), *size_inputs()],
            outputs=[
                io.Model.Output(tooltip="Sample with this one; any sampler, any number of times."),
                CalibrationRecorder.Output("recorder", tooltip="For Collect Calibration."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, rows: int, budget_gib: float) -> io.NodeOutput:
        return io.NodeOutput(*record(model, rows, int(budget_gib * GIB)))


class CollectCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCollectCalibration",
            display_name="Collect Calibration",
            category=CATEGORY,
            description="Takes what Record Calibration has recorded when the sampling is done.",
            search_aliases=["calibration", "finish calibration"],
            inputs=[
                CalibrationRecorder.Input("recorder", tooltip="From Record Calibration."),
                io.AnyType.Input(
                    "after",
                    tooltip="Anything that comes out of the sampling (the last one, if there are several): collecting "
                    "waits for it, and is done again whenever it changes, with all that was recorded by then.",
                ),
            ],
            outputs=calibration_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, recorder: SamplingRecorder, after: Any) -> io.NodeOutput:
        return given(recorder.calibration())


class CalibrateModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCalibrateModel",
            display_name="Calibrate Model",
            category=CATEGORY,
            description="Samples a few times and records what the model's layers are fed. For samplings of your own, "
            "several prompts or other samplers take Record Calibration and Collect Calibration.",
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
                    tooltip="Of the first run; each further one takes the next.",
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
                    tooltip="Measure by how much the result changes with each layer, so that the format auto spends "
                    "bytes where they matter: every layer is perturbed in a sampling of its own of so many steps. "
                    "Takes layers x probe_steps more steps; 4 to 8 tell the layers apart. 0: do not.",
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
        recording, recorder = record(model, rows, int(budget_gib * GIB))
        sampling = Sampling(**settings)
        bar = RunsBar(runs, sampling.steps, cls.hidden.unique_id)
        for run in range(runs):
            running.send_text(f"run {run + 1} of {runs}", cls.hidden.unique_id)
            sampling.run(recording, (seed + run) % 2**64, bar.follow(recording, run))
        calibration = recorder.calibration()
        if probe_steps:
            probing = replace(sampling, steps=probe_steps)
            calibration = replace(
                calibration, sensitivities=cls._sensitivities(model, list(calibration), probing, seed)
            )
        return given(calibration)

    @classmethod
    def _sensitivities(cls, model: Any, layers: list[str], sampling: Sampling, seed: int) -> dict[str, float]:
        node_id, titles = cls.hidden.unique_id, ["nothing perturbed", *layers]
        bar = RunsBar(len(titles), sampling.steps, node_id)

        def sample(probing: Any, index: int) -> Any:
            running.send_text(f"probing {index} of {len(layers)} layers: {titles[index]}", node_id)
            return sampling.run(probing, seed, bar.follow(probing, index))

        return SamplingProbe(model).sensitivities(layers, sample)


class CalibrateTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingCalibrateTextEncoder",
            display_name="Calibrate Text Encoder",
            category=CATEGORY,
            description="Encodes prompts and records what the layers of a T5-XXL or llama-style text encoder are fed. "
            "Others are refused, as Quantize Text Encoder refuses them; beside one that is recorded they are left out.",
            search_aliases=["calibration", "calibrate clip", "calibrate t5", "activation statistics"],
            inputs=[
                io.Clip.Input("clip", tooltip="The float text encoder, with its LoRAs."),
                io.String.Input(
                    "prompts",
                    default=PROMPTS,
                    multiline=True,
                    tooltip="One a line. Like those that you will use, long and short, and also what you write to "
                    "avoid; a dozen do.",
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
            raise QuantError("There is no prompt to calibrate with; write some, one a line.")
        return given(calibrate_encoder(clip, texts, rows, int(budget_gib * GIB), cls.hidden.unique_id))


class SaveCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingSaveCalibration",
            display_name="Save Calibration",
            category=CATEGORY,
            description="Writes a calibration into the output folder, for Load Calibration and the command line's "
            "--calibration.",
            search_aliases=["export calibration"],
            inputs=[
                QuantCalibration.Input("calibration", tooltip="From any of the calibration nodes."),
                io.String.Input(
                    "name",
                    default="calibration",
                    tooltip=f"Name of the file in output/{files.CALIBRATIONS}; a number is added.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, calibration: Calibration, name: str) -> io.NodeOutput:
        path = files.output_file(f"{files.CALIBRATIONS}/{name}")
        calibration.save(path, overwrite=False)
        return io.NodeOutput(str(path), ui={"text": [f"{path}\n{calibration.summary()}"]})


class LoadCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingLoadCalibration",
            display_name="Load Calibration",
            category=CATEGORY,
            description="A calibration that Save Calibration has written. It serves the model that it was recorded "
            "with, and is refused for any other.",
            search_aliases=["import calibration"],
            inputs=[
                io.Combo.Input(
                    "file", options=files.calibration_files(), tooltip=f"A file in output/{files.CALIBRATIONS}."
                )
            ],
            outputs=calibration_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> Any:
        stat = files.calibration_path(file).stat() if file else None
        return stat and (stat.st_mtime_ns, stat.st_size)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return given(Calibration.load(files.calibration_path(file)))
