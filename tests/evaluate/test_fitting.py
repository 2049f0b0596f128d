"""Evaluations that do not fit in memory. What runs out is the machine's real memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.hungry import MORE_THAN_THERE_IS, make_hungry
from helpers.questions import PASSAGES, reader
from helpers.tiny_tokenizer import byte_tokenizer
from stages.errors import UserError
from stages.evaluate.continuations import beginnings, continuation_rows
from stages.evaluate.fitting import with_fewer_tokens
from stages.evaluate.lm import FastLM
from stages.evaluate.perplexity import document_rows
from stages.inference.scorer import Scorer

TEXTS = [row | {"text": f"{number}. {row['text']}"} for number in range(8) for row in PASSAGES]


def judge(fits: int | None = None) -> FastLM:
    """Return a model that needs more memory than there is for a pass of more tokens than `fits`."""
    lm = FastLM(Scorer(reader(), byte_tokenizer(), batch_tokens=1024))
    if fits is not None:
        make_hungry(lm.scorer.model, fits)
    return lm


def test_scores_are_the_same_with_fewer_tokens_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    lm = judge(fits=300)
    expected = document_rows(judge().scorer, TEXTS, "news")
    for one, other in zip(document_rows(lm.scorer, TEXTS, "news"), expected, strict=True):
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-5)
        assert one["tokens"] == other["tokens"]
    said = [record.getMessage() for record in caplog.records]
    assert lm.scorer.batch_tokens == 256
    assert [message.rpartition(": ")[2] for message in said] == ["going on with 512.", "going on with 256."]
    assert "DefaultCPUAllocator" in said[0]
    # The next scores begin with what has fitted.
    document_rows(lm.scorer, TEXTS, "news")
    assert len(caplog.records) == 2


def test_answers_are_told_once_whatever_was_tried() -> None:
    scorer, told = judge().scorer, []

    def work(advance: Callable[[int], object]) -> str:
        advance(5)
        if scorer.batch_tokens > 600:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        advance(4)
        return "done"

    assert with_fewer_tokens(scorer, work, told.append) == "done"
    assert told == [5, -5, 5, 4]


def test_what_is_written_is_the_same_with_fewer_prompts_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    prompts = beginnings(TEXTS, len(TEXTS))
    lm = judge(fits=300)
    assert continuation_rows(lm, prompts, new_tokens=8) == continuation_rows(judge(), prompts, new_tokens=8)
    assert 1 <= (lm.in_parts.most or 0) < len(TEXTS)
    assert "prompts at a time do not fit in memory" in caplog.text


def test_too_little_memory_for_anything_is_an_error_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"even \d\d tokens at a time do not fit in memory .*evaluate.dtype=bfloat16"):
        document_rows(judge(fits=1).scorer, PASSAGES, "news")
    with pytest.raises(UserError, match=r"a single prompt does not fit in memory .*evaluate.dtype=bfloat16"):
        judge(fits=1).write([("A kiwi is a bird.", {"until": [], "max_gen_toks": 4})])
