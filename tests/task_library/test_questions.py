"""Tasks of the user's own: files of questions, and definitions in lm-eval's form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.errors import UserError
from stages.task_library.own import is_path, local_files, own_digest, own_leaves
from stages.task_library.questions import read_questions

GOOD = {"question": "2+2?", "choices": ["3", "four"], "answer": "four"}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("answer", "index"), [(1, 1), ("four", 1), ("B", 1), ("b", 1), ("A", 0), (0, 0), ("3", 0)])
def test_an_answer_is_an_index_a_text_or_a_letter(answer: Any, index: int, tmp_path: Path) -> None:
    [row] = read_questions(jsonl(tmp_path / "quiz.jsonl", GOOD | {"answer": answer, "more": 1}))
    assert row == {"question": "2+2?", "choices": ["3", "four"], "answer": index}


def test_a_list_and_lines_are_the_same_questions(tmp_path: Path) -> None:
    (tmp_path / "quiz.json").write_text(json.dumps([GOOD, GOOD]))
    (tmp_path / "quiz.jsonl").write_text(f"\ufeff{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}", encoding="utf-8")
    assert read_questions(tmp_path / "quiz.json") == read_questions(tmp_path / "quiz.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "2+2?", "choices": ["3", "4"]}, "this one has question, choices"),
        ([1], "this one has list"),
        (GOOD | {"question": " "}, "question must be text"),
        (GOOD | {"question": 4}, "question must be text, and is 4"),
        (GOOD | {"choices": []}, "at least two"),
        (GOOD | {"choices": ["four"]}, "at least two"),
        (GOOD | {"choices": "AB"}, "at least two"),
        (GOOD | {"choices": ["four", ""]}, "not empty, and one is ''"),
        (GOOD | {"choices": ["four", 4]}, "one is 4"),
        (GOOD | {"choices": ["four", "four"]}, "are the same"),
        (GOOD | {"answer": 2}, "2 is none of the choices. Give an index from 0 to 1"),
        (GOOD | {"answer": -1}, "none of the choices"),
        (GOOD | {"answer": "C"}, "none of the choices"),
        (GOOD | {"answer": ""}, "none of the choices"),
        (GOOD | {"answer": True}, "none of the choices"),
        (GOOD | {"answer": 1.0}, "none of the choices"),
        (GOOD | {"answer": None}, "none of the choices"),
        (GOOD | {"choices": ["B", "A"], "answer": "A"}, "may mean more than one"),
        (GOOD | {"choices": ["1", "2"], "answer": 1}, "may mean more than one"),
    ],
)
def test_a_row_that_is_no_question_is_named_with_its_line(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"quiz\.jsonl, line 2: .*{message}"):
        read_questions(jsonl(tmp_path / "quiz.jsonl", GOOD, row))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no questions"),
        (b"\n\n", "has no questions"),
        (b'{"question": "\xff"}\n', "not UTF-8"),
        (b'{"question"\n', "line 1 is not JSON"),
    ],
)
def test_a_file_that_is_no_file_of_questions_is_one_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / "quiz.jsonl")


def test_a_file_that_is_no_list_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "quiz.json").write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match=r"must be a list.*\.jsonl"):
        read_questions(tmp_path / "quiz.json")
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read_questions(tmp_path)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Return a definition with rows, code and an included file of its own."""
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    jsonl(folder / "data" / "rows.jsonl", {"q": "Up?"}, {"q": "Down?"})
    (folder / "base.yaml").write_text("output_type: multiple_choice\ndoc_to_choice: ['yes', 'no']\n")
    (folder / "utils.py").write_text("def text(row):\n    return 'Is it ' + row['q']\n")
    (folder / "mine.yaml").write_text(
        "task: mine\ninclude: base.yaml\ndataset_path: json\ndataset_kwargs: {data_files: {test: data/rows.jsonl}}\n"
        "test_split: test\ndoc_to_text: !function utils.text\ndoc_to_target: 0\n"
    )
    return folder / "mine.yaml"


def test_what_decides_a_definition_is_in_its_digest_and_where_it_lies_is_not(mine: Path, tmp_path: Path) -> None:
    digest = own_digest("mine", mine, tmp_path)
    moved = shutil.move(mine.parent, tmp_path / "moved") / mine.name
    assert own_digest("mine", moved, tmp_path) == digest
    for name in ("base.yaml", "utils.py", "data/rows.jsonl", "mine.yaml"):
        before = (moved.parent / name).read_text()
        (moved.parent / name).write_text(before + "\n")
        assert own_digest("mine", moved, tmp_path) != digest, name
        (moved.parent / name).write_text(before)
    assert own_digest("mine", moved, tmp_path) == digest


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("json", None, "names no files"),
        ("json", {"data_files": "nowhere.json"}, "no file 'nowhere.json'"),
        ("json", {"data_files": {"test": ["https://example.org/a.json"]}}, "is not a file of this machine"),
        ("/data/set", None, r"dataset_path is '/data/set'\. Name a data set of the hub"),
        (None, None, "dataset_path is ''"),
    ],
)
def test_rows_that_can_not_be_pinned_are_an_error(path: Any, arguments: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        local_files({"dataset_path": path, "dataset_kwargs": arguments}, tmp_path / "mine.yaml")
    assert local_files({"dataset_path": "owner/name"}, tmp_path / "mine.yaml") is None


def test_a_file_that_defines_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("dataset_path: json\n")
    with pytest.raises(UserError, match="defines nothing"):
        own_leaves("mine", tmp_path / "mine.yaml", tmp_path)


def test_files_are_told_from_names() -> None:
    assert all(map(is_path, ("quiz.jsonl", "a/b.json", "mine.yaml", "mine.yml")))
    assert not any(map(is_path, ("boolq", "arc_easy", "mmlu-pro", "v1.5")))
