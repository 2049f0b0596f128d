"""The generation protocol, against plain transcriptions of what LLM-Adapters' script does."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.questions import ROWS, reader
from helpers.tiny_tokenizer import byte_tokenizer
from stages.common.files import read_jsonl
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.generation import PATTERNS, finished, judge_generation, parse, response
from stages.evaluate.metrics import unparsed
from stages.evaluate.plan import check_evaluation
from stages.inference.beam_search import beam_search
from stages.inference.scorer import Scorer
from stages.task_library.instructions import FORMATS, instruct, respond

GOLDEN = Path(__file__).parents[1] / "golden" / "llm_adapters"
THEIR_NAMES = {"arc_challenge": "ARC-Challenge", "arc_easy": "ARC-Easy", "social_iqa": "social_i_qa"}
FIVE = r"answer1|answer2|answer3|answer4|answer5"
THEIR_PATTERNS = {
    "boolq": r"true|false",
    "piqa": r"solution1|solution2",
    "social_iqa": FIVE,
    "arc_challenge": FIVE,
    "arc_easy": FIVE,
    "openbookqa": FIVE,
    "hellaswag": r"ending1|ending2|ending3|ending4",
    "winogrande": r"option1|option2",
}
PROMPT = """Below is an instruction that describes a task. Write a response that appropriately completes the request. \n
                ### Instruction:
                {instruction}

                ### Response:
                """


def theirs(task: str, continuation: str) -> str:
    """Return what their script makes of a continuation: decoded with its prompt, split, searched."""
    decoded = PROMPT.format(instruction="Choose.") + continuation
    found = re.findall(THEIR_PATTERNS[task], decoded.split("### Response:")[1].strip())
    return found[0] if found else ""


def echo(*continuations: str) -> Any:
    """Return a writer of the given continuations, which remembers its prompts."""

    def write(prompts: Any, advance: Any) -> list[str]:
        write.prompts = list(prompts)  # type: ignore[attr-defined]
        advance(len(prompts))
        return list(continuations)

    return write


def published() -> list[dict[str, Any]]:
    return [row for name in ("examples", "hellaswag") for row in read_jsonl(GOLDEN / f"{name}.jsonl")]


@pytest.mark.parametrize("row", published(), ids=lambda row: row["task"])
def test_the_parser_reads_the_published_outputs_as_their_script_does(row: dict[str, Any]) -> None:
    task = next((name for name, known in THEIR_NAMES.items() if known == row["task"]), row["task"])
    assert parse(task, response(row["output"])) == theirs(task, row["output"]) == row["answer"]


def test_every_task_with_a_format_has_a_pattern() -> None:
    assert set(PATTERNS) == set(FORMATS) == set(THEIR_PATTERNS)


ADVERSARIAL = {
    "boolq": ["untrue", "True", "FALSE, false", "it is not false but true", "", "tru e", "trfalse", "yes"],
    "piqa": ["solution10", "Solution1 or solution2", "solution 1", "solution3 solution2", "resolution2"],
    "social_iqa": ["answer0 answer6 answer5", "answer11", "the answer is answer", "ANSWER1", "answer\n1"],
    "hellaswag": ["ending5", "bending4.", "ending2ending1", "the ending"],
    "winogrande": ["option3", "adoption1", "option1/option2", "Option2"],
    "arc_easy": ["  answer4  ", "answer1 ### Response: answer2", "### Response: answer2", "\n### Response:\nanswer2"],
}


@pytest.mark.parametrize(("task", "text"), [(task, text) for task, texts in ADVERSARIAL.items() for text in texts])
def test_odd_outputs_are_read_as_their_script_reads_them(task: str, text: str) -> None:
    assert parse(task, response(text)) == theirs(task, text)


WORDS = re.findall(r"\S+", "answer ending option solution 1 2 5 6 tr ue true fal se s e T é ### Resp onse:")
PIECES = [*WORDS, "### Response:", "### Resp", " ", "\n"]


@given(task=st.sampled_from(sorted(PATTERNS)), pieces=st.lists(st.sampled_from(PIECES), max_size=32))
def test_stopping_early_never_changes_the_answer(task: str, pieces: list[str]) -> None:
    stop, whole = finished(task), "".join(pieces)
    written = ""
    for piece in pieces:
        if stop(written):
            break
        written += piece
    assert parse(task, response(written)) == parse(task, response(whole)) == theirs(task, whole)


@pytest.mark.parametrize(("text", "stops"), [("the answer", False), ("answer1", True), ("### Response:", True)])
def test_writing_stops_as_soon_as_the_answer_is_there(text: str, stops: bool) -> None:
    assert finished("arc_easy")(text) is stops


@pytest.mark.parametrize("task", sorted(FORMATS))
def test_documents_are_asked_in_their_words_and_judged_by_the_first_answer(task: str) -> None:
    rows = ROWS[task][:2]
    right, wrong = (instruct(task, row) for row in rows)
    other = next(answer for answer in wrong.answers if answer != wrong.answer)
    write = echo(f" {respond(right.answer)}, not {other}", respond(other))
    judged = judge_generation(write, task, rows, fits=lambda prompt: True)
    assert write.prompts == [PROMPT.format(instruction=question.instruction) for question in (right, wrong)]
    assert [row["acc"] for row in judged] == [1.0, 0.0]
    assert [row["answer"] for row in judged] == [right.answer, other]
    assert [row["gold"] for row in judged] == [right.answer, wrong.answer]
    assert judged[0]["output"] == f"{respond(right.answer)}, not {other}"
    assert [row["choices"] for row in judged] == [len(right.answers), len(wrong.answers)]
    assert unparsed(judged) == 0


def test_an_output_without_an_answer_is_wrong_and_counted() -> None:
    judged = judge_generation(echo("Yes.", "false"), "boolq", ROWS["boolq"][:2], fits=lambda prompt: True)
    assert [(row["answer"], row["acc"]) for row in judged] == [("", 0.0), ("false", 1.0)]
    assert unparsed(judged) == 0.5


def test_what_has_no_probability_is_null() -> None:
    (row,) = judge_generation(echo("true"), "boolq", ROWS["boolq"][:1], fits=lambda prompt: True)
    assert (row["acc_norm"], row["bits"], row["bytes"]) == (None, None, None)


def test_cut_prompts_are_counted_and_documents_keep_their_numbers() -> None:
    rows = ROWS["boolq"]
    judged = judge_generation(echo("true", "true"), "boolq", rows[1:3], fits=lambda prompt: "tea" in prompt, first=1)
    assert [(row["doc"], row["truncated"]) for row in judged] == [(1, False), (2, True)]


def test_a_model_writes_with_beams_and_is_judged() -> None:
    scorer = Scorer(reader(), byte_tokenizer())
    done: list[int] = []

    def write(prompts: Any, advance: Any) -> list[str]:
        return beam_search(scorer, prompts, beams=2, new_tokens=3, advance=advance)

    judged = judge_generation(
        write, "winogrande", ROWS["winogrande"], fits=partial(scorer.encoder.fits, room=3), advance=done.append
    )
    assert sum(done) == len(judged) == len(ROWS["winogrande"])
    assert all(row["output"] == row["output"].strip() for row in judged)


def test_another_task_is_an_error_that_names_the_eight_when_it_is_planned() -> None:
    check_evaluation(EvaluateConfig(protocol="likelihood", tasks=["piqa", "mmlu"]))
    check_evaluation(EvaluateConfig(protocol="generation", tasks=list(FORMATS)))
    with pytest.raises(UserError, match=r"evaluate=generation 'mmlu'.*boolq"):
        check_evaluation(EvaluateConfig(protocol="generation", tasks=["piqa", "mmlu"]))


def test_another_task_is_an_error_where_it_is_judged() -> None:
    with pytest.raises(UserError, match=r"mmlu.*boolq"):
        judge_generation(echo("a"), "mmlu", [{}], fits=lambda prompt: True)


def test_no_documents_are_an_error() -> None:
    with pytest.raises(UserError, match="no documents"):
        judge_generation(echo(), "boolq", [], fits=lambda prompt: True)
