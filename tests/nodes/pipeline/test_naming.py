"""Names of saved files, and the tokens in them."""

from __future__ import annotations

import time

import pytest
from calibrated_rounding.nodes.pipeline.naming import (
    DEFAULT_NAME,
    fill_name,
    find_model_name,
    make_words,
    name_format,
    name_model,
    refuse_name,
)
from calibrated_rounding.quant import QuantError

WORDS = make_words("flux1-dev", {"format": "int8_convrot", "rounding": "calibrated"})
NOW = time.struct_time((2026, 3, 7, 9, 5, 2, 5, 66, 0))
PROMPT = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan/wan2.1_14B_fp16.safetensors"}},
    "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": "style.safetensors"}},
    "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": 42, "name": "a/b"}, "_meta": {"title": "S"}},
    "4": {"class_type": "SaveCalibration", "inputs": {"calibration": ["3", 0]}},
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("flux1-dev.safetensors", "flux1-dev"),
        ("wan/wan2.1_t2v_1.3B_bf16.safetensors", "wan2.1_t2v_1.3B"),
        ("sub\\model-FP16.sft", "model"),
        ("model.gguf", "model"),
        ("bf16.safetensors", "bf16"),
    ],
)
def test_models_are_named_by_their_files(path: str, name: str) -> None:
    assert name_model(path) == name


@pytest.mark.parametrize(
    ("recipe", "formats", "word"),
    [
        ({"format": "float8_e4m3fn"}, (), "float8_e4m3fn"),
        ({"format": "auto"}, ("int8_row",), "mixed"),
        (None, ("mxfp8", "mxfp8"), "mxfp8"),
        (None, ("mxfp8", "int8_tensorwise"), "mixed"),
        (None, (), "quantized"),
    ],
)
def test_formats_are_named_in_one_word(recipe: dict[str, str] | None, formats: tuple[str, ...], word: str) -> None:
    assert name_format(recipe, formats) == word


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (DEFAULT_NAME, "flux1-dev_int8_convrot"),
        ("diffusion_models/%model%-%rounding%", "diffusion_models/flux1-dev-calibrated"),
        ("%date:yyyy-MM-dd%/x", "2026-03-07/x"),
        ("%date:yy-M-d hhmmss%", "26-3-7 090502"),
        ("%date%_x", "2026-03-07_x"),
        ("%KSampler.seed%", "42"),
        ("%S.seed%", "42"),
        ("%Named.name%", "a_b"),
        ("50% of %year%", "50% of %year%"),
        ("plain", "plain"),
    ],
)
def test_tokens_become_words(text: str, name: str) -> None:
    workflow = {"nodes": [{"id": 3, "properties": {"Node name for S&R": "Named"}}]}
    assert fill_name(text, WORDS, PROMPT, workflow, NOW) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("%modle%_x", "%modle%, which nothing replaces here"),
        ("%Nobody.seed%", "no node called 'Nobody'"),
        ("%KSampler.steps%", "no value of its own called 'steps'"),
        ("%KSampler.model%", "no value of its own called 'model'"),
    ],
)
def test_names_that_mean_nothing_are_refused(text: str, words: str) -> None:
    with pytest.raises(QuantError, match=words):
        fill_name(text, WORDS, PROMPT, None, NOW)


def test_values_of_models_cannot_make_folders() -> None:
    assert fill_name("%model%", make_words("a/../b%x%", None)) == "a_.._b_x_"


def test_dates_keep_words_between_percent_signs_apart() -> None:
    refuse_name("%date:yyyy%_%model%_%Loader.file%")


def test_a_calibration_takes_its_models_name() -> None:
    assert find_model_name(PROMPT, "4") == "wan2.1_14B"
    assert find_model_name(PROMPT, "1") is None
    assert find_model_name(None, None) is None
