"""Lines for people: on the terminal and in a run's log, where names of any origin do nothing but show."""

from __future__ import annotations

import codecs
import logging
import sys

from stages.common.visible import visible


def say(text: str, *, end: str = "\n") -> None:
    """Print `text` on standard output."""
    print(visible(text), end=end, flush=True)


def complain(text: str) -> None:
    """Print `text` on standard error."""
    print(visible(text), file=sys.stderr, flush=True)


def any_text() -> None:
    """Let the terminal's streams take any text: UTF-8 where the locale is plain C, else escapes for what it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            plain = codecs.lookup(stream.encoding).name == "ascii"
            reconfigure(encoding="utf-8" if plain else None, errors="backslashreplace")


class Line(logging.Formatter):
    """The message of a record, visible."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return visible(super().format(record))


class LogFile(logging.FileHandler):
    """A run's log. A file that can't be written is told once, and the run goes on."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell that lines are lost, and why."""
        if not self.told:
            self.told = True
            complain(f"warning: the log {self.baseFilename} can't be written ({sys.exc_info()[1]}).")
