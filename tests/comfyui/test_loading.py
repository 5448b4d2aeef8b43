"""Which names ComfyUI's own loaders read quantized layers under, and that they do so without a warning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, UnloadableError, quantize_file
from calibrated_rounding.quant.planning.names import loader_prefix
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

STRIPPED = ["", "model.diffusion_model.", "model.model.", "net.", "model."]
CHECKPOINTS = ["model.diffusion_model.", "model.model.", "net.", "model."]
"""Without a prefix ComfyUI loads no WAN as a checkpoint whose header tells its sizes, quantized or not."""
KEPT = ["diffusion_model.", "transformer.", "_orig_mod.", "module."]

QKV = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"]


@dataclass(frozen=True)
class Loaded:
    """Files in both of ComfyUI's loaders."""

    paths: dict[str, Path]
    results: dict[str, dict[str, Any]]
    """By file, then by loader."""


@pytest.fixture(scope="module")
def loaded(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The float and the quantized example under each prefix, in both of ComfyUI's loaders."""
    folder, source = tmp_path_factory.mktemp("prefixes"), example_model("digits_wan.safetensors")
    tensors, paths = load_file(source), {}
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    for prefix in [*STRIPPED, *KEPT]:
        floats, quantized = folder / f"{prefix}float.safetensors", folder / f"{prefix}quantized.safetensors"
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, floats, metadata)
        quantize_file(floats, quantized, Recipe(format="int8_convrot"), force=prefix in KEPT)
        paths |= {f"float {prefix}": floats, f"quantized {prefix}": quantized}
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    results = host.call("tests.comfyui.programs.load_prefixes:load_files", paths=paths, table=table)
    return Loaded(paths, results)


@pytest.mark.parametrize(
    ("loader", "prefix"), [*(("unet", p) for p in STRIPPED), *(("checkpoint", p) for p in CHECKPOINTS)]
)
def test_quantized_layers_load_without_a_warning(loaded: Loaded, prefix: str, loader: str) -> None:
    result, floats = (loaded.results[f"{kind} {prefix}"][loader] for kind in ("quantized", "float"))
    assert result["warnings"] == floats["warnings"]
    assert not any("unexpected" in warning for warning in result["warnings"])
    assert len(result["layers"]) == 19
    assert torch.equal(result["latents"], loaded.results["quantized "]["unet"]["latents"])


@pytest.mark.parametrize("prefix", STRIPPED)
def test_inspection_misses_nothing_under_a_prefix(loaded: Loaded, prefix: str) -> None:
    found = inspect_file(loaded.paths[f"quantized {prefix}"])
    assert (found.obstacles, found.disagreements, found.profile) == ([], [], "wan")


@pytest.mark.parametrize("loader", ["unet", "checkpoint"])
@pytest.mark.parametrize("prefix", KEPT)
def test_refused_prefixes_do_not_load(loaded: Loaded, prefix: str, loader: str, tmp_path: Path) -> None:
    with pytest.raises(UnloadableError, match=prefix):
        quantize_file(loaded.paths[f"float {prefix}"], tmp_path / "q.safetensors")
    assert loaded.results[f"quantized {prefix}"][loader]["layers"] == []
    assert inspect_file(loaded.paths[f"quantized {prefix}"]).obstacles


def test_the_stripped_prefix_is_comfyuis(host: Host) -> None:
    lists = [[f"{prefix}{n}" for n in range(count)] for prefix in [*STRIPPED, *KEPT] for count in (1, 5, 6, 9)]
    lists += [sorted({*a, *b}) for a in lists for b in lists]
    theirs = host.call("tests.comfyui.programs.load_prefixes:find_prefixes", lists=lists)["prefixes"]
    for names, prefix in zip(lists, theirs, strict=True):
        # Where no name begins with the prefix, ComfyUI strips nothing.
        assert loader_prefix(names) == (prefix if any(name.startswith(prefix) for name in names) else "")


def test_names_of_diffusers_lose_their_markers(host: Host, tmp_path: Path) -> None:
    """The refusal says so; --force shows it: ComfyUI's own renaming passes the codes on, and no marker."""
    blocks = {f"transformer_blocks.{n}.attn.{part}.weight": (64, 64) for n in (0, 1) for part in QKV}
    shapes = blocks | {f"{name.removesuffix('.weight')}.bias": (64,) for name in blocks}
    shapes |= {"x_embedder.weight": (64, 16), "x_embedder.bias": (64,), "context_embedder.weight": (64, 32)}
    floats, forced = tmp_path / "flux.safetensors", tmp_path / "q.safetensors"
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, floats)
    recipe = Recipe(format="int8_row", profile="generic")
    with pytest.raises(UnloadableError, match=r"names of diffusers.*loses the markers of quantized layers"):
        quantize_file(floats, forced, recipe)
    assert not forced.exists()
    report = quantize_file(floats, forced, recipe, force=True)
    assert [note.kind for note in report.notes if note.level == "warning"] == ["forced"]
    renamed = host.call("tests.comfyui.programs.load_prefixes:rename", path=forced)
    assert renamed["markers"] == renamed["scales"] == []
    fused = renamed["tensors"]["double_blocks.0.img_attn.qkv.weight"]
    written = load_file(forced)
    assert torch.equal(fused, torch.cat([written[f"transformer_blocks.0.attn.{part}.weight"] for part in QKV[:3]]))
    assert fused.dtype == torch.int8
