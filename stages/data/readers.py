"""Records of JSON Lines, JSON, CSV and Parquet files, one at a time, each with its place in the file.

Only a JSON file that is one list is held whole. No pyarrow at module level, because a plan imports this.
"""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stages.common.files import parse_json
from stages.errors import UserError

Record = dict[str, Any]
BATCH = 1024
"""Rows of a Parquet file that are held at a time."""


def records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield (the file and line or row, record) for every record of `path`.

    Raises:
        UserError: the file's format is unknown, or the file is not what its name says. The message names the line.
    """
    return READERS[format_of(path)](path)


def columns_of(path: Path) -> list[str]:
    """Return the columns of the first record of `path`.

    Raises:
        UserError: as `records`, or the file has no records.
    """
    if format_of(path) == ".parquet":
        return list(_open_parquet(path).schema_arrow.names)
    for _, record in records(path):
        return list(record)
    raise UserError(f"{path} has no rows.")


def format_of(path: Path) -> str:
    """Return the suffix that says how `path` is read.

    Raises:
        UserError: no reader knows the suffix.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in READERS or (path.suffix == ".gz" and suffix == ".parquet"):
        raise UserError(f"{path}: a file is read by its suffix, which must be one of {', '.join(READERS)} (or .gz).")
    return suffix


def opened(path: Path) -> IO[str]:
    """Return the text of `path`, unpacked if the name ends in .gz."""
    # utf-8-sig drops a byte order mark, which some spreadsheets write: it is no part of the first column's name.
    how = {"encoding": "utf-8-sig", "newline": ""}
    return gzip.open(path, "rt", **how) if path.suffix == ".gz" else path.open(**how)  # type: ignore[call-overload,no-any-return]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error in a text file's bytes inside the block into a `UserError`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.object[error.start]:#x}). Convert it.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}).") from None


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    with readable(path), opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            yield _object(parse_json(line, where), where)


def _json(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the objects of the list in the file. A file that does not begin with "[" is read as JSON Lines."""
    with readable(path), opened(path) as stream:
        while (first := stream.read(1)) and first.isspace():
            pass
        if first == "[":
            for number, value in enumerate(parse_json(first + stream.read(), str(path)), 1):
                yield _object(value, f"{path} row {number}")
            return
    yield from _json_lines(path)


def _object(value: Any, where: str) -> tuple[str, Record]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is a {type(value).__name__}; each row must be an object, {{column: value, …}}.")
    return where, value


def _csv(path: Path) -> Iterator[tuple[str, Record]]:
    # Python's limit of 131,072 characters a field is less than a long text.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with readable(path), opened(path) as lines:
        table = csv.DictReader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
        try:
            for record in table:
                if None in record:
                    raise UserError(f"{path} line {table.line_num} has more fields than the header.")
                yield f"{path} line {table.line_num}", record
        except csv.Error as error:
            raise UserError(f"{path} line {table.line_num} is not CSV ({error}).") from None


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    number = 0
    with _parquet_errors(path):
        for batch in _open_parquet(path).iter_batches(batch_size=BATCH):
            for record in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", record


def _open_parquet(path: Path) -> Any:
    from pyarrow import parquet

    with _parquet_errors(path):
        return parquet.ParquetFile(path)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turn an error in a Parquet file inside the block into a `UserError`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not Parquet ({' '.join(str(error).split())}).") from None
    except OSError as error:
        # Arrow reports pages that can't be unpacked so.
        raise UserError(f"{path} can't be read as Parquet ({' '.join(str(error).split())}).") from None


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Record]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
