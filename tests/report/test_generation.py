"""What a report says of the text that models write by themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic import SKILL, config, evaluation, report_of
from stages.common.files import read_json, read_jsonl, write_json, write_jsonl
from stages.errors import UserError

REPETITION = {"dense": 0.2, "pruned": 0.6, "recovered": 0.4}


def judged(directory: Path, **repetition: float | None) -> dict[str, Path]:
    """Write evaluations of models that repeat so much of what they write."""
    return {
        model: evaluation(directory / model, **SKILL[model], repetition=share)
        for model, share in (REPETITION | repetition).items()
        if share is not None
    }


def reported(directory: Path, **repetition: float | None) -> dict[str, Any]:
    return report_of(directory / "report", config(), judged(directory, **repetition))


def change(path: Path, **fields: Any) -> None:
    rows = [row | fields for row in read_jsonl(path / "continuations.jsonl")]
    write_jsonl(path / "continuations.jsonl", rows)


def test_each_model_has_its_repetition_and_its_agreement_with_the_dense_model(tmp_path: Path) -> None:
    found = reported(tmp_path)["generation"]
    assert (found["prompts"], found["new_tokens"]) == (16, 20)
    for model, share in REPETITION.items():
        own = found[model]
        assert own["repeated"] == pytest.approx(share, abs=0.02)
        low, high = own["repeated_interval"]
        assert low < own["repeated"] < high
    # The made-up models go wrong after 16, 8 and 12 of 20 tokens.
    assert "agreement" not in found["dense"]
    assert found["pruned"]["agreement"] == pytest.approx((8 + 4) / 20)
    assert found["recovered"]["agreement"] == pytest.approx((12 + 4) / 20)
    assert (found["pruned"]["in_common"], found["recovered"]["in_common"]) == (8, 12)
    assert found["agreement"]["recovered_minus_pruned"]["clear"]
    assert found["repeated"]["recovered"]["value"] == pytest.approx(0.5)


def test_the_page_shows_a_row_a_model_and_the_first_continuations_side_by_side(tmp_path: Path) -> None:
    reported(tmp_path)
    text, page = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "at most 20 tokens each" in text
    assert re.search(r"\| pruned \| 60\.\d\xa0% \[.*\] \| \+40\.0\* \[.*\] \| 100\xa0% \| 0\xa0% \| 20 \| 60\.0", text)
    assert text.count("Beginning ") == 3
    assert r"one \*text\* \| \<b\>0.6\</b\> ↵ and more" in text
    assert "one *text* | &lt;b&gt;0.6&lt;/b&gt; ↵ and more" in page
    assert "<b>" not in page


def opening(directory: Path, **repetition: float | None) -> str:
    """Return the first sentence, with spaces that break."""
    line: str = reported(directory, **repetition)["summary"].splitlines()[0]
    return line.replace("\u00a0", " ")


def test_the_first_sentence_says_that_the_last_model_repeats_itself(tmp_path: Path) -> None:
    said = opening(tmp_path)
    assert said.startswith("The recovered model is not as good as the dense one: its perplexity")
    assert said.endswith("; its greedy text repeats 20 points more of its 4-grams (40 % against 20 %).")
    said = opening(tmp_path / "alone", recovered=None)
    assert said.startswith("The pruned model is not as good as the dense one: its perplexity")
    assert said.endswith("; its greedy text repeats 40 points more of its 4-grams (60 % against 20 %).")


def test_a_recovery_that_clearly_raised_the_repetition_says_so_in_that_sentence(tmp_path: Path) -> None:
    said = opening(tmp_path, pruned=0.3)
    assert said.endswith("(40 % against 20 %); the recovery raised that repetition, which before it was 30 %.")


def test_less_repetition_is_a_respect_in_which_a_model_is_better(tmp_path: Path) -> None:
    said = opening(tmp_path, recovered=0.1)
    assert said.startswith("The recovered model is worse than the dense one in two respects and better in another: ")
    assert said.endswith("; its greedy text repeats 10 points fewer of its 4-grams (10 % against 20 %).")


@pytest.mark.parametrize("others", [{"recovered": 0.2}, {"dense": None}, {"dense": 0.4}])
def test_nothing_is_said_where_repetition_is_not_clearly_another(
    others: dict[str, float | None], tmp_path: Path
) -> None:
    assert "4-grams" not in reported(tmp_path, **others)["summary"]


@pytest.mark.parametrize("recovered", [0.4, 0.2])
def test_where_nothing_else_was_judged_repetition_alone_answers(recovered: float, tmp_path: Path) -> None:
    inputs = judged(tmp_path, recovered=recovered)
    for path in inputs.values():
        write_json(path / "results.json", read_json(path / "results.json") | {"tasks": {}})
        write_json(path / "perplexity.json", read_json(path / "perplexity.json") | {"texts": {}})
    said = report_of(tmp_path / "report", config(), inputs)["summary"].splitlines()[0]
    first = "The recovered model is not as good as the dense one: its greedy text repeats 20"
    assert said.startswith(first) == (recovered == 0.4)
    assert ":" not in said or recovered == 0.4


def test_evaluations_without_continuations_have_no_such_section(tmp_path: Path) -> None:
    inputs = {model: evaluation(tmp_path / model, **skill) for model, skill in SKILL.items()}
    assert report_of(tmp_path / "report", config(), inputs)["generation"] is None
    assert "What the models write" not in (tmp_path / "report" / "report.md").read_text()


def test_models_that_continued_other_prompts_are_not_compared(tmp_path: Path) -> None:
    inputs = judged(tmp_path)
    change(inputs["pruned"], prompt="another")
    with pytest.raises(UserError, match=r"not judged on the same prompts \(16 and 16\)"):
        report_of(tmp_path / "report", config(), inputs)
    some = inputs | {"pruned": evaluation(tmp_path / "silent", **SKILL["pruned"])}
    with pytest.raises(UserError, match="not judged on the same continuations"):
        report_of(tmp_path / "report", config(), some)


def test_another_tokenizers_tokens_are_not_compared_with_the_dense_models(tmp_path: Path) -> None:
    inputs = judged(tmp_path)
    change(inputs["pruned"], following=[1] * 20)
    found = report_of(tmp_path / "report", config(), inputs)["generation"]
    assert "agreement" not in found["pruned"]
    assert found["recovered"]["agreement"] == pytest.approx(0.8)
    assert found["repeated"]["pruned_minus_dense"]["clear"]
