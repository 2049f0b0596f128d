"""Whether files are still what was written, by their presence, their size and their SHA-256.

    presence and size   of every file, whenever an artifact is looked at
    SHA-256             of files up to `SMALL`, whenever an artifact is looked at
    SHA-256             of every file, before a build reads the artifact

A hash that was taken in this process is not taken again. No hash of an earlier process is believed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.common.files import sha256_of_each

SMALL = 1 << 20
"""Bytes of the largest file that is hashed whenever its artifact is looked at. Plans and reports read such files."""
Identity = tuple[int, ...]
"""What a file's status changes in when it is written or replaced."""
Files = Mapping[str, Mapping[str, Any]]
"""The files of an artifact as its manifest records them: relative path, then bytes, sha256 and perhaps modified_ns."""


class Hashes:
    """The SHA-256 of files, each read once as long as nobody writes to it."""

    def __init__(self) -> None:
        self._known: dict[Identity, str] = {}

    def of(self, paths: Sequence[Path], statuses: Sequence[os.stat_result] = ()) -> list[str]:
        """Return the SHA-256 of each file's content, in the order of `paths`; `statuses` saves asking for them."""
        identities = [identify(status) for status in statuses or [path.stat() for path in paths]]
        new = {one: path for one, path in zip(identities, paths, strict=True) if one not in self._known}
        if new:
            self._known |= zip(new, sha256_of_each(list(new.values())), strict=True)
        return [self._known[one] for one in identities]

    def describe(self, directory: Path, *, but: Collection[str] = ()) -> dict[str, dict[str, Any]]:
        """Return {relative path: {"bytes", "sha256"}} of every file under `directory`, but for those of these names.

        A link counts as the file it points to. Its entry also holds when that file was last written, because the
        file's owner may write it again.
        """
        paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in but]
        files = {}
        for path, sha256 in zip(paths, self.of(paths), strict=True):
            files[path.relative_to(directory).as_posix()] = entry = {"bytes": path.stat().st_size, "sha256": sha256}
            if path.is_symlink():
                entry["modified_ns"] = path.stat().st_mtime_ns
        return files

    def changed(self, directory: Path, files: Files, *, most: int | None = None) -> str:
        """Return which of an artifact's files is not what was written, empty where none is.

        `most` is the size in bytes of the largest file that is read; None reads all.
        """
        statuses, problem = _statuses(directory, files)
        if problem:
            return problem
        names = [name for name, recorded in files.items() if most is None or recorded["bytes"] <= most]
        try:
            found = self.of([directory / name for name in names], [statuses[name] for name in names])
        except OSError as error:
            return f"its file {error.filename} can't be read ({error.strerror})"
        for name, sha256 in zip(names, found, strict=True):
            if sha256 != files[name]["sha256"]:
                return f"its file {name} is not what was written (its SHA-256 differs)"
        return ""


def missing_or_resized(directory: Path, files: Files) -> str:
    """Return what is wrong with an artifact's files by their presence and size; empty where nothing is."""
    return _statuses(directory, files)[1]


def flush(paths: Iterable[Path]) -> None:
    """Wait until the content of each file, or the entries of each directory, is on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _statuses(directory: Path, files: Files) -> tuple[dict[str, os.stat_result], str]:
    """Return the status of each of an artifact's files, and what is wrong with the first that is not as recorded."""
    found: dict[str, os.stat_result] = {}
    for name, recorded in files.items():
        try:
            status = found[name] = os.stat(os.path.join(directory, name))
        except OSError:
            return found, f"its file {name} is missing"
        if status.st_size != recorded["bytes"]:
            return found, f"its file {name} has {status.st_size} bytes and was written with {recorded['bytes']}"
        if recorded.get("modified_ns", status.st_mtime_ns) != status.st_mtime_ns:
            return found, f"the file that its link {name} points to was written again"
    return found, ""


def identify(status: os.stat_result) -> Identity:
    """Return what changes when a file is written or replaced. Nobody can set the time of change back."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
