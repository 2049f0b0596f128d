"""Progress of long work: one bar on standard error, with rate and time left."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown, notes = is_progress_bar_enabled(), logging.getLogger("huggingface_hub.serialization._torch")
    level = notes.level
    disable_progress_bar()
    notes.setLevel(logging.WARNING)
    try:
        yield
    finally:
        notes.setLevel(level)
        if shown:
            enable_progress_bar()
