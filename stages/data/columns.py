"""Rows from records with columns of any names: which column is the prompt, which the response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from stages.common.choices import nearest
from stages.data.alpaca import prompt_of
from stages.data.rows import Row
from stages.errors import UserError

KINDS = (("instruction", "output"), ("prompt", "response"), ("text",))
"""Columns that make a row, in the order in which they are looked for where the config names none."""
OPTIONAL = {"input": "instruction"}
"""Columns that a record may leave empty, each with the column that it goes with."""


@dataclass(kw_only=True, slots=True)
class ColumnsConfig:
    """The names of the columns that make a row, of one of three kinds. All null: the first kind found in the data.

    `instruction` and `output`, with or without `input`, become Stanford Alpaca's prompt and its response. `prompt` and
    `response` follow each other as they are. `text` is plain text without a prompt.
    """

    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    prompt: str | None = None
    response: str | None = None
    text: str | None = None


def chosen(config: ColumnsConfig, present: Iterable[str], where: str) -> dict[str, str]:
    """Return {part of a row: its column in the data} for the columns `present` in `where`.

    Raises:
        UserError: the config names columns of two kinds, only half of a kind, or a column that is not there.
    """
    known = list(present)
    named = {part: column for part, column in asdict(config).items() if column is not None}
    if not named:
        return _found(known, where)
    kind = next(kind for kind in KINDS if {OPTIONAL.get(part, part) for part in named} & set(kind))
    strange = [part for part in named if OPTIONAL.get(part, part) not in kind]
    missing = [part for part in kind if part not in named]
    if strange or missing:
        wanted = f"{', '.join(sorted(named))} can't make a row together" if strange else f"{missing[0]} is missing"
        raise UserError(
            f"data.columns: {wanted}. Name instruction and output (and input), or prompt and response, or text."
        )
    for part, column in named.items():
        if column not in known:
            raise UserError(
                f"{where} has no column '{column}' (data.columns.{part}){nearest(column, known) or '.'} "
                f"It has: {', '.join(known) or 'none'}."
            )
    return named


def _found(known: list[str], where: str) -> dict[str, str]:
    for kind in KINDS:
        if set(kind) <= set(known):
            more = [part for part, of in OPTIONAL.items() if of in kind and part in known]
            return {part: part for part in (*kind, *more)}
    raise UserError(
        f"{where} has the columns {', '.join(known) or '(none)'}, of which none is known to be a text to train on. "
        f"Say which is: data.columns.text={known[0] if known else 'NAME'}, or data.columns.prompt= and .response=, or "
        "data.columns.instruction= and .output=."
    )


def rows(
    records: Iterable[tuple[str, dict[str, Any]]], columns: dict[str, str], task: str, source: dict[str, Any]
) -> Iterator[Row]:
    """Yield the row of each (place, record). Records without a response are left out, and counted in `source`.

    Raises:
        UserError: a column is missing from a record, or is not text.
    """
    row_of = _ROWS[next(kind for kind in KINDS if kind[0] in columns)]
    source["left_out"] = 0
    for where, record in records:
        row = row_of({part: _text(record, column, part, where) for part, column in columns.items()}, task)
        if row.response.strip():
            yield row
        else:
            source["left_out"] += 1


def _text(record: dict[str, Any], column: str, part: str, where: str) -> str:
    if column not in record and part not in OPTIONAL:
        raise UserError(
            f"{where} has no '{column}'{nearest(column, record) or '.'} It has: {', '.join(record) or 'nothing'}."
        )
    value = record.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{where}: '{column}' is {value!r:.60} ({type(value).__name__}), and what is trained on must be text."
        )
    return value or ""


_ROWS: dict[tuple[str, ...], Callable[[dict[str, str], str], Row]] = {
    KINDS[0]: lambda of, task: Row(prompt_of(of["instruction"], of.get("input", "")), of["output"], task),
    KINDS[1]: lambda of, task: Row(of["prompt"], of["response"], task),
    KINDS[2]: lambda of, task: Row("", of["text"], task),
}
