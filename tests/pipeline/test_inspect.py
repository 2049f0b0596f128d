from __future__ import annotations

from pathlib import Path

import pytest

from helpers.toystages import Number, chain, stage
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.inspect import main
from pipeline.planning.graph import Graph, Node


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "cache").mkdir()
    store = Store(tmp_path / "store")
    for values in ((1, 2), (1, 3)):
        Engine(chain(*values), store, cache=tmp_path / "cache", force=[]).run()
    return store


def inspect(store: Store, *arguments: str) -> int:
    return main(["--root", str(store.root), *arguments])


def test_ls_names_every_artifact(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(store, "ls") == 0
    out = capsys.readouterr().out
    assert all(artifact.name in out for artifact in store.artifacts())


def test_show_takes_a_short_key(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = next(iter(store.artifacts()))
    assert inspect(store, "show", artifact.key[:8]) == 0
    out = capsys.readouterr().out
    assert artifact.key in out
    assert "number.txt" in out


def test_why_names_the_field_that_differs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    changed = next(a for a in store.artifacts() if a.manifest["payload"]["config"]["value"] == 3)
    assert inspect(store, "why", changed.key) == 0
    assert "value 2 → 3" in capsys.readouterr().out


def test_an_unknown_key_is_an_error(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(store, "show", "nothing") == 1
    assert "pipeline.inspect ls" in capsys.readouterr().err


def test_verify_finds_a_changed_byte_and_discards_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(store, "verify") == 0
    artifact = next(iter(store.artifacts()))
    path = artifact.path / "number.txt"
    path.write_text("9" * len(path.read_text()))
    assert inspect(store, "verify") == 1
    assert "BROKEN" in capsys.readouterr().out
    inspect(store, "verify", "--discard")
    assert not artifact.path.exists()


def test_gc_deletes_only_when_told(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(store.artifacts())
    assert inspect(store, "gc") == 0
    assert "dry run" in capsys.readouterr().out
    assert len(list(store.artifacts())) == len(before)
    inspect(store, "gc", "--delete")
    assert list(store.artifacts()) == [], "no report rests on toy artifacts"


def test_gc_leaves_a_running_build_alone(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    partial = store.root / "toy-double" / "n0-0123456789abcdef.partial"
    partial.mkdir()
    with store.lock("toy-double", "0123456789abcdef", waiting=lambda: None):
        inspect(store, "gc", "--delete", "--unfinished")
        assert partial.exists()
    inspect(store, "gc", "--delete")
    assert partial.exists(), "a run would go on from it"
    assert "unfinished" in capsys.readouterr().out
    inspect(store, "gc", "--delete", "--unfinished")
    assert not partial.exists()


def test_a_missing_store_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path / "none"), "ls"]) == 1
    assert "--root" in capsys.readouterr().err


def test_why_names_the_inputs_that_changed_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").mkdir()
    store, kinds = Store(tmp_path / "store"), stage()
    for value in (1, 2):
        roles = {name: Node(kinds, name, Number(one)) for name, one in (("model", 7), ("changed", value))}
        roles["report"] = Node(kinds, "sum", Number(0), {"same": roles["model"], "other": roles["changed"]})
        Engine(Graph(roles, "cpu"), store, cache=tmp_path / "cache", force=[]).run()
    assert inspect(store, "why", roles["report"].key) == 0
    said = capsys.readouterr().out
    assert "input other: toy-double/changed-" in said
    assert "input same" not in said
