"""What the processes of a crew answer in tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from stages.errors import UserError


def begin(factor: int) -> Callable[[int], tuple[int, int]]:
    """Return a function that multiplies, and says in which process; 13 is an error, and 0 the end of the process."""

    def answer(question: int) -> tuple[int, int]:
        if question == 13:
            raise UserError("13 brings no luck. Ask for another number.")
        if question == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return factor * question, os.getpid()

    return answer
