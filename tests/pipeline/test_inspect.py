from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.processes import same_imports
from helpers.toystages import Number, chain, stage
from pipeline.engine import holds
from pipeline.engine.artifact import MANIFEST
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.inspect import bytes_under, main
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


def test_verify_finds_a_changed_byte_and_sets_the_artifact_aside(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(store, "verify") == 0
    artifact = next(iter(store.artifacts()))
    path = artifact.path / "number.txt"
    path.write_text("9" * len(path.read_text()))
    assert inspect(store, "verify") == 1
    assert "BROKEN" in capsys.readouterr().out
    assert inspect(store, "verify", "--repair") == 1
    assert not artifact.path.exists()
    assert inspect(store, "verify") == 0
    assert len(store.leftovers()) == 1
    inspect(store, "gc", "--delete")
    assert store.leftovers() == []


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"stage": "toy"}'])
def test_verify_lists_an_artifact_whose_manifest_is_gone_or_damaged(
    store: Store, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    artifact = next(iter(store.artifacts()))
    (artifact.path / MANIFEST).unlink()
    if content is not None:
        (artifact.path / MANIFEST).write_text(content)
    assert inspect(store, "verify") == 1
    assert f"BROKEN  {artifact.name}  its manifest is" in capsys.readouterr().out
    inspect(store, "verify", "--repair")
    assert not artifact.path.exists()


def test_verify_sets_nothing_aside_that_a_run_holds(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    graph = chain(1, 2)
    artifact = store.artifacts(graph.roles["model"].stage.name)
    (next(artifact).path / "number.txt").write_text("9")
    with Engine(graph, store, cache=store.root, force=[]).holding():
        inspect(store, "verify", "--repair")
    assert "in use" in capsys.readouterr().out
    assert store.leftovers() == []


def test_gc_deletes_only_when_told(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(store.artifacts())
    assert inspect(store, "gc") == 0
    assert "dry run" in capsys.readouterr().out
    assert len(list(store.artifacts())) == len(before)
    inspect(store, "gc", "--delete")
    assert list(store.artifacts()) == [], "no report rests on toy artifacts"
    assert [path.name for path in (store.root / ".locks").iterdir()] == ["cleaning.lock"]


def test_gc_leaves_what_a_run_reads_and_made_until_the_run_ends(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = chain(1, 2)
    engine = Engine(graph, store, cache=store.root, force=[])
    with engine.holding():
        inspect(store, "gc", "--delete")
        assert {artifact.key for artifact in store.artifacts()} == {node.key for node in graph}
    assert "in use" in capsys.readouterr().out
    inspect(store, "gc", "--delete")
    assert list(store.artifacts()) == []


def test_gc_leaves_what_a_stopped_build_goes_on_from(store: Store, tmp_path: Path) -> None:
    graph = chain(7, 8, fail=1)
    with pytest.raises(RuntimeError):
        Engine(graph, store, cache=tmp_path / "cache", force=[]).run()
    inspect(store, "gc", "--delete")
    assert {artifact.key for artifact in store.artifacts()} == {graph.roles["model"].key}
    assert len(store.partials()) == 1
    inspect(store, "gc", "--delete", "--unfinished")
    assert [*store.artifacts(), *store.partials()] == []


def test_verify_sets_nothing_aside_that_was_built_again_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(store.artifacts()).path / "number.txt"
    before = path.read_text()
    path.write_text("9" * len(before))
    original = Store.cleaning
    monkeypatch.setattr(Store, "cleaning", lambda self: (path.write_text(before), original(self))[1])
    inspect(store, "verify", "--repair")
    assert "built again meanwhile" in capsys.readouterr().out
    assert store.leftovers() == []


def test_a_full_disk_is_not_a_run_without_a_hold(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(holds, "write_json", full)
    engine = Engine(chain(1, 2), store, cache=store.root, force=[])
    with pytest.raises(OSError, match="No space"), engine.holding():
        pass
    assert not list((store.root / ".locks").glob("run-*"))


def test_a_run_that_may_not_write_the_store_reads_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, value: object) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(holds, "write_json", refused)
    engine = Engine(chain(1, 2), store, cache=store.root, force=[])
    with engine.holding():
        engine.run()
    assert {run.status for run in engine.runs.values()} == {"hit"}


def test_a_killed_run_holds_nothing(store: Store) -> None:
    script = (
        "import os, signal; from pathlib import Path; from pipeline.engine.engine import Engine;"
        "from pipeline.engine.store import Store; from helpers.toystages import chain\n"
        f"with Engine(chain(1, 2), Store(Path({str(store.root)!r})), cache=Path('/'), force=[]).holding():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script], env=same_imports(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((store.root / ".locks").glob("run-*.json"))
    inspect(store, "gc", "--delete")
    assert list(store.artifacts()) == []
    assert not list((store.root / ".locks").glob("run-*"))


def test_gc_takes_only_what_is_old_enough(store: Store) -> None:
    old, *new = store.artifacts()
    os.utime(old.path, (0, time.time() - 3 * 24 * 60 * 60))
    inspect(store, "gc", "--delete", "--older-than", "2")
    assert [artifact.name for artifact in store.artifacts()] == [artifact.name for artifact in new]


def test_gc_takes_the_oldest_until_the_store_is_small_enough(store: Store) -> None:
    old, *new = store.artifacts()
    os.utime(old.path, (0, time.time() - 3 * 24 * 60 * 60))
    everything = bytes_under(store.root)
    inspect(store, "gc", "--delete", "--keep-bytes", str(everything))
    assert len(list(store.artifacts())) == len(new) + 1
    inspect(store, "gc", "--delete", "--keep-bytes", str(everything - 1))
    assert [artifact.name for artifact in store.artifacts()] == [artifact.name for artifact in new]


@pytest.mark.parametrize("given", ["--older-than=-1", "--older-than=nan", "--keep-bytes=x"])
def test_gc_refuses_numbers_that_say_nothing(store: Store, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inspect(store, "gc", given)
    assert given.partition("=")[0] in capsys.readouterr().err


def test_two_cleanings_at_once_end_well(store: Store) -> None:
    for value in range(20):
        Engine(chain(1, 10 + value), store, cache=store.root, force=[]).run()
    command = [sys.executable, "-m", "pipeline.inspect", "--root", str(store.root), "gc", "--delete"]
    running = [subprocess.Popen(command, env=same_imports(), stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, error = process.communicate()
        assert (process.returncode, error) == (0, "")
    assert list(store.artifacts()) == []


def test_a_model_may_be_named_like_what_a_commit_leaves(store: Store, tmp_path: Path) -> None:
    graph = chain(1, 2)
    label = "x.replaced-1-0123456789abcdef.partial"
    named = Graph({role: replace(node, label=label) for role, node in graph.roles.items()}, graph.device)
    root = tmp_path / "named"
    Engine(named, Store(root), cache=tmp_path / "cache", force=[]).run()
    assert len(list(Store(root).artifacts())) == len(graph.roles)
    assert Store(root).leftovers() == Store(root).partials() == []


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


@pytest.mark.parametrize("ending", ["", ".partial", ".replaced-7"])
def test_a_number_in_a_label_hides_no_running_build(store: Store, ending: str) -> None:
    path = store.root / "toy-double" / f"n-r0.20-0123456789abcdef{ending}"
    assert not store.in_use(path)
    with store.lock("toy-double", "0123456789abcdef", waiting=lambda: None):
        assert store.in_use(path)
