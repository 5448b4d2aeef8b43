"""Writes locales/<language>/nodeDefs.json, the texts of the nodes, from the nodes as a ComfyUI loads them.

    python tools/locales.py                        # English anew; others keep what still holds
    python tools/locales.py --words fr words.json  # and take in translations, {"English": "..."}

The ComfyUI is found as the tests find it. It is asked for every node, also for those that it would not register.

A text that is the same in several places is translated once. What is missing is printed as JSON, ready to be filled
in; its key is left out of the language's file, so that ComfyUI shows the English text, and the tests tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrated_rounding.tools.comfyui import Host, find_host

FOLDER = Path(__file__).resolve().parents[1] / "locales"
LANGUAGES = ("zh", "ja", "ko", "fr", "es")
FILE = "nodeDefs.json"
PREFIX = "CalibratedRounding"

Tree = dict[str, Any]


def read_node_info(host: Host) -> Tree:
    """Ask ComfyUI for the ``/object_info`` of all of the pack's nodes."""
    return host.call("tools.comfyui.inside.node_info:read_node_info")


def english(info: Mapping[str, Any]) -> Tree:
    """The texts of the pack's nodes, in the shape of the front end's own files, from `read_node_info`."""
    return {name: _node(node) for name, node in info.items() if name.startswith(PREFIX)}


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text and where it stands."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def translated(tree: Mapping[str, Any], words: Mapping[str, str]) -> Tree:
    """The same tree in other words, without the texts that ``words`` lacks."""
    result: Tree = {}
    for path, text in leaves(tree):
        if text in words:
            place = result
            for step in path[:-1]:
                place = place.setdefault(step, {})
            place[path[-1]] = words[text]
    return result


def known_words(old: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """English text -> its translation, from two trees of the same shape."""
    there = dict(leaves(other))
    return {text: there[path] for path, text in leaves(old) if path in there}


def read(language: str, file: str = FILE) -> Tree:
    path = FOLDER / language / file
    tree: Tree = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return tree


def write(language: str, tree: Tree) -> None:
    path = FOLDER / language / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _node(node: Mapping[str, Any]) -> Tree:
    outputs = zip(node["output"], node["output_name"], node["output_tooltips"], strict=True)
    texts = {str(place): _output(*output) for place, output in enumerate(outputs)}
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": dict(_inputs(node["input"])),
        "outputs": {place: text for place, text in texts.items() if text},
    }


def _output(kind: str, name: str, tooltip: str | None) -> Tree:
    # The front end translates an output that is called like its type by itself.
    return ({} if name == kind else {"name": name}) | ({"tooltip": tooltip} if tooltip else {})


def _inputs(groups: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tree]]:
    for group in ("required", "optional"):
        for name, (_, *rest) in groups.get(group, {}).items():
            options = rest[0] if rest else {}
            tooltip = {"tooltip": options["tooltip"]} if options.get("tooltip") else {}
            yield prefix + name, {"name": options.get("display_name") or name} | tooltip
            if options.get("control_after_generate"):
                yield "control_after_generate", {"name": "control after generate"}
            yield from _choices(options, f"{prefix}{name}_")


def _choices(options: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Tree]]:
    """The inputs that the choices of a DynamicCombo bring."""
    for choice in options.get("options", ()):
        if isinstance(choice, Mapping):
            yield from _inputs(choice["inputs"], prefix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", nargs=2, action="append", default=[], metavar=("LANGUAGE", "FILE"))
    given = parser.parse_args()
    new = english(read_node_info(find_host()))
    old, missing = read("en"), dict[str, dict[str, str]]()
    for language in LANGUAGES:
        words = known_words(old, read(language))
        for path in (path for wanted, path in given.words if wanted == language):
            words |= json.loads(Path(path).read_text(encoding="utf-8"))
        write(language, translated(new, words))
        missing[language] = {text: "" for _, text in leaves(new) if text not in words}
    write("en", new)
    to_do = {language: texts for language, texts in missing.items() if texts}
    json.dump(to_do, sys.stdout, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
