"""The tokens that data-driven criteria look at: given ids, or rows of the recovery data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.decoders.checkpoint import load_tokenizer
from stages.errors import UserError
from stages.prune.memory.estimate import check_memory
from stages.rows.interleave import interleave
from stages.rows.stream import parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.decoders.shapes import DecoderShape
    from stages.prune.config import PruneConfig
    from stages.stage import Context


def calibration_ids(config: PruneConfig, *, model: Path, data: Path | None, vocabulary: int) -> Tensor:
    """Return token ids [sequences, tokens]: `config.calibration_ids`, or rows of `data`/train.jsonl.

    Raises:
        UserError: the given ids are no rectangle of ids below `vocabulary`, or there is too little text.
    """
    if config.calibration_ids is not None:
        return _given(config.calibration_ids, vocabulary)
    if data is None:
        raise UserError(
            f"prune={config.method} looks at calibration text and has none. Give data, or "
            "prune.calibration_ids=FILE.json."
        )
    return _from_rows(config, model, data / "train.jsonl")


def calibration_text(
    config: PruneConfig,
    inputs: Mapping[str, Path],
    context: Context,
    shape: DecoderShape,
    stored: str,
    *,
    reads: bool,
    gradients: bool,
) -> Tensor | None:
    """Return the tokens to look at, on the context's device, or None where nothing `reads` text.

    Raises:
        UserError: there is too little text, or memory will not do for the model and for it.
    """
    ids_BT = None
    if reads:
        source = inputs["model"] / "model"
        ids_BT = calibration_ids(config, model=source, data=inputs.get("data"), vocabulary=shape.vocabulary)
        ids_BT = ids_BT.to(context.device)
    size = None if ids_BT is None else (ids_BT.shape[0], ids_BT.shape[1])
    check_memory(shape, config, gradients=gradients, stored=stored, calibration=size, device=context.device)
    return ids_BT


def _given(rows: Any, vocabulary: int) -> Tensor:
    """Return the given ids as a tensor, checked."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or min(lengths) < 2:
        raise UserError(
            f"prune.calibration_ids: sequences have {min(lengths, default=0)} to {max(lengths, default=0)} tokens. "
            "They must be equally long, with at least 2 tokens."
        )
    ids = torch.tensor([list(row) for row in rows])
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"prune.calibration_ids: token id {low if low < 0 else high} is outside the vocabulary of {vocabulary}."
        )
    return ids


def _from_rows(config: PruneConfig, model: Path, path: Path) -> Tensor:
    """Return sequences cut from the rows of `path` in an order that `config.seed` decides.

    A row is its prompt and its response, as a model is trained on them; rows follow each other, each ended by the
    tokenizer's end-of-text token if it has one. Of a mixture each part has its share of the tokens.
    """
    sequences, length = config.calibration.sequences, config.calibration.length
    if sequences < 1 or length < 2:
        raise UserError(
            f"prune.calibration asks for {sequences} sequences of {length} tokens: at least 1 of at least 2 are needed."
        )
    tokenizer = load_tokenizer(model)
    ids: list[int] = []
    with path.open("rb") as rows:
        starts = list(accumulate((len(row) for row in rows), initial=0))[:-1]
        parts = parts_of(path, len(starts))
        drawn = {
            part.name: _drawn(rows, starts[part.first : part.first + part.rows], config.seed, tokenizer)
            for part in parts
        }
        for row in interleave(drawn, {part.name: part.weight for part in parts}, len):
            ids += row
            if len(ids) >= sequences * length:
                return torch.tensor(ids[: sequences * length]).view(sequences, length)
    raise UserError(
        f"{path} has {len(ids)} tokens in {len(starts)} rows, and prune.calibration asks for {sequences} × {length}. "
        "Ask for less with prune.calibration.sequences= or prune.calibration.length=."
    )


def _drawn(rows: IO[bytes], starts: list[int], seed: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the tokens of the rows that begin at `starts`, in an order that `seed` decides."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    Random(seed).shuffle(starts)
    for start in starts:
        rows.seek(start)
        row = json.loads(rows.readline())
        yield tokenizer(row["prompt"] + row["response"], add_special_tokens=False)["input_ids"] + end
