"""A model directory on this machine. No torch here: a plan takes its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stages.common.files import remembered_sha256
from stages.errors import UserError
from stages.model.config import ModelSource
from stages.model.license import license_of
from stages.model.weights import model_files, place
from stages.stage import JSON, Context


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
    lines = [f"{remembered_sha256(directory / name, cache)}  {name}\n" for name in sorted(model_files(directory))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
