"""What the cache promises, one test a promise, on stages that take no time."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from helpers import toystages
from helpers.processes import same_imports
from helpers.toystages import Number, chain, stage
from pipeline.console.tables import plan_table
from pipeline.engine import integrity, store
from pipeline.engine.artifact import MANIFEST
from pipeline.engine.engine import Engine, Status
from pipeline.engine.integrity import Hashes
from pipeline.engine.store import Store
from pipeline.engine.unfinished import resumable
from pipeline.planning.graph import Graph, Node
from stages.common.sealed import sealed
from stages.errors import UserError


@pytest.fixture
def run(tmp_path: Path):
    def go(graph: Graph, force: list[str] | None = None) -> Engine:
        (tmp_path / "cache").mkdir(exist_ok=True)
        engine = Engine(graph, Store(tmp_path / "store"), cache=tmp_path / "cache", force=force or [])
        engine.run()
        return engine

    return go


@pytest.fixture
def ran(tmp_path: Path):
    """How often stages ran since the last call."""
    path = tmp_path / "cache" / "runs.txt"
    seen = 0

    def count() -> list[int]:
        nonlocal seen
        values = [int(line) for line in path.read_text().split()] if path.exists() else []
        new, seen = values[seen:], len(values)
        return new

    return count


def number(engine: Engine, node: Node) -> int:
    return int((engine.done[node.key].path / "number.txt").read_text())


def test_a_second_run_runs_nothing(run, ran) -> None:
    first = run(chain(1, 2, 3))
    assert ran() == [1, 2, 3]
    again = run(chain(1, 2, 3))
    assert ran() == []
    assert {r.status for r in again.runs.values()} == {"hit"}
    assert number(first, chain(1, 2, 3).roles["report"]) == 2 * (3 + 2 * (2 + 2))


def test_a_changed_config_rebuilds_only_what_depends_on_it(run, ran) -> None:
    run(chain(1, 2, 3))
    ran()
    run(chain(1, 5, 3))
    assert ran() == [5, 3]


def test_a_downstream_hit_never_runs_upstream(run, ran, tmp_path: Path) -> None:
    graph = chain(1, 2, 3)
    engine = run(graph)
    ran()
    import shutil

    shutil.rmtree(engine.done[graph.roles["middle1"].key].path)
    run(chain(1, 2, 3))
    assert ran() == []


def test_a_new_version_is_another_artifact(run, ran) -> None:
    run(chain(1, 2))
    ran()
    run(chain(1, 2, version=2))
    assert ran() == [1, 2]


def test_a_truncated_file_is_rebuilt_and_said_so(run, ran) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    (engine.done[graph.roles["model"].key].path / "number.txt").write_text("")
    again = run(chain(1, 2))
    assert ran() == [1], "the rebuilt input is the same, so what depends on it stays"
    assert "0 bytes" in again.runs[graph.roles["model"].key].why


def test_a_missing_manifest_is_no_artifact(run, ran) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    (engine.done[graph.roles["report"].key].path / MANIFEST).unlink()
    run(chain(1, 2))
    assert ran() == [2]


def test_a_damaged_manifest_is_no_artifact(run, ran) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    path = engine.done[graph.roles["report"].key].path / MANIFEST
    path.write_text(path.read_text()[:100])
    run(chain(1, 2))
    assert ran() == [2]


def test_a_manifest_with_another_figure_in_it_is_no_artifact(run, ran) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    path = engine.done[graph.roles["report"].key].path / MANIFEST
    path.write_text(path.read_text().replace('"number": 8', '"number": 9'))
    assert "damaged" in run(chain(1, 2)).runs[graph.roles["report"].key].why
    assert ran() == [2]


def test_a_small_file_with_another_byte_is_rebuilt(run, ran) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    (engine.done[graph.roles["report"].key].path / "number.txt").write_text("9")
    again = run(chain(1, 2))
    assert ran() == [2]
    assert number(again, graph.roles["report"]) == 8
    assert "number.txt is not what was written" in again.runs[graph.roles["report"].key].why


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is too large to be hashed whenever its artifact is looked at."""
    monkeypatch.setattr(store, "SMALL", 0)


def flip(path: Path) -> None:
    """Write another digit over the last, and set the time of modification back."""
    before = path.stat()
    content = path.read_text()
    path.write_text(content[:-1] + str((int(content[-1]) + 1) % 10))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.usefixtures("unread")
def test_a_large_file_with_another_byte_is_rebuilt_before_a_build_reads_it(run, ran) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    flip(engine.done[graph.roles["model"].key].path / "number.txt")
    assert {one.status for one in run(chain(1, 2)).runs.values()} == {"hit"}, "nothing reads it"
    again = run(chain(1, 3))
    assert ran() == [1, 3]
    assert number(again, chain(1, 3).roles["report"]) == 2 * (3 + 2)
    assert "number.txt is not what was written" in again.runs[graph.roles["model"].key].why


@pytest.mark.usefixtures("unread")
def test_a_file_that_changes_again_after_its_rebuild_is_one_error(run, tmp_path: Path, monkeypatch) -> None:
    run(chain(1, 2))
    monkeypatch.setattr(Hashes, "changed", lambda *given, most=None: "" if most is not None else "a byte differs")
    with pytest.raises(UserError, match="damaged again.*disk"):
        run(chain(1, 3))


@pytest.mark.usefixtures("unread")
def test_a_file_is_hashed_once_in_a_run(run, monkeypatch) -> None:
    run(chain(1))
    hashed: list[Path] = []
    original = integrity.sha256_of_each
    monkeypatch.setattr(integrity, "sha256_of_each", lambda paths: hashed.extend(paths) or original(paths))
    run(chain(1, 2, 3))
    # The model is read by one build; the artifact between is hashed when it is committed, the last likewise.
    assert len(hashed) == 3


def test_an_input_that_was_rebuilt_differently_rebuilds_what_used_it(run, ran) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    path = engine.done[graph.roles["report"].key].path / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["input_digests"]["previous"] = "0" * 64
    path.write_text(json.dumps(sealed(manifest)))
    again = run(chain(1, 2))
    assert ran() == [2]
    assert "differs" in again.runs[graph.roles["report"].key].why


def test_forcing_a_stage_rebuilds_everything_that_depends_on_it(run, ran) -> None:
    run(chain(1, 2, 3))
    ran()
    run(chain(1, 2, 3), force=["middle1"])
    assert ran() == [2, 3]


def test_a_stage_finds_nothing_in_memory_that_the_stage_before_left_there(run) -> None:
    gc.disable()
    try:
        graph = chain(1, 2, 3, function="litter")
        engine = run(graph)
    finally:
        gc.enable()
    assert [number(engine, node) for node in graph] == [0, 0, 0]


def test_a_stage_finds_the_cards_free_and_its_own_peak_on_each_is_recorded(run, monkeypatch) -> None:
    cards = toystages.CARDS
    for name in ("empty_cache", "reset_peak_memory_stats", "max_memory_allocated", "device_count", "is_initialized"):
        monkeypatch.setattr(torch.cuda, name, getattr(cards, name))
    graph = chain(20, 5, 8, function="on_cards")
    engine = run(graph)
    assert [number(engine, node) for node in graph] == [0, 0, 0]
    first, second, third = (engine.runs[node.key] for node in graph)
    # The fullest card of any process; a peak that stayed would be seen in the smaller stages.
    assert [each.peak_device_memory_bytes for each in (first, second, third)] == [60, 5, 8]
    assert first.peaks["this process"]["device_memory_bytes"] == {"cuda:0": 20, "cuda:1": 40}
    assert first.peaks["worker 1"] == {"memory_bytes": 7, "device_memory_bytes": {"cuda:1": 60}}
    assert not second.peaks
    json.dumps(asdict(first))


def test_forcing_an_unknown_stage_names_the_known(run) -> None:
    with pytest.raises(UserError, match="middle1"):
        run(chain(1, 2, 3), force=["middel"])


def test_a_failed_stage_keeps_its_work_and_resumes(run, ran, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(chain(1, 2, 3, fail=1))
    assert ran() == [1, 2]
    partials = Store(tmp_path / "store").partials()
    assert [(p / "progress.txt").read_text() for p in partials] == ["half"]
    (tmp_path / "cache" / "mended").touch()
    engine = run(chain(1, 2, 3, fail=1))
    assert ran() == [2, 3]
    assert engine.runs[chain(1, 2, 3, fail=1).roles["middle1"].key].status == "resumed"
    assert Store(tmp_path / "store").partials() == []


def test_an_unfinished_build_from_other_inputs_is_not_resumed(run, ran, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(chain(1, 2, 3, fail=1))
    (partial,) = Store(tmp_path / "store").partials()
    (partial / ".inputs.json").write_text(json.dumps({"previous": "0" * 64}))
    (tmp_path / "cache" / "mended").touch()
    engine = run(chain(1, 2, 3, fail=1))
    assert engine.runs[chain(1, 2, 3, fail=1).roles["middle1"].key].status == "built"


def test_what_a_killed_writer_left_is_not_part_of_the_artifact(run, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(chain(1, 2, 3, fail=1))
    (partial,) = Store(tmp_path / "store").partials()
    (partial / ".unpacked-x").mkdir()
    (partial / ".unpacked-x" / "big").write_text("x")
    (partial / ".number.txt.17.tmp").write_text("x")
    (tmp_path / "cache" / "mended").touch()
    engine = run(chain(1, 2, 3, fail=1))
    artifact = engine.done[chain(1, 2, 3, fail=1).roles["middle1"].key]
    assert set(artifact.manifest["files"]) == {"number.txt"}
    assert {path.name for path in artifact.path.iterdir()} == {"number.txt", MANIFEST}


def test_a_link_whose_target_was_written_again_is_no_hit(run, ran, tmp_path: Path) -> None:
    graph = chain(1, 2)
    engine = run(graph)
    ran()
    path = engine.done[graph.roles["model"].key].path / "number.txt"
    target = tmp_path / "target.txt"
    target.write_text(path.read_text())
    path.unlink()
    path.symlink_to(target)
    manifest = json.loads((path.parent / MANIFEST).read_text())
    manifest["files"]["number.txt"]["modified_ns"] = target.stat().st_mtime_ns - 1
    (path.parent / MANIFEST).write_text(json.dumps(manifest))
    run(chain(1, 2))
    assert ran() == [1]


def test_a_broken_promise_is_no_artifact(run, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"number\.txt"):
        run(chain(1, 2, function="promise_breaker"))
    assert list(Store(tmp_path / "store").artifacts()) == []


def test_a_full_disk_is_one_clear_error_and_keeps_the_work(run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space left.*artifact_root"):
        run(chain(1, 2, function="full_disk"))
    assert len(Store(tmp_path / "store").partials()) == 1


def test_a_commit_that_fails_keeps_the_work_for_the_next_run(run, ran, tmp_path: Path, monkeypatch) -> None:
    original = store.write_json

    def full(path: Path, value: object) -> None:
        if path.name == MANIFEST:
            raise OSError(28, os.strerror(28), str(path))
        original(path, value)

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(UserError, match="no space left"):
        run(chain(1))
    (partial,) = (tmp_path / "store").glob("*/*.partial")
    assert resumable(partial, {})
    monkeypatch.setattr(store, "write_json", original)
    engine = run(chain(1))
    assert [one.status for one in engine.runs.values()] == ["resumed"]
    assert {path.name for path in engine.done[chain(1).roles["model"].key].path.iterdir()} == {"number.txt", MANIFEST}


def test_two_processes_build_an_artifact_once(tmp_path: Path, ran) -> None:
    (tmp_path / "cache").mkdir()
    code = (
        "import sys; from pathlib import Path; from helpers.toystages import chain\n"
        "from pipeline.engine.engine import Engine; from pipeline.engine.store import Store\n"
        "root = Path(sys.argv[1])\n"
        "e = Engine(chain(1, 2, function='slow'), Store(root / 'store'), cache=root / 'cache', force=[]); e.run()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2], env=same_imports()) for _ in range(2)]
    assert [p.wait(60) for p in processes] == [0, 0]
    assert sorted(ran()) == [1, 2]


def test_a_store_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="runtime.artifact_root"):
        Store(tmp_path / "file" / "store").prepare()


def test_equal_nodes_are_one_artifact(run, ran) -> None:
    model = Node(stage(), "same", Number(1))
    twin = Node(stage(), "same", Number(1))
    report = Node(stage(), "report", Number(9), {"dense": model, "pruned": twin})
    run(Graph({"model": model, "twin": twin, "report": report}, "cpu"))
    assert ran() == [1, 9]


def test_what_another_process_is_building_is_waited_for_and_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    store, graph = Store(tmp_path / "store"), chain(1, 2)
    engine, node = Engine(graph, store, cache=tmp_path / "cache", force=[]), graph.roles["model"]
    assert engine.status(node).state == "build"
    assert not store.root.exists(), "asking leaves nothing behind"
    store.partial(node.stage.name, node.label, node.key).mkdir(parents=True)
    with store.lock(node.stage.name, node.key, waiting=lambda: None):
        assert engine.status(node) == Status("wait", "being built by another process")
        assert node in engine.due()
    assert engine.status(node).state == "resume"


def why(run, graph: Graph, role: str) -> str:
    """Return the last column of a role's row in the plan of `graph`, on what `run` has left in the store."""
    store = run(chain(1)).store
    engine = Engine(graph, store, cache=store.root, force=[])
    rows = plan_table(graph, engine, {}).splitlines()
    return next(row.partition("build  ")[2] for row in rows if row.startswith(role))


def test_a_plan_compares_what_is_missing_with_what_is_nearly_it(run) -> None:
    run(chain(1, 2, 3))
    assert "differs in value 2 → 5" in why(run, chain(1, 5, 3), "middle1")


def test_a_plan_compares_nothing_with_an_artifact_of_another_model_or_name(run) -> None:
    run(chain(1, 2))
    other = Node(stage(), "other", Number(7))
    graph = Graph({"model": other, "report": Node(stage(), "n1", Number(3), {"model": other})}, "cpu")
    assert why(run, graph, "model") == why(run, graph, "report") == "not in the store"


def test_a_plan_says_no_more_where_only_what_came_before_is_another(run) -> None:
    run(chain(1, 2))
    assert why(run, chain(9, 2), "report") == "not in the store"


def test_after_a_power_cut_no_manifest_stands_beside_files_that_never_reached_the_disk(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are flushed before the manifest, that and its directory before the name, and the name's directory last."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flushed(descriptor: int) -> None:
        calls.append(f"flushed {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        calls.append(f"renamed to {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    (artifact,) = run(chain(1)).done.values()
    partial = f"flushed {artifact.path.name}.partial"
    manifest, name = calls.index(f"flushed {MANIFEST}"), calls.index(f"renamed to {artifact.path.name}")
    assert calls.index("flushed number.txt") < manifest < name
    assert calls.index(partial) < manifest, "the names of the files are there before the manifest is"
    assert manifest < len(calls) - 1 - calls[::-1].index(partial) < name
    assert f"flushed {artifact.path.parent.name}" in calls[name:]
