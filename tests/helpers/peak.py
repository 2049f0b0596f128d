"""How much memory a piece of work takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.common.machine import resident_bytes, return_freed_memory

MARK = Path("/proc/self/clear_refs")
has_mark = pytest.mark.skipif(not MARK.exists(), reason="the system has no high-water mark to reset")


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes the process holds during `work` above what it held before."""
    gc.collect()
    return_freed_memory()
    before = resident_bytes("VmRSS") or 0
    MARK.write_text("5", encoding="ascii")
    work()
    return (resident_bytes("VmHWM") or 0) - before
