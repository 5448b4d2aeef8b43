"""Text encoders of every family in 4 and 6 bits: calibrated on prompts, saved, loaded and patched with LoRAs.

The encoders are small and random (programs/encoder_families.py), but for the shipped one, a trained Gemma 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from calibrated_rounding.quant.formats import FORMATS, GroupedFormat
from calibrated_rounding.tools.comfyui import Host, example_model
from calibrated_rounding.tools.example_prompts import HELD_OUT, SEEN, fill_template

SHIPPED = "digits_gemma2.safetensors"
PACKED = [name for name, fmt in FORMATS.items() if isinstance(fmt, GroupedFormat)]
DIGITS = [fill_template(template, i % 10, False) for i, template in enumerate(SEEN)]
PROMPTS = [
    "a handwritten seven", "an old ship in a storm, oil on canvas", "blurry, cropped", "nine red apples, top view",
    "portrait of an old fisherman in a yellow raincoat, harbour at dawn, soft light, shallow depth of field",
]  # fmt: skip
UNSEEN = ["a lighthouse on a cliff at night", "three grey cats asleep on a piano"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family and what is expected of it."""

    ratio: float
    """Largest mean output error of the layers on held-out rows, as a share of nearest's."""
    slow: str = ""
    """Pattern of layers to leave out, which would take minutes."""
    prompts: tuple[str, ...] = tuple(PROMPTS)
    unseen: tuple[str, ...] = tuple(UNSEEN)
    closer: float | None = 0.7
    """Largest error of the unseen encodings, as a share of nearest's; None: random layers amplify any difference."""


CASES = {
    "t5xxl": Case(ratio=0.95, slow="wo$|wi_.$", closer=None),
    "umt5xxl": Case(ratio=0.95, slow="wo$|wi_.$", closer=None, prompts=tuple(PROMPTS[:2]), unseen=tuple(UNSEEN[:1])),
    "llama": Case(ratio=0.7),
    "qwen": Case(ratio=0.7),
    "mistral": Case(ratio=0.7, slow=r"layers\.[12]\."),
    SHIPPED: Case(
        closer=0.95,
        ratio=0.7,
        prompts=tuple(DIGITS),
        unseen=tuple(fill_template(template, 7, False) for template in HELD_OUT),
    ),
}
EVERY_FORMAT = pytest.mark.parametrize("fmt", PACKED)


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(family: str) -> Case:
    return CASES[family]


@pytest.fixture(scope="module")
def result(host: Host, known_formats: list[str], family: str, case: Case) -> dict[str, Any]:
    return host.call(
        "tests.comfyui.programs.encoder_families:quantize_family",
        family=family,
        formats=[fmt for fmt in PACKED if fmt in known_formats],
        prompts=list(case.prompts),
        unseen=list(case.unseen),
        slow=case.slow,
        tokenizer=example_model(SHIPPED),
        timeout=1800,
    )


@EVERY_FORMAT
def test_saved_encoder_loads_and_encodes_identically(result: dict[str, Any], fmt: str) -> None:
    encoder = result["formats"][fmt]
    assert encoder["reloaded_equal"]
    assert len(encoder["layers"]) == len(encoder["rows"]) > 0
    assert {row["format"] for row in encoder["rows"]} == {fmt}


@EVERY_FORMAT
def test_no_layer_is_worse_than_nearest(result: dict[str, Any], case: Case, fmt: str) -> None:
    pairs = [row["errors"]["output_w8a16"] for row in result["formats"][fmt]["rows"]]
    assert all(pair["error"] <= pair["nearest"] for pair in pairs)
    assert sum(pair["error"] for pair in pairs) <= case.ratio * sum(pair["nearest"] for pair in pairs)


@EVERY_FORMAT
def test_calibrated_encodings_are_closer_to_float(result: dict[str, Any], case: Case, fmt: str) -> None:
    if case.closer is None:
        pytest.skip("the random layers of this encoder amplify any difference")
    encoder = result["formats"][fmt]
    assert 0 < encoder["error"] < case.closer * encoder["nearest_error"]


@EVERY_FORMAT
def test_lora_is_applied_and_removed(result: dict[str, Any], fmt: str) -> None:
    encoder = result["formats"][fmt]
    assert 0 < encoder["lora_error"] < 0.9 * encoder["lora_missing"], "closer to the float encoder with the LoRA"
    assert encoder["equal_without_lora"]


def test_source_encoder_stays_unchanged(result: dict[str, Any]) -> None:
    assert result["source_unchanged"]


@EVERY_FORMAT
def test_layers_of_unfit_width_stay_with_the_reason(result: dict[str, Any], family: str, fmt: str) -> None:
    """208 inputs divide by 16, the group, and not by 32, which a row of 6 bits needs."""
    if family != "qwen":
        pytest.skip("all widths of this encoder fit")
    encoder = result["formats"][fmt]
    quantized = [name for name in encoder["layers"] if name.endswith("mlp.down_proj")]
    assert len(quantized) == (0 if fmt == "w6a8" else 3)
    assert ("96 x 208 does not divide by 1 x 32, as w6a8 needs" in encoder["report"]) == (fmt == "w6a8")
