"""Calibration tokens cut from rows: one stream of text in a seeded order, in sequences of one length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.errors import UserError
from stages.rows.interleave import interleave
from stages.rows.packing import cut_at_spaces
from stages.rows.stream import Part, parts_of
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The text that is asked for.

    Attributes:
        sequences: number of sequences.
        length: tokens of each.
        seed: decides the order of the rows.
        options: where the numbers were set, for errors.
    """

    sequences: int
    length: int
    seed: int
    options: str


def sequences_in(path: Path, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> Tensor:
    """Return `sequences_of` the rows in the file `path`; only the rows that are drawn are read."""
    with path.open("rb") as lines:
        # Rows are drawn in random order. Offsets of lines let one be read without holding the whole file.
        starts = list(accumulate((len(line) for line in lines), initial=0))[:-1]

        def row(index: int) -> JSON:
            lines.seek(starts[index])
            found: JSON = json.loads(lines.readline())
            return found

        return sequences_of(row, parts_of(path, len(starts)), tokenizer, asked, where=str(path))


def sequences_of(
    row: Callable[[int], JSON],
    parts: Sequence[Part],
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    *,
    where: str,
) -> Tensor:
    """Return token ids [sequences, tokens], cut from rows in an order that the seed decides.

    The text of a row is its prompt and its response, as a model is trained on them. The rows follow each other. Each
    ends with the tokenizer's end-of-text token, if the tokenizer has one. Each part of a mixture gets its share of the
    tokens.

    Args:
        row: gives a row by its number.
        parts: the runs of rows that share the tokens; one run, unless the rows are a mixture.
        tokenizer: the model's tokenizer.
        asked: the number of sequences, their length, and the seed.
        where: the place of the rows, for the error message.

    Raises:
        UserError: there are too few tokens.
    """
    sequences, length, options = asked.sequences, asked.length, asked.options
    if sequences < 1 or length < 2:
        raise UserError(
            f"{options} asks for {sequences} sequences of {length} tokens: at least 1 of at least 2 are needed."
        )
    ids: list[int] = []
    drawn = {part.name: _drawn(row, part, asked.seed, tokenizer) for part in parts}
    for tokens in interleave(drawn, {part.name: part.weight for part in parts}, len):
        ids += tokens
        if len(ids) >= sequences * length:
            return torch.tensor(ids[: sequences * length]).view(sequences, length)
    count = sum(part.rows for part in parts)
    raise UserError(
        f"{where} has {len(ids)} tokens in {count} rows, and {options} asks for {sequences} × {length}. "
        f"Ask for less with {options}.sequences= or {options}.length=."
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
        *pieces, last = cut_at_spaces(found["prompt"] + found["response"])
        for text, more in (*((piece, []) for piece in pieces), (last, end)):
            yield tokenizer(text, add_special_tokens=False)["input_ids"] + more
