"""Disturbing layers one by one: what is changed, what is measured, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from calibrated_rounding.quant.calibration.sensitivity import LEVELS, Perturbation, measure_sensitivities, round_rows
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTHS = st.sampled_from([16, 20, 64, 320])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """Two layers in a row, a third beside them that counts ``share``, and one that never runs."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.beside, self.idle = (nn.Linear(32, 32) for _ in range(4))
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        made: Tensor = self.second(torch.tanh(self.first(inputs))) + self.share * self.beside(inputs)
        return made


def runner(model: Model, inputs: Tensor) -> Callable[[Perturbation | None], Tensor]:
    @torch.no_grad()
    def run(perturbation: Perturbation | None) -> Tensor:
        if perturbation is None:
            return model(inputs)
        with perturbation.apply(model):
            return model(inputs)

    return run


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("share", [0.01, 1.0, 30.0])
def test_unchanged_perturbation_gives_squared_share(share: float) -> None:
    found = measure_sensitivities(["beside"], runner(Model(share), drawn(5, 7, 32)))
    assert found["beside"] == pytest.approx(share**2 / 32, rel=1e-2)


def test_later_layers_change_sensitivity() -> None:
    model = Model()
    before = measure_sensitivities(["first"], runner(model, drawn(50, 32)))["first"]
    with torch.no_grad():
        model.second.weight.mul_(3)
    assert measure_sensitivities(["first"], runner(model, drawn(50, 32)))["first"] == pytest.approx(
        9 * before, rel=1e-3
    )


def test_idle_and_breaking_layers_are_omitted() -> None:
    model = Model()
    assert set(measure_sensitivities(["first", "idle"], runner(model, drawn(5, 32)))) == {"first"}
    assert measure_sensitivities(["first"], runner(model, torch.zeros(5, 32))) == {}
    run = runner(model, drawn(5, 32))
    assert (
        measure_sensitivities(["first"], lambda perturbation: run(perturbation) * (torch.nan if perturbation else 1))
        == {}
    )


def test_the_same_again_gives_the_same() -> None:
    run = runner(Model(), drawn(5, 32))
    assert measure_sensitivities(["first", "second"], run) == measure_sensitivities(["first", "second"], run)


@pytest.mark.parametrize("rows", [2, 6])
def test_equal_inputs_are_changed_alike_wherever_they_come(rows: int) -> None:
    model, inputs = Model(), drawn(1, 32).expand(rows, 32)
    perturbation = Perturbation("beside")
    with perturbation.apply(model), torch.no_grad():
        made = torch.cat([model(inputs), model(inputs)])
    assert torch.allclose(made, made[:1].expand_as(made), atol=1e-5)
    assert not torch.allclose(made[:rows], model(inputs), atol=1e-4)


def test_perturbation_has_requested_size() -> None:
    layer, inputs = nn.Sequential(nn.Linear(32, 8)), drawn(4, 6, 32)
    perturbation = Perturbation("0")
    with perturbation.apply(layer), torch.no_grad():
        change = layer(inputs)
    change = change - layer(inputs)
    assert perturbation.size == pytest.approx(float(change.detach().square().sum(-1).mean()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_measured_as_stored(dtype: torch.dtype) -> None:
    layer, inputs = nn.Sequential(nn.Linear(64, 16)).to(dtype), drawn(9, 64).to(dtype)
    perturbation = Perturbation("0")
    with perturbation.apply(layer), torch.no_grad():
        made = layer(inputs)
    assert made.dtype == dtype
    change = made.float() - layer(inputs).float()
    assert perturbation.size == pytest.approx(float(change.detach().square().sum(-1).mean()))


@pytest.mark.parametrize("raised", [ValueError("broken"), KeyboardInterrupt()])
def test_early_end_leaves_no_hook(raised: BaseException) -> None:
    model = Model()
    with pytest.raises(type(raised)), Perturbation("first").apply(model):
        assert hooks(model) == 1
        raise raised
    assert hooks(model) == 0


def test_a_compiled_model_is_disturbed_too() -> None:
    model, inputs = Model(), drawn(5, 32)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        wanted = compiled(inputs)
        with Perturbation("first").apply(model):
            assert not torch.equal(compiled(inputs), wanted)
        assert torch.equal(compiled(inputs), wanted)


@given(width=WIDTHS, seed=st.integers(0, 1000))
def test_rounding_keeps_a_row_within_half_a_level(width: int, seed: int) -> None:
    rows = drawn(3, width, seed=seed)
    error = (round_rows(rows) - rows).norm(dim=1)
    # A rotation keeps norms, and makes no value larger than the row's norm.
    assert bool((error <= rows.norm(dim=1) / LEVELS / 2 * width**0.5 + 1e-6).all())
    assert torch.equal(round_rows(torch.zeros(2, width)), torch.zeros(2, width))
