"""The generation protocol: a model writes an answer, and a pattern reads it (LLM-Adapters, DoRA, RoRA).

`commonsense_evaluate.py` of LLM-Adapters (arXiv 2304.01933) and of DoRA (arXiv 2402.09353) fixes, to the character:

* the prompt (`stages.task_library.instructions.EVALUATION`), after the special tokens that the tokenizer itself puts
  first;
* 32 new tokens by a search with 4 beams. The scripts' temperature, top_p and top_k have no effect: nothing is sampled;
* the answer: the text between "### Response:" and the next "### Response:", if the model writes one;
* the task's pattern, whose first match is the answer, also inside a word, and in small letters only;
* that an answer without a match is wrong.

Two things differ here. The text after end-of-text is not read; their scripts, with the transformers of the time, wrote
on to 32 tokens. Padding is masked; their scripts attended to it, unless a batch held one prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from stages.common.choices import lookup
from stages.errors import UserError
from stages.stage import JSON
from stages.task_library.instructions import EVALUATION, Question, instruct

Write = Callable[[Sequence[str], Callable[[int], object]], list[str]]
"""Maps (prompts, advance) to continuations without special tokens. `advance` is told how many more are done."""

RESPONSE = "### Response:"
NUMBERED = re.compile("answer1|answer2|answer3|answer4|answer5")
PATTERNS = {
    "boolq": re.compile("true|false"),
    "piqa": re.compile("solution1|solution2"),
    "social_iqa": NUMBERED,
    "hellaswag": re.compile("ending1|ending2|ending3|ending4"),
    "winogrande": re.compile("option1|option2"),
    "arc_easy": NUMBERED,
    "arc_challenge": NUMBERED,
    "openbookqa": NUMBERED,
}
"""The pattern of an answer, by lm-eval's name of the task."""


def judge_generation(
    write: Write,
    task: str,
    rows: Sequence[JSON],
    *,
    fits: Callable[[str], bool],
    advance: Callable[[int], object] = int,
    first: int = 0,
) -> list[JSON]:
    """Return one row a document of `task`. `rows` are its documents from number `first` on.

    Keys: doc (its number), gold (the right answer's name), choices (how many answers the instruction offers), output
    (the text written), answer (what the pattern reads in it, "" for nothing), acc (1 or 0), truncated (whether the
    prompt was cut because it does not fit by `fits`). acc_norm, bits and bytes are null: nothing has a probability.

    Raises:
        UserError: the task has no instruction format, a document is not laid out as its data set's, or there is none.
    """
    if not rows:
        raise UserError(f"task '{task}' has no documents to evaluate. Rebuild the tasks artifact, or drop the task.")
    questions = [instruct(task, row) for row in rows]
    prompts = [EVALUATION.format(instruction=question.instruction) for question in questions]
    outputs = [response(text) for text in write(prompts, advance)]
    judged = zip(questions, prompts, outputs, strict=True)
    return [
        _row(task, number, question, output, truncated=not fits(prompt))
        for number, (question, prompt, output) in enumerate(judged, first)
    ]


def _row(task: str, number: int, question: Question, output: str, *, truncated: bool) -> JSON:
    answer = parse(task, output)
    return {
        "doc": number,
        "gold": question.answer,
        "choices": len(question.answers),
        "output": output,
        "answer": answer,
        "acc": float(answer == question.answer),
        "acc_norm": None,
        "bits": None,
        "bytes": None,
        "truncated": truncated,
    }


def response(continuation: str) -> str:
    """Return the answer's part of a continuation: up to another "### Response:", without outer blanks."""
    return continuation.split(RESPONSE)[0].strip()


def parse(task: str, output: str) -> str:
    """Return the answer that `output` gives; "" where it gives none."""
    match = lookup("task of the generation protocol", task, PATTERNS).search(output)
    return match[0] if match else ""


def finished(task: str) -> Callable[[str], bool]:
    """Return a function that says whether a continuation, as far as it is written, already decides its answer.

    No further text changes an answer that is there. No answer is part of another, so a later match starts later.
    """
    pattern = lookup("task of the generation protocol", task, PATTERNS)
    return lambda written: RESPONSE in written or pattern.search(written) is not None
