"""A process of its own that follows a curve with a tracker, as told line by line; W&B is one service a process.

`python -m helpers.follower SETTINGS`: SETTINGS is the tracker's configuration as JSON, with "limit" for the largest
file in bytes that the process may write, "names" to print each name whose address is asked for, and "prunes" for a
pruning beside the recovery. Each line of its input is a number of points: the curve is logged up to there.
The end of the input ends the run, and the line "fail" makes it fail.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from helpers.processes import same_imports
from pipeline.tracking import wandb_tracker
from pipeline.tracking.registry import open_tracker
from pipeline.tracking.tracker import Findings, Mode, Subject, Table, TrackerConfig, following

KEY = "0123456789abcdef" * 4
ID = KEY[:16]
SUBJECT = Subject(name="rora-r16-tiny", group="llmpruner-tiny-r0.50", key=KEY, configuration={"recover": {"rank": 16}})

PRUNED = Subject(name="llmpruner-tiny-r0.50", group=SUBJECT.group, key=KEY[::-1], configuration={})

FINDINGS = Findings(
    figures={"recovered": 0.26}, tables={"results": Table(["measure", "dense"], [["perplexity", 24.9]])}
)
FOUND = {"recover": FINDINGS, "prune": Findings(figures={"pruned": 0.5})}


def point(place: int) -> dict[str, float]:
    return {"tokens": 2048 * place, "loss": 5 - place / 100}


def points(count: int) -> list[dict[str, float]]:
    """Return the first points as W&B gets them."""
    return [{f"recover/{name}": value for name, value in point(place).items()} for place in range(count)]


def untracked() -> dict[str, str]:
    """Return an environment without what a tracker of this process has set in it: its service would be shared."""
    return {name: value for name, value in same_imports().items() if not name.startswith(("WANDB_", "TRACKIO_"))}


class Follower:
    """The process from the outside."""

    def __init__(self, environment: dict[str, str], **settings: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.follower", json.dumps(settings)],
            env=untracked() | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self, count: int) -> None:
        """Have the curve logged up to `count` points."""
        assert self.process.stdin
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def services(self) -> list[psutil.Process]:
        """Return the processes that the tracker has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, *, fails: bool = False) -> list[str]:
        """Have the run end, and return all lines that the process printed."""
        printed = self.process.communicate("fail\n" if fails else None, timeout=300)[0]
        assert self.process.returncode == 0, printed
        return printed.splitlines()


@contextmanager
def follower(environment: dict[str, str], **settings: Any) -> Iterator[Follower]:
    """Start a process, and leave none behind."""
    started = Follower(environment, **settings)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def _tell_names(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        sys.stderr.write(f"asks for the address of {arguments[0]}\n")


def main(settings: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    wandb_tracker.LIVE_SECONDS = 1
    wandb_tracker.FINISH_PATIENCE = settings.pop("finish_patience", wandb_tracker.FINISH_PATIENCE)
    wandb_tracker.FILE_PATIENCE = settings.pop("file_patience", wandb_tracker.FILE_PATIENCE)
    if limit := settings.pop("limit", None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if settings.pop("names", False):
        sys.addaudithook(_tell_names)
    subjects = {"recover": SUBJECT} | ({"prune": PRUNED} if settings.pop("prunes", False) else {})
    config = TrackerConfig(**(settings | {"mode": Mode(settings.get("mode", "offline"))}))
    logged = 0
    with suppress(ZeroDivisionError), following(open_tracker(config, subjects)) as tracker:
        for line in sys.stdin:
            if line == "fail\n":
                raise ZeroDivisionError
            for place in range(logged, int(line)):
                tracker.log(point(place))
            logged = int(line)
        tracker.conclude(FOUND.__getitem__)
        logged = -1
    print("the run went on" if logged < 0 else "the run failed")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
