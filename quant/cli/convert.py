"""Quantize a file: the command line without a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..api import plan_file, quantize_file
from ..calibration.calibration import Calibration
from ..calibration.file import has_sensitivities
from ..device import AUTO_DEVICE, choose_device, list_devices, name_accelerator
from ..errors import (
    AlreadyQuantizedError,
    Cancelled,
    CheckpointError,
    RecipeError,
    UnloadableError,
    UnreadableLayerError,
)
from ..files.shards import INDEX_SUFFIX
from ..files.targets import list_files, refuse_same_file
from ..files.text_file import try_target, write_text
from ..formats import needs_notices
from ..notices import Notice, render
from ..planning.machine import detect_machine, leave_out_unusable
from ..planning.recommendation import Situation, recommend
from ..recipe import AUTO, Recipe
from ..reports.inspection import inspect_file
from ..reports.model_card import write_model_card
from ..text import counted
from ..workers.ranks import Ranks, is_launched, join_ranks
from .bar import progress_bar
from .choices import list_unused, make_recipe, refuse_decided
from .console import say, say_lines
from .ending import result_lines
from .launch import launch
from .options import make_parser
from .signals import Interrupted, stop_on_signals
from .text import plan_text

SUFFIX = ".safetensors"
REPORT_SUFFIXES = (".json", ".txt")
CARD_SUFFIX = ".md"


def convert(argv: Sequence[str]) -> int:
    """Run the converter; gives the exit code. Raises UsageError and QuantError for what the user can mend."""
    parser = make_parser()
    args = parser.given(argv)
    if "input" not in args:
        parser.error("An input is needed: -i FILE.safetensors")
    if "devices" in args and not is_launched():
        devices = list_devices(args["devices"])
        if "device" in args:
            raise RecipeError("Give --device or --devices, not both.")
        if len(devices) > 1 and "dry_run" not in args:
            return launch(argv, len(devices))
    with join_ranks() as ranks:
        return _convert(args if ranks.rank == 0 else args | {"quiet": True}, ranks)


def _convert(args: Mapping[str, Any], ranks: Ranks) -> int:
    recipe, reasons = make_recipe(args), list[Notice]()
    source, quiet = args["input"], args.get("quiet", False)
    try:
        if "recommended" in args:
            recipe, reasons = _recommend(args, recipe)
        target = output_path(source, args.get("output"), recipe)
        if not quiet:
            for note in [*reasons, *list_unused(args, recipe), *needs_notices(recipe.usable_formats)]:
                say(f"note: {render(note)}", sys.stderr)
        if "dry_run" in args:
            return _dry_run(args, recipe, source, target) if ranks.rank == 0 else 0
        return _run(args, recipe, source, target, ranks)
    except AlreadyQuantizedError as error:
        hint = "" if isinstance(error, UnreadableLayerError) else " (--dequantize does that.)"
        raise AlreadyQuantizedError(f"{source}: {error}{hint}") from None
    except UnloadableError as error:
        raise UnloadableError(f"{source}: {error} (--force quantizes it for code of your own.)") from None


def _recommend(args: Mapping[str, Any], base: Recipe) -> tuple[Recipe, list[Notice]]:
    """The recommended recipe, and why."""
    refuse_decided(args)
    file = args.get("calibration")
    situation = Situation(
        machine=detect_machine(choose_device(args.get("device", AUTO_DEVICE))),
        preset=args["recommended"],
        calibrated=file is not None,
        sensitivities=file is not None and has_sensitivities(file),
    )
    result = recommend(lambda tried: plan_file(args["input"], tried, force="force" in args), base, situation)
    return result.recipe, [*result.reasons]


def output_path(source: str, output: str | None, recipe: Recipe) -> Path:
    """Return the output path. Raises CheckpointError for a name that no loader lists."""
    name = Path(source).name
    stem = name.removesuffix(INDEX_SUFFIX if name.endswith(INDEX_SUFFIX) else SUFFIX)
    default = f"{stem}_{recipe.format}{SUFFIX}"
    if output is None:
        return Path(source).parent / default
    path = Path(output)
    if not output:
        raise CheckpointError("The name of the output is empty; give a file or a folder.")
    if os.path.isdir(path):
        return path / default
    if path.suffix != SUFFIX:
        raise CheckpointError(f"The output {path} must end in {SUFFIX}, or be a folder.")
    return path


def _dry_run(args: Mapping[str, Any], recipe: Recipe, source: str, target: Path) -> int:
    for option in ("report", "model_card"):
        if option in args:
            name = option.replace("_", "-")
            raise RecipeError(f"--dry-run writes nothing, so --{name} cannot go with it.")
    calibration = Calibration.load(args["calibration"]) if "calibration" in args else None
    plan = plan_file(source, recipe, statistics=calibration, force="force" in args)
    say(plan_text(plan, recipe))
    if recipe.upgrade is not None:
        say(f"Layers above an error of {recipe.max_error} will take {recipe.upgrade}; that is measured in the run.")
    say(f"Nothing was written; the output would be {target}")
    return 0


def _run(args: Mapping[str, Any], recipe: Recipe, source: str, target: Path, ranks: Ranks) -> int:
    device = _choose_device(args, ranks)
    recipe = _leave_out_unusable(args, recipe, source, device)
    overwrite = "overwrite" in args
    inputs = [*list_files(source), *(args[name] for name in ("calibration", "recipe") if name in args)]
    check_output(target, inputs, overwrite)
    report_path = _checked_report(args.get("report"), inputs, overwrite)
    card_path = _checked_card(args.get("model_card"), inputs, overwrite)
    calibration = Calibration.load(args["calibration"]) if "calibration" in args else None
    kept = target.with_name(f".{target.name}.layers") if "resume" in args else None
    with stop_on_signals(ranks.explain_stop) as stop:
        try:
            with progress_bar(args.get("quiet", False)) as progress:
                report = quantize_file(
                    source,
                    target,
                    recipe,
                    device=device,
                    ranks=ranks,
                    statistics=calibration,
                    overwrite=overwrite,
                    force="force" in args,
                    resume=kept,
                    progress=progress,
                    cancel=stop,
                )
        except Cancelled as error:
            more = f" Finished layers are kept in {kept} for --resume." if kept is not None and kept.is_dir() else ""
            raise Interrupted(f"{error}{more}", stop.number or 0) from None
    if ranks.rank:
        return 0
    if report_path is not None:
        _write_beside(
            report_path, "report", report.to_json() if report_path.suffix == ".json" else report.table(), overwrite
        )
    if card_path is not None:
        _write_beside(card_path, "model card", write_model_card(inspect_file(target)).rstrip(), overwrite)
    if "quiet" not in args:
        above = [*report.table().split("\n"), ""] if "verbose" in args else report.warnings()
        say_lines([*above, *result_lines(report, target)])
    return 0


def _choose_device(args: Mapping[str, Any], ranks: Ranks) -> str:
    """The device of this rank."""
    number = int(os.environ.get("LOCAL_RANK", ranks.rank)) if ranks.size > 1 else 0
    if "devices" not in args:
        device = choose_device(args.get("device", AUTO_DEVICE))
        return device if ranks.size == 1 else name_accelerator(device, number)
    devices = list_devices(args["devices"])
    if number >= len(devices):
        raise RecipeError(f"--devices has {counted(len(devices), 'name')}, and there are more processes.")
    return devices[number]


def check_output(target: Path, inputs: Iterable[str | Path], overwrite: bool) -> None:
    """Raise CheckpointError, before the work, for a target that must not or cannot be written.

    Args:
        target: the file.
        inputs: files of the run, which no output replaces.
        overwrite: replace another file.
    """
    refuse_same_file(inputs, target)
    try_target(target)
    if os.path.exists(target) and not overwrite:
        raise CheckpointError(f"{target} exists; add --overwrite to replace it, or choose another name.")


def _leave_out_unusable(args: Mapping[str, Any], recipe: Recipe, source: str, device: str) -> Recipe:
    """Leave out of ``auto`` what the card does not multiply. Without a card, the model will run on another machine."""
    if not device.startswith("cuda") or recipe.format != AUTO:
        return recipe
    weight_only = plan_file(source, recipe, force="force" in args).weight_only
    recipe, notices = leave_out_unusable(recipe, detect_machine(device), weight_only=weight_only)
    if "quiet" not in args:
        for note in notices:
            say(f"note: {render(note)}", sys.stderr)
    return recipe


def _checked_report(name: str | None, inputs: Iterable[str | Path], overwrite: bool) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if path.suffix not in REPORT_SUFFIXES:
        raise RecipeError(f"--report {name!r} must end in .json or .txt.")
    check_output(path, inputs, overwrite)
    return path


def _checked_card(name: str | None, inputs: Iterable[str | Path], overwrite: bool) -> Path | None:
    if name is None:
        return None
    if Path(name).suffix != CARD_SUFFIX:
        raise RecipeError(f"--model-card {name!r} must end in {CARD_SUFFIX}.")
    check_output(Path(name), inputs, overwrite)
    return Path(name)


def _write_beside(path: Path, what: str, text: str, overwrite: bool) -> None:
    """Write a text about the model that has been written; ``what`` names it in an error."""
    try:
        write_text(path, text + "\n", overwrite=overwrite)
    except CheckpointError as error:
        raise CheckpointError(f"The model is written, but its {what} is not: {error}") from None
