"""Beam search in batches, against `generate` on one prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from helpers.questions import reader
from helpers.tiny_tokenizer import byte_tokenizer
from stages.errors import UserError
from stages.inference.beam_search import beam_search
from stages.inference.scorer import Scorer

PROMPTS = ["the correct answer is", "question and", "Smørrebrød — ", "one, two, " * 9, "t", "the correct answer is"]
END = 0
"""Id of the end-of-text token."""


def ending_model(**options: Any) -> Any:
    """Return a tiny model that now and then writes end-of-text."""
    model = reader(tie_word_embeddings=False, **options)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.lm_head.weight[END] *= 3
    return model


def one_by_one(model: Any, prompts: list[str], *, beams: int, new_tokens: int) -> tuple[list[str], list[bool]]:
    """Return each continuation, and whether it came to an end by itself."""
    tokenizer = byte_tokenizer()
    settings = GenerationConfig(
        num_beams=beams, max_new_tokens=new_tokens, do_sample=False, eos_token_id=END, pad_token_id=END
    )
    texts, ended = [], []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt)])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        texts.append(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
        ended.append(END in written[0, ids.shape[1] :].tolist())
    return texts, ended


@pytest.mark.parametrize("beams", [1, 4])
def test_batches_write_what_each_prompt_gets_alone(beams: int) -> None:
    model = ending_model()
    done: list[int] = []
    wanted, ended = one_by_one(model, PROMPTS, beams=beams, new_tokens=12)
    assert {True, False} == set(ended)
    scorer = Scorer(model, byte_tokenizer(), batch_tokens=60 * beams)
    assert beam_search(scorer, PROMPTS, beams=beams, new_tokens=12, advance=done.append) == wanted
    assert sum(done) == len(PROMPTS)
    assert len(done) < len(PROMPTS)  # some went together


def test_the_checkpoints_own_generation_settings_have_no_say() -> None:
    model = ending_model()
    scorer = Scorer(model, byte_tokenizer())
    wanted = beam_search(scorer, PROMPTS[:2], beams=2, new_tokens=8)
    own = GenerationConfig(repetition_penalty=9.0, min_new_tokens=8, length_penalty=-4.0, do_sample=True)
    model.generation_config = own
    assert beam_search(scorer, PROMPTS[:2], beams=2, new_tokens=8) == wanted
    assert model.generation_config is own


def test_a_prompt_longer_than_the_context_is_cut_from_the_left() -> None:
    tokenizer = byte_tokenizer()
    scorer = Scorer(reader(max_position_embeddings=24), tokenizer)
    prompt = "question and answer, one and two, " * 3
    rest = tokenizer.decode(tokenizer.encode(prompt)[-16:])
    found = beam_search(scorer, [prompt, rest], beams=3, new_tokens=8)
    assert found[0] == found[1]
    assert [scorer.encoder.fits(text, room=8) for text in (prompt, rest)] == [False, True]


def test_a_context_without_room_for_the_new_tokens_is_an_error() -> None:
    scorer = Scorer(reader(max_position_embeddings=8), byte_tokenizer())
    with pytest.raises(UserError, match=r"8 new tokens.*reads 8"):
        beam_search(scorer, ["a"], beams=2, new_tokens=8)


def test_no_prompts_are_no_continuations() -> None:
    assert beam_search(Scorer(reader(), byte_tokenizer()), [], beams=2, new_tokens=8) == []
