"""The records of a check: where it runs, what it found, and how it ended. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from stages.stage import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the checks run, and at which size.

    Attributes:
        device: "cuda", or "cpu", where everything runs at toy size.
        full: whether whole 7B models are measured, instead of slices that are extrapolated.
    """

    device: str
    full: bool = False

    @property
    def toy(self) -> bool:
        """Whether everything is of toy size, so that a processor does it in seconds."""
        return self.device == "cpu"

    @property
    def dtype(self) -> str:
        """The precision of what is timed."""
        return "float32" if self.toy else "bfloat16"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        what: what was measured.
        value: the figures in words.
        wanted: the goal, where there is one.
    """

    what: str
    value: str
    wanted: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The findings of a check: numbers for the JSON file, lines for the table, and what is not as it has to be."""

    numbers: JSON
    rows: Sequence[Row]
    wrong: Sequence[str] = ()


Found = Mapping[str, JSON]
"""The numbers of the checks that have run, by the check's name."""


class Skipped(Exception):
    """The check has nothing to do on this device; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One subject that is measured or compared.

    Attributes:
        name: its name in the JSON file and for `--only`.
        function: "module:name" of what does the work, `(setting, found) -> Part`. It is imported in the process of the
            check, so a missing package costs the checks that need it, and raises `Skipped` where the device has nothing
            to measure.
        seconds: its time. A check that takes longer has failed: it is ended, and the next one goes on.
        full_seconds: the same with `Setting.full`, where that takes longer.
    """

    name: str
    function: str
    seconds: int = 60
    full_seconds: int | None = None

    def load(self) -> Callable[[Setting, Found], Part]:
        """Return the function, importing its module."""
        module, _, name = self.function.partition(":")
        run: Callable[[Setting, Found], Part] = getattr(import_module(module), name)
        return run

    def allowed(self, setting: Setting) -> int:
        """Return the seconds after which the check is ended. A toy has more, as the machine may have other work."""
        if setting.toy:
            return 10 * self.seconds
        return (self.full_seconds or self.seconds) if setting.full else self.seconds


DONE, FAILED, MISSING, SKIPPED, UNREACHED = "done", "failed", "could not run", "skipped", "not measured"
"""How a check ends. Exit status 1 follows from `FAILED` and `MISSING`; `UNREACHED` is for want of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a check ended, and what it found before."""

    name: str
    state: str
    seconds: float = 0.0
    reason: str = ""
    numbers: JSON = field(default_factory=dict)
    rows: Sequence[Row] = ()
