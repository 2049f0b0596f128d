"""Runs a recovery many times over, each in a forked child that a signal may strike: -m helpers.runs ROOT JSON.

The parent imports once and never computes, so that forking is safe and quick. JSON has {"settings": arguments of
`toy.config`, "seconds": {output: between checkpoints, unless 0}, "strikes": {output: [[signal, what, count] or null,
…]}}, one strike a run; prints a JSON line a run. A strike falls when `what` happens for the `count`th time:

    point      the point of that step is logged
    forward    a module of the model, or all of it, has been run: in the middle of a micro-batch
    file       a file or directory is about to be opened, made, renamed or removed in the output
    any other  the same of one that has this in its path
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.models.utils  # noqa: F401  imported late by what is run: here once, not in every child
from torch.nn.modules.module import register_module_forward_hook

import stages.adapters.fused
import stages.recover.loss  # noqa: F401
from helpers.toy import config
from stages.recover.stage import run
from stages.stage import JSON, Context

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
Strike = tuple[str, str, int]


def recover(root: Path, output: Path, settings: dict[str, Any], strike: Strike | None, seconds: float) -> int:
    """Run the recovery, checkpointing every so many `seconds`; returns the exit status."""
    log: Callable[[JSON], None] = lambda point: None  # noqa: E731
    if strike is not None:
        log = _prepare(strike, output)
    try:
        context = Context(output=output, checkpoint_seconds=seconds, log=log, cache=root / "cache")
        run(config(**settings), {"model": root / "base", "data": root / "data"}, context)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def _prepare(strike: Strike, output: Path) -> Callable[[JSON], None]:
    """Arm this process; returns what is to be called with the points of the curve."""
    name, what, count = strike
    left = count

    def fall() -> None:
        os.kill(os.getpid(), getattr(signal, name))

    def happened() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            fall()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        inside = event in CHANGES or (event == "open" and path.startswith(str(output)))
        if inside and (what == "file" or what in path):
            happened()

    if what == "forward":
        register_module_forward_hook(lambda *_: happened())
    elif what != "point":
        sys.addaudithook(audit)
    return lambda point: fall() if what == "point" and point["step"] == count else None


def in_child(work: Callable[[], int]) -> int:
    """Return the exit status of `work` in a forked child, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(root: Path, plan: dict[str, Any]) -> None:
    """Make the runs of `plan`, one after another."""
    for name, strikes in plan["strikes"].items():
        output = root / name
        output.mkdir()
        for strike in strikes:
            seconds = plan["seconds"].get(name, 0)
            status = in_child(partial(recover, root, output, plan["settings"], strike, seconds))
            left = sorted(path.name for path in (output / "checkpoint").glob("*"))
            print(json.dumps({"output": name, "status": status, "checkpoints": left}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
