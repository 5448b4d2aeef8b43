"""Names of the nodes that write files: whatever is typed, no earlier result is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model

FOLDERS = ["mine/", "mine//", "mine/.", "mine/..", ".", "..", "./", "q\\"]
"""Names without a file's name at the end."""
UNKNOWN = {" ": "is empty", "": "is empty", "%modle%": "nothing replaces", "%Nobody.seed%": "no node called 'Nobody'"}
"""Names that mean nothing, and words of the refusal."""
FILES = ["mine", "mine/q", "mine//q", "./mine/./q", "mine\\q"]
TOKENS = {
    "SaveQuantizedModel": ("diffusion_models/%model%_%format%-%rounding%", "digits_wan_int8_row-nearest"),
    "SaveCalibration": ("of %model%", "of model"),
    "QuantizeFile": ("%model%_%format%", "digits_wan_int8_row"),
}
"""Node -> a name with tokens and what becomes of it; a calibration alone does not know its model."""
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
        names=[*FILES, *FOLDERS, *UNKNOWN, *(name for name, _ in TOKENS.values())],
    )


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("node", NODES)
def test_names_of_folders_are_refused(results: Results, node: str, name: str) -> None:
    for result in results[node][name]:
        assert "names a folder; add the name of a file to it." in result["message"]
        assert (result["new"], result["lost"]) == ([], [])


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("node", NODES)
def test_names_that_mean_nothing_are_refused(results: Results, node: str, name: str) -> None:
    for result in results[node][name]:
        assert UNKNOWN[name] in result["message"]
        assert (result["new"], result["lost"]) == ([], [])


@pytest.mark.parametrize("node", NODES)
def test_tokens_name_the_file(results: Results, node: str) -> None:
    typed, stem = TOKENS[node]
    (first,) = results[node][typed][0]["new"]
    assert Path(first).name == f"{stem}_00001_.safetensors"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("node", NODES)
def test_same_name_twice_gives_two_files(results: Results, node: str, name: str) -> None:
    first, second = results[node][name]
    assert (first["message"], second["message"]) == (None, None)
    assert len(first["new"]) == len(second["new"]) == 1
    assert first["lost"] == second["lost"] == []
    stem = name.replace("\\", "/").rpartition("/")[2]
    assert Path(second["new"][0]).name.startswith(f"{stem}_0000")
