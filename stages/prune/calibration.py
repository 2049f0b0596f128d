"""The calibration tokens of data-driven criteria: given ids, or ids tokenised from rows of the recovery data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.decoders.checkpoint import load_tokenizer
from stages.errors import UserError
from stages.prune.memory.estimate import check_memory, work_of
from stages.rows.interleave import interleave
from stages.rows.stream import Part, parts_of
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.decoders.shapes import DecoderShape
    from stages.prune.config import PruneConfig

Read = Callable[[], Tensor]
"""Gives the calibration tokens [sequences, tokens]."""


def calibration_ids(config: PruneConfig, *, model: Path, data: Path | None, vocabulary: int) -> Tensor:
    """Return token ids [sequences, tokens]: `config.calibration_ids`, or rows of `data`/train.jsonl.

    Raises:
        UserError: the given ids are no rectangle of ids below `vocabulary`, or there is too little text.
    """
    if config.calibration_ids is not None:
        return given_ids(config.calibration_ids, vocabulary)
    if data is None:
        raise UserError(
            f"prune={config.method} looks at calibration text and has none. Give data, or "
            "prune.calibration_ids=FILE.json."
        )
    return _from_file(config, model, data / "train.jsonl")


def reading(config: PruneConfig, inputs: Mapping[str, Path], vocabulary: int) -> Read:
    """Return what reads the calibration tokens of a stage with these `inputs`, once it is called."""
    model, data = inputs["model"] / "model", inputs.get("data")
    return partial(calibration_ids, config, model=model, data=data, vocabulary=vocabulary)


def calibration_text(
    read: Read,
    config: PruneConfig,
    shape: DecoderShape,
    *,
    stored: str,
    device: str,
    reads: bool,
    scores: bool,
    cuts: bool,
) -> Tensor | None:
    """Return the calibration tokens that `read` gives, on `device`; None unless `reads` says that something reads text.

    `scores` and `cuts` say what is done with the model: groups are scored, and the model is cut.

    Raises:
        UserError: there is too little text, or too little memory for the model and the text.
    """
    ids_BT = read().to(device) if reads else None
    size = None if ids_BT is None else (ids_BT.shape[0], ids_BT.shape[1])
    work = work_of(shape, config, stored=stored, calibration=size, device=device, scores=scores, cuts=cuts)
    check_memory(work, config.method)
    return ids_BT


def given_ids(rows: Any, vocabulary: int) -> Tensor:
    """Return the given ids, one list a sequence, as a tensor.

    Raises:
        UserError: they are no rectangle of ids below `vocabulary`.
    """
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


def _from_file(config: PruneConfig, model: Path, path: Path) -> Tensor:
    """Return `sequences_of` the rows in the file `path`; only the rows that are drawn are read."""
    tokenizer = load_tokenizer(model)
    with path.open("rb") as lines:
        # Rows are drawn in random order. Offsets of lines let one be read without holding the whole file.
        starts = list(accumulate((len(line) for line in lines), initial=0))[:-1]

        def row(index: int) -> JSON:
            lines.seek(starts[index])
            found: JSON = json.loads(lines.readline())
            return found

        return sequences_of(row, parts_of(path, len(starts)), tokenizer, config, where=str(path))


def sequences_of(
    row: Callable[[int], JSON],
    parts: Sequence[Part],
    tokenizer: PreTrainedTokenizerBase,
    config: PruneConfig,
    *,
    where: str,
) -> Tensor:
    """Return token ids [sequences, tokens], cut from rows in an order that `config.seed` decides.

    The text of a row is its prompt and its response, as a model is trained on them. The rows follow each other. Each
    ends with the tokenizer's end-of-text token, if the tokenizer has one. Each part of a mixture gets its share of the
    tokens.

    Args:
        row: gives a row by its number.
        parts: the runs of rows that share the tokens; one run, unless the rows are a mixture.
        tokenizer: the model's tokenizer.
        config: the number of sequences, their length, and the seed.
        where: the place of the rows, for the error message.

    Raises:
        UserError: there are too few tokens.
    """
    sequences, length = config.calibration.sequences, config.calibration.length
    if sequences < 1 or length < 2:
        raise UserError(
            f"prune.calibration asks for {sequences} sequences of {length} tokens: at least 1 of at least 2 are needed."
        )
    ids: list[int] = []
    drawn = {part.name: _drawn(row, part, config.seed, tokenizer) for part in parts}
    for tokens in interleave(drawn, {part.name: part.weight for part in parts}, len):
        ids += tokens
        if len(ids) >= sequences * length:
            return torch.tensor(ids[: sequences * length]).view(sequences, length)
    count = sum(part.rows for part in parts)
    raise UserError(
        f"{where} has {len(ids)} tokens in {count} rows, and prune.calibration asks for {sequences} × {length}. "
        "Ask for less with prune.calibration.sequences= or prune.calibration.length=."
    )


def _drawn(
    row: Callable[[int], JSON], part: Part, seed: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Yield the tokens of the rows of `part`, in an order that `seed` decides."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    order = list(range(part.first, part.first + part.rows))
    Random(seed).shuffle(order)
    for index in order:
        found = row(index)
        # Rows run on across sequences, so a token that marks a beginning would stand in the middle of them.
        yield tokenizer(found["prompt"] + found["response"], add_special_tokens=False)["input_ids"] + end
