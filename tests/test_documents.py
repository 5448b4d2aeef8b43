"""The documents: they name everything that a user can choose, exist where they point, and say what was measured."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from calibrated_rounding.benchmarks.document import DOCUMENTS as WITH_FIGURES
from calibrated_rounding.benchmarks.document import TABLES as FIGURES
from calibrated_rounding.benchmarks.document import update_tables
from calibrated_rounding.quant.cli.options import list_options
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.planning.profiles import get_profile, profile_names
from calibrated_rounding.quant.recipe import Recipe
from calibrated_rounding.tools import manual

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "MANUAL.md", "BENCHMARKS.md", "DEVELOPMENT.md", "CHANGELOG.md")
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
PAGES = (*DOCUMENTS, "examples/models/README.md", *(path.relative_to(ROOT).as_posix() for path in HELP))
LINK = re.compile(r"\]\(([^)\s]*)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
SOURCES = ("*.py", "*.mjs", "*.toml", "*.css", "*.json")

DIALECT = re.compile(
    r"\b(the host|the peer|the field's|given back|held back|as run|as ever|anew|at once|so many|that of|those of|fed|"
    r"told|firm|disturb\w*|such(?! as))\b",
    re.IGNORECASE,
)
"""What DEVELOPMENT.md's section on style replaces by plain words."""

STYLE = re.compile(r"^## Glossary and style$.*?(?=^## )", re.MULTILINE | re.DOTALL)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def headings(name: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", FENCE.sub("", text(name)), re.MULTILINE)


def anchors(name: str) -> set[str]:
    """The fragments of a document's headings, as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings(name))
    return {heading.replace(" ", "-") for heading in plain}


def links(name: str) -> Iterator[tuple[str, str]]:
    """File and fragment of every link into the repository; an empty file is the document itself."""
    for target in LINK.findall(FENCE.sub("", text(name))):
        if not re.match(r"\w+:", target):
            path, _, fragment = target.partition("#")
            yield path, fragment


def spans(name: str) -> list[str]:
    """Everything in backticks outside code blocks."""
    return SPAN.findall(FENCE.sub("", text(name)))


OPTION_NAMES = [name for options in list_options().values() for option in options for name in option.names]


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_manual_names_every_option(name: str) -> None:
    assert f"`{name}`" in text("MANUAL.md")


@pytest.mark.parametrize("table", manual.TABLES)
def test_manual_has_every_generated_table(table: str) -> None:
    assert f"<!-- generated: {table} -->" in text("MANUAL.md")


def test_generated_tables_are_fresh() -> None:
    assert manual.render(text("MANUAL.md")) == text("MANUAL.md"), "run: python tools/manual.py"


def test_stale_tables_are_replaced_alone() -> None:
    fresh = manual.render("before\n<!-- generated: options -->\n| old |\n<!-- end -->\nafter\n")
    assert fresh.startswith("before\n<!-- generated: options -->\n| option |") and fresh.endswith(
        "<!-- end -->\nafter\n"
    )
    assert "| old |" not in fresh


@pytest.mark.parametrize("name", [name for name, s in Recipe.declarations().items() if s.level != "expert"])
def test_manual_explains_every_setting_in_both_tables(name: str) -> None:
    assert text("MANUAL.md").count(Recipe.declarations()[name].help) == 2


@pytest.mark.parametrize("name", [*FORMATS, *profile_names()])
def test_manual_names_every_format_and_profile(name: str) -> None:
    assert f"| `{name}` |" in text("MANUAL.md")


@pytest.mark.parametrize("page", HELP, ids=lambda page: page.stem)
def test_manual_has_a_section_for_every_node(page: Path) -> None:
    title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert title in headings("MANUAL.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_existing_files_and_headings(name: str) -> None:
    for path, fragment in links(name):
        assert (ROOT / path).exists(), path
        assert not fragment or fragment in anchors(path or name), f"{path}#{fragment}"


def test_readme_links_to_the_other_documents() -> None:
    assert {path for path, _ in links("README.md")} >= set(DOCUMENTS) - {"README.md"}


def test_readme_names_every_supported_model() -> None:
    profiles = [get_profile(name) for name in profile_names()]
    families = [p for p in profiles if p.name == p.family and p.name != "generic"]
    # "Z-Image (large exclusion set)" is a rule set of Z-Image.
    titles = {re.sub(r" text encoder| \(large exclusion set\)", "", profile.title) for profile in families}
    readme = text("README.md")
    assert [title for title in sorted(titles) if title not in readme] == []


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_figure_tables_match_results(name: str) -> None:
    assert text(name) == update_tables(text(name)), "run: python benchmarks/document.py"


def test_every_table_of_figures_is_shown() -> None:
    shown = [block[2] for name in WITH_FIGURES for block in manual.BLOCK.finditer(text(name))]
    assert sorted(shown) == sorted(FIGURES)


def test_paths_in_development_exist() -> None:
    named = [span for span in spans("DEVELOPMENT.md") if re.fullmatch(r"[\w.*-]+(/[\w.*-]*)+|\w+\.(py|md|toml)", span)]
    named += re.findall(r"^--- a/(\S+)$", text("DEVELOPMENT.md"), re.MULTILINE)
    assert len(named) > 50
    assert [path for path in named if not any(ROOT.glob(path.rstrip("/")))] == []


def test_identifiers_in_development_exist() -> None:
    folders = ("nodes", "quant", "kernels", "benchmarks", "tools", "tests", "web")
    files = [path for folder in folders for pattern in SOURCES for path in (ROOT / folder).rglob(pattern)]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    named = [span for span in spans("DEVELOPMENT.md") if re.fullmatch(r"\w*[A-Z_]\w*", span)]
    assert [name for name in named if name not in words] == []


def blocks(language: str) -> list[str]:
    """The code blocks of DEVELOPMENT.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text("DEVELOPMENT.md"), re.MULTILINE | re.DOTALL)


def test_diffs_in_development_apply() -> None:
    diffs = [part for block in blocks("diff") for part in re.split(r"^--- a/", block, flags=re.MULTILINE)[1:]]
    assert len(diffs) > 3
    for diff in diffs:
        path, *lines = diff.splitlines()
        for line in lines:
            if line.startswith((" ", "-")):
                assert line[1:] in text(path).splitlines(), f"{path}: {line}"


def import_levels() -> dict[str, list[list[str]]]:
    """By package ("": all of them): modules and folders, each level importing from those before it alone."""
    lines = re.sub(r"\n +", " ", blocks("imports")[0]).splitlines()
    parts = [line.rpartition(": ") for line in lines]
    return {name: [re.findall(r"[\w*]+", level) for level in chain.split("<")] for name, _, chain in parts}


def imports(package: str) -> Iterator[tuple[Path, list[str]]]:
    """Each relative import of a package's files: the file, and what it leads to, from the checkout's root."""
    for path in (ROOT / package).rglob("*.py"):
        folder = path.relative_to(ROOT).parts[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                start = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
                yield path, [part for part in [*start, node.names[0].name] if part]


@pytest.mark.parametrize("package", ["kernels", "quant", "nodes"])
def test_imports_run_one_way(package: str) -> None:
    levels = import_levels()

    def level(name: str, owner: str) -> int:
        return next(i for i, names in enumerate(levels[owner]) if any(fnmatch(name, pattern) for pattern in names))

    for path, target in imports(package):
        inner = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if target[0] != package:
            assert level(target[0], "") < level(package, ""), f"{path} imports {target}"
        elif package in levels and not inner.startswith("__") and target[1] != inner:
            assert level(target[1], package) < level(inner, package), f"{path} imports {target}"


@pytest.mark.parametrize("name", PAGES)
def test_documents_are_in_plain_words(name: str) -> None:
    prose = SPAN.sub("", FENCE.sub("", STYLE.sub("", text(name))))
    assert DIALECT.findall(prose) == []
