"""Kept for model cards of earlier versions, which say `from stages.adapted import Source`."""

from __future__ import annotations

from stages.adapters.loading import Source

__all__ = ["Source"]
