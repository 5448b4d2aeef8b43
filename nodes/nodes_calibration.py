"""Calibration in the graph: recording the inputs of a model's layers in any sampling, and keeping them as a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..quant.calibration import BUDGET, ROWS, Calibration
from ..quant.text import shortened
from . import files, host_run
from .host_calibration import SamplingRecorder, record
from .host_probing import SamplingProbe
from .nodes_quantize import CATEGORY
from .recipe_inputs import QuantCalibration
from .sampling import RunsBar, Sampling, condition_inputs, step_inputs

CalibrationRecorder = io.Custom("CALIBRATION_RECORDER")

GIB = 2**30
FOR_QUANTIZING = "For the calibration input of quantize nodes."


def size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "rows",
            default=ROWS,
            min=64,
            max=65536,
            advanced=True,
            tooltip="Input rows kept of each layer: a uniform sample over all steps, prompts and runs.",
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


def described(calibration: Calibration) -> str:
    """Layers, rows and size, in a sentence, and the layer that was fed least."""
    samples = calibration.samples.values()
    rows = [0 if known.rows is None else len(known.rows) for known in samples]
    size = sum(0 if known.rows is None else known.rows.nbytes for known in samples) / 1e6
    least = min(calibration.samples, key=lambda layer: calibration.samples[layer].count)
    return (
        f"{len(calibration)} layers calibrated, in {len(rows)} samples; {min(rows)} to {max(rows)} rows each of "
        f"{sum(known.count for known in samples)} seen; {size:.1f} MB.\n"
        f"Fed least: {least}, {calibration.samples[least].count} rows.{_probed(calibration)}"
    )


def _probed(calibration: Calibration) -> str:
    """A line that says whose sensitivity is known, if that of any layer is."""
    known = calibration.sensitivities
    missing = [layer for layer in calibration if layer not in known]
    if not known:
        return ""
    advice = f"; not of {shortened(missing)}: the format auto needs all, so take more probe_steps" if missing else ""
    return f"\nSensitivity measured of {len(known)} of {len(calibration)} layers{advice}."


def given(calibration: Calibration) -> io.NodeOutput:
    text = described(calibration)
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
                    "bytes where they matter: every layer is disturbed in a sampling of its own of so many steps. "
                    "Takes layers x probe_steps more steps; 4 to 8 tell the layers apart. 0: do not.",
                ),
            ],
            outputs=calibration_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, seed: int, runs: int, rows: int, budget_gib: float, probe_steps: int = 0, **settings: Any
    ) -> io.NodeOutput:
        recording, recorder = record(model, rows, int(budget_gib * GIB))
        sampling = Sampling(**settings)
        bar = RunsBar(runs, sampling.steps, cls.hidden.unique_id)
        for run in range(runs):
            host_run.send_text(f"run {run + 1} of {runs}", cls.hidden.unique_id)
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
        node_id, titles = cls.hidden.unique_id, ["nothing disturbed", *layers]
        bar = RunsBar(len(titles), sampling.steps, node_id)

        def sample(probing: Any, index: int) -> Any:
            host_run.send_text(f"probing {index} of {len(layers)} layers: {titles[index]}", node_id)
            return sampling.run(probing, seed, bar.follow(probing, index))

        return SamplingProbe(model).sensitivities(layers, sample)


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
                QuantCalibration.Input("calibration", tooltip="From Collect Calibration or Calibrate Model."),
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
        calibration.save(path)
        return io.NodeOutput(str(path), ui={"text": [f"{path}\n{described(calibration)}"]})


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
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> Any:
        stat = files.calibration_path(file).stat() if file else None
        return stat and (stat.st_mtime_ns, stat.st_size)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return given(Calibration.load(files.calibration_path(file)))
