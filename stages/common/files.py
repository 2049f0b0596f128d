"""Small files of an artifact, written and read. A file is written beside its final path, then renamed to it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stages.errors import UserError

COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "pruning.json",
)
"""Files of a model directory that travel with the weights unchanged."""
MOST_JSON = 1 << 28
"""Bytes that a JSON file has at most. The largest are tokenizers, of some tens of millions."""
SUSPECT = re.compile(rb"\\u[dD][89a-fA-F]|[eE]\+?[0-9]{3}|[0-9]{309}")
"""What JSON has where a text or a number of it may be none: half of a pair of escapes, and a large exponent."""
THREADS = 8
"""Files that are hashed at a time. Their blocks need 256 KiB each."""


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Open a file beside `path` for writing. It replaces `path` at the end of the block, unless the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hidden name marks what a killed writer leaves as a leftover.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            yield stream
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def users_path(text: str) -> Path:
    """Return the path that a user wrote, whole and with links followed. Nothing need be there.

    Raises:
        UserError: the text is no path, or its links lead in a circle.
    """
    try:
        path = Path(text).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"'{text}' is no path that can be followed ({error}).") from None
    return path


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one rename, so that a reader sees the old file or the whole new one."""
    with _replacing(path) as stream:
        stream.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. NaN and infinity are refused, because JSON has neither."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the JSON value in `text`, which anyone may have written; `where` names the text in errors.

    Raises:
        UserError: the text is not JSON, is nested too deeply, or holds a number or a text that no file can hold again:
            NaN, infinity, half of a surrogate pair.
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
        if SUSPECT.search(text if isinstance(text, bytes) else text.encode("utf-8")):
            # An escape may stand for half a pair, which is no text, and a number may be too large for 64 bits.
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except RecursionError:
        raise UserError(f"{where} is not JSON that can be read (it is nested too deeply).") from None
    except UnicodeEncodeError:
        raise UserError(f"{where} is not JSON that can be read (an escape stands for half a character).") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}).") from None
    return value


def read_json(path: Path, *, most: int = MOST_JSON) -> Any:
    """Return the JSON value in a file of at most so many bytes.

    Raises:
        UserError: the file is missing, can't be read, is too large or is not JSON.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise UserError(f"{path} has {size:,} bytes, and no such file has more than {most:,}.")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}).") from None
    return parse_json(content, str(path))


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        UserError: as `read_json`, or the file holds another value.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold an object, {{name: value, …}}, and holds a {type(found).__name__}.")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write one JSON value a line as the values come, in one rename. Return the number of lines."""
    count = 0
    with _replacing(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the JSON value of each line of `path`. An unfinished last line, left by a killed writer, is skipped.

    Raises:
        UserError: a line is not JSON.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                yield parse_json(line, f"{path} line {number}")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_each(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file's content, in the order of `paths`; files are read side by side.

    One thread hashes 0.8 GB a second (Xeon with AVX-512), two hash 1.6: slower than disks.
    """
    with ThreadPoolExecutor(min(THREADS, len(paths)) or 1) as threads:
        return list(threads.map(sha256_of, paths))
