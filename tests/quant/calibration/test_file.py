"""Damaged calibration files: each is one CheckpointError in one sentence, or quantizes as any other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import QuantError, Recipe, quantize_state_dict
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.file import CALIBRATION_KEY, DIGEST_KEY
from calibrated_rounding.quant.calibration.statistics import fingerprint
from calibrated_rounding.quant.errors import CheckpointError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Damage = Callable[[dict[str, Any], Tensors], object]

MODEL = {
    f"{layer}.weight": torch.randn(16, width, generator=torch.Generator().manual_seed(width))
    for layer, width in (("q", 16), ("k", 16), ("o", 32))
}
FUZZED = 300
"""Files with a random change each."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A calibration of `MODEL` in which q and k share a sample."""
    collector, generator = Collector(rows=64), torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 16, generator=generator)
    for layer in ("q", "k"):
        collector.add(layer, inputs)
    collector.add("o", torch.randn(64, 32, generator=generator))
    path = tmp_path / "c.safetensors"
    collector.finish({name.removesuffix(".weight"): fingerprint(weight) for name, weight in MODEL.items()}).save(path)
    return path


def rewrite(path: Path, damage: Damage) -> None:
    """Apply a damage to the description and the tensors, and leave the digest out."""
    with safe_open(path, "pt") as file:
        description, tensors = json.loads(file.metadata()[CALIBRATION_KEY]), load_file(path)
    changed = damage(description, tensors)
    text = changed if isinstance(changed, str) else json.dumps(description)
    save_file(tensors, path, {CALIBRATION_KEY: text})


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        Calibration.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def set_input(name: str, value: Any) -> Damage:
    return lambda description, _: description["inputs"]["q"].update({name: value})


def set_tensor(name: str, value: Tensor) -> Damage:
    return lambda _, tensors: tensors.update({name: value})


def nest(depth: int) -> str:
    return "[" * depth + "]" * depth


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing leader": (lambda d, _: d["shared"].update(k="gone"), "'gone', which is missing"),
    "leader of a sample dropped": (lambda d, _: d["inputs"].pop("q"), "'q', which is missing"),
    "no layers": (lambda d, _: d.update(shared={}, inputs={}), "it has no layer"),
    "shared is a list": (lambda d, _: d.update(shared=["q"]), "'shared' is not a table"),
    "fingerprints are numbers": (lambda d, _: d.update(fingerprints={"q": 1}), "'fingerprints' is not a table"),
    "patched fingerprints are a list": (
        lambda d, _: d.update(patched_fingerprints=["q"]),
        "'patched_fingerprints' is not a table",
    ),
    "unrecorded is text": (lambda d, _: d.update(unrecorded="q"), "'unrecorded' is not a list"),
    "line break in a name": (lambda d, _: d["shared"].update({"a\nb": "q"}), "'shared' is not a table"),
    "inputs missing": (lambda d, _: d.pop("inputs"), "'inputs' is not a table"),
    "rows missing": (lambda _, t: t.pop("q.rows"), "'q.rows' is missing"),
    "rows of one dimension": (set_tensor("q.rows", torch.zeros(16)), "'q.rows' is missing, or has another shape"),
    "rows of no dimension": (set_tensor("q.rows", torch.zeros(())), "'q.rows' is missing, or has another shape"),
    "no rows": (set_tensor("q.rows", torch.zeros(0, 16)), "do not fit each other"),
    "rows of integers": (set_tensor("q.rows", torch.zeros(4, 16, dtype=torch.int8)), "'q.rows' is missing"),
    "NaN in rows": (set_tensor("q.rows", torch.full((4, 16), torch.nan)), "'q.rows' has values that are not finite"),
    "infinite mean": (set_tensor("q.mean", torch.full((16,), torch.inf)), "'q.mean' has values that are not finite"),
    "mean of another width": (set_tensor("q.mean", torch.zeros(8)), "do not fit each other"),
    "negative count": (set_input("count", -1), "drawn from -1"),
    "count below the rows": (set_input("count", 3), "has 64 rows, drawn from 3"),
    "huge count": (set_input("count", 10**400), "has 64 rows, drawn from 1000"),
    "count true": (set_input("count", True), "drawn from True"),
    "count missing": (lambda d, _: d["inputs"]["q"].pop("count"), "drawn from None"),
    "infinite absmax": (set_input("absmax", float("inf")), "the largest input of 'q' is inf"),
    "absmax beyond float32": (set_input("absmax", 1e308), "the largest input of 'q' is 1e+308"),
    "absmax of 400 digits": (set_input("absmax", 10**400), "the largest input of 'q' is 1000"),
    "negative absmax": (set_input("absmax", -0.5), "the largest input of 'q' is -0.5"),
    "absmax NaN": (set_input("absmax", float("nan")), "the largest input of 'q' is nan"),
    "absmax text": (set_input("absmax", "1"), "the largest input of 'q' is '1'"),
    "infinite sensitivity": (lambda d, _: d.update(sensitivities={"q": float("inf")}), "sensitivity of 'q' is inf"),
    "deep JSON": (lambda *_: nest(100_000), "is not valid JSON"),
    "deep JSON inside": (lambda d, _: json.dumps(d)[:-1] + ', "x": ' + nest(100_000) + "}", "is not valid JSON"),
    "JSON cut": (lambda d, _: json.dumps(d)[:-5], "is not valid JSON"),
    "not an object": (lambda *_: "[]", "is not a JSON object"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named_in_one_sentence(path: Path, case: str) -> None:
    damage, words = DAMAGES[case]
    rewrite(path, damage)
    assert words in refusal(path)


def test_one_flipped_bit_is_noticed(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)
    assert "its digest differs" in refusal(path)


def test_sample_of_another_layer_is_refused(path: Path) -> None:
    """A damage that makes a calibration of another model, which only the weights can tell."""
    rewrite(path, lambda description, _: description["shared"].update(q="o"))
    with pytest.raises(QuantError, match=r"another model: 1 layers have inputs of another width"):
        quantize(Calibration.load(path))


def quantize(calibration: Calibration) -> None:
    recipe = Recipe(profile="generic", format="float8_e4m3fn", rounding="calibrated", input_scale="absmax")
    tensors, _ = quantize_state_dict(MODEL, recipe, statistics=calibration)
    for name, tensor in tensors.items():
        assert name.endswith("comfy_quant") or bool(tensor.float().isfinite().all()), name


VALUES = (None, True, -1, 0, 1.5, 10**400, 1e308, float("inf"), float("nan"), "", "q", "\n", [], ["q"], {}, {"q": {}})


def mutate_description(description: dict[str, Any], chance: random.Random) -> None:
    """Replace or remove one value at a random place of the description."""
    place: Any = description
    while True:
        key = chance.choice(sorted(place))
        if not (isinstance(place[key], dict) and place[key] and chance.random() < 0.8):
            break
        place = place[key]
    if chance.random() < 0.2:
        del place[key]
    else:
        place[key] = chance.choice(VALUES)


def mutate_tensors(tensors: Tensors, chance: random.Random) -> None:
    """Remove, reshape, replace or exchange a tensor."""
    name, other = chance.choice(sorted(tensors)), chance.choice(sorted(tensors))
    tensor = tensors[name]
    changes: list[Callable[[], object]] = [
        lambda: tensors.pop(name),
        lambda: tensors.update({name: tensor.reshape(-1)[: chance.randrange(tensor.numel())].clone()}),
        lambda: tensors.update({name: tensor[None].clone()}),
        lambda: tensors.update({name: torch.full_like(tensor, chance.choice([torch.nan, torch.inf, 3e38, 0.0]))}),
        lambda: tensors.update({name: tensor.to(chance.choice([torch.float64, torch.int8, torch.float16]))}),
        lambda: tensors.update({name: tensors[other].clone(), other: tensor.clone()}),
    ]
    chance.choice(changes)()


def mutate_bytes(path: Path, chance: random.Random) -> None:
    """Flip a bit, or cut the file."""
    raw = bytearray(path.read_bytes())
    if chance.random() < 0.3:
        raw = raw[: chance.randrange(len(raw))]
    else:
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def test_no_mutant_ends_in_a_traceback(path: Path) -> None:
    whole, chance, outcomes = path.read_bytes(), random.Random(7), {"refused": 0, "quantized": 0}
    for _ in range(FUZZED):
        path.write_bytes(whole)
        kind = chance.randrange(3)
        if kind == 0:
            rewrite(path, lambda description, _: mutate_description(description, chance))
        elif kind == 1:
            rewrite(path, lambda _, tensors: mutate_tensors(tensors, chance))
        else:
            mutate_bytes(path, chance)
        try:
            quantize(Calibration.load(path))
            outcomes["quantized"] += 1
        except QuantError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > FUZZED / 2


def test_files_hold_a_digest(path: Path) -> None:
    with safe_open(path, "pt") as file:
        assert file.metadata()[DIGEST_KEY] == Calibration.load(path).digest
