"""What a data set gives the data stage: rows, and where they came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One text to train on: `prompt` + `response`.

    Attributes:
        prompt: what a model reads; empty where the row is plain text.
        response: what it is to give.
        task: what kind of row it is, for fair mixtures.
        choices: the responses that could have been given, `response` among them and none empty, where the row is a
            question with such; what a recovery's curve takes its accuracy from.
    """

    prompt: str
    response: str
    task: str
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return self.prompt + self.response


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The rows of a data set in a deterministic order, and where they are from.

    Attributes:
        rows: a list where they may be held in memory; an iterator is read once and never held.
        source: the provenance that `data.json` records; what a builder counts (rows left out) it adds to this while
            `rows` is read.
        validation: the rows set aside, where the data set does that itself; then `rows` has none of their texts.
    """

    rows: Iterable[Row]
    source: dict[str, Any]
    validation: list[Row] | None = None
