"""Fixtures over the harness; see harness.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from calibrated_rounding.tests.comfyui.harness import Host, HostMissing, Server, find_host


@pytest.fixture(scope="session")
def host() -> Host:
    """The real ComfyUI; skips the test, with the reason, where there is none."""
    try:
        return find_host()
    except HostMissing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole session, with the pack installed and the example models in its folders."""
    with Server(host, tmp_path_factory.mktemp("comfyui")) as server:
        yield server
