"""The work of writing rows with a model, counted before it runs. No torch here."""

from __future__ import annotations

from stages.data.config import AskingConfig
from stages.data.sampled import SampledConfig
from stages.data.selfwritten import SelfWrittenConfig
from stages.decoders.shapes import DecoderShape
from stages.decoders.work import WRITING, Work, forward

EFFICIENCY = 0.75
"""Of `data=sampled` in bfloat16 on one processor that multiplies it natively (docs/speed.md)."""
PROMPT = 100
"""Tokens of a prompt that is answered."""
ROWS = 20_000
"""Rows of a data set that is asked whole."""


def writing(config: AskingConfig, shape: DecoderShape) -> Work:
    """Return the work of the model of `shape` that writes the rows of `config`, each as long as it may be.

    The work of a data set that is not known here is 0.
    """
    operations = {config.dtype: _tokens(config) * forward(shape)}
    return Work(operations=operations, efficiency=EFFICIENCY, kind=config.name)


def _tokens(config: AskingConfig) -> float:
    """Return how many tokens would be read in the time that reading and writing take."""
    if isinstance(config, SampledConfig):
        return config.rows * config.new_tokens * WRITING
    if isinstance(config, SelfWrittenConfig):
        tokens = (config.rows or ROWS) * (PROMPT + config.new_tokens * WRITING)
        return tokens if config.tokens is None else min(tokens, config.tokens * WRITING)
    return 0.0
