from __future__ import annotations

import pytest
from calibrated_rounding.kernels import selftest


def test_without_gpu_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(selftest.torch.cuda, "is_available", lambda: False)
    assert selftest.main() == 1
    assert capsys.readouterr() == ("", "Nothing was tested: PyTorch finds no CUDA device.\n")
