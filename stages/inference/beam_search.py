"""Continuations by transformers' own `generate`: beam search, and decoders that `generator` does not know.

This module owns batching and what ends a text, and keeps a checkpoint's own generation settings out of the search.
Continuations without a search are the work of `generator`, which is several times faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.decoders.sdpa import without_plans
from stages.inference.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = list[int]


@torch.inference_mode()
def beam_search(
    scorer: Scorer,
    prompts: Sequence[str],
    *,
    beams: int,
    new_tokens: int,
    advance: Callable[[int], object] = int,
) -> list[str]:
    """Return the likeliest continuation of each prompt that a search with `beams` beams finds, without special tokens.

    Candidates are compared by log-probability over length. A continuation ends with an end-of-text token or after
    `new_tokens` tokens. A prompt that leaves no room for them is cut from the left. A batch holds at most the scorer's
    `batch_tokens`, with all beams and padding counted, or one prompt. `advance` is told how many more are done.

    Raises:
        UserError: the model's context has no room for `new_tokens`.
    """
    contexts = scorer.encoder.prompts(prompts, room=new_tokens)
    ends = end_tokens(scorer)
    found = [""] * len(contexts)
    # Every beam is a row of its own in the batch.
    for batch in batches([len(ids) + new_tokens for ids in contexts], tokens=scorer.batch_tokens // beams):
        rows = [contexts[index] for index in batch]
        written_BW = generated(scorer.model, rows, ends=ends, new_tokens=new_tokens, beams=beams)
        for index, ids in zip(batch, written_BW.tolist(), strict=True):
            found[index] = scorer.encoder.tokenizer.decode(_before_end(ids, ends), skip_special_tokens=True)
        advance(len(batch))
    return found


def generated(
    model: PreTrainedModel,
    rows: Sequence[Ids],
    *,
    ends: frozenset[int],
    new_tokens: int,
    beams: int = 1,
    choose: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the ids that `generate` writes after each of `rows`, [B, W]. Ids after a row's first end mean nothing.

    `choose` maps the logits of the next tokens [B, V] to the tokens to write [B]; without it the likeliest are written.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    def alone(ids_BL: Tensor, logits_BV: Tensor) -> Tensor:
        """Return logits of which the chosen token's is the only finite one, so that it is the likeliest."""
        assert choose is not None
        return torch.full_like(logits_BV, -torch.inf).scatter_(1, choose(logits_BV)[:, None], 0.0)

    length = max(map(len, rows))
    pad = min(ends, default=0)  # any id would do: it is masked before a prompt and not read after an end
    ids_BL = torch.tensor([[pad] * (length - len(ids)) + ids for ids in rows], device=model.device)
    seen_BL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in rows], device=model.device)
    settings = GenerationConfig(
        num_beams=beams,
        max_new_tokens=new_tokens,
        do_sample=False,
        early_stopping=False,
        length_penalty=1.0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
    with _without_settings(model), without_plans(model.device):
        written_BL: Tensor = model.generate(
            ids_BL,
            attention_mask=seen_BL,
            generation_config=settings,
            logits_processor=LogitsProcessorList([alone] if choose else []),
        )
    return written_BL[:, length:]


def end_tokens(scorer: Scorer) -> frozenset[int]:
    """Return the tokens that end a text: the tokenizer's, and those in the checkpoint's generation configuration."""
    found = {scorer.encoder.tokenizer.eos_token_id}
    configured = getattr(scorer.model.generation_config, "eos_token_id", None)
    found |= set(configured) if isinstance(configured, list) else {configured}
    return frozenset(token for token in found if token is not None)


@contextmanager
def _without_settings(model: PreTrainedModel) -> Iterator[None]:
    """Take away the checkpoint's generation settings, which would fill in whatever the given settings leave open."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _before_end(ids: Ids, ends: frozenset[int]) -> Ids:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def batches(lengths: Sequence[int], *, tokens: int, rows: int | None = None) -> Iterator[list[int]]:
    """Yield batches of indices of about equal length, longest first: within `tokens` (and `rows`), or one alone."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # The first of a batch is the longest, and the others are padded to it.
        if batch and ((len(batch) + 1) * lengths[batch[0]] > tokens or len(batch) == rows):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
