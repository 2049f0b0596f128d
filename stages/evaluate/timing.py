"""One model writing a few tokens after a batch of prompts, timed: what its running cost is measured on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prompt_ids(vocabulary: int, *, batch: int, tokens: int) -> Tensor:
    """Return the same random prompts every time, [batch, tokens]."""
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def timed_generation(
    model: PreTrainedModel, *, prompt_tokens: int, new_tokens: int, batch: int = 1
) -> tuple[float, float]:
    """Return (seconds to read the prompts, seconds of each step that then gives every prompt a token), with a cache.

    Greedy, and never stopping early, so that every model does the same number of steps.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids = prompt_ids(vocabulary, batch=batch, tokens=prompt_tokens).to(model.device)
    started = _now(model)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    prefilled = _now(model)
    for _ in range(new_tokens):
        ids = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=ids, past_key_values=output.past_key_values, use_cache=True)
    return prefilled - started, (_now(model) - prefilled) / new_tokens


def _now(model: PreTrainedModel) -> float:
    """Return the time once the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
