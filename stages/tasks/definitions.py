"""The multiple-choice tasks that can be judged, each by lm-eval's own definition on rows from disk.

Owns which tasks there are and how lm-eval's task object is built from the rows of a `tasks` artifact, with no hub and
without lm-eval's scan of its ten thousand definitions. Prompts, choices, answers, document processing and metrics are
lm-eval's own. Importing this module loads neither torch nor lm-eval.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import UserError
from stages.methods import lookup

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Row = dict[str, Any]
Request = tuple[str, str]
"""A context and the continuation whose probability is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task by the names people and lm-eval know it under.

    Attributes:
        label: what tables and pictures call it.
        definition: lm-eval's YAML file, relative to its `tasks` folder. Splits, prompts and metrics are read from it.
    """

    label: str
    definition: str


TASKS: dict[str, Task] = {
    "boolq": Task(label="BoolQ", definition="super_glue/boolq/default.yaml"),
    "piqa": Task(label="PIQA", definition="piqa/piqa.yaml"),
    "social_iqa": Task(label="SIQA", definition="siqa/siqa.yaml"),
    "hellaswag": Task(label="HellaSwag", definition="hellaswag/hellaswag.yaml"),
    "winogrande": Task(label="WinoGrande", definition="winogrande/default.yaml"),
    "arc_easy": Task(label="ARC-e", definition="arc/arc_easy.yaml"),
    "arc_challenge": Task(label="ARC-c", definition="arc/arc_challenge.yaml"),
    "openbookqa": Task(label="OBQA", definition="openbookqa/openbookqa.yaml"),
}
"""By lm-eval's name. A new task is one entry here and its rows in the `tasks` artifact.

All of these process documents one by one and in order, so the first rows are the first documents."""


@dataclass(frozen=True, slots=True)
class Document:
    """One question as lm-eval asks it.

    Attributes:
        doc: lm-eval's document, as its metrics want it back.
        requests: one (context, continuation) a choice.
        gold: index of the right choice.
        lengths: UTF-8 bytes of each continuation, without the delimiter (a space) that lm-eval puts before it. Where
            choices are the continuations these are their bytes; WinoGrande's choices are contexts, so there it is
            the shared rest of the sentence.
    """

    doc: Row
    requests: list[Request]
    gold: int
    lengths: list[int]


def load_task(name: str, rows: Sequence[Row]) -> ConfigurableTask:
    """Return lm-eval's task object `name` whose evaluated split holds `rows`.

    `rows` have the columns of the hub's data set, before lm-eval's `process_docs`.

    Raises:
        UserError: the task is unknown, or there is no row.
    """
    task = lookup("task", name, TASKS)
    if not rows:
        raise UserError(f"task '{name}' has no documents to evaluate. Rebuild the tasks artifact, or drop the task.")
    import lm_eval
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = load_yaml(Path(lm_eval.__file__).parent / "tasks" / task.definition)
    split = definition.get("test_split") or definition["validation_split"]
    definition["custom_dataset"] = lambda **_: DatasetDict({split: Dataset.from_list(list(rows))})
    definition["fewshot_config"] = {"samples": []}  # zero-shot: without it lm-eval wants (and processes) a train split
    with _quiet():
        return ConfigurableTask(config=definition)


def documents(task: ConfigurableTask) -> list[Document]:
    """Return the documents of `task` in order, as lm-eval would ask them without examples.

    Raises:
        UserError: a document's answer is none of its choices.
    """
    with _templates_compiled_once():
        return [_document(task, index, doc) for index, doc in enumerate(task.task_docs)]


def _document(task: ConfigurableTask, index: int, doc: Row) -> Document:
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    instances = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, index, 1))
    requests: list[Request] = [instance.args for instance in instances]
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if not isinstance(gold, int) or not 0 <= gold < len(requests):
        raise UserError(f"document {index} of task '{task.config.task}': the answer {gold!r} is none of its choices.")
    delimiter = task.config.target_delimiter
    lengths = [len(continuation.removeprefix(delimiter).encode()) for _, continuation in requests]
    return Document(doc=doc, requests=requests, gold=gold, lengths=lengths)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the bars and the advice that lm-eval and datasets give while a task object is built."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, bars = logging.getLogger("lm_eval"), not are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Remember lm-eval's compiled Jinja templates: it compiles each anew for every document, a millisecond a time."""
    from lm_eval.utils import env

    env.from_string = cache(env.from_string)
    try:
        yield
    finally:
        del env.from_string
