from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.quant import Recipe, RecipeError, SvdSettings
from calibrated_rounding.quant.calibration.input_scales import INPUT_SCALE_METHODS
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.scales import SCALE_METHODS
from calibrated_rounding.quant.layer.methods import ROUNDING_METHODS
from calibrated_rounding.quant.recipe import (
    AUTO,
    INPUT_SCALES,
    OFF,
    OPTIMIZERS,
    ROUNDINGS,
    SCALES,
    STEPPING,
    CalibratedSettings,
)
from calibrated_rounding.quant.rounding.optimizers import STEPPERS
from calibrated_rounding.quant.settings.kinds import Switch, Whole
from hypothesis import given
from hypothesis import strategies as st

SETTINGS = Recipe.declarations()

RECIPES = st.builds(
    Recipe,
    format=st.sampled_from(list(FORMATS)),
    rounding=st.sampled_from(["nearest", "svd"]),
    svd=st.builds(SvdSettings, iterations=st.integers(1, 9), lr=st.none() | st.floats(0.1, 1.0)),
    calibrated=st.builds(CalibratedSettings, damping=st.none() | st.floats(1e-6, 10.0), passes=st.integers(0, 9)),
    rotation_group=st.sampled_from([16, 64, 256, "auto"]),
    overrides=st.lists(
        st.tuples(st.sampled_from(["attn", "^a.*b$"]), st.sampled_from(["bf16", "mxfp8"])), max_size=2
    ).map(tuple),
    exclude=st.lists(st.text("abc.", max_size=4), max_size=2).map(tuple),
    seed=st.integers(-(2**63), 2**63 - 1),
)

STORED = [
    """{"bias_correction": "off", "calibrated": {"damping": null, "held_out": 0.125, "passes": 2}, "dequantize": false,
    "embeddings": false, "exclude": [], "fallback": "source", "format": "int8_convrot",
    "formats": ["int8_convrot", "float8_e4m3fn"], "full_precision_matrix_mult": false, "heuristics": false,
    "input_scale": "off", "keep_dtype": "source", "max_error": null, "overrides": [], "profile": "auto",
    "rotation_group": 256, "rounding": "nearest", "scale": "absmax", "seed": 0, "svd": {"full": false,
    "iterations": 60, "lr": null, "max_k": 256, "metric": "weight", "min_k": 64, "optimizer": "original", "top_p": 0.2},
    "target_error": null, "target_gb": null, "target_share": null, "upgrade": null}""",
    """{"bias_correction": "synthetic", "calibrated": {"damping": 0.01, "held_out": 0.25, "passes": 0},
    "dequantize": true, "embeddings": true, "exclude": ["x"], "fallback": "float8_e4m3fn", "format": "auto",
    "formats": ["mxfp8", "float8_e4m3fn"], "full_precision_matrix_mult": true, "heuristics": true,
    "input_scale": "mse", "keep_dtype": "float16", "max_error": null, "overrides": [["a", "bfloat16"],
    ["b", "int8_row"]], "profile": "wan", "rotation_group": "auto", "rounding": "svd", "scale": "mse", "seed": -1,
    "svd": {"full": true, "iterations": 7, "lr": 1, "max_k": 256, "metric": "inputs", "min_k": 64,
    "optimizer": "radam", "top_p": 0.2}, "target_error": null, "target_gb": null, "target_share": 0.5,
    "upgrade": null}""",
]
"""Recipes as files of version 0.1.0 hold them."""


@given(recipe=RECIPES)
def test_json_gives_the_same_recipe(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe


def without_later(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of version 0.1.0 in their JSON form."""
    return {
        name: without_later(value, f"{name}.") if isinstance(value, dict) else value
        for name, value in data.items()
        if isinstance(value, dict) or not SETTINGS[f"{prefix}{name}"].later
    }


@pytest.mark.parametrize("text", STORED)
def test_stored_recipes_load_and_keep_their_json(text: str) -> None:
    recipe = Recipe.from_dict(json.loads(text))
    assert json.dumps(without_later(recipe.to_dict()), sort_keys=True) == " ".join(text.split())


def test_default_recipe_is_rotated_int8_to_nearest() -> None:
    """Recipes from before input_scale had `auto` hold `off`."""
    assert Recipe.from_dict(json.loads(STORED[0])) == Recipe(input_scale=OFF)


def test_missing_settings_take_their_defaults() -> None:
    assert Recipe.from_dict({"svd": {"top_p": 0.5}}) == Recipe(svd=SvdSettings(top_p=0.5))


def test_aliases_are_stored_in_full() -> None:
    recipe = Recipe(format="fp8", overrides=(("x", "bf16"),), fallback="int8", upgrade="convrot", max_error=0.1)
    assert (recipe.format, recipe.fallback, recipe.upgrade) == ("float8_e4m3fn", "int8_row", "int8_convrot")
    assert recipe.overrides == (("x", "bfloat16"),)


def test_declared_names_are_the_names_of_the_methods() -> None:
    assert ROUNDING_METHODS.keys() == ROUNDINGS.keys()
    assert SCALE_METHODS.keys() == SCALES.keys() - {AUTO}
    assert INPUT_SCALE_METHODS.keys() == INPUT_SCALES.keys() - {AUTO, OFF}
    assert STEPPERS.keys() == set(STEPPING) == OPTIMIZERS.keys() - {"feedback"}


@pytest.mark.parametrize("name", SETTINGS)
def test_declarations_are_complete(name: str) -> None:
    declared = SETTINGS[name]
    assert declared.name == name
    assert declared.help.endswith(".") and declared.help[0].isupper()
    assert declared.level in ("basic", "advanced", "expert")
    assert declared.group
    assert declared.default is None or declared.check(declared.default) == declared.default


def test_every_field_is_declared() -> None:
    sections = {"svd": SvdSettings, "calibrated": CalibratedSettings}
    names = [f.name for f in fields(Recipe) if f.name not in sections]
    names += [f"{section}.{f.name}" for section, cls in sections.items() for f in fields(cls)]
    assert sorted(names) == sorted(SETTINGS)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"format": "int9"}, "format is 'int9'; choose one of float8_e4m3fn"),
        ({"format": "int8_rwo"}, "did you mean 'int8_row'?"),
        ({"format": "bfloat16"}, "format is 'bfloat16'; that is a floating-point format, so choose one of float8"),
        ({"rounding": "learned"}, "rounding is 'learned'; choose one of nearest, svd, calibrated."),
        ({"scale": "max"}, "scale is 'max'; choose one of absmax, mse, auto."),
        ({"rotation_group": 32}, "rotation_group is 32; choose one of 256, 64, 16, auto."),
        ({"rotation_group": 256.0}, "rotation_group is 256.0; choose one of"),
        ({"exclude": ("(",)}, "exclude[0] is '('; it must be a regular expression (missing )"),
        ({"overrides": (("[", "mxfp8"),)}, "overrides[0][0] is '['; it must be a regular expression"),
        ({"overrides": (("a", "int9"),)}, "overrides[0][1] is 'int9'; choose one of"),
        ({"upgrade": "mxfp8"}, "belong together"),
        ({"upgrade": "mxfp8", "max_error": -1.0}, "max_error is -1.0; it must be a number above 0."),
        ({"keep_dtype": "int8"}, "keep_dtype is 'int8_row'; choose one of source, bfloat16"),
        ({"bias_correction": "yes"}, "bias_correction is 'yes'"),
        ({"target_gb": 1.0}, "target_gb needs the format auto; int8_convrot leaves nothing to choose."),
        ({"format": "auto", "target_gb": 1.0, "target_error": 1.0}, "target_gb and target_error exclude each other"),
        ({"svd": {"lr": 1.0}}, "svd is {'lr': 1.0}; it must be SvdSettings."),
    ],
)
def test_bad_settings_say_which(settings: dict[str, object], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(**settings)  # type: ignore[arg-type]
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"formt": "mxfp8"}, "Unknown recipe field 'formt'. Did you mean 'format'?"),
        ({"svd": {"k": 1}}, "Unknown recipe field 'svd.k'."),
        ({"svd": 60}, "svd is 60; it must be an object of settings and their values."),
        ({"svd": None}, "svd is None; it must be an object"),
        ({"svd": {"min_k": 9, "max_k": 8}}, "svd.max_k is 8; it must be at least svd.min_k, 9."),
        ({"overrides": [["a"]]}, "overrides[0] is ['a']; it must be a pair, REGEX=FORMAT."),
        ({"overrides": {"a": "mxfp8"}}, "overrides is {'a': 'mxfp8'}; it must be a list."),
        ({"exclude": "false"}, "exclude is 'false'; it must be a list."),
        ({"exclude": [5]}, "exclude[0] is 5; it must be a regular expression."),
        ({"exclude": ["a{99999999999999999999}"]}, "exclude[0] is 'a{99999999999999999999}'; it must be a regular"),
        ({"exclude": ["(" * 5000 + ")" * 5000]}, "exclude[0] is '((((("),
        ({"dequantize": "false"}, "dequantize is 'false'; it must be true or false."),
        ({"embeddings": 1}, "embeddings is 1; it must be true or false."),
        ({"profile": 5}, "profile is 5; it must be a name."),
        ({"profile": []}, "profile is []"),
        ({"seed": "abc"}, "seed is 'abc'; it must be a whole number of 64 bits."),
        ({"seed": 1.5}, "seed is 1.5;"),
        ({"seed": None}, "seed is None;"),
        ({"seed": True}, "seed is True;"),
        ({"seed": 10**400}, "seed is 1000"),
        ({"seed": 10**5000}, "seed is of type int;"),
        ({"svd": {"iterations": 1.5}}, "svd.iterations is 1.5; it must be a whole number from 1 to 1000000."),
        ({"svd": {"iterations": 10**9}}, "svd.iterations is 1000000000;"),
        ({"svd": {"lr": math.nan}}, "svd.lr is nan; it must be a number above 0."),
        ({"svd": {"top_p": 10**400}}, "svd.top_p is 1000"),
        ({"svd": {"top_p": True}}, "svd.top_p is True; it must be a number above 0 and at most 1."),
        ({"calibrated": {"held_out": 1}}, "calibrated.held_out is 1; it must be a number above 0 and below 1."),
        ({"max_error": math.inf, "upgrade": "mxfp8"}, "max_error is inf;"),
        ({"formats": "mxfp8"}, "formats is 'mxfp8'; it must be a list."),
        ({"formats": [["mxfp8"]]}, "formats[0] is ['mxfp8']; choose one of"),
        ({"format": {"format": "mxfp8"}}, "format is {'format': 'mxfp8'}; choose one of"),
        ([], "The recipe is []; it must be an object of settings and their values."),
        ("int8", "The recipe is 'int8'"),
    ],
)
def test_bad_recipe_data(data: Any, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(data)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_whole_numbers_serve_as_numbers() -> None:
    assert Recipe.from_dict({"svd": {"lr": 1, "top_p": 1}}).svd == SvdSettings(lr=1.0, top_p=1.0)


def nested_lists(depth: int) -> list[Any]:
    result: list[Any] = []
    for _ in range(depth):
        result = [result]
    return result


GARBAGE = st.sampled_from([None, True, "false", "", "a\nb", -1, 0, 1.5, 10**400, math.nan, -math.inf, b"x", object()])
DEEP = nested_lists(10_000)
JSON = st.recursive(GARBAGE, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3)) | st.just(
    DEEP
)


@given(name=st.sampled_from([*SETTINGS, "svd", "calibrated"]), value=JSON)
def test_any_value_is_stored_or_refused(name: str, value: Any) -> None:
    section, dot, rest = name.rpartition(".")
    try:
        recipe = Recipe.from_dict({section: {rest: value}} if dot else {name: value})
    except RecipeError as error:
        assert str(error).endswith((".", "?")) and "\n" not in str(error) and len(str(error)) < 400
        assert name in str(error)
    else:
        stored = recipe.get(name)
        declared = SETTINGS.get(name)
        if declared is not None and isinstance(declared.kind, Switch):
            assert stored is value
        if declared is not None and isinstance(declared.kind, Whole):
            assert type(stored) is int
        assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe


def test_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(Recipe(format="mxfp8").to_json())
    assert Recipe.load(path).format == "mxfp8"
    for text, message in (("{", "not JSON"), ("[]", "object"), ("[" * 100_000, "not JSON"), ('{"seed": NaN}', "seed")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            Recipe.load(path)
    with pytest.raises(RecipeError, match="missing"):
        Recipe.load(tmp_path / "missing.json")
