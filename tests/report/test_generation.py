"""What a report says of the text that models write by themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic import SKILL, config, evaluation, report_of
from stages.common.files import read_jsonl, write_jsonl
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


def test_the_summary_says_that_the_last_model_repeats_itself(tmp_path: Path) -> None:
    summary = reported(tmp_path)["summary"]
    assert "The recovered model's greedy text repeats itself: 40\xa0% of its 4-grams, against 20\xa0% of" in summary
    summary = reported(tmp_path / "alone", recovered=None)["summary"]
    assert "The pruned model's greedy text repeats itself: 60\xa0% of its 4-grams, against 20\xa0% of" in summary


@pytest.mark.parametrize("others", [{"recovered": 0.2}, {"recovered": 0.1}, {"dense": None}, {"dense": 0.4}])
def test_nothing_is_said_where_the_last_model_does_not_clearly_repeat_more(
    others: dict[str, float | None], tmp_path: Path
) -> None:
    assert "repeats itself" not in reported(tmp_path, **others)["summary"]


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
