"""Perplexity of passages, against a plain loop and against lm-eval's rolling windows."""

from __future__ import annotations

import math

import pytest
import torch

from stages.errors import UserError
from stages.evaluate.perplexity import passage_rows, select, totals
from stages.scoring.scorer import Scorer
from tests.evaluate.questions import PASSAGES, reader, stock
from tests.tiny_tokenizer import byte_tokenizer


def test_perplexity_is_that_of_each_passage_read_alone() -> None:
    model, tokenizer = reader(), byte_tokenizer()
    total = count = 0.0
    for passage in PASSAGES:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer.encode(passage["text"])])
        with torch.inference_mode():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[place, ids[place + 1]]) for place in range(len(ids) - 1))
        count += len(ids) - 1
    found = totals(passage_rows(Scorer(model, tokenizer), PASSAGES))
    assert found["tokens"] == count
    assert found["nll"] == pytest.approx(total, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    size = sum(len(passage["text"].encode()) for passage in PASSAGES)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-6)


def test_a_passage_longer_than_the_model_reads_is_scored_as_lm_eval_rolls_over_it() -> None:
    from lm_eval.api.instance import Instance

    model = reader(max_position_embeddings=20)
    requests = [Instance("loglikelihood_rolling", {}, (passage["text"],), 0) for passage in PASSAGES]
    wanted = stock(model).loglikelihood_rolling(requests, disable_tqdm=True)
    rows = passage_rows(Scorer(model, byte_tokenizer()), PASSAGES)
    assert [-row["nll"] for row in rows] == pytest.approx(wanted, abs=1e-3)
    assert [row["tokens"] for row in rows] == [len(byte_tokenizer().encode(passage["text"])) for passage in PASSAGES]


def test_the_same_passages_are_taken_in_whatever_order_they_lie() -> None:
    chosen = select(PASSAGES, 2)
    assert chosen == select(reversed(PASSAGES), 2)
    assert select(PASSAGES, 1) == chosen[:1]
    assert len(select(PASSAGES, 99)) == len(PASSAGES)


def test_no_passages_have_no_perplexity() -> None:
    found = totals([])
    assert (found["perplexity"], found["bits_per_byte"], found["passages"]) == (None, None, [])


def test_passages_that_are_wanted_and_missing_are_an_error() -> None:
    with pytest.raises(UserError, match="no held-out passages"):
        select([], 3)


def test_a_hopeless_model_still_has_a_finite_perplexity() -> None:
    assert math.isfinite(totals([{"title": "", "nll": 1e9, "tokens": 3, "bytes": 9}])["perplexity"])
