"""Token ids that a likelihood is taken over, split from text and cut exactly as lm-eval's `HFLM` does it.

This module owns tokenisation, the split between context and continuation, and what is cut from the left where both
together are too long. It does not run a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Query:
    """One likelihood to ask for: the tokens that a model reads and the tokens it is asked about.

    Attributes:
        inputs: ids to feed: context and continuation, without the continuation's last id.
        targets: ids of the continuation; the last `len(targets)` inputs predict them.
        truncated: whether the context was cut from the left to fit the model.
    """

    inputs: Ids
    targets: Ids
    truncated: bool


class Encoder:
    """A tokenizer used as lm-eval's `HFLM` uses one, remembering the strings it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if prefix is None:
            raise UserError(
                "the tokenizer has neither a bos nor an eos token for a text to start from. "
                "Set one in its tokenizer_config.json."
            )
        self.prefix: int = prefix
        self._prefix_text: str = tokenizer.decode([prefix])
        self._seen: dict[str, Ids] = {}

    def queries(self, requests: Sequence[tuple[str, str]]) -> list[Query]:
        """Return one query a (context, continuation).

        Spaces at the end of a context move to its continuation. The two are encoded together, and what lies beyond the
        context's own length is the continuation. A context that is empty, or only space, is the prefix token.

        Raises:
            UserError: a continuation has no token of its own, or more tokens than the model can read.
        """
        pairs = [_move_spaces(context, continuation) for context, continuation in requests]
        self._encode({text for context, continuation in pairs if context for text in (context, context + continuation)})
        return [self._query(*self._split(context, continuation)) for context, continuation in pairs]

    def prompts(self, texts: Sequence[str], *, room: int) -> list[Ids]:
        """Return the ids of prompts, cut from the left so that `room` more tokens fit the model.

        An empty prompt is the prefix token.

        Raises:
            UserError: no token of a prompt would be left.
        """
        if room >= self.max_length:
            raise UserError(f"{room} new tokens leave no room for a prompt: the model reads {self.max_length} at once.")
        self._encode(texts)
        # `room − max_length` is negative: the slice keeps the last `max_length − room` ids.
        return [(self._seen[text] or [self.prefix])[room - self.max_length :] for text in texts]

    def fits(self, text: str, *, room: int) -> bool:
        """Return whether a prompt is read whole where `room` more tokens follow it."""
        self._encode([text])
        return len(self._seen[text]) + room <= self.max_length

    def passage(self, text: str, *, special_tokens: bool = False) -> list[Query]:
        """Return the queries that together ask for every token of `text` once: lm-eval's rolling windows.

        The first token is predicted from the prefix token. Special tokens that the tokenizer would add are left out
        unless asked for. lm-eval asks for them, and so counts the probability of a beginning-of-text after a
        beginning-of-text.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        ids = self.tokenizer.encode(text, add_special_tokens=special_tokens, verbose=False)
        windows = get_rolling_token_windows(ids, self.prefix, max_seq_len=self.max_length, context_len=1)
        return [self._query(*make_disjoint_window(window)) for window in windows]

    def _encode(self, texts: Iterable[str]) -> None:
        new = sorted(text for text in texts if text not in self._seen)
        for begins in (False, True):  # a text that begins with the prefix token gets no second one
            some = [text for text in new if text.startswith(self._prefix_text) == begins]
            if some:
                options = {"add_special_tokens": False} if begins else {}
                self._seen.update(zip(some, self.tokenizer(some, verbose=False, **options)["input_ids"], strict=True))

    def _split(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        context_ids = self._seen[context] if context else []
        if context_ids:
            return context_ids, self._seen[context + continuation][len(context_ids) :]
        ids = self.tokenizer.encode(continuation, add_special_tokens=False, verbose=False)
        return (ids[:1], ids[1:]) if ids[:1] == [self.prefix] else ([self.prefix], ids)

    def _query(self, context: Ids, continuation: Ids) -> Query:
        if not continuation:
            raise UserError("a continuation has no token of its own, so it has no likelihood: is a choice empty?")
        if len(continuation) > self.max_length:
            raise UserError(f"a continuation has {len(continuation)} tokens, and the model reads {self.max_length}.")
        inputs = (context + continuation)[:-1]
        return Query(inputs[-self.max_length :], continuation, truncated=len(inputs) > self.max_length)


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation
