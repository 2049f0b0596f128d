"""JSON files that tell whether they are what was written: one field holds the SHA-256 of the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common.files import read_json, sha256_of, write_json
from stages.errors import UserError

SEAL = "seal"
"""The name of the field."""
REMEMBERED_FROM = 1 << 24
"""Size in bytes from which a file's hash is remembered."""


def digest(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` with their hash."""
    # As they will be read: JSON has no tuples, and no names but strings.
    return {**fields, SEAL: _of_others(json.loads(json.dumps(fields)))}


def is_sealed(fields: Mapping[str, Any]) -> bool:
    """Return whether the fields, as they were read from JSON, are those that were sealed."""
    return fields.get(SEAL) == _of_others(fields)


def write_sealed(path: Path, fields: Mapping[str, Any]) -> None:
    """Write `fields` and their hash as JSON, in one rename."""
    write_json(path, sealed(fields))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return the fields in `path`; None where the file is missing, or is not what was written."""
    try:
        found = read_json(path)
    except UserError:
        return None
    if not isinstance(found, dict) or not is_sealed(found):
        return None
    return {name: value for name, value in found.items() if name != SEAL}


def remembered_sha256(path: Path, cache: Path) -> str:
    """Return `sha256_of(path)`. `cache` remembers a big file's hash by real path, size and time of modification."""
    real = path.resolve()
    stat = real.stat()
    if stat.st_size < REMEMBERED_FROM:
        return sha256_of(real)
    identity: dict[str, Any] = {"path": str(real), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    # The path is hashed, because a file's name can't hold every path.
    memory = cache / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()}.json"
    remembered = read_sealed(memory) or {}
    if {name: remembered.get(name) for name in identity} == identity:
        return str(remembered["sha256"])
    sha256 = sha256_of(real)
    write_sealed(memory, identity | {"sha256": sha256})
    return sha256


def _of_others(fields: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in fields.items() if name != SEAL})
