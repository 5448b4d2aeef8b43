"""The documents at the root: they name everything that a user can choose, and every file that they point to exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from calibrated_rounding.quant.cli.options import MODEL_FLAGS, OPTIONS
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.planning.profiles import profile_names

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "MANUAL.md", "DEVELOPMENT.md", "CHANGELOG.md")
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]*)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def headings(name: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", FENCE.sub("", text(name)), re.MULTILINE)


def anchors(name: str) -> set[str]:
    """The fragments of a document's headings, as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings(name))
    return {heading.replace(" ", "-") for heading in plain}


def links(name: str) -> Iterator[tuple[str, str]]:
    """File and fragment of every link that does not lead elsewhere; an empty file is the document itself."""
    for target in LINK.findall(FENCE.sub("", text(name))):
        if not re.match(r"\w+:", target):
            path, _, fragment = target.partition("#")
            yield path, fragment


OPTION_NAMES = [name for options in OPTIONS.values() for option in options for name in option.names]


@pytest.mark.parametrize("name", [*OPTION_NAMES, "--profile", *(f"--{flag}" for flag in MODEL_FLAGS)])
def test_the_manual_names_every_option(name: str) -> None:
    assert f"`{name}`" in text("MANUAL.md")


@pytest.mark.parametrize("name", [*FORMATS, *profile_names()])
def test_the_manual_names_every_format_and_profile(name: str) -> None:
    assert f"| `{name}` |" in text("MANUAL.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_manual_has_a_section_for_every_node(page: Path) -> None:
    title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert title in headings("MANUAL.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    for path, fragment in links(name):
        assert (ROOT / path).exists(), path
        assert not fragment or fragment in anchors(path or name), f"{path}#{fragment}"


def test_the_readme_leads_to_the_other_documents() -> None:
    assert {path for path, _ in links("README.md")} >= set(DOCUMENTS) - {"README.md"}
