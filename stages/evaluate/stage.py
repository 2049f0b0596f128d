"""The evaluate stage: a model's accuracy on multiple-choice tasks and its perplexity on held-out passages.

The likelihood protocol: each choice is scored by its log-likelihood after the question, without examples; accuracy and
length-normalised accuracy are lm-eval's own metrics on them. Bits per byte of the right answer and perplexity move
before accuracy does, and with far less noise.

A task's documents are written when the task is done, so a killed evaluation goes on at the task it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from stages.checkpoint import load_model, load_tokenizer
from stages.errors import UserError
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.judge import judge
from stages.evaluate.metrics import average, summarise
from stages.evaluate.perplexity import passage_rows, select, totals
from stages.scoring.scorer import Scorer
from stages.tasks.definitions import documents, load
from stages.files import read_json, read_jsonl, write_json, write_jsonl
from stages.progress import progress
from stages.stage import JSON, Context


def run(config: EvaluateConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Evaluate the model of artifact `inputs["model"]` on the rows of artifact `inputs["tasks"]`.

    Writes `documents/TASK.jsonl` (one line a document, `judge` says what), `results.json` and `perplexity.json`;
    returns the means and the perplexity.

    Raises:
        UserError: nothing to evaluate, an unknown task or one without rows, or likelihoods that are not finite.
    """
    _check(config)

    @cache
    def scorer() -> Scorer:
        directory = inputs["model"] / "model"
        model = load_model(directory, dtype=config.dtype, device=context.device)
        return Scorer(model, load_tokenizer(directory), batch_tokens=config.batch_tokens)

    rows = _answered(config, inputs["tasks"], context.output, scorer)
    labels = {name: task["label"] for name, task in read_json(inputs["tasks"] / "tasks.json").items()}
    tasks = {name: {"label": labels[name]} | summarise(rows[name]) for name in config.tasks}
    results: JSON = {"tasks": tasks, "mean": average(list(tasks.values()))}
    results |= {"protocol": config.protocol, "examples": 0, "limit": config.limit, "dtype": config.dtype}
    results["versions"] = {name: version(name) for name in ("lm-eval", "transformers", "torch")}
    if not (context.output / "perplexity.json").is_file():
        passages = select(read_jsonl(inputs["tasks"] / "passages.jsonl"), config.passages)
        write_json(context.output / "perplexity.json", totals(passage_rows(scorer(), passages) if passages else []))
    write_json(context.output / "results.json", results)
    return {"mean": results["mean"], "perplexity": read_json(context.output / "perplexity.json")["perplexity"]}


def _answered(
    config: EvaluateConfig, source: Path, output: Path, scorer: Callable[[], Scorer]
) -> dict[str, list[JSON]]:
    """Return each task's documents, scored now or by the run that was killed here."""
    files = {name: output / "documents" / f"{name}.jsonl" for name in config.tasks}
    done = {name: list(read_jsonl(path)) for name, path in files.items() if path.is_file()}
    tasks = {name: task for name in config.tasks for task in load(name, source, limit=config.limit).values()}
    asked = {name: documents(task, limit=config.limit) for name, task in tasks.items()}
    done = {name: rows for name, rows in done.items() if rows and len(rows) == len(asked[name])}
    tasks, asked = ({name: part[name] for name in part if name not in done} for part in (tasks, asked))
    choices = sum(len(document.requests) for questions in asked.values() for document in questions)
    with progress("evaluate", total=choices, unit="choice") as bar:
        for name, task in tasks.items():
            bar.set_description(f"evaluate {name}")
            done[name] = judge(scorer(), task, asked[name], bar.update)
            write_jsonl(files[name], done[name])
    return done


def _check(config: EvaluateConfig) -> None:
    if config.limit is not None and config.limit < 1:
        raise UserError(f"evaluate.limit is {config.limit}: give at least 1 document a task, or null for all of them.")
    if config.passages < 0:
        raise UserError(f"evaluate.passages is {config.passages}: give 0 (no perplexity) or more.")
    if config.batch_tokens < 1:
        raise UserError(f"evaluate.batch_tokens is {config.batch_tokens}: give at least 1 token a forward pass.")
    if not config.tasks and not config.passages:
        raise UserError("nothing to evaluate: no evaluate.tasks and evaluate.passages=0. To skip it: evaluate=none.")

