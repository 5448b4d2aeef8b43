"""Write the tables of MANUAL.md that list settings, options and profiles, and quant/cli/help.txt.

    python tools/manual.py

They are made from the declarations in quant/recipe.py, the tables of options in quant/cli and the profiles. Each stands
between two comments, ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything else is left as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from calibrated_rounding.nodes.recipe import layout
from calibrated_rounding.nodes.recipe.layout import Entry
from calibrated_rounding.quant.__main__ import HELP
from calibrated_rounding.quant.cli.options import Option, list_alias_options, list_options, make_parser
from calibrated_rounding.quant.planning.profiles import get_profile, profile_names
from calibrated_rounding.quant.settings import Setting
from calibrated_rounding.quant.settings.kinds import Choice, Real, Whole

MANUAL = Path(__file__).resolve().parents[1] / "MANUAL.md"
BLOCK = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = tuple[str, ...]


def render(text: str, tables: Mapping[str, Callable[[], str]] | None = None) -> str:
    """Replace the generated tables of a text; ``tables`` makes them by name, None: MANUAL.md's."""
    makers = TABLES if tables is None else tables
    return BLOCK.sub(lambda block: f"{block[1]}{makers[block[2]]()}\n{block[3]}", text)


def make_options_table() -> str:
    """Make the table of the command line's options, without the options for compatibility."""
    aliases = {option.target for option in list_alias_options()}
    options = [option for group in list_options().values() for option in group if option.target not in aliases]
    return _write_table(("option", "values", "default", "what it does"), map(_make_option_row, options))


def make_compatibility_table() -> str:
    """Make the table of the options for compatibility."""
    rows = ((_list_names(option), option.values, _escape(option.help)) for option in list_alias_options())
    return _write_table(("option", "values", "what it does"), rows)


def make_inputs_table() -> str:
    """Make the table of the node inputs that make up a recipe."""
    rows = _make_input_rows((*layout.arrange(), *layout.arrange(later=True)), "")
    return _write_table(("input", "shown with", "values", "default", "what it does"), rows)


def make_profiles_table() -> str:
    """Make the table of the profiles."""
    profiles = map(get_profile, profile_names())
    rows = ((f"`{profile.name}`", profile.kind.replace("_", " "), profile.title) for profile in profiles)
    return _write_table(("profile", "for", "model"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "inputs of a recipe": make_inputs_table,
    "options": make_options_table,
    "options for compatibility": make_compatibility_table,
    "profiles": make_profiles_table,
}


def _make_option_row(option: Option) -> Row:
    return _list_names(option), option.values, _code(option.default), _escape(option.help)


def _list_names(option: Option) -> str:
    return ", ".join(f"`{name}`" for name in option.names)


def _make_input_rows(entries: Iterable[Entry], shown_with: str) -> Iterator[Row]:
    """Yield a row per input with the choice that shows it; inputs that several options show have one row."""
    for entry in entries:
        name = f"{entry.name} (advanced)" if entry.advanced else entry.name
        summary, *lines = entry.help.splitlines()
        text = f"{summary} {'; '.join(lines)}." if lines else summary
        yield name, shown_with, _describe_values(entry), _describe_default(entry), _escape(text)
        for shown, options in _group_options(entry.options):
            yield from _make_input_rows(shown, f"{entry.name} {_list_showing(options, entry)}")


def _group_options(options: Mapping[str, tuple[Entry, ...]]) -> list[tuple[tuple[Entry, ...], list[str]]]:
    """Group the options that show the same inputs."""
    groups: list[tuple[tuple[Entry, ...], list[str]]] = []
    for option, shown in options.items():
        group = next((options for entries, options in groups if entries == shown), None)
        if group is None:
            groups.append((shown, [option]))
        else:
            group.append(option)
    return groups


def _list_showing(options: Sequence[str], entry: Entry) -> str:
    """List the options that show an input, or the options that do not, if those are fewer."""
    missing = [option for option in entry.options if option not in options]
    if len(missing) < len(options):
        return "not " + ", ".join(map(_code, missing))
    return ", ".join(map(_code, options))


def _describe_values(entry: Entry) -> str:
    setting = entry.setting
    if setting is None:
        return ", ".join(map(_code, entry.options))
    if isinstance(setting.kind, (Whole, Real)):
        limits = layout.describe_number(setting)
        return f"{limits['min']} to {limits['max']}"
    if isinstance(setting.kind, Choice) and not setting.kind.summary:
        return ", ".join(map(_code, layout.list_options(setting)))
    return setting.kind.values


def _describe_default(entry: Entry) -> str:
    setting = entry.setting
    if setting is None or isinstance(setting.kind, Choice):
        return _code(next(iter(entry.options)) if setting is None else layout.list_options(setting)[0])
    return _code(_describe_initial(setting))


def _describe_initial(setting: Setting) -> str:
    if isinstance(setting.kind, (Whole, Real)):
        return str(layout.describe_number(setting)["default"])
    return setting.kind.format(setting.default)


def _code(text: str) -> str:
    return f"`{text}`" if re.fullmatch(r"[\w., ]+", text) and " " not in text.replace(", ", ",") else text


def _escape(text: str) -> str:
    return text.replace("|", r"\|")


def _write_table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |") for row in lines)


def main() -> None:
    os.environ["COLUMNS"] = "80"
    MANUAL.write_text(render(MANUAL.read_text(encoding="utf-8")), encoding="utf-8")
    HELP.write_text(make_parser().format_help(), encoding="utf-8")


if __name__ == "__main__":
    main()
