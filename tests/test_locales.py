"""The translations: every language says what English says, and the front end finds every word that it asks for."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.quant.layer.layer_errors import PAIRS
from calibrated_rounding.quant.notices import TEMPLATES
from calibrated_rounding.tools.locales import FILE, FOLDER, LANGUAGES, leaves, translate

ROOT = FOLDER.parent
FILES = (FILE, "main.json")
WORDS = json.loads((FOLDER / "en" / "main.json").read_text(encoding="utf-8"))["calibratedRounding"]
PLACEHOLDER = re.compile(r"\{\w+\}")


def texts(language: str, file: str) -> dict[tuple[str, ...], str]:
    tree: dict[str, Any] = json.loads((FOLDER / language / file).read_text(encoding="utf-8"))
    return dict(leaves(tree))


def scripts() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "web").glob("*.*js")))


@pytest.mark.parametrize(("language", "file"), [*product(LANGUAGES, FILES)])
def test_every_language_has_exactly_the_texts_of_english(language: str, file: str) -> None:
    assert texts(language, file).keys() == texts("en", file).keys()


@pytest.mark.parametrize(("language", "file"), [*product(LANGUAGES, FILES)])
def test_translations_keep_the_placeholders(language: str, file: str) -> None:
    english = texts("en", file)
    for path, text in texts(language, file).items():
        assert text.strip(), path
        assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(english[path])), path


@pytest.mark.parametrize(("language", "file"), [*product(("en", *LANGUAGES), FILES)])
def test_no_text_is_syntax_to_the_front_end(language: str, file: str) -> None:
    """vue-i18n takes ``|`` for plurals, ``@`` for links and braces for values."""
    for path, text in texts(language, file).items():
        assert not set("|@{}") & set(PLACEHOLDER.sub("", text)), path


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_is_not_english(language: str) -> None:
    english = texts("en", FILE)
    same = [path for path, text in texts(language, FILE).items() if text == english[path] and path[-1] != "name"]
    assert same == []


def test_front_end_texts_exist() -> None:
    code = scripts()
    asked = set(re.findall(r'\btext\("(\w+)"', code))
    made = {f"column_{key}" for key in re.findall(r'(?:numeric|worded)\("(\w+)"', code)}
    made |= {f"{family}_{name}" for family in ("error", "about") for name in PAIRS}
    made |= set(re.findall(r'about: "(\w+)"', code))
    assert asked and made and (asked | made) - WORDS.keys() == set()


def test_the_front_end_asks_for_every_word() -> None:
    code = scripts()
    families = ("column_", "notice_", "axis_", "error_", "about_")
    unused = {key for key in WORDS if not key.startswith(families) and f'"{key}"' not in code}
    assert unused == set()


def test_notices_have_one_english_text() -> None:
    notices = {key: text for key, text in WORDS.items() if key.startswith("notice_")}
    assert notices == {f"notice_{kind}": text for kind, (_, text) in TEMPLATES.items()}


def test_the_page_knows_every_error_of_a_layer() -> None:
    (named,) = re.findall(r"export const PAIRS = (\[.*?\]);", (ROOT / "web" / "errors.mjs").read_text(encoding="utf-8"))
    assert sorted(json.loads(named)) == sorted(PAIRS)


def test_untranslated_texts_are_omitted() -> None:
    tree = {"node": {"display_name": "one", "inputs": {"a": {"name": "two"}}}}
    assert translate(tree, {"one": "eins"}) == {"node": {"display_name": "eins"}}


def test_front_end_loads_only_own_files() -> None:
    for path in Path(ROOT / "web").glob("*.*"):
        content = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[\w.]+\.\w+/|/extensions/", content), path
        assert ".prototype" not in content, path
