"""lm-eval's tasks, built from rows on disk."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stages.errors import UserError
from stages.tasks.definitions import TASKS, documents, load_task
from tests.evaluate.questions import ROWS


def test_a_plan_reads_the_tasks_without_torch_or_lm_eval() -> None:
    code = "import sys, stages.tasks.definitions; sys.exit(bool({'torch', 'lm_eval', 'datasets'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_task_has_rows_to_test_it_on() -> None:
    assert ROWS.keys() == TASKS.keys()


@pytest.mark.parametrize(
    ("name", "first", "gold"),
    [
        ("boolq", ("Kiwi -- The kiwi is a bird of New Zealand.\nQuestion: is a kiwi a bird?\nAnswer:", " no"), 1),
        ("piqa", ("Question: Open a jar.\nAnswer:", " Turn the lid to the left."), 0),
        ("social_iqa", ("Q: Riley lent Lee a pen. How would Lee feel?\nA:", " angry"), 1),
        ("hellaswag", ("Roof shingle removal: A man is sitting on a roof. He", " starts pulling up roofing."), 0),
        ("winogrande", ("Ann asked Mary a question, but Ann", " did not answer."), 1),
        ("arc_easy", ("Question: What gives plants energy?\nAnswer:", " The Sun"), 0),
        ("arc_challenge", ("Question: Water boils at what temperature?\nAnswer:", " 0 °C"), 2),
        ("openbookqa", ("A person wants to save money, so they", " spend it"), 3),
    ],
)
def test_questions_are_asked_as_lm_eval_asks_them(name: str, first: tuple[str, str], gold: int) -> None:
    document = documents(load_task(name, ROWS[name]))[0]
    assert document.requests[0] == first
    assert document.gold == gold


def test_only_tasks_that_lm_eval_normalises_have_acc_norm() -> None:
    normalised = {name for name in TASKS if "acc_norm" in load_task(name, ROWS[name]).aggregation()}
    assert normalised == {"piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa"}


@pytest.mark.parametrize("name", TASKS)
def test_the_first_rows_are_the_first_documents(name: str) -> None:
    few, all_of_them = (documents(load_task(name, rows)) for rows in (ROWS[name][:1], ROWS[name]))
    assert len(few) == 1
    assert (few[0].requests, few[0].gold) == (all_of_them[0].requests, all_of_them[0].gold)


def test_lengths_are_bytes_of_what_is_scored() -> None:
    assert documents(load_task("arc_challenge", ROWS["arc_challenge"]))[0].lengths == [5, 6, 7, 7, 14]
    assert documents(load_task("winogrande", ROWS["winogrande"]))[2].lengths == [len("was quick.")] * 2


def test_a_misspelt_task_names_the_near_match() -> None:
    with pytest.raises(UserError, match="did you mean 'hellaswag'"):
        load_task("helaswag", [])


def test_a_task_without_rows_is_an_error() -> None:
    with pytest.raises(UserError, match="'piqa' has no documents"):
        load_task("piqa", [])


def test_an_answer_that_is_no_choice_is_an_error() -> None:
    rows = [ROWS["piqa"][0], ROWS["piqa"][1] | {"label": 2}]
    with pytest.raises(UserError, match="document 1 of task 'piqa': the answer 2"):
        documents(load_task("piqa", rows))
