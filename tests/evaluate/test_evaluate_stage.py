"""The evaluate stage as a whole: lm-eval's scores, resumable, with clear errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.questions import PASSAGES, ROWS, model_artifact, reader, stock, tasks_artifact, write_texts
from stages.common.files import read_json, read_jsonl, write_json, write_jsonl
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.examination import BLOCK
from stages.evaluate.stage import run
from stages.stage import Context
from stages.task_library.definitions import leaf_folder, load, load_task
from stages.task_library.registry import TASKS
from stages.task_library.yaml_definition import write_definition


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("inputs")
    return {"model": model_artifact(directory / "model"), "tasks": tasks_artifact(directory / "tasks")}


def evaluated(inputs: dict[str, Path], output: Path, **options: Any) -> dict[str, Any]:
    defaults = {"tasks": list(ROWS), "limit": None, "texts": ["wikipedia", "news"], "passages": 2}
    return run(EvaluateConfig(**defaults | options), inputs, Context(output=output))


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


def test_scores_after_examples_are_those_of_lm_eval(inputs: dict[str, Path], tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate

    names = ["piqa", "arc_challenge", "commonsense_qa", "mmlu_anatomy"]
    evaluated(inputs, tmp_path, tasks=names, num_fewshot=1)
    found = {name: list(read_jsonl(tmp_path / "documents" / f"{name}.jsonl")) for name in names}
    tasks = {name: task for name in names for task in load(name, inputs["tasks"]).values()}
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=1)
        task.set_fewshot_seed(1234)
    wanted = evaluate(stock(reader()), {"tasks": tasks, "groups": {}, "group_map": {}})["samples"]
    for name in names:
        for row, sample in zip(found[name], sorted(wanted[name], key=lambda one: one["doc_id"]), strict=True):
            assert row["loglikelihoods"] == pytest.approx([answer[0] for answer in sample["filtered_resps"]], abs=1e-3)
            assert row["acc"] == sample["acc"]


def test_a_group_is_one_task_of_all_its_documents(inputs: dict[str, Path], tmp_path: Path) -> None:
    artifact = tasks_artifact(tmp_path / "tasks")
    record = read_json(artifact / "tasks.json")
    leaves = record["copa"]["leaves"] | record["mmlu_anatomy"]["leaves"]
    write_json(artifact / "tasks.json", record | {"both": {"label": "Both", "kind": "lm-eval", "leaves": leaves}})
    evaluated(inputs | {"tasks": artifact}, tmp_path / "output", tasks=["both", "copa"])
    rows = list(read_jsonl(tmp_path / "output" / "documents" / "both.jsonl"))
    assert [row["doc"] for row in rows] == ["copa/0", "copa/1", "mmlu_anatomy/0", "mmlu_anatomy/1"]
    found = read_json(tmp_path / "output" / "results.json")["tasks"]
    assert (found["both"]["n"], found["both"]["leaves"]) == (4, 2)
    assert found["both"]["chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["copa"]["acc"] == pytest.approx(sum(row["acc"] for row in rows[:2]) / 2)


def test_a_task_whose_answer_is_written_is_scored_by_its_own_metric(inputs: dict[str, Path], tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate

    artifact = own_artifact(tmp_path / "tasks")
    evaluated(inputs | {"tasks": artifact}, tmp_path / "output", tasks=["spelling"])
    found = read_json(tmp_path / "output" / "results.json")["tasks"]["spelling"]
    rows = list(read_jsonl(tmp_path / "output" / "documents" / "spelling.jsonl"))
    wanted = evaluate(stock(reader()), {"tasks": load("spelling", artifact), "groups": {}, "group_map": {}})
    assert found["metric"] == "exact_match"
    assert found["acc"] == pytest.approx(wanted["results"]["spelling"]["exact_match,none"])
    assert (found["chance"], found["bits_per_byte"], found["unparsed"]) == (None, None, None)
    samples = sorted(wanted["samples"]["spelling"], key=lambda one: one["doc_id"])
    assert [row["output"] for row in rows] == [sample["resps"][0][0] for sample in samples]


def own_artifact(directory: Path) -> Path:
    """A task of which lm-eval has no definition: write what comes next, up to a letter, and compare exactly."""
    definition = {
        "task": "spelling",
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Spell {{word}}:",
        "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 9, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    write_definition(definition, leaf_folder(directory, "spelling"))
    write_jsonl(leaf_folder(directory, "spelling") / "test.jsonl", [{"word": "kiwi"}, {"word": "tea"}, {"word": ""}])
    leaf = {"split": "test", "rows": 3, "fewshot_split": None, "fewshot_rows": None}
    write_json(
        directory / "tasks.json", {"spelling": {"label": "Spelling", "kind": "yaml", "leaves": {"spelling": leaf}}}
    )
    write_texts(directory)
    return directory


def test_answers_are_written_and_read_as_the_generation_protocol_says(inputs: dict[str, Path], tmp_path: Path) -> None:
    names = ["boolq", "arc_easy"]
    evaluated(inputs, tmp_path / "greedy", protocol="generation", tasks=names, new_tokens=6)
    evaluated(inputs, tmp_path / "beams", protocol="generation", tasks=names, new_tokens=6, beams=2)
    for beams, output in ((1, tmp_path / "greedy"), (2, tmp_path / "beams")):
        results = read_json(output / "results.json")
        assert (results["protocol"], results["beams"], results["new_tokens"]) == ("generation", beams, 6)
        for name in names:
            rows = list(read_jsonl(output / "documents" / f"{name}.jsonl"))
            assert [row["acc"] for row in rows] == [float(row["answer"] == row["gold"]) for row in rows]
            assert results["tasks"][name]["unparsed"] == sum(not row["answer"] for row in rows) / len(rows)
            assert results["tasks"][name]["bits_per_byte"] is None


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
    texts = read_json(tmp_path / "perplexity.json")["texts"]
    perplexity = {"wikipedia": texts["wikipedia"]["perplexity"], "news": texts["news"]["perplexity"]}
    assert summary == {"mean": results["mean"], "perplexity": perplexity}


def test_the_limit_takes_the_first_documents(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path / "all", tasks=["piqa"])
    evaluated(inputs, tmp_path / "two", tasks=["piqa"], limit=2)
    all_of_them, two = (list(read_jsonl(tmp_path / name / "documents" / "piqa.jsonl")) for name in ("all", "two"))
    assert [row["gold"] for row in two] == [row["gold"] for row in all_of_them[:2]]
    assert len(two) == 2


@pytest.mark.parametrize("protocol", ["likelihood", "generation"])
def test_a_killed_evaluation_goes_on_at_the_document_it_was_at(
    protocol: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    options = {"protocol": protocol, "tasks": ["boolq", "piqa", "winogrande", "openbookqa"], "new_tokens": 4}
    evaluated(inputs, tmp_path / "whole", **options)
    evaluated(inputs, tmp_path / "killed", **options)
    for name in ("results.json", "perplexity.json", "documents/openbookqa.jsonl"):
        (tmp_path / "killed" / name).unlink()
    cut = tmp_path / "killed" / "documents" / "winogrande.jsonl"
    first = cut.read_text().splitlines(keepends=True)[0].replace('"acc"', '"kept": true, "acc"')
    cut.with_name("winogrande.jsonl.unfinished").write_text(first + '{"doc": 1, "go')
    cut.unlink()
    kept = tmp_path / "killed" / "documents" / "piqa.jsonl"
    before = kept.stat().st_mtime_ns
    evaluated(inputs, tmp_path / "killed", **options)
    assert kept.stat().st_mtime_ns == before
    assert cut.read_text().startswith(first)
    cut.write_text(cut.read_text().replace('"kept": true, ', ""))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("protocol", ["likelihood", "generation"])
def test_wherever_a_kill_tore_a_long_task_the_rest_is_judged_in_the_same_passes(
    protocol: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{**row, "goal": f"{row['goal']} {number}"} for number, row in enumerate(ROWS["piqa"] * 40)]
    asked = inputs | {"tasks": tasks_artifact(tmp_path / "tasks", piqa=rows)}
    options = {"protocol": protocol, "tasks": ["piqa"], "new_tokens": 2}
    evaluated(asked, tmp_path / "whole", **options)
    judged = (tmp_path / "whole" / "documents" / "piqa.jsonl").read_text().splitlines(keepends=True)
    assert BLOCK + 1 < len(judged) < 2 * BLOCK  # a whole block and a shorter one
    for kept in (1, BLOCK - 1, BLOCK, BLOCK + 1):
        killed = tmp_path / f"killed after {kept}"
        evaluated(asked, killed, tasks=[])
        (killed / "results.json").unlink()
        (killed / "documents").mkdir()
        (killed / "documents" / "piqa.jsonl.unfinished").write_text("".join(judged[:kept]))
        evaluated(asked, killed, **options)
        assert contents(killed) == contents(tmp_path / "whole"), kept


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
    texts = read_json(tmp_path / "alone" / "perplexity.json")["texts"]
    assert len(texts["wikipedia"]["documents"]) == len(PASSAGES)
    evaluated(inputs, tmp_path / "without", tasks=["boolq"], passages=0)
    assert read_json(tmp_path / "without" / "perplexity.json") == {"texts": {}, "mean": None, "corpora": {}}


def test_results_say_how_they_were_taken(inputs: dict[str, Path], tmp_path: Path) -> None:
    evaluated(inputs, tmp_path, tasks=["boolq"], limit=1)
    results = read_json(tmp_path / "results.json")
    assert [results[key] for key in ("protocol", "num_fewshot", "limit", "dtype")] == ["likelihood", 0, 1, "float32"]
    assert results["versions"]["lm-eval"]
    assert results["rows"]["boolq"]["leaves"]["boolq"]["rows"] == len(ROWS["boolq"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["pika"]}, "has no task 'pika', did you mean 'piqa'"),
        ({"limit": 0}, "evaluate.limit must be at least 1"),
        ({"passages": -1}, "evaluate.passages must be at least 0"),
        ({"batch_tokens": 0}, "evaluate.batch_tokens must be at least 1"),
        ({"generation_prompts": -1}, "evaluate.generation_prompts must be at least 0"),
        ({"generation_tokens": 0}, "evaluate.generation_tokens must be at least 1"),
        ({"tasks": [], "passages": 0, "generation_prompts": 0}, "nothing to evaluate"),
        ({"tasks": [], "texts": [], "generation_prompts": 0}, "nothing to evaluate"),
        ({"texts": ["new"]}, "unknown kind of text.*'new', did you mean 'news'"),
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
