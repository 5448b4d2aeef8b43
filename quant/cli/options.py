"""The converter's options: a table for the run, and the recipe's settings from their declarations."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..device import AUTO_DEVICE
from ..planning.recommendation import PRESET, PRESETS
from ..recipe import Recipe
from ..settings import Setting
from ..settings.kinds import Invalid, Kind, Many, Switch
from ..version import VERSION
from .aliases import ALIASES, FormatPart, Ignored, Preset, get_target, list_spellings
from .console import PROGRAM, Parser


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of the command line. Names are written with ``-``; ``_`` is accepted as well."""

    names: tuple[str, ...]
    """All spellings, the main one first."""
    target: str
    """Key of the value in `Parser.given`: the full name of a setting, or a name of its own."""
    help: str
    values: str = ""
    """The accepted values, in Markdown; empty for flags."""
    default: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of `add_argument`."""

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        text = self.help + (f" (default: {self.default})" if self.default else "")
        text = text.replace("%", "%%")
        parser.add_argument(*self.names, dest=self.target, default=None, help=text, **self.arguments)


def _join(explanations: Mapping[str, str]) -> str:
    return "; ".join(f"{value}: {text}" for value, text in explanations.items()) + "."


FLAG: Mapping[str, Any] = {"action": "store_true"}
FILE: Mapping[str, Any] = {"metavar": "FILE"}

FILES = (
    Option(
        names=("-i", "--input"),
        target="input",
        help="The float model (required); an index stands for its shards.",
        values="FILE.safetensors, FILE.safetensors.index.json",
        arguments=FILE,
    ),
    Option(
        names=("-o", "--output"),
        target="output",
        help="Where to write.",
        values="a file or a folder",
        default="INPUT_FORMAT.safetensors beside the input",
        arguments=FILE,
    ),
    Option(names=("--overwrite",), target="overwrite", help="Replace the output and the report.", arguments=FLAG),
    Option(
        names=("--resume",),
        target="resume",
        help="Keep finished layers beside the output until it is there, and take them up after an interrupted run.",
        arguments=FLAG,
    ),
    Option(
        names=("--force",),
        target="force",
        help="Quantize files that ComfyUI will not load, too: for code of your own.",
        arguments=FLAG,
    ),
    Option(
        names=("--recipe",),
        target="recipe",
        help="A recipe; options take precedence over it.",
        values="FILE.json",
        arguments=FILE,
    ),
    Option(
        names=("--calibration",),
        target="calibration",
        help="Recorded inputs of this model's layers, from 'record' or the calibration nodes. Implies --rounding "
        "calibrated, unless another rounding is chosen.",
        values="FILE.safetensors",
        arguments=FILE,
    ),
    Option(
        names=("--report",),
        target="report",
        help="Write a report, as JSON or as a table.",
        values="FILE.json, FILE.txt",
        arguments=FILE,
    ),
    Option(
        names=("--model-card",),
        target="model_card",
        help="Write a Markdown text for those with whom the file is shared.",
        values="FILE.md",
        arguments=FILE,
    ),
    Option(
        names=("--dry-run",),
        target="dry_run",
        help="Print the plan, from the header alone, and write nothing.",
        arguments=FLAG,
    ),
)

RECOMMEND = Option(
    names=("--recommended",),
    target="recommended",
    help=f"Choose format and rounding for this machine and model. {_join(PRESETS)} Without a value: {PRESET.default}.",
    values=PRESET.kind.values,
    default="off",
    arguments={"nargs": "?", "const": PRESET.default, "choices": tuple(PRESETS)},
)

RUNNING = (
    Option(
        names=("--device",),
        target="device",
        help="Where layers are quantized. auto: the GPU if PyTorch can use one, otherwise the CPU.",
        values="`auto`, `cpu`, `cuda`, `cuda:1`, ...",
        default=AUTO_DEVICE,
        arguments={"metavar": "NAME"},
    ),
    Option(
        names=("--devices",),
        target="devices",
        help="Quantize in several processes, one for each device; each takes some of the layers, and the file is the "
        "same. all: every GPU. A number: the first GPUs; without a GPU, processes on the CPU.",
        values="`cuda:0,cuda:1`, `all`, `2`, ...",
        default="one process, on the --device",
        arguments={"metavar": "NAMES"},
    ),
    Option(names=("--quiet",), target="quiet", help="Print errors only.", arguments=FLAG),
    Option(names=("--verbose",), target="verbose", help="Print a line for each layer.", arguments=FLAG),
)


def name_option(setting: Setting) -> str:
    """The main spelling of a setting's option."""
    return f"--{setting.field_name.replace('_', '-')}"


def make_option(setting: Setting) -> Option:
    """The option of a setting."""
    kind = setting.kind
    default = setting.unset if setting.default in (None, ()) else kind.format(setting.default)
    return Option(
        names=(name_option(setting), *list_spellings(setting.name)),
        target=setting.name,
        help=_write_help(setting),
        values="" if isinstance(kind, Switch) else kind.values,
        default=default,
        arguments=_make_arguments(setting),
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Writes an option's value once, after all its names."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if len(action.option_strings) < 2 or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def _write_help(setting: Setting) -> str:
    sentences = [setting.help]
    if setting.explanations:
        sentences.append(_join(setting.explanations))
    if setting.bare is not None:
        sentences.append(f"Without a value: {setting.bare}.")
    if setting.repeated:
        sentences.append("May be repeated.")
    implied = [when for when in Recipe.conditions(setting) if when.implied]
    sentences += [f"Implies --{when.setting} {when.values[0]}." for when in implied]
    return " ".join(sentences)


def _make_arguments(setting: Setting) -> dict[str, Any]:
    kind = setting.kind
    if isinstance(kind, Switch):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(kind, Many) and setting.repeated:
        return {"action": "append", "type": _make_reader(kind.item), "metavar": kind.metavar}
    bare = {} if setting.bare is None else {"nargs": "?", "const": setting.bare}
    return {"type": _make_reader(kind), "metavar": kind.metavar} | bare


def _make_reader(kind: Kind) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind.parse(text)
        except Invalid as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def list_recipe_options() -> dict[str, tuple[Option, ...]]:
    """The options of all settings, by group."""
    groups: dict[str, tuple[Option, ...]] = {}
    for setting in Recipe.declarations().values():
        groups[setting.group] = (*groups.get(setting.group, ()), make_option(setting))
    return groups


def list_alias_options() -> tuple[Option, ...]:
    """The options that exist for compatibility only."""
    options: dict[str, Option] = {}
    for name, alias in ALIASES.items():
        target = get_target(name)
        names = (*options[target].names, name) if target in options else (name,)
        if isinstance(alias, FormatPart):
            options[target] = _make_part_option(names, alias)
        elif isinstance(alias, Preset):
            means = f"--{alias.setting} {alias.value}"
            options[target] = Option(names=names, target=target, help=f"The same as {means}.", arguments=FLAG)
        elif isinstance(alias, Ignored):
            options[target] = Option(names=names, target=target, help=alias.help, arguments=FLAG)
    return tuple(options.values())


def _make_part_option(names: tuple[str, ...], alias: FormatPart) -> Option:
    if not alias.values:
        return Option(names=names, target=alias.name, help=alias.help, arguments=FLAG)
    kind = type(alias.values[0])
    return Option(
        names=names,
        target=alias.name,
        help=alias.help,
        values=", ".join(f"`{value}`" for value in alias.values),
        arguments={"metavar": "N", "type": int} if kind is int else {"choices": alias.values},
    )


def list_options() -> dict[str, tuple[Option, ...]]:
    """All options of the converter, by group."""
    groups = list_recipe_options()
    groups["format"] = (RECOMMEND, *groups["format"])
    return (
        {"files": (*FILES, *groups.pop("files", ()))}
        | groups
        | {"running": RUNNING, "compatibility with convert-to-quant": list_alias_options()}
    )


DESCRIPTION = f"""\
Quantize a diffusion model or text encoder into a file that ComfyUI's own
loaders take.

examples:
  {PROGRAM} -i model.safetensors --recommended
  {PROGRAM} -i model.safetensors --fp8 --calibration rows.safetensors
  {PROGRAM} -i model.safetensors --target-gb 12

other commands:
  {PROGRAM} formats
  {PROGRAM} inspect FILE
  {PROGRAM} compare FLOAT QUANTIZED
  {PROGRAM} profiles [NAME]
  {PROGRAM} record MODULE:FUNCTION -o FILE
"""


def make_parser() -> Parser:
    """The parser of the command line without a command: quantize a file."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} -i FILE [-o FILE] [options]",
        description=DESCRIPTION,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    for title, options in list_options().items():
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group)
    return parser
