"""The plan of the evaluate and cost stages, found before anything runs. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stages.common.choices import lookup, narrowed
from stages.common.machine import card, precision, processor
from stages.errors import UserError
from stages.evaluate.config import PROTOCOLS, CostConfig, EvaluateConfig, EvaluateOptions
from stages.task_library.instructions import FORMATS
from stages.text_library.kinds import kind_of_text


def check_options(options: EvaluateOptions) -> bool:
    """Check the names of the options, and return whether anything is judged.

    Raises:
        UserError: the protocol is unknown, or an option of the running cost is outside its range.
    """
    lookup("evaluate.protocol", options.protocol, dict.fromkeys(PROTOCOLS))
    check_cost(options.cost)
    return options.protocol != "none"


def planned(
    options: EvaluateOptions, tasks: Sequence[str], texts: Sequence[str], corpora: Sequence[str], device: str
) -> EvaluateConfig:
    """Return the evaluate stage's config, by which every evaluation of a run is keyed.

    `tasks`, `texts` and `corpora` are the names that the options' names stand for.

    Raises:
        UserError: an option is outside its range, a task has no form under the protocol, or nothing is asked.
    """
    config = narrowed(EvaluateConfig, options)
    config.dtype = precision("evaluate.dtype", options.dtype, device)
    config.tasks, config.corpora = list(tasks), list(corpora)
    # Of the texts that are fetched, some may only be continued.
    config.texts = [name for name in texts if name in options.texts]
    check_evaluation(config)
    return settled(config)


def planned_cost(options: CostConfig, device: str, threads: int | None) -> CostConfig:
    """Return the cost stage's config. Machine and threads are in it, because a time belongs to its machine."""
    dtype = precision("evaluate.cost.dtype", options.dtype, device)
    machine = f"{processor()}, {card()}" if device == "cuda" else processor()
    return dataclasses.replace(options, dtype=dtype, device=device, threads=threads, processor=machine)


def check_evaluation(config: EvaluateConfig) -> None:
    """Check the options of the evaluate stage. Its tasks go by their own names, without suites.

    Raises:
        UserError: an option is outside its range, a task has no form under the protocol, or nothing is asked.
    """
    for name in ("limit", "corpus_windows", "new_tokens", "beams", "batch_tokens", "generation_tokens"):
        _require_at_least(1, name, getattr(config, name))
    for name in ("num_fewshot", "passages", "generation_prompts"):
        _require_at_least(0, name, getattr(config, name))
    for length in config.corpus_lengths:
        _require_at_least(2, "corpus_lengths", length)
    if config.corpora and not config.corpus_lengths:
        raise UserError("evaluate.corpora names texts, and evaluate.corpus_lengths is empty: give tokens a window.")
    for text in config.texts:
        kind_of_text(text)
    if not (config.tasks or (config.texts and config.passages) or config.corpora or config.generation_prompts):
        raise UserError(
            "nothing to evaluate: no evaluate.tasks, texts, corpora or generation_prompts. To skip it: evaluate=none."
        )
    if config.protocol == "generation":
        _check_generation(config)


def settled(config: EvaluateConfig) -> EvaluateConfig:
    """Return `config` with options that its protocol does not read at their defaults, so that they change no key."""
    unread = ["num_fewshot"] if config.protocol == "generation" else ["new_tokens", "beams"]
    unread += [] if config.corpora else ["corpus_lengths", "corpus_windows"]
    unread += [] if config.generation_prompts else ["generation_tokens"]
    unread += [] if config.texts else ["passages"]
    default = EvaluateConfig()
    return dataclasses.replace(config, **{name: getattr(default, name) for name in unread})


def _check_generation(config: EvaluateConfig) -> None:
    if config.num_fewshot:
        raise UserError(
            f"evaluate.num_fewshot is {config.num_fewshot}, and evaluate=generation asks without examples: give 0. "
            "Examples go with evaluate=likelihood."
        )
    for task in config.tasks:
        lookup("task of evaluate=generation", task, FORMATS)


def _require_at_least(least: int, name: str, value: int | None) -> None:
    if value is not None and value < least:
        raise UserError(f"evaluate.{name} must be at least {least}, and is {value}.")


def check_cost(config: CostConfig) -> None:
    """Check the options of the cost stage.

    Raises:
        UserError: an option is outside its range. The message has the option, the rule and the value.
    """
    for name in ("prompt_tokens", "new_tokens", "repeats"):
        _require_at_least(1, f"cost.{name}", getattr(config, name))
    sizes = config.batch_sizes
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise UserError(
            f"evaluate.cost.batch_sizes must be at least one size of at least 1, each once, and is {sizes}."
        )
