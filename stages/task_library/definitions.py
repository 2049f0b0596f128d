"""Tasks as lm-eval defines them, on the rows of a `tasks` artifact.

This module builds lm-eval's task object from rows on disk, with no hub and without lm-eval's scan of its definitions,
and asks its documents. Prompts, choices, answers, document processing, the choice of examples and the metrics are
lm-eval's own. Importing this module loads neither torch nor lm-eval.

    tasks.json                     {name: {"label", "kind", "leaves": {leaf: {"split", "rows", …}}}}
    tasks/LEAF/definition.yaml     lm-eval's definition, whole
    tasks/LEAF/SPLIT.jsonl         rows with the data set's own columns
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.choices import lookup, nearest
from stages.common.files import read_json, read_jsonl
from stages.common.progress import hushed
from stages.errors import UserError
from stages.stage import JSON
from stages.task_library.check import carries_examples, evaluated_split, examples, fewshot_split
from stages.task_library.registry import TASKS
from stages.task_library.yaml_definition import Definition, lm_eval_tasks

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Row = dict[str, Any]
Request = tuple[str, Any]
"""A context and what is asked after it: the continuation whose probability is wanted, or options to generate one."""

FEWSHOT_SEED = 1234
"""lm-eval's own seed, from which it draws the examples of a task's documents in turn."""


@dataclass(frozen=True, slots=True)
class Document:
    """One question as lm-eval asks it.

    Attributes:
        doc: lm-eval's document, as its metrics take it.
        requests: one (context, continuation) a choice, in the choices' order. For `acc_mutual_info`, lm-eval adds each
            choice without a context behind these. Where an answer is generated: one (context, generation options).
        gold: index of the right choice. None where several are right, or an answer is generated.
        lengths: UTF-8 bytes of each choice's continuation, without the delimiter (a space) that lm-eval puts before
            it. Where choices are the continuations, these are the choices' bytes. WinoGrande's choices are contexts,
            so there it is the shared rest of the sentence.
    """

    doc: Row
    requests: list[Request]
    gold: int | None
    lengths: list[int]


def leaf_folder(artifact: Path, leaf: str) -> Path:
    """Return the folder of a `tasks` artifact that has the rows and the definition of a task."""
    return artifact / "tasks" / leaf.replace("/", "-")


def load(name: str, artifact: Path, *, limit: int | None = None) -> dict[str, ConfigurableTask]:
    """Return lm-eval's task objects for `name` in a `tasks` artifact: one task, or each task of a group.

    With `limit`, rows beyond it are not read where a task's documents are surely its rows in order. Examples can be
    asked for (`documents`) where the artifact has their split.

    Raises:
        UserError: the artifact lacks the task or its rows, or lm-eval can't build it.
    """
    record = read_json(artifact / "tasks.json")
    if name not in record:
        raise UserError(
            f"{artifact} has no task '{name}'{nearest(name, record) or '.'} Add it to evaluate.tasks, so that its rows "
            "are fetched."
        )
    return {
        leaf: _from_disk(leaf, leaf_folder(artifact, leaf), found, limit)
        for leaf, found in record[name]["leaves"].items()
    }


def _from_disk(leaf: str, folder: Path, found: JSON, limit: int | None) -> ConfigurableTask:
    from lm_eval.tasks._yaml_loader import load_yaml

    with _explained(leaf):
        definition = load_yaml(folder / "definition.yaml")
    # `process_docs` may drop or reorder rows, so the first documents need not be the first rows.
    in_order = leaf in TASKS or not definition.get("process_docs")
    whole = found["fewshot_split"] == found["split"] or not in_order
    splits = {evaluated_split(definition): _rows(folder, found["split"], None if whole else limit)}
    if found["fewshot_split"]:
        drawn_from = str(fewshot_split(definition))
        splits.setdefault(drawn_from, _rows(folder, found["fewshot_split"], None))
    return _build(leaf, definition, splits)


def load_task(name: str, rows: Sequence[Row]) -> ConfigurableTask:
    """Return lm-eval's task object for the known task `name`. Its evaluated split holds `rows`; it has no examples.

    `rows` have the columns of the hub's data set, before lm-eval's `process_docs`.

    Raises:
        UserError: the task is unknown, or there is no row.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = load_yaml(lm_eval_tasks() / lookup("task", name, TASKS).definition)
    return _build(name, definition, {evaluated_split(definition): rows})


def _build(leaf: str, definition: Definition, splits: Mapping[str, Sequence[Row]]) -> ConfigurableTask:
    if not splits[evaluated_split(definition)]:
        raise UserError(f"task '{leaf}' has no documents to evaluate. Rebuild the tasks artifact, or drop the task.")
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    config = {key: value for key, value in definition.items() if key not in ("tag", "group", "task_list")}
    if not carries_examples(definition) and fewshot_split(definition) not in splits:
        # Without this, lm-eval wants a train split and processes it.
        config |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
    # lm-eval takes `metadata` apart as a mapping.
    if not isinstance(config.get("metadata", {}), dict):
        config.pop("metadata")
    config["task"] = leaf
    with _quiet(), _explained(leaf):
        data = DatasetDict({split: Dataset.from_list(list(rows)) for split, rows in splits.items()})
        # With `custom_dataset`, lm-eval takes these rows and does not fetch the data set from the hub.
        return ConfigurableTask(config={**config, "custom_dataset": lambda **_: data})


def documents(task: ConfigurableTask, num_fewshot: int | None = 0, limit: int | None = None) -> list[Document]:
    """Return the documents of `task` in order, as lm-eval would ask them after `num_fewshot` examples.

    None takes the task's own number of examples, as lm-eval does. lm-eval draws the examples itself, from its own seed.
    `limit` takes the first documents.

    Raises:
        UserError: a document's answer is none of its choices, a choice is empty, or there are too few rows to draw
            examples from.
    """
    count = examples({"num_fewshot": task.config.num_fewshot}, num_fewshot)
    _check_examples(task, count)
    task.set_fewshot_seed(FEWSHOT_SEED)
    with _templates_compiled_once():
        return [_document(task, index, doc, count) for index, doc in enumerate(islice(task.task_docs, limit))]


def metrics(task: ConfigurableTask) -> list[str]:
    """Return the metrics of `task` that are means over its documents, in the definition's order."""
    from lm_eval.api.metrics import mean, nanmean

    return [name for name, aggregate in task.aggregation().items() if aggregate in (mean, nanmean)]


def _check_examples(task: ConfigurableTask, count: int) -> None:
    name, rows = task.config.task, len(task.sampler.df)
    if count and not rows:
        raise UserError(
            f"task '{name}' has no rows to draw {count} examples from. Take them from the hub (evaluate.source=hub), "
            "or ask without examples (evaluate.num_fewshot=0)."
        )
    if count > rows:
        raise UserError(f"task '{name}' has {rows} rows to draw examples from: evaluate.num_fewshot is at most that.")


def _document(task: ConfigurableTask, index: int, doc: Row, count: int) -> Document:
    context = task.fewshot_context(doc, num_fewshot=count, gen_prefix=task.doc_to_prefix(doc))
    instances = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, index, 1))
    requests: list[Request] = [request.args for request in (instances if isinstance(instances, list) else [instances])]
    if task.OUTPUT_TYPE == "generate_until":
        return Document(doc=doc, requests=requests, gold=None, lengths=[])
    delimiter = task.config.target_delimiter
    sizes = [len(continuation.removeprefix(delimiter).encode()) for _, continuation in requests]
    if task.OUTPUT_TYPE == "loglikelihood":
        return Document(doc=doc, requests=requests, gold=0, lengths=sizes)
    choices = task.doc_to_choice(doc)
    if "" in choices or 0 in sizes:
        raise UserError(f"document {index} of task '{task.config.task}' has an empty choice.")
    return Document(doc=doc, requests=requests, gold=_gold(task, index, doc, choices), lengths=sizes[: len(choices)])


def _gold(task: ConfigurableTask, index: int, doc: Row, choices: Sequence[str]) -> int | None:
    """Return the index of the right choice, or None where several are right."""
    given = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    answers = given if isinstance(given, list) else [given]
    golds = [choices.index(answer) if answer in choices else answer for answer in answers]
    if not golds or not all(isinstance(gold, int) and 0 <= gold < len(choices) for gold in golds):
        raise UserError(f"document {index} of task '{task.config.task}': the answer {given!r} is none of its choices.")
    return int(golds[0]) if len(golds) == 1 else None


def _rows(folder: Path, split: str, limit: int | None) -> list[Row]:
    return list(islice(read_jsonl(folder / f"{split}.jsonl"), limit))


@contextmanager
def _explained(leaf: str) -> Iterator[None]:
    """Turn any error in lm-eval's or a definition's own code into one error that names the task."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"task '{leaf}' needs a package that is not installed: {error}.") from error
    except Exception as error:
        raise UserError(
            f"lm-eval can't build the task '{leaf}' ({type(error).__name__}: {error}). "
            "Mend its definition, or leave it out of evaluate.tasks."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the bars and the advice of lm-eval and datasets while a task object is built."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with hushed("lm_eval", logging.ERROR):
            yield
    finally:
        if bars:
            enable_progress_bars()


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Cache lm-eval's compiled Jinja templates. lm-eval compiles each anew for every document, a millisecond a time."""
    from lm_eval.utils import env

    env.from_string = cache(env.from_string)
    try:
        yield
    finally:
        del env.from_string
