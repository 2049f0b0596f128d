"""Finished parts of a long benchmark, kept in a folder: a stopped run goes on with the part that was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.common.files import read_json, write_json


class Parts:
    """The results of a benchmark's parts, by name, with what the parts wrote.

    Attributes:
        folder: has `parts/NAME.json` and `parts/NAME/` of each part, and at the end `result.json` alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._parts = folder, folder / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)

    def finished(self) -> int:
        """Return how many parts a stopped run has left."""
        return len(list(self._parts.glob("*.json")))

    def part(self, name: str, work: Callable[[Path], Any]) -> Any:
        """Return the result of the part `name`: from a stopped run, or of `work`, which gets an empty folder."""
        path, own = self._parts / f"{name}.json", self._parts / name
        if not path.is_file():
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            write_json(path, work(own))
        return read_json(path)

    def close(self, result: Any) -> None:
        """Write the whole result and remove the parts, so that the next run measures anew."""
        write_json(self.folder / "result.json", result)
        shutil.rmtree(self._parts)
