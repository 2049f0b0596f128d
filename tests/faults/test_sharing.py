"""One store under many hands: runs side by side, cleaning beside them, clocks that go back, directories that vanish."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.toystages import chain
from helpers.world import World, make_world
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.inspect import main as inspect
from pipeline.planning.graph import Graph
from stages.errors import UserError

VALUES = (1, 2, 3)


def engine(graph: Graph, root: Path) -> Engine:
    return Engine(graph, Store(root / "store"), cache=root, force=[])


def whole_run(graph: Graph, root: Path) -> int:
    """Run a graph as a command does, and return the number that it ends in."""
    made = engine(graph, root)
    made.store.prepare()
    with made.holding():
        made.run()
        return int((made.done[graph.roles["report"].key].path / "number.txt").read_text())


def in_processes(*works: Callable[[], None]) -> list[int]:
    """Return the exit statuses of functions that run side by side, each in a forked child."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def sharing(root: Path, *, runs: int, rounds: int) -> list[int]:
    """Let processes run overlapping graphs on one store, with two that clean it; return their statuses."""
    ended = root / "ended"

    def runner(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(rounds):
            values = tuple(draw.choice(VALUES) for _ in range(3))
            expected = 2 * (values[2] + 2 * (values[1] + 2 * values[0]))
            assert whole_run(chain(*values), root) == expected

    def cleaner() -> None:
        sys.stdout = io.StringIO()
        while not ended.exists():
            assert inspect(["--root", str(root / "store"), "gc", "--delete", "--unfinished"]) == 0

    def all_runners() -> None:
        statuses = in_processes(*(lambda seed=seed: runner(seed) for seed in range(runs)))
        ended.touch()
        assert statuses == [0] * runs

    whole_run(chain(*VALUES), root)
    return in_processes(all_runners, cleaner, cleaner)


@pytest.mark.parametrize(
    ("runs", "rounds"), [(3, 3), pytest.param(8, 10, marks=pytest.mark.faults)], ids=["few", "many"]
)
def test_runs_on_one_store_lose_nothing_to_cleaning_beside_them(tmp_path: Path, runs: int, rounds: int) -> None:
    assert sharing(tmp_path, runs=runs, rounds=rounds) == [0, 0, 0]
    store = Store(tmp_path / "store")
    assert not [one.name for one in store.artifacts() if store.changed(one)]
    assert not store.unreadable()


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_was_set_wrong_builds_nothing_again(tmp_path: Path, years: int) -> None:
    graph = chain(*VALUES)
    first = whole_run(graph, tmp_path)
    when = time.time() + years * 365 * 24 * 3600
    for path in sorted((tmp_path / "store").rglob("*")):
        os.utime(path, (when, when))
    runs = (tmp_path / "runs.txt").read_text()
    assert whole_run(graph, tmp_path) == first
    assert (tmp_path / "runs.txt").read_text() == runs
    assert inspect(["--root", str(tmp_path / "store"), "verify"]) == 0


@pytest.mark.parametrize("what", ["the build", "the input", "the store"])
def test_a_directory_that_is_removed_under_a_run_is_one_error_and_the_next_run_mends_it(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = chain(1, 2)
    made = engine(graph, tmp_path)
    node = graph.roles["report"]
    upstream = made.ensure(graph.roles["model"]).path
    places = {
        "the build": made.store.partial(node.stage.name, node.label, node.key),
        "the input": upstream,
        "the store": made.store.root,
    }
    load = type(node.stage).load

    def removed(stage: object) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            shutil.rmtree(places[what])
            return load(stage)(*arguments)  # type: ignore[arg-type]

        return run

    monkeypatch.setattr(type(node.stage), "load", removed)
    with pytest.raises(UserError, match="was removed while"):
        made.ensure(node)
    monkeypatch.undo()
    assert whole_run(graph, tmp_path) == 8


SMALL = ("prune=random", "adapter=none", "evaluate=none")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.faults
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("moment", ["stage ", "build  model", "build  scores", "build  prune"])
def test_ctrl_c_ends_a_run_in_one_line_and_the_next_one_goes_on(world: World, moment: str, times: int) -> None:
    name = f"store-{moment.split()[-1]}-{times}"
    with world.start(*SMALL, store=name) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith(moment):
                break
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        said += process.stdout.read()
    assert process.returncode in (130, 0, -signal.SIGINT), said
    assert "Traceback" not in said, said
    if process.returncode == 130:
        assert said.count("stopped. What was finished is kept") == 1
    status, said = world.call(*SMALL, store=name)
    assert status == 0, said


@pytest.mark.faults
def test_a_pipe_that_is_closed_is_no_error(world: World) -> None:
    world.run(*SMALL)
    listed = subprocess.run(
        f"{sys.executable} -m pipeline.inspect --root {world.store.root} ls | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert listed.stdout.splitlines()[-1] == "0"
    assert listed.stderr == ""
