from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import eager, ops
from calibrated_rounding.quant.formats.rotation import rotate
from calibrated_rounding.tests.kernels.inputs import values


@pytest.mark.parametrize("group", [16, 64, 256])
def test_activations_are_rotated_as_weights_are(group: int) -> None:
    x = values(6, 512)
    for result, reference in (
        (eager.rotate(x, group), rotate(x, group)),
        (eager.rotate(eager.rotate(x, group), group), x),
    ):
        assert (result - reference).abs().max() < 1e-6 * x.abs().max()


def test_rotation_reduces_outlier_error() -> None:
    x = torch.ones(1, 256)
    x[0, 3] = 500.0
    rotated = eager.rotate(x, 256)
    cases = ((x, ops.act_quant(x, None)), (rotated, ops.rotate_quant(x, 256)))
    plain, spread = (float((codes * scale - wide).norm()) for wide, (codes, scale) in cases)
    assert spread < 0.2 * plain
