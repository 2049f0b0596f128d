from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.tiny_tokenizer import byte_tokenizer
from helpers.toy import config, recovered, resumed
from stages.adapters.registry import ADAPTERS
from stages.recover.config import RecoverConfig
from stages.recover.objectives.registry import OBJECTIVES
from stages.recover.schedules import learning_rate
from stages.recover.seeds import seeded
from stages.rows.packing import Batch, encode_whole
from stages.rows.stream import Stream

SCHEDULE = RecoverConfig(learning_rate=2.0, warmup=0.1, final=0.1)


@pytest.mark.parametrize(
    ("fraction", "rate"), [(0.05, 1.0), (0.1, 2.0), (0.55, 2 * (0.1 + 0.9 * 0.5)), (1.0, 0.2), (1.01, 0.2)]
)
def test_the_rate_rises_linearly_and_falls_along_a_cosine(fraction: float, rate: float) -> None:
    assert learning_rate(SCHEDULE, fraction) == pytest.approx(rate)
    assert learning_rate(replace(SCHEDULE, warmup=0.0), 0.0) == 2.0


@pytest.mark.parametrize(
    ("schedule", "fraction", "rate"),
    [
        ("linear", 0.05, 1.0),
        ("linear", 0.1, 2.0),
        ("linear", 0.4, 2 * (1 - 0.9 / 3)),
        ("linear", 1.01, 0.2),
        ("wsd", 0.05, 1.0),
        ("wsd", 0.1, 2.0),
        ("wsd", 0.6, 2.0),
        ("wsd", 0.7, 2 * (0.1 + 0.9 * (1 - 0.25**0.5))),
        ("wsd", 1.0, 0.2),
        ("wsd", 1.01, 0.2),
    ],
)
def test_a_linear_rate_falls_steadily_and_wsd_stays_at_the_peak_up_to_its_decay(
    schedule: str, fraction: float, rate: float
) -> None:
    assert learning_rate(replace(SCHEDULE, schedule=schedule, decay=0.4), fraction) == pytest.approx(rate)


@pytest.mark.parametrize("schedule", ["linear", "wsd"])
def test_a_resumed_recovery_goes_on_in_its_schedule(tmp_path: Path, schedule: str) -> None:
    settings = config(tokens=1300, schedule=schedule, decay=0.5)
    output, _ = recovered(tmp_path, settings)

    again = resumed(tmp_path, settings, stopped_at=3)
    for file in ("history.jsonl", "adapter/adapter_model.safetensors"):
        assert (output / file).read_bytes() == (again / file).read_bytes(), file
    points = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()][1:]
    assert [point["learning_rate"] for point in points] == [
        learning_rate(settings.recover, point["tokens"] / 1300) for point in points
    ]


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    curves = []
    for size in (32, 256):
        output, _ = recovered(tmp_path, config(tokens=1000, micro_batch_tokens=size), name=str(size))
        points = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
        curves.append([point["loss"] for point in points[1:]])

    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_step_that_ends_beyond_its_share_is_one_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sizes = OBJECTIVES["cross_entropy"], []

    def build(*arguments: Any) -> Callable[[Tensor, Batch], Mapping[str, Tensor]]:
        summed = plain.build(*arguments)

        def noted(hidden_TE: Tensor, batch: Batch) -> Mapping[str, Tensor]:
            sizes.append(len(batch.layout.lengths))
            return summed(hidden_TE, batch)

        return noted

    monkeypatch.setitem(OBJECTIVES, "cross_entropy", replace(plain, build=build))
    _, summary = recovered(tmp_path, config(tokens=1300, batch_tokens=130, micro_batch_tokens=130))
    assert len(sizes) == summary["training"]["steps"] == 10
    assert sum(sizes) == summary["training"]["rows"]


def test_the_curve_equals_that_of_a_plain_loop_over_the_same_rows(tmp_path: Path) -> None:
    settings = config({"name": "rora"}, tokens=1200)
    output, _ = recovered(tmp_path, settings)
    points = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()][1:]

    # The plain way: one row at a time through the model with its head, AdamW and torch's own clipping.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base" / "model")
    with seeded(0, "adapter"):
        ADAPTERS["rora"].attach(model, settings.adapter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    to_documents = partial(encode_whole, tokenizer=byte_tokenizer(), length=64, label_prompts=False)
    rows = Stream(tmp_path / "data" / "train.jsonl", to_documents, seed=0).documents()
    tokens = 0
    for point in points:
        drawn = []
        while tokens < point["tokens"]:
            drawn.append(next(rows))
            tokens += len(drawn[-1].ids)
        labels = sum(document.labels for document in drawn)
        optimizer.zero_grad()
        total = torch.zeros(())
        for document in drawn:
            targets = [-100] * document.first_label + document.ids[document.first_label :]
            loss = model(torch.tensor([document.ids]), labels=torch.tensor([targets])).loss
            total = total + loss * document.labels / labels
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.recover.gradient_clip)
        optimizer.param_groups[0]["lr"] = point["learning_rate"]
        optimizer.step()
        assert point["loss"] == pytest.approx(total.item(), rel=1e-3), point["step"]


def test_steps_share_the_budget_evenly(tmp_path: Path) -> None:
    output, _ = recovered(tmp_path, config(tokens=1300, batch_tokens=500))
    tokens = [json.loads(line)["tokens"] for line in (output / "history.jsonl").read_text().splitlines()]

    sizes = [after - before for before, after in pairwise(tokens)]
    assert len(sizes) == 3
    assert all(abs(size - 1300 / 3) < 64 for size in sizes)


@pytest.mark.parametrize("adapter", ["rora", "dora"])
def test_in_bfloat16_the_curve_is_near_to_that_of_float32(tmp_path: Path, adapter: str) -> None:
    curves = []
    for dtype in ("float32", "bfloat16"):
        settings = config({"name": adapter}, dtype=dtype, tokens=1500, micro_batch_tokens=100)
        output, _ = recovered(tmp_path, settings, name=dtype)
        points = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()][1:]
        curves.append([point["loss"] for point in points])
    assert curves[1] == pytest.approx(curves[0], rel=0.03)
    assert curves[1] != curves[0]
