"""Runs hold the artifacts that they read and make, so that cleaning leaves them alone. A hold dies with its process.

    <root>/.locks/run-<name>.json    the locks' names of what one run holds
    <root>/.locks/run-<name>.lock    locked as long as that run lives
    <root>/.locks/cleaning.lock      locked while a run makes its hold known, and while something is cleaned

No run starts to hold while something is cleaned. So what cleaning finds unheld stays unheld until it is done.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stages.common.files import read_json, write_json
from stages.errors import UserError

LOCKS = ".locks"
RUN = "run-"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
PATIENCE = 1.0
"""Seconds after which whoever waits for cleaning to end is told."""


@contextmanager
def holding(root: Path, names: Iterable[str], *, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the artifacts whose locks have these names until the block ends. `waiting` is called where cleaning goes on.

    In a store that this process may not write nothing is held. Whoever may write it can then clean it meanwhile.

    Raises:
        OSError: the hold can't be written for another reason, such as a full disk.
    """
    held = FileLock(root / LOCKS / f"{RUN}{uuid.uuid4().hex}.lock")
    listed = Path(held.lock_file).with_suffix(".json")
    try:
        with cleaning(root, waiting=waiting):
            held.acquire()
            write_json(listed, sorted(names))
    except OSError as error:
        held.release()
        if error.errno not in READ_ONLY:
            Path(held.lock_file).unlink(missing_ok=True)
            raise
        yield
        return
    try:
        yield
    finally:
        listed.unlink(missing_ok=True)
        Path(held.lock_file).unlink(missing_ok=True)
        held.release()


@contextmanager
def cleaning(root: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep runs from holding more, and others from cleaning, until the block ends.

    Raises:
        OSError: the store can't be written.
    """
    with locked(root / LOCKS / "cleaning.lock", waiting=waiting, patience=PATIENCE):
        yield


@contextmanager
def locked(file: Path, *, waiting: Callable[[], None], patience: float = 0) -> Iterator[None]:
    """Hold a file lock until the block ends. `waiting` is called once where another has it for `patience` seconds.

    The system releases a file lock with its process, so a killed run blocks nobody.

    Raises:
        OSError: the lock can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def held(root: Path) -> set[str]:
    """Return the names of the locks of everything that a living run holds. What dead runs left is removed.

    To be called within `cleaning`.
    """
    found: set[str] = set()
    for listed in sorted((root / LOCKS).glob(f"{RUN}*.json")):
        lock = FileLock(listed.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found |= _names(listed)
            continue
        listed.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
    return found


def _names(listed: Path) -> set[str]:
    """Return what a living run holds; nothing where it has just ended."""
    try:
        return set(read_json(listed))
    except UserError:
        if not listed.exists():
            return set()
        raise
