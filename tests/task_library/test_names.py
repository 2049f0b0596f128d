"""Every task of lm-eval by name, against lm-eval's own index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks._index import TaskIndex

from stages.errors import UserError
from stages.task_library.names import build_index, definition, expand, leaves, remembered_index, resolve
from stages.task_library.registry import MMLU, RORA, SUITES, TASKS
from stages.task_library.yaml_definition import Function, lm_eval_tasks, read_definition


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_plan_reads_the_tasks_without_torch_or_lm_eval() -> None:
    heavy = "{'torch', 'lm_eval', 'datasets', 'numpy'}"
    modules = "stages.task_library.own, stages.task_library.definitions"
    code = f"import sys, {modules}; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "folder", ["super_glue", "mmlu/default", "leaderboard", "noreval/noridiom", "blimp", "squadv2"]
)
def test_the_index_is_lm_evals(folder: str) -> None:
    root = lm_eval_tasks() / folder
    theirs = {
        name: (
            {"TASK": "task", "PY_TASK": "class", "GROUP": "group", "TAG": "tag"}[entry.kind.name],
            entry.yaml_path and entry.yaml_path.relative_to(root).as_posix(),
            sorted(entry.tags) if entry.kind.name == "TAG" else None,
        )
        for name, entry in TaskIndex.build([root]).items()
    }
    ours = {name: (found["kind"], found.get("file"), found.get("members")) for name, found in build_index(root).items()}
    assert {name: (kind, file, tags if kind == "tag" else None) for name, (kind, file, tags) in ours.items()} == theirs
    assert ours


def test_the_index_is_remembered_and_a_damaged_memory_rebuilt(tmp_path: Path) -> None:
    folder, memory = tmp_path / "tasks", tmp_path / "cache" / "tasks.json"
    folder.mkdir()
    (folder / "a.yaml").write_text("task: a\ntag: [both]\n")
    first = remembered_index(folder, memory)
    assert first == {"a": {"kind": "task", "file": "a.yaml"}, "both": {"kind": "tag", "members": ["a"]}}
    (folder / "b.yaml").write_text("task: b")
    assert remembered_index(folder, memory) == first
    for damaged in ("{", "[]", '{"folder": "/elsewhere", "index": {}}'):
        memory.write_text(damaged)
        assert "b" in remembered_index(folder, memory)


def test_known_tasks_are_found_without_a_look_at_lm_evals_files(tmp_path: Path) -> None:
    assert resolve(["copa", "piqa", "mmlu", "boolq", "piqa"], tmp_path) == ["boolq", "piqa", "copa", "mmlu"]
    assert definition("piqa", tmp_path)["dataset_path"] == "baber/piqa"
    assert list(leaves("mmlu", tmp_path)) == list(MMLU)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TASKS)
def test_known_definitions_are_of_the_tasks_they_are_known_as(name: str) -> None:
    read = read_definition(lm_eval_tasks() / TASKS[name].definition)
    assert read["group" if TASKS[name].leaves else "task"] == name


def test_suites_are_the_papers() -> None:
    assert SUITES["rora"] == RORA
    assert set(RORA) - set(SUITES["llmpruner"]) == {"social_iqa"}
    assert resolve(["llmpruner", "rora"], Path()) == list(RORA)


def test_what_stands_beside_a_group_overrules_its_members(cache: Path) -> None:
    group = {
        "group": "mine",
        "num_fewshot": 2,
        "task": [
            "piqa",
            {"task": "copa", "num_fewshot": 0},
            {"task": "inline", "dataset_path": "json"},
            {"group": "inner", "task": ["boolq"], "description": "Hm."},
            "glue",
        ],
    }
    found = expand("mine", group, cache)
    assert list(found)[:4] == ["piqa", "copa", "mine::inline", "boolq"]
    assert [found[name]["num_fewshot"] for name in list(found)[:4]] == [2, 0, 2, 2]
    assert found["boolq"]["description"] == "Hm."
    assert {"sst2", "rte", "cola"} <= found.keys()  # glue is a tag
    assert found["rte"]["num_fewshot"] == 2


def test_other_names_are_lm_evals_and_come_last(cache: Path) -> None:
    assert resolve(["rte", "mmlu_stem", "boolq", "blimp"], cache) == ["boolq", "blimp", "mmlu_stem", "rte"]
    assert len(leaves("blimp", cache)) == 67
    assert leaves("mmlu_stem", cache).keys() < MMLU.keys()
    with pytest.raises(UserError, match="did you mean 'hellaswag'"):
        resolve(["helaswag"], cache)
    with pytest.raises(UserError, match="did you mean 'blimp_wh_island'"):
        resolve(["blimp_wh_iland"], cache)
    with pytest.raises(UserError, match="'glue' is a tag"):
        definition("glue", cache)


def test_what_a_definition_includes_is_in_it_and_its_functions_are_text(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.yaml").write_text("output_type: multiple_choice\nprocess_docs: !function utils.f\n")
    (tmp_path / "mine.yaml").write_text("include: base/base.yaml\ntask: mine\noutput_type: generate_until\n")
    assert read_definition(tmp_path / "mine.yaml") == {
        "output_type": "generate_until",
        "process_docs": Function("utils.f", tmp_path / "base"),
        "task": "mine",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: mine.yaml\n", "includes it in turn"),
        ("include: nowhere.yaml\n", r"nowhere\.yaml is missing"),
        ("- a\n", "must be a mapping"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_a_definition_that_can_not_be_read_is_one_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_definition(tmp_path / "mine.yaml")
