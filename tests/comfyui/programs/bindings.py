"""Programs of test_bindings.py: patches that are bound to modules of the model that they were made for."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import comfy.model_sampling
import comfy.sd
import comfy.weight_adapter
import torch
from calibrated_rounding.nodes.host.recording import attach_recorder
from calibrated_rounding.nodes.nodes_example_encoder import load
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import load_unet, random_lora
from calibrated_rounding.tools.comfyui.inside.pack import load_extension, quantize_encoder, quantize_model
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from torch import Tensor

Patch = Callable[[Any], Any]
"""Takes a MODEL, gives a patched clone."""

FIRST = "diffusion_model.blocks.0"

load_extension()


def patch_cases() -> dict[str, Patch]:
    """Patches that can be bound to another model."""
    lora = dict[str, Tensor]()

    def bypass_lora(model: Any) -> Any:
        lora.update(lora or random_lora(model, r"blocks\.\d\.(self_attn|ffn)"))
        return comfy.sd.load_bypass_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0]

    return {
        "bypass LoRA": bypass_lora,
        "bound method": lambda model: patch_object(model, f"{FIRST}.forward", MethodType(run_stronger, block(model))),
        "method of another block": lambda model: patch_object(model, f"{FIRST}.forward", block(model, 1).forward),
        "partial function": lambda model: patch_object(model, f"{FIRST}.forward", partial(run_stronger, block(model))),
        "another block": lambda model: patch_object(model, FIRST, block(model, 1)),
        "method in a wrapper": wrap_with_method,
        "method in an injection": inject_with_method,
    }


def block(model: Any, index: int = 0) -> torch.nn.Module:
    return model.model.diffusion_model.blocks[index]


def run_stronger(block: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    return 1.2 * type(block).forward(block, *args, **kwargs)


def patch_object(model: Any, name: str, value: Any) -> Any:
    clone = model.clone()
    clone.add_object_patch(name, value)
    return clone


def scale_inputs(layer: torch.nn.Module, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A wrapper that adds a layer's bias to the latents."""
    return executor(x + layer.bias.float().mean(), *args, **kwargs)


def wrap_with_method(model: Any) -> Any:
    clone, layer = model.clone(), block(model).ffn[0]
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", MethodType(scale_inputs, layer))
    return clone


def inject_stronger(block: torch.nn.Module, patcher: Any) -> None:
    block.forward = partial(run_stronger, block)


def eject_stronger(block: torch.nn.Module, patcher: Any) -> None:
    vars(block).pop("forward", None)


def inject_with_method(model: Any) -> Any:
    clone, first = model.clone(), block(model)
    injection = PatcherInjection(MethodType(inject_stronger, first), MethodType(eject_stronger, first))
    clone.set_injections("test", [injection])
    return clone


def rebind(source: str, table: Tensor) -> dict[str, Any]:
    """Quantize patched models; the reference is the same patch on the quantized model."""
    outcomes = {}
    for name, patch in patch_cases().items():
        model, _ = load_unet(source)
        patched = patch(model)
        quantized = quantize_model(patched, "int8_row").args[0]
        reference = sample_briefly(patch(quantize_model(model, "int8_row").args[0]), table)
        plain = sample_briefly(quantize_model(model, "int8_row").args[0], table)
        before = sample_briefly(model, table)
        with_float_patch = sample_briefly(patched, table)
        # Once more while the patch is applied to the float model.
        again = quantize_model(patched, "int8_row").args[0]
        outcomes[name] = {
            "as on the quantized model": torch.equal(sample_briefly(quantized, table), reference),
            "as on the quantized model, applied before": torch.equal(sample_briefly(again, table), reference),
            "has an effect": not torch.equal(reference, plain),
            "source unchanged": torch.equal(sample_briefly(model, table), before)
            and torch.equal(sample_briefly(patched, table), with_float_patch),
        }
    return outcomes


class Keeper:
    """An object that keeps something and is called."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)

    def run_own_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        return self.kept.model.diffusion_model(*args, **kwargs)

    def read_settings(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.kept.model.model_config is not None
        return executor(*args, **kwargs)


class Around(torch.nn.Module):
    """A module around another one."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def wrap(model: Any, wrapper: Any) -> Any:
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    return clone


def stuck_cases(model: Any) -> dict[str, Any]:
    """Models with a patch that cannot be bound to another model."""
    first, apply_model = block(model), model.model.apply_model

    def call_block(*args: Any, **kwargs: Any) -> Any:
        return first(*args, **kwargs)

    def call_model(*args: Any, **kwargs: Any) -> Any:
        return apply_model(*args, **kwargs)

    def call_patcher(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return model.model.diffusion_model(*args, **kwargs)

    def get_by_name(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return model.get_model_object("diffusion_model.blocks.0")(*args, **kwargs)

    def default(executor: Any, *args: Any, kept: Any = first, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)

    called_back = model.clone()
    called_back.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "test", lambda patcher: first.eval())
    injected = model.clone()
    inject = PatcherInjection(lambda patcher: first.train(), lambda patcher: first.eval())
    injected.set_injections("test", [inject])
    unet_wrapped = model.clone()
    unet_wrapped.set_model_unet_function_wrapper(lambda run, inputs: call_block(run, inputs))
    attention = model.clone()
    attention.set_model_attn1_patch(Keeper([{"block": first}]))
    return {
        "closure": patch_object(model, f"{FIRST}.forward", call_block),
        "closure over a method of the model": patch_object(model, "apply_model", call_model),
        "module around a module": patch_object(model, FIRST, Around(first)),
        "method of a function with a closure": patch_object(model, f"{FIRST}.forward", MethodType(call_block, first)),
        "wrapper with the patcher": wrap(model, call_patcher),
        "wrapper with the patcher, by name": wrap(model, get_by_name),
        "wrapper with a default": wrap(model, default),
        "wrapper that is a method": wrap(model, Keeper(model).run_own_model),
        "wrapper with a weak reference": wrap(model, Keeper(weakref.ref(first))),
        "callback": called_back,
        "injection": injected,
        "model function wrapper": unet_wrapped,
        "attention patch": attention,
    }


def harmless_cases(model: Any) -> dict[str, Any]:
    """Models with patches that need no module of their model."""
    sampling = model.get_model_object("model_sampling")

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    def with_sampling(executor: Any, *args: Any, **kwargs: Any) -> Any:
        assert sampling.percent_to_sigma(0.5) > 0
        return executor(*args, **kwargs)

    return {
        "another sampling": patch_object(model, "model_sampling", Sampling(model.model.model_config)),
        "wrapper with the sampling": wrap(model, with_sampling),
        "wrapper with the patcher's settings": wrap(model, Keeper(model).read_settings),
        "wrapper with data": wrap(model, Keeper({"names": ["diffusion_model"], "values": torch.zeros(3)})),
        "recording": attach_recorder(model, 64, 2**30)[0],
    }


def refuse(source: str, table: Tensor) -> dict[str, Any]:
    """What Quantize Model says to models with each patch; None: it has quantized the model, which samples."""
    model, _ = load_unet(source)

    def message(patched: Any) -> str | None:
        return error_message(lambda: sample_briefly(quantize_model(patched, "int8_row").args[0], table))

    return {
        "stuck": {name: message(patched) for name, patched in stuck_cases(model).items()},
        "harmless": {name: message(patched) for name, patched in harmless_cases(model).items()},
    }


def rebind_encoder(source: str) -> dict[str, Any]:
    """Quantize a text encoder with a bypass LoRA; the reference has it on the quantized encoder."""
    clip = load(source)
    lora = {
        f"text_encoders.{key}": tensor * 0.2
        for key, tensor in random_lora(clip.patcher, r"layers\.\d\.mlp\.\w+\.weight$").items()
    }

    def patch(clip: Any) -> Any:
        patched = comfy.sd.load_bypass_lora_for_models(None, clip, dict(lora), 0.0, 1.0)[1]
        assert patched.patcher.get_injections("bypass_lora")
        return patched

    def encode(clip: Any) -> Tensor:
        return clip.encode_from_tokens_scheduled(clip.tokenize("a handwritten seven"))[0][0]

    reference = encode(patch(quantize_encoder(clip, "int8_row").args[0]))
    made = encode(quantize_encoder(patch(clip), "int8_row").args[0])
    plain = encode(quantize_encoder(clip, "int8_row").args[0])
    first = next(module for name, module in clip.cond_stage_model.named_modules() if name.endswith("layers.0"))
    stuck = clip.clone()
    stuck.patcher.add_callback_with_key(CallbacksMP.ON_LOAD, "test", lambda *_: first.eval())
    return {
        "equal": torch.equal(made, reference),
        "has an effect": not torch.equal(reference, plain),
        "stuck": error_message(lambda: quantize_encoder(stuck, "int8_row")),
    }
