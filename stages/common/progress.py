"""Progress of long work: one bar on standard error, with rate and time left."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_silent = False


def silence() -> None:
    """Show no bar from now on. A process whose work another one shows the progress of calls this."""
    global _silent
    _silent = True


def progress(
    description: str, *, total: int | None, unit: str, initial: int = 0, scale: bool = False, silent: bool = False
) -> tqdm[Any]:
    """Return a progress bar. `scale` prints large numbers (bytes, tokens) as k, M, G; `silent` shows nothing."""
    return tqdm(
        desc=description,
        disable=silent or _silent,
        total=total,
        unit=unit,
        initial=initial,
        unit_scale=scale,
        dynamic_ncols=True,
        mininterval=0.5,
        leave=False,
    )


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
