"""lm-eval's tasks, built from rows on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.questions import ROWS, tasks_artifact
from stages.common.files import read_json, write_json, write_jsonl
from stages.errors import UserError
from stages.task_library.definitions import documents, leaf_folder, load, load_task, metrics
from stages.task_library.yaml_definition import write_definition


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tasks_artifact(tmp_path_factory.mktemp("tasks"))


def made(directory: Path, definition: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write an artifact with one task, "made"."""
    definition = {"task": "made", "dataset_path": "json", "test_split": "test", **definition}
    write_definition(definition, leaf_folder(directory, "made"))
    write_jsonl(leaf_folder(directory, "made") / "test.jsonl", rows)
    leaf = {"split": "test", "rows": len(rows), "fewshot_split": None, "fewshot_rows": None}
    write_json(directory / "tasks.json", {"made": {"label": "made", "kind": "yaml", "leaves": {"made": leaf}}})
    return directory


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
        ("sciq", ("Plants take in carbon dioxide.\nQuestion: What do plants take in?\nAnswer:", " gold"), 3),
        ("copa", ("The man turned on the tap therefore", "  the toilet filled."), 1),
    ],
)
def test_questions_are_asked_as_lm_eval_asks_them(name: str, first: tuple[str, str], gold: int) -> None:
    document = documents(load_task(name, ROWS[name]))[0]
    assert document.requests[0] == first
    assert document.gold == gold


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shots", [0, 1])
def test_contexts_and_examples_are_lm_evals_own(name: str, shots: int, artifact: Path) -> None:
    ours = documents(load(name, artifact)[name], shots)
    theirs = load(name, artifact)[name]
    theirs.set_config("num_fewshot", shots)
    theirs.set_fewshot_seed(1234)
    theirs.build_all_requests()
    assert [request for document in ours for request in document.requests] == [i.args for i in theirs.instances]
    assert len(ours) == len(ROWS[name])


def test_asking_twice_draws_the_same_examples(artifact: Path) -> None:
    task = load("boolq", artifact)["boolq"]
    assert documents(task, 2) == documents(task, 2)
    assert documents(task, 2, limit=1) == documents(task, 2)[:1]


def test_only_tasks_that_lm_eval_normalises_have_acc_norm(artifact: Path) -> None:
    normalised = {name for name in ROWS if "acc_norm" in metrics(load(name, artifact)[name])}
    assert normalised == {"piqa", "hellaswag", "arc_easy", "arc_challenge", "openbookqa", "sciq"}


@pytest.mark.parametrize("name", ROWS)
def test_the_first_rows_are_the_first_documents(name: str, artifact: Path) -> None:
    few, whole = (documents(load(name, artifact, limit=limit)[name]) for limit in (1, None))
    assert len(few) == 1
    assert (few[0].requests, few[0].gold) == (whole[0].requests, whole[0].gold)


def test_a_group_is_loaded_task_by_task(artifact: Path, tmp_path: Path) -> None:
    names = ("mmlu_anatomy", "copa")
    record = read_json(artifact / "tasks.json")
    group = {"label": "Both", "kind": "lm-eval", "leaves": {name: record[name]["leaves"][name] for name in names}}
    (tmp_path / "tasks").symlink_to(artifact / "tasks")
    write_json(tmp_path / "tasks.json", {"both": group})
    assert [len(documents(task)) for task in load("both", tmp_path).values()] == [2, 2]


def test_lengths_are_bytes_of_what_is_scored() -> None:
    assert documents(load_task("arc_challenge", ROWS["arc_challenge"]))[0].lengths == [5, 6, 7, 7, 14]
    assert documents(load_task("winogrande", ROWS["winogrande"]))[2].lengths == [len("was quick.")] * 2


def test_processing_that_drops_documents_sees_every_row(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "utils.py").write_text("def even(rows):\n    return rows.filter(lambda row: row['answer'] % 2 == 0)\n")
    (code / "made.yaml").write_text("process_docs: !function utils.even")
    from stages.task_library.yaml_definition import read_definition

    asked = read_definition(code / "made.yaml") | {
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": ["a", "b", "c"],
        "doc_to_target": "answer",
    }
    artifact = made(tmp_path / "artifact", asked, [{"answer": index % 3} for index in range(6)])
    (code / "utils.py").unlink()  # the artifact has its own copy
    assert [document.gold for document in documents(load("made", artifact, limit=3)["made"], limit=3)] == [0, 2, 0]


def test_answers_may_be_generated_or_a_continuation(tmp_path: Path) -> None:
    generated = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
    rows = [{"q": "1+1=", "a": "2"}]
    task = load("made", made(tmp_path / "1", generated | {"generation_kwargs": {"until": ["."]}}, rows))["made"]
    [document] = documents(task)
    assert document.requests == [("1+1=", {"until": ["."]})]
    assert (document.gold, document.lengths) == (None, [])
    continued = generated | {"output_type": "loglikelihood", "doc_to_target": " {{a}}"}
    [document] = documents(load("made", made(tmp_path / "2", continued, rows))["made"])
    assert (document.requests, document.gold, document.lengths) == ([("1+1=", " 2")], 0, [1])


def test_several_right_answers_have_no_one_gold(tmp_path: Path) -> None:
    asked = {
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": "right",
    }
    artifact = made(tmp_path, asked, [{"right": [0, 1]}, {"right": [1]}])
    assert [document.gold for document in documents(load("made", artifact)["made"])] == [None, 1]


@pytest.mark.parametrize("shots", [0, None])
def test_a_tasks_own_number_of_examples(shots: int | None, tmp_path: Path) -> None:
    asked = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "output_type": "generate_until", "num_fewshot": 1}
    samples = {"fewshot_config": {"sampler": "first_n", "samples": [{"q": "2?", "a": "two"}]}}
    task = load("made", made(tmp_path, asked | samples, [{"q": "1?", "a": "one"}]))["made"]
    assert documents(task, shots)[0].requests[0][0] == ("1?" if shots == 0 else "2? two\n\n1?")


def test_a_misspelt_task_names_the_near_match(artifact: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'hellaswag'"):
        load("helaswag", artifact)


def test_a_task_without_rows_is_an_error() -> None:
    with pytest.raises(UserError, match="'piqa' has no documents"):
        load_task("piqa", [])


def test_an_answer_that_is_no_choice_is_an_error() -> None:
    rows = [ROWS["piqa"][0], ROWS["piqa"][1] | {"label": 2}]
    with pytest.raises(UserError, match="document 1 of task 'piqa': the answer 2"):
        documents(load_task("piqa", rows))


def test_an_empty_choice_is_an_error() -> None:
    rows = [ROWS["piqa"][0], ROWS["piqa"][1] | {"sol2": ""}]
    with pytest.raises(UserError, match="document 1 of task 'piqa' has an empty choice"):
        documents(load_task("piqa", rows))


def test_examples_that_are_not_there_are_an_error(artifact: Path) -> None:
    with pytest.raises(UserError, match=r"no rows to draw 2 examples from.*evaluate\.source=hub"):
        documents(load_task("piqa", ROWS["piqa"]), 2)
    with pytest.raises(UserError, match="has 3 rows to draw examples from"):
        documents(load("piqa", artifact)["piqa"], 4)


def test_a_definition_that_lm_eval_refuses_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lm-eval can't build the task 'made'.*no_such_field"):
        load("made", made(tmp_path / "1", {"no_such_field": 1}, [{"q": 1}]))
    missing = made(tmp_path / "2", {"process_docs": "x"}, [{"q": 1}])
    path = leaf_folder(missing, "made") / "definition.yaml"
    path.write_text(path.read_text().replace("process_docs: x", "process_docs: !function not_installed.f"))
    with pytest.raises(UserError, match="needs a package that is not installed"):
        load("made", missing)
