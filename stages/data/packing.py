"""From rows of text to packed batches: tokens, labels, order and shape.

Owns what a training batch looks like, in `collate` and nowhere else: documents lie end to end in one sequence without
padding, position ids start again at each, and `Batch.lengths` tells attention (`stages.recover.attention`) where one
ends, so that no document sees another. Does not own the loss or the schedule.

Shapes: T tokens of a batch, N of them labelled. A label is the token after the position that predicts it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stages.errors import UserError
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = 64
"""Rows tokenised at a time: enough to feed a fast tokenizer's threads, few enough to waste none."""


@dataclass(frozen=True, slots=True)
class Document:
    """One row as tokens: prompt, response, end of text."""

    ids: list[int]
    first_label: int
    """Index of the first token that the loss is taken on."""
    task: str
    cut: bool
    """Whether the row was longer than the sequence length."""
    row: int = 0
    """The line of the file that it was read from, counted from 1; 0 where it is from no file."""

    @property
    def labels(self) -> int:
        """Number of labelled tokens; a document's first token has none before it that could predict it."""
        return len(self.ids) - max(self.first_label, 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents end to end: the input of one forward pass."""

    input_ids_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    lengths: tuple[int, ...]
    """Tokens in each document, in order; they sum to T."""
    predictors_N: torch.Tensor
    """Positions in the sequence whose next token is labelled."""
    labels_N: torch.Tensor
    """The token that comes after each of them."""


def encode(
    rows: Sequence[JSON], tokenizer: PreTrainedTokenizerBase, *, length: int, label_prompts: bool
) -> list[Document]:
    """Tokenise `rows` as prompt + response + end of text, each cut to `length` tokens.

    Prompt and response are tokenised as one text, as the evaluation will meet them, and parted by character offsets:
    a token that holds any character of the response is labelled, so no response character escapes the loss. Where a
    row is too long, the beginning of its prompt gives way first, then the end of its response. With `label_prompts`
    every token is labelled.

    Raises:
        UserError: the tokenizer gives no character offsets.
    """
    if not tokenizer.is_fast:
        raise UserError("the model's tokenizer gives no character offsets; put its tokenizer.json beside the weights.")
    texts = [row["prompt"] + row["response"] for row in rows]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    return [
        _document(row, ids, spans, tokenizer, length, label_prompts)
        for row, ids, spans in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _document(
    row: JSON,
    ids: list[int],
    spans: list[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    label_prompts: bool,
) -> Document:
    end = tokenizer.eos_token_id
    response = next((index for index, (_, stop) in enumerate(spans) if stop > len(row["prompt"])), len(ids))
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    excess = max(len(ids) - length, 0)
    # One prompt token stays, because the first response token needs one to be predicted from.
    dropped = min(excess, max(response - 1, 0))
    kept = ids[dropped : dropped + length]
    if dropped and ids[0] == tokenizer.bos_token_id:
        kept[0] = ids[0]
    first_label = 0 if label_prompts else response - dropped
    return Document(kept, first_label, str(row.get("task", "")), cut=excess > 0)


class Stream:
    """The documents of a JSON Lines file in a seeded order, reshuffled each epoch, for as long as they are drawn.

    A position in it is one integer, the number of documents drawn before, so a resumed run continues exactly. The
    file's rows are located once and read as they are needed; few are ever tokenised.
    """

    def __init__(self, path: Path, encode: Callable[[list[JSON]], list[Document]], *, seed: int) -> None:
        self.path = path
        self._encode = encode
        self._seed = seed
        self._offsets = _line_offsets(path)
        if not self._offsets:
            raise UserError(f"{path} has no rows.")

    def __len__(self) -> int:
        """Number of rows, which is the number of documents in an epoch."""
        return len(self._offsets)

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Yield documents without end from position `start`."""
        epoch, skipped = divmod(start, len(self))
        while True:
            order = list(range(len(self)))
            random.Random(f"{self._seed} {epoch}").shuffle(order)
            yield from self._read(order[skipped:])
            epoch, skipped = epoch + 1, 0

    def _read(self, order: list[int]) -> Iterator[Document]:
        with self.path.open("rb") as file:
            for first in range(0, len(order), BLOCK):
                block = order[first : first + BLOCK]
                rows = []
                for index in block:
                    file.seek(self._offsets[index])
                    rows.append(json.loads(file.readline()))
                for index, document in zip(block, self._encode(rows), strict=True):
                    yield replace(document, row=index + 1)


def _line_offsets(path: Path) -> list[int]:
    offsets, position = [], 0
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return offsets


def take(documents: Iterable[Document], tokens: int) -> list[Document]:
    """Draw documents until they hold at least `tokens` tokens, or until there are no more."""
    taken: list[Document] = []
    drawn = 0
    for document in documents:
        taken.append(document)
        drawn += len(document.ids)
        if drawn >= tokens:
            break
    return taken


def split(documents: Iterable[Document], tokens: int) -> Iterator[list[Document]]:
    """Yield runs of consecutive documents of at most `tokens` tokens; a longer document has a run of its own."""
    run: list[Document] = []
    size = 0
    for document in documents:
        if run and size + len(document.ids) > tokens:
            yield run
            run, size = [], 0
        run.append(document)
        size += len(document.ids)
    if run:
        yield run


def collate(documents: Sequence[Document], device: str = "cpu") -> Batch:
    """Return `documents` packed end to end."""
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    for document in documents:
        first = max(document.first_label, 1)
        predictors.extend(range(len(ids) + first - 1, len(ids) + len(document.ids) - 1))
        positions.extend(range(len(document.ids)))
        ids.extend(document.ids)
    input_ids_T = torch.tensor(ids, device=device)
    predictors_N = torch.tensor(predictors, dtype=torch.long, device=device)
    return Batch(
        input_ids_1T=input_ids_T[None],
        position_ids_1T=torch.tensor(positions, device=device)[None],
        lengths=tuple(len(document.ids) for document in documents),
        predictors_N=predictors_N,
        labels_N=input_ids_T[predictors_N + 1],
    )
