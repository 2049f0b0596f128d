"""The start and the end of a recovery's workers: all of them run, or none.

The process that was asked to recover computes nothing itself. It starts one process a worker. It passes on the leader's
log, and the signal that it gets itself. It ends all workers when one fails. Workers hear of signals from this process
alone, and end themselves when it is gone: a pipe connects them, and a pipe closes with the process at its other end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from stages.common.machine import Peak, note_worker
from stages.processes.failure import Failed, ended_outside
from stages.processes.start import check_devices, started, threads_each
from stages.recover.interruption import Signalled, deferred_signals, leave
from stages.recover.messages import Finished, Job, Point, Said, Work
from stages.recover.worker import do
from stages.recover.workers import SINGLE
from stages.stage import JSON, Context

LISTEN_SECONDS = 0.1
"""Longest time that a signal to this process waits until it is passed on."""
GRACE_SECONDS = 2.0
"""Time after a failure in which failures of other workers are still heard: the earliest is the cause, not the first
heard."""
REMEDY = "Lower runtime.workers or recover.micro_batch_tokens; the same command goes on from the last checkpoint."


def launched(work: Work, config: Any, inputs: Mapping[str, Path], context: Context) -> JSON:
    """Return the result of `work`, run here or on `context.workers` processes, of which the leader's result counts.

    Raises:
        UserError, Diverged: a worker raised it; a UserError also where a worker was killed from outside.
        RuntimeError: a worker raised anything else.
        SystemExit, KeyboardInterrupt: after SIGTERM or SIGINT, when all workers have left a checkpoint and ended.
    """
    if context.workers == 1:
        return work(config, inputs, context, SINGLE)
    check_devices(context.workers, context.device)
    # The workers meet at a store in this process, which outlives all of them. Port 0 takes any free port. Waiting here
    # would be for ever, since no worker has been started yet.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = threads_each(context.workers)
    # A job is pickled on its way to a worker, and the caller's `log` may be any function.
    silent = replace(context, log=_nothing)
    with deferred_signals() as signalled:
        # Filled one by one, so that workers are ended even if a later one does not start.
        running: list[_Worker] = []
        try:
            for rank in range(context.workers):
                running.append(_Worker(Job(work, config, inputs, silent, rank, store.port, threads)))
            return _supervised(running, context.log, signalled)
        finally:
            for worker in running:
                worker.end()


def _nothing(point: JSON) -> None:
    """Log nothing; unlike a lambda, this function can be sent to another process."""


class _Worker:
    """A worker's process, seen from outside."""

    def __init__(self, job: Job) -> None:
        self.rank = job.rank
        self.connection, theirs = Pipe()
        self.process = started(do, job, theirs)
        # The worker has its own copy. While one is open here, this end would never see that the worker has gone.
        theirs.close()

    def tell(self, number: int) -> None:
        # A worker that has just ended can't be told. `_supervised` meets its end by itself.
        with suppress(BrokenPipeError):
            self.connection.send(number)

    def end(self) -> None:
        self.connection.close()
        # SIGKILL, because workers ignore SIGTERM and SIGINT, and one that waits for a lost worker waits for ever.
        self.process.kill()
        self.process.join()


def _supervised(workers: Sequence[_Worker], log: Callable[[JSON], None], signalled: Signalled) -> JSON:
    """Listen to `workers` until all have ended; returns the result of the leader's work."""
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
            elif isinstance(message, Peak):
                note_worker(worker.rank, message)
            elif isinstance(message, Finished):
                finished = message
            elif isinstance(message, Failed):
                # One failure makes others: workers that waited for the failed one raise errors of their own.
                failures.append((message.at, message.error(worker.rank)))
                until = min(until, time.monotonic() + GRACE_SECONDS)
        if not told and (number := signalled()) is not None:
            told = True  # workers leave a checkpoint and end by themselves, so listening goes on
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
    """Return the failure of a worker that was ended from outside; None for a worker that ended normally."""
    worker.process.join()
    status = worker.process.exitcode
    if status == 0:
        return None
    return ended_outside(worker.rank, status, REMEDY)
