"""The English texts in locales match the nodes; ComfyUI serves all languages to the page."""

from __future__ import annotations

from calibrated_rounding.tools.comfyui import Host, Server
from calibrated_rounding.tools.locales import FILE, LANGUAGES, english, read, read_node_info


def test_english_texts_match_nodes(host: Host, server: Server) -> None:
    """If this fails, `python tools/locales.py` writes the texts again and prints what is to be translated."""
    texts = english(read_node_info(host))
    assert texts.items() >= english(server.get("/object_info")).items()
    assert read("en", FILE) == texts


def test_page_receives_every_language(server: Server) -> None:
    texts = server.get("/i18n")
    for language in ("en", *LANGUAGES):
        assert texts[language]["nodeDefs"].items() >= read(language, FILE).items()
        assert texts[language]["calibratedRounding"] == read(language, "main.json")["calibratedRounding"]
