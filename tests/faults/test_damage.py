"""Every file of every artifact damaged in every way: what is built from it, or reported, is the same as before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.world import World, make_world
from pipeline.engine import store as store_module
from pipeline.engine.artifact import MANIFEST, Artifact
from pipeline.engine.store import Store
from stages.common.files import read_jsonl
from stages.common.journal import Journal

OPTIONS = ("recover.tokens=600", "recover.curve_every=300", "evaluate.limit=2")
STAGES = ("model", "data", "scores", "prune", "recover", "tasks", "evaluate", "cost", "report")
MEASURED = ("cost", "report")
"""Stages whose artifacts hold times, which differ each time they are built."""


FAULTS = pytest.mark.faults
DAILY = ("flipped", "removed")
"""Damages that are tried every day on one file of each artifact. `make faults` tries all on every file."""


def flip(path: Path) -> None:
    """Change one bit in the middle, and set the times back."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    """Put another file of the same size into its place."""
    path.rename(path.with_name("old"))
    path.write_bytes(b"\xff" * path.with_name("old").stat().st_size)
    path.with_name("old").unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "replaced": replace,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "removed": Path.unlink,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which everything has been built once."""
    world = make_world(tmp_path_factory.mktemp("world"))
    world.run(*OPTIONS)
    return world


def files_of(artifact: Artifact) -> list[Path]:
    # Weights of a model directory on this machine are linked to, and the user's own file is not ours to damage.
    found = sorted(path for path in artifact.path.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in found if path.stat().st_size]


def digests(store: Store) -> dict[str, str]:
    """Return the digest of each artifact that holds no times, by name."""
    return {one.name: one.digest for one in store.artifacts() if one.manifest["stage"] not in MEASURED}


def told(report: dict[str, Any]) -> list[Any]:
    return [report[part] for part in ("summary", "recovery")]


def damaged(
    world: World, tmp_path: Path, stage: str, damage: str, chosen: Callable[[list[Path]], list[Path]]
) -> tuple[Store, list[Path]]:
    """Return a copy of the world's store in which files of each artifact of `stage` are damaged, and these files."""
    root = tmp_path / "store"
    shutil.copytree(world.store.root, root, symlinks=True)
    store = Store(root)
    hurt = [path for artifact in store.artifacts(stage) for path in chosen(files_of(artifact))]
    for path in hurt:
        DAMAGES[damage](path)
    return store, hurt


def resting_on(artifacts: list[Artifact], store: Store) -> list[Artifact]:
    """Return what was built from these artifacts, or from what was built from them."""
    everything, found = list(store.artifacts()), []
    names = {artifact.name for artifact in artifacts}
    while new := [one for one in everything if one not in found and names & set(one.manifest["inputs"].values())]:
        found += new
        names = {one.name for one in new}
    return found


def some(paths: list[Path]) -> list[Path]:
    """Return the largest file but the manifest."""
    return [max((path for path in paths if path.name != MANIFEST), key=lambda path: path.stat().st_size)]


@pytest.mark.parametrize("damage", [kind if kind in DAILY else pytest.param(kind, marks=FAULTS) for kind in DAMAGES])
@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_artifact_is_built_again_before_a_report_tells_of_it(
    whole: World, tmp_path: Path, stage: str, damage: str
) -> None:
    store, hurt = damaged(whole, tmp_path, stage, damage, some)
    report = whole.run(*OPTIONS, f"runtime.artifact_root={store.root}")
    assert hurt
    assert digests(store) == digests(whole.store)
    assert not [one.name for one in store.artifacts() if store.changed(one)]
    assert told(report) == told(whole.run(*OPTIONS))


@pytest.mark.parametrize("stage", ["model", "data", "scores", "prune", "tasks"])
def test_a_large_file_is_found_out_before_a_build_reads_it(
    whole: World, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SMALL", -1)
    store, hurt = damaged(whole, tmp_path, stage, "flipped", some)
    for reader in resting_on(list(store.artifacts(stage)), store):
        shutil.rmtree(reader.path)
    whole.run(*OPTIONS, f"runtime.artifact_root={store.root}")
    assert hurt
    assert digests(store) == digests(whole.store)
    assert not [one.name for one in store.artifacts() if store.changed(one)]


@FAULTS
@pytest.mark.parametrize("damage", [*DAMAGES])
@pytest.mark.parametrize("stage", STAGES)
def test_each_file_of_an_artifact_is_missed_when_it_is_damaged(
    whole: World, tmp_path: Path, stage: str, damage: str
) -> None:
    names = [path.relative_to(one.path) for one in whole.store.artifacts(stage) for path in files_of(one)]
    for number, name in enumerate(sorted(set(names))):
        place = tmp_path / str(number)
        place.mkdir()
        only = lambda paths, name=name: [path for path in paths if str(path).endswith(f"/{name}")]  # noqa: E731
        store, _ = damaged(whole, place, stage, damage, only)
        whole.run(*OPTIONS, f"runtime.artifact_root={store.root}")
        assert digests(store) == digests(whole.store), name
        assert not [one.name for one in store.artifacts() if store.changed(one)], name
        shutil.rmtree(place)


@pytest.mark.parametrize("damage", [b'{"row": 2\xff}\n', b'{"row": 2\n', b"\0\0\0\n"])
def test_a_damaged_row_of_a_killed_stage_and_those_after_it_are_made_again(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    begun = Journal(path, 4)
    begun.extend([{"row": 0}, {"row": 1}])
    begun.unfinished.write_bytes(begun.unfinished.read_bytes() + damage + b'{"row": 3}\n')
    again = Journal(path, 4)
    assert again.rows == [{"row": 0}, {"row": 1}]
    again.extend([{"row": 2}, {"row": 3}])
    assert list(read_jsonl(path)) == [{"row": place} for place in range(4)]
