"""The demands of a task's definition: its splits, its number of examples, and whether it can be judged at all.

No torch, no lm-eval, because a plan reads these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stages.errors import UserError
from stages.task_library.yaml_definition import Definition

OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until")
MEANS = ("mean", "nanmean")
"""Aggregations of lm-eval that are means over documents."""
MEAN_BY_DEFAULT = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that lm-eval averages over documents where the definition names no aggregation."""


def evaluated_split(definition: Definition) -> str:
    """Return the split that lm-eval evaluates on.

    Raises:
        UserError: the definition names no split.
    """
    split = definition.get("test_split") or definition.get("validation_split")
    if not split:
        raise UserError(f"task '{definition.get('task')}' names neither a test_split nor a validation_split.")
    return str(split)


def carries_examples(definition: Definition) -> bool:
    """Return whether the definition itself holds the examples."""
    config = definition.get("fewshot_config") or {}
    return not _named_fewshot_split(definition) and config.get("samples") is not None


def fewshot_split(definition: Definition) -> str | None:
    """Return the split that lm-eval draws examples from, or None where the definition holds its own."""
    if carries_examples(definition):
        return None
    named = _named_fewshot_split(definition) or definition.get("training_split") or definition.get("validation_split")
    return str(named or evaluated_split(definition))


def _named_fewshot_split(definition: Definition) -> Any:
    config = definition.get("fewshot_config") or {}
    return config["split"] if "split" in config else definition.get("fewshot_split")


def examples(definition: Definition, asked: int | None) -> int:
    """Return how many examples precede a question where `asked` are asked for. None asks for the task's own number.

    As in lm-eval, a task whose definition says 0 has none.
    """
    own = definition.get("num_fewshot")
    return int(own or 0) if asked is None or own == 0 else asked


def check_judgeable(task: str, definition: Definition) -> None:
    """Check that `task` gives a score for each document, from text alone and without running code that a model writes.

    Raises:
        UserError: it does not. The message says why.
    """
    output_type = definition.get("output_type", "generate_until")
    if output_type == "loglikelihood_rolling":
        raise UserError(
            f"task '{task}' is a perplexity, not questions. Perplexities are taken with evaluate.corpora=[wikitext2]."
        )
    problem = next(_problems(definition, output_type), None)
    if problem:
        raise UserError(f"task '{task}' can't be judged here: {problem}. Leave it out of evaluate.tasks.")


def _problems(definition: Definition, output_type: str) -> Iterator[str]:
    if "class" in definition:
        yield "lm-eval defines it by a Python class of its own"
    if output_type not in OUTPUT_TYPES:
        yield f"its output_type is '{output_type}', which lm-eval does not have"
    if definition.get("custom_dataset"):
        yield "its rows are made by code, not read from a data set"
    if definition.get("unsafe_code"):
        yield "it runs code that the model writes"
    if definition.get("doc_to_image") or definition.get("doc_to_audio"):
        yield "it shows images or plays sounds"
    if not any(map(_is_mean, definition.get("metric_list") or ({"metric": "acc"},))):
        names = ", ".join(str(metric.get("metric")) for metric in definition["metric_list"])
        yield f"none of its metrics ({names}) is a mean over documents, so nothing can be said about single documents"


def _is_mean(metric: Any) -> bool:
    if not isinstance(metric, dict):
        return False
    if "aggregation" in metric:
        return metric["aggregation"] in MEANS
    return metric.get("metric") in MEAN_BY_DEFAULT
