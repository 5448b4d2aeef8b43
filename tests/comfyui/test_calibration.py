"""Calibration in a real ComfyUI: what is recorded in any sampling, what it leaves behind, and what it is good for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant.cli import main
from calibrated_rounding.tests.comfyui import workflows
from calibrated_rounding.tests.comfyui.harness import PACK, Host, HostError, Server, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SETUP = """
import os, folder_paths, pack_nodes
import comfy.model_management as management
from pack_nodes import call, NEAREST, CALIBRATED
pack = pack_nodes.load(root)
folder_paths.set_output_directory(output)
model, _ = inside.load_unet(source)

def record(patcher, rows=2048, budget_gib=2.0):
    return call(pack.RecordCalibration, model=patcher, rows=rows, budget_gib=budget_gib).args

def collect(recorder):
    return call(pack.CollectCalibration, recorder=recorder, after=None).args[0]

def hooks():
    return sum(len(module._forward_pre_hooks) for module in model.model.diffusion_model.modules())

def quantize(patcher, fmt, rounding=NEAREST, **settings):
    return call(pack.QuantizeModel, model=patcher, format=fmt, profile="auto", rounding=rounding, **settings)

def refusal(action):
    try:
        action()
    except Exception as error:
        return str(error)
"""

STEPS, BATCH, TOKENS = 4, 2 * 2, 16
"""Of `pack_nodes.sample`: two digits, each asked for and not, in patches of 2 x 2 of a latent of 8 x 8."""


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return load_file(example_model("digits_conditioning.safetensors"))["conditioning"]


@pytest.fixture(scope="module")
def inputs(table: torch.Tensor) -> dict[str, Any]:
    return {"root": str(PACK), "source": str(example_model("digits_wan.safetensors")), "table": table}


RECORDING_CODE = (
    SETUP
    + """
import comfy.sample

def fail(raised, recording):
    seen = []
    def callback(step, *_):
        seen.append(hooks())
        raise raised
    empty = torch.zeros(1, 16, 1, 8, 8)
    try:
        comfy.sample.sample(
            recording, empty + 1, 4, 3.0, "euler", "simple", [[table[:1], {}]], [[table[10:], {}]], empty,
            callback=callback, disable_pbar=True, seed=0,
        )
    except BaseException as error:
        return [seen[0] > 0, error is raised, hooks()]

plain = pack_nodes.sample(model, table)
recording, recorder = record(model)
outputs["equal"] = torch.equal(plain, pack_nodes.sample(recording, table))
outputs["hooks after"] = hooks()
once = collect(recorder)
outputs["counts"] = {layer: known.count for layer, known in once.items()}
outputs["leaders"] = dict(once.shared)
outputs["absmax"] = {layer: known.absmax for layer, known in once.items()}
outputs["linear layers"] = [
    name for name, module in model.model.diffusion_model.named_modules() if isinstance(module, torch.nn.Linear)
]
outputs["equal through clones"] = torch.equal(plain, pack_nodes.sample(recording.clone(), table))
twice = collect(recorder)
outputs["twice"] = {layer: known.count for layer, known in twice.items()}
outputs["first unchanged"] = {layer: known.count for layer, known in once.items()} == outputs["counts"]
outputs["digests"] = [once.digest == collect(recorder).digest, twice.digest == collect(recorder).digest]
outputs["error"] = fail(ValueError("broken"), recording)
outputs["interrupt"] = fail(management.InterruptProcessingException(), recording)
outputs["equal without"] = torch.equal(plain, pack_nodes.sample(model, table))

small, small_recorder = record(model, rows=64, budget_gib=0.0001)
pack_nodes.sample(small, table)
known = collect(small_recorder)
outputs["small"] = sum(sample.rows.nbytes for sample in known.samples.values())
outputs["small rows"] = sorted({len(sample.rows) for sample in known.samples.values()})

quantized = quantize(model, "int8_row").args[0]
outputs["quantized"] = refusal(lambda: record(quantized))
outputs["nothing"] = refusal(lambda: collect(record(model)[1]))
outputs["counted before"] = collect(recorder)["head.head"].count
pack_nodes.sample(quantize(recording, "int8_row").args[0], table)
outputs["counted after"] = collect(recorder)["head.head"].count

from comfy_api.torch_helpers import set_torch_compile_wrapper
compiled = model.clone()
set_torch_compile_wrapper(compiled, backend="eager")
pack_nodes.sample(compiled, table)
compiled, recorder = record(compiled)
pack_nodes.sample(compiled, table)
outputs["compiled"] = {layer: known.count for layer, known in collect(recorder).items()}
"""
)


@pytest.fixture(scope="module")
def recorded(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return host.run(RECORDING_CODE, **inputs, output=str(tmp_path_factory.mktemp("output")))


def test_latents_are_the_same_bit_for_bit(recorded: dict[str, Any]) -> None:
    assert recorded["equal"]
    assert recorded["equal through clones"]
    assert recorded["equal without"]


def test_no_hook_is_left_after_a_run(recorded: dict[str, Any]) -> None:
    assert recorded["hooks after"] == 0


@pytest.mark.parametrize("end", ["error", "interrupt"])
def test_no_hook_is_left_after_an_end_before_the_end(recorded: dict[str, Any], end: str) -> None:
    hooked_during_the_run, went_through, left = recorded[end]
    assert (hooked_during_the_run, went_through, left) == (True, True, 0)


def test_every_linear_layer_is_seen_in_every_step(recorded: dict[str, Any], table: torch.Tensor) -> None:
    assert set(recorded["counts"]) == set(recorded["linear layers"])
    asked = {"self_attn": TOKENS, "cross_attn.q": TOKENS, "cross_attn.o": TOKENS, "cross_attn.k": table.shape[1]}
    for layer, count in recorded["counts"].items():
        tokens = next((number for part, number in asked.items() if f".{part}" in layer), None)
        if tokens is not None:
            assert count == STEPS * BATCH * tokens, layer
    assert all(maximum > 0 for maximum in recorded["absmax"].values())


def test_layers_that_are_fed_the_same_tensor_share_a_sample(recorded: dict[str, Any]) -> None:
    leaders = recorded["leaders"]
    for block in ("blocks.0", "blocks.1"):
        assert {leaders[f"{block}.self_attn.{name}"] for name in "qkv"} == {f"{block}.self_attn.q"}
        assert leaders[f"{block}.self_attn.o"] == f"{block}.self_attn.o"
        assert leaders[f"{block}.cross_attn.v"] == f"{block}.cross_attn.k"


def test_runs_add_up_and_what_was_collected_stays(recorded: dict[str, Any]) -> None:
    assert recorded["twice"] == {layer: 2 * count for layer, count in recorded["counts"].items()}
    assert recorded["first unchanged"]
    assert recorded["digests"] == [False, True]


def test_the_budget_bounds_the_rows_kept(recorded: dict[str, Any]) -> None:
    assert 0 < recorded["small"] <= 0.0001 * 2**30
    assert max(recorded["small rows"]) < 64


def test_a_quantized_model_is_refused_in_one_sentence(recorded: dict[str, Any]) -> None:
    assert "is quantized" in recorded["quantized"]
    assert "calibrate the float model" in recorded["quantized"]
    assert "\n" not in recorded["quantized"]


def test_collecting_nothing_tells_what_to_do(recorded: dict[str, Any]) -> None:
    assert "Nothing was recorded" in recorded["nothing"]


def test_a_quantized_model_does_not_record(recorded: dict[str, Any]) -> None:
    assert recorded["counted before"] == recorded["counted after"]


def test_a_model_that_was_compiled_before_is_recorded_in_full(recorded: dict[str, Any]) -> None:
    assert recorded["compiled"] == recorded["counts"]


QUALITY_CODE = (
    SETUP
    + """
from calibrated_rounding.nodes.host.models import diffusion_tensors, origin_of
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.files.dequantized import as_float
conditions = {"positive": [[table[:10], {}]], "negative": [[table[10:].expand(10, -1, -1), {}]]}
settings = {"steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "rows": 2048, "budget_gib": 2.0}
calibration, report = call(
    pack.CalibrateModel, model=model, **conditions, latent_image={"samples": torch.zeros(10, 16, 1, 8, 8)},
    seed=1000, runs=2, **settings,
).args
outputs["report"] = report
path = call(pack.SaveCalibration, calibration=calibration, name="digits").args[0]
outputs["path"] = path
name = os.path.basename(path)
outputs["listed"] = pack.LoadCalibration.define_schema().inputs[0].options
loaded = call(pack.LoadCalibration, file=name).args[0]
outputs["round trip"] = loaded.digest == calibration.digest
seeds = range(3)
wanted = torch.stack([inside.sample(model, table, seed) for seed in seeds])

def error(made):
    latents = torch.stack([inside.sample(made, table, seed) for seed in seeds])
    return float((latents - wanted).norm() / wanted.norm())

def weights_error(made):
    "The error that the rounded weights make in the float model, whose inputs are not rounded."
    floats = as_float(StateDictSource(diffusion_tensors(origin_of(made))), True, torch.float32)
    inner = model.model.diffusion_model
    own = {key: tensor.clone() for key, tensor in inner.state_dict().items()}
    inner.load_state_dict({key: floats.read(key) for key in own})
    found = error(model)
    inner.load_state_dict(own)
    return found

for fmt in formats:
    nodes = {"nearest": quantize(model, fmt), "calibrated": quantize(model, fmt, CALIBRATED, calibration=calibration)}
    outputs[fmt] = {
        "sampled": {title: error(node.args[0]) for title, node in nodes.items()},
        "weights": {title: weights_error(node.args[0]) for title, node in nodes.items()},
        "layers": nodes["calibrated"].ui["calibrated_rounding"][0]["layers"],
    }
outputs["texts"] = [
    quantize(model, "float8_e4m3fn", CALIBRATED, calibration=loaded).ui["text"][0],
    quantize(model, "float8_e4m3fn", calibration=loaded).ui["text"][0],
]
scaled = quantize(model, "float8_e4m3fn", calibration=loaded, input_scale="absmax", bias_correction="measured").args[0]
outputs["scales"] = sum(key.endswith(".input_scale") for key in scaled.model.state_dict())
outputs["biases"] = not torch.equal(
    *(m.model.state_dict()["diffusion_model.blocks.0.self_attn.q.bias"] for m in (model, scaled))
)

other, _ = inside.load_unet(other)
outputs["other"] = refusal(lambda: quantize(other, "int8_row", CALIBRATED, calibration=calibration))
outputs["none"] = refusal(lambda: quantize(model, "int8_row", CALIBRATED))
one = record(model)
pack_nodes.sample(one[0], table)
outputs["another calibration"] = quantize(
    model, "float8_e4m3fn", CALIBRATED, calibration=collect(one[1])
).ui["text"][0]
"""
)
NEEDED = {
    ("float8_e4m3fn", "sampled"): 8.0,
    ("float8_e4m3fn", "weights"): 8.0,
    ("int8_convrot", "sampled"): 1.0,
    ("int8_convrot", "weights"): 6.0,
}
"""By how many decibels latents must be closer to the float model's than with nearest: as ComfyUI samples, and of the
weights alone. INT8 rounds the inputs too while it runs, which no rounding of weights mends: with perfect weights these
latents would gain 1.7 dB."""
FORMATS = tuple(dict.fromkeys(fmt for fmt, _ in NEEDED))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model with one weight changed."""
    tensors = load_file(example_model("digits_wan.safetensors"))
    tensors["blocks.1.ffn.0.weight"] = tensors["blocks.1.ffn.0.weight"].flip(0).contiguous()
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    with safe_open(example_model("digits_wan.safetensors"), "pt") as file:
        save_file(tensors, path, file.metadata())
    return path


@pytest.fixture(scope="module")
def used(host: Host, inputs: dict[str, Any], other: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = str(tmp_path_factory.mktemp("output"))
    return host.run(QUALITY_CODE, **inputs, timeout=600, output=output, formats=FORMATS, other=str(other))


@pytest.mark.parametrize(("fmt", "kind"), NEEDED)
def test_calibrated_latents_at_unseen_seeds_are_closer(used: dict[str, Any], fmt: str, kind: str) -> None:
    errors = used[fmt][kind]
    assert 20 * math.log10(errors["nearest"] / errors["calibrated"]) >= NEEDED[fmt, kind], errors


def layers_of(quantized: dict[str, Any]) -> list[dict[str, Any]]:
    """What the node shows of each layer."""
    return workflows.table(quantized["layers"])


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_layer_is_closer_on_held_out_inputs(used: dict[str, Any], fmt: str) -> None:
    pairs = [layer["errors"]["output_w8a16"] for layer in layers_of(used[fmt])]
    assert all(pair["error"] <= pair["nearest"] for pair in pairs)


def test_saved_calibrations_are_listed_and_load_as_they_were(used: dict[str, Any]) -> None:
    path = Path(used["path"])
    assert path.parent.name == "calibrations"
    assert used["listed"] == [path.name]
    assert used["round trip"]


def test_the_report_tells_layers_and_size(used: dict[str, Any]) -> None:
    assert "layers calibrated" in used["report"]
    assert "MB" in used["report"]


def test_results_are_kept_for_each_calibration(used: dict[str, Any]) -> None:
    same, unused = used["texts"]
    assert "nothing was rounded" in same
    assert "nothing was rounded" not in used["another calibration"]
    assert "calibration only measured the error" in unused


def test_statistics_serve_input_scales_and_biases(used: dict[str, Any]) -> None:
    assert used["scales"] == len(layers_of(used["float8_e4m3fn"]))
    assert used["biases"]


def test_a_calibration_of_another_model_is_refused_by_layer(used: dict[str, Any]) -> None:
    assert "1 of 19 layers" in used["other"] and "(blocks.1.ffn.0)" in used["other"]
    assert "another model" in used["other"]
    assert "\n" not in used["other"]


def test_calibrated_rounding_without_a_calibration_says_so(used: dict[str, Any]) -> None:
    assert "needs recorded inputs" in used["none"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_command_line_does_the_same_with_the_file(used: dict[str, Any], fmt: str, tmp_path: Path) -> None:
    command = ["-i", example_model("digits_wan.safetensors"), "-o", tmp_path / "q.safetensors", "--format", fmt]
    command += ["--calibration", used["path"], "--report", tmp_path / "report.json", "--quiet", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    errors = [
        {layer["name"]: layer["errors"]["output_w8a16"]["error"] for layer in layers}
        for layers in (report["layers"], layers_of(used[fmt]))
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


GRAPH: dict[str, Any] = {
    "loader": {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "digits_wan.safetensors", "weight_dtype": "default"},
    },
    "record": {"class_type": "CalibratedRoundingRecordCalibration", "inputs": {"model": ["loader", 0]}},
    "positive": {
        "class_type": "CalibratedRoundingLoadClassConditioning",
        "inputs": {"table": "digits_conditioning.safetensors", "class_index": 3},
    },
    "negative": {
        "class_type": "CalibratedRoundingLoadClassConditioning",
        "inputs": {"table": "digits_conditioning.safetensors", "class_index": 10},
    },
    "latent": {
        "class_type": "EmptyHunyuanLatentVideo",
        "inputs": {"width": 64, "height": 64, "length": 1, "batch_size": 1},
    },
    "sampler": {
        "class_type": "KSampler",
        "inputs": {
            **{"model": ["record", 0], "positive": ["positive", 0], "negative": ["negative", 0]},
            **{"latent_image": ["latent", 0], "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"},
            "denoise": 1.0,
        },
    },
    "collect": {
        "class_type": "CalibratedRoundingCollectCalibration",
        "inputs": {"recorder": ["record", 1], "after": ["sampler", 0]},
    },
    "save": {
        "class_type": "CalibratedRoundingSaveCalibration",
        "inputs": {"calibration": ["collect", 0], "name": "graph"},
    },
    "report": {"class_type": "PreviewAny", "inputs": {"source": ["collect", 1]}},
}


def queued(server: Server, seed: int) -> str:
    """What Collect Calibration reports when the recording graph is queued with a seed."""
    sampler = {**GRAPH["sampler"], "inputs": {**GRAPH["sampler"]["inputs"], "seed": seed}}
    record = {**GRAPH["record"], "inputs": {**GRAPH["record"]["inputs"], "rows": 2048, "budget_gib": 1.0}}
    shown: str = server.execute({**GRAPH, "sampler": sampler, "record": record})["report"]["text"][0]
    return shown


def test_another_seed_adds_to_the_recording_and_the_same_one_does_not(server: Server) -> None:
    rows = [int(queued(server, seed).split(" seen")[0].split()[-1]) for seed in (1, 1, 2)]
    assert rows == [rows[0], rows[0], 2 * rows[0]]
    assert server.object_info("CalibratedRoundingLoadCalibration")["input"]["required"]["file"][1]["options"]


def test_calibrated_rounding_without_a_calibration_is_refused_in_the_graph(server: Server) -> None:
    rounding = {"rounding": "calibrated", "rounding.damping": 0.0, "rounding.passes": 1}
    quantize = {"model": ["loader", 0], "format": "int8_row", "profile": "auto", **rounding}
    graph = {
        "loader": GRAPH["loader"],
        "quantize": {"class_type": "CalibratedRoundingQuantizeModel", "inputs": quantize},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["quantize", 1]}},
    }
    with pytest.raises(HostError, match="needs recorded inputs; give a calibration"):
        server.execute(graph)
