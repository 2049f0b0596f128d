"""From rows of text to packed batches: tokens, labels and shape.

Owns what a training batch looks like, in `collate` and nowhere else: documents lie end to end in one sequence without
padding, position ids start again at each, and `Layout.lengths` tells attention (`stages.decoders.packed_attention`)
where one ends, so that no document sees another. Does not own the documents' order (`stages.rows.stream`), the loss or
the schedule.

Shapes: T tokens of a batch, N of them labelled. A label is the token after the position that predicts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from stages.errors import UserError
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORTH_SHARING = 8
"""Tokens that two documents must begin with alike, for the second to continue from the first's."""


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
class Shared:
    """Which tokens a document goes on from."""

    contexts: tuple[int, ...]
    """Tokens before each document's own, in the order of `Layout.lengths`."""
    sources_S: torch.Tensor
    """Positions in the sequence of each document's tokens, those it shares and its own, one document after another."""
    masks: tuple[torch.Tensor | None, ...]
    """Which of those tokens each of its own sees [L, context + L]; None where it shares none, so that all is causal."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where documents that lie end to end begin and end: what attention has to know of them."""

    lengths: tuple[int, ...]
    """Tokens of its own in each document, in the order they lie in; they sum to T."""
    shared: Shared | None = None
    """Where documents begin with tokens of others; None where each is all its own."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents end to end: the input of one forward pass."""

    input_ids_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    layout: Layout
    predictors_N: torch.Tensor
    """Positions in the sequence whose next token is labelled."""
    labels_N: torch.Tensor
    """The token that comes after each of them."""

    def predicting(self, states_TX: torch.Tensor) -> torch.Tensor:
        """Return the states that a label is predicted from, [N, X].

        Documents that share a beginning predict from the same states. The backward pass of `states_TX[predictors_N]`
        would add up those rows' gradients in whatever order threads come by (atomically, in float32 on a processor),
        so that no two trainings ended in the same bytes. That of `index_select` adds them in order.
        """
        return states_TX.index_select(0, self.predictors_N)


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
    return [
        _cut(row, ids, response, tokenizer, length, label_prompts) for row, ids, response in _tokenised(rows, tokenizer)
    ]


def encode_whole(
    rows: Sequence[JSON], tokenizer: PreTrainedTokenizerBase, *, length: int, label_prompts: bool
) -> list[list[Document]]:
    """Tokenise `rows` like `encode`, but a row without a prompt that is too long as several documents, none cut.

    They are as equal in length as can be. Each but the first begins with the last token of the one before, from which
    its first label is predicted, so that every token of the row but the first is labelled exactly once.

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
    """Yield each row with all of its tokens and the index of the first one that holds any of its response."""
    if not tokenizer.is_fast:
        raise UserError("the model's tokenizer gives no character offsets; put its tokenizer.json beside the weights.")
    texts = [row["prompt"] + row["response"] for row in rows]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    end = tokenizer.eos_token_id
    for row, ids, spans in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        response = next((index for index, (_, stop) in enumerate(spans) if stop > len(row["prompt"])), len(ids))
        yield row, ids if end is None or ids[-1:] == [end] else [*ids, end], response


def _cut(
    row: JSON, ids: list[int], response: int, tokenizer: PreTrainedTokenizerBase, length: int, label_prompts: bool
) -> Document:
    excess = max(len(ids) - length, 0)
    # One prompt token stays, because the first response token needs one to be predicted from.
    dropped = min(excess, max(response - 1, 0))
    kept = ids[dropped : dropped + length]
    if dropped and ids[0] == tokenizer.bos_token_id:
        kept[0] = ids[0]
    first_label = 0 if label_prompts else response - dropped
    return Document(kept, first_label, str(row.get("task", "")), cut=excess > 0)


def _pieces(row: JSON, ids: list[int], length: int) -> list[Document]:
    labels = len(ids) - 1
    count = -(-labels // (length - 1))
    starts = [labels * index // count for index in range(count + 1)]
    pieces = (ids[start : stop + 1] for start, stop in pairwise(starts))
    return [Document(piece, 0, str(row.get("task", "")), cut=False) for piece in pieces]


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


def collate(documents: Sequence[Document], device: str = "cpu", *, share: bool = False) -> Batch:
    """Return `documents` packed end to end.

    With `share`, what several of them begin with (an instruction's template, say) is in the sequence once and continued
    by each: tokens see what they would see otherwise, so nothing but the rounding of the result changes.
    """
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    contexts: list[int] = []
    places: dict[int, list[int]] = {}
    before: list[int] = []
    there: list[int] = []
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
    predictors, labels = [], []
    for index, document in enumerate(documents):
        first = max(document.first_label, 1)
        predictors += places[index][first - 1 : -1]
        labels += document.ids[first:]
    lengths = tuple(len(documents[index].ids) - context for index, context in zip(order, contexts, strict=True))
    shared = _sharing(contexts, lengths, torch.tensor(sources, device=device)) if any(contexts) else None
    return Batch(
        input_ids_1T=torch.tensor([ids], device=device),
        position_ids_1T=torch.tensor([positions], device=device),
        layout=Layout(lengths, shared),
        predictors_N=torch.tensor(predictors, dtype=torch.long, device=device),
        labels_N=torch.tensor(labels, dtype=torch.long, device=device),
    )


def _sharing(contexts: Sequence[int], lengths: Sequence[int], sources_S: torch.Tensor) -> Shared:
    masks = (
        sources_S.new_ones(length, context + length, dtype=torch.bool).tril(context) if context else None
        for context, length in zip(contexts, lengths, strict=True)
    )
    return Shared(tuple(contexts), sources_S, tuple(masks))


def _shared(before: Sequence[int], document: Sequence[int]) -> int:
    """Return how many tokens `document` takes over from the one `before` it; at least one stays its own."""
    most = min(len(before), len(document) - 1)
    common = next((index for index in range(most) if before[index] != document[index]), most)
    return common if common >= WORTH_SHARING else 0
