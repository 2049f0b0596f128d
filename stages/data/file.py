"""Rows of the user's own files: JSON, JSON Lines, CSV or Parquet, with columns mapped by options.

A key holds what the files say, not where they are. Files are read record by record, so they may be larger than memory.
Only a JSON file that is one list is read whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from stages.data.columns import ColumnsConfig, chosen, rows
from stages.data.config import DataConfig
from stages.data.local import HERE, pinned, same_files
from stages.data.readers import READERS, columns_of, format_of, records
from stages.data.rows import Built
from stages.stage import Context


@dataclass(kw_only=True, slots=True)
class FileConfig(DataConfig):
    """The files to read, and their columns."""

    path: str | None = None
    """A file, a directory or a pattern ("rows/*.jsonl"). In a key it is null, and `digest` stands for it."""
    digest: str | None = None
    """SHA-256 of the files' contents. The plan sets it."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    rows: int | None = None
    """Number of records to take, the first ones; null is all of them."""


def pin(config: FileConfig, cache: Path) -> tuple[FileConfig, dict[str, Path]]:
    """Return `config` with the files' digest in place of their path, and the files' place.

    Raises:
        UserError: there are no such files, their format is unknown, or the first lacks rows or the named columns.
    """
    fixed, files, places = pinned(config, tuple(READERS), cache)
    for file in files:
        format_of(file)
    chosen(config.columns, columns_of(files[0]), str(files[0]))
    return fixed, places


def label(config: FileConfig) -> str:
    """Return the rows' name, for labels."""
    return f"{config.name} {(config.digest or '')[:8]}"


def build(config: FileConfig, inputs: Mapping[str, Path], context: Context) -> Built:
    """Return one row a record, in the order of the files' names.

    Raises:
        UserError: the files have changed since the plan, or a record lacks a named column (raised while it is read).
    """
    files = same_files(config, tuple(READERS), context.locations[HERE], context.cache)
    columns = chosen(config.columns, columns_of(files[0]), str(files[0]))
    source = {"digest": config.digest, "files": len(files), "columns": columns}
    read = islice(chain.from_iterable(map(records, files)), config.rows)
    return Built(rows=rows(read, columns, config.name, source), source=source)
