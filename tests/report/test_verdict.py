"""The first sentence of a report: whether the model is as good as the dense one, and how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic import config, evaluation, report_of
from stages.common.files import read_json, read_jsonl, write_json, write_jsonl

EQUAL = {"accuracy": 0.65, "bits": 1.0, "nll": 3.0}


def skill(**changes: float) -> dict[str, float]:
    return EQUAL | changes


def opening(directory: Path, models: dict[str, dict[str, Any]], **changes: Any) -> str:
    """Return the first sentence on models of the given skill, with spaces that break."""
    judged = {model: evaluation(directory / model, **given) for model, given in models.items()}
    report = report_of(directory / "report", config(**changes), judged)
    lines = report["summary"].splitlines()
    assert (directory / "report" / "report.md").read_text().count(lines[0]) == 1
    return str(lines[0]).replace("\u00a0", " ")


def test_a_model_that_lost_on_text_and_on_tasks_is_not_as_good_and_how_far_is_said(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5, accuracy=0.4), "recovered": skill(nll=3.6, accuracy=0.55)}
    said = opening(tmp_path, models)
    assert said.startswith(
        "The recovered model is not as good as the dense one: its perplexity on 2 kinds of text that nothing was "
        "fitted to is 1.82 times the dense model's (95 % interval 1.82 to 1.82); its mean accuracy on 3 tasks is "
    )
    assert said.endswith(" points lower (52.8 % against 62.8 %).")
    assert "recovery" not in said


def test_a_recovery_that_lowered_accuracy_or_raised_perplexity_says_so_in_that_sentence(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5, accuracy=0.55), "recovered": skill(nll=3.6, accuracy=0.4)}
    said = opening(tmp_path / "tasks", models)
    assert said.endswith("; the recovery lowered the accuracy, which before it was 52.8 %.")
    models = {"dense": skill(), "pruned": skill(nll=3.3), "recovered": skill(nll=3.6)}
    said = opening(tmp_path / "text", models)
    assert said.endswith("the recovery made the perplexity worse, which before it was 1.35 times the dense model's.")


def test_what_is_within_noise_is_called_that(tmp_path: Path) -> None:
    said = opening(tmp_path, dict.fromkeys(("dense", "pruned", "recovered"), skill()))
    assert said == (
        "No difference between the recovered and the dense model is clear at 95 %: its perplexity on 2 kinds of text "
        "that nothing was fitted to is 1.00 times the dense model's (95 % interval 1.00 to 1.00), which is within "
        "noise; its mean accuracy on 3 tasks is 62.8 % against 62.8 %, which is within noise."
    )


def test_one_that_is_better_and_one_that_is_both(tmp_path: Path) -> None:
    pruned = skill(nll=4.5, accuracy=0.4)
    better = {"dense": skill(), "pruned": pruned, "recovered": skill(nll=2.8, accuracy=0.8)}
    assert opening(tmp_path / "better", better).startswith("The recovered model is at least as good as the dense one: ")
    both = {"dense": skill(), "pruned": pruned, "recovered": skill(nll=3.4, accuracy=0.8)}
    said = opening(tmp_path / "both", both, trained_tasks=["piqa"])
    assert said.startswith("The recovered model is worse than the dense one in one respect and better in another: ")
    assert said.endswith("(77.3 % against 62.8 %, after training on the tasks' own train splits).")


def test_a_model_that_was_only_pruned_and_one_that_was_not_even_that(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5, accuracy=0.4)}
    said = opening(tmp_path / "pruned", models, adapter="none")
    assert said.startswith("The pruned model is not as good as the dense one: its perplexity on 2 kinds of text")
    same = opening(tmp_path / "same", dict.fromkeys(models, skill()), adapter="none", prune="none", ratio=0.0)
    assert same == "This is the dense model itself: nothing was pruned and nothing recovered."


def test_without_a_dense_model_and_without_anything_judged(tmp_path: Path) -> None:
    models = {"pruned": skill(nll=4.5), "recovered": skill(nll=3.6)}
    said = opening(tmp_path / "alone", models, reference="none")
    assert said == "How far the recovered model is from the dense one is not known: no dense model was judged."
    report = report_of(tmp_path / "nothing", config(), {})
    assert report["summary"].startswith("Nothing was evaluated")


def test_without_text_the_tasks_answer_and_without_tasks_the_text(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(), "recovered": skill(nll=3.6, accuracy=0.5)}
    said = opening(tmp_path / "tasks", {model: given | {"passages": 0} for model, given in models.items()})
    assert said.startswith("The recovered model is not as good as the dense one: its mean accuracy on 3 tasks is ")
    judged = {model: evaluation(tmp_path / "text" / model, **given) for model, given in models.items()}
    for path in judged.values():
        write_json(path / "results.json", read_json(path / "results.json") | {"tasks": {}})
    said = report_of(tmp_path / "report", config(), judged)["summary"].splitlines()[0]
    assert "accuracy" not in said
    assert said.startswith("The recovered model is not as good as the dense one: its perplexity")


def test_text_of_a_kind_that_was_read_is_not_in_the_mean_and_is_named_where_it_is_all_there_is(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5), "recovered": skill(nll=3.6)}
    judged = {model: evaluation(tmp_path / model, **given) for model, given in models.items()}
    read = {"calibration": ["wikipedia", "news"], "recovery": ["news"]}
    report = report_of(tmp_path / "report", config(resembles=read), judged)
    assert report["texts"]["mean"]["over"] == ["narrative"]
    assert report["texts"]["kinds"]["news"]["read_by"] == ["calibration", "recovery"]
    assert "on text of one kind (narrative) that nothing was fitted to is" in report["summary"].splitlines()[0]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "The calibration and the recovery read other text of the kind news" in text
    for path in judged.values():
        found = read_json(path / "perplexity.json")
        found["texts"] = {"wikipedia": found["texts"]["wikipedia"]}
        write_json(path / "perplexity.json", found)
    report = report_of(tmp_path / "report", config(resembles=read), judged)
    assert report["texts"]["mean"] is None
    said = "its perplexity on text of one kind (Wikipedia, whose like the calibration read) is 1.82 times"
    assert said in report["summary"].splitlines()[0]


def test_bits_per_byte_answer_where_tokens_are_counted_differently(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5), "recovered": skill(nll=3.6)}
    judged = {model: evaluation(tmp_path / model, **given) for model, given in models.items()}
    found = read_json(judged["dense"] / "perplexity.json")
    for text in found["texts"].values():
        for row in text["documents"]:
            row["tokens"] += 1
    write_json(judged["dense"] / "perplexity.json", found)
    said = report_of(tmp_path / "report", config(), judged)["summary"].splitlines()[0]
    assert ": on 2 kinds of text that nothing was fitted to it needs 1.284 " in said
    assert "bits a byte, the dense model 1.068;" in said


def test_few_documents_claim_nothing(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5), "recovered": skill(nll=3.6)}
    few = {model: given | {"passages": 4, "documents": 4} for model, given in models.items()}
    assert opening(tmp_path, few).startswith("No difference between the recovered and the dense model is clear")


def test_an_accuracy_whose_interval_holds_zero_is_no_harm(tmp_path: Path) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5, accuracy=0.5), "recovered": skill(nll=3.6, accuracy=0.5)}
    judged = {model: evaluation(tmp_path / model, **given) for model, given in models.items()}
    rows = list(read_jsonl(judged["recovered"] / "documents" / "piqa.jsonl"))
    for row in [row for row in rows if row["acc"]][:3]:
        row["acc"] = 0
    write_jsonl(judged["recovered"] / "documents" / "piqa.jsonl", rows)
    report = report_of(tmp_path / "report", config(), judged)
    assert report["mean"]["accuracy"]["recovered_minus_pruned"]["value"] < 0
    assert "the recovery lowered" not in report["summary"]


@pytest.mark.parametrize("model", ["dense", "pruned"])
def test_the_mean_is_a_geometric_one_and_its_interval_is_that_of_independent_kinds(tmp_path: Path, model: str) -> None:
    models = {"dense": skill(), "pruned": skill(nll=4.5), "recovered": skill(nll=3.6)}
    judged = {name: evaluation(tmp_path / name, **given) for name, given in models.items()}
    texts = report_of(tmp_path / "report", config(), judged)["texts"]
    kinds = [texts["kinds"][kind] for kind in texts["mean"]["over"]]
    product = kinds[0][model] * kinds[1][model]
    assert texts["mean"][model] == pytest.approx(product**0.5)
    widths = [entry["intervals"][model][1] / entry["intervals"][model][0] for entry in (*kinds, texts["mean"])]
    assert 1 < widths[2] < max(widths[:2])
