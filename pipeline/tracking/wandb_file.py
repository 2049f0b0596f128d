"""Records of a `.wandb` file, read and written. A file that a full disk has cut is known: W&B says nothing of it.

The file is a header, then LevelDB's log format: 32 KiB blocks of record fragments.

header    ":W&B", magic 0xBEE1, version      4 + 2 + 1 bytes, part of the first block
fragment  CRC32, length, type, data          4 + 2 + 1 + length bytes, little-endian
type      1 whole, 2 first, 3 middle, 4 last; fewer than 7 bytes left in a block are padding
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER, FRAGMENT = struct.Struct("<4sHB"), struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Yield each record as W&B's own protobuf message.

    Raises:
        ValueError: the file is not whole.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    if len(data) < HEADER.size:
        raise ValueError(f"{path} has no header")
    ident, magic, _ = HEADER.unpack_from(data)
    if ident != b":W&B" or magic != 0xBEE1:
        raise ValueError(f"{path} is not a W&B file")
    parts: bytes | None = None
    for kind, fragment in _fragments(data):
        if (kind in (WHOLE, FIRST)) != (parts is None):
            raise ValueError("fragments out of order")
        parts = (parts or b"") + fragment  # a first fragment is empty where a block has just a header's room left
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = None


def readable(path: Path) -> Iterator[Any]:
    """Yield the records of a file as far as it is whole."""
    try:
        yield from records(path)
    except ValueError:
        return


def finished(path: Path) -> bool:
    """Return whether the file is whole and has the record of the run's end."""
    try:
        return any(record.WhichOneof("record_type") == "exit" for record in records(path))
    except (OSError, ValueError):
        return False


def wait(path: Path, seconds: float) -> bool:
    """Return whether the file is finished within `seconds`: W&B closes it a moment after a run's `finish` returns."""
    deadline = time.monotonic() + seconds
    while not finished(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def without_steps(source: Path, target: Path, steps: int) -> None:
    """Write a copy of `source`, as far as it is whole, that lacks the points of the first `steps` steps."""
    kept = [
        record.SerializeToString()
        for record in readable(source)
        if record.WhichOneof("record_type") != "history" or record.history.step.num >= steps
    ]
    content = bytearray(source.read_bytes()[: HEADER.size])
    for record in kept:
        _append(content, record)
    target.write_bytes(content)


def mark_sent(path: Path, written: int | None = None) -> None:
    """Mark a run as sent, as `wandb sync` does, as it was `written`: nanoseconds, by default the file's own time."""
    written = path.stat().st_mtime_ns if written is None else written
    _marker(path).touch()
    os.utime(_marker(path), ns=(written, written))


def sent(path: Path) -> bool:
    """Return whether all of a run was sent: a run that was sent while it was recorded has been written since."""
    try:
        return _marker(path).stat().st_mtime_ns >= path.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.synced")


def _append(content: bytearray, record: bytes) -> None:
    """Append one record in as many fragments as blocks that it lies in."""
    place, begins = 0, True
    while True:
        left = BLOCK - len(content) % BLOCK
        if left < FRAGMENT.size:
            content += bytes(left)
            continue
        part = record[place : place + left - FRAGMENT.size]
        place += len(part)
        ends = place == len(record)
        kind = (WHOLE if ends else FIRST) if begins else (LAST if ends else MIDDLE)
        content += FRAGMENT.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
        begins = False
        if ends:
            return


def _fragments(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = HEADER.size
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < FRAGMENT.size:
            place += left
            continue
        if len(data) < place + FRAGMENT.size:
            raise ValueError("the last fragment is cut")
        checksum, length, kind = FRAGMENT.unpack_from(data, place)
        fragment = data[place + FRAGMENT.size : place + FRAGMENT.size + length]
        if len(fragment) < length:
            raise ValueError("the last fragment is cut")
        if zlib.crc32(bytes([kind]) + fragment) != checksum:
            raise ValueError(f"checksum differs at byte {place}")
        yield kind, fragment
        place += FRAGMENT.size + length
