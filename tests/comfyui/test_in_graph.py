"""Workflows around Quantize Model in a server: LoRAs, several models, changed settings, ModelSave, torch.compile.

Each compares latents, bit for bit, with the latents of the saved file in the same workflow with the stock loader.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.tools.comfyui import Server, example_model
from calibrated_rounding.tools.comfyui.graphs import (
    model_loader,
    pack_node,
    quantize_inputs,
    read_latents,
    sampling_nodes,
    stock_node,
    svd_inputs,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMATS = ("int8_convrot", "float8_e4m3fn", "int8_blockwise")
Graph = dict[str, Any]


@pytest.fixture(scope="module")
def digits(server: Server) -> str:
    return server.add_model("diffusion_models", example_model("digits_wan.safetensors"), "in_graph.safetensors")


@pytest.fixture(scope="module")
def lora(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA of rank 4 on every attention and feed-forward layer, strong enough to change the latents."""
    generator, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for key, weight in load_file(example_model("digits_wan.safetensors")).items():
        if key.startswith("blocks.") and weight.ndim == 2 and key.endswith(".weight"):
            name = f"diffusion_model.{key.removesuffix('.weight')}"
            tensors[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.1
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1
    path = tmp_path_factory.mktemp("lora") / "digits_lora.safetensors"
    save_file(tensors, path)
    return server.add_model("loras", path)


def with_lora(model: str, lora: str) -> dict[str, Any]:
    return stock_node("LoraLoaderModelOnly", model=[model, 0], lora_name=lora, strength_model=0.8)


def quantized(model: str, fmt: str, **settings: Any) -> dict[str, Any]:
    return pack_node("QuantizeModel", model=[model, 0], **quantize_inputs(format=fmt, **settings))


def saved(model: str, name: str) -> dict[str, Any]:
    """A node that saves a model; the loaders then list ``file_of(name)``."""
    return pack_node("SaveModel", model=[model, 0], filename_prefix=f"diffusion_models/{name}")


def stock_saved(model: str, name: str) -> dict[str, Any]:
    return stock_node("ModelSave", model=[model, 0], filename_prefix=f"diffusion_models/{name}")


def file_of(name: str) -> str:
    return f"{name}_00001_.safetensors"


def run(server: Server, graph: Graph, *names: str) -> list[Tensor]:
    """Run a workflow; returns the latents of these names."""
    outputs = server.execute(graph)
    return [read_latents(server.output, outputs, name) for name in names]


def equal(first: Tensor, *others: Tensor) -> bool:
    return all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("fmt", FORMATS)
def test_lora_before_or_after_quantizing_matches_file(server: Server, digits: str, lora: str, fmt: str) -> None:
    graph = {
        "source": model_loader(digits),
        "source with lora": with_lora("source", lora),
        "lora first": quantized("source with lora", fmt),
        "plain": quantized("source", fmt),
        "lora last": with_lora("plain", lora),
        "save": saved("plain", f"plain_{fmt}"),
    }
    graph |= sampling_nodes(without="plain", before="lora first", after="lora last")
    without, before, after = run(server, graph, "without", "before", "after")
    graph = {"file": model_loader(file_of(f"plain_{fmt}")), "file with lora": with_lora("file", lora)}
    graph |= sampling_nodes(loaded="file with lora", bare="file")
    loaded, bare = run(server, graph, "loaded", "bare")
    assert equal(before, after, loaded)
    assert equal(without, bare)
    assert not equal(without, after)


@pytest.mark.parametrize("fmt", FORMATS)
def test_model_save_merges_lora(server: Server, digits: str, lora: str, fmt: str) -> None:
    graph = {
        "source": model_loader(digits),
        "plain": quantized("source", fmt),
        "patched": with_lora("plain", lora),
        "save": stock_saved("plain", f"stock_{fmt}"),
        "save patched": stock_saved("patched", f"stock_lora_{fmt}"),
    }
    graph |= sampling_nodes(plain_latents="plain", patched_latents="patched")
    plain, patched = run(server, graph, "plain_latents", "patched_latents")
    graph = {"file": model_loader(file_of(f"stock_{fmt}")), "lora file": model_loader(file_of(f"stock_lora_{fmt}"))}
    graph |= sampling_nodes(file_latents="file", lora_file_latents="lora file")
    file, lora_file = run(server, graph, "file_latents", "lora_file_latents")
    assert equal(plain, file)
    assert equal(patched, lora_file)
    assert not equal(plain, patched)


def test_sources_and_formats_stay_separate(server: Server, digits: str, tmp_path: Path) -> None:
    source = example_model("digits_wan.safetensors")
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    changed = {key: tensor * 1.05 if tensor.ndim == 2 else tensor for key, tensor in load_file(source).items()}
    save_file(changed, tmp_path / "changed.safetensors", metadata)
    other = server.add_model("diffusion_models", tmp_path / "changed.safetensors")
    models = {
        "one": quantized("source", "int8_convrot"),
        "two": quantized("source", "float8_e4m3fn"),
        "three": quantized("other", "int8_convrot"),
        "four": quantized("other", "int8_blockwise"),
    }
    graph = {"source": model_loader(digits), "other": model_loader(other), **models}
    graph |= {f"save {name}": saved(name, f"meet_{name}") for name in models}
    sampling = sampling_nodes(**{f"{name}_latents": name for name in (*models, "source", "other")})
    names = [f"{name}_latents" for name in (*models, "source", "other")]
    results = run(server, graph | sampling, *names)
    files = {name: model_loader(file_of(f"meet_{name}")) for name in models}
    again = server.add_model("diffusion_models", source, "again.safetensors")
    other_again = server.add_model("diffusion_models", tmp_path / "changed.safetensors", "changed_again.safetensors")
    fresh = {"source": model_loader(again), "other": model_loader(other_again)}
    loaded = run(server, files | fresh | sampling, *names)
    assert [equal(a, b) for a, b in zip(results, loaded, strict=True)] == [True] * 6
    assert len({tensor.numpy().tobytes() for tensor in results}) == 6
    # The sources in memory are unchanged after all that.
    server.execute(
        {**graph, **sampling, "keep": stock_saved("source", "source"), "keep other": stock_saved("other", "other")}
    )
    for name, original in (("source", load_file(source)), ("other", changed)):
        kept = load_file(server.output / "diffusion_models" / file_of(name))
        assert all(equal(kept[f"model.diffusion_model.{key}"], tensor) for key, tensor in original.items())


CHANGES: dict[str, dict[str, Any]] = {
    "as it was": {},
    "another format": {"format": "float8_e4m3fn"},
    "and back": {},
    "another rounding": svd_inputs("feedback"),
    "another profile": {"profile": "generic"},
}
"""Settings of the same workflow, queued one after the other."""


def queue(server: Server, name: str, settings: dict[str, Any]) -> tuple[dict[str, Any], set[str], Tensor]:
    """Quantize and sample a model.

    Returns:
        What the quantize node shows, the nodes that ComfyUI did not take from its cache, and the latents.
    """
    node = pack_node("QuantizeModel", model=["source", 0], **quantize_inputs(format="int8_convrot") | settings)
    graph = {"source": model_loader(name), "quantized": node} | sampling_nodes(latents="quantized")
    entry = server.wait(server.queue(graph))
    assert entry["status"]["status_str"] == "success"
    (cached,) = (data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
    shown = entry["outputs"]["quantized"]["calibrated_rounding"][0]
    return shown, graph.keys() - set(cached), read_latents(server.output, entry["outputs"], "latents")


def test_changed_settings_rerun_dependent_nodes_only(server: Server) -> None:
    def copied(name: str) -> str:
        return server.add_model("diffusion_models", example_model("digits_wan.safetensors"), f"{name}.safetensors")

    name = copied("queued")
    queue(server, name, {})
    results = {change: queue(server, name, settings) for change, settings in CHANGES.items()}
    nodes = {change: rerun for change, (_, rerun, _) in results.items()}
    dependent = {"quantized", "sample latents", "latents"}
    assert nodes == {change: set() if change == "as it was" else dependent for change in CHANGES}
    assert [change for change, (shown, *_) in results.items() if shown["from_disk"]] == ["and back"]
    fresh = {change: queue(server, copied(f"fresh {change}"), settings) for change, settings in CHANGES.items()}
    assert not any(shown["from_disk"] for shown, *_ in fresh.values())
    for change, (*_, latents) in results.items():
        assert equal(latents, fresh[change][2]), change
        assert equal(latents, results["as it was"][2]) == (CHANGES[change] == {}), change


@pytest.fixture(scope="module")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of one block, which compiles sooner; its pictures mean nothing."""
    source = example_model("digits_wan.safetensors")
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors = {key: tensor for key, tensor in load_file(source).items() if not re.match(r"blocks\.[1-9]", key)}
    path = tmp_path_factory.mktemp("small") / "one_block.safetensors"
    save_file(tensors, path, metadata)
    return server.add_model("diffusion_models", path)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++) on a CPU")
@pytest.mark.parametrize("fmt", ["int8_blockwise"])  # each more takes the compiler as long again
def test_compiled_model_matches_compiled_file(server: Server, small: str, fmt: str) -> None:
    compiled = stock_node("TorchCompileModel", model=["model", 0], backend="inductor")
    graph = {"compiled": compiled, **sampling_nodes(plain="model", fast="compiled")}
    quantizing = {
        "source": model_loader(small),
        "model": quantized("source", fmt),
        "save": saved("model", f"compiled_{fmt}"),
    }
    results = run(server, graph | quantizing, "plain", "fast")
    loaded = run(server, graph | {"model": model_loader(file_of(f"compiled_{fmt}"))}, "plain", "fast")
    assert [equal(a, b) for a, b in zip(results, loaded, strict=True)] == [True, True]
    plain, fast = results
    # The compiler fuses operations between the products; a change in the last place can change a code.
    assert (plain - fast).norm() < 0.05 * plain.norm()
