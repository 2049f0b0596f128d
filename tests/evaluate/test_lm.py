"""Our model in lm-eval's own hands, beside its `HFLM`."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from helpers.questions import PASSAGES, reader, stock
from helpers.tiny_tokenizer import byte_tokenizer
from stages.errors import UserError
from stages.evaluate.lm import FastLM
from stages.inference.scorer import Scorer


def ours() -> FastLM:
    return FastLM(Scorer(reader(), byte_tokenizer()))


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


def test_log_likelihoods_are_those_of_hflm() -> None:
    requests = asked("loglikelihood", ("A kiwi is", " a bird"), ("A kiwi is", " tea"), ("", "Nothing before"))
    found, wanted = ours().loglikelihood(requests, disable_tqdm=True), stock(reader()).loglikelihood(requests)
    for (one, greedy), (other, other_greedy) in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
        assert greedy == other_greedy


def test_whole_texts_are_those_of_hflm() -> None:
    requests = asked("loglikelihood_rolling", *[(row["text"] * 9,) for row in PASSAGES])
    found = ours().loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(stock(reader()).loglikelihood_rolling(requests), abs=1e-2, rel=1e-5)


@pytest.mark.parametrize("until", [[], ["e"], ["a", "th"], ["<|end|>"]])
def test_what_is_written_is_what_hflm_writes(until: list[str]) -> None:
    options = {"until": until, "max_gen_toks": 16, "do_sample": False}
    contexts = ["A kiwi is", "Tea", "The capital of Japan", "Smørrebrød is buttered"]
    requests = asked("generate_until", *[(context, options) for context in contexts])
    found = ours().generate_until(requests, disable_tqdm=True)
    assert found == stock(reader()).generate_until(requests, disable_tqdm=True)


def test_requests_with_different_options_each_keep_theirs() -> None:
    short, long = ({"until": [], "max_gen_toks": count} for count in (2, 8))
    found = ours().generate_until(asked("generate_until", ("Tea", long), ("Tea", short), ("Tea", long)))
    assert found[0] == found[2]
    assert found[0].startswith(found[1])
    assert len(found[0]) > len(found[1])


@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 0.7}, {"num_beams": 4}])
def test_what_is_not_greedy_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="only greedy decoding"):
        ours().generate_until(asked("generate_until", ("Tea", options)))
