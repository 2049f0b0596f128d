"""Documents of a recovery's rows without end, in the order that its seed gives them.

This module owns the order. Each epoch is a shuffle of its own, drawn without replacement. Rows of a mixture's parts are
interleaved, so that each part has its share of the tokens at every point. Rows are located once (8 bytes each) and read
when they are needed, so the file may be larger than memory.
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

from stages.common.files import read_json
from stages.errors import UserError
from stages.rows.interleave import interleave
from stages.rows.packing import LONGEST, Document, portions, tokens_of
from stages.stage import JSON

BLOCK = 64
"""Rows that are tokenised at a time: enough to feed a fast tokenizer's threads, few enough to waste none."""

Encode = Callable[[Sequence[JSON]], list[list[Document]]]
"""Returns the documents of each row."""


@dataclass(frozen=True, slots=True)
class Part:
    """A run of consecutive rows of the file: one part of a mixture, or the whole file.

    Attributes:
        name: the part's name in the mixture; empty where the file is no mixture.
        weight: the part's share of the tokens.
        first: index of the part's first row.
        rows: number of the part's rows.
    """

    name: str
    weight: float
    first: int
    rows: int


def parts_of(path: Path, rows: int) -> list[Part]:
    """Return the parts of the file `path` of `rows` rows: those that data.json beside it lists, else one part."""
    record = path.with_name("data.json")
    told = read_json(record)["source"].get("parts", []) if record.is_file() else []
    parts, first = [], 0
    for part in told:
        parts.append(Part(part["name"], part["weight"], first, part["rows"]))
        first += part["rows"]
    return parts or [Part("", 1.0, 0, rows)]


class Stream:
    """The documents of a JSON Lines file in a seeded order that is drawn anew each epoch, without end."""

    def __init__(self, path: Path, encode: Encode, *, seed: int) -> None:
        self.path = path
        self._encode = encode
        self._seed = seed
        self._offsets = _line_offsets(path)
        if not self._offsets:
            raise UserError(f"{path} has no rows.")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._offsets)

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Yield documents without end, from number `start` on."""
        return islice(chain.from_iterable(self.rows()), start, None)

    def rows(self) -> Iterator[list[Document]]:
        """Yield the documents of one row after another, without end."""
        parts = parts_of(self.path, len(self))
        drawn = {part.name: self._drawn(part) for part in parts}
        return interleave(drawn, {part.name: part.weight for part in parts}, tokens_of)

    def _drawn(self, part: Part) -> Iterator[list[Document]]:
        """Yield the rows of one part epoch by epoch."""
        for epoch in count():
            order = array("q", range(part.first, part.first + part.rows))
            # The order follows from seed, part and epoch alone. A string seeds alike in every process.
            random.Random(" ".join(filter(None, (str(self._seed), part.name, str(epoch))))).shuffle(order)
            yield from self._read(order)

    def _read(self, order: array[int]) -> Iterator[list[Document]]:
        for block in _blocks(self._portions(order)):
            for (index, place, _), documents in zip(block, self._encode([row for *_, row in block]), strict=True):
                yield [replace(document, row=index + 1, continued=place > 0) for document in documents]

    def _portions(self, order: array[int]) -> Iterator[tuple[int, int, JSON]]:
        """Yield (index of the row, number of the portion, portion) of the rows in their order."""
        with self.path.open("rb") as file:
            for index in order:
                file.seek(self._offsets[index])
                for place, portion in enumerate(portions(json.loads(file.readline()))):
                    yield index, place, portion


def _blocks(items: Iterator[tuple[int, int, JSON]]) -> Iterator[list[tuple[int, int, JSON]]]:
    """Yield portions in blocks that are tokenised at a time: of `BLOCK` portions, or `LONGEST` characters and more."""
    block: list[tuple[int, int, JSON]] = []
    characters = 0
    for item in items:
        block.append(item)
        characters += len(item[-1]["prompt"]) + len(item[-1]["response"])
        if len(block) == BLOCK or characters >= LONGEST:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _line_offsets(path: Path) -> array[int]:
    offsets, position = array("q"), 0
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return offsets
