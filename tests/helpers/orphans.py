"""Starts two idle workers, prints their process ids and is killed: -m helpers.orphans."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from stages.adapters.config import AdapterConfig
from stages.recover.config import RecoverConfig, RecoverStageConfig
from stages.recover.launch import launched
from stages.recover.workers import Workers
from stages.stage import JSON, Context


def idle(config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context, workers: Workers) -> JSON:
    """Say which processes there are, then do nothing for longer than anybody waits."""
    context.log({"ids": workers.on_each(os.getpid)})
    time.sleep(600)
    return {}


def killed(point: JSON) -> None:
    """Print the ids and die without a chance to tidy up."""
    print(json.dumps(point["ids"]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from helpers.orphans import idle as work  # by the name under which workers find it

    config = RecoverStageConfig(adapter=AdapterConfig(), recover=RecoverConfig(), dtype="float32", seed=0)
    launched(work, config, {}, Context(output=Path(), workers=2, engine="ddp", log=killed))
