"""One model writing a few tokens after a batch of prompts, each pass timed: what its running cost is measured on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prompt_ids(vocabulary: int, *, batch: int, tokens: int) -> Tensor:
    """Return the same random prompts every time, [batch, tokens]."""
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def timed_passes(model: PreTrainedModel, *, prompt_tokens: int, new_tokens: int, batch: int = 1) -> Iterator[float]:
    """Yield the seconds of each forward pass: that reads the prompts, then those that give every prompt a token.

    Greedy, with a cache, and never stopping early, so that every model takes the same number of passes. What happens
    between two passes is not timed: another model may take its own.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids = prompt_ids(vocabulary, batch=batch, tokens=prompt_tokens).to(model.device)
    cache = None
    for _ in range(1 + new_tokens):
        started = _now(model)
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = output.logits.argmax(-1)
        cache = output.past_key_values
        yield _now(model) - started


def _now(model: PreTrainedModel) -> float:
    """Return the time once the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
