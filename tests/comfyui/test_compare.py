"""Compare Models in a real ComfyUI: its figures against sampling by hand, its picture, and what it leaves behind."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from calibrated_rounding.tests.comfyui.harness import PACK, Host, HostError, Server, example_model
from PIL import Image
from safetensors.torch import load_file

STEPS, SEEDS = 4, (3, 5)

SETUP = """
import comfy.model_management as management
import comfy.latent_formats, comfy.nested_tensor, comfy.utils
import pack_nodes, nodes
from pack_nodes import call, NEAREST
pack = pack_nodes.load(root)
from calibrated_rounding.nodes import examples
from calibrated_rounding.nodes.host.sampling import Sampling
examples.register()
model, _ = inside.load_unet(source)
quantized = call(pack.QuantizeModel, model=model, format="int8_row", profile="auto", rounding=NEAREST).args[0]
conditions = {"positive": [[table[:2], {}]], "negative": [[table[10:].expand(2, -1, -1), {}]]}
how = {"steps": steps, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
empty = {"samples": torch.zeros(2, 16, 1, 8, 8)}

def compare(reference, candidate, seeds="3, 5", latent_image=empty, **others):
    return call(
        pack.CompareModels, unique_id="9", reference=reference, candidate=candidate, seeds=seeds,
        latent_image=latent_image, **conditions, **how, **others,
    )

def by_hand(patcher, seed, latent_image=empty):
    return nodes.common_ksampler(
        patcher, seed, *how.values(), *conditions.values(), latent_image
    )[0]["samples"]

def refusal(action):
    try:
        action()
    except Exception as error:
        return str(error)
"""

COMPARED = (
    SETUP
    + """
node = compare(model, quantized)
outputs["report"], outputs["psnr"], outputs["shown"] = node.args[1], node.args[2], node.ui
for title, patcher in {"reference": model, "candidate": quantized}.items():
    outputs[title] = torch.stack([by_hand(patcher, seed) for seed in seeds])
same = compare(model, model.clone())
outputs["same report"], outputs["same psnr"] = same.args[1], str(same.args[2])

mask = torch.zeros(1, 8, 8)
mask[:, 2:6] = 1
drawn = {"samples": outputs["reference"][0].clone(), "noise_mask": mask, "batch_index": [4, 9]}
predicted = []
masked = Sampling(**conditions, latent_image=drawn, **how).run(model, 3, lambda step, x0, *_: predicted.append(x0))
outputs["masked"], outputs["masked by hand"] = masked, by_hand(model, 3, drawn)
outputs["masked steps"] = len(predicted)

other = model.clone()
other.add_object_patch("latent_format", comfy.latent_formats.SD15())
outputs["shapes"] = refusal(lambda: compare(model, other))
parts = {"samples": comfy.nested_tensor.NestedTensor([empty["samples"], torch.zeros(2, 8, 4)])}
outputs["parts"] = refusal(lambda: compare(model, quantized, latent_image=parts))
outputs["seeds"] = refusal(lambda: compare(model, quantized, seeds="one"))

(vae,) = nodes.VAELoader().load_vae("digits_vae.safetensors")
outputs["picture"] = compare(model, quantized, vae=vae).args[0]
outputs["decoded"] = torch.cat([nodes.VAEDecode().decode(vae, {"samples": outputs["reference"][i]})[0] for i in (0, 1)])

bars = []
comfy.utils.set_progress_bar_global_hook(lambda now, total, preview, node_id: bars.append([now, total, node_id]))
outputs["blocked"] = compare(model, quantized).args[0].message
outputs["bars"] = list(bars)

hook = quantized.model.diffusion_model.register_forward_pre_hook(
    lambda *_: management.interrupt_current_processing()
)
try:
    compare(model, quantized)
except BaseException as error:
    outputs["ended"] = type(error).__name__
hook.remove()
outputs["after"] = [
    torch.equal(by_hand(patcher, seeds[0]), outputs[title][0])
    for title, patcher in {"reference": model, "candidate": quantized}.items()
]
"""
)


@pytest.fixture(scope="module")
def compared(host: Host) -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    source = str(example_model("digits_wan.safetensors"))
    return host.run(COMPARED, root=str(PACK), source=source, table=table, steps=STEPS, seeds=SEEDS)


def lines_of(report: str) -> list[list[list[str]]]:
    """The cells of the report's two tables, without their headings."""
    return [[line.split() for line in part.splitlines()[2:]] for part in report.split("\n\n")]


def test_the_figures_are_those_of_sampling_by_hand(compared: dict[str, Any]) -> None:
    finals, _ = lines_of(compared["report"])
    psnrs = []
    for cells, wanted, made in zip(finals, compared["reference"], compared["candidate"], strict=False):
        error = (made - wanted).square().mean().sqrt()
        psnrs.append(float(20 * ((wanted.max() - wanted.min()) / error).log10()))
        relative = float((made - wanted).norm() / wanted.norm())
        cosine = float(torch.nn.functional.cosine_similarity(made.flatten(), wanted.flatten(), 0))
        assert [float(cell) for cell in cells[1:]] == pytest.approx([psnrs[-1], cosine, relative], rel=1e-3, abs=1e-5)
    assert compared["psnr"] == pytest.approx(sum(psnrs) / len(SEEDS), abs=1e-3)
    assert [cells[0] for cells in finals] == [*map(str, SEEDS), "mean"]


def test_every_step_of_every_seed_is_compared(compared: dict[str, Any]) -> None:
    finals, steps = lines_of(compared["report"])
    assert [cells[:2] for cells in steps] == [[str(seed), str(step + 1)] for seed in SEEDS for step in range(STEPS)]
    # What euler's last step predicts is what it hands out.
    assert [steps[STEPS * (i + 1) - 1][2:] for i in range(len(SEEDS))] == [cells[1:] for cells in finals[:-1]]


def test_a_model_is_identical_with_itself(compared: dict[str, Any]) -> None:
    assert compared["same psnr"] == str(math.inf)
    assert compared["same report"].count("identical") == len(SEEDS) * (STEPS + 1) + 1


def test_the_node_shows_the_table_without_the_steps(compared: dict[str, Any]) -> None:
    (text,) = compared["shown"]["text"]
    assert compared["report"].startswith(text)
    assert "step" not in text


def test_masks_and_batch_indices_are_respected_as_ksampler_does(compared: dict[str, Any]) -> None:
    assert torch.equal(compared["masked"], compared["masked by hand"])
    assert compared["masked steps"] == STEPS


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("shapes", "The reference samples latents of [2, 16, 1, 8, 8] and the candidate of [2, 4"),
        ("parts", "Latents of several parts"),
        ("seeds", "'one' is neither a seed nor a range of seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(compared: dict[str, Any], case: str, words: str) -> None:
    assert compared[case].startswith(words)
    assert "\n" not in compared[case]


def test_the_picture_holds_both_images_and_their_difference(compared: dict[str, Any]) -> None:
    picture, decoded = compared["picture"], compared["decoded"]
    assert picture.shape[0] == len(decoded) == 2 * len(SEEDS)
    side = picture.shape[2] // 3
    left, middle, right = picture[:, -side:].split(side, dim=2)
    scale = side // decoded.shape[2]
    assert torch.allclose(left[:, ::scale, ::scale], decoded, atol=1e-6)
    assert not torch.equal(middle, left)
    amplified = right.max() / (middle - left).abs().max()
    assert amplified == pytest.approx(2 ** round(math.log2(amplified)), rel=1e-3)
    assert 0.5 < right.max() <= 1 or amplified == 256


def test_one_bar_runs_over_all_steps_of_all_runs(compared: dict[str, Any]) -> None:
    bars, total = compared["bars"], 2 * len(SEEDS) * STEPS
    assert {(bar[1], bar[2]) for bar in bars} == {(total, "9")}
    shown = [bar[0] for bar in bars]
    assert shown == sorted(shown)
    assert shown[-1] == total


def test_an_interrupt_leaves_both_models_as_they_were(compared: dict[str, Any]) -> None:
    assert compared["ended"] == "InterruptProcessingException"
    assert compared["after"] == [True, True]


def pack_node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": f"CalibratedRounding{kind}", "inputs": inputs}


def stock(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(seeds: object = "1-2", **links: Any) -> dict[str, Any]:
    """Compares the shipped model with its INT8; ``links`` are further inputs of the node."""
    table = "digits_conditioning.safetensors"
    how = {"steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    conditions = {"positive": ["digit", 0], "negative": ["nothing", 0], "latent_image": ["latent", 0]}
    return {
        "model": stock("UNETLoader", unet_name="digits_wan.safetensors", weight_dtype="default"),
        "int8": pack_node("QuantizeModel", model=["model", 0], format="int8_row", profile="auto", rounding="nearest"),
        "digit": pack_node("LoadClassConditioning", table=table, class_index=3),
        "nothing": pack_node("LoadClassConditioning", table=table, class_index=10),
        "latent": stock("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
        "vae": stock("VAELoader", vae_name="digits_vae.safetensors"),
        "compare": pack_node(
            "CompareModels", reference=["model", 0], candidate=["int8", 0], seeds=seeds, **conditions, **how, **links
        ),
        "image": stock("SaveImage", images=["compare", 0], filename_prefix="compared"),
        "report": stock("PreviewAny", source=["compare", 1]),
    }


def test_a_graph_shows_the_figures_and_the_picture(server: Server) -> None:
    outputs = server.execute(graph(vae=["vae", 0]))
    assert outputs["report"]["text"][0].startswith(outputs["compare"]["text"][0])
    for shown in (outputs["compare"]["images"], outputs["image"]["images"]):
        sizes = [Image.open(io.BytesIO(server.image(image))).size for image in shown]
        assert sizes == [(3 * 256, 256 + 24)] * 2


def test_without_a_vae_there_is_a_report_and_no_picture(server: Server) -> None:
    outputs = server.execute(graph())
    assert "PSNR" in outputs["report"]["text"][0]
    assert "image" not in outputs
    assert "images" not in outputs["compare"]


def test_what_takes_the_picture_without_a_vae_is_told_why_there_is_none(compared: dict[str, Any]) -> None:
    assert "no picture to give without a VAE: connect one" in compared["blocked"]


def test_seeds_may_come_from_another_node(server: Server) -> None:
    linked = {**graph(["seeds", 0]), "seeds": stock("PrimitiveString", value="7-9")}
    text = server.execute(linked)["compare"]["text"][0]
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["7", "8", "9", "mean"]


def test_seeds_that_are_none_are_refused_before_anything_runs(server: Server) -> None:
    with pytest.raises(HostError, match="'8-1' is neither a seed nor a range of seeds"):
        server.queue(graph("8-1"))
