"""Every spelling means the recipe that it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.quant.cli.aliases import ALIASES, Preset, Spelling
from calibrated_rounding.quant.cli.choices import list_unused, make_recipe
from calibrated_rounding.quant.cli.console import UsageError
from calibrated_rounding.quant.cli.options import make_parser
from calibrated_rounding.quant.errors import RecipeError
from calibrated_rounding.quant.notices import render_all
from calibrated_rounding.quant.planning.profiles import profile_names
from calibrated_rounding.quant.recipe import CalibratedSettings, Recipe, SvdSettings
from calibrated_rounding.quant.settings.kinds import Switch


def recipe(command: str) -> Recipe:
    return make_recipe(make_parser().given(["-i", "in.safetensors", *command.split()]))


SVD: dict[str, Any] = {"rounding": "svd"}

SPELLINGS: dict[str, dict[str, Any]] = {
    "": {},
    "--comfy_quant": {"format": "float8_e4m3fn"},
    "--save_quant_metadata": {"format": "float8_e4m3fn"},
    "--low_memory": {"format": "float8_e4m3fn"},
    "--block_size 64": {"format": "float8_e4m3fn"},
    "--comfy_quant --int8": {"format": "int8_row"},
    "--comfy_quant --target_share 0.5": {"format": "auto", "target_share": 0.5},
    "--int8": {"format": "int8_row"},
    "--int8 --scaling_mode row": {"format": "int8_row"},
    "--int8 --scaling_mode tensor": {"format": "int8_tensor"},
    "--scaling_mode tensor": {"format": "float8_e4m3fn"},
    "--scaling_mode=tensor": {"format": "float8_e4m3fn"},
    "--convrot": {"format": "int8_convrot"},
    "--int8 --convrot --scaling_mode row": {"format": "int8_convrot"},
    "--convrot --convrot_group_size 64": {"format": "int8_convrot", "rotation_group": 64},
    "--mxfp8": {"format": "mxfp8"},
    "--nvfp4": {"format": "nvfp4"},
    "--nvfp4 --block_size 64": {"format": "nvfp4"},
    "--format asym_w4a8_int8": {"format": "w4a8"},
    "--format w6a8_int8": {"format": "w6a8"},
    "--int8 --scaling_mode row --block_size 128": {"format": "int8_row"},
    "--int8 --block_size 64": {"format": "int8_row"},
    "--int8 --scaling_mode block": {"format": "int8_blockwise"},
    "--int8 --scaling_mode block --block_size 128": {"format": "int8_blockwise"},
    "--int8 --scaling_mode block --block_size 64": {"format": "int8_blockwise_64"},
    "--int8 --scaling_mode block --group_size 64": {"format": "int8_blockwise_64"},
    "--format int8_blockwise --block_size 128": {"format": "int8_blockwise"},
    "--mxfp8 --block_size 32": {"format": "mxfp8"},
    "--format fp8_e5m2": {"format": "float8_e5m2"},
    "--format int8_row --int8": {"format": "int8_row"},
    "--format float8_e5m2 --scaling_mode tensor": {"format": "float8_e5m2"},
    "--simple": {"rounding": "nearest"},
    "--rounding svd": SVD,
    "--optimizer radam": SVD | {"svd": SvdSettings(optimizer="radam")},
    "--num_iter 7": SVD | {"svd": SvdSettings(iterations=7)},
    "--iterations 7": SVD | {"svd": SvdSettings(iterations=7)},
    "--lr 0.5": SVD | {"svd": SvdSettings(lr=0.5)},
    "--top_p 0.4": SVD | {"svd": SvdSettings(top_p=0.4)},
    "--min_k 3": SVD | {"svd": SvdSettings(min_k=3)},
    "--max_k 99": SVD | {"svd": SvdSettings(max_k=99)},
    "--full_matrix": SVD | {"svd": SvdSettings(full=True)},
    "--no_full": SVD,
    "--metric inputs": SVD | {"svd": SvdSettings(metric="inputs")},
    "--damping 0.1": {"rounding": "calibrated", "calibrated": CalibratedSettings(damping=0.1)},
    "--passes 0": {"rounding": "calibrated", "calibrated": CalibratedSettings(passes=0)},
    "--held_out 0.5": {"calibrated": CalibratedSettings(held_out=0.5)},
    "--heur": {"heuristics": True},
    "--heuristics": {"heuristics": True},
    "--rotation_group auto": {"rotation_group": "auto"},
    "--input_scale percentile": {"input_scale": "percentile"},
    "--full_precision_matrix_mult": {"full_precision_matrix_mult": True},
    "--input_scale": {"input_scale": "absmax"},
    "--exclude_layers a.b": {"exclude": ("a.b",)},
    "--exclude a --exclude_layers b": {"exclude": ("a", "b")},
    "--scale mse": {"scale": "mse"},
    "--override (?:=x)=mxfp8": {"overrides": (("(?:=x)", "mxfp8"),)},
    "--overrides a=bf16 --override b=int8": {"overrides": (("a", "bfloat16"), ("b", "int8_row"))},
    "--fallback int8": {"fallback": "int8_row"},
    "--embeddings": {"embeddings": True},
    "--keep_dtype float16": {"keep_dtype": "float16"},
    "--output_dtype bf16": {"keep_dtype": "bfloat16"},
    "--upgrade mxfp8 --max_error 0.02": {"upgrade": "mxfp8", "max_error": 0.02},
    "--bias_correction measured": {"bias_correction": "measured"},
    "--dequantize": {"dequantize": True},
    "--seed 4": {"seed": 4},
    "--manual_seed 4": {"seed": 4},
    "--format auto --formats fp8,mxfp8": {"format": "auto", "formats": ("float8_e4m3fn", "mxfp8")},
    "--target_gb 1": {"format": "auto", "target_gb": 1.0},
    "--target_error 0.01": {"format": "auto", "target_error": 0.01},
    "--profile wan": {"profile": "wan"},
}


SETTINGS = Recipe.declarations()


@pytest.mark.parametrize("command", SPELLINGS)
def test_alias_gives_its_recipe(command: str) -> None:
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
def test_convert_to_quant_model_flag_names_profile(flag: str) -> None:
    assert recipe(f"--{flag}").profile == ISSUE_FLAGS[flag]


def test_aliases_name_settings_and_profiles() -> None:
    flags = [alias for alias in ALIASES.values() if isinstance(alias, Preset)]
    assert {alias.value for alias in flags if alias.setting == "profile"} <= set(profile_names())
    assert {alias.setting for alias in ALIASES.values() if isinstance(alias, (Preset, Spelling))} <= SETTINGS.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_an_option(name: str) -> None:
    """By its own name, with the value that the declaration names as default."""
    declared, option = SETTINGS[name], f"--{name.rpartition('.')[2]}"
    if isinstance(declared.kind, Switch):
        words = [option if not declared.default else f"--no-{option[2:]}"]
    elif declared.default in (None, ()):
        words = [option, {"overrides": "a=mxfp8", "exclude": "a", "upgrade": "mxfp8"}.get(name, "0.5")]
    else:
        words = [option, declared.kind.format(declared.default)]
    given = make_parser().given(["-i", "in.safetensors", *words])
    assert name in given
    assert declared.check(given[name]) is not None


def test_a_value_is_refused_by_the_declaration() -> None:
    for command, sentence in {
        "--rounding up": "rounding is 'up'; choose one of nearest, svd, calibrated.",
        "--optimizer sgd": "svd.optimizer is 'sgd'; choose one of original, adamw, radam, prodigy, feedback.",
        "--passes -1": "calibrated.passes is -1; it must be a whole number from 0 to 1000000.",
        "--lr nan": "svd.lr is nan; it must be a number above 0.",
        "--target_gb inf": "target_gb is inf; it must be a number above 0.",
        "--seed 99999999999999999999999": "seed is 99999999999999999999999; it must be a whole number of 64 bits.",
    }.items():
        with pytest.raises(RecipeError) as caught:
            recipe(command)
        assert str(caught.value) == sentence


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
        ("--mxfp8 --nvfp4", "--nvfp4"),
        ("--format int4", "w4a8 has 4-bit codes"),
        ("--format float8_e5m2 --int8", "int8_row"),
        ("--format int8_row --scaling_mode tensor", "int8_tensor"),
        ("--simple --rounding svd", "--simple"),
        ("--simple --num_iter 5", "--simple"),
        ("--rounding nearest --lr 1", "--rounding"),
        ("--wan --t5xxl", "--wan"),
        ("--wan --profile flux", "--wan"),
        ("--passes 3 --lr 1", "--passes"),
        ("--format int8_row --target_share 0.5", "--target-share"),
        ("--upgrade mxfp8", "max_error"),
    ],
)
def test_a_contradiction_is_refused_by_name(command: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        recipe(command)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("--num_itr 3", "--num-iter"),
        ("--num_iter three", "three"),
        ("--override mxfp8", "REGEX=FORMAT"),
        ("--scaling_mode diagonal", "row"),
    ],
)
def test_unparsable_options_are_usage_errors(command: str, named: str) -> None:
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


def test_report_recipe_roundtrip(tmp_path: Path) -> None:
    made = recipe("--convrot --optimizer radam --override a=bf16")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(made.to_dict()))
    assert recipe(f"--recipe {path}") == made


@pytest.mark.parametrize(
    ("command", "note"),
    [
        ("--block_size 64", "--block-size has no effect: float8_e4m3fn has no blocks of a size to choose."),
        ("--int8 --block_size 64", "--block-size has no effect: int8_row has no blocks of a size to choose."),
        ("--int8 --scaling_mode block --block_size 64", None),
        ("--int8 --convrot_group_size 64", "--rotation-group has no effect: no chosen format is rotated."),
        ("--convrot_group_size 64", None),
        ("--int8 --override a=convrot --convrot_group_size 64", None),
        ("--optimizer feedback --num_iter 5", "--iterations has no effect: svd.optimizer is feedback."),
        ("--formats fp8", "--formats has no effect: format is int8_convrot."),
        ("--held_out 0.5", None),
        ("--int8 --comfy_quant", None),
    ],
)
def test_settings_without_effect_are_noted(command: str, note: str | None) -> None:
    given = make_parser().given(["-i", "in.safetensors", *command.split()])
    assert render_all(list_unused(given, make_recipe(given))) == ([] if note is None else [note])
