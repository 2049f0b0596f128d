"""The `data` stage: rows to recover on, some of them set aside for the recovery's curve."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.data.config import DataConfig
from stages.data.registry import DATASETS
from stages.data.rows import Row
from stages.errors import UserError
from stages.files import sha256_of, write_json, write_jsonl
from stages.methods import lookup
from stages.stage import JSON, Context


def run(config: DataConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write `train.jsonl`, `validation.jsonl` and `data.json`; return the counts of rows.

    A line has prompt, response and task; one that is held out has its choices too, where the data set gives them.

    Raises:
        UserError: the data set is unknown, its source can't be had, or it has too few rows to set so many aside.
    """
    dataset = lookup("data set", config.name, DATASETS)
    built = dataset.build(config, context)
    train, validation = split(built.rows, config.validation_rows, config.seed)
    parts = {"train": train, "validation": validation}
    files = {name: context.output / f"{name}.jsonl" for name in parts}
    for name, rows in parts.items():
        write_jsonl(files[name], (_line(row, choices=name == "validation") for row in rows))
    record = {
        "name": config.name,
        "source": built.source,
        "seed": config.seed,
        "tasks": list(dataset.tasks),
        "rows": {name: len(rows) for name, rows in parts.items()},
        "rows_by_task": {name: dict(sorted(Counter(row.task for row in rows).items())) for name, rows in parts.items()},
        "sha256": {name: sha256_of(path) for name, path in files.items()},
    }
    write_json(context.output / "data.json", record)
    return {"name": config.name, "rows": record["rows"], "tasks": record["tasks"]}


def _line(row: Row, *, choices: bool) -> JSON:
    """Return `row` as it is written; only questions that are held out are ever asked, so only they keep their choices.

    Raises:
        ValueError: the data set gave choices without the response among them, or an empty one.
    """
    if row.choices and (row.response not in row.choices or "" in row.choices):
        raise ValueError(f"the choices {row.choices} of a row must hold its response, {row.response!r}, and none empty")
    line = row._asdict()
    return line if choices and row.choices else {name: line[name] for name in ("prompt", "response", "task")}


def split(rows: Sequence[Row], held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Return (training rows, validation rows): no text is in both, and each order is a fair mixture of the tasks.

    `held_out` rows are drawn evenly over tasks, whatever the tasks' sizes; the first tasks by name give the remainder.

    Raises:
        UserError: a task has too few distinct rows.
    """
    by_task = _shuffled_by_task(rows, seed)
    share, remainder = divmod(held_out, len(by_task))
    validation = {
        task: _distinct(by_task[task])[: share + (index < remainder)] for index, task in enumerate(sorted(by_task))
    }
    held = {row.text for drawn in validation.values() for row in drawn}
    train = {task: [row for row in by_task[task] if row.text not in held] for task in by_task}
    if sum(map(len, validation.values())) < held_out or not all(train.values()):
        smallest = min(by_task, key=lambda task: len(by_task[task]))
        raise UserError(
            f"data.validation_rows={held_out} sets {share + (remainder > 0)} rows of each task aside, "
            f"and {smallest} has only {len(by_task[smallest])}: nothing would be left to train on. Set fewer aside."
        )
    return mix(train, seed), mix(validation, seed)


def mix(by_task: Mapping[str, Sequence[Row]], seed: int) -> list[Row]:
    """Return all rows in one order whose every prefix holds each task in proportion to its rows, to within a few rows.

    Row i of a task with n rows stands at (i + u) / n, with one u in [0, 1) drawn for the task.
    """
    places = []
    for task in sorted(by_task):
        offset = random.Random(f"{seed}/{task}/offset").random()
        places += [((i + offset) / len(by_task[task]), task, row) for i, row in enumerate(by_task[task])]
    return [row for _, _, row in sorted(places, key=lambda place: place[:2])]


def _shuffled_by_task(rows: Sequence[Row], seed: int) -> dict[str, list[Row]]:
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    for task, group in by_task.items():
        random.Random(f"{seed}/{task}").shuffle(group)
    return by_task


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Return the first row of each text."""
    return list({row.text: row for row in reversed(rows)}.values())[::-1]
