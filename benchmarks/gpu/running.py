"""Checks one after the other, each in a process of its own, so that no failure of one reaches another. No torch here.

A failed CUDA kernel spoils its whole process, and the memory that a process leaves behind would count for the next.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from benchmarks.gpu.check import (
    DONE,
    FAILED,
    MISSING,
    SKIPPED,
    UNREACHED,
    Check,
    Found,
    Outcome,
    Part,
    Setting,
    Skipped,
)
from benchmarks.workers import apart
from stages.stage import JSON

LIBRARIES = "benchmarks.gpu.libraries"
"""Imported once; the process of every check begins with what it has imported."""
QUOTED = 240
"""Characters of an error's message that are passed on. The check's log has all of it."""
OVER = "out of time"


def absent(device: str) -> str | None:
    """Return why there is no such device; None where there is one. For a process of its own, as it loads torch."""
    from benchmarks.gpu.machine import absent

    return absent(device)


def outcomes(checks: Sequence[Check], setting: Setting, *, ends: float, logs: Path) -> Iterator[Outcome]:
    """Yield how each of `checks` ended. None goes on after `ends`, a time of `time.monotonic`.

    What a check prints is in `logs`.
    """
    found = dict[str, JSON]()
    for check in checks:
        left = ends - time.monotonic()
        if left <= 0:
            yield Outcome(name=check.name, state=UNREACHED, reason=OVER)
            continue
        outcome = run_apart(check, setting, found, logs / f"{check.name}.log", left=left)
        found[check.name] = outcome.numbers
        yield outcome


def run_apart(check: Check, setting: Setting, found: Found, log: Path, *, left: float) -> Outcome:
    """Return how `check` ended in a process of its own, which writes to `log` and has `left` seconds at most."""
    begun, own = time.monotonic(), check.allowed(setting)
    state, reason = FAILED, f"ended after {own} s, the time that it has"
    if left < own:
        state, reason = UNREACHED, f"{OVER} after {left:.0f} s of it"
    try:
        outcome: Outcome = apart(LIBRARIES, ended, check, setting, found, log, seconds=min(own, left))
        return outcome
    except TimeoutError:
        pass
    except BrokenProcessPool:
        state, reason = FAILED, f"its process died: too little memory, or a library crashed ({log})"
    return Outcome(name=check.name, state=state, reason=reason, seconds=time.monotonic() - begun)


def ended(check: Check, setting: Setting, found: Found, log: Path) -> Outcome:
    """Return how `check` ended in this process. What it writes and says from now on goes to `log`."""
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if setting.toy:
        _one_thread()
    begun = time.monotonic()
    outcome: Callable[..., Outcome] = partial(Outcome, name=check.name)
    try:
        part = check.load()(setting, found)
    except Skipped as skipped:
        return outcome(state=SKIPPED, reason=str(skipped))
    except ModuleNotFoundError as error:
        return outcome(state=MISSING, reason=f"there is no package {error.name}")
    except Exception as error:  # of any kind: the other checks go on, and this one's line says what it was
        traceback.print_exc()
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:QUOTED]} ({log})"
        return outcome(state=FAILED, reason=said, seconds=time.monotonic() - begun)
    return _judged(part, partial(outcome, seconds=time.monotonic() - begun))


def _judged(part: Part, outcome: Callable[..., Outcome]) -> Outcome:
    # Through JSON and back: the next checks read what the file will have.
    numbers = json.loads(json.dumps(part.numbers))
    state = FAILED if part.wrong else DONE
    return outcome(state=state, reason="; ".join(part.wrong), numbers=numbers, rows=list(part.rows))


def _one_thread() -> None:
    """Let toys run on one thread. Several would only wait for each other, for long where other work has the cores."""
    import torch

    torch.set_num_threads(1)
