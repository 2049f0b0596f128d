"""The work of an evaluation, counted before it runs. No torch here."""

from __future__ import annotations

from stages.decoders.shapes import DecoderShape
from stages.decoders.work import WRITING, Work, forward
from stages.evaluate.config import EvaluateConfig
from stages.task_library.registry import TASKS

EFFICIENCY = {"float32": 0.8, "bfloat16": 0.6}
"""By precision, of an evaluation by likelihood: float32 where there is no bfloat16, and bfloat16 where it is multiplied
natively (docs/speed.md)."""
QUESTION = 55
"""Tokens of a document with all of its choices, shared beginnings once: the mean of the eight default tasks."""
PROMPT = 100
"""Tokens of a document that is answered by generation."""
PASSAGE = 120
"""Tokens of a passage of any kind of held-out text."""
DOCUMENTS = 2800
"""Documents of a whole task: the mean of the eight default tasks."""
CORPUS = 300_000
"""Tokens of a whole text for perplexity: those of WikiText-2's test split."""


def work(config: EvaluateConfig, shape: DecoderShape) -> Work:
    """Return the work of the evaluation `config` of a model of `shape`, from the mean lengths above."""
    documents = sum(len(TASKS[name].leaves) or 1 if name in TASKS else 1 for name in config.tasks)
    documents *= DOCUMENTS if config.limit is None else config.limit
    tokens = documents * _document(config) + len(config.texts) * config.passages * PASSAGE
    for length in config.corpus_lengths:
        windows = CORPUS if config.corpus_windows is None else min(CORPUS, config.corpus_windows * length)
        tokens += len(config.corpora) * windows
    tokens += config.generation_prompts * config.generation_tokens * WRITING
    operations = {config.dtype: tokens * forward(shape)}
    return Work(operations=operations, efficiency=EFFICIENCY[config.dtype], kind=config.protocol)


def _document(config: EvaluateConfig) -> float:
    """Return the tokens of a document, each one that is written counted as the tokens read in its time."""
    if config.protocol == "generation":
        return PROMPT + config.new_tokens * config.beams * WRITING
    return QUESTION * (1 + (config.num_fewshot or 0))
