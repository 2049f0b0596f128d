"""The points of the curve, against each row and each choice run alone through the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from helpers.decoders import decoder
from helpers.tiny_tokenizer import VOCABULARY, byte_tokenizer
from helpers.toy import config, data_artifact, model_artifact, recovered
from stages.adapters.registry import ADAPTERS
from stages.common.files import read_json, read_jsonl
from stages.decoders.packed_attention import hidden_states, use_packed_attention
from stages.errors import UserError
from stages.recover.curve import Curve
from stages.recover.seeds import seeded
from stages.recover.stage import run
from stages.rows.packing import collate, encode
from stages.stage import JSON, Context

TOKENIZER = byte_tokenizer()
ROWS: list[JSON] = [
    {"prompt": "who barks? ", "response": "a dog", "task": "a", "choices": ["a cat", "a dog", "an owl"]},
    {"prompt": "say more. ", "response": "the correct answer is free", "task": "b"},
    {"prompt": "is it ", "response": "naïve", "task": "a", "choices": ["naïve", "true", "naïve"]},
    {"prompt": "which of the two is one? ", "response": "one", "task": "b", "choices": ["two", "one"]},
]


def adapted(family: str, **options: Any) -> PreTrainedModel:
    """Return a decoder as it is in the middle of a recovery: an adapter with dropout that changes what it computes."""
    model = decoder(family, vocab_size=VOCABULARY, **options)
    use_packed_attention(model)
    with seeded(0):
        ADAPTERS["lora"].attach(model, config({"name": "lora", "dropout": 0.5}).adapter)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def curve(model: PreTrainedModel, rows: list[JSON] = ROWS, **recover: Any) -> Curve:
    settings = config(**{"validation_tokens": 10_000} | recover)
    return Curve(model, TOKENIZER, rows, config=settings.recover, dtype="float32")


@torch.no_grad()
def nats(model: PreTrainedModel, prompt: str, response: str, end: list[int], *, whole: bool) -> tuple[float, int]:
    """Return the log-likelihood of a response, or of the whole row, run alone; and its number of tokens."""
    encoded = TOKENIZER(prompt + response, return_offsets_mapping=True)
    ids = encoded["input_ids"] + end
    # A token may hold the prompt's last blank and the response's first letter: it is the response's.
    first = 1 if whole else sum(stop <= len(prompt) for _, stop in encoded["offset_mapping"])
    logprobs = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logprobs[place - 1, ids[place]] for place in range(first, len(ids)))), len(ids) - first


@pytest.mark.parametrize(("family", "loss"), [("llama", "all"), ("mistral", "response")])
def test_a_point_is_what_each_row_and_each_choice_gives_alone(family: str, loss: str) -> None:
    model = adapted(family, **({"sliding_window": None} if family == "mistral" else {}))
    point = curve(model, loss=loss).point()

    end = [TOKENIZER.eos_token_id]
    rows = [nats(model, row["prompt"], row["response"], end, whole=loss == "all") for row in ROWS]
    assert point["validation_loss"] == pytest.approx(-sum(n for n, _ in rows) / sum(t for _, t in rows), rel=1e-5)
    assert point["validation_perplexity"] == pytest.approx(math.exp(point["validation_loss"]))
    right = bits = size = 0.0
    questions = [row for row in ROWS if "choices" in row]
    for row in questions:
        scores = {choice: nats(model, row["prompt"], choice, [], whole=False)[0] for choice in row["choices"]}
        right += max(scores, key=scores.__getitem__) == row["response"]
        bits -= scores[row["response"]] / math.log(2)
        size += len(row["response"].encode())
    assert point["curve_accuracy"] == right / len(questions)
    assert point["curve_bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)


def test_accuracy_goes_by_what_a_choice_says_not_by_where_it_stands() -> None:
    row = {"prompt": "? ", "response": "aa", "task": "", "choices": ["aa", "zzzzzzzz", "aa"]}
    assert curve(adapted("llama"), [row]).point()["curve_accuracy"] == 1


def test_measuring_leaves_random_numbers_gradients_and_packed_attention_as_they_were() -> None:
    model = adapted("llama")
    documents = encode(ROWS, TOKENIZER, length=64, label_prompts=True)
    measured = curve(model)

    def trained() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.train()
        model.zero_grad()
        hidden = hidden_states(model, collate(documents))
        hidden.square().sum().backward()
        return hidden.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with seeded(3):
        before = trained()
    with seeded(3):
        measured.point()
        after = trained()

    assert torch.equal(before[0], after[0])
    assert len(before[1]) == len(after[1]) > 0
    assert all(map(torch.equal, before[1], after[1]))


def test_how_often_the_curve_is_measured_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    short: dict[str, Any] = {"adapter": {"dropout": 0.2, "targets": ["down_proj"]}, "tokens": 1000}
    often, _ = recovered(tmp_path, config(**short, curve_every=1), name="often")
    seldom, _ = recovered(tmp_path, config(**short, curve_every=10**6), name="seldom")

    adapters = [output / "adapter" / "adapter_model.safetensors" for output in (often, seldom)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    histories = [list(read_jsonl(output / "history.jsonl")) for output in (often, seldom)]
    measured = [[point["step"] for point in history if "curve_accuracy" in point] for history in histories]
    assert measured == [[0, 1, 2, 3, 4], [0, 4]]


def test_the_same_rows_are_asked_whatever_the_seed(tmp_path: Path) -> None:
    # An adapter changes nothing before it is trained, so the first points measure the same model.
    first = []
    for seed in (0, 1):
        output, summary = recovered(tmp_path, config(tokens=100, seed=seed), name=str(seed))
        first.append(next(iter(read_jsonl(output / "history.jsonl"))))
        assert summary["validation"]["questions"] == summary["validation"]["rows"] < 14

    assert first[0] == first[1]


def test_rows_without_choices_have_a_loss_and_nothing_else(tmp_path: Path) -> None:
    inputs = {"model": model_artifact(tmp_path / "base"), "data": data_artifact(tmp_path / "data", choices=False)}
    run(config(tokens=300), inputs, Context(output=tmp_path))

    names = {name for line in (tmp_path / "history.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert names == {"step", "tokens", "loss", "learning_rate", "validation_loss", "validation_perplexity"}
    assert "final_accuracy" not in read_json(tmp_path / "recovery.json")["validation"]


def test_a_row_cut_to_the_sequence_length_is_still_asked() -> None:
    row = {"prompt": "long " * 40, "response": "one", "task": "", "choices": ["one", "two" * 30]}
    point = curve(adapted("llama"), [row], sequence_length=24).point()

    assert all(map(math.isfinite, point.values()))


def test_no_validation_rows_is_an_error() -> None:
    with pytest.raises(UserError, match=r"Set data\.validation_rows above 0"):
        curve(adapted("llama"), [])
