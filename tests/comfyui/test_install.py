"""The pack as ComfyUI-Manager installs it: the registry's copy with its requirements, in the environments of users.

Each environment is a new one on top of ComfyUI's own, which is never changed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from calibrated_rounding.tools.comfyui import PACK, PACK_NAME, Host, HostError, Server
from calibrated_rounding.tools.comfyui.graphs import pack_node
from calibrated_rounding.tools.comfyui.host import comfyui_environment, read_tail
from calibrated_rounding.tools.comfyui.workflows import api_format

NODES = {path.stem for path in (PACK / "web" / "docs").glob("*.md")} - {"CalibratedRoundingLoadBlockwiseModel"}
"""Every node has a help page; one node is offered only where ComfyUI's loaders cannot be taught the pack's format."""

OLD_KITCHEN = "comfy-kitchen==0.2.16"
"""From the time of ComfyUI 0.27.0, the oldest that the pack supports; too old for later ones."""

NOTICE = "calibrated-rounding: comfy-kitchen does not fit this ComfyUI, which therefore runs no quantized model"

COMFYUI_LINES = r"^(\[\w+\] )?$|Import times for custom nodes:|seconds: BASE/custom_nodes/|Found comfy_kitchen backend"
"""Lines that ComfyUI logs about any pack and any environment."""

CONTROL = "Control Pack"
"""A second pack whose folder has a space in its name: shows whether this ComfyUI serves files from such folders."""


@dataclass(frozen=True)
class Install:
    """An environment of users, and how the pack is installed in it."""

    folder: str
    """Name of the pack's folder in custom_nodes."""
    prepare: Callable[[Host], object]
    """Alters the environment after the requirements are installed."""
    notice: str = ""
    """Start of the one line that the pack logs at the start; empty for none."""


def run_at_start(code: str) -> Callable[[Host], object]:
    """Make an environment's interpreter run a line of code before anything else."""
    return lambda host: (find_site_packages(host) / "begin.pth").write_text(f"import sys; {code}\n", encoding="utf-8")


def break_triton(host: Host) -> None:
    package = find_site_packages(host) / "triton"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libtriton.so: wrong ELF class')\n", encoding="utf-8")


def install_old_kitchen(host: Host) -> None:
    done = pip_install(host, "--no-deps", "--only-binary=:all:", "--retries=0", OLD_KITCHEN)
    if done.returncode != 0:
        pytest.skip(f"{OLD_KITCHEN} cannot be installed here: {last_line(done.stderr)}")


INSTALLS = {
    "as the Manager leaves it": Install(PACK_NAME, lambda host: None),
    "no triton": Install("calibrated_rounding", run_at_start("sys.modules['triton'] = None")),
    "broken triton": Install("My Nodes", break_triton),
    "old comfy-kitchen": Install("calibrated-rounding-1.0", install_old_kitchen, NOTICE),
}
"""Folders differ along the way: as it was cloned, renamed by hand, and as older managers name a version."""


def find_site_packages(host: Host) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([host.python, "-c", code], text=True).strip())


def create_environment(host: Host, folder: Path) -> Host:
    """Create an environment that imports its own packages first, then the packages of ComfyUI's environment.

    Returns:
        The same ComfyUI with the new interpreter.
    """
    subprocess.run([host.python, "-m", "venv", "--without-pip", folder], check=True)
    result = replace(host, python=folder / host.python.parent.name / host.python.name)
    line = f"import site; site.addsitedir({str(find_site_packages(host))!r})\n"
    (find_site_packages(result) / "host.pth").write_text(line, encoding="utf-8")
    return result


def pip_install(host: Host, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [host.python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    return subprocess.run(
        list(map(str, command)), env=comfyui_environment(), capture_output=True, text=True, check=False
    )


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def list_registry_files() -> list[Path]:
    """List the files that the registry packs: tracked by git, and not named in .comfyignore, as git reads it."""

    def list_files(*options: str) -> set[str]:
        command = ["git", "-C", str(PACK), "ls-files", "-z", *options]
        try:
            names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no git checkout to copy from: {error}")
        return set(filter(None, names.split("\0")))

    return sorted(map(Path, list_files() - list_files("--cached", "--ignored", "--exclude-from=.comfyignore")))


def copy_registry_files(folder: Path) -> None:
    for path in list_registry_files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACK / path, target)


def create_control_pack(custom_nodes: Path) -> None:
    web = custom_nodes / CONTROL / "web"
    web.mkdir(parents=True)
    (web / "control.js").touch()
    web.with_name("__init__.py").write_text("WEB_DIRECTORY = './web'\nNODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")


def skip_unserved(started: Started) -> None:
    """Skip the test if this ComfyUI serves no files from folders with a space in their name."""
    if " " in started.install.folder:
        try:
            started.server.get_bytes(f"/extensions/{urllib.parse.quote(CONTROL)}/control.js")
        except HostError:
            pytest.skip("this ComfyUI serves no files of a pack whose folder has a space in its name")


def read_log(server: Server) -> list[str]:
    """Read the server's log without colours and without what differs from start to start."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", read_tail(server.log, 1_000_000))
    text = text.replace(str(server.base), "BASE").replace(server.url, "URL")
    return re.sub(r"\d+\.\d+ seconds", "N seconds", text).splitlines()


@pytest.fixture(scope="module")
def bare(host: Host, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The log of a start without any pack."""
    with Server(host, tmp_path_factory.mktemp("bare"), install=lambda folder: None) as server:
        server.get("/object_info")
        return read_log(server)


@dataclass(frozen=True)
class Started:
    """A running server with the pack, and its log when all nodes were known."""

    install: Install
    server: Server
    log: list[str]


@pytest.fixture(scope="module", params=INSTALLS)
def started(request: pytest.FixtureRequest, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server with the pack in one of the environments."""
    install, folder = INSTALLS[request.param], tmp_path_factory.mktemp("install")
    environment = create_environment(host, folder / "environment")
    done = pip_install(environment, "-r", PACK / "requirements.txt")
    assert done.returncode == 0, done.stderr
    install.prepare(environment)

    def fill(custom_nodes: Path) -> None:
        copy_registry_files(custom_nodes / install.folder)
        if " " in install.folder:
            create_control_pack(custom_nodes)

    with ExitStack() as stack:
        try:
            server = stack.enter_context(Server(environment, folder, install=fill))
        except HostError as error:
            if "custom_nodes" in str(error):
                raise
            pytest.skip(f"this ComfyUI does not start there, with or without the pack: {last_line(str(error))}")
        server.get("/object_info")
        yield Started(install, server, read_log(server))


def test_registry_copy_holds_pack_only() -> None:
    assert {path.parts[0] for path in list_registry_files() if len(path.parts) > 1} == {
        *("examples", "kernels", "locales", "nodes", "quant", "web"),
    }
    assert Path("__init__.py") in list_registry_files()


def test_every_node_is_offered(started: Started) -> None:
    offered = {name for name in started.server.get("/object_info") if name.startswith("CalibratedRounding")}
    assert offered == NODES


def test_front_end_files_are_served(started: Started) -> None:
    skip_unserved(started)
    url = f"/extensions/{urllib.parse.quote(started.install.folder)}"
    for path in (path for path in list_registry_files() if path.parts[0] == "web"):
        served = started.server.get_bytes(f"{url}/{path.relative_to('web').as_posix()}")
        assert served == (PACK / path).read_bytes(), path
    assert f"{url}/calibrated_rounding.js" in started.server.get("/extensions")


def test_templates_and_translations_are_found(started: Started) -> None:
    skip_unserved(started)
    folder, examples = started.install.folder, sorted(path.stem for path in (PACK / "examples").glob("*.json"))
    assert sorted(started.server.get("/workflow_templates")[folder]) == examples
    path = f"/api/workflow_templates/{urllib.parse.quote(folder)}/{urllib.parse.quote(examples[0])}.json"
    assert started.server.get_bytes(path) == (PACK / "examples" / f"{examples[0]}.json").read_bytes()
    assert started.server.get("/i18n")["fr"]["nodeDefs"].keys() >= NODES


def test_start_logs_at_most_one_line(started: Started, bare: list[str]) -> None:
    install, added = started.install, [line for line in started.log if line not in bare]
    if install.notice:  # then ComfyUI itself logs more than at the bare start
        added = [line for line in added if "calibrated" in line.lower()]
    unexpected = [line for line in added if not re.search(COMFYUI_LINES, line)]
    assert len(unexpected) == bool(install.notice), unexpected
    assert all(install.notice in line for line in unexpected)


def test_quantized_model_samples_or_is_refused(started: Started) -> None:
    graph = api_format(json.loads((PACK / "examples" / "1 Quantize and sample.json").read_text(encoding="utf-8")))
    if started.install.notice:
        with pytest.raises(
            HostError, match=r"QuantError: comfy-kitchen does not fit .* The node Quantize works as it is\.\n"
        ):
            started.server.execute(graph)
        return
    assert started.server.execute(graph)
    after = read_log(started.server)[len(started.log) :]
    assert "Prompt executed" in "".join(after)
    assert not [line for line in after if re.search("WARNING|ERROR|Traceback|Deprecat", line)]


def test_file_is_quantized_in_any_environment(started: Started) -> None:
    settings = {"format": "int8_convrot", "profile": "auto", "rounding": "nearest", "name": "made"}
    file = "diffusion_models/digits_wan.safetensors"
    graph = {"1": pack_node("QuantizeFile", file=file, **settings)}
    assert "19 layers quantized" in started.server.execute(graph)["1"]["text"][0]
