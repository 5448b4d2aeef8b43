"""What people do around Quantize Model, in a server: LoRAs, several models, changed settings, ModelSave, torch.compile.

The measure is always the same: latents equal, bit for bit, to those of the saved file, loaded by the stock loader and
treated in the same way.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.tests.comfyui.graphs import latents, loader, node, quantizing, sampling, stock, svd
from calibrated_rounding.tests.comfyui.harness import Server, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMATS = ("int8_convrot", "float8_e4m3fn", "int8_blockwise")
Ran = dict[str, Any]


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
    return stock("LoraLoaderModelOnly", model=[model, 0], lora_name=lora, strength_model=0.8)


def quantized(model: str, fmt: str, **settings: Any) -> dict[str, Any]:
    return node("QuantizeModel", model=[model, 0], **quantizing(format=fmt, **settings))


def saved(model: str, name: str) -> dict[str, Any]:
    """Saves ``name``; the loaders then list `file_of` it."""
    return node("SaveModel", model=[model, 0], filename_prefix=f"diffusion_models/{name}")


def stock_saved(model: str, name: str) -> dict[str, Any]:
    return stock("ModelSave", model=[model, 0], filename_prefix=f"diffusion_models/{name}")


def file_of(name: str) -> str:
    return f"{name}_00001_.safetensors"


def run(server: Server, graph: Ran, *names: str) -> list[Tensor]:
    """Run a workflow; gives the latents of these names."""
    outputs = server.execute(graph)
    return [latents(server.output, outputs, name) for name in names]


def equal(*found: Tensor) -> bool:
    return all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_lora_before_or_after_is_the_lora_on_the_saved_file(server: Server, digits: str, lora: str, fmt: str) -> None:
    graph = {
        "source": loader(digits),
        "source with lora": with_lora("source", lora),
        "lora first": quantized("source with lora", fmt),
        "plain": quantized("source", fmt),
        "lora last": with_lora("plain", lora),
        "save": saved("plain", f"plain_{fmt}"),
    }
    graph |= sampling(without="plain", before="lora first", after="lora last")
    without, before, after = run(server, graph, "without", "before", "after")
    graph = {"file": loader(file_of(f"plain_{fmt}")), "file with lora": with_lora("file", lora)}
    graph |= sampling(loaded="file with lora", bare="file")
    loaded, bare = run(server, graph, "loaded", "bare")
    assert equal(before, after, loaded)
    assert equal(without, bare)
    assert not equal(without, after)


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_comfyuis_own_node_saves_is_the_model_with_its_lora_in_it(
    server: Server, digits: str, lora: str, fmt: str
) -> None:
    graph = {
        "source": loader(digits),
        "plain": quantized("source", fmt),
        "patched": with_lora("plain", lora),
        "save": stock_saved("plain", f"stock_{fmt}"),
        "save patched": stock_saved("patched", f"stock_lora_{fmt}"),
    }
    graph |= sampling(plain_latents="plain", patched_latents="patched")
    plain, patched = run(server, graph, "plain_latents", "patched_latents")
    graph = {"file": loader(file_of(f"stock_{fmt}")), "lora file": loader(file_of(f"stock_lora_{fmt}"))}
    graph |= sampling(file_latents="file", lora_file_latents="lora file")
    file, lora_file = run(server, graph, "file_latents", "lora_file_latents")
    assert equal(plain, file)
    assert equal(patched, lora_file)
    assert not equal(plain, patched)


def test_two_formats_of_two_sources_in_one_graph_do_not_meet(server: Server, digits: str, tmp_path: Path) -> None:
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
    graph = {"source": loader(digits), "other": loader(other), **models}
    graph |= {f"save {name}": saved(name, f"meet_{name}") for name in models}
    graph |= sampling(**{f"{name}_latents": name for name in models}, source_latents="source", other_latents="other")
    names = [f"{name}_latents" for name in (*models, "source", "other")]
    made = run(server, graph, *names)
    files = {name: loader(file_of(f"meet_{name}")) for name in models}
    again = server.add_model("diffusion_models", source, "again.safetensors")
    other_again = server.add_model("diffusion_models", tmp_path / "changed.safetensors", "changed_again.safetensors")
    fresh = {"source": loader(again), "other": loader(other_again)}
    loaded = run(server, files | fresh | sampling(**{name: name.removesuffix("_latents") for name in names}), *names)
    assert [equal(a, b) for a, b in zip(made, loaded, strict=True)] == [True] * 6
    assert len({tensor.numpy().tobytes() for tensor in made}) == 6
    # The sources, as they lie in memory after all that.
    server.execute({**graph, "keep": stock_saved("source", "source"), "keep other": stock_saved("other", "other")})
    for name, original in (("source", load_file(source)), ("other", changed)):
        kept = load_file(server.output / "diffusion_models" / file_of(name))
        assert all(equal(kept[f"model.diffusion_model.{key}"], tensor) for key, tensor in original.items())


CHANGES: dict[str, Ran] = {
    "as it was": {},
    "another format": {"format": "float8_e4m3fn"},
    "and back": {},
    "another rounding": svd("feedback"),
    "another profile": {"profile": "generic"},
}
"""Settings of the same workflow, queued one after the other."""


def queue(server: Server, name: str, settings: Ran) -> tuple[Ran, set[str], Tensor]:
    """Quantize and sample a model: what the quantize node shows, the nodes that were not cached, and the latents."""
    made = node("QuantizeModel", model=["source", 0], **quantizing(format="int8_convrot") | settings)
    graph = {"source": loader(name), "made": made} | sampling(drawn="made")
    entry = server.wait(server.queue(graph))
    assert entry["status"]["status_str"] == "success"
    (cached,) = (data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
    shown = entry["outputs"]["made"]["calibrated_rounding"][0]
    return shown, graph.keys() - set(cached), latents(server.output, entry["outputs"], "drawn")


def test_after_a_change_only_that_and_what_follows_runs_anew(server: Server) -> None:
    def copied(name: str) -> str:
        return server.add_model("diffusion_models", example_model("digits_wan.safetensors"), f"{name}.safetensors")

    name = copied("queued")
    queue(server, name, {})
    found = {change: queue(server, name, settings) for change, settings in CHANGES.items()}
    nodes = {change: anew for change, (_, anew, _) in found.items()}
    follow = {"made", "sample drawn", "drawn"}
    assert nodes == {change: set() if change == "as it was" else follow for change in CHANGES}
    assert [change for change, (shown, *_) in found.items() if shown["from_disk"]] == ["and back"]
    fresh = {change: queue(server, copied(f"fresh {change}"), settings) for change, settings in CHANGES.items()}
    assert not any(shown["from_disk"] for shown, *_ in fresh.values())
    for change, (*_, drawn) in found.items():
        assert equal(drawn, fresh[change][2]), change
        assert equal(drawn, found["as it was"][2]) == (CHANGES[change] == {}), change


@pytest.fixture(scope="module")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of one block, which the compiler is done with sooner. What it draws means nothing."""
    source = example_model("digits_wan.safetensors")
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors = {key: tensor for key, tensor in load_file(source).items() if not re.match(r"blocks\.[1-9]", key)}
    path = tmp_path_factory.mktemp("small") / "one_block.safetensors"
    save_file(tensors, path, metadata)
    return server.add_model("diffusion_models", path)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++) on a CPU")
@pytest.mark.parametrize("fmt", ["int8_blockwise"])  # each more takes the compiler as long again
def test_a_compiled_model_is_its_compiled_saved_file(server: Server, small: str, fmt: str) -> None:
    compiled = stock("TorchCompileModel", model=["model", 0], backend="inductor")
    graph = {"compiled": compiled, **sampling(plain="model", fast="compiled")}
    making = {"source": loader(small), "model": quantized("source", fmt), "save": saved("model", f"compiled_{fmt}")}
    made = run(server, graph | making, "plain", "fast")
    loaded = run(server, graph | {"model": loader(file_of(f"compiled_{fmt}"))}, "plain", "fast")
    assert [equal(a, b) for a, b in zip(made, loaded, strict=True)] == [True, True]
    plain, fast = made
    # The compiler fuses what is between the products; what it moves by a unit in the last place can move a code.
    assert (plain - fast).norm() < 0.05 * plain.norm()
