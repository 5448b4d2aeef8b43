"""A real ComfyUI to test against: where it is, code run by its interpreter, and its server.

    host = find_host()                                   # raises HostMissing, with the reason
    host.run("outputs['version'] = torch.__version__")   # -> {"version": ...}
    with Server(host, folder) as server:
        server.execute({"1": {"class_type": ..., "inputs": {...}}})

The fixtures `host` and `server` (conftest.py) are what tests use; a test that asks for either is marked ``comfyui`` and
is skipped with the reason where there is no ComfyUI.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

PACK = Path(__file__).resolve().parents[2]
PACK_NAME = "calibrated-rounding"
"""Folder under custom_nodes, as the registry and ComfyUI-Manager name it."""

OLDEST = (0, 27)
RUNNER = Path(__file__).with_name("runner.py")
INTERPRETERS = tuple(f"{env}/{python}" for env in (".venv", "venv") for python in ("bin/python", "Scripts/python.exe"))

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine, whatever proxy the environment names."""

Graph = Mapping[str, Any]
"""A workflow in the API format: node id -> {"class_type", "inputs"}."""


class HostMissing(Exception):
    """There is no ComfyUI to test against; the message says why."""


class HostError(AssertionError):
    """The host refused or failed; the message ends with what it logged."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI: its folder, the interpreter that runs it and its version."""

    path: Path
    python: Path
    version: str

    def run(self, code: str, *, timeout: float = 600, **inputs: Any) -> dict[str, Any]:
        """Run Python code in the host's interpreter, on the CPU and under inference mode; give what it puts in outputs.

        ``inputs`` (tensors, paths as text, anything that JSON holds) are the code's global names, beside ``outputs``,
        ``torch`` and ``inside`` (inside.py). ``outputs`` takes the same kinds of values. Raises HostError.
        """
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder)
            (job / "code.py").write_text(code, encoding="utf-8")
            write_values(job / "inputs", inputs)
            with (job / "log.txt").open("w+", encoding="utf-8") as log:
                command = [str(self.python), str(RUNNER), str(self.path), str(job)]
                done = subprocess.run(
                    command, cwd=job, env=host_environment(), stdout=log, stderr=log, timeout=timeout, check=False
                )
            if done.returncode != 0:
                raise HostError(f"The host's interpreter failed ({done.returncode}).\n{tail(job / 'log.txt')}")
            return read_values(job / "outputs")


def find_host(environment: Mapping[str, str] = os.environ) -> Host:
    """The ComfyUI named by COMFYUI_PATH, else the one that the pack is installed in, else ``~/ComfyUI``."""
    named = environment.get("COMFYUI_PATH")
    places = [Path(named).expanduser()] if named else [PACK.parents[1], Path.home() / "ComfyUI"]
    path = next((place for place in places if (place / "comfyui_version.py").is_file()), None)
    if path is None and named:
        raise HostMissing(f"no ComfyUI at {named}, which COMFYUI_PATH names")
    if path is None:
        raise HostMissing("no ComfyUI found (COMFYUI_PATH, the folder that the pack is installed in, ~/ComfyUI)")
    version = _version(path)
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise HostMissing(f"ComfyUI {version} at {path} is older than {'.'.join(map(str, OLDEST))}")
    return Host(path, _interpreter(path, environment.get("COMFYUI_PYTHON")), version)


def _version(path: Path) -> str:
    match = re.search(r'__version__ = "(\d+\.\d+[^"]*)"', (path / "comfyui_version.py").read_text(encoding="utf-8"))
    if match is None:
        raise HostMissing(f"the version of the ComfyUI at {path} cannot be read")
    return match[1]


def _interpreter(path: Path, named: str | None) -> Path:
    if named:
        found = shutil.which(named)
        if found is None:
            raise HostMissing(f"COMFYUI_PYTHON is {named}, which cannot be run")
        return Path(found)
    for python in INTERPRETERS:
        if (path / python).is_file():
            return path / python
    raise HostMissing(f"ComfyUI at {path} has no .venv or venv; name its interpreter in COMFYUI_PYTHON")


def host_environment() -> dict[str, str]:
    """This process's environment without what would leak this checkout or another interpreter into the host."""
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    # Threads that wait at full speed starve whatever else runs on a machine of few cores.
    return {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"} | kept


def write_values(folder: Path, values: Mapping[str, Any]) -> None:
    """Tensors into one safetensors file, everything else into JSON; `read_values` is the inverse."""
    folder.mkdir()
    tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in values.items() if name not in tensors}
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "values.json").write_text(json.dumps(others, default=str), encoding="utf-8")


def read_values(folder: Path) -> dict[str, Any]:
    others = json.loads((folder / "values.json").read_text(encoding="utf-8"))
    return {**others, **load_file(folder / "tensors.safetensors")}


def tail(log: Path, characters: int = 6000) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]


def install_checkout(custom_nodes: Path) -> None:
    """A copy of the pack as it lies here, under its own name."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "output")
    shutil.copytree(PACK, custom_nodes / PACK_NAME, ignore=ignore)


class Server:
    """ComfyUI's server on the CPU, with folders of its own below ``base`` and the pack in custom_nodes.

    options: more of its command line. install: puts packs into the folder that it is called with.
    """

    def __init__(
        self, host: Host, base: Path, *options: str, install: Callable[[Path], object] = install_checkout
    ) -> None:
        self.host = host
        self.install = install
        self.base = base
        self.options = options
        self.log = base / "server.log"
        self.output = base / "output"
        self.url = f"http://127.0.0.1:{_free_port()}"

    def __enter__(self) -> Server:
        for folder in ("custom_nodes", "models", "input", "output"):
            (self.base / folder).mkdir(exist_ok=True)
        self.install(self.base / "custom_nodes")
        command = [
            *(str(self.host.python), str(self.host.path / "main.py"), "--cpu", "--disable-auto-launch"),
            *("--base-directory", str(self.base), "--port", self.url.rsplit(":", 1)[1]),
            *("--database-url", "sqlite:///:memory:", "--disable-api-nodes", *self.options),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=self.base, env=host_environment(), stdout=log, stderr=log)
        try:
            self._wait_until_ready(180)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def add_model(self, kind: str, path: Path, name: str | None = None) -> str:
        """Put a copy of a file into ``models/<kind>``; gives the name that the loaders' menus show."""
        folder = self.base / "models" / kind
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / (name or path.name))
        return name or path.name

    def get(self, path: str, **query: str) -> Any:
        """JSON of a GET request."""
        return json.loads(self.get_bytes(path, **query))

    def get_bytes(self, path: str, **query: str) -> bytes:
        return self._request(f"{path}?{urllib.parse.urlencode(query)}" if query else path)

    def post(self, path: str, body: Any = None) -> Any:
        """JSON (or None for an empty answer) of a POST request. Raises HostError with the server's words."""
        answer = self._request(path, json.dumps(body or {}).encode())
        return json.loads(answer) if answer else None

    def object_info(self, node: str) -> dict[str, Any]:
        """What the front end is told of a node: inputs, outputs, category. Raises HostError for an unknown node."""
        info: dict[str, Any] = self.get(f"/object_info/{urllib.parse.quote(node)}")
        if node not in info:
            raise HostError(f"The server has no node '{node}'.\n{tail(self.log)}")
        return info[node]

    def queue(self, graph: Graph) -> str:
        """Queue a workflow; gives the prompt's id. Raises HostError if validation refuses it."""
        return str(self.post("/prompt", {"prompt": graph, "client_id": "tests"})["prompt_id"])

    def interrupt(self) -> None:
        self.post("/interrupt")

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a prompt when it has ended, well or not: {"outputs", "status", ...}."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return dict(entry)
            if self.process.poll() is not None:
                raise HostError(f"The server ended ({self.process.returncode}).\n{tail(self.log)}")
            time.sleep(0.1)
        raise HostError(f"The prompt did not end within {timeout:.0f} s.\n{tail(self.log)}")

    def execute(self, graph: Graph, timeout: float = 600) -> dict[str, Any]:
        """Queue a workflow and wait: node id -> what the node shows (images, text). Raises HostError if it fails."""
        entry = self.wait(self.queue(graph), timeout)
        if entry["status"]["status_str"] != "success":
            raise HostError(f"{_failure(entry)}\n{tail(self.log)}")
        return dict(entry["outputs"])

    def image(self, shown: Mapping[str, str]) -> bytes:
        """The file of an entry of ``outputs[node]["images"]``."""
        return self.get_bytes("/view", **{key: shown[key] for key in ("filename", "subfolder", "type")})

    def _request(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace")
            raise HostError(f"{path}: {error.code} {words}\n{tail(self.log)}") from None

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self._request("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise HostError(f"The server did not start within {timeout:.0f} s.\n{tail(self.log)}")


def example_model(name: str) -> Path:
    """A file of the small trained models that the repository ships."""
    return next((PACK / "examples" / "models").rglob(name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _failure(entry: Mapping[str, Any]) -> str:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return "Node {node_id} ({node_type}): {exception_type}: {exception_message}".format(**data)
    return f"The prompt ended as {entry['status']}."
