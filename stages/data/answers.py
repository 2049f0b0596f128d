"""Answers of a model to the prompts of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.data.blocks import REMEDY
from stages.data.text import place_to_end
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.errors import UserError
from stages.inference.fitting import InParts, continued
from stages.inference.generator import Generator, Sampling, Written
from stages.inference.scorer import Scorer
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Writer:
    """A model that answers the prompts of rows."""

    def __init__(
        self,
        directory: Path,
        *,
        dtype: str,
        device: str,
        new_tokens: int,
        temperature: float,
        chat: bool,
        prompt_tokens: int,
    ) -> None:
        """Load the model in `directory`.

        Args:
            directory: the model with its tokenizer.
            dtype: precision of the computation.
            device: torch's name of the device.
            new_tokens: the most tokens of an answer.
            temperature: temperature at which tokens are drawn; 0 takes the likeliest.
            chat: whether a prompt is asked as a user's message in the tokenizer's chat template.
            prompt_tokens: tokens of plain text that are its prompt.

        Raises:
            UserError: the tokenizer has no chat template, and one is asked for.
        """
        self.tokenizer = load_tokenizer(directory)
        if chat and not getattr(self.tokenizer, "chat_template", None):
            raise UserError(
                "the model's tokenizer has no chat template. Ask prompts as they are (data.template=plain), or put a "
                "chat_template.jinja beside its weights."
            )
        self.new_tokens, self.temperature, self.chat, self.prompt_tokens = new_tokens, temperature, chat, prompt_tokens
        self.generator = Generator(Scorer(load_model(directory, dtype=dtype, device=device), self.tokenizer))
        self.in_parts = InParts(REMEDY)

    def answer(self, rows: Sequence[JSON], seeds: Sequence[str]) -> list[JSON]:
        """Return a line for each of `rows`: prompt, response, task, tokens (of both), finished (whether it ended).

        `seeds` are of what is drawn for each row.

        Raises:
            UserError: the model has no room for an answer.
        """
        asked = [self._asked(row) for row in rows]
        contexts = self.generator.scorer.encoder.prompts(asked, room=self.new_tokens)
        sampling = Sampling(self.temperature, seeds) if self.temperature else None
        found = continued(self.generator, self.in_parts, contexts, new_tokens=self.new_tokens, sampling=sampling)
        return [self._line(*each) for each in zip(rows, asked, contexts, found, strict=True)]

    def _asked(self, row: JSON) -> str:
        """Return the text that the model reads: the row's prompt, or the beginning of plain text."""
        if not row["prompt"]:
            return beginning(row["response"], self.tokenizer, self.prompt_tokens)
        return as_message(row["prompt"], self.tokenizer) if self.chat else str(row["prompt"])

    def _line(self, row: JSON, asked: str, context: list[int], written: Written) -> JSON:
        response, finished = self._response(context, written.tokens), written.end is not None
        if not finished:
            response = response[: place_to_end(response)].rstrip()
        size = len(context) + len(written.tokens)
        return {"prompt": asked, "response": response, "task": row["task"], "tokens": size, "finished": finished}

    def _response(self, context: list[int], tokens: list[int]) -> str:
        """Return the text of `tokens` as it follows that of `context`, with the space that may be between them."""
        before, whole = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in (context, context + tokens))
        # Some tokenizers drop a space where a text begins, so the answer is not decoded alone.
        if whole.startswith(before):
            return str(whole[len(before) :])
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def beginning(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """Return the first `tokens` tokens of `text` as text, at most half of them.

    Raises:
        UserError: the tokenizer gives no character offsets.
    """
    if not tokenizer.is_fast:
        raise UserError("the model's tokenizer gives no character offsets; put its tokenizer.json beside the weights.")
    spans = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)["offset_mapping"]
    return text[: spans[max(min(tokens, len(spans) // 2), 1) - 1][1]]


def as_message(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `prompt` as a user's message in the tokenizer's chat template, up to where the answer begins."""
    message = [{"role": "user", "content": prompt}]
    text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    # Where the tokenizer puts its first token before every text, the template's own would be a second one.
    begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(str(tokenizer.bos_token)) if begins else text
