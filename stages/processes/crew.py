"""Processes that answer questions which do not depend on each other, each with a copy of what answers them.

Whoever is free gets the next question, and answers come back in the order of the questions. So the answers do not
depend on the number of processes. A process ends when the one that started it is gone: a pipe connects them.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch

from stages.common.machine import Peak, note_worker, peak
from stages.common.progress import silence
from stages.processes.failure import Failed, as_failure, ended_outside, send
from stages.processes.start import check_devices, started, threads_each

Begin = Callable[..., Callable[[Any], Any]]
"""Returns the function that answers a question. It runs once in each process, on that process's device."""
REMEDY = "Lower runtime.workers; the same command goes on from what is answered."


class Crew:
    """Several processes, from entering a `with` block to leaving it.

    Raises:
        UserError: there are fewer GPUs than processes.
    """

    def __init__(self, count: int, device: str, begin: Begin, *arguments: Any) -> None:
        check_devices(count, device)
        self._members = [_Member(rank, device, threads_each(count), begin, arguments) for rank in range(count)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for member in self._members:
            member.end()

    def answers(self, questions: Sequence[Any]) -> Iterator[Any]:
        """Yield the answer to each question, in their order.

        Raises:
            UserError: a process raised it, or was ended from outside.
            RuntimeError: a process raised anything else.
        """
        waiting = iter(enumerate(questions))
        found: dict[int, Any] = {}
        asked = {member.connection: member for member in self._members if member.ask(next(waiting, None))}
        for place in range(len(questions)):
            while place not in found:
                for connection in wait(list(asked)):
                    member = asked.pop(connection)  # type: ignore[call-overload]
                    found[member.place] = member.answer()
                    if member.ask(next(waiting, None)):
                        asked[member.connection] = member
            yield found.pop(place)


@dataclass(frozen=True, slots=True)
class _Answered:
    """The answer to a question, and the most memory that the process has held so far."""

    value: Any
    peak: Peak


class _Member:
    """One process of a crew, seen from outside."""

    def __init__(self, rank: int, device: str, threads: int, begin: Begin, arguments: tuple[Any, ...]) -> None:
        self.rank, self.place = rank, -1
        self.connection, theirs = Pipe()
        self._process = started(_serve, rank, device, threads, begin, arguments, theirs)
        # The process has its own copy. While one is open here, this end would never see that the process has gone.
        theirs.close()

    def ask(self, question: tuple[int, Any] | None) -> bool:
        """Send a question with its place; returns whether there was one."""
        if question is None:
            return False
        self.place = question[0]
        send(self.connection, question[1])
        return True

    def answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            answer = ended_outside(self.rank, self._process.exitcode, REMEDY)
        if isinstance(answer, Failed):
            raise answer.error(self.rank)
        note_worker(self.rank, answer.peak)
        return answer.value

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(
    rank: int, device: str, threads: int, begin: Begin, arguments: tuple[Any, ...], connection: Connection
) -> None:
    """Answer questions until the process that asks closes the connection or is gone."""
    os.setsid()  # a terminal's Ctrl-C would reach this process too
    torch.set_num_threads(threads)
    silence()
    if device != "cpu":
        torch.cuda.set_device(rank)
    if rank > 0:
        logging.disable()  # every process would log the same
    try:
        answer = begin(*arguments)
        while True:
            # With each answer, because a process is ended without a word when nothing is left to ask.
            connection.send(_Answered(answer(connection.recv()), peak()))
    except (EOFError, OSError):
        return
    except Exception as error:
        send(connection, as_failure(error, traceback.format_exc()))
