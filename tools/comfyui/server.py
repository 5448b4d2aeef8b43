"""ComfyUI's server on the CPU, in folders of its own, with the pack in custom_nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .checkout import install_checkout
from .host import Host, HostError, comfyui_environment, read_tail

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine, whatever proxy the environment names."""

Graph = Mapping[str, Any]
"""A workflow in the API format: node id -> {"class_type", "inputs"}."""


class Server:
    """A running ComfyUI, as a context manager.

    Args:
        host: The ComfyUI.
        base: Existing folder for its models, inputs, outputs and log.
        options: More of its command line.
        install: Puts packs into the custom_nodes folder that it is called with.
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
        self.url = f"http://127.0.0.1:{_find_free_port()}"

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
            self.process = subprocess.Popen(
                command,
                cwd=self.base,
                env=comfyui_environment(),
                stdout=log,
                stderr=log,
                preexec_fn=_restore_interrupt if os.name == "posix" else None,
            )
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
        """Copy a file into ``models/<kind>``; returns the name that the loaders' menus show."""
        folder = self.base / "models" / kind
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / (name or path.name))
        return name or path.name

    def get(self, path: str, **query: str) -> Any:
        """Send a GET request; returns the answer's JSON."""
        return json.loads(self.get_bytes(path, **query))

    def get_bytes(self, path: str, **query: str) -> bytes:
        """Send a GET request."""
        return self._request(f"{path}?{urllib.parse.urlencode(query)}" if query else path)

    def post(self, path: str, body: Any = None) -> Any:
        """Send a POST request; returns the answer's JSON, or None if it is empty.

        Raises:
            HostError: The server refused; the message has its answer.
        """
        answer = self._request(path, json.dumps(body or {}).encode())
        return json.loads(answer) if answer else None

    def post_bytes(self, path: str, body: bytes) -> Any:
        """Send a POST request with any body; as `post` otherwise."""
        return json.loads(self._request(path, body))

    def object_info(self, node: str) -> dict[str, Any]:
        """Get what the front end knows of a node: inputs, outputs, category.

        Raises:
            HostError: The server has no such node.
        """
        info: dict[str, Any] = self.get(f"/object_info/{urllib.parse.quote(node)}")
        if node not in info:
            raise HostError(f"The server has no node '{node}'.\n{read_tail(self.log)}")
        return info[node]

    def queue(self, graph: Graph) -> str:
        """Queue a workflow; returns the prompt's id.

        Raises:
            HostError: The workflow is not valid.
        """
        return str(self.post("/prompt", {"prompt": graph, "client_id": "tests"})["prompt_id"])

    def interrupt(self) -> None:
        self.post("/interrupt")

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """Wait until a prompt has ended, well or not; returns its history entry: {"outputs", "status", ...}.

        Raises:
            HostError: The server ended, or the prompt took longer than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return dict(entry)
            if self.process.poll() is not None:
                raise HostError(f"The server ended ({self.process.returncode}).\n{read_tail(self.log)}")
            time.sleep(0.1)
        raise HostError(f"The prompt did not end within {timeout:.0f} s.\n{read_tail(self.log)}")

    def wait_until_idle(self, timeout: float = 120) -> None:
        """Wait until nothing runs or waits, so that the history has all that ran.

        Raises:
            HostError: It took longer than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while any(self.get("/queue").values()):
            if time.monotonic() > deadline:
                raise HostError(f"The queue is not empty after {timeout:.0f} s.\n{read_tail(self.log)}")
            time.sleep(0.1)

    def execute(self, graph: Graph, timeout: float = 600) -> dict[str, Any]:
        """Queue a workflow and wait for it; returns node id -> what the node shows (images, text).

        Raises:
            HostError: The workflow is not valid, or a node failed.
        """
        entry = self.wait(self.queue(graph), timeout)
        if entry["status"]["status_str"] != "success":
            raise HostError(f"{_describe_failure(entry)}\n{read_tail(self.log)}")
        return dict(entry["outputs"])

    def image(self, shown: Mapping[str, str]) -> bytes:
        """Get the file of an entry of ``outputs[node]["images"]``."""
        return self.get_bytes("/view", **{key: shown[key] for key in ("filename", "subfolder", "type")})

    def _request(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise HostError(f"{path}: {error.code} {text}\n{read_tail(self.log)}") from None

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self._request("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise HostError(f"The server did not start within {timeout:.0f} s.\n{read_tail(self.log)}")


def _restore_interrupt() -> None:
    """Let SIGINT end the server, even if this process runs in the background, where shells ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _describe_failure(entry: Mapping[str, Any]) -> str:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return "Node {node_id} ({node_type}): {exception_type}: {exception_message}".format(**data)
    return f"The prompt ended as {entry['status']}."
