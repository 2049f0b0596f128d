"""Kept for the model cards that earlier versions wrote: they say `from stages.adapted import Source`."""

from __future__ import annotations

from stages.adapters.loading import Source

__all__ = ["Source"]
