"""Rows of text for the functions on live models: given ones in the data stage's form, or a data set by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.live.options import configured
from pipeline.planning.build import cache_directory
from pipeline.planning.data import data_node
from pipeline.planning.graph import Node
from stages.common.files import read_jsonl
from stages.data.division import Aside
from stages.data.rows import Row
from stages.errors import UserError
from stages.stage import JSON, Context

SHARE = 10
"""One row in so many is set aside where no validation rows are given."""
MOST = 256
"""Rows that are set aside at most."""


def load_rows(data: str = "commonsense", **options: Any) -> tuple[list[JSON], list[JSON]]:
    """Return the rows of a data set to train on, and those it sets aside, as `data=` on the command line gives them.

    A row has prompt, response and task, and one that is set aside its choices where it is a question. What is fetched
    is kept in the cache, so that the second call is fast.

    Args:
        data: a data set by name: commonsense, passages, alpaca, hub, file, text or mixture.
        options: those of the command line by their names without "data.", as in validation_rows=64.

    Raises:
        UserError: the data set or an option is unknown, or the rows can't be had.
    """
    config = configured(f"data={data}", data=options)
    cache = cache_directory(config)
    with TemporaryDirectory() as folder:
        built = _built(data_node(config.data, cache), Path(folder), cache)
        return list(read_jsonl(built / "train.jsonl")), list(read_jsonl(built / "validation.jsonl"))


def _built(node: Node, folder: Path, cache: Path) -> Path:
    """Return the directory under `folder` in which the data stage has written the rows of `node`."""
    inputs = {name: _built(part, folder, cache) for name, part in node.inputs.items()}
    output = folder / node.key
    output.mkdir(exist_ok=True)
    node.stage.load()(node.config, inputs, Context(output=output, cache=cache, locations=node.locations))
    return output


def as_rows(given: Any, name: str) -> list[JSON]:
    """Return `given` texts or rows as the data stage writes rows: prompt, response and task.

    Args:
        given: strings, or dictionaries with a response and, if there is one, a prompt.
        name: of the argument, for the errors.

    Raises:
        UserError: there are none, or one is neither or has no text.
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
    """Return the rows to train on, and a tenth of the distinct texts that is set aside, `MOST` at most.

    Raises:
        UserError: there are fewer than two distinct texts.
    """
    texts = {row["prompt"] + row["response"] for row in rows}
    if len(texts) < 2:
        raise UserError("rows has one text alone: nothing would be left to measure on. Give more, or validation=ROWS.")
    as_given = [Row(row["prompt"], row["response"], row["task"], tuple(row.get("choices", ()))) for row in rows]
    aside = Aside(as_given, min(max(len(texts) // SHARE, 1), MOST), seed)
    return [row._asdict() for row in aside], [row._asdict() for row in aside.held]
