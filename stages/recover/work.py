"""The work of a recovery, counted before it runs. No torch here."""

from __future__ import annotations

import math

from stages.adapters.registry import ADAPTERS
from stages.decoders.shapes import DecoderShape
from stages.decoders.work import WRITING, Work, forward
from stages.recover.config import RecoverStageConfig

EFFICIENCY = {"float32": 0.6, "bfloat16": 0.31}
"""By precision: float32 where there is no bfloat16, and bfloat16 where it is multiplied natively (docs/speed.md)."""
WRITTEN = 0.5
"""Tokens that an on-policy step writes, for each token of its rows."""


def work(config: RecoverStageConfig, shape: DecoderShape, teacher: DecoderShape | None) -> Work:
    """Return the work of the recovery `config` of a model of `shape`; `teacher` is the shape of its teacher.

    A token passes forward and backward once, and forward through the teacher. An adapter leaves the gradients of the
    model's own weights out, which are half of a backward pass.
    """
    options, once = config.recover, forward(shape)
    backward = 2.0 if ADAPTERS[config.adapter.name].trained is not None else 1.0
    passes = 1.0 + backward + (1.0 if options.gradient_checkpointing else 0.0)
    token = passes * once + (0.0 if teacher is None else forward(teacher))
    if options.objective == "on_policy":
        token += options.on_policy.share * WRITTEN * WRITING * once
    points = math.ceil(options.tokens / options.curve_every) + 1
    scored = points * options.validation_tokens + options.test_tokens
    return Work(
        operations={config.dtype: options.tokens * token + scored * once},
        efficiency=EFFICIENCY[config.dtype],
        kind=f"{config.adapter.name} {options.objective}",
    )
