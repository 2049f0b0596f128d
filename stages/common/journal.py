"""Rows that outlive a killed stage. They are appended as they are made, and end as one file.

This module owns the file's place until the last row is there: `NAME.jsonl.unfinished`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from stages.common.files import read_jsonl, write_jsonl
from stages.errors import UserError
from stages.stage import JSON

log = logging.getLogger(__name__)


class Journal:
    """The rows of one file, `count` in the end. Rows of a killed run are there from the start.

    A row that was damaged since, and those after it, are made again.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.unfinished = path.with_name(f"{path.name}.unfinished")
        found = next((file for file in (path, self.unfinished) if file.is_file()), None)
        self.rows: list[JSON] = [] if found is None else list(islice(_whole(found), count))
        if not self.complete:
            path.unlink(missing_ok=True)
            write_jsonl(self.unfinished, self.rows)  # drops the half row that a kill may have left

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return len(self.rows) == self.count

    def extend(self, rows: Sequence[JSON]) -> None:
        """Add rows, which are on disk when this returns. With the last row the file gets its final name."""
        with self.unfinished.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            lines.flush()
            # Without it a killed machine, unlike a killed process, could lose rows that were reported as made.
            os.fsync(lines.fileno())
        self.rows += rows
        if self.complete:
            self.close()

    def close(self) -> None:
        """Give the file its final name. The last row does that by itself; before it, no further rows are wanted."""
        if self.unfinished.exists():
            os.replace(self.unfinished, self.path)


def _whole(path: Path) -> Iterator[JSON]:
    """Yield the rows of `path` as far as they can be read."""
    try:
        yield from read_jsonl(path)
    except UserError as error:
        log.warning("%s The rows from there on are made again.", error)
