"""How a command ends: with its exit status, and where it failed with one line that says what to do."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.console.lines import any_text, complain
from pipeline.engine.disk import explain_disk_error
from stages.common.checks import short
from stages.common.visible import one_line
from stages.errors import UserError

STOPPED = "stopped. What was finished is kept: the same command goes on from there."
WRONG, FAULT, INTERRUPTED = 1, 2, 130
"""Exit statuses: an error that the user can mend, a fault of this project, and Ctrl-C."""
TRACE = "trace.txt"


def status_of(work: Callable[[], int | None]) -> int:
    """Return the exit status of the command `work`. Whatever it ends in is told in one line."""
    try:
        any_text()
        check_locale()
        return work() or 0
    except UserError as error:
        complain(f"error: {error}")
        return WRONG
    except KeyboardInterrupt:
        complain(STOPPED)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would fail again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        explained = explain_disk_error(error, "this command ran")
        complain(fault(error) if explained is None else f"error: {explained}")
        return FAULT if explained is None else WRONG


def check_locale() -> None:
    """Check that paths and words of the command line are text.

    Raises:
        UserError: the locale, or a name, is not UTF-8, so the names could neither be shown nor be written into a file.
    """
    for text in (*sys.argv, os.getcwd()):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"'{text}' is no text in UTF-8 (the locale has {sys.getfilesystemencoding()}). "
                "Set LC_ALL=C.UTF-8 and leave PYTHONUTF8 out, or use names of plain letters."
            ) from None


def fault(error: BaseException, directory: Path | None = None) -> str:
    """Return the line that tells of an error nobody foresaw, after writing its trace.

    The trace goes into `directory`, or where that can't be written into the system's directory for temporary files.
    """
    what = short(one_line(f"{type(error).__name__}: {error}"), 300)
    where = _written(f"{shlex.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}", directory)
    return f"error: {what}. This is a fault of this program, not a mistake of yours. The full trace is in {where}"


def _written(trace: str, directory: Path | None) -> Path | str:
    """Return the file that now holds the trace."""
    with suppress(OSError):
        if directory is not None:
            (directory / TRACE).write_text(trace, encoding="utf-8", errors="backslashreplace")
            return directory / TRACE
    try:
        descriptor, name = tempfile.mkstemp(prefix="prune-recover-", suffix=f"-{TRACE}")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(trace)
    except OSError:
        complain(trace)
        return "the lines above: no file could be written"
    return name
