"""Which layers of a model to quantize, and why: profiles are TOML files in the folder ``profiles/`` beside this module.

One file describes one family: how to recognise it, its rules, and its variants (rule sets to choose between, the first
of which has the family's name). The first rule that matches a layer decides; the family's own rules come before the
shared ones of ``_base.toml``; a layer that no rule names is quantized.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..errors import ProfileError
from .names import loader_prefix

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Action = Literal["keep", "remove", "quantize"]
Kind = Literal["diffusion", "text_encoder", "any"]

FOLDER = Path(__file__).parent / "profiles"
GENERIC = "generic"
MODEL_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""An unknown model's names begin with one of these where it lies beside others."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``pattern`` is searched (``re.search``) in the layer's name: prefix stripped, without the trailing ``.weight``.

    A "remove" rule drops tensors, so it is searched in the whole key without the prefix. ``required``: ComfyUI cannot
    load the file otherwise, so that overrides do not apply.
    """

    pattern: str
    action: Action
    reason: str
    source: str
    kind: str = ""
    required: bool = False
    only: tuple[str, ...] = ()

    def matches(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A profile's decision for one layer."""

    action: Action
    reason: str
    source: str
    """Who found the reason."""
    required: bool = False
    """Whether overrides do not apply."""


DEFAULT = Decision(action="quantize", reason="a linear layer that no rule keeps", source="default")


@dataclass(frozen=True)
class Signature:
    """Keys that must (``all``) and must not (``none``) exist, and the sizes allowed for some keys' first dimension."""

    all: tuple[str, ...]
    none: tuple[str, ...] = ()
    rows: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def prefixes(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Every prefix ("" or ending in a dot) under which the model lies, the shortest first."""
        anchor = self.all[0]
        starts = (key.removesuffix(anchor) for key in shapes if key.endswith(anchor))
        found = (start for start in starts if not start or start.endswith("."))
        return sorted((start for start in found if self.fits(shapes, start)), key=lambda start: (len(start), start))

    def fits(self, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> bool:
        return (
            all(prefix + key in shapes for key in self.all)
            and not any(prefix + key in shapes for key in self.none)
            and all(tuple(shapes.get(prefix + key, ()))[:1] in [(size,) for size in sizes] for key, sizes in self.rows)
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One variant of one family. ``variants`` names the whole family, the default one (named as the family) first."""

    name: str
    family: str
    title: str
    kind: Kind
    signatures: tuple[Signature, ...]
    rules: tuple[Rule, ...]
    variants: tuple[str, ...]

    def decide(self, layer: str, shape: tuple[int, ...], *, embeddings: bool = False) -> Decision:
        """The first matching rule's decision. ``embeddings`` turns the rules of kind "embedding" off.

        ``layer`` has no prefix and no ``.weight``. Structure (a 2-D ``.weight`` at all?) is the plan's business, not
        asked here.
        """
        for rule in self.rules:
            if not (embeddings and rule.kind == "embedding") and rule.matches(layer):
                return Decision(action=rule.action, reason=rule.reason, source=rule.source, required=rule.required)
        return DEFAULT

    def is_lookup_table(self, layer: str) -> bool:
        """Whether a layer is an embedding, of which ComfyUI takes single rows."""
        return any(rule.kind == "embedding" and rule.matches(layer) for rule in self.rules)

    def removes(self, key: str) -> Rule | None:
        """The rule that drops the tensor ``key`` (prefix stripped) from the output, or None."""
        return next((rule for rule in self.rules if rule.action == "remove" and rule.matches(key)), None)

    def locate(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """The prefix under which this family's model lies in ``shapes``, or None."""
        found = (prefix for signature in self.signatures for prefix in signature.prefixes(shapes))
        return next(found, None)


@dataclass(frozen=True)
class Recognition:
    """The profile and the prefix of the model in the file; not ``certain``: nothing fitted, so ``generic``."""

    profile: Profile
    prefix: str
    certain: bool = True


def _rule(entry: dict[str, Any]) -> Rule:
    return Rule(**{**entry, "only": tuple(entry.get("only", ()))})


def read_signature(entry: Mapping[str, Any]) -> Signature:
    """A signature as the TOML files write it."""
    rows = tuple((key, tuple(sizes)) for key, sizes in entry.get("rows", {}).items())
    return Signature(tuple(entry["all"]), tuple(entry.get("none", ())), rows)


def read_toml(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return data


def _family(path: Path, shared: tuple[Rule, ...]) -> list[Profile]:
    data = read_toml(path)
    titles: dict[str, str] = {path.stem: data["title"], **data.get("variants", {})}
    rules = tuple(map(_rule, data.get("rules", ())))
    signatures = tuple(map(read_signature, data.get("detect", ())))
    return [
        Profile(
            name=name,
            family=path.stem,
            title=title,
            kind=data["kind"],
            signatures=signatures,
            rules=tuple(rule for rule in rules if not rule.only or name in rule.only) + shared,
            variants=tuple(titles),
        )
        for name, title in titles.items()
    ]


@cache
def _profiles() -> dict[str, Profile]:
    shared = tuple(map(_rule, read_toml(FOLDER / "_base.toml")["rules"]))
    paths = sorted(path for path in FOLDER.glob("*.toml") if not path.stem.startswith("_"))
    profiles = [profile for path in paths for profile in _family(path, shared)]
    return {profile.name: profile for profile in sorted(profiles, key=lambda profile: profile.name)}


def profile_names() -> list[str]:
    """Every name that :func:`get_profile` takes, sorted."""
    return list(_profiles())


def get_profile(name: str) -> Profile:
    """The profile called ``name``. Raises ProfileError, naming the closest spelling, for an unknown name."""
    profiles = _profiles()
    if name in profiles:
        return profiles[name]
    close = difflib.get_close_matches(name.lower(), profiles, n=1, cutoff=0.0)[0]
    raise ProfileError(f"No profile is called '{name}'; did you mean '{close}'? There are {', '.join(profiles)}.")


def _find(shapes: Mapping[str, tuple[int, ...]], kind: Kind) -> Recognition | None:
    families = [profile for profile in _profiles().values() if profile.name == profile.family and profile.kind == kind]
    pairs = [(profile, signature) for profile in families for signature in profile.signatures]
    # Sizes tell apart what names cannot, so a signature that asks for sizes goes first.
    for profile, signature in sorted(pairs, key=lambda pair: not pair[1].rows):
        prefixes = signature.prefixes(shapes)
        if prefixes:
            # Of several copies, such as one of averaged weights, ComfyUI loads the one under this prefix.
            home = loader_prefix(shapes) if kind == "diffusion" else ""
            return Recognition(profile, home if home in prefixes else prefixes[0])
    return None


def _unrecognised(shapes: Mapping[str, tuple[int, ...]]) -> Recognition:
    held = (prefix for prefix in MODEL_PREFIXES if any(key.startswith(prefix) for key in shapes))
    return Recognition(get_profile(GENERIC), next(held, ""), certain=False)


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> Recognition:
    """The profile that describes a state dict, from its keys and shapes; ``generic`` where none does. Never raises.

    In a checkpoint that holds several models the diffusion model is meant, recognised or not.
    """
    found = _find(shapes, "diffusion")
    if found:
        return found
    unknown = _unrecognised(shapes)
    return (not unknown.prefix and _find(shapes, "text_encoder")) or unknown


def match(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Recognition:
    """The profile called ``name`` and its prefix in ``shapes``. Raises ProfileError if it does not describe the file.

    A variant fits wherever its family does; ``generic`` fits everything.
    """
    profile = get_profile(name)
    found = recognise(shapes)
    if name == GENERIC:
        # ComfyUI could not load the file without the required rules, whatever profile the user prefers.
        required = tuple(rule for rule in found.profile.rules if rule.required)
        return Recognition(replace(profile, rules=required + profile.rules), found.prefix)
    prefix = profile.locate(shapes)
    if prefix is not None:
        return Recognition(profile, prefix)
    if found.certain:
        right = found.profile
        raise ProfileError(f"The profile '{name}' does not describe this file, '{right.name}' does ({right.title}).")
    raise ProfileError(f"The profile '{name}' does not describe this file, and no other does: use '{GENERIC}'.")
