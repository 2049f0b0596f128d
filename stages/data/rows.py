"""What a data set gives the data stage: rows, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One text to train on: `prompt` + `response`. `task` is what kind of row it is, for fair mixtures."""

    prompt: str
    response: str
    task: str

    @property
    def text(self) -> str:
        """The whole text."""
        return self.prompt + self.response


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The rows of a data set in a deterministic order, and the provenance that `data.json` records."""

    rows: list[Row]
    source: dict[str, Any]
