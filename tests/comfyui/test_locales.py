"""The English texts in locales are those of the nodes; ComfyUI hands all languages to the page."""

from __future__ import annotations

from calibrated_rounding.tests.comfyui.harness import Host, Server
from calibrated_rounding.tools.locales import FILE, LANGUAGES, english, node_info, read


def test_english_is_what_the_nodes_say(host: Host, server: Server) -> None:
    """If not: `python tools/locales.py` writes the texts anew and tells what is to be translated."""
    texts = english(node_info(host))
    assert texts.items() >= english(server.get("/object_info")).items()
    assert read("en", FILE) == texts


def test_the_page_gets_every_language(server: Server) -> None:
    texts = server.get("/i18n")
    for language in ("en", *LANGUAGES):
        assert texts[language]["nodeDefs"].items() >= read(language, FILE).items()
        assert texts[language]["calibratedRounding"] == read(language, "main.json")["calibratedRounding"]
