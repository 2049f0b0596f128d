"""Progress of long work: one bar on standard error, with rate and time left.

The bar says where other work takes the cores from this process, because that is why it is slow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from stages.common.cores import time_on_cores
from stages.common.visible import visible

EVERY = 10.0
"""Seconds over which a bar looks at what its process waited for."""
MUCH = 0.2
"""The share of its time that a process waits for a core, from which the machine is called shared."""
SHARED = "other work shares the cores"

_silent = False


def silence() -> None:
    """Show no bar from now on. A process whose work another one shows the progress of calls this."""
    global _silent
    _silent = True


def progress(
    description: str, *, total: int | None, unit: str, initial: int = 0, scale: bool = False, silent: bool = False
) -> tqdm[Any]:
    """Return a progress bar. `scale` prints large numbers (bytes, tokens) as k, M, G; `silent` shows nothing."""
    return _Bar(
        desc=visible(description),
        disable=silent or _silent,
        total=total,
        unit=unit,
        initial=initial,
        unit_scale=scale,
        dynamic_ncols=True,
        mininterval=0.5,
        leave=False,
    )


class _Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs alone
    """A bar that says so where its process has to wait for a core."""

    looked, ran, waited = 0.0, 0, 0
    shared = False

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the bar, with what else it says after its own words."""
        self._look()
        own = self.postfix
        if self.shared:
            self.postfix = f"{own}, {SHARED}" if own else SHARED
        super().display(msg, pos)
        self.postfix = own

    def _look(self) -> None:
        now = time.monotonic()
        if now - self.looked < EVERY or (found := time_on_cores()) is None:
            return
        ran, waited = found[0] - self.ran, found[1] - self.waited
        self.shared = self.looked > 0 and waited > MUCH * (ran + waited)
        self.looked, self.ran, self.waited = now, *found


@contextmanager
def others_quiet() -> Iterator[None]:
    """Show no bar of transformers and no note of huggingface_hub for a while.

    Loading and saving takes seconds, and stages show what takes long.
    """
    from huggingface_hub.serialization import _torch as writer
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        # Asked for its name, which is the path of the file and not the module's.
        with hushed(writer.logger.name, logging.WARNING):
            yield
    finally:
        if shown:
            enable_progress_bar()


@contextmanager
def hushed(logger: str, level: int) -> Iterator[None]:
    """Let a logger of another library say nothing below `level` for a while."""
    other = logging.getLogger(logger)
    before = other.level
    other.setLevel(level)
    try:
        yield
    finally:
        other.setLevel(before)


@contextmanager
def barless(*modules: Any) -> Iterator[None]:
    """Let modules of other libraries that show bars of tqdm show none for a while."""

    def plain(items: Iterable[Any], **_: Any) -> Iterable[Any]:
        return items

    bars = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = plain
    try:
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
