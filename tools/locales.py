"""Write locales/<language>/nodeDefs.json, the texts of the nodes, from the nodes as a ComfyUI loads them.

    python tools/locales.py                        # writes English; other languages keep valid translations
    python tools/locales.py --words fr words.json  # and adds translations, {"English": "..."}

The ComfyUI is found as in the tests. It describes every node, also nodes that it would not register.

A text in several places is translated once. Missing translations are printed as JSON, to be filled in; their keys are
left out of the language's file, so that ComfyUI shows the English text, and the tests fail.
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
    """Extract the texts of the pack's nodes from `read_node_info`, in the shape of the front end's own files."""
    return {name: _node(node) for name, node in info.items() if name.startswith(PREFIX)}


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text with its path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def translate(tree: Mapping[str, Any], words: Mapping[str, str]) -> Tree:
    """Translate a tree; texts that ``words`` lacks are left out."""
    result: Tree = {}
    for path, text in leaves(tree):
        if text in words:
            place = result
            for step in path[:-1]:
                place = place.setdefault(step, {})
            place[path[-1]] = words[text]
    return result


def match_words(english_tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """Map English texts to their translations, from two trees of the same shape."""
    translations = dict(leaves(other))
    return {text: translations[path] for path, text in leaves(english_tree) if path in translations}


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
    # The front end itself translates an output that is named like its type.
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
    """Yield the inputs that the choices of a DynamicCombo bring."""
    for choice in options.get("options", ()):
        if isinstance(choice, Mapping):
            yield from _inputs(choice["inputs"], prefix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", nargs=2, action="append", default=[], metavar=("LANGUAGE", "FILE"))
    options = parser.parse_args()
    new = english(read_node_info(find_host()))
    old, missing = read("en"), dict[str, dict[str, str]]()
    for language in LANGUAGES:
        words = match_words(old, read(language))
        for path in (path for other, path in options.words if other == language):
            words |= json.loads(Path(path).read_text(encoding="utf-8"))
        write(language, translate(new, words))
        missing[language] = {text: "" for _, text in leaves(new) if text not in words}
    write("en", new)
    to_do = {language: texts for language, texts in missing.items() if texts}
    json.dump(to_do, sys.stdout, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
