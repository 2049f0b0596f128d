"""The benchmark of pruning, on a tiny model: what it says, never how fast anything is."""

from __future__ import annotations

import json

import pytest

from benchmarks.prune import main


def test_the_last_line_has_the_ratios_and_both_ways_give_the_same_scores(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "tiny", "--dtype", "float32", "--sequences", "2", "--length", "8", "--threads", "1", "--second"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for found in (result, result["param_second"]):
        assert found["max_score_difference"] < 1e-4
        seconds = {way: found[way]["seconds"] for way in ("ours", "stock")}
        assert found["time_ratio"] == pytest.approx(seconds["ours"] / seconds["stock"])
        weights = found["ours"]["weights"]
        assert weights == found["stock"]["weights"] == 4 * found["ours"]["parameters"]
        assert found["extra_memory_fraction"] == max(0, found["ours"]["peak"] - found["ours"]["activations"]) / weights
        assert found["stock_extra_memory_fraction"] > 0


def test_in_bfloat16_both_ways_are_as_near_to_float32(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "tiny", "--sequences", "2", "--length", "8", "--threads", "1", "--reference"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["max_score_difference"] < 1e-2
    assert result["error"]["ours"] < 1.5 * result["error"]["stock"] < 3e-2
