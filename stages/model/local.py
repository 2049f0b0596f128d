"""A model directory or GGUF file on this machine. No torch here, because a plan takes its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stages.common.sealed import remembered_sha256
from stages.decoders.gguf_header import read_header
from stages.errors import UserError
from stages.model.config import ModelSource
from stages.model.license import license_of
from stages.model.weights import model_files, place
from stages.stage import JSON, Context


def from_local(config: ModelSource, context: Context, target: Path) -> JSON:
    """Place the directory `context.locations["model"]` in `target`, or convert the file there; return its origin.

    Raises:
        UserError: the directory is not a whole checkpoint, the file contradicts itself, or either has changed since the
            plan.
    """
    source = context.locations["model"]
    digest = directory_digest(source, context.cache)
    if digest != config.digest:
        raise UserError(f"{source} has changed since the run was planned. Run the same command again.")
    if source.is_file():
        from stages.model.gguf import from_file

        return {"digest": digest} | from_file(source, target)
    place(source, target)
    return {"digest": digest} | license_of(source)


def directory_digest(directory: Path, cache: Path) -> str:
    """Return the SHA-256 over the names and contents of a model directory's files that matter, sorted by name.

    Of a GGUF file it is the file's own, and its header is checked.

    `cache` remembers the hashes of big files by real path, size and time of modification.

    Raises:
        UserError: `directory` is no directory and no GGUF file, or lacks its config or weights.
    """
    if directory.is_file():
        read_header(directory)
        return remembered_sha256(directory, cache)
    lines = [f"{remembered_sha256(directory / name, cache)}  {name}\n" for name in sorted(model_files(directory))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
