"""Every spelling means the recipe that it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.quant.cli.choices import make_recipe, without_effect
from calibrated_rounding.quant.cli.console import UsageError
from calibrated_rounding.quant.cli.options import DEFAULT_FORMAT, MODEL_FLAGS, converter
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.planning.profiles import profile_names
from calibrated_rounding.quant.recipe import Recipe, SvdSettings


def recipe(command: str) -> Recipe:
    return make_recipe(converter().given(["-i", "in.safetensors", *command.split()]))


SVD = {"format": DEFAULT_FORMAT, "rounding": "svd"}

SPELLINGS: dict[str, dict[str, Any]] = {
    "": {"format": "float8_e4m3fn"},
    "--comfy_quant": {"format": "float8_e4m3fn"},
    "--int8": {"format": "int8_row"},
    "--int8 --scaling_mode row": {"format": "int8_row"},
    "--int8 --scaling_mode tensor": {"format": "int8_tensor"},
    "--scaling_mode tensor": {"format": "float8_e4m3fn"},
    "--scaling_mode=tensor": {"format": "float8_e4m3fn"},
    "--convrot": {"format": "int8_convrot"},
    "--int8 --convrot --scaling_mode row": {"format": "int8_convrot"},
    "--convrot --convrot_group_size 64": {"format": "int8_convrot", "rotation_group": 64},
    "--mxfp8": {"format": "mxfp8"},
    "--int8 --scaling_mode row --block_size 128": {"format": "int8_row"},
    "--int8 --block_size 64": {"format": "int8_row"},
    "--int8 --scaling_mode block": {"format": "int8_blockwise"},
    "--int8 --scaling_mode block --block_size 128": {"format": "int8_blockwise"},
    "--int8 --scaling_mode block --block_size 64": {"format": "int8_blockwise_64"},
    "--format int8_blockwise --block_size 128": {"format": "int8_blockwise"},
    "--mxfp8 --block_size 32": {"format": "mxfp8"},
    "--format fp8_e5m2": {"format": "float8_e5m2"},
    "--format int8_row --int8": {"format": "int8_row"},
    "--format float8_e5m2 --scaling_mode tensor": {"format": "float8_e5m2"},
    "--simple": {"format": DEFAULT_FORMAT, "rounding": "nearest"},
    "--rounding svd": SVD,
    "--optimizer radam": SVD | {"svd": SvdSettings(optimizer="radam")},
    "--num_iter 7": SVD | {"svd": SvdSettings(iterations=7)},
    "--lr 0.5": SVD | {"svd": SvdSettings(lr=0.5)},
    "--top_p 0.4": SVD | {"svd": SvdSettings(top_p=0.4)},
    "--min_k 3": SVD | {"svd": SvdSettings(min_k=3)},
    "--max_k 99": SVD | {"svd": SvdSettings(max_k=99)},
    "--full_matrix": SVD | {"svd": SvdSettings(full=True)},
    "--heur": {"format": DEFAULT_FORMAT, "heuristics": True},
    "--full_precision_matrix_mult": {"format": DEFAULT_FORMAT, "full_precision_matrix_mult": True},
    "--input_scale": {"format": DEFAULT_FORMAT, "input_scale": "absmax"},
    "--exclude_layers a.b": {"format": DEFAULT_FORMAT, "exclude": ("a.b",)},
    "--exclude_layers a --exclude_layers b": {"format": DEFAULT_FORMAT, "exclude": ("a", "b")},
    "--scale mse": {"format": DEFAULT_FORMAT, "scale": "mse"},
    "--override (?:=x)=mxfp8": {"format": DEFAULT_FORMAT, "overrides": (("(?:=x)", "mxfp8"),)},
    "--fallback int8": {"format": DEFAULT_FORMAT, "fallback": "int8_row"},
    "--embeddings": {"format": DEFAULT_FORMAT, "embeddings": True},
    "--keep_dtype float16": {"format": DEFAULT_FORMAT, "keep_dtype": "float16"},
    "--upgrade mxfp8 --max_error 0.02": {"format": DEFAULT_FORMAT, "upgrade": "mxfp8", "max_error": 0.02},
    "--bias_correction measured": {"format": DEFAULT_FORMAT, "bias_correction": "measured"},
    "--dequantize": {"format": DEFAULT_FORMAT, "dequantize": True},
    "--seed 4": {"format": DEFAULT_FORMAT, "seed": 4},
    "--profile wan": {"format": DEFAULT_FORMAT, "profile": "wan"},
}


@pytest.mark.parametrize("command", SPELLINGS)
def test_a_spelling_means_its_recipe(command: str) -> None:
    assert recipe(command) == Recipe(**SPELLINGS[command])


@pytest.mark.parametrize("command", SPELLINGS)
def test_dashes_and_underscores_are_one(command: str) -> None:
    names = [word.replace("_", "-") if word.startswith("--") and "=" not in word else word for word in command.split()]
    assert recipe(" ".join(names)) == recipe(command)


ISSUE_FLAGS = {
    "t5xxl": "t5xxl",
    "distillation_large": "chroma",
    "distillation_small": "chroma_small",
    "nerf_large": "nerf_large",
    "nerf_small": "nerf_small",
    "radiance": "radiance",
    "wan": "wan",
    "hunyuan": "hunyuan_video15",
    "qwen": "qwen_image",
    "zimage_l": "zimage",
    "zimage_s": "zimage_small",
}


@pytest.mark.parametrize("flag", ISSUE_FLAGS)
def test_a_model_flag_of_the_fields_converter_names_a_profile(flag: str) -> None:
    assert recipe(f"--{flag}").profile == ISSUE_FLAGS[flag]


def test_every_model_flag_leads_to_a_profile_that_exists() -> None:
    assert set(MODEL_FLAGS.values()) <= set(profile_names())


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("--convrot --scaling_mode block", "int8_row"),
        ("--int8 --scaling_mode block --block_size 32", "128, 64"),
        ("--format int8_blockwise --block_size 64", "int8_blockwise_64"),
        ("--scaling_mode block", "float8_e4m3fn"),
        ("--scaling_mode row", "float8_e4m3fn"),
        ("--convrot --scaling_mode tensor", "int8_convrot"),
        ("--int8 --mxfp8", "--mxfp8"),
        ("--format float8_e5m2 --int8", "int8_row"),
        ("--format int8_row --scaling_mode tensor", "int8_tensor"),
        ("--simple --rounding svd", "--simple"),
        ("--simple --num_iter 5", "--simple"),
        ("--rounding nearest --lr 1", "--rounding"),
        ("--upgrade mxfp8", "max_error"),
    ],
)
def test_a_contradiction_is_refused_by_name(command: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        recipe(command)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("--wan --t5xxl", "--wan"),
        ("--wan --profile flux", "--wan"),
        ("--num_itr 3", "--num-iter"),
        ("--num_iter three", "three"),
        ("--rounding up", "nearest"),
        ("--override mxfp8", "REGEX=FORMAT"),
        ("--scaling_mode diagonal", "row"),
    ],
)
def test_what_cannot_be_parsed_is_a_usage_error(command: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        recipe(command)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    made = Recipe(
        format="int8_row", rounding="svd", svd=SvdSettings(top_p=0.5), heuristics=True, seed=3, exclude=("x",)
    )
    path.write_text(made.to_json())
    return path


def test_a_recipe_file_is_taken_whole(recipe_file: Path) -> None:
    assert recipe(f"--recipe {recipe_file}") == Recipe.load(recipe_file)


def test_options_go_before_the_recipe_file(recipe_file: Path) -> None:
    found = recipe(f"--recipe {recipe_file} --scaling_mode tensor --simple --seed 5 --no-heur --exclude_layers y")
    assert (found.format, found.rounding, found.seed, found.heuristics) == ("int8_tensor", "nearest", 5, False)
    assert found.exclude == ("y", "x")
    assert found.svd.top_p == 0.5


def test_the_recipe_of_a_report_makes_the_same_recipe(tmp_path: Path) -> None:
    made = recipe("--convrot --optimizer radam --override a=bf16")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(made.to_dict()))
    assert recipe(f"--recipe {path}") == made


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("--block_size 64", "block_size_unused"),
        ("--int8 --block_size 64", "block_size_unused"),
        ("--int8 --scaling_mode block --block_size 64", None),
        ("--convrot_group_size 64", "rotation_group_unused"),
        ("--convrot --convrot_group_size 64", None),
        ("--override a=convrot --convrot_group_size 64", None),
        ("--int8 --comfy_quant", None),
    ],
)
def test_settings_without_effect_are_noted(command: str, kind: str | None) -> None:
    given = converter().given(["-i", "in.safetensors", *command.split()])
    assert [note.kind for note in without_effect(given, make_recipe(given))] == ([] if kind is None else [kind])
