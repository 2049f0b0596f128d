"""Continuations by beam search, through transformers' own `generate`: for protocols that ask for beams.

Owns batching, and that a checkpoint's own generation settings have no say. Greedy continuations are `generator`'s,
which is several times faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from stages.errors import UserError
from stages.scoring.scorer import context_length

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

Ids = list[int]


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    beams: int,
    new_tokens: int,
    batch_tokens: int = 4096,
    advance: Callable[[int], object] = int,
) -> list[str]:
    """Return the likeliest continuation of each prompt that a search with so many beams finds, without special tokens.

    Prompts begin with the special tokens that the tokenizer itself adds; one that leaves no room for `new_tokens` is
    cut from the left. A continuation ends at end-of-text; candidates are compared by log-probability over length.
    A batch holds at most `batch_tokens` tokens, all beams and padding counted, or one prompt. `advance` is told how
    many more prompts are done.

    Raises:
        UserError: the model's context has no room for `new_tokens`.
    """
    if not prompts:
        return []
    room = prompt_room(model, tokenizer, new_tokens)
    ids = [row[-room:] for row in tokenizer(list(prompts), verbose=False)["input_ids"]]
    found = [""] * len(ids)
    settings = _settings(tokenizer, beams=beams, new_tokens=new_tokens)
    with _no_settings_of_its_own(model):
        for batch in _batches([len(row) for row in ids], room=new_tokens, tokens=batch_tokens // beams):
            written = _continued(model, [ids[index] for index in batch], settings)
            for index, text in zip(batch, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                found[index] = text
            advance(len(batch))
    return found


def prompt_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_tokens: int) -> int:
    """Return the most tokens a prompt may have for `new_tokens` to fit the model's context after it.

    Raises:
        UserError: there is no room for a prompt at all.
    """
    context = context_length(model, tokenizer)
    if new_tokens >= context:
        raise UserError(f"{new_tokens} new tokens leave no room for a prompt: the model reads {context} tokens.")
    return context - new_tokens


def _continued(model: PreTrainedModel, rows: Sequence[Ids], settings: GenerationConfig) -> list[Ids]:
    """Return the ids written after each of `rows`, up to the first end-of-text."""
    length = max(map(len, rows))
    padding = [length - len(row) for row in rows]
    ids_BL = torch.tensor([[settings.pad_token_id] * pad + row for pad, row in zip(padding, rows, strict=True)])
    seen_BL = torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding])
    written_BL = model.generate(
        ids_BL.to(model.device), attention_mask=seen_BL.to(model.device), generation_config=settings
    )
    return [_before(row, settings.eos_token_id) for row in written_BL[:, length:].tolist()]


def _before(row: Ids, end: int | None) -> Ids:
    return row[: row.index(end)] if end in row else row


def _settings(tokenizer: PreTrainedTokenizerBase, *, beams: int, new_tokens: int) -> GenerationConfig:
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        num_beams=beams,
        max_new_tokens=new_tokens,
        do_sample=False,
        early_stopping=False,
        length_penalty=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad or 0,  # masked before a prompt, and cut off after end-of-text: any id will do
    )


@contextmanager
def _no_settings_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Take away the checkpoint's generation settings, which would fill in whatever a given config leaves open."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _batches(lengths: Sequence[int], *, room: int, tokens: int) -> Iterator[list[int]]:
    """Yield indices of about equal length, longest first, each batch with `room` more a row within `tokens`."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * (lengths[batch[0]] + room) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
