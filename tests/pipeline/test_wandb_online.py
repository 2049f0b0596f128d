"""The online road to W&B, against a stand-in of its HTTP interface on the loopback address."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from helpers.follower import FOUND, ID, SUBJECT, Follower, follower, point, points, untracked
from helpers.serving import silent
from helpers.wandbserver import EVENTS, Server, command, serve_wandb, wait_for
from helpers.world import World, make_world
from pipeline.tracking.registry import open_tracker
from pipeline.tracking.tracker import TrackerConfig, following
from pipeline.tracking.wandb_file import BLOCK, finished
from pipeline.tracking.wandb_tracker import PATIENCE


def sync(server: Server, directory: Path) -> list[str]:
    done = command(server.environment(directory), "sync", "--directory", str(directory))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def record(directory: Path, count: int, *, fails: bool = False) -> None:
    """Record a run of so many points offline, in this process."""
    tracker = open_tracker(TrackerConfig(name="wandb", directory=str(directory)), {"recover": SUBJECT})
    with suppress(ZeroDivisionError), following(tracker):
        for place in range(count):
            tracker.log(point(place))
        if fails:
            raise ZeroDivisionError
        tracker.conclude(FOUND.__getitem__)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_wandb() as started:
        yield started


def test_a_curve_arrives_live_and_an_outage_in_the_middle_loses_nothing_and_stops_nothing(
    server: Server, tmp_path: Path
) -> None:
    with follower(server.environment(tmp_path), name="wandb", mode="online", directory=str(tmp_path)) as run:
        run.log(4)
        # W&B keeps the newest point until the next one comes, or the run ends.
        wait_for(lambda: ID in server.runs and server.runs[ID].history == points(3))
        server.down.set()
        run.log(8)
        wait_for(lambda: server.broken > 1)
        server.down.clear()
        run.log(12)
        wait_for(lambda: server.runs[ID].history == points(11))
        printed = run.end()
    held = server.runs[ID]
    assert held.history == points(12)
    assert not held.rewritten
    assert held.exit_code == 0
    assert held.summary["recovered"] == 0.26
    assert held.fields["groupName"] == "llmpruner-tiny-r0.50"
    assert held.fields["jobType"] == "recover"
    assert held.fields["displayName"] == "rora-r16-tiny"
    assert held.config["recover"] == {"value": {"rank": 16}}
    assert held.files.keys() == {"wandb-summary.json", "config.yaml", held.summary["results"]["path"]}
    assert not held.of(EVENTS)  # use of the machine is sent only when asked
    place = f"{server.url}/tester/prune-recover/runs/{ID}"
    assert printed == [f"W&B: this recover is at {place}", f"W&B: {place}", "the run went on"]


def test_a_killed_run_goes_on_in_its_own_run_without_a_point_twice(server: Server, tmp_path: Path) -> None:
    settings = {"name": "wandb", "mode": "online", "directory": str(tmp_path)}
    with follower(server.environment(tmp_path), **settings) as run:
        run.log(4)
        wait_for(lambda: ID in server.runs and len(server.runs[ID].history) == 3)
        services = run.services()
    psutil.wait_procs(services, timeout=120)
    # A resumed recovery logs its curve again from the beginning.
    with follower(server.environment(tmp_path), **settings) as resumed:
        resumed.log(9)
        resumed.end()
    assert list(server.runs) == [ID]
    assert server.runs[ID].history == points(9)
    assert not server.runs[ID].rewritten
    assert server.runs[ID].exit_code == 0


@contextmanager
def in_an_outage(server: Server, directory: Path) -> Iterator[Follower]:
    """Follow an online run whose first points arrived, and whose last were logged after the server went down."""
    settings = {"name": "wandb", "mode": "online", "directory": str(directory), "finish_patience": 1}
    with follower(server.environment(directory), **settings) as run:
        run.log(4)
        wait_for(lambda: ID in server.runs and server.runs[ID].history)
        server.down.set()
        run.log(8)
        yield run


def test_an_outage_until_the_end_is_one_warning_and_what_was_not_sent_is_sent_later(
    server: Server, tmp_path: Path
) -> None:
    with in_an_outage(server, tmp_path) as run:
        printed = run.end()
    assert "can't be used online" in printed[1]
    assert [line.partition(" in ")[0] for line in printed[2:]] == ["W&B: offline run", "the run went on"]
    server.down.clear()
    assert sync(server, tmp_path) == ["sent 1 of 1: rora-r16-tiny (0123456789abcdef)"]
    held = server.runs[ID]
    assert held.history == points(8)
    assert not held.rewritten
    assert held.summary["recovered"] == 0.26
    assert held.summary["results"]["path"] in held.files
    (line,) = sync(server, tmp_path)
    assert line.startswith("nothing to send")


def test_a_run_that_fails_in_an_outage_is_one_warning_and_its_points_are_sent_later(
    server: Server, tmp_path: Path
) -> None:
    with in_an_outage(server, tmp_path) as run:
        printed = run.end(fails=True)
    assert printed[1:] == [
        "W&B was not sent all of this recover in 1 s. "
        f"python -m pipeline.wandb sync --directory {tmp_path} sends the rest.",
        "the run failed",
    ]
    server.down.clear()
    sync(server, tmp_path)
    assert server.runs[ID].history == points(8)
    assert not server.runs[ID].rewritten


def test_offline_runs_are_sent_once_and_the_newest_complete_file_of_each_counts(server: Server, tmp_path: Path) -> None:
    for count, fails in ((3, True), (9, False), (5, True)):
        record(tmp_path, count, fails=fails)
        time.sleep(1.1)  # W&B names a run's directory by the second
    assert sync(server, tmp_path) == ["sent 1 of 1: rora-r16-tiny (0123456789abcdef)"]
    assert server.runs[ID].history == points(9)
    assert server.runs[ID].summary["recovered"] == 0.26


def test_a_run_that_was_sent_while_it_was_recorded_is_sent_to_its_end(server: Server, tmp_path: Path) -> None:
    with follower({}, name="wandb", directory=str(tmp_path)) as run:
        run.log(400)
        # W&B writes block by block.
        wait_for(lambda: any(file.stat().st_size >= BLOCK for file in tmp_path.glob("wandb/*/*.wandb")))
        sync(server, tmp_path)
        assert 0 < len(server.runs[ID].history) < 400
        run.log(500)
        run.end()
    assert sync(server, tmp_path) == ["sent 1 of 1: rora-r16-tiny (0123456789abcdef)"]
    assert server.runs[ID].history == points(500)
    assert not server.runs[ID].rewritten
    assert server.runs[ID].summary["recovered"] == 0.26
    (line,) = sync(server, tmp_path)
    assert line.startswith("nothing to send")


def test_a_wrong_key_sends_nothing_and_says_how_to_log_in(server: Server, tmp_path: Path) -> None:
    record(tmp_path, 2)
    done = command(server.environment(tmp_path, key="z" * 40), "sync", "--directory", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: W&B can't be reached")
    assert "wandb login" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not server.runs


def test_a_run_that_is_refused_is_named_with_the_reason_and_waits(server: Server, tmp_path: Path) -> None:
    record(tmp_path, 2)
    server.refused.add("UpsertBucket")
    done = command(server.environment(tmp_path), "sync", "--directory", str(tmp_path))
    assert done.returncode == 1
    assert "W&B did not take" in done.stderr
    assert "permission denied" in done.stderr
    server.refused.clear()
    assert sync(server, tmp_path) == ["sent 1 of 1: rora-r16-tiny (0123456789abcdef)"]


def test_a_curve_that_is_refused_or_never_answered_for_is_no_run_that_was_sent(server: Server, tmp_path: Path) -> None:
    record(tmp_path, 2)
    impatient = server.environment(tmp_path)
    impatient |= {"WANDB__FILE_STREAM_TIMEOUT_SECONDS": "1", "WANDB__FILE_STREAM_RETRY_MAX": "1"}
    server.refused.add("file_stream")
    for change in (server.refused.clear, server.mute.clear):
        done = command(impatient, "sync", "--directory", str(tmp_path))
        assert done.returncode == 1, done.stdout
        (line,) = done.stderr.splitlines()
        assert "W&B did not take" in line
        assert "Some run data will not be synced" in line
        server.mute.set()
        change()
    assert sync(server, tmp_path) == ["sent 1 of 1: rora-r16-tiny (0123456789abcdef)"]
    assert server.runs[ID].history == points(2)


def test_a_silent_server_is_one_warning_and_the_run_is_recorded_offline(tmp_path: Path) -> None:
    with silent() as url:
        environment = Server(url).environment(tmp_path)
        with follower(environment, name="wandb", mode="online", directory=str(tmp_path)) as run:
            run.log(4)
            began = time.monotonic()
            printed = run.end()
    assert time.monotonic() - began < 4 * PATIENCE
    assert "can't be used online" in printed[0]
    assert len(printed) == 3
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert finished(path)


def test_a_wrong_key_is_one_warning_and_the_run_is_recorded_offline(server: Server, tmp_path: Path) -> None:
    environment = server.environment(tmp_path, key="z" * 40)
    with follower(environment, name="wandb", mode="online", directory=str(tmp_path)) as run:
        run.log(4)
        printed = run.end()
    assert "can't be used online" in printed[0]
    assert "401" in printed[0]
    assert "recording offline" in printed[0]
    assert len(printed) == 3
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert finished(path)
    assert not server.runs


def test_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    with follower({}, name="wandb", directory=str(tmp_path), limit=40_000, file_patience=1) as run:
        run.log(400)
        printed = run.end()
    assert "is the disk full?" in printed[0]
    assert printed[1:] == ["the run went on"]


def test_use_of_the_machine_is_sent_when_asked(server: Server, tmp_path: Path) -> None:
    settings = {"name": "wandb", "mode": "online", "directory": str(tmp_path), "system": True}
    with follower(server.environment(tmp_path), **settings) as run:
        run.log(2)
        run.end()
    assert server.runs[ID].of(EVENTS)
    assert "wandb-metadata.json" in server.runs[ID].files


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
def test_a_run_of_the_pipeline_and_its_replay_are_one_group_with_everything_once(
    server: Server, world: World, tmp_path: Path
) -> None:
    world.environment |= server.environment(tmp_path) | {"PYTHONPATH": untracked()["PYTHONPATH"]}
    words = ("prune=llmpruner", "adapter=rora", "tracker=wandb", "tracker.mode=online", f"tracker.directory={tmp_path}")
    for more in ((), ("tracker.model=true",)):
        status, printed = world.call(*words, *more)
        assert status == 0, printed
        assert "wandb:" not in printed
    runs = {run.fields["jobType"]: run for run in server.runs.values()}
    assert sorted(runs) == ["prune", "recover"]
    assert len({run.fields["groupName"] for run in runs.values()}) == 1
    history = runs["recover"].history
    tokens = [point["recover/tokens"] for point in history]
    assert tokens == sorted(set(tokens))
    assert len(tokens) > 3
    assert {"perplexity/dense", "perplexity/pruned", "perplexity/recovered"} <= runs["recover"].summary.keys()
    assert "perplexity/recovered" not in runs["prune"].summary
    assert not runs["prune"].history
    tables = {run.summary[name]["path"] for run in runs.values() for name in ("results", "kept")}
    assert all(any(path in run.files for run in runs.values()) for path in tables)
    manifests = [artifact for artifact in server.artifacts if artifact.type == "manifest"]
    assert len(manifests) == 2
    for artifact in manifests:
        assert artifact.committed
        assert not artifact.files
        (entry,) = artifact.manifest.values()
        assert entry["ref"].startswith("file://")
        assert Path(entry["ref"].removeprefix("file://")).is_file()
    models = [artifact for artifact in server.artifacts if artifact.type == "model"]
    assert len(models) == 2
    assert all("model.safetensors" in artifact.files for artifact in models)
