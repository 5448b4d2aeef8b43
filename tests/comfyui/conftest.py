"""Fixtures over tools/comfyui: an installed ComfyUI and its servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tools.comfyui import FP8_COMPUTE, Host, HostMissing, Server, find_host


@pytest.fixture(scope="session")
def host() -> Host:
    """An installed ComfyUI; without one the test is skipped with the reason."""
    try:
        return find_host()
    except HostMissing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def known_formats(host: Host) -> list[str]:
    """The formats that this ComfyUI knows with the pack."""
    return host.call("tests.comfyui.programs.known_formats:list_known_formats")


@pytest.fixture(autouse=True)
def skip_unknown_format(request: pytest.FixtureRequest) -> None:
    """Skip a test of a format, its parameter ``fmt``, that this ComfyUI does not know."""
    fmt = getattr(request.node, "callspec", None) and request.node.callspec.params.get("fmt")
    if fmt in FORMATS and fmt not in request.getfixturevalue("known_formats"):
        pytest.skip(f"this ComfyUI does not know {fmt}: it needs {FORMATS[fmt].needs}")


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole session, with the pack installed and the example models in its folders."""
    with Server(host, tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(scope="session")
def fp8_server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Like `server`, but FP8 layers compute in FP8, as they do on a GPU with FP8 units."""
    with Server(host, tmp_path_factory.mktemp("comfyui_fp8"), FP8_COMPUTE) as server:
        yield server
