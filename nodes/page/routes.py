"""The server routes that the page calls."""

from __future__ import annotations

import asyncio
from typing import Any

import folder_paths
from aiohttp import web

from ...quant import QuantError
from ...quant.calibration.file import has_sensitivities
from ...quant.files.partial import MOST_MESSAGE, PartialFile
from ..host import folders
from ..host.server import running_server
from . import live
from .check import Question, answer_check, check
from .formats_here import check_together, describe_formats
from .inspected import describe_dropped, describe_file

PREFIX = "/calibrated_rounding"


def add_routes() -> None:
    """Add the routes to ComfyUI's server, if one runs."""
    server = running_server()
    if server is not None:
        server.routes.get(f"{PREFIX}/live")(_live)
        server.routes.post(f"{PREFIX}/check")(_check)
        server.routes.get(f"{PREFIX}/inspect")(_inspect)
        server.routes.post(f"{PREFIX}/inspect_dropped")(_inspect_dropped)
        server.routes.get(f"{PREFIX}/formats")(_formats)


async def _live(_: web.Request) -> web.Response:
    return web.json_response(live.list_latest())


async def _check(request: web.Request) -> web.Response:
    """Answer a check; 400 to what no node of the pack asks."""
    try:
        # In a thread: a header may lie on a slow disk.
        return web.json_response(await asyncio.to_thread(_answer, await request.json()))
    except (QuantError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise web.HTTPBadRequest(text=f"{type(error).__name__}: {error}") from None


async def _inspect(request: web.Request) -> web.Response:
    """Describe the file ``folder/name`` of the query; 400 where there is none."""
    try:
        path = folders.find_any_file(request.query["file"])
        return web.json_response(await asyncio.to_thread(describe_file, path))
    except (QuantError, KeyError) as error:
        raise web.HTTPBadRequest(text=f"{type(error).__name__}: {error}") from None


async def _inspect_dropped(request: web.Request) -> web.Response:
    """Describe the file whose bytes the message holds, or ask for others; 400 to any other message, 413 to a long one.

    The message is held in memory and nothing of it reaches a disk; see `PartialFile.from_message`.
    """
    if request.content_length is None or request.content_length > MOST_MESSAGE:
        text = f"A dropped file is read up to {MOST_MESSAGE // 10**6} MB; copy it into a model folder."
        raise web.HTTPRequestEntityTooLarge(MOST_MESSAGE, request.content_length or 0, text=text)
    try:
        file = PartialFile.from_message(await request.read())
        return web.json_response(await asyncio.to_thread(describe_dropped, file))
    except (QuantError, ValueError) as error:
        raise web.HTTPBadRequest(text=f"{type(error).__name__}: {error}") from None


async def _formats(request: web.Request) -> web.Response:
    """List the formats; with the query ``weight_only=1`` as text encoders run in them."""
    answer = describe_formats(weight_only=request.query.get("weight_only") == "1")
    return web.json_response(answer)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Answer the question of a node.

    asked: {"values", "file": [kind of folder, name] or null, "whole", "calibration", "recorded", "weight_only"}; see
    `Question`. recorded, of the calibration: the name of its file, or whether it has sensitivities. Of a node that
    quantizes several models to one size: {"together": the values of the linked recipe node or null}.
    """
    if "together" in asked:
        return answer_check(None, check_together(asked["together"]))
    values = dict(asked["values"])
    if asked["whole"] and "file" in values:
        file: str | None = folders.find_model(values["file"])[1]
    else:
        file = folder_paths.get_full_path(*asked["file"]) if asked["file"] else None
    recorded = asked.get("recorded", False)
    question = Question(
        values=values,
        file=file,
        whole=bool(asked["whole"]),
        calibration=bool(asked["calibration"]),
        sensitivities=recorded if isinstance(recorded, bool) else has_sensitivities(folders.find_calibration(recorded)),
        weight_only=asked.get("weight_only", False) is True,
    )
    return check(question)
