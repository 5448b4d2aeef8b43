"""Will ComfyUI's loader for this kind of file read markers of quantized layers under these names?

Where it would not, it takes codes for values, mostly without a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnloadableError
from ..files.shards import find_siblings, read_shard_number
from ..files.sources import Source
from ..files.strict_json import quoted
from ..notices import Notice, notice
from .file_kinds import KnownModel, Obstacle, foreign_kinds, known_models
from .names import STRIPPED_PREFIXES, Names, Shapes, loader_prefix
from .profiles import Kind, Profile

DECODERS = ("first_stage_model.", "vae.")
"""Prefixes of a decoder, which only all-in-one checkpoints hold."""
FOLDERS: Mapping[Kind, str] = {"diffusion": "diffusion_models", "text_encoder": "text_encoders"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Judgement of a file's names: do ComfyUI's loaders read markers under them?"""

    obstacle: Obstacle | None = None
    """Why they would not read its quantized layers."""
    known: KnownModel | None = None
    """The model that they find; None beside no obstacle: nothing is known."""


def check_source(source: Source, *, force: bool) -> tuple[Notice, ...]:
    """Refuse a source whose quantized layers ComfyUI would not read.

    Args:
        source: a file or a state dict.
        force: give a warning instead.

    Returns:
        What the user should know about loading the result.

    Raises:
        UnloadableError: there is an obstacle.
    """
    answer = ask({name: tuple(spec.shape) for name, spec in source.tensors.items()}, source.path)
    if answer.obstacle is None:
        return () if answer.known else (notice("not_known"),)
    if not force:
        raise UnloadableError(str(answer.obstacle))
    return (notice("forced", reason=str(answer.obstacle)),)


def find_folder(profile: Profile, names: Iterable[str]) -> str | None:
    """Find the kind of ComfyUI's model folders that a file belongs in, by its model and its tensors' names.

    Returns:
        ComfyUI's name of the kind; None if it is not known.
    """
    return "checkpoints" if any(name.startswith(DECODERS) for name in names) else FOLDERS.get(profile.kind)


def ask(shapes: Shapes, path: Path | None = None, *, alone: bool = False) -> Answer:
    """Judge the tensors of a file by their names.

    Args:
        shapes: of the tensors.
        path: of the file; None: they are in no file.
        alone: only the file's name is known, so that an index beside it is not looked for.
    """
    siblings = None if path is None else read_shard_number(path.name) if alone else find_siblings(path)
    if siblings is not None:
        return Answer(obstacle=_shard(siblings))
    names = Names(shapes, "" if path is None else path.name)
    home = loader_prefix(shapes)
    # Beside a diffusion model under one of these a checkpoint holds other models, whose names say nothing of it.
    inside = names.under(home) if home in STRIPPED_PREFIXES else names
    return next(answer for answer in _answers(names, inside, home) if answer is not None)


def _answers(names: Names, inside: Names, home: str) -> Iterator[Answer | None]:
    """Yield the finding of each rule, in order."""
    yield _find_foreign(inside, early=True)
    at_home = [(model, model.home(home)) for model in known_models() if model.home(home) in model.find_prefixes(names)]
    at_home.sort(key=lambda found: not found[0].is_whole(names, found[1]))
    yield from (_judge(model, names.under(prefix)) for model, prefix in at_home)
    yield _find_displaced(names, home)
    yield _find_foreign(inside, early=False)
    gap = inside.find_first_gap(starts_only=True)
    yield None if gap is None else Answer(obstacle=_part("a model", gap))
    yield Answer()


def _find_foreign(names: Names, *, early: bool) -> Answer | None:
    kinds = (kind for kind in foreign_kinds() if kind.early == early and kind.fits(names))
    return next((Answer(obstacle=kind.obstacle) for kind in kinds), None)


def _judge(model: KnownModel, names: Names) -> Answer:
    """A known model lies under the right prefix, which is taken off ``names``: is it whole?"""
    missing = model.find_missing(names)
    return Answer(known=model) if missing is None else Answer(obstacle=_part(model.title, missing))


def _find_displaced(names: Names, home: str) -> Answer | None:
    """A known model under a prefix that its loader does not strip."""
    found = ((model, prefix) for model in known_models() for prefix in model.find_prefixes(names))
    for model, prefix in found:
        mostly = 2 * len(names.under(prefix).shapes) > len(names.shapes)
        beside = home in STRIPPED_PREFIXES and not prefix.startswith(home)
        diffusion = model.kind == "diffusion" and not beside and model.is_whole(names, prefix)
        # Else it is a part of another model.
        if prefix != model.home(home) and (mostly or diffusion):
            return Answer(obstacle=_displaced(model, prefix))
    return None


def _shard(siblings: str) -> Obstacle:
    return Obstacle(
        title=siblings,
        reason="a part of a model is not loaded alone",
        way_out="give the .safetensors.index.json beside the shards, which quantizes them into one file",
    )


def _part(title: str, missing: str) -> Obstacle:
    return Obstacle(
        title=f"a part of {title}",
        reason=f"it lacks {quoted(missing)}, and ComfyUI does not load a part alone",
        way_out="give the whole model, or the .safetensors.index.json beside its shards",
    )


def _displaced(model: KnownModel, prefix: str) -> Obstacle:
    return Obstacle(
        title=f"{model.title} under {quoted(prefix)}",
        reason="ComfyUI's loader does not take that off the names and would not find the quantized layers",
        way_out="rename the tensors without it first",
    )
