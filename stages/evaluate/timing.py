"""One model writing a few tokens after a prompt, timed: what its running cost is measured on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prompt_ids(vocabulary: int, tokens: int) -> Tensor:
    """Return the same random prompt every time, [1, tokens]."""
    return torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def timed_generation(model: PreTrainedModel, *, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """Return (seconds to read the prompt, seconds for each new token after it), at batch size 1, with a cache.

    Greedy, and never stopping early, so that every model does the same number of steps.
    """
    ids = prompt_ids(model.config.get_text_config().vocab_size, prompt_tokens).to(model.device)
    started = _now(model)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    prefilled = _now(model)
    for _ in range(new_tokens):
        ids = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=ids, past_key_values=output.past_key_values, use_cache=True)
    return prefilled - started, (_now(model) - prefilled) / max(new_tokens, 1)


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
