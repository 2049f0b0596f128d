"""The `data` stage: rows to recover on, with some set aside for the recovery's curve."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stages.common.choices import lookup
from stages.common.files import read_json, sha256_of, write_json, write_jsonl
from stages.common.progress import progress
from stages.data.config import DataConfig
from stages.data.division import Aside, split
from stages.data.registry import DATASETS
from stages.data.rows import Built, Row
from stages.stage import JSON, Context

log = logging.getLogger(__name__)


def run(config: DataConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Write `train.jsonl`, `validation.jsonl` and `data.json`, and return the counts of rows.

    A line has prompt, response and task. A held-out line has its choices too, where the data set gives them. `inputs`
    are the artifacts of the data sets whose rows are taken, by their names, and the model's where one is asked.

    Raises:
        UserError: the data set is unknown, its source can't be fetched, or it has too few rows to set so many aside.
    """
    dataset = lookup("data set", config.name, DATASETS)
    built = dataset.build(config, inputs, context)
    files = {name: context.output / f"{name}.jsonl" for name in ("train", "validation")}
    counts: dict[str, Counter[str]] = {name: Counter() for name in files}
    for name, rows in _divided(built, config):
        lines = (_line(row, choices=name == "validation") for row in _counted(rows, counts[name], name))
        write_jsonl(files[name], lines)
    record = {
        "name": config.name,
        "source": built.source,
        "seed": config.seed,
        "tasks": [*dataset.tasks, *_tasks(inputs)],
        "rows": {name: counts[name].total() for name in files},
        "rows_by_task": {name: dict(sorted(counts[name].items())) for name in files},
        "sha256": {name: sha256_of(path) for name, path in files.items()},
    }
    write_json(context.output / "data.json", record)
    if left_out := built.source.get("left_out"):
        log.warning(
            "%s rows of data=%s have too little text to train on and were left out.", f"{left_out:,}", config.name
        )
    return {"name": config.name, "rows": record["rows"], "tasks": record["tasks"]}


def _divided(built: Built, config: DataConfig) -> Iterator[tuple[str, Iterable[Row]]]:
    """Yield the rows to train on, then the rows set aside. The first must be read before the second are asked for."""
    if built.validation is not None:
        yield "train", built.rows
        yield "validation", built.validation
    elif isinstance(built.rows, list):
        train, validation = split(built.rows, config.validation_rows, config.seed)
        yield "train", train
        yield "validation", validation
    else:
        aside = Aside(built.rows, config.validation_rows, config.seed)
        yield "train", aside
        yield "validation", aside.held


def _counted(rows: Iterable[Row], counts: Counter[str], name: str) -> Iterator[Row]:
    with progress(f"writing {name} rows", total=None, unit=" rows") as bar:
        for row in rows:
            counts[row.task] += 1
            yield row
            bar.update()


def _tasks(inputs: Mapping[str, Path]) -> list[str]:
    records = (inputs[name] / "data.json" for name in sorted(inputs))
    # A model's artifact has no such record.
    return [task for record in records if record.is_file() for task in read_json(record)["tasks"]]


def _line(row: Row, *, choices: bool) -> JSON:
    """Return `row` as it is written. Only held-out questions are ever asked, so only they keep their choices.

    Raises:
        ValueError: the data set gave choices without the response among them, or an empty one.
    """
    if row.choices and (row.response not in row.choices or "" in row.choices):
        raise ValueError(f"the choices {row.choices} of a row must hold its response, {row.response!r}, and none empty")
    line = row._asdict()
    return line if choices and row.choices else {name: line[name] for name in ("prompt", "response", "task")}
