"""Calibrate Text Encoder in a real ComfyUI: what it records, under which names, what it leaves, what it is good for.

The encoders are small and random but for one thing: token embeddings lie near a space of few dimensions, as trained
ones do, so that what is learned of some prompts holds for others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.cli import main
from calibrated_rounding.tests.comfyui.harness import PACK, Host
from calibrated_rounding.tests.comfyui.test_nodes_encoder import SETUP as ENCODERS

SETUP = (
    ENCODERS
    + """
import comfy.model_management as management
import comfy.utils
from pack_nodes import CALIBRATED, layers
folder_paths.set_output_directory(folder)
DEFAULT = next(i for i in pack.CalibrateTextEncoder.define_schema().inputs if i.id == "prompts").default
UNSEEN = ("a lighthouse on a cliff in a storm, oil on canvas", "blurry, cropped", "three grey cats asleep on a piano")

def make(name, class_, *arguments):
    path = os.path.join(folder, name)
    module = class_(*arguments)
    state = module.state_dict()
    key = next((key for key in ("shared.weight", "model.embed_tokens.weight") if key in state), None)
    if key is not None:
        embedding = state[key]
        kinds = torch.randn(len(embedding), 24) @ torch.randn(24, embedding.shape[1])
        noise = torch.randn(4096, embedding.shape[1])[torch.arange(len(embedding)) % 4096]
        embedding.copy_(0.03 * kinds / 24**0.5 + 0.003 * noise)
    for other, tensor in state.items():
        if other != key:
            values = torch.randn(tensor.shape) * 0.03
            tensor.copy_(1 + values if "norm" in other else values)
    save_file({other: tensor.clone() for other, tensor in state.items()}, path)
    return path

def calibrate(clip, prompts=DEFAULT, **settings):
    return call(pack.CalibrateTextEncoder, clip=clip, prompts=prompts, **{"rows": 2048, "budget_gib": 2.0, **settings})

def embeddings(clip):
    return [clip.encode_from_tokens(clip.tokenize(prompt)).float() for prompt in UNSEEN]

def error(clip, wanted):
    pairs = list(zip(embeddings(clip), wanted))
    return float(sum((a - b).square().sum() for a, b in pairs).sqrt() / sum(b.square().sum() for _, b in pairs).sqrt())

def same(clip, wanted):
    return all(torch.equal(a, b) for a, b in zip(embeddings(clip), wanted))

def hooks(clip):
    return sum(len(module._forward_pre_hooks) for module in clip.cond_stage_model.modules())

def linear(module):
    return sorted(name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear))

def refusal(action):
    try:
        action()
    except Exception as error:
        return str(error)

def learned(clip, fmt, calibration, rounding=CALIBRATED, **settings):
    return call(
        pack.QuantizeTextEncoder, clip=clip, format=fmt, profile="auto", rounding=rounding, calibration=calibration,
        **settings,
    )
"""
)

QWEN = (
    SETUP
    + """
whole = llama.Qwen3_06BConfig
narrow = {"num_hidden_layers": 2, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
llama.Qwen3_06BConfig = lambda **options: whole(**{**options, **narrow})
path = make("qwen.safetensors", llama.Qwen3_06B, {}, torch.bfloat16, "cpu", comfy.ops.manual_cast)
clip = comfy.sd.load_clip([path])
wanted = embeddings(clip)

shown = []
comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: shown.append([value, total]))
node = calibrate(clip)
comfy.utils.set_progress_bar_global_hook(None)
calibration, report = node.args
outputs["prompts"] = DEFAULT.splitlines()
outputs["progress"] = shown[-1]
outputs["report"] = report
outputs["shown"] = node.ui["text"][0] == report
outputs["counts"] = {layer: known.count for layer, known in calibration.items()}
outputs["linear"] = linear(clip.cond_stage_model.qwen3_06b.transformer)
outputs["tokens"] = sum(len(clip.tokenize(line)["qwen3_06b"][0]) for line in DEFAULT.splitlines())
outputs["hooks"] = hooks(clip)
outputs["same"] = same(clip, wanted)
outputs["fewer"] = max(len(known.rows) for known in calibrate(clip, DEFAULT[:500], rows=64).args[0].samples.values())
blank = calibrate(clip, "an otter\\n\\n  \\n a red bicycle ").args[0]
outputs["blank lines"] = blank.digest == calibrate(clip, "an otter\\na red bicycle").args[0].digest

saved = call(pack.SaveCalibration, calibration=calibration, name="qwen").args[0]
outputs["saved"] = saved
loaded = call(pack.LoadCalibration, file=os.path.basename(saved)).args[0]
outputs["round trip"] = loaded.digest == calibration.digest

nodes = {"nearest": quantize(clip, "float8_e4m3fn"), "calibrated": learned(clip, "float8_e4m3fn", calibration)}
outputs["errors"] = {title: error(node.args[0], wanted) for title, node in nodes.items()}
outputs["layers"] = layers(nodes["calibrated"])
outputs["texts"] = [
    learned(clip, "float8_e4m3fn", loaded).ui["text"][0], learned(clip, "float8_e4m3fn", loaded, NEAREST).ui["text"][0]
]
scaled = learned(clip, "float8_e4m3fn", loaded, NEAREST, input_scale="absmax").args[0]
outputs["scales"] = sum(key.endswith(".input_scale") for key in scaled.cond_stage_model.state_dict())
outputs["same after"] = same(clip, wanted)

outputs["quantized"] = refusal(lambda: calibrate(scaled))
outputs["empty"] = refusal(lambda: calibrate(clip, " \\n\\n"))
outputs["no clip"] = refusal(lambda: calibrate(None))
outputs["no calibration"] = refusal(lambda: learned(clip, "int8_row", None))
changed = comfy.sd.load_clip([path])
changed.cond_stage_model.state_dict()["qwen3_06b.transformer.model.layers.1.mlp.up_proj.weight"].mul_(-1)
changed.patcher.cached_patcher_init = None
outputs["other"] = refusal(lambda: learned(changed, "int8_row", calibration))

encode, during = clip.encode_from_tokens_scheduled, []
def interrupted(tokens):
    during.append(hooks(clip))
    found = encode(tokens)
    if len(during) == 2:
        management.interrupt_current_processing()
    return found
clip.encode_from_tokens_scheduled = interrupted
try:
    calibrate(clip)
except management.InterruptProcessingException:
    outputs["interrupt"] = [len(during), min(during) > 0, hooks(clip)]
del clip.encode_from_tokens_scheduled

layer = clip.cond_stage_model.qwen3_06b.transformer.model.layers[1].mlp.up_proj
def full(*_, **__):
    during.append(hooks(clip))
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
layer.forward = full
try:
    calibrate(clip)
except torch.cuda.OutOfMemoryError:
    outputs["out of memory"] = [during[-1] > 0, hooks(clip)]
del layer.forward
outputs["same at the end"] = same(clip, wanted)
"""
)

SEVERAL = (
    SETUP
    + """
narrow = {"d_model": 64, "d_kv": 8, "num_heads": 4}
small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
small |= {"num_key_value_heads": 1, "vocab_size": 128256}
options = {"t5xxl_model_config": narrow, "llama_model_config": small}
with open(os.path.join(os.path.dirname(comfy.sd.__file__), "text_encoders", "t5_config_xxl.json")) as file:
    config = {**json.load(file), **narrow}
t5_path = make("t5.safetensors", t5.T5, config, torch.bfloat16, "cpu", comfy.ops.manual_cast)
llama_path = make("llama.safetensors", llama.Llama2, small, torch.bfloat16, "cpu", comfy.ops.manual_cast)
save_random("clip_l.safetensors", comfy.sd1_clip.SDClipModel(dtype=torch.bfloat16).transformer)

class Letters:
    "In the place of Llama's tokenizer, whose file not every checkout has."
    def __init__(self, *_, **__):
        pass
    def tokenize_with_weights(self, text, *_, **__):
        return [[(128000, 1.0), *((ord(letter), 1.0) for letter in text)]]

comfy.text_encoders.hunyuan_video.LLAMA3Tokenizer = Letters

def load(*paths, kind):
    return comfy.sd.load_clip(list(paths), clip_type=kind, model_options=dict(options))

FEW = "\\n".join(DEFAULT.splitlines()[:4])
beside = load("clip_l.safetensors", t5_path, kind=comfy.sd.CLIPType.FLUX)
one = calibrate(beside, FEW, rows=64).args[0]
outputs["t5 linear"] = linear(beside.cond_stage_model.t5xxl.transformer)
outputs["beside"] = sorted(one)
outputs["saved"] = call(pack.SaveCalibration, calibration=one, name="t5").args[0]
outputs["layers"] = layers(learned(beside, "float8_e4m3fn", one, exclude=wide))

both = load(t5_path, llama_path, kind=comfy.sd.CLIPType.HIDREAM)
two = calibrate(both, FEW, rows=64).args[0]
outputs["hooks"] = hooks(both)
outputs["llama linear"] = linear(both.cond_stage_model.llama.transformer)
outputs["both"] = sorted(two)
outputs["both layers"] = layers(learned(both, "float8_e4m3fn", two, exclude=wide))
alone = load(t5_path, kind=comfy.sd.CLIPType.CHROMA)
outputs["share"] = layers(learned(alone, "float8_e4m3fn", two, exclude=wide))
outputs["not its own"] = refusal(lambda: learned(both, "float8_e4m3fn", one, exclude=wide))
outputs["clip_l"] = refusal(lambda: calibrate(comfy.sd.load_clip(["clip_l.safetensors"])))
"""
)

WIDE = "wo$|wi_.$"
"""Layers of a T5 that its narrowing leaves wide, so that they would take minutes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def qwen(host: Host, folder: Path) -> dict[str, Any]:
    return host.run(QWEN, root=str(PACK), folder=str(folder))


@pytest.fixture(scope="module")
def several(host: Host, folder: Path) -> dict[str, Any]:
    return host.run(SEVERAL, root=str(PACK), folder=str(folder), wide=WIDE)


def test_the_default_prompts_are_about_a_dozen_short_and_long(qwen: dict[str, Any]) -> None:
    lengths = [len(line.split()) for line in qwen["prompts"]]
    assert 10 <= len(lengths) <= 20
    assert min(lengths) <= 3 and max(lengths) >= 40


def test_every_layer_sees_every_token_of_every_prompt(qwen: dict[str, Any]) -> None:
    assert sorted(qwen["counts"]) == qwen["linear"]
    assert set(qwen["counts"].values()) == {qwen["tokens"]}


def test_encodings_do_not_change_and_no_hook_is_left(qwen: dict[str, Any]) -> None:
    assert qwen["hooks"] == 0
    assert qwen["same"] and qwen["same after"] and qwen["same at the end"]


def test_it_tells_how_far_it_is_and_what_it_recorded(qwen: dict[str, Any]) -> None:
    assert qwen["progress"] == [len(qwen["prompts"])] * 2
    assert "14 layers calibrated" in qwen["report"] and qwen["shown"]


def test_rows_bound_the_sample_and_blank_lines_are_no_prompts(qwen: dict[str, Any]) -> None:
    assert qwen["fewer"] == 64
    assert qwen["blank lines"]


def test_an_interrupt_between_prompts_stops_it_and_leaves_no_hook(qwen: dict[str, Any]) -> None:
    encoded, hooked, left = qwen["interrupt"]
    assert (encoded, hooked, left) == (2, True, 0)


def test_an_error_in_the_middle_leaves_no_hook(qwen: dict[str, Any]) -> None:
    assert qwen["out of memory"] == [True, 0]


def test_embeddings_of_unseen_prompts_are_closer_than_with_nearest(qwen: dict[str, Any]) -> None:
    assert qwen["errors"]["calibrated"] <= 0.75 * qwen["errors"]["nearest"], qwen["errors"]


def test_every_layer_is_closer_on_held_out_inputs(qwen: dict[str, Any]) -> None:
    assert len(qwen["layers"]) == 14
    pairs = [layer["errors"]["output_w8a16"] for layer in qwen["layers"]]
    assert all(pair["error"] < pair["nearest"] for pair in pairs)


def test_a_saved_calibration_loads_as_it_was_and_rounds_the_same(qwen: dict[str, Any]) -> None:
    assert qwen["round trip"]
    same, unused = qwen["texts"]
    assert "nothing was rounded" in same
    assert "calibration only measures the error" in unused


def test_it_serves_input_scales(qwen: dict[str, Any]) -> None:
    assert qwen["scales"] == 14


@pytest.mark.parametrize(
    ("case", "texts"),
    [
        ("quantized", ("is quantized", "calibrate the float model")),
        ("empty", ("no prompt", "one a line")),
        ("no clip", ("no text encoder",)),
        ("no calibration", ("needs recorded inputs",)),
        ("other", ("another model", "1 of 14 layers", "(model.layers.1.mlp.up_proj)")),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(qwen: dict[str, Any], case: str, texts: tuple[str, ...]) -> None:
    assert all(text in qwen[case] for text in texts), qwen[case]
    assert "\n" not in qwen[case]


def test_encoders_that_comfyui_does_not_run_quantized_are_refused_or_left_out(several: dict[str, Any]) -> None:
    assert "clip_l cannot be quantized" in several["clip_l"]
    assert several["beside"] == several["t5 linear"]


def test_layers_of_several_encoders_are_named_by_encoder(several: dict[str, Any]) -> None:
    wanted = {"t5xxl": several["t5 linear"], "llama": several["llama linear"]}
    assert several["both"] == sorted(f"{part}.{layer}" for part, layers in wanted.items() for layer in layers)
    assert several["hooks"] == 0


@pytest.mark.parametrize("case", ["layers", "both layers", "share"])
def test_each_encoder_is_rounded_by_its_share(several: dict[str, Any], case: str) -> None:
    assert {name.split(".")[0] for name in (layer["name"] for layer in several[case])} == (
        {"t5xxl", "llama"} if case == "both layers" else {"encoder"}
    )
    assert all(layer["errors"]["output_w8a16"] is not None for layer in several[case])


def test_a_calibration_that_lacks_an_encoder_is_refused(several: dict[str, Any]) -> None:
    assert "another model" in several["not its own"]


@pytest.mark.parametrize(("encoder", "fixture"), [("qwen", "qwen"), ("t5", "several")])
def test_the_command_line_does_the_same_with_the_encoder_s_own_file(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, encoder: str, fixture: str
) -> None:
    made = request.getfixturevalue(fixture)
    command = ["-i", folder / f"{encoder}.safetensors", "-o", tmp_path / "q.safetensors", "--format", "float8_e4m3fn"]
    command += [
        "--exclude-layers",
        WIDE,
        "--calibration",
        made["saved"],
        "--report",
        tmp_path / "report.json",
        *("--quiet", "--device", "cpu"),
    ]
    assert main([str(word) for word in command]) == 0

    def errors(layers: list[dict[str, Any]]) -> dict[str, float]:
        return {layer["name"]: layer["errors"]["output_w8a16"]["error"] for layer in layers}

    by_shell = json.loads((tmp_path / "report.json").read_text())["layers"]
    assert errors(by_shell) == pytest.approx(errors(made["layers"]), rel=1e-5)
    assert errors(by_shell).keys() <= Calibration.load(made["saved"]).keys()
