"""Continuations of many prompts at once: what transformers' `generate` writes, without its padding and waiting.

Greedy unless a `Sampling` is given. A sampled token is drawn by inverting the sums of the probabilities at a number
from the prompt's own stream. So what is drawn for a prompt does not depend on the prompts beside it, beyond rounding.

A beginning that prompts have in common (an instruction's template, examples) is read once for a whole batch. Keys and
values are kept by `stages.inference.cache`. A sequence that has ended leaves the batch, and the caller may end it as
soon as it has read enough.

Shapes: B sequences of a batch, T nodes of a pass, H hidden size, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from stages.decoders.drawing import inverted
from stages.decoders.sdpa import without_plans
from stages.inference.beam_search import batches, end_tokens, generated
from stages.inference.cache import Cache, cache_for
from stages.inference.decoder import FlatDecoder
from stages.inference.prefix_tree import passes, plant, side_by_side, tensors
from stages.inference.scorer import Scorer
from stages.inference.tree_attention import tree_attention
from stages.rows.bounds import on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ids = list[int]
Stop = Callable[[str], bool]
"""Returns whether the text written so far is enough."""
CACHE_TOKENS = 16_384
"""Places in a batch's cache. 16,384 of SmolLM2-135M are 0.75 GB in float32."""
ROWS = {"cpu": 48}
"""Sequences of a batch on a processor. With more, a step's matrix products get no cheaper for each of them in float32.

In bfloat16 they do. A batch there has twice as many sequences and places, in the same memory.
"""
KEEP = 0.75
"""Share of a batch still being written at which those rows move together. Moving costs about as much as a step."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: the number above 0 that logits are divided by.
        seeds: one for each prompt; equal seeds draw the same numbers.
    """

    temperature: float
    seeds: Sequence[str]


class Written(NamedTuple):
    """What was written after a prompt: its tokens, and the end token that followed, None where none did."""

    tokens: Ids
    end: int | None


class Generator:
    """Continuations by the model of a `Scorer`."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.tokenizer = scorer.encoder.tokenizer
        self.ends = end_tokens(scorer)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int,
        stop: Stop | None = None,
        ends: frozenset[int] = frozenset(),
        advance: Callable[[int], object] = int,
    ) -> list[str]:
        """Return the model's continuation of each prompt, without special tokens, in the prompts' order.

        A continuation ends with an end-of-text token (or one of `ends`), after `new_tokens` tokens, or when `stop` is
        true of it. A prompt that leaves no room for `new_tokens` is cut from the left, as lm-eval's `HFLM` cuts it.
        `advance` is told how many more are done.
        """
        contexts = self.scorer.encoder.prompts(prompts, room=new_tokens)
        found = self.continuations(contexts, new_tokens=new_tokens, stop=stop, ends=ends, advance=advance)
        return [_text(self.tokenizer, written.tokens) for written in found]

    @torch.inference_mode()
    def continuations(
        self,
        contexts: Sequence[Ids],
        *,
        new_tokens: int,
        sampling: Sampling | None = None,
        stop: Stop | None = None,
        ends: frozenset[int] = frozenset(),
        advance: Callable[[int], object] = int,
    ) -> list[Written]:
        """Return what the model writes after each of `contexts`, token ids that leave room for `new_tokens` more.

        The other arguments are those of `generate`.
        """
        found: list[Written] = [Written([], None)] * len(contexts)
        rows, places = _limits(self.scorer.model)
        for group in batches([len(ids) + new_tokens for ids in contexts], tokens=places, rows=rows):
            chosen = [contexts[index] for index in group]
            choice = _Choice(sampling, group)
            writing = _Writing(self.tokenizer, len(group), new_tokens, self.ends | ends, stop, advance)
            with without_plans(self.scorer.model.device):
                # Attention over the cache sees every token before, so it can't serve a sliding window.
                if self.scorer.flat is not None and self.scorer.window is None:
                    self._write(chosen, writing, choice, self.scorer.flat)
                else:
                    self._write_by_transformers(chosen, writing, choice)
            for index, written in zip(group, writing.found, strict=True):
                found[index] = written
        return found

    def _write(self, contexts: list[Ids], writing: _Writing, choice: _Choice, flat: FlatDecoder) -> None:
        model = self.scorer.model
        lengths = [len(ids) for ids in contexts]
        cache = cache_for(model.device, model.dtype, flat.head_size, lengths, writing.new_tokens)
        last_BH = self._read(contexts, cache, flat)
        while True:
            token_B = choice(self.scorer.logits(last_BH), writing.rows)
            live = writing.take(token_B.tolist())
            if not live:
                return
            if len(live) <= KEEP * len(token_B):
                writing.keep(live)
                token_B = token_B[cache.keep(live)]
            last_BH = flat(token_B, cache.next_positions(), cache.attend)

    def _read(self, contexts: list[Ids], cache: Cache, flat: FlatDecoder) -> Tensor:
        """Run the prompts, fill the cache, and return the hidden state after each prompt, [B, H]."""
        scorer = self.scorer
        device = scorer.model.device
        trees = plant(contexts, largest=scorer.batch_tokens)
        read: list[int] = []
        last: list[Tensor] = []
        for batch in passes(trees, tokens=scorer.pass_tokens, segment=scorer.segment):
            row = side_by_side(batch)
            attend = cache.filled_by(row, tree_attention(batch, row, device))
            ends = on_device([path[-1] for path in row.paths.values()], device, torch.long)
            last.append(flat(*tensors(row, device), attend)[ends])
            read += row.paths
        order = sorted(range(len(read)), key=read.__getitem__)
        return torch.cat(last)[on_device(order, device, torch.long)]

    def _write_by_transformers(self, contexts: list[Ids], writing: _Writing, choice: _Choice) -> None:
        """Let the model's own `generate` write all tokens, and take the wanted ones from them."""
        ends, new_tokens = writing.ends, writing.new_tokens
        # Greedy needs no choice of ours: `generate` takes the likeliest token itself.
        choose = None if choice.greedy else lambda logits_BV: choice(logits_BV, writing.rows)
        written_BW = generated(self.scorer.model, contexts, ends=ends, new_tokens=new_tokens, choose=choose)
        for token_B in written_BW.T.tolist():
            if not writing.take(token_B):
                return


class _Choice:
    """The next tokens of a batch's rows: the likeliest, or drawn ones."""

    def __init__(self, sampling: Sampling | None, group: Sequence[int]) -> None:
        self.greedy = sampling is None
        if sampling is not None:
            self.temperature = sampling.temperature
            # A string seeds alike in every process.
            self.streams = [random.Random(sampling.seeds[index]) for index in group]

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        """Return a token for each of `rows`, [B]. Each row's stream gives one number for each of its tokens."""
        if self.greedy:
            return logits_BV.argmax(-1)
        drawn = [self.streams[row].random() for row in rows]
        drawn_B = on_device(drawn, logits_BV.device, torch.float64)
        cooled_BV = logits_BV if self.temperature == 1 else logits_BV / self.temperature
        return inverted(cooled_BV.softmax(-1), drawn_B)


def _limits(model: PreTrainedModel) -> tuple[int, int]:
    """Return how many sequences, and how many places of its cache, a batch of `model` has at most."""
    rows = ROWS.get(model.device.type)
    if rows is None:
        return 256, CACHE_TOKENS
    times = 2 if model.dtype == torch.bfloat16 else 1
    return rows * times, CACHE_TOKENS * times


class _Writing:
    """The tokens of a batch's rows as they grow, and the rows that are still written."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        count: int,
        new_tokens: int,
        ends: frozenset[int],
        stop: Stop | None,
        advance: Callable[[int], object],
    ) -> None:
        self.tokenizer, self.new_tokens, self.ends, self.stop, self.advance = tokenizer, new_tokens, ends, stop, advance
        self.tokens: list[Ids] = [[] for _ in range(count)]
        self.last: list[int | None] = [None] * count
        self.done = [False] * count
        self.rows = list(range(count))

    @property
    def found(self) -> list[Written]:
        """What was written so far."""
        return list(map(Written, self.tokens, self.last))

    def take(self, tokens: Sequence[int]) -> list[int]:
        """Add one token to each row, and return the places of the rows that have not ended."""
        before = sum(self.done)
        for row, token in zip(self.rows, tokens, strict=True):
            if not self.done[row]:
                self.done[row] = self._ended(row, token)
        self.advance(sum(self.done) - before)
        return [place for place, row in enumerate(self.rows) if not self.done[row]]

    def keep(self, places: Sequence[int]) -> None:
        """Continue with the rows at these places alone."""
        self.rows = [self.rows[place] for place in places]

    def _ended(self, row: int, token: int) -> bool:
        if token in self.ends:
            self.last[row] = token
            return True
        self.tokens[row].append(token)
        full = len(self.tokens[row]) >= self.new_tokens
        return full or (self.stop is not None and self.stop(_text(self.tokenizer, self.tokens[row])))


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Ids) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text
