"""Wheels come from a folder that pip is told to look in: no network, the real pip."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.serving import silent
from helpers.tiny_wheels import pip_environment, write_wheel
from stages.errors import UserError
from stages.fetch.wheels import Wheel, extract, fetch, open_member

FILES = {"tiny/data.txt": b"some data", "tiny/__init__.py": b""}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in pip_environment(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    return write_wheel(tmp_path / "index", "tiny", FILES)


@pytest.mark.parametrize(
    "requirement", ["-r evil.txt", "../../tiny==1.0", "tiny", "tiny==1.0 --index-url=http://x", "tiny==1.0\n-r x", ""]
)
def test_what_is_no_name_and_version_never_reaches_pip(wheel: Wheel, tmp_path: Path, requirement: str) -> None:
    with pytest.raises(UserError, match="NAME==VERSION"):
        fetch(replace(wheel, requirement=requirement), tmp_path / "cache")
    with pytest.raises(UserError, match="64 hex digits"):
        fetch(replace(wheel, sha256="../" + wheel.sha256[3:]), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_downloads_once_then_only_checks(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(wheel, tmp_path / "cache")
    assert path.parent == tmp_path / "cache" / "wheels"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(wheel, tmp_path / "cache") == path
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".lock", ".whl"]


def test_a_corrupted_file_is_downloaded_again_and_said_so(
    wheel: Wheel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fetch(wheel, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with caplog.at_level(logging.WARNING):
        assert fetch(wheel, tmp_path).read_bytes() == whole
    assert "corrupted" in caplog.text


def test_another_hash_is_refused(wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the pinned 0000"):
        fetch(Wheel(requirement=wheel.requirement, sha256=64 * "0"), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_an_unreachable_index_says_what_to_check(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UserError, match="no Python package index is reachable.*PIP_INDEX_URL"):
        fetch(wheel, tmp_path / "cache")


def test_an_index_that_never_answers_is_given_up(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_RETRIES", "1")
    # pip's own is 15 seconds, and five retries.
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "1")
    with silent() as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        with pytest.raises(UserError, match="no Python package index is reachable.*PIP_INDEX_URL"):
            fetch(wheel, tmp_path / "cache")


def test_an_index_without_the_wheel_is_told_apart(wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tiny==2.0"):
        fetch(Wheel(requirement="tiny==2.0", sha256=wheel.sha256), tmp_path / "cache")


def test_a_python_without_pip_is_named(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(UserError, match="has no pip.*ensurepip"):
        fetch(wheel, tmp_path / "cache")


def test_a_wheel_put_there_by_hand_is_taken(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as refused:
        fetch(wheel, tmp_path / "cache")
    place = Path(str(refused.value).split("yourself: ")[1].split(" (SHA-256")[0])
    place.write_bytes((tmp_path / "index" / "tiny-1.0-py3-none-any.whl").read_bytes())
    assert fetch(wheel, tmp_path / "cache") == place


def test_a_full_disk_is_one_clear_error(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho 'ERROR: OSError: [Errno 28] No space left on device'\nexit 1\n")
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(UserError, match=r"disk is full.*runtime\.cache=DIR"):
        fetch(wheel, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_unpacks_a_member_whole_or_not_at_all(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    target = tmp_path / "out" / "data.txt"
    assert extract(archive, "tiny/data.txt", target).read_bytes() == b"some data"
    target.unlink()
    with pytest.raises(UserError, match="has SHA-256"):
        extract(archive, "tiny/data.txt", target, 64 * "0")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        extract(archive, "tiny/data.txt", target)
    assert list(target.parent.iterdir()) == []


def test_a_missing_member_names_the_nearest(wheel: Wheel, tmp_path: Path) -> None:
    archive = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    with pytest.raises(UserError, match="did you mean 'tiny/data.txt'"), open_member(archive, "tiny/dat.txt"):
        pass
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="no zip archive"), open_member(archive, "tiny/data.txt"):
        pass
