"""Recording the inputs of a torch model: which layers, under which names, and no trace afterwards."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.recorder import Recorder
from calibrated_rounding.quant.calibration.statistics import fingerprint
from calibrated_rounding.quant.errors import QuantError
from torch import Tensor, nn

Model = nn.Sequential


def mlp(seed: int = 0, width: int = 16) -> Model:
    torch.manual_seed(seed)
    return Model(nn.Linear(width, 24), nn.GELU(), Model(nn.Linear(24, width), nn.LayerNorm(width)))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def recorded(model: Model, run: Callable[[], object], prefix: str = "") -> Calibration:
    recorder = Recorder()
    with recorder.watch(model, prefix):
        run()
    return recorder.calibration()


def rows_of(calibration: Calibration, layer: str) -> Tensor:
    rows = calibration[layer].rows
    assert rows is not None
    return rows


def test_the_example_in_the_docstring_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(Recorder) or ""
    example = textwrap.dedent(text.partition("Example:\n")[2].partition("\n\n")[0])
    exec(example.replace("...", "x"), {"Recorder": Recorder, "model": mlp(), "x": torch.randn(3, 16)})
    assert set(Calibration.load("calibration.safetensors")) == {"0", "2.0"}


def test_layers_are_named_as_in_checkpoint() -> None:
    model, inputs = mlp(), torch.randn(5, 3, 16)
    calibration = recorded(model, lambda: model(inputs))
    weights = {key.removesuffix(".weight"): t for key, t in model.state_dict().items() if t.dim() == 2}
    assert calibration.keys() == weights.keys()
    assert all(calibration[layer].fingerprint == fingerprint(weight) for layer, weight in weights.items())
    assert calibration["0"].count == 15
    assert sorted(rows_of(calibration, "0")[:, 0].tolist()) == sorted(inputs.view(-1, 16)[:, 0].bfloat16().tolist())


def test_recording_does_not_change_outputs() -> None:
    model, inputs, recorder = mlp(), torch.randn(4, 16), Recorder()
    plain = model(inputs)
    with recorder.watch(model):
        assert torch.equal(model(inputs), plain)
    assert hooks(model) == 0


@pytest.mark.parametrize("prefix", ["model.diffusion_model", "model.diffusion_model."])
def test_prefix_precedes_every_name(prefix: str) -> None:
    model = mlp()
    calibration = recorded(model, lambda: model(torch.randn(2, 16)), prefix)
    assert set(calibration) == {"model.diffusion_model.0", "model.diffusion_model.2.0"}
    assert set(calibration.under("model.diffusion_model.")) == {"0", "2.0"}


def test_only_selected_layers_are_recorded() -> None:
    model, recorder = mlp(), Recorder()
    with recorder.watch(model, "net", layers={"net.2.0", "net.unknown"}):
        assert hooks(model) == 1
        model(torch.randn(2, 16))
    assert set(recorder.calibration()) == {"net.2.0"}


def test_prefixes_distinguish_two_models() -> None:
    first, second, recorder = mlp(0), mlp(1, width=8), Recorder()
    for model, prefix in ((first, "first."), (second, "second.")):
        with recorder.watch(model, prefix):
            model(torch.randn(2, model[0].in_features))
    calibration = recorder.calibration()
    assert {layer: known.count for layer, known in calibration.items()} == dict.fromkeys(
        ["first.0", "first.2.0", "second.0", "second.2.0"], 2
    )
    assert calibration.under("second.")["0"].fingerprint == fingerprint(second[0].weight)


def test_two_models_under_the_same_names_are_refused() -> None:
    recorder = Recorder()
    for model in (mlp(0), mlp(1)):
        with recorder.watch(model):
            model(torch.randn(2, 16))
    with pytest.raises(QuantError, match=r"2 layers were recorded with more than one weight \(0, 2\.0\).*prefix"):
        recorder.calibration()


def test_several_runs_add_up() -> None:
    model, recorder = mlp(), Recorder()
    for size in (2, 3):
        with recorder.watch(model):
            model(torch.randn(size, 16))
    assert recorder.calibration()["0"].count == 5


def test_nothing_recorded_is_an_error() -> None:
    recorder = Recorder()
    with recorder.watch(mlp()):
        pass
    with pytest.raises(QuantError, match="Nothing was recorded"):
        recorder.calibration()


def test_keyword_inputs_are_recorded() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(input=x)  # type: ignore[no-any-return]

    model, recorder = Named(), Recorder()
    with recorder.watch(model):
        model(torch.randn(7, 16))
    assert recorder.calibration()["proj"].count == 7


def test_inference_mode_records_the_same(tmp_path: Path) -> None:
    model, inputs = mlp(), torch.randn(6, 16)

    def inferring() -> None:
        with torch.inference_mode():
            model(inputs.clone())

    inferred, plain = recorded(model, inferring), recorded(model, lambda: model(inputs))
    assert inferred.digest == plain.digest
    assert not rows_of(inferred, "0").is_inference()
    assert not rows_of(plain, "0").requires_grad


@pytest.mark.parametrize("how", ["whole", "inside", "in place"])
def test_compiled_model_records_original_names(how: str) -> None:
    model, inputs = mlp(), torch.randn(6, 16)
    plain = recorded(model, lambda: model(inputs))
    compiled: nn.Module = model
    if how == "whole":
        compiled = torch.compile(model, backend="eager")
    elif how == "inside":
        model[2] = torch.compile(model[2], backend="eager")
    else:
        model.compile(backend="eager")
    compiled(inputs)
    recorder = Recorder()
    with recorder.watch(compiled):
        compiled(inputs)
    assert recorder.calibration().digest == plain.digest


class Failing(nn.Module):
    """Passes its input on, or raises once."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return x


ERRORS = [ValueError("broken"), torch.cuda.OutOfMemoryError("out of memory"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_failed_run_leaves_recorder_usable(error: BaseException) -> None:
    failing, recorder = Failing(), Recorder()
    model = Model(nn.Linear(16, 16), failing, nn.Linear(16, 16))
    failing.error = error
    with pytest.raises(type(error)) as raised, recorder.watch(model):
        model(torch.randn(2, 16))
    assert raised.value is error
    assert hooks(model) == 0
    with recorder.watch(model):
        model(torch.randn(3, 16))
    counts = {layer: known.count for layer, known in recorder.calibration().items()}
    assert counts == {"0": 5, "2": 3}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("module", "function"), [(torch, "rand"), (np, "concatenate")], ids=["rand", "concatenate"])
def test_failed_hook_leaves_sample_unchanged(
    error: BaseException, module: ModuleType, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Reservoir.add` draws keys, then joins them to those that it has; memory may end at either."""
    model, recorder, first = mlp(), Recorder(rows=4), torch.randn(6, 16)

    def fail(*_: object, **__: object) -> Tensor:
        raise error

    with recorder.watch(model):
        model(first)
    before = recorder.calibration()["0"]
    with monkeypatch.context() as patched, pytest.raises(type(error)), recorder.watch(model):
        patched.setattr(module, function, fail)
        model(torch.randn(6, 16))
    assert hooks(model) == 0
    after = recorder.calibration()["0"]
    assert (after.count, after.absmax) == (before.count, before.absmax)
    assert torch.equal(rows_of(recorder.calibration(), "0"), before.rows if before.rows is not None else first)
    with recorder.watch(model):
        model(first)
    assert recorder.calibration()["0"].count == 12
