"""Directories of unfinished builds: what one was begun with, and whether a run may go on in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.engine.artifact import Artifact
from stages.common.files import read_object, write_json
from stages.errors import UserError

INPUTS = ".inputs.json"
"""The file of an unfinished build that holds the digests of the inputs it was begun with, and its threads."""
THREADS = "threads"
"""The entry of that file which is no input's."""


def input_digests(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Return the digest of each input. An artifact's content rests on these."""
    return {name: upstream.digest for name, upstream in sorted(inputs.items())}


def begun_with(partial: Path) -> dict[str, Any] | None:
    """Return the digest of each input that an unfinished build was begun with; None where they are not known."""
    try:
        return {name: digest for name, digest in read_object(partial / INPUTS).items() if name != THREADS}
    except UserError:
        return None


def threads_of(partial: Path) -> int | None:
    """Return the number of threads that an unfinished build was begun with; None where it was left to torch.

    A build goes on with as many, because its result is equal to the byte only so.
    """
    found = read_object(partial / INPUTS).get(THREADS)
    return found if isinstance(found, int) and found > 0 else None


def resumable(partial: Path, inputs: Mapping[str, Artifact]) -> bool:
    """Return whether `partial` holds an unfinished build from exactly these inputs."""
    return begun_with(partial) == input_digests(inputs)


def begin(partial: Path, inputs: Mapping[str, Artifact], threads: int | None) -> None:
    """Make `partial` ready to build in: record inputs and threads, and remove a killed writer's leftovers."""
    partial.mkdir(parents=True, exist_ok=True)
    clear_leftovers(partial)
    write_json(partial / INPUTS, input_digests(inputs) | ({THREADS: threads} if threads else {}))


def clear_leftovers(partial: Path) -> None:
    """Remove hidden files and directories. Stages write under hidden names before they rename."""
    for path in sorted(partial.rglob(".*")):
        # A directory that was removed took the paths below it along.
        if path.name == INPUTS or not path.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def discard_if_empty(partial: Path) -> None:
    """Remove an unfinished build that holds no file of its stage."""
    if partial.is_dir() and not any(path.is_file() and path.name != INPUTS for path in partial.rglob("*")):
        shutil.rmtree(partial)
