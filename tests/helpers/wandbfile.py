"""Reads a `.wandb` file: a header, then LevelDB's log format, 32 KiB blocks of record fragments.

header    ":W&B", magic 0xBEE1, version      4 + 2 + 1 bytes, part of the first block
fragment  CRC32, length, type, data          4 + 2 + 1 + length bytes, little-endian
type      1 whole, 2 first, 3 middle, 4 last; fewer than 7 bytes left in a block are padding
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32 * 1024
HEADER, FRAGMENT = struct.Struct("<4sHB"), struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Yield each record as W&B's own protobuf message; raises ValueError where the file is not whole."""
    data = path.read_bytes()
    ident, magic, _ = HEADER.unpack_from(data)
    if ident != b":W&B" or magic != 0xBEE1:
        raise ValueError(f"{path} is not a W&B file")
    parts: bytes | None = None
    for kind, fragment in _fragments(data):
        if (kind in (WHOLE, FIRST)) != (parts is None):
            raise ValueError("fragments out of order")
        parts = (parts or b"") + fragment  # a first fragment is empty where a block has just a header's room left
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = None


def _fragments(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = HEADER.size
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < FRAGMENT.size:
            place += left
            continue
        checksum, length, kind = FRAGMENT.unpack_from(data, place)
        fragment = data[place + FRAGMENT.size : place + FRAGMENT.size + length]
        if len(fragment) < length:
            raise ValueError("the last fragment is cut")
        if zlib.crc32(bytes([kind]) + fragment) != checksum:
            raise ValueError(f"checksum differs at byte {place}")
        yield kind, fragment
        place += FRAGMENT.size + length


def wait(path: Path, seconds: float = 30) -> Path:
    """Return `path` once it is whole: W&B's service closes the file a moment after `finish` returns."""
    deadline = time.monotonic() + seconds
    reason: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if any(record.WhichOneof("record_type") == "exit" for record in records(path)):
                return path
            reason = None
        except (ValueError, struct.error) as error:
            reason = error
        time.sleep(0.02)
    raise TimeoutError(f"{path} has no exit record") from reason


def history(path: Path) -> list[dict[str, Any]]:
    """Return the points that were logged, in order."""
    rows = [record.history.item for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [{_key(item): json.loads(item.value_json) for item in row} for row in rows]


def summary(path: Path) -> dict[str, Any]:
    """Return the run's summary as its last updates left it."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
    return found


def run(path: Path) -> Any:
    """Return the run's own record: id, project, name, group, config."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def metrics(path: Path) -> dict[str, str]:
    """Return {metric or glob: the metric it is drawn over}."""
    found = [record.metric for record in records(path) if record.WhichOneof("record_type") == "metric"]
    return {metric.name or metric.glob_name: metric.step_metric for metric in found}


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)
