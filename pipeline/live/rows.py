"""Rows of text for the functions on live models: the caller's rows in the data stage's form, or a data set by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.live.options import configured
from pipeline.planning.data import data_node
from pipeline.planning.graph import Node
from pipeline.planning.settled import cache_directory
from stages.common.files import read_jsonl
from stages.data.division import Aside
from stages.data.rows import Row
from stages.errors import UserError
from stages.stage import JSON, Context

SHARE = 10
"""One row in this many is set aside where no validation rows are given."""
MOST = 256
"""The most rows that are set aside."""


def load_rows(data: str = "commonsense", **options: Any) -> tuple[list[JSON], list[JSON]]:
    """Return a data set's rows to train on and the rows it sets aside, as `data=` on the command line gives them.

    A row has prompt, response and task. A row that is set aside has its choices too, where it is a question. Downloads
    are kept in the cache, so a second call is fast.

    Args:
        data: the data set's name: commonsense, passages, alpaca, hub, file, text or mixture.
        options: options of the command line by their names without "data.", such as validation_rows=64.

    Raises:
        UserError: the data set or an option is unknown, the rows can't be fetched, or a model would have to write them.
    """
    config = configured(f"data={data}", data=options)
    cache = cache_directory(config)
    with TemporaryDirectory() as folder:
        built = _built(data_node(config.data, cache), Path(folder), cache)
        return list(read_jsonl(built / "train.jsonl")), list(read_jsonl(built / "validation.jsonl"))


def _built(node: Node, folder: Path, cache: Path) -> Path:
    """Return the directory under `folder` into which the data stage has written the rows of `node`."""
    inputs = {name: _built(part, folder, cache) for name, part in node.inputs.items()}
    output = folder / node.key
    output.mkdir(exist_ok=True)
    node.stage.load()(node.config, inputs, Context(output=output, cache=cache, locations=node.locations))
    return output


def as_rows(given: Any, name: str) -> list[JSON]:
    """Return the `given` texts or rows in the form the data stage writes: prompt, response and task.

    Args:
        given: strings, or dictionaries with a response and, where there is one, a prompt.
        name: the argument's name, for the errors.

    Raises:
        UserError: `given` is empty, an item is neither a string nor a row, or an item has no text.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise UserError(f"{name} is a {type(given).__name__} and must be a list of texts or of rows.")
    rows = [_row(row, f"{name}[{number}]") for number, row in enumerate(given)]
    if not rows:
        raise UserError(f"{name} is empty: there is no text to read.")
    return rows


def _row(given: Any, where: str) -> JSON:
    if isinstance(given, str):
        given = {"response": given, "task": "text"}
    if not isinstance(given, Mapping) or "response" not in given:
        found = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise UserError(
            f"{where} is neither a string nor a row with prompt and response ({found}). A data set's column of texts "
            'will do: dataset["text"].'
        )
    if not given["response"]:
        raise UserError(f"{where} has no text. Leave such rows out.")
    row = {"prompt": given.get("prompt") or "", "response": given["response"], "task": given.get("task") or "rows"}
    return row | ({"choices": list(given["choices"])} if given.get("choices") else {})


def set_aside(rows: Sequence[JSON], seed: int) -> tuple[list[JSON], list[JSON]]:
    """Return the rows to train on, and a tenth of the distinct texts (`MOST` at most), which is set aside.

    Raises:
        UserError: there are fewer than two distinct texts.
    """
    texts = {row["prompt"] + row["response"] for row in rows}
    if len(texts) < 2:
        raise UserError("rows has one text alone: nothing would be left to measure on. Give more, or validation=ROWS.")
    as_given = [Row(row["prompt"], row["response"], row["task"], tuple(row.get("choices", ()))) for row in rows]
    aside = Aside(as_given, min(max(len(texts) // SHARE, 1), MOST), seed)
    return [row._asdict() for row in aside], [row._asdict() for row in aside.held]
