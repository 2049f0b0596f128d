"""Multiple-choice questions of the user's own: files of {"question", "choices", "answer"}, and their definition.

`.jsonl` has one such row a line, `.json` a list of them. `answer` is the right choice's index (from 0), its text or its
letter. Questions are asked as lm-eval asks ARC: each choice after "Question: …\\nAnswer:". No torch here, because a
plan reads these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.common.files import parse_json
from stages.errors import UserError
from stages.task_library.yaml_definition import Definition

Row = dict[str, Any]

SPLIT = "test"
FIELDS = ("question", "choices", "answer")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_definition(name: str) -> Definition:
    """Return lm-eval's definition of the task `name` on such rows. Examples are other rows of the same file."""
    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": SPLIT,
        "fewshot_split": SPLIT,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
    }


def read_questions(path: Path) -> list[Row]:
    """Return the rows of `path`, with `answer` as an index.

    Raises:
        UserError: the file can't be read, has no rows, or has a row that is no question. The message names the line.
    """
    rows = [_question(row, where) for where, row in _located(path)]
    if not rows:
        raise UserError(f"{path} has no questions.")
    return rows


def _located(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place in the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}).") from None
    if path.suffix == ".json":
        rows = parse_json(text, str(path))
        if not isinstance(rows, list):
            raise UserError(f"{path} must be a list of questions; one question a line goes into a .jsonl file.")
        yield from ((f"{path}, question {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", parse_json(line, f"{path}, line {number}")


def _question(row: Any, where: str) -> Row:
    if not isinstance(row, dict) or any(name not in row for name in FIELDS):
        held = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where}: a question has question, choices and answer; this one has {held or 'nothing'}.")
    question, choices = row["question"], row["choices"]
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: question must be text, and is {question!r}.")
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{where}: choices must be a list of at least two texts, and is {choices!r}.")
    wrong = [choice for choice in choices if not isinstance(choice, str) or not choice.strip()]
    if wrong:
        raise UserError(f"{where}: every choice must be text that is not empty, and one is {wrong[0]!r}.")
    if len(set(choices)) < len(choices):
        raise UserError(f"{where}: two choices are the same; neither could be the one right answer.")
    return {"question": question, "choices": choices, "answer": _index(row["answer"], choices, where)}


def _index(answer: Any, choices: list[str], where: str) -> int:
    """Return the index that `answer` means.

    Every reading counts. {"choices": ["B", "A"], "answer": "A"} is an error, because "A" is the first choice's letter
    and the second choice's text.
    """
    readings: set[int] = set()
    if type(answer) in (int, str):
        readings = {index for index, choice in enumerate(choices) if choice == str(answer)}
    if type(answer) is int and 0 <= answer < len(choices):
        readings.add(answer)
    if isinstance(answer, str) and answer.upper() in list(LETTERS[: len(choices)]):
        readings.add(LETTERS.index(answer.upper()))
    if len(readings) == 1:
        return readings.pop()
    problem = "may mean more than one of the choices" if readings else "is none of the choices"
    raise UserError(
        f"{where}: the answer {answer!r} {problem}. Give an index from 0 to {len(choices) - 1}, the choice's text "
        f"or a letter from A to {LETTERS[len(choices) - 1] if len(choices) <= len(LETTERS) else 'Z'}."
    )
