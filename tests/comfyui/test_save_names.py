"""Names of the nodes that write files: whatever is typed, no earlier result is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model

FOLDERS = ["mine/", "mine//", "mine/.", "mine/..", ".", "..", "./", "q\\", " ", ""]
"""Names without a file's name at the end."""
FILES = ["mine", "mine/q", "mine//q", "./mine/./q", "mine\\q"]
NODES = ["SaveQuantizedModel", "SaveCalibration", "QuantizeFile"]

Results = dict[str, dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def results(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Results:
    output: Path = tmp_path_factory.mktemp("names") / "output"
    output.mkdir()
    return host.call(
        "tests.comfyui.programs.save_names:save_under_names",
        source=example_model("digits_wan.safetensors"),
        output=output,
        names=[*FILES, *FOLDERS],
    )


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("node", NODES)
def test_names_of_folders_are_refused(results: Results, node: str, name: str) -> None:
    for result in results[node][name]:
        assert "names a folder; add the name of a file to it." in result["message"]
        assert (result["new"], result["lost"]) == ([], [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("node", NODES)
def test_same_name_twice_gives_two_files(results: Results, node: str, name: str) -> None:
    first, second = results[node][name]
    assert (first["message"], second["message"]) == (None, None)
    assert len(first["new"]) == len(second["new"]) == 1
    assert first["lost"] == second["lost"] == []
    stem = name.replace("\\", "/").rpartition("/")[2]
    assert Path(second["new"][0]).name.startswith(f"{stem}_0000")
