"""Starting the workers of a recovery, and ending them: all or none.

The process that was asked to recover runs nothing itself. It starts one process a worker, passes on what the leader
logs and the signal that it is sent itself, and ends all of them when one fails. Workers hear of signals from it alone,
and end themselves when it is gone: what connects them is a pipe that closes with whoever holds its other end.

They are forked from a process that has imported everything and computed nothing (multiprocessing's fork server), so the
trials of a search for a learning rate import torch once, not once a worker and trial.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from stages.errors import UserError
from stages.recover.config import RecoverStageConfig
from stages.recover.interruption import Signalled, deferred_signals, leave
from stages.recover.messages import Failed, Finished, Job, Point, Said, Work
from stages.recover.worker import do
from stages.recover.workers import SINGLE
from stages.stage import JSON, Context

LISTEN_SECONDS = 0.1
"""How long a signal to us may wait until it is passed on."""
GRACE_SECONDS = 2.0
"""How long after a failure others are listened to: the first one is the cause, wherever it was noticed first."""


def launched(work: Work, config: RecoverStageConfig, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Return what `work` returns, here or on the leader of `context.workers` processes.

    Raises:
        UserError, Diverged: a worker did; or it was killed from outside.
        RuntimeError: a worker raised anything else.
        SystemExit, KeyboardInterrupt: after SIGTERM or SIGINT, when all workers have left a checkpoint and ended.
    """
    if context.workers == 1:
        return work(config, inputs, context, SINGLE)
    if context.device != "cpu" and context.workers > torch.cuda.device_count():
        raise UserError(
            f"runtime.workers={context.workers}, but {torch.cuda.device_count()} GPUs are visible: each worker needs "
            "one. Lower it, or leave it out."
        )
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = max(torch.get_num_threads() // context.workers, 1)
    silent = replace(context, log=_nothing)
    with deferred_signals() as signalled:
        started: list[_Worker] = []
        try:
            for rank in range(context.workers):
                started.append(_Worker(Job(work, config, inputs, silent, rank, store.port, threads)))
            return _supervised(started, context.log, signalled)
        finally:
            for worker in started:
                worker.end()


def _nothing(point: JSON) -> None:
    """Log nothing; unlike a lambda it can be sent to another process."""


_processes = get_context("forkserver")
_processes.set_forkserver_preload(["stages.recover.stage", "stages.recover.worker", "accelerate", "peft"])


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide the script that runs: multiprocessing would run it again in each worker, which needs nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Worker:
    """A worker's process, seen from outside."""

    def __init__(self, job: Job) -> None:
        self.rank = job.rank
        self.connection, theirs = Pipe()
        self.process = _processes.Process(target=do, args=(job, theirs), daemon=True)
        with _nameless_main():
            self.process.start()
        theirs.close()

    def tell(self, number: int) -> None:
        with suppress(BrokenPipeError):
            self.connection.send(number)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _supervised(workers: Sequence[_Worker], log: Callable[[JSON], None], signalled: Signalled) -> JSON:
    """Listen to `workers` until all have ended; returns what the leader's work returned."""
    running = {worker.connection: worker for worker in workers}
    finished: Finished | None = None
    failures: list[tuple[float, Exception]] = []
    told, until = False, float("inf")
    while running and time.monotonic() < until:
        for connection in wait(list(running), LISTEN_SECONDS):
            worker = running[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                del running[worker.connection]
                message = _last_words(worker)
            if isinstance(message, Point):
                log(message.point)
            elif isinstance(message, Said):
                logging.getLogger(message.name).log(message.level, "%s", message.message)
            elif isinstance(message, Finished):
                finished = message
            elif isinstance(message, Failed):
                failures.append((message.at, message.error(worker.rank)))
                until = min(until, time.monotonic() + GRACE_SECONDS)
        if not told and (number := signalled()) is not None:
            told = True
            for worker in running.values():
                worker.tell(number)
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    if (number := signalled()) is not None:
        leave(number)
    if finished is None:
        raise RuntimeError("the workers ended without a result")
    return finished.summary


def _last_words(worker: _Worker) -> Failed | None:
    """Return what a worker that has ended without a word would have said, had it been able to."""
    worker.process.join()
    status = worker.process.exitcode
    if status == 0:
        return None
    return Failed(
        f"worker {worker.rank} was ended from outside (status {status}), as the system does when memory runs out. Lower"
        " runtime.workers or recover.micro_batch_tokens; the same command goes on from the last checkpoint.",
        at=0.0,  # whatever else failed did so because of this
        meant_for_users=True,
    )
