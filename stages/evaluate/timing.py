"""Timed forward passes of one model that writes a few tokens after a batch of prompts, to measure its running cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.decoders.sdpa import without_plans

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prompt_ids(vocabulary: int, *, batch: int, tokens: int) -> Tensor:
    """Return random prompts [batch, tokens], the same every time."""
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def timed_passes(model: PreTrainedModel, *, prompt_tokens: int, new_tokens: int, batch: int = 1) -> Iterator[float]:
    """Yield the seconds of each forward pass: first the pass that reads the prompts, then one for each new token.

    Decoding is greedy, with a cache, and never stops early, so every model takes the same number of passes. Time
    between two passes is not counted, so that another model may run in it.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids = prompt_ids(vocabulary, batch=batch, tokens=prompt_tokens).to(model.device)
    cache = None
    for _ in range(1 + new_tokens):
        # The cache grows with every token. The block ends before the other model's pass.
        with without_plans(model.device):
            started = _now(model)
            # Logits of the last position only, as generation takes them.
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = output.logits.argmax(-1)
            seconds = _now(model) - started
        cache = output.past_key_values
        yield seconds


def _now(model: PreTrainedModel) -> float:
    """Return the time once the device has finished its work."""
    # A GPU works asynchronously: a call returns before its work is done.
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
