"""Compare Models in a real ComfyUI: its figures against ComfyUI's own sampling, its picture, and its errors."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from calibrated_rounding.tools.comfyui import Host, HostError, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import model_loader, pack_node, stock_node
from PIL import Image
from safetensors.torch import load_file

STEPS, SEEDS = 4, (3, 5)


@pytest.fixture(scope="module")
def compared(host: Host) -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    source = example_model("digits_wan.safetensors")
    function = "tests.comfyui.programs.compare_models:compare_models"
    return host.call(function, source=source, table=table, steps=STEPS, seeds=SEEDS)


def read_tables(report: str) -> list[list[list[str]]]:
    """The cells of the report's two tables, without their headings; the verdict stands before them."""
    return [[line.split() for line in part.splitlines()[2:]] for part in report.split("\n\n")[1:]]


def test_figures_match_own_sampling(compared: dict[str, Any]) -> None:
    finals, _ = read_tables(compared["report"])
    psnrs = []
    for cells, reference, candidate in zip(finals, compared["reference"], compared["candidate"], strict=False):
        error = (candidate - reference).square().mean().sqrt()
        psnrs.append(float(20 * ((reference.max() - reference.min()) / error).log10()))
        relative = float((candidate - reference).norm() / reference.norm())
        cosine = float(torch.nn.functional.cosine_similarity(candidate.flatten(), reference.flatten(), 0))
        assert [float(cell) for cell in cells[1:]] == pytest.approx([psnrs[-1], cosine, relative], rel=1e-3, abs=1e-5)
    assert compared["psnr"] == pytest.approx(sum(psnrs) / len(SEEDS), abs=1e-3)
    assert [cells[0] for cells in finals] == [*map(str, SEEDS), "mean"]


def test_every_step_of_every_seed_is_compared(compared: dict[str, Any]) -> None:
    finals, steps = read_tables(compared["report"])
    assert [cells[:2] for cells in steps] == [[str(seed), str(step + 1)] for seed in SEEDS for step in range(STEPS)]
    # The last step of euler returns its own prediction.
    assert [steps[STEPS * (i + 1) - 1][2:] for i in range(len(SEEDS))] == [cells[1:] for cells in finals[:-1]]


def test_model_is_identical_with_itself(compared: dict[str, Any]) -> None:
    assert compared["same_psnr"] == math.inf
    assert compared["same_report"].count("identical") == len(SEEDS) * (STEPS + 1) + 1
    assert compared["same_report"].startswith("Identical: nothing differs.")


def test_node_shows_table_without_steps(compared: dict[str, Any]) -> None:
    (text,) = compared["shown"]["text"]
    assert compared["report"].startswith(text)
    assert "step" not in text


def test_masks_and_batch_indices_match_ksampler(compared: dict[str, Any]) -> None:
    assert compared["masked"] == {"equal": True, "steps": STEPS}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("shapes", "The reference samples latents of [2, 16, 1, 8, 8] and the candidate of [2, 4"),
        ("parts", "Latents of several parts"),
        ("seeds", "'one' is neither a seed nor a range of seeds"),
    ],
)
def test_impossible_comparisons_are_refused(compared: dict[str, Any], case: str, words: str) -> None:
    assert compared["errors"][case].startswith(words)
    assert "\n" not in compared["errors"][case]


def test_picture_shows_both_images_and_difference(compared: dict[str, Any]) -> None:
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


def test_one_progress_bar_covers_all_runs(compared: dict[str, Any]) -> None:
    total = 2 * len(SEEDS) * STEPS
    values, totals, nodes = zip(*compared["progress"], strict=True)
    assert (set(totals), set(nodes)) == ({total}, {"9"})
    assert list(values) == sorted(values)
    assert values[-1] == total


def test_interrupt_leaves_both_models_unchanged(compared: dict[str, Any]) -> None:
    assert compared["interrupt"] == "InterruptProcessingException"
    assert compared["unchanged"]


def comparison_graph(seeds: object = "1-2", **links: Any) -> dict[str, Any]:
    """A workflow that compares the shipped model with its INT8; ``links`` are more inputs of the node."""
    table = "digits_conditioning.safetensors"
    settings = {"steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    conditions = {"positive": ["digit", 0], "negative": ["nothing", 0], "latent_image": ["latent", 0]}
    return {
        "model": model_loader("digits_wan.safetensors"),
        "int8": pack_node("QuantizeModel", model=["model", 0], format="int8_row", profile="auto", rounding="nearest"),
        "digit": pack_node("LoadClassConditioning", table=table, class_index=3),
        "nothing": pack_node("LoadClassConditioning", table=table, class_index=10),
        "latent": stock_node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
        "vae": stock_node("VAELoader", vae_name="digits_vae.safetensors"),
        "compare": pack_node(
            "CompareModels",
            reference=["model", 0],
            candidate=["int8", 0],
            seeds=seeds,
            **conditions,
            **settings,
            **links,
        ),
        "image": stock_node("SaveImage", images=["compare", 0], filename_prefix="compared"),
        "report": stock_node("PreviewAny", source=["compare", 1]),
    }


def test_graph_shows_figures_and_picture(server: Server) -> None:
    outputs = server.execute(comparison_graph(vae=["vae", 0]))
    assert outputs["report"]["text"][0].startswith(outputs["compare"]["text"][0])
    for shown in (outputs["compare"]["images"], outputs["image"]["images"]):
        sizes = [Image.open(io.BytesIO(server.image(image))).size for image in shown]
        assert sizes == [(3 * 256, 256 + 24)] * 2


def test_graph_without_vae_shows_report_only(server: Server) -> None:
    outputs = server.execute(comparison_graph())
    assert "PSNR" in outputs["report"]["text"][0]
    assert "image" not in outputs
    assert "images" not in outputs["compare"]


def test_blocked_picture_names_missing_vae(compared: dict[str, Any]) -> None:
    assert "no picture to give without a VAE: connect one" in compared["blocked_picture"]


def test_seeds_may_come_from_another_node(server: Server) -> None:
    linked = {**comparison_graph(["seeds", 0]), "seeds": stock_node("PrimitiveString", value="7-9")}
    text = server.execute(linked)["compare"]["text"][0]
    assert [line.split()[0] for line in text.splitlines()[4:]] == ["7", "8", "9", "mean"]


def test_invalid_seeds_are_refused_when_queued(server: Server) -> None:
    with pytest.raises(HostError, match="'8-1' is neither a seed nor a range of seeds"):
        server.queue(comparison_graph("8-1"))


def test_several_candidates_share_one_table_and_one_reference(compared: dict[str, Any]) -> None:
    several = compared["several"]
    verdict, table, *_ = several["report"].split("\n\n")
    taken, *each = verdict.splitlines()
    assert taken.startswith("Take 'candidate_b") and "'candidate: int8_row, nearest' is the smallest" in taken
    assert "'candidate: int8_row, nearest' is " in each[-2] and "is identical" in each[-1]
    lines = table.splitlines()
    assert lines[1].split() == ["candidate", "MB", "PSNR", "dB", "worst", "seed", "seconds", "a", "step"]
    assert lines[2].startswith("candidate: int8_row, nearest") and lines[3].startswith("candidate_b: ")
    assert "identical" in lines[3]
    assert several["samplings"] == 2 * len(SEEDS), "the reference is the last run's, and is not sampled again"
    assert several["psnr"] == compared["psnr"]
