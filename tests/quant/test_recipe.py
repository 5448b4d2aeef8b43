from __future__ import annotations

import json
from pathlib import Path

import pytest
from calibrated_rounding.quant import Recipe, RecipeError, SvdSettings
from calibrated_rounding.quant.formats import FORMATS
from hypothesis import given
from hypothesis import strategies as st

RECIPES = st.builds(
    Recipe,
    format=st.sampled_from(list(FORMATS)),
    rounding=st.sampled_from(["nearest", "svd"]),
    svd=st.builds(SvdSettings, iterations=st.integers(1, 9), lr=st.none() | st.floats(0.1, 1.0)),
    overrides=st.lists(
        st.tuples(st.sampled_from(["attn", "^a.*b$"]), st.sampled_from(["bf16", "mxfp8"])), max_size=2
    ).map(tuple),
    exclude=st.lists(st.text("abc.", max_size=4), max_size=2).map(tuple),
    seed=st.integers(0, 2**31),
)


@given(recipe=RECIPES)
def test_json_gives_the_same_recipe(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe


def test_aliases_are_stored_in_full() -> None:
    recipe = Recipe(format="fp8", overrides=(("x", "bf16"),), fallback="int8", upgrade="convrot", max_error=0.1)
    assert (recipe.format, recipe.fallback, recipe.upgrade) == ("float8_e4m3fn", "int8_row", "int8_convrot")
    assert recipe.overrides == (("x", "bfloat16"),)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"format": "int9"}, "int9"),
        ({"format": "bfloat16"}, "floating-point"),
        ({"rounding": "learned"}, "rounding is 'learned'; choose one of nearest, svd"),
        ({"scale": "max"}, "scale"),
        ({"rotation_group": 32}, "rotation_group"),
        ({"exclude": ("(",)}, "regular expression"),
        ({"overrides": (("[", "mxfp8"),)}, "regular expression"),
        ({"upgrade": "mxfp8"}, "belong together"),
        ({"upgrade": "mxfp8", "max_error": -1.0}, "above 0"),
        ({"keep_dtype": "int8"}, "keep_dtype"),
        ({"bias_correction": "yes"}, "bias_correction"),
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
        ({"formt": "mxfp8"}, "Did you mean 'format'"),
        ({"svd": {"k": 1}}, "k"),
        ({"overrides": [["a"]]}, "cannot be read"),
    ],
)
def test_bad_recipe_data(data: dict[str, object], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        Recipe.from_dict(data)


def test_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(Recipe(format="mxfp8").to_json())
    assert Recipe.load(path).format == "mxfp8"
    for text, message in (("{", "not JSON"), ("[]", "object")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            Recipe.load(path)
    with pytest.raises(RecipeError, match="missing"):
        Recipe.load(tmp_path / "missing.json")
