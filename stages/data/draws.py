"""Texts that a model draws from itself, from the token that begins a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.data.blocks import REMEDY
from stages.decoders.checkpoint import load_model, load_tokenizer
from stages.inference.fitting import InParts, continued
from stages.inference.generator import Generator, Sampling, Written
from stages.inference.scorer import Scorer
from stages.stage import JSON

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""What the bytes of a character decode to where some are missing."""


class Drawer:
    """A model that makes up texts."""

    def __init__(self, directory: Path, *, dtype: str, device: str, new_tokens: int, temperature: float) -> None:
        """Load the model in `directory`.

        Args:
            directory: the model with its tokenizer.
            dtype: precision of the computation.
            device: torch's name of the device.
            new_tokens: the most tokens of a text, as far as the model reads so many after the first one.
            temperature: temperature at which tokens are drawn.

        Raises:
            UserError: the tokenizer has neither a bos nor an eos token.
        """
        self.temperature = temperature
        self.tokenizer = load_tokenizer(directory)
        self.generator = Generator(Scorer(load_model(directory, dtype=dtype, device=device), self.tokenizer))
        self.in_parts = InParts(REMEDY)
        self.new_tokens = min(new_tokens, self.generator.scorer.encoder.max_length - 1)

    def draw(self, seeds: Sequence[str]) -> list[JSON]:
        """Return a line for each of `seeds`, which decides what is drawn: text, tokens, finished (whether it ended)."""
        encoder = self.generator.scorer.encoder
        found = continued(
            self.generator,
            self.in_parts,
            encoder.prompts([""] * len(seeds), room=self.new_tokens),
            new_tokens=self.new_tokens,
            sampling=Sampling(self.temperature, seeds),
            # A model that begins a text has ended the one before.
            ends=frozenset([encoder.prefix]),
        )
        return [self._line(written) for written in found]

    def _line(self, written: Written) -> JSON:
        text = self.tokenizer.decode(written.tokens, skip_special_tokens=True)
        # A character's bytes may be several tokens, of which the last ones were not drawn any more.
        text = text.rstrip(UNREADABLE)
        return {"text": text, "tokens": len(written.tokens), "finished": written.end is not None}
