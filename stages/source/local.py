"""A model directory on this machine. No torch here: a plan takes its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from stages.errors import UserError
from stages.files import read_json, sha256_of, write_json
from stages.source.config import ModelSource
from stages.source.license import license_of
from stages.source.weights import model_files, place
from stages.stage import JSON, Context

REMEMBERED_FROM = 1 << 24
"""Bytes from which a file's hash is remembered."""


def from_local(config: ModelSource, context: Context, target: Path) -> JSON:
    """Place the directory `context.locations["model"]` in `target`; return where it came from.

    Raises:
        UserError: it is not a whole checkpoint, or no longer the one the plan saw.
    """
    source = context.locations["model"]
    digest = directory_digest(source, context.cache)
    if digest != config.digest:
        raise UserError(f"{source} has changed since the run was planned. Run the same command again.")
    place(source, target)
    return {"digest": digest} | license_of(source)


def directory_digest(directory: Path, cache: Path) -> str:
    """Return the SHA-256 over the names and contents of the files of a model directory that matter, sorted by name.

    The hashes of big files are remembered in `cache`, by real path, size and time of modification.

    Raises:
        UserError: it is no directory, or lacks its config or weights.
    """
    lines = [f"{_remembered_sha256(directory / name, cache)}  {name}\n" for name in sorted(model_files(directory))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _remembered_sha256(path: Path, cache: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    if stat.st_size < REMEMBERED_FROM:
        return sha256_of(real)
    identity: dict[str, Any] = {"path": str(real), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    memory = cache / "digests" / f"{hashlib.sha256(str(real).encode()).hexdigest()}.json"
    if memory.is_file():
        remembered = read_json(memory)
        if {name: remembered.get(name) for name in identity} == identity:
            return str(remembered["sha256"])
    sha256 = sha256_of(real)
    write_json(memory, identity | {"sha256": sha256})
    return sha256
