"""Rows of text for the functions on live models: the caller's rows in the data stage's form, or a data set by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.live.models import check_model, check_tokenizer
from pipeline.live.options import configured
from pipeline.planning.data import data_node
from pipeline.planning.graph import Node
from pipeline.planning.settled import cache_directory
from stages.common.files import read_jsonl
from stages.data.division import Aside
from stages.data.rows import Row
from stages.errors import UserError
from stages.model import plan as model_plan
from stages.model.config import ModelEntry
from stages.registry import STAGES
from stages.stage import JSON, Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARE = 10
"""One row in this many is set aside where no validation rows are given."""
MOST = 256
"""The most rows that are set aside."""


def load_rows(
    data: str = "commonsense",
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> tuple[list[JSON], list[JSON]]:
    """Return a data set's rows to train on and the rows it sets aside, as `data=` on the command line gives them.

    A row has prompt, response and task. A row that is set aside has its choices too, where it is a question. Downloads
    are kept in the cache, so a second call is fast. What a model writes is written anew by every call.

    Args:
        data: the data set's name: commonsense, passages, general, alpaca, hub, file, text, mixture, …
        model: the dense model, for rows that it writes: all of selfwritten and sampled, a part of general and best. It
            is left as it is. While this runs, a copy of it is on the disk and another one in memory.
        tokenizer: the tokenizer of `model`.
        options: options of the command line by their names without "data.", such as validation_rows=64.

    Raises:
        UserError: the data set or an option is unknown, the rows can't be fetched, or there is no model to write them.
    """
    config = configured(f"data={data}", data=options)
    cache = cache_directory(config)
    device = "cpu" if model is None else str(model.device)
    with TemporaryDirectory() as folder:
        writer = None if model is None else _writer(model, tokenizer, Path(folder) / "model", cache)
        node = data_node(config.data, cache, writer, device=device.partition(":")[0])
        built = _built(node, Path(folder), Context(output=Path(folder), cache=cache, device=device))
        return list(read_jsonl(built / "train.jsonl")), list(read_jsonl(built / "validation.jsonl"))


def _writer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, cache: Path
) -> Callable[[], Node]:
    """Return what gives the node of `model`. Once it is called, `folder` has the model."""
    check_model(model)
    reader = check_tokenizer(tokenizer)

    def node() -> Node:
        if not folder.exists():
            model.save_pretrained(folder)
            reader.save_pretrained(folder)
        found = model_plan.planned(ModelEntry(name="model", kind="local", path=str(folder)), cache)
        return Node(STAGES["model"], found.label, found.config, locations=found.locations)

    return node


def _built(node: Node, folder: Path, context: Context) -> Path:
    """Return the directory under `folder` into which the stage of `node` has written, as in `context`."""
    inputs = {name: _built(part, folder, context) for name, part in node.inputs.items()}
    output = folder / node.key
    if not output.exists():
        output.mkdir()
        node.stage.load()(node.config, inputs, replace(context, output=output, locations=node.locations))
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
