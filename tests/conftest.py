"""Marks the tests that need a real ComfyUI, and says in the last lines whether they ran."""

from __future__ import annotations

import pytest
from calibrated_rounding.tools.comfyui import HostMissing, find_host
from hypothesis import settings

# No test may depend on how fast the machine is.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

HOSTED = pytest.StashKey[set[str]]()
"""Ids of the tests that need a host."""


def pytest_itemcollected(item: pytest.Item) -> None:
    if "host" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.comfyui)
        item.config.stash.setdefault(HOSTED, set()).add(item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    hosted = config.stash.get(HOSTED, set())
    ran = sum(
        report.nodeid in hosted and report.when == "call"
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    )
    try:
        host = find_host()
    except HostMissing as reason:
        terminalreporter.write_line(f"comfyui tests: skipped, {reason}")
        return
    count = f"{ran} ran" if ran else "none were chosen to run"
    terminalreporter.write_line(f"comfyui tests: {count} against ComfyUI {host.version} at {host.path}")
