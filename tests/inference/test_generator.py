"""Our greedy continuations against `transformers`' own, one prompt at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from helpers.models import MODELS
from helpers.questions import reader
from helpers.tiny_tokenizer import byte_tokenizer
from stages.decoders.drawing import inverted
from stages.errors import UserError
from stages.inference.generator import ROWS, Generator, Sampling, Written
from stages.inference.scorer import Scorer

TEMPLATE = "Below is an instruction that describes a task.\n\n### Instruction:\n"
PROMPTS = [
    TEMPLATE + "Is a kiwi a bird?",
    TEMPLATE + "Is tea soup?",
    "Something else, and longer than the others: 東京 is the capital of Japan, naïve café.",
    "",
    "x",
    TEMPLATE + "Is a kiwi a bird?",
]


def stock(model: Any, prompt: str, new_tokens: int) -> str:
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]
    room = model.config.max_position_embeddings - new_tokens
    with torch.inference_mode():
        ids_1L = torch.tensor([ids[-room:]])
        output = model.generate(
            ids_1L, attention_mask=torch.ones_like(ids_1L), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
    return str(tokenizer.decode(output[0, ids_1L.shape[1] :], skip_special_tokens=True))


def written(model: Any, prompts: list[str], new_tokens: int = 12, **options: Any) -> list[str]:
    return Generator(Scorer(model, byte_tokenizer())).generate(prompts, new_tokens=new_tokens, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_it_writes_what_transformers_writes(kind: str) -> None:
    model = MODELS[kind]()
    assert written(model, PROMPTS) == [stock(model, prompt, 12) for prompt in PROMPTS]


def test_a_sequence_that_ends_leaves_the_others_as_they_were() -> None:
    model = reader()
    full = written(model, PROMPTS)
    stopped = written(model, PROMPTS, stop=lambda text: len(text) >= 3)
    for whole, part in zip(full, stopped, strict=True):
        assert whole.startswith(part)
        assert len(part) >= 3 or part == whole
    longest = max(range(len(full)), key=lambda index: len(full[index]))
    one_goes_on = written(model, PROMPTS, stop=lambda text: not full[longest].startswith(text))
    assert one_goes_on[longest] == full[longest]


def test_an_end_token_ends_and_is_not_written() -> None:
    model, tokenizer = reader(), byte_tokenizer()
    with torch.inference_mode():
        first = int(model(tokenizer("x", return_tensors="pt")["input_ids"]).logits[0, -1].argmax())
    assert written(model, ["x"], ends=frozenset([first])) == [""]


def test_a_long_prompt_is_cut_from_the_left() -> None:
    model = reader(max_position_embeddings=48)
    prompts = ["word " * 40 + "end", "short"]
    assert written(model, prompts, 8) == [stock(model, prompt, 8) for prompt in prompts]


def test_a_batch_of_any_size_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader()
    together = written(model, PROMPTS)
    monkeypatch.setitem(ROWS, "cpu", 2)
    assert written(model, PROMPTS) == together


def test_progress_counts_every_prompt() -> None:
    counted: list[int] = []
    written(reader(), PROMPTS, advance=counted.append)
    assert sum(counted) == len(PROMPTS)


def test_no_room_for_a_prompt_is_an_error() -> None:
    with pytest.raises(UserError, match="no room"):
        written(reader(max_position_embeddings=16), ["x"], 16)


def test_nothing_asked_nothing_written() -> None:
    assert written(reader(), []) == []


def tokens(model: Any, seeds: list[str], temperature: float, *, flat: bool = True, count: int = 8) -> list[Written]:
    generator = Generator(Scorer(model, byte_tokenizer(), flat=flat))
    contexts = [byte_tokenizer()(PROMPTS[2][:20])["input_ids"]] * len(seeds)
    return generator.continuations(contexts, new_tokens=count, sampling=Sampling(temperature, seeds))


def test_sampled_tokens_are_drawn_from_the_models_probabilities() -> None:
    model = reader()
    drawn = Counter(
        written.tokens[0] if written.tokens else written.end
        for written in tokens(model, list(map(str, range(3000))), 0.7, count=1)
    )
    with torch.inference_mode():
        ids = byte_tokenizer()(PROMPTS[2][:20], return_tensors="pt")["input_ids"]
        wanted_V = (model(ids).logits[0, -1].float() / 0.7).softmax(-1)
    found_V = torch.tensor([drawn[token] for token in range(len(wanted_V))]) / 3000
    # Five standard deviations of each share.
    assert ((found_V - wanted_V).abs() <= 5 * (wanted_V * (1 - wanted_V) / 3000).sqrt() + 1e-3).all()
    assert len(drawn) > 10


@pytest.mark.parametrize("vocabulary", [5, 128, 300, 1024])
def test_a_share_of_the_total_finds_the_token_that_all_sums_give(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    weight_BV = torch.rand(400, vocabulary, generator=generator)
    weight_BV *= torch.rand(400, vocabulary, generator=generator) < 0.3
    weight_BV[:, 3] += 0.1
    drawn_B = torch.rand(400, generator=generator, dtype=torch.float64)
    drawn_B[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    sums_BV = weight_BV.double().cumsum(-1)
    wanted_B = (sums_BV > drawn_B[:, None] * sums_BV[:, -1:]).int().argmax(-1)
    assert torch.equal(inverted(weight_BV, drawn_B), wanted_B)
    assert (weight_BV[torch.arange(400), inverted(weight_BV, drawn_B)] > 0).all()
    # A share that rounds up to the total gives the last token that has a weight.
    last_B = vocabulary - 1 - (weight_BV > 0).flip(-1).int().argmax(-1)
    assert torch.equal(inverted(weight_BV, torch.ones(400, dtype=torch.float64)), last_B)


@pytest.mark.parametrize("flat", [True, False])
def test_what_is_sampled_for_a_prompt_is_its_seeds_alone(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader()
    together = tokens(model, list("abca"), 1.0, flat=flat)
    assert together[0] == together[3]
    assert together[0] != together[1]
    monkeypatch.setitem(ROWS, "cpu", 1)
    assert tokens(model, list("abca"), 1.0, flat=flat) == together
    assert tokens(model, list("cab"), 1.0, flat=not flat) == [together[2], together[0], together[1]]


def test_at_a_low_temperature_the_likeliest_token_is_drawn() -> None:
    model = reader()
    generator = Generator(Scorer(model, byte_tokenizer()))
    contexts = [byte_tokenizer()(prompt)["input_ids"] for prompt in PROMPTS if prompt]
    cold = generator.continuations(contexts, new_tokens=12, sampling=Sampling(1e-4, list("abcde")))
    assert cold == generator.continuations(contexts, new_tokens=12)
