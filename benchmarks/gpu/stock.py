"""The stock way on the same slice: transformers' Trainer over PEFT, with text packed into blocks of equal length.

Blocks have no padding and no boundaries of documents, which is the fastest that the stock way can be.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.check import Found, Part, Row, Setting
from benchmarks.gpu.device import GIB, emptied, peak, synchronise
from benchmarks.gpu.slices import byte_tokenizer, llama
from benchmarks.gpu.training import LONGEST, RANK, WARM, depths, matrices, share, sizes
from benchmarks.training import ROWS, Step, fine_tune
from stages.adapters.ranks import PROJECTIONS
from stages.rows.packing import Document
from stages.stage import JSON

if TYPE_CHECKING:
    from peft import PeftConfig


def stock(setting: Setting, found: Found) -> Part:
    """Measure the stock way at both sizes of a step, and how many times ours is as fast."""
    small, large = sizes(setting)
    # Two micro-batches make its step. Of large ones each has as many tokens as ours has, which favours the stock way.
    blocks = {small: small // (2 * ROWS), large: min(LONGEST, large // ROWS)}
    steps = {str(size): _fitting(setting, length) for size, length in blocks.items()}
    lines = []
    for size, step in steps.items():
        rate = step["tokens_per_second"]
        ours = found.get("lora", {}).get("steps", {}).get(size, {}).get("tokens_per_second")
        step["ours_over_stock"] = None if ours is None else ours / rate
        part = share(rate, step["operations_per_token"], found)
        words = [f"{rate:,.0f} tokens/s", *([] if part is None else [f"{part:.0%} of matmul"])]
        words += [f"{step['peak_bytes'] / GIB:.1f} GiB"]
        words += [] if ours is None else [f"ours {ours / rate:.2f} times as fast"]
        lines.append(Row(f"Trainer + PEFT, {size} tokens a step", ", ".join(words), "ours 1.5 times"))
    return Part({"steps": steps}, lines)


def _fitting(setting: Setting, length: int) -> JSON:
    """Return what is measured over blocks of `length` tokens, or of half as many as long as memory runs out."""
    while True:
        try:
            return _measured(setting, length)
        except torch.OutOfMemoryError:
            if length < 16:
                raise
            length //= 2


def _measured(setting: Setting, length: int) -> JSON:
    """Return the speed and the memory of LoRA over blocks of `length` tokens."""
    device, timed = setting.device, 4 if setting.toy else 8
    steps, marks = WARM + timed, list[tuple[int, float]]()

    def mark(step: Step) -> None:
        synchronise(device)
        marks.append((step.tokens, time.perf_counter()))

    emptied(device)
    model = llama(setting, layers=depths(setting)[-1])
    operations = 4 * matrices(model)
    blocks = [
        Document([33 + (first + place) % 64 for place in range(length)], 0, "", cut=False)
        for first in range(2 * ROWS * steps)
    ]
    tokenizer, lora = byte_tokenizer(), _lora(setting)
    fine_tune(model, tokenizer, blocks, lora=lora, learning_rate=1e-4, dtype=setting.dtype, on_step=mark)
    (first, begun), (last, ended) = marks[WARM - 1], marks[-1]
    return {
        "block_tokens": length,
        "step_tokens": 2 * ROWS * length,
        "tokens_per_second": (last - first) / (ended - begun),
        "operations_per_token": operations,
        "peak_bytes": peak(device),
    }


def _lora(setting: Setting) -> PeftConfig:
    from peft import LoraConfig

    rank = 4 if setting.toy else RANK
    return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=16, target_modules=list(PROJECTIONS))
