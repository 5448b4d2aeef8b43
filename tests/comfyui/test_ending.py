"""Ending ComfyUI while a node quantizes: no crash, and no unfinished file stays."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from calibrated_rounding.tools.comfyui import Host, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import model_loader, pack_node, quantize_inputs, stock_node, svd_inputs

LONG = svd_inputs("original", iterations=10_000, learning_rate=0.0)


def unfinished(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*.part"))


def test_interpreter_waits_for_the_engine(host: Host, tmp_path: Path) -> None:
    """A process that a thread of torch outlives is aborted, and `Host.call` would raise; so the node's thread rests."""
    result = host.call("tests.comfyui.programs.ending:end_while_quantizing", folder=tmp_path)
    assert result["unfinished"] == [".part"]
    assert list(tmp_path.iterdir()) == []


def start_long_run(server: Server) -> Path:
    """Begin to quantize; gives the cache folder when the unfinished file is in it."""
    name = server.add_model("diffusion_models", example_model("digits_wan.safetensors"))
    quantizer = pack_node("QuantizeModel", model=["source", 0], **quantize_inputs(**LONG))
    report = stock_node("PreviewAny", source=["quantized", 1])
    server.queue({"source": model_loader(name), "quantized": quantizer, "report": report})
    cache = server.base / "user" / "calibrated_rounding" / "cache"
    deadline = time.monotonic() + 300
    while not (cache.is_dir() and unfinished(cache)):
        assert server.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return cache


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_ended_server_leaves_nothing_unfinished(host: Host, tmp_path: Path) -> None:
    with Server(host, tmp_path) as server:
        cache = start_long_run(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(120) == 0
    assert unfinished(cache) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_leftovers_of_a_killed_server_are_removed_at_start(host: Host, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    with Server(host, first) as server:
        cache = start_long_run(server)
        server.process.kill()
        server.process.wait()
    assert len(unfinished(cache)) == 1
    with Server(host, second, "--user-directory", str(first / "user")):
        assert unfinished(cache) == []
