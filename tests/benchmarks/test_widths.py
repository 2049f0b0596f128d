"""The benchmark of odd and even widths, at toy size."""

from __future__ import annotations

import pytest

from benchmarks.widths import main, measured


def test_every_width_is_measured_in_every_round() -> None:
    found = measured([7, 8], dtype="float32", tokens=4, hidden=16, rounds=3)
    assert {width: len(seconds) for width, seconds in found.items()} == {7: 3, 8: 3}


def test_a_line_has_precision_width_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--widths", "7", "8", "--tokens", "4", "--hidden", "16", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines] == [
        [dtype, "16", "x", width] for dtype in ("float32", "bfloat16") for width in ("7", "8")
    ]
    assert all("ms" in line and "[" in line for line in lines)
