"""The evaluate stage as a whole: lm-eval's scores, resumable, with clear errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.checkpoint import load_model
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.stage import run
from stages.files import read_json, read_jsonl, write_jsonl
from stages.stage import Context
from stages.tasks.definitions import load_task
from stages.tasks.registry import TASKS
from tests.evaluate.questions import PASSAGES, ROWS, model_artifact, reader, stock, tasks_artifact


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("inputs")
    return {"model": model_artifact(directory / "model"), "tasks": tasks_artifact(directory / "tasks")}


def evaluated(inputs: dict[str, Path], output: Path, **options: Any) -> dict[str, Any]:
    config = EvaluateConfig(**{"tasks": list(ROWS), "limit": None, "passages": 2} | options)
    return run(config, inputs, Context(output=output))


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_scores_are_those_of_lm_eval_with_its_own_model_class(inputs: dict[str, Path], tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate

    evaluated(inputs, tmp_path)
    found = read_json(tmp_path / "results.json")["tasks"]
    tasks = {name: load_task(name, rows) for name, rows in ROWS.items()}
    wanted = evaluate(stock(reader()), {"tasks": tasks, "groups": {}, "group_map": {}}, log_samples=False)["results"]
    for name, task in found.items():
        assert task["label"] == TASKS[name].label
        assert task["n"] == len(ROWS[name])
        for metric in ("acc", "acc_norm"):
            expected = wanted[name].get(f"{metric},none")
            assert task[metric] == (None if expected is None else pytest.approx(expected)), (name, metric)
            if expected is not None:
                assert task[f"{metric}_stderr"] == pytest.approx(wanted[name][f"{metric}_stderr,none"])


def test_documents_hold_what_paired_statistics_need(inputs: dict[str, Path], tmp_path: Path) -> None:
    summary = evaluated(inputs, tmp_path)
    results = read_json(tmp_path / "results.json")
    for name, task in results["tasks"].items():
        rows = list(read_jsonl(tmp_path / "documents" / f"{name}.jsonl"))
        assert [row["doc"] for row in rows] == list(range(task["n"]))
        assert task["acc"] == pytest.approx(sum(row["acc"] for row in rows) / len(rows))
        bits = [-row["loglikelihoods"][row["gold"]] / math.log(2) for row in rows]
        assert [row["bits"] for row in rows] == pytest.approx(bits)
        assert task["bits_per_byte"] == pytest.approx(sum(bits) / sum(row["bytes"] for row in rows))
    assert results["mean"]["acc_norm_tasks"] == 6
    assert summary == {
        "mean": results["mean"],
        "perplexity": read_json(tmp_path / "perplexity.json")["perplexity"],
    }


def test_the_limit_takes_the_first_documents(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path / "all", tasks=["piqa"])
    evaluated(inputs, tmp_path / "two", tasks=["piqa"], limit=2)
    all_of_them, two = (list(read_jsonl(tmp_path / name / "documents" / "piqa.jsonl")) for name in ("all", "two"))
    assert [row["gold"] for row in two] == [row["gold"] for row in all_of_them[:2]]
    assert len(two) == 2


def test_a_killed_evaluation_goes_on_at_the_task_it_was_in(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path / "whole")
    evaluated(inputs, tmp_path / "killed")
    for name in ("results.json", "perplexity.json", "documents/openbookqa.jsonl"):
        (tmp_path / "killed" / name).unlink()
    half = tmp_path / "killed" / "documents" / "arc_challenge.jsonl"
    half.write_text(half.read_text()[:40])
    kept = tmp_path / "killed" / "documents" / "piqa.jsonl"
    before = kept.stat().st_mtime_ns
    evaluated(inputs, tmp_path / "killed")
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_what_is_done_needs_no_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path, tasks=["boolq"])
    (tmp_path / "results.json").unlink()
    evaluated(inputs | {"model": tmp_path / "gone"}, tmp_path, tasks=["boolq"])
    assert read_json(tmp_path / "results.json")["tasks"].keys() == {"boolq"}


def test_the_same_evaluation_writes_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "other"):
        evaluated(inputs, tmp_path / name, tasks=["winogrande", "arc_easy"])
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_perplexity_alone_can_be_taken_and_left_out(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path / "alone", tasks=[], passages=9)
    assert len(read_json(tmp_path / "alone" / "perplexity.json")["passages"]) == len(PASSAGES)
    evaluated(inputs, tmp_path / "without", tasks=["boolq"], passages=0)
    assert read_json(tmp_path / "without" / "perplexity.json")["perplexity"] is None


def test_results_say_how_they_were_taken(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path, tasks=["boolq"], limit=1)
    results = read_json(tmp_path / "results.json")
    assert (results["protocol"], results["examples"], results["limit"], results["dtype"]) == (
        "likelihood",
        0,
        1,
        "float32",
    )
    assert results["versions"]["lm-eval"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["pika"]}, "has no task 'pika', did you mean 'piqa'"),
        ({"limit": 0}, "evaluate.limit is 0"),
        ({"passages": -1}, "evaluate.passages is -1"),
        ({"batch_tokens": 0}, "evaluate.batch_tokens is 0"),
        ({"tasks": [], "passages": 0}, "nothing to evaluate"),
    ],
)
def test_options_that_make_no_sense_are_errors(
    options: dict[str, Any], message: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluated(inputs, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_task_without_rows_is_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    empty = tasks_artifact(tmp_path / "tasks", boolq=[])
    with pytest.raises(UserError, match="'boolq' has no documents"):
        evaluated(inputs | {"tasks": empty}, tmp_path / "output")


def test_missing_passages_are_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    tasks = tasks_artifact(tmp_path / "tasks")
    write_jsonl(tasks / "passages.jsonl", [])
    with pytest.raises(UserError, match=r"evaluate\.passages=0"):
        evaluated(inputs | {"tasks": tasks}, tmp_path / "output", tasks=["boolq"])


def test_a_model_that_overflows_is_an_error_and_no_score(inputs: dict[str, Path], tmp_path: Path) -> None:
    huge = model_artifact(tmp_path / "huge")
    model = load_model(huge / "model", dtype="float32")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    model.save_pretrained(huge / "model")
    with pytest.raises(UserError, match="not finite"):
        evaluated(inputs | {"model": huge}, tmp_path / "output", tasks=["boolq"])
    assert not (tmp_path / "output" / "results.json").exists()


def test_artifacts_are_plain_json(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path, tasks=["openbookqa"])
    for name, content in contents(tmp_path).items():
        values = content.decode().splitlines() if name.endswith(".jsonl") else [content.decode()]
        for value in values:
            json.loads(value, parse_constant=pytest.fail)
