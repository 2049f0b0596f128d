"""What a report says of protocols, references, tests and corpora."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic import FAIR, SKILL, config, cost, evaluation, everything, recovery, report_of
from stages.common.files import read_json, read_jsonl, write_json, write_jsonl
from stages.common.questions import ENOUGH
from stages.errors import UserError
from stages.report.stage import run
from stages.stage import Context


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All inputs, with a corpus, the recovered dense model and scores followed during the recovery."""
    root = tmp_path_factory.mktemp("inputs")
    fair = evaluation(root / "dense_recovered", **FAIR, windows=40)
    recover = recovery(root / "followed", followed=ENOUGH)
    return everything(root, windows=40) | {"dense_recovered": fair, "recover": recover}


@pytest.fixture(scope="module")
def fair(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report against the recovered dense model."""
    output = tmp_path_factory.mktemp("fair")
    run(config(reference="dense_recovered", trained_tasks=["piqa"]), inputs, Context(output=output))
    return output


def generated(directory: Path) -> dict[str, Path]:
    return {
        model: evaluation(directory / model, **skill, protocol="generation", passages=0)
        for model, skill in SKILL.items()
    }


def line(report: dict[str, Any], word: str) -> str:
    """Return the first line with `word` after the opening sentence."""
    return next(line for line in report["summary"].splitlines()[1:] if word in line)


def test_against_the_recovered_dense_model_the_shares_are_of_what_it_reaches(fair: Path) -> None:
    report = read_json(fair / "report.json")
    accuracy = {model: report["mean"][model]["acc"] for model in (*SKILL, "dense_recovered")}
    gap = accuracy["dense_recovered"] - accuracy["pruned"]
    assert report["recovery"]["retained"] == pytest.approx(accuracy["recovered"] / accuracy["dense_recovered"])
    assert report["recovery"]["recovered"] == pytest.approx((accuracy["recovered"] - accuracy["pruned"]) / gap)
    assert report["perplexity"]["log"]["recovered"]["value"] == pytest.approx((5.0 - 3.8) / (5.0 - 3.0))
    assert "of the way to the recovered dense model's 21.6" in line(report, "perplexity of Wikipedia")
    text = (fair / "report.md").read_text()
    assert "| dense | recovered dense | pruned | recovered | retained |" in text
    assert "how much of what this training gives an unpruned model does the pruned one reach?" in text
    assert "The reference had the same training" in report["caution"]


def test_what_a_models_card_takes_from_the_report_is_its_clear_sentences_its_table_and_the_protocol(fair: Path) -> None:
    report, results = read_json(fair / "report.json"), (fair / "results.md").read_text()
    assert results.startswith("## Results\n")
    for said in (
        *report["summary"].splitlines(),
        report["caution"],
        "held-out perplexity mean of narrative and news |",
        "Protocol likelihood",
    ):
        assert said in results
    assert "By task" not in results


def test_the_question_that_a_reference_answers_is_said(inputs: dict[str, Path], tmp_path: Path) -> None:
    given = {name: path for name, path in inputs.items() if name != "dense_recovered"}
    run(config(), given, Context(output=tmp_path))
    assert "how much of its score is back?" in (tmp_path / "report.md").read_text()
    run(config(reference="none"), given, Context(output=tmp_path))
    assert "these shares answer" not in (tmp_path / "report.md").read_text()


def test_every_score_has_its_standard_error_and_interval_and_chance_taken_off(fair: Path) -> None:
    report = read_json(fair / "report.json")
    for entry in (*report["tasks"].values(), report["mean"]):
        for model in SKILL:
            for key in ("acc", "above_chance", "bits_per_byte"):
                low, high = entry[model][f"{key}_interval"]
                assert low < entry[model][key] < high
                assert high - low == pytest.approx(2 * 1.96 * entry[model][f"{key}_stderr"], rel=0.25)
    task = report["tasks"]["arc_easy"]
    assert task["dense"]["above_chance"] == pytest.approx((task["dense"]["acc"] - 0.25) / 0.75)
    above = [report["tasks"][name]["dense"]["above_chance"] for name in report["tasks"]]
    assert report["mean"]["dense"]["above_chance"] == pytest.approx(sum(above) / len(above))


def test_mcnemar_counts_the_documents_of_a_task_and_of_all_tasks(inputs: dict[str, Path], fair: Path) -> None:
    report, pooled = read_json(fair / "report.json"), 0
    for name, task in report["tasks"].items():
        one, other = (
            [row["acc"] for row in read_jsonl(inputs[model] / "documents" / f"{name}.jsonl")]
            for model in ("recovered", "pruned")
        )
        gained = sum(a > b for a, b in zip(one, other, strict=True))
        pooled += gained
        assert task["accuracy"]["recovered_minus_pruned"]["mcnemar"]["only_one"] == gained
    assert report["mean"]["accuracy"]["recovered_minus_pruned"]["mcnemar"]["only_one"] == pooled
    assert "p < 0.001" in (fair / "report.md").read_text()


def test_an_accuracy_that_mcnemar_does_not_find_is_not_claimed(tmp_path: Path) -> None:
    """One task of 200 documents where pruning lost five and gained none: the bootstrap alone would claim it."""
    judged = {model: evaluation(tmp_path / model, accuracy=0.6, bits=1.0, nll=3.0) for model in ("dense", "pruned")}
    for model, path in judged.items():
        results = read_json(path / "results.json")
        results["tasks"] = {"piqa": results["tasks"]["piqa"]}
        write_json(path / "results.json", results)
        rows = list(read_jsonl(path / "documents" / "piqa.jsonl"))
        right = [row for row in rows if row["acc"]][:5]
        for row in right:
            row["acc"] = int(model == "dense")
        write_jsonl(path / "documents" / "piqa.jsonl", rows)
    report = report_of(tmp_path / "report", config(adapter="none"), judged)
    found = report["mean"]["accuracy"]["pruned_minus_dense"]
    assert found["interval"][1] < 0
    assert found["mcnemar"]["p"] == pytest.approx(1 / 16)
    assert not found["clear"]
    assert line(report, "clear").startswith("No difference is clear")


def test_a_clear_gap_to_the_dense_model_is_said_where_neither_step_alone_is_clear(tmp_path: Path) -> None:
    skills = {"dense": 0.60, "pruned": 0.585, "recovered": 0.57}
    judged = {
        model: evaluation(tmp_path / model, accuracy=accuracy, bits=1.0, nll=3.0, documents=100)
        for model, accuracy in skills.items()
    }
    report = report_of(tmp_path / "report", config(), judged)
    steps = [
        report["mean"]["accuracy"][f"{step}"]["clear"] for step in ("pruned_minus_dense", "recovered_minus_pruned")
    ]
    assert steps == [False, False]
    assert line(report, "recovered model").startswith("In mean accuracy the recovered model, at ")
    assert "is below the dense one" in line(report, "recovered model")


def test_generated_answers_have_accuracy_only_and_the_unread_ones_are_shown(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    given = {name: inputs[name] for name in ("cost", "prune", "recover")} | generated(tmp_path)
    report = report_of(tmp_path / "report", config(), given)
    assert report["mean"]["dense"]["bits_per_byte"] is None
    assert report["mean"]["chance"] is None
    assert report["mean"]["above_chance"] == {}
    assert report["tasks"]["piqa"]["pruned"]["unparsed"] == pytest.approx(0.3, abs=0.06)
    assert line(report, "accuracy").startswith("Pruning lowered mean accuracy of generated answers from")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Answers that could not be read" in text
    assert "at most 32 new tokens (greedy)" in text
    assert "one that no pattern reads counts as wrong" in text
    for absent in ("Bits per byte", "above chance", "acc_norm"):
        assert absent not in text


def test_protocols_are_never_compared(inputs: dict[str, Path], tmp_path: Path) -> None:
    mixed = inputs | {"pruned": generated(tmp_path)["pruned"]}
    with pytest.raises(UserError, match="not judged on the same protocol"):
        run(config(), mixed, Context(output=tmp_path / "report"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda results: results | {"num_fewshot": 5}, "num_fewshot"),
        (lambda results: json.loads(json.dumps(results).replace(f"{10:064x}", f"{77:064x}")), "rows"),
    ],
)
def test_models_judged_with_other_examples_or_rows_are_not_compared(tmp_path: Path, change: Any, said: str) -> None:
    judged = {model: evaluation(tmp_path / model, **skill, passages=0) for model, skill in SKILL.items()}
    path = judged["pruned"] / "results.json"
    write_json(path, change(read_json(path)))
    with pytest.raises(UserError, match=f"not judged on the same {said}"):
        run(config(), judged, Context(output=tmp_path / "report"))


def test_where_the_rows_came_from_is_shown(fair: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (fair / name).read_text()
        for said in ("tinyrows==1.0", "sha256 c0ffeec0ffee", f"{10:064x}"[:12], "200 of 1,000", "lm-eval 0.4.13"):
            assert said in text, (name, said)


def test_a_group_is_one_row_over_the_documents_of_all_its_tasks(tmp_path: Path) -> None:
    judged = {model: evaluation(tmp_path / model, **skill, passages=0) for model, skill in SKILL.items()}
    for path in judged.values():
        rows = [
            row | {"doc": f"{leaf}/{row['doc']}"}
            for leaf in ("boolq", "piqa")
            for row in read_jsonl(path / "documents" / f"{leaf}.jsonl")
        ]
        write_jsonl(path / "documents" / "mmlu.jsonl", rows)
        results = read_json(path / "results.json")
        leaves = {name: results["rows"][name]["leaves"][name] for name in ("boolq", "piqa")}
        leaves["piqa"]["source"] = {"repo": "a/b", "name": "c", "revision": "f" * 40}
        results["tasks"] = {"mmlu": results["tasks"]["boolq"] | {"label": "MMLU", "n": 400, "leaves": 2}}
        results["rows"] = {"mmlu": {"label": "MMLU", "kind": "lm-eval", "leaves": leaves}}
        write_json(path / "results.json", results)
    report = report_of(tmp_path / "report", config(), judged)
    assert report["mean"]["dense"]["acc"] == report["tasks"]["mmlu"]["dense"]["acc"] == pytest.approx(0.6225, abs=1e-9)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| MMLU | 2 data sets |  | validation | 2 files, see report.json | 400 of 2,000 |" in text
    assert "MMLU × 400" in text


def test_other_metrics_are_named_and_a_task_without_choices_stands_beside_the_others(tmp_path: Path) -> None:
    judged = {model: evaluation(tmp_path / model, **skill, passages=0) for model, skill in SKILL.items()}
    for path in judged.values():
        results = read_json(path / "results.json")
        results["tasks"]["piqa"] |= {"label": "A task by F1", "metric": "f1", "chance": None}
        write_json(path / "results.json", results)
        rows = list(read_jsonl(path / "documents" / "piqa.jsonl"))
        empty = {"bits": None, "bytes": None, "acc_norm": None}
        write_jsonl(path / "documents" / "piqa.jsonl", [row | empty | {"acc": row["acc"] * 0.7} for row in rows])
    report = report_of(tmp_path / "report", config(), judged)
    task, average = report["tasks"]["piqa"], report["mean"]
    assert task["accuracy"]["pruned_minus_dense"]["mcnemar"] is None
    assert task["accuracy"]["pruned_minus_dense"]["clear"], "the interval decides where there is no right and wrong"
    assert average["counts"] == {"acc": 3, "above_chance": 2, "acc_norm": 1, "bits_per_byte": 2}
    assert average["metric"] == "score"
    text = (tmp_path / "report" / "report.md").read_text()
    assert "A task by F1 f1" in text
    assert "a task without choices is scored by its own metric" in text
    assert "2 of 3 tasks" in text
    assert "mean score" in report["summary"]


def test_corpora_have_a_table_with_the_share_of_the_log_perplexity(fair: Path) -> None:
    (corpus,) = read_json(fair / "report.json")["corpora"]
    assert (corpus["corpus"], corpus["length"], corpus["windows"]) == ("wikitext2", 1024, 40)
    assert corpus["log"]["recovered"]["value"] == pytest.approx((5.0 - 3.8) / (5.0 - 3.0))
    low, high = corpus["intervals"]["pruned"]
    assert low < corpus["pruned"] < high
    assert "| wikitext2 | 1,024 | 40 |" in (fair / "report.md").read_text()


def test_windows_cut_by_another_tokenizer_are_shown_and_not_compared(tmp_path: Path) -> None:
    judged = {
        model: evaluation(tmp_path / model, **SKILL[model], windows=count)
        for model, count in (("dense", 30), ("pruned", 31))
    }
    report = report_of(tmp_path / "report", config(adapter="none"), judged)
    (corpus,) = report["corpora"]
    assert corpus["log"] == {}
    assert corpus["dense"] < corpus["pruned"]


def test_scores_followed_during_the_recovery_are_drawn_beside_the_loss(fair: Path) -> None:
    svg = (fair / "curve.svg").read_text()
    for label in ("loss (nats a token)", "bits per byte", "accuracy (%)"):
        assert label in svg
    assert "scores on the 20 of the held-out rows that are questions" in (fair / "report.md").read_text()


def test_scores_of_too_few_questions_are_not_drawn(inputs: dict[str, Path], tmp_path: Path) -> None:
    recover = recovery(tmp_path / "few", followed=ENOUGH - 1)
    report = report_of(tmp_path / "report", config(), inputs | {"recover": recover})
    svg = (tmp_path / "report" / "curve.svg").read_text()
    assert "loss (nats a token)" in svg
    assert "bits per byte" not in svg
    assert "accuracy" not in svg
    assert "that are questions" not in (tmp_path / "report" / "report.md").read_text()
    assert "curve_accuracy" in report["curve"][0], "what was measured stays in the JSON"


def test_a_cost_without_latencies_is_still_shown(inputs: dict[str, Path], tmp_path: Path) -> None:
    measured = read_json(cost(tmp_path / "cost") / "cost.json")
    for entry in measured["models"].values():
        del entry["latency"]
    write_json(tmp_path / "cost" / "cost.json", measured)
    report_of(tmp_path / "report", config(reference="dense_recovered"), inputs | {"cost": tmp_path / "cost"})
    assert "134,515,008" in (tmp_path / "report" / "report.md").read_text()


def test_what_the_cut_bought_is_said_and_a_cut_that_costs_time_is_warned_of(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    measured = read_json(cost(tmp_path / "cost") / "cost.json")
    measured["rounded"] = {"parameters": 67_400_000, "latency": measured["models"]["pruned"]["latency"]}
    slow = measured["models"]["recovered"]["latency"][0]
    slow |= {"decode_ratio": 1.2, "decode_ratio_range": [1.1, 1.3]}
    write_json(tmp_path / "cost" / "cost.json", measured)
    report_of(tmp_path / "report", config(), inputs | {"cost": tmp_path / "cost"})
    text = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
    bought = "has 0.50× the dense model's multiply-accumulates. Reading one prompt takes 0.50× [0.45, 0.55] the time"
    assert bought in text
    assert "With widths rounded to multiples of 64 (prune.round_to=64): reading one prompt takes" in text
    assert "slower than the dense one here: writing one prompt takes 1.20× the dense model's time. " in text
    assert "| pruned, widths rounded | 8 |" in text


def test_what_the_recovery_did_to_its_own_held_out_rows_is_in_the_report(tmp_path: Path) -> None:
    unjudged = {"recover": recovery(tmp_path / "better")}
    report = report_of(tmp_path, config(), unjudged)
    assert "Recovery took the loss on its own held-out rows from 5.000 to 3.500" in report["summary"]
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| validation \| 5\.000 \| 3\.500 \| 148\.4 \| 33\.1 \|", text)
    assert re.search(r"\| test \| – \| 3\.600 \| – \| 36\.6 \|", text)


def test_a_recovery_that_made_the_model_worse_says_so_and_names_the_remedy(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    worse = inputs | {"recover": recovery(tmp_path / "worse", start=4.29, end=33.98)}
    for given in (worse, {"recover": worse["recover"]}):
        warning = report_of(tmp_path, config(), given)["summary"].splitlines()[-1]
        assert "rose from 4.290 to 33.980 nats" in warning
        assert "recover.learning_rate" in warning
    assert "made the model worse" not in report_of(tmp_path, config(), inputs)["summary"]
