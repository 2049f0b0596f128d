"""The user's own files, found by a path that may be a directory or a pattern, and identified by their contents."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.common.choices import nearest
from stages.common.files import users_path
from stages.common.sealed import remembered_sha256
from stages.errors import UserError

HERE = "data"
"""The name in `Context.locations` of the files' place."""


def files_of(path: str, suffixes: Collection[str]) -> list[Path]:
    """Return the files that `path` means: itself, those under it that end in one of `suffixes`, or those it matches.

    Raises:
        UserError: there is none.
    """
    place = users_path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        under = sorted(file for file in place.rglob("*") if file.is_file())
        found = [file for file in under if Path(file.name.removesuffix(".gz")).suffix.lower() in suffixes]
        if not found:
            raise UserError(f"{place} has no file that ends in {', '.join(suffixes)}.")
        return found
    matching = sorted(file for name in glob.glob(str(place), recursive=True) if (file := Path(name)).is_file())
    if not matching:
        beside = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UserError(f"there is no file '{path}'{nearest(place.name, beside) or '.'}")
    return matching


def digest_of(files: Collection[Path], cache: Path) -> str:
    """Return the SHA-256 of the files' contents in their order. Neither names nor places enter it.

    Raises:
        UserError: a file can't be read.
    """
    try:
        lines = [f"{remembered_sha256(file, cache)}\n" for file in files]
    except PermissionError as error:
        raise UserError(f"{error.filename} can't be read: you have no permission to.") from None
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pinned(config: Any, suffixes: Collection[str], cache: Path) -> tuple[Any, list[Path], dict[str, Path]]:
    """Return `config` with the digest of its files in place of their path; the files; and their place.

    Raises:
        UserError: the config names no path, or there is nothing at it.
    """
    if not config.path:
        raise UserError(f"data={config.name} reads files of yours: data.path=FILE, a directory, or a quoted pattern.")
    files = files_of(config.path, suffixes)
    place = users_path(config.path)
    return replace(config, path=None, digest=digest_of(files, cache)), files, {HERE: place}


def same_files(config: Any, suffixes: Collection[str], place: Path, cache: Path) -> list[Path]:
    """Return the files at `place`.

    Raises:
        UserError: they are no longer the files that the plan saw.
    """
    files = files_of(str(place), suffixes)
    if digest_of(files, cache) != config.digest:
        raise UserError(f"{place} has changed since the run was planned. Run the same command again.")
    return files
