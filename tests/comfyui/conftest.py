"""Fixtures over tools/comfyui: an installed ComfyUI and its servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from calibrated_rounding.tools.comfyui import FP8_COMPUTE, Host, HostMissing, Server, find_host


@pytest.fixture(scope="session")
def host() -> Host:
    """An installed ComfyUI; without one the test is skipped with the reason."""
    try:
        return find_host()
    except HostMissing as reason:
        pytest.skip(str(reason))


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
