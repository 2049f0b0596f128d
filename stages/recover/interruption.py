"""A question that the training loop asks between micro-batches: has SIGTERM (pre-emption) or SIGINT (Ctrl-C) come?"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

Signalled = Callable[[], int | None]
"""A function that returns the number of the signal that has come, or None."""
Signals = tuple[signal.Signals, ...]
DEFERRED: Signals = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def deferred_signals() -> Iterator[Signalled]:
    """Hold back the first SIGTERM or SIGINT; yields a function that returns the signal's number once it has come.

    A second signal acts as it would have without this. Outside the main thread nothing is held back, because only the
    main thread may handle signals.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    previous = {number: signal.getsignal(number) for number in DEFERRED}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in DEFERRED:
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()


def leave(number: int) -> NoReturn:
    """End the process as the signal asked, but by an exception, so that files are closed and trackers finish."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)  # a shell's exit status for a process that a signal ended
