"""Runs a recovery many times over, each in a forked child that a signal may strike: -m tests.recover.runs ROOT JSON.

The parent imports once and never computes, so that forking is safe and quick. JSON has {"settings": arguments of
`toy.config`, "strikes": {output: [[signal or null, step], …]}}, one strike a run; prints a JSON line a run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from stages.recover.stage import run
from stages.stage import JSON, Context
from tests.recover.toy import config


def recover(root: Path, output: Path, settings: dict[str, Any], strike: str | None, step: int) -> int:
    """Run the recovery; the signal strikes when the point of `step` is logged. Returns the exit status."""

    def log(point: JSON) -> None:
        if strike is not None and point["step"] == step:
            os.kill(os.getpid(), getattr(signal, strike))

    try:
        context = Context(output=output, checkpoint_seconds=0, log=log)
        run(config(**settings), {"model": root / "base", "data": root / "data"}, context)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def main(root: Path, plan: dict[str, Any]) -> None:
    """Make the runs of `plan`, one after another."""
    for name, strikes in plan["strikes"].items():
        output = root / name
        output.mkdir()
        for strike, step in strikes:
            child = os.fork()
            if child == 0:
                os._exit(recover(root, output, plan["settings"], strike, step))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            left = sorted(path.name for path in (output / "checkpoint").glob("*"))
            print(json.dumps({"output": name, "status": status, "checkpoints": left}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
