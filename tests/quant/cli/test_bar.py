"""Progress as a person sees it."""

from __future__ import annotations

import io
import sys

import pytest
from calibrated_rounding.quant import LayerReport, Progress
from calibrated_rounding.quant.cli.bar import progress_bar
from calibrated_rounding.quant.layer.layer_errors import ErrorPair, LayerErrors


def state(done: int) -> Progress:
    """Four layers of equal size, of which ``done`` are done."""
    last = None
    if done:
        last = LayerReport(
            name=f"l{done}",
            shape=(8, 8),
            format="int8_row",
            group=None,
            bytes_before=1,
            bytes_after=1,
            errors=LayerErrors(weight=ErrorPair(0.5, 0.5), output_w8a8=ErrorPair(0.0125, 0.02)),
            reason="",
        )
    return Progress(
        done=done,
        total=4,
        weights_done=10 * done,
        weights_total=40,
        next_layer=f"l{done + 1}" if done < 4 else None,
        last=last,
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_bar_shows_error_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar(quiet=False) as report:
        assert report is not None
        for done in range(3):
            report(state(done))
    frames = sys.stderr.getvalue().split("\r")
    final = next(frame for frame in reversed(frames) if "%" in frame)
    assert " 50% |" in final
    assert "2/4, l2 error 1.25%" in final
    assert " < 00:00" in final, "as much time is left as went by, which is less than a second"


def test_log_gets_ten_lines_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(quiet=False) as report:
        assert report is not None
        for done in range(1001):
            report(Progress(done=done, total=1000, weights_done=done, weights_total=1000, last=state(1).last))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("%")[0].strip() for line in lines] == [str(10 * i) for i in range(1, 11)]
    assert all("s left" in line and "l1 error 1.25%" in line for line in lines)


def test_quiet_is_no_callback(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(quiet=True) as report:
        assert report is None
