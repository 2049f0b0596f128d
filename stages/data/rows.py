"""The rows that a data set gives the data stage, with their provenance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One text to train on: `prompt` + `response`.

    Attributes:
        prompt: the text that a model reads; empty where the row is plain text.
        response: the text that the model is to give.
        task: the kind of row, for fair mixtures.
        choices: where the row is a question with fixed answers, all possible responses: `response` is among them and
            none is empty. A recovery's curve takes its accuracy from them.
    """

    prompt: str
    response: str
    task: str
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return self.prompt + self.response


def row_of(line: dict[str, Any]) -> Row:
    """Return the row that a line of another data stage's files holds."""
    return Row(**line | {"choices": tuple(line.get("choices", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The rows of a data set in a deterministic order, with their provenance.

    Attributes:
        rows: a list where they may be held in memory. An iterator is read once and never held.
        source: the provenance that `data.json` records. While `rows` is read, a builder adds its counts (rows left
            out).
        validation: the rows set aside, where the data set does that itself. Then `rows` has none of their texts.
    """

    rows: Iterable[Row]
    source: dict[str, Any]
    validation: list[Row] | None = None
