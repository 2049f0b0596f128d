"""Packed training batches from rows of text: tokens, labels and layout.

This module owns what a training batch looks like, and only `collate` makes one. Documents lie end to end in one
sequence without padding, and position ids start again at each. `Layout.lengths` tells attention
(`stages.decoders.packed_attention`) where a document ends, so that no document sees another. The documents' order
(`stages.rows.stream`), the loss and the schedule are owned elsewhere.

Shapes: T tokens of a batch, N of them labelled, S tokens of all documents with shared ones counted in each, L tokens of
a document's own. A label is the token after the position that predicts it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from stages.errors import UserError
from stages.rows.bounds import Bounds, bounds, on_device, sent
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 1 << 18
"""Characters that are tokenised as one text. Of a longer row only as much is tokenised as is drawn."""
WORTH_SHARING = 8
"""The fewest tokens of a common beginning for which the second document continues from the first."""


@dataclass(frozen=True, slots=True)
class Document:
    """One row as tokens: prompt, response, end of text."""

    ids: list[int]
    first_label: int
    """Index of the first token that enters the loss as a label."""
    task: str
    cut: bool
    """Whether the row was longer than the sequence length."""
    row: int = 0
    """Line of the file that the document was read from, counted from 1; 0 where it comes from no file."""
    prompt: int = 0
    """Number of tokens before the row's response; 0 for plain text."""
    written: bool = False
    """Whether the labelled tokens were written by the model that is trained, and are no row's."""
    continued: bool = field(default=False, compare=False)
    """Whether the row was so long that an earlier portion of it was drawn before."""

    @property
    def labels(self) -> int:
        """Number of labelled tokens. A document's first token has no token before it that could predict it."""
        return len(self.ids) - max(self.first_label, 1)


@dataclass(frozen=True, slots=True)
class Shared:
    """The tokens that documents continue from."""

    contexts: tuple[int, ...]
    """Number of tokens that precede each document's own, in the order of `Layout.lengths`."""
    sources_S: torch.Tensor
    """Positions in the sequence of each document's tokens, shared and own, one document after another."""


@dataclass(frozen=True)
class Layout:
    """The boundaries of documents that lie end to end, as attention needs them."""

    lengths: tuple[int, ...]
    """Number of each document's own tokens, in the order in which they lie; they sum to T."""
    shared: Shared | None = None
    """How documents begin with tokens of other documents; None where every token is a document's own."""

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """Number of tokens that each document's last token sees, shared and own."""
        if self.shared is None:
            return self.lengths
        return tuple(context + length for context, length in zip(self.shared.contexts, self.lengths, strict=True))

    @cached_property
    def masks(self) -> Sequence[torch.Tensor | None]:
        """The tokens that each own token of a document sees [L, context + L]; None (causal) where none is shared.

        They are made when first asked for: one call for all documents (`bounds`) needs none.
        """
        if self.shared is None:
            return [None] * len(self.lengths)
        like_S, pairs = self.shared.sources_S, zip(self.shared.contexts, self.lengths, strict=True)
        # A teacher may ask first, and tensors made in inference mode can't be saved for the pupil's backward pass.
        with torch.inference_mode(False):
            # An own token sees the whole context and the own tokens up to itself.
            return [
                like_S.new_ones(length, context + length, dtype=torch.bool).tril(context) if context else None
                for context, length in pairs
            ]

    def bounds(self, device: torch.device) -> Bounds:
        """Return the boundaries on `device`, for attention in one call. They are made once a batch."""
        return bounds(self.lengths, self.reach, device)


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents end to end: the input of one forward pass."""

    input_ids_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    layout: Layout
    predictors_N: torch.Tensor
    """Positions in the sequence from which a label is predicted."""
    labels_N: torch.Tensor
    """The token that follows each of these positions in its document."""
    on_host: tuple[torch.Tensor, ...]
    """Tokens, predictors, labels, and the sources of shared tokens where there are any: to be read without waiting for
    the device."""
    written: bool = False
    """Whether the labels were written by the model that is trained (`Document.written`)."""

    def predicting(self, states_TX: torch.Tensor) -> torch.Tensor:
        """Return the states that labels are predicted from, [N, X].

        Documents that share a beginning predict from the same states. The backward pass of `states_TX[predictors_N]`
        would add up the gradients of such rows in the order in which threads arrive (atomically, in float32 on a
        processor). No two trainings would then end in the same bytes. `index_select` adds them in order.
        """
        return states_TX.index_select(0, self.predictors_N)


def encode(
    rows: Sequence[JSON], tokenizer: PreTrainedTokenizerBase, *, length: int, label_prompts: bool
) -> list[Document]:
    """Tokenise `rows` as prompt + response + end of text, each cut to `length` tokens.

    Prompt and response are tokenised as one text, as the evaluation will meet them. Character offsets tell them apart:
    a token that holds any character of the response is labelled, so no character of the response escapes the loss. A
    row that is too long loses the beginning of its prompt first, then the end of its response. With `label_prompts`
    every token is labelled. Of a row of more than `LONGEST` characters the first portion is taken.

    Raises:
        UserError: the tokenizer gives no character offsets.
    """
    rows = [next(portions(row)) for row in rows]
    return [
        _cut(row, ids, response, tokenizer, length, label_prompts) for row, ids, response in _tokenised(rows, tokenizer)
    ]


def portions(row: JSON) -> Iterator[JSON]:
    """Yield `row`, or where it is longer than `LONGEST` characters what can be tokenised of it, one after another.

    Plain text is cut at spaces. Of a row with a prompt the prompt's end and the beginning of the response stay.
    """
    prompt, response = row["prompt"], row["response"]
    if len(prompt) + len(response) <= LONGEST:
        yield row
    elif prompt:
        yield row | {"prompt": prompt[-LONGEST // 2 :], "response": response[: LONGEST // 2]}
    else:
        yield from (row | {"response": text} for text in cut_at_spaces(response))


def cut_at_spaces(text: str) -> Iterator[str]:
    """Yield `text` in pieces of at most `LONGEST` characters, each cut before its last space where it has one."""
    start = 0
    while len(text) - start > LONGEST:
        stop = text.rfind(" ", start + 1, start + LONGEST)
        stop = stop if stop > start else start + LONGEST
        yield text[start:stop]
        start = stop
    yield text[start:]


def encode_whole(
    rows: Sequence[JSON], tokenizer: PreTrainedTokenizerBase, *, length: int, label_prompts: bool
) -> list[list[Document]]:
    """Tokenise `rows` like `encode`, but split a long row without a prompt into several documents and cut none.

    The documents of a row are as equal in length as can be. Each but the first begins with the last token of the one
    before, from which its first label is predicted. Every token of the row but the first is therefore labelled once.

    Raises:
        UserError: the tokenizer gives no character offsets.
    """
    return [
        _pieces(row, ids, length)
        if len(ids) > length and not row["prompt"]
        else [_cut(row, ids, response, tokenizer, length, label_prompts)]
        for row, ids, response in _tokenised(rows, tokenizer)
    ]


def _tokenised(rows: Sequence[JSON], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[JSON, list[int], int]]:
    """Yield each row with all its tokens and the index of the first token that holds any of its response."""
    if not tokenizer.is_fast:
        raise UserError("the model's tokenizer gives no character offsets; put its tokenizer.json beside the weights.")
    texts = [row["prompt"] + row["response"] for row in rows]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    end = tokenizer.eos_token_id
    for row, ids, spans in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        response = next((index for index, (_, stop) in enumerate(spans) if stop > len(row["prompt"])), len(ids))
        # Some tokenizers put the end of text there themselves.
        yield row, ids if end is None or ids[-1:] == [end] else [*ids, end], response


def _cut(
    row: JSON, ids: list[int], response: int, tokenizer: PreTrainedTokenizerBase, length: int, label_prompts: bool
) -> Document:
    excess = max(len(ids) - length, 0)
    # One prompt token stays, because the first response token is predicted from it.
    dropped = min(excess, max(response - 1, 0))
    kept = ids[dropped : dropped + length]
    # The sequence still begins with the start token, which the cut would have removed.
    if dropped and ids[0] == tokenizer.bos_token_id:
        kept[0] = ids[0]
    prompt = min(response - dropped, len(kept)) if row["prompt"] else 0
    first_label = 0 if label_prompts else response - dropped
    return Document(kept, first_label, str(row.get("task", "")), cut=excess > 0, prompt=prompt)


def _pieces(row: JSON, ids: list[int], length: int) -> list[Document]:
    labels = len(ids) - 1
    # Neighbouring pieces share a token, so a piece of `length` tokens has length − 1 labels.
    count = -(-labels // (length - 1))
    starts = [labels * index // count for index in range(count + 1)]
    pieces = (ids[start : stop + 1] for start, stop in pairwise(starts))
    return [Document(piece, 0, str(row.get("task", "")), cut=False) for piece in pieces]


def tokens_of(documents: Iterable[Document]) -> int:
    """Return the number of tokens of all documents."""
    return sum(len(document.ids) for document in documents)


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


def split(documents: Sequence[Document], tokens: int, *, among: int = 1) -> list[list[Document]]:
    """Return the documents in consecutive runs of at most `tokens` tokens. A longer document has a run of its own.

    There are as few runs as can be, but one for each of `among` workers where that makes the longest run shorter. With
    so many runs, the longest is as short as can be.
    """
    count = max(len(_runs(documents, tokens)), among)
    # A lower limit never needs fewer runs, so the lowest limit that needs no more is found by bisection.
    shortest = bisect_left(range(tokens), True, key=lambda limit: len(_runs(documents, limit)) <= count)
    return _runs(documents, shortest)


def _runs(documents: Sequence[Document], tokens: int) -> list[list[Document]]:
    """Return runs of at most `tokens` tokens, each as long as can be."""
    runs: list[list[Document]] = []
    size = 0
    for document in documents:
        size += len(document.ids)
        if runs and size <= tokens:
            runs[-1].append(document)
        else:
            runs.append([document])
            size = len(document.ids)
    return runs


def collate(documents: Sequence[Document], device: str = "cpu", *, share: bool = False) -> Batch:
    """Return `documents` packed end to end.

    With `share`, a beginning that several documents have in common (an instruction's template, say) is in the sequence
    once, and each document continues from it. Tokens see what they would see otherwise, so only rounding changes.
    """
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    contexts: list[int] = []
    places: dict[int, list[int]] = {}
    before: list[int] = []
    there: list[int] = []
    # In the order of their tokens, documents with a common beginning are neighbours.
    order = sorted(range(len(documents)), key=lambda index: documents[index].ids) if share else range(len(documents))
    for index in order:
        tokens = documents[index].ids
        context = _shared(before, tokens) if share else 0
        there = [*there[:context], *range(len(ids), len(ids) + len(tokens) - context)]
        ids += tokens[context:]
        positions += range(context, len(tokens))
        sources += there
        contexts.append(context)
        before, places[index] = tokens, there
    # Labels keep the order in which documents were given, whatever the order in the sequence.
    predictors, labels = [], []
    for index, document in enumerate(documents):
        first = max(document.first_label, 1)
        predictors += places[index][first - 1 : -1]
        labels += document.ids[first:]
    lengths = tuple(len(documents[index].ids) - context for index, context in zip(order, contexts, strict=True))
    numbers = (ids, predictors, labels, sources) if any(contexts) else (ids, predictors, labels)
    on_host = tuple(torch.tensor(each, dtype=torch.long) for each in numbers)
    input_ids_T, predictors_N, labels_N, *sources_S = (sent(tensor, device) for tensor in on_host)
    return Batch(
        input_ids_1T=input_ids_T[None],
        position_ids_1T=on_device(positions, device, torch.long)[None],
        layout=Layout(lengths, Shared(tuple(contexts), *sources_S) if sources_S else None),
        predictors_N=predictors_N,
        labels_N=labels_N,
        on_host=on_host,
        written=any(document.written for document in documents),
    )


def _shared(before: Sequence[int], document: Sequence[int]) -> int:
    """Return how many tokens `document` takes over from the one `before` it. At least one token stays its own."""
    most = min(len(before), len(document) - 1)
    common = next((index for index in range(most) if before[index] != document[index]), most)
    return common if common >= WORTH_SHARING else 0
