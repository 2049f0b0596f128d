"""Kills builds of single artifacts, each in a forked child, and lets each be built again: -m helpers.killed JSON.

The parent imports once and never computes, so that forking is safe and quick. JSON has {"arguments": overrides, "role":
of the artifact, "files": how many kills at file operations, "times": how many at random times, "full" and "read_only":
how often the disk is full, or can't be written, from a random operation on, "seed": of the draws}. Prints a JSON line a
trial. The first kills fall at the points where most is at stake: the first and the last file
operation of the build, the writing of the manifest, and each rename around the commit.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers.configurations import configuration
from pipeline.engine.engine import Engine
from pipeline.engine.store import Store
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Graph, Node
from pipeline.planning.settled import cache_directory
from stages.errors import UserError

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
"""Operations after which a directory of the store is another; opening may write."""


Watch = Callable[[str, str, bool], None]
"""Called with each operation on the store: its name, its path, and whether it writes."""


def build(config: Any, graph: Graph, role: str, watch: Watch | None) -> int:
    """Build one artifact."""
    store = Store.at(config.runtime.artifact_root)
    if watch is not None:

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            path = str(arguments[0]) if arguments else ""
            if event in CHANGES and path.startswith(str(store.root)):
                watch(event, path, writes(event, arguments))

        sys.addaudithook(audit)
    engine = Engine(graph, store, cache=cache_directory(config), force=[], threads=1, checkpoint_seconds=0)
    engine.ensure(graph.roles[role])
    return 0


def writes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether a disk that is full or read-only refuses an operation."""
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.mkdir", "os.rename")


def killed_at(count: int) -> Watch:
    """Return what kills this process at the `count`th operation."""
    left = count

    def watch(event: str, path: str, written: bool) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


def refused_from(count: int, number: int) -> Watch:
    """Return what refuses every write from the `count`th operation on, with the system's error `number`."""
    left = count

    def watch(event: str, path: str, written: bool) -> None:
        nonlocal left
        left -= 1
        if left <= 0 and written:
            raise OSError(number, os.strerror(number), path)

    return watch


def in_child(work: Callable[[], int], seconds: float | None = None) -> int:
    """Return the exit status of `work` in a forked child, negative for the signal that ended it.

    After `seconds` the child is killed.
    """
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted(work: Callable[[Watch], int], note: Path) -> list[list[str]]:
    """Return the operations of an undisturbed build, in their order."""

    def child() -> int:
        found: list[list[str]] = []
        status = work(lambda event, path, written: found.append([event, path]))
        note.write_text(json.dumps(found))
        return status

    assert in_child(child) == 0
    return list(json.loads(note.read_text()))


def chosen(operations: list[list[str]]) -> list[int]:
    """Return the numbers of the operations where most is at stake, counted from 1."""
    at_stake = [n for n, (event, path) in enumerate(operations, 1) if event == "os.rename" or "manifest.json" in path]
    return sorted({1, len(operations), *at_stake})


def strikes(
    operations: list[list[str]], seconds: float, plan: dict[str, Any]
) -> Iterator[tuple[Any, Watch | None, float | None]]:
    """Yield (what happens and where, what makes it happen, or after how many seconds the build is killed)."""
    draw = random.Random(plan["seed"])
    points = chosen(operations)
    points = points if len(points) <= plan["files"] // 2 else sorted(draw.sample(points, plan["files"] // 2))
    points += [draw.randint(1, len(operations)) for _ in range(plan["files"] - len(points))]
    yield from ((["kill", point, *operations[point - 1]], killed_at(point), None) for point in points)
    for after in (draw.uniform(0, seconds) for _ in range(plan["times"])):
        yield ["kill", after], None, after
    for name, number in (("full", errno.ENOSPC), ("read_only", errno.EROFS)):
        for point in (draw.randint(1, len(operations)) for _ in range(plan.get(name, 0))):
            yield [name, point, *operations[point - 1]], refused_from(point, number), None


def main(plan: dict[str, Any]) -> None:
    """Make the kills of `plan`. Each begins without the artifact and without its unfinished build."""
    config = configuration(*plan["arguments"])
    graph, role = build_graph(config), plan["role"]
    node, store = graph.roles[role], Store.at(config.runtime.artifact_root)
    node.stage.load()
    if "recover" in graph.roles:
        import lm_eval.models.utils  # noqa: F401  imported late by what is run: here once, not in every child
    final = store.directory(node.stage.name, node.label, node.key)
    whole = _digest(store, node)
    _remove(store, node)
    started = time.perf_counter()
    operations = counted(lambda watch: build(config, graph, role, watch), store.root.parent / "operations.json")
    seconds = time.perf_counter() - started
    for what, watch, after in strikes(operations, seconds, plan):
        _remove(store, node)
        status = in_child(lambda watch=watch: build(config, graph, role, watch), after)  # type: ignore[misc]
        left = sorted(path.name for path in final.parent.iterdir() if node.key[:16] in path.name)
        again = in_child(lambda: build(config, graph, role, None))
        found = _digest(Store(store.root), node)
        others = [one.name for one in Store(store.root).artifacts() if Store(store.root).changed(one)]
        print(
            json.dumps(
                {
                    "what": what,
                    "status": status,
                    "left": left,
                    "again": again,
                    "same": found == whole,
                    "whole": found is not None and not others,
                }
            ),
            flush=True,
        )


def _digest(store: Store, node: Node) -> str | None:
    path = store.directory(node.stage.name, node.label, node.key)
    return next((one.digest for one in store.artifacts(node.stage.name) if one.path == path), None)


def _remove(store: Store, node: Node) -> None:
    for path in (store.root / node.stage.name).glob(f"*-{node.key[:16]}*"):
        shutil.rmtree(path)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
