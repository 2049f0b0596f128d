"""The process of one worker; `.launch` starts it and tells it of signals."""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from stages.common.determinism import ordered_sums
from stages.common.machine import peak
from stages.processes.failure import as_failure, send
from stages.recover.interruption import DEFERRED
from stages.recover.messages import Finished, Job, Point, Said
from stages.recover.workers import ENGINE


class _Passed(logging.Handler):
    """A handler that passes log records on to the process that started this one, where the user has set up logging."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        send(self._connection, Said(record.name, record.levelno, record.getMessage()))


def do(job: Job, connection: Connection) -> None:
    """Do the job and send points, log, result or failure through `connection`."""
    os.setsid()  # a terminal's Ctrl-C would reach this process too, and `.launch` passes signals on
    for number in DEFERRED:
        signal.signal(number, signal.SIG_IGN)
    told: list[int] = []
    threading.Thread(target=_listen, args=(connection, told), daemon=True).start()
    try:
        _work(job, connection, lambda: told[0] if told else None)
    except (SystemExit, KeyboardInterrupt):  # the orderly end that the signal asked for, of all workers together
        pass
    except BaseException as error:
        send(connection, as_failure(error, traceback.format_exc()))


def _listen(connection: Connection, told: list[int]) -> None:
    """Add each signal that arrives to `told`; end the process when the process that started it is gone."""
    while True:
        try:
            told.append(connection.recv())
        except (EOFError, OSError):
            os._exit(1)  # `sys.exit` would end this thread alone


def _work(job: Job, connection: Connection, told: Callable[[], int | None]) -> None:
    context = job.context
    torch.set_num_threads(job.threads)
    if job.rank > 0:
        logging.disable()  # every worker would log the same
    else:
        logging.basicConfig(level=logging.INFO, handlers=[_Passed(connection)])
        context = replace(context, log=lambda point: send(connection, Point(point)))
    _join(job)
    with ordered_sums(context.deterministic):
        summary = job.work(job.config, job.inputs, context, ENGINE[context.engine](job.rank, context.workers, told))
    send(connection, peak())
    if job.rank == 0:
        send(connection, Finished(summary))
    torch.distributed.barrier()


def _join(job: Job) -> None:
    """Enter the process group: gloo on processors and for objects that are no tensors, NCCL between GPUs."""
    count, gpus = job.context.workers, job.context.device != "cpu"
    if gpus:
        torch.cuda.set_device(job.rank)
    store = TCPStore("127.0.0.1", job.port, is_master=False)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=job.rank, world_size=count)
