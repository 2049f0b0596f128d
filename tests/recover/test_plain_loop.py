"""The recover stage against the plain loop it replaces: PEFT's own layers, one row at a time, whole logits, AdamW."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from helpers.toy import config, recovered
from stages.common.files import read_jsonl
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.recover.config import RecoverStageConfig
from stages.recover.schedules import learning_rate
from stages.recover.seeds import seeded
from stages.rows.packing import encode_whole, take
from stages.rows.stream import Stream

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


def plain_losses(root: Path, settings: RecoverStageConfig, steps: int) -> list[float]:
    """Return the losses of the first steps, a mean over labelled tokens each."""
    recover, adapter = settings.recover, settings.adapter
    base = root / "base" / "model"
    model = load_model(base, dtype="float32")
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,  # type: ignore[attr-defined]
        lora_alpha=adapter.alpha,  # type: ignore[attr-defined]
        target_modules=sorted(adapter.targets),  # type: ignore[attr-defined]
        **OPTIONS[adapter.name],
    )
    with seeded(settings.seed, "adapter"):
        adapted = get_peft_model(model, lora).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=recover.weight_decay)
    tokenise = partial(
        encode_whole,
        tokenizer=load_tokenizer(base),
        length=recover.sequence_length,
        label_prompts=recover.loss == "all",
    )
    documents = Stream(root / "data" / "train.jsonl", tokenise, seed=settings.seed).documents()
    total, budget, losses = 0, -(-recover.tokens // recover.batch_tokens), []
    for step in range(steps):
        rows = take(documents, recover.tokens * (step + 1) // budget - total)
        total += sum(len(row.ids) for row in rows)
        labels = sum(row.labels for row in rows)
        loss = torch.zeros(())
        for row in rows:
            ids = torch.tensor(row.ids)
            logits = adapted(input_ids=ids[None]).logits[0]
            first = max(row.first_label, 1)
            loss = loss + cross_entropy(logits[first - 1 : -1], ids[first:], reduction="sum") / labels
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, recover.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recover, total / recover.tokens)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("adapter", OPTIONS)
@pytest.mark.parametrize("loss", ["response", "all"])
def test_the_loss_curve_is_the_plain_loops(tmp_path: Path, adapter: str, loss: str) -> None:
    settings = config({"name": adapter}, loss=loss, tokens=1500)
    output, _ = recovered(tmp_path, settings)
    found = [point["loss"] for point in read_jsonl(output / "history.jsonl") if "loss" in point]
    expected = plain_losses(tmp_path, settings, len(found))
    assert len(found) >= 5
    assert found[-1] < found[0]
    assert found == pytest.approx(expected, rel=2e-4)
