"""The places of a step where the processor waits for the GPU: there is one, where the step's losses are read.

A wait empties the GPU's queue, and the GPU then stands still until the next launches arrive.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.training import training
from helpers.decoders import decoder
from helpers.toy import config, data_artifact
from helpers.waits import Waits
from stages.decoders.variable_length import KERNELS
from stages.recover.objectives.distillation import DistillationConfig
from stages.recover.objectives.teacher import Teacher
from stages.stage import Context

DISTILLED = {"objective": "distillation"}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"adapter": "dora"},
    "granite's logits": {"family": "granite"},
    "a trained head": {"adapter": "full"},
    "distillation": DISTILLED,
    "the likeliest tokens": DISTILLED | {"distillation": DistillationConfig(teacher_top_k=8, weight=0.5)},
    "another divergence": DISTILLED | {"distillation": DistillationConfig(divergence="jensen", temperature=2.0)},
    "a filled cache": DISTILLED | {"distillation": DistillationConfig(teacher_top_k=8, cache_teacher=True)},
}


@pytest.fixture(autouse=True)
def meta_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the meta device do what a GPU does."""
    autocast = torch.autocast
    monkeypatch.setitem(KERNELS, "meta", replace(KERNELS["cuda"], lacking=lambda device: None))
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **how: nullcontext() if kind == "meta" else autocast(kind, **how)
    )
    optimizer, clipping = (sys.modules[name] for name in ("torch.optim.optimizer", "torch.nn.utils.clip_grad"))
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(clipping, "_has_foreach_support", lambda tensors, device: True)
    # Weights can't be copied from there, so a teacher is the given model itself.
    monkeypatch.setattr(Teacher, "_load", lambda teacher: teacher._source)


def waits_of_steps(
    root: Path, output: str, *, micro_batch_tokens: int, adapter: str = "lora", family: str = "llama", **recover: Any
) -> list[Counter[str]]:
    """Return the waits of each step after the first one, of a recovery in bfloat16 on the meta device."""
    settings = config(
        {"name": adapter},
        dtype="bfloat16",
        tokens=1300,
        micro_batch_tokens=micro_batch_tokens,
        curve_every=1300,
        **recover,
    )
    model, teacher = (decoder(family, vocab_size=512, num_hidden_layers=2).to("meta") for _ in range(2))
    teacher = teacher.to(torch.bfloat16)
    if adapter != "full":
        model = model.to(torch.bfloat16)
    waits, seen = Waits(), []
    context = Context(
        output=root / output,
        device="meta",
        cache=root / "cache",
        checkpoint_seconds=math.inf,
        log=lambda point: seen.append(waits.calls.copy()),
    )
    with waits:
        training(model, settings, data_artifact(root / "data") / "train.jsonl", context, teacher=teacher).run()
    assert len(seen) >= 5
    # The first point is that before the first step.
    return [after - before for before, after in pairwise(seen[1:])]


@pytest.mark.parametrize("micro_batch_tokens", [256, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_the_device_once_however_many_micro_batches_it_has(
    kind: str, micro_batch_tokens: int, tmp_path: Path
) -> None:
    if kind == "a filled cache":
        waits_of_steps(tmp_path, "fills it", micro_batch_tokens=micro_batch_tokens, **KINDS[kind])
    for waits in waits_of_steps(tmp_path, "out", micro_batch_tokens=micro_batch_tokens, **KINDS[kind]):
        assert waits == {"_to_copy": 1}
