"""Names of saved files: tokens such as ``%model%`` and ``%date:yyyy-MM-dd%`` become words. Knows no ComfyUI."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ...quant import QuantError

DEFAULT_NAME = "%model%_%format%"
"""The name that a save node proposes."""

TOKENS = ("model", "format", "rounding")
"""The pack's own tokens, for files of quantized models."""

STOCK_TOKENS = frozenset({"width", "height", "year", "month", "day", "hour", "minute", "second"})
"""Tokens that ComfyUI's own ``get_save_image_path`` replaces."""

MODEL_WIDGETS = ("unet_name", "ckpt_name", "clip_name", "clip_name1", "file")
"""Inputs of loaders that name a model file."""

MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")

_TOKEN = re.compile(r"%([^%\s][^%]*)%")
_PRECISION = re.compile(r"[-_.](?:bf16|fp16|fp32|f16|f32)$", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[/?<>\\:*|\"\x00-\x1f\x7f%]")
"""What the front end takes out of words, and the sign of tokens."""

Prompt = Mapping[str, Mapping[str, Any]]
"""A prompt in the API format: node id -> ``class_type``, ``inputs`` and perhaps ``_meta``."""


def name_model(path: str) -> str:
    """The name of a model by its file: without folder, suffix and the precision at the end."""
    name = PurePath(path.replace("\\", "/")).name
    for suffix in MODEL_SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return _PRECISION.sub("", name) or name


def name_format(recipe: Mapping[str, Any] | None, formats: Iterable[str] = ()) -> str:
    """One word for how weights are stored.

    Args:
        recipe: `Recipe.to_dict`; None: unknown.
        formats: Names of the layers' formats, which tell if the recipe is unknown.
    """
    chosen = str(recipe["format"]) if recipe and "format" in recipe else None
    if chosen is not None:
        return "mixed" if chosen == "auto" else chosen
    names = set(formats)
    return names.pop() if len(names) == 1 else "mixed" if names else "quantized"


def make_words(model: str, recipe: Mapping[str, Any] | None, formats: Iterable[str] = ()) -> dict[str, str]:
    """The words for the pack's own tokens; arguments as in `name_format`, and the model's name."""
    rounding = str((recipe or {}).get("rounding", "nearest"))
    return {"model": model, "format": name_format(recipe, formats), "rounding": rounding}


def describe_tokens(known: Iterable[str] = TOKENS) -> str:
    """The tokens of a name, for its tooltip."""
    return f"Tokens: {', '.join(f'%{token}%' for token in known)}, %date:yyyy-MM-dd% and %Node.widget%."


def refuse_name(text: str, known: Collection[str] = TOKENS) -> None:
    """Refuse a name before anything runs.

    Args:
        text: The name as it was typed.
        known: The pack's own tokens that it may hold.

    Raises:
        QuantError: if the name is empty, or holds a token that nothing replaces.
    """
    if not text.strip():
        raise QuantError(f"The name of the file is empty; write one, such as {DEFAULT_NAME}.")
    for token in _TOKEN.findall(text):
        if not (token in STOCK_TOKENS or token in known or _is_date(token) or "." in token):
            raise QuantError(f"The name holds %{token}%, which nothing replaces here. {describe_tokens(known)}")


def check_name(text: str | None, known: Collection[str] = TOKENS) -> bool | str:
    """`refuse_name` for ``validate_inputs``: True, or why not; None, a name from another node, is not known yet."""
    try:
        refuse_name("linked" if text is None else text, known)
    except QuantError as error:
        return str(error)
    return True


def fill_name(
    text: str,
    words: Mapping[str, str],
    prompt: Prompt | None = None,
    workflow: Mapping[str, Any] | None = None,
    now: time.struct_time | None = None,
) -> str:
    """Replace the tokens of a name; `STOCK_TOKENS` stay for ComfyUI.

    Args:
        text: The name as it was typed.
        words: Of the pack's own tokens, such as from `make_words`.
        prompt: The running prompt, for ``%Node.widget%``.
        workflow: The workflow of the prompt, which knows names for search and replace.
        now: The time; None: the present.

    Raises:
        QuantError: as `refuse_name`, and if a node or its value is not there.
    """
    refuse_name(text, words)
    moment = now or time.localtime()

    def replace(match: re.Match[str]) -> str:
        token = match[1]
        if token in STOCK_TOKENS:
            return match[0]
        if token in words:
            return _clean(words[token])
        if _is_date(token):
            return _clean(_format_date(token.partition(":")[2] or "yyyy-MM-dd", moment))
        return _clean(_read_widget(token, prompt or {}, workflow or {}))

    return _TOKEN.sub(replace, text)


def find_model_name(prompt: Prompt | None, node_id: str | None) -> str | None:
    """The name of the model that a node's inputs come from: of the nearest loader before it; None if there is none."""
    for node in _walk_upstream(prompt or {}, str(node_id)):
        for widget in MODEL_WIDGETS:
            value = node.get("inputs", {}).get(widget)
            if isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES):
                return name_model(value)
    return None


def _walk_upstream(prompt: Prompt, node_id: str) -> Iterator[Mapping[str, Any]]:
    """The nodes before a node, the nearest first."""
    seen, waiting = {node_id}, [node_id]
    while waiting:
        inputs = prompt.get(waiting.pop(0), {}).get("inputs", {})
        links = [value[0] for value in inputs.values() if isinstance(value, list) and len(value) == 2]
        for source in (str(link) for link in links):
            if source in prompt and source not in seen:
                seen.add(source)
                waiting.append(source)
                yield prompt[source]


def _read_widget(token: str, prompt: Prompt, workflow: Mapping[str, Any]) -> str:
    name, _, widget = token.partition(".")
    node = _find_node(name, prompt, workflow)
    if node is None:
        raise QuantError(f"The name holds %{token}%, but this workflow runs no node called '{name}'.")
    value = node.get("inputs", {}).get(widget)
    if value is None or isinstance(value, (list, dict)):
        raise QuantError(f"The name holds %{token}%, but '{name}' has no value of its own called '{widget}'.")
    return str(value)


def _find_node(name: str, prompt: Prompt, workflow: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first node with this name for search and replace, this title or this class, in this order."""
    drawn = {str(node.get("id")): node for node in workflow.get("nodes", [])}
    names = (
        {key: drawn.get(key, {}).get("properties", {}).get("Node name for S&R") for key in prompt},
        {key: drawn.get(key, {}).get("title") or node.get("_meta", {}).get("title") for key, node in prompt.items()},
        {key: node.get("class_type") for key, node in prompt.items()},
    )
    return next((prompt[key] for table in names for key, known in table.items() if known == name), None)


def _is_date(token: str) -> bool:
    return token == "date" or token.startswith("date:")


def _format_date(pattern: str, moment: time.struct_time) -> str:
    """A date as ComfyUI's front end writes it: d, M, h, m and s, doubled with a zero before; yy and yyyy."""
    parts = {"d": moment.tm_mday, "M": moment.tm_mon, "h": moment.tm_hour, "m": moment.tm_min, "s": moment.tm_sec}

    def write(match: re.Match[str]) -> str:
        letters = match[0]
        if letters[0] == "y":
            return str(moment.tm_year)[-len(letters) :]
        return str(parts[letters[0]]).rjust(len(letters), "0")

    return re.sub(r"yyyy|yy|dd?|MM?|hh?|mm?|ss?", write, pattern)


def _clean(word: str) -> str:
    return _FORBIDDEN.sub("_", word)
