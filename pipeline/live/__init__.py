"""Pruning, recovering and judging a model that is in memory: the stages' own code, without a store.

The names are loaded when they are asked for: importing this loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.live.evaluate import evaluate_model
    from pipeline.live.prune import prune_model
    from pipeline.live.recover import recover_model
    from pipeline.live.rows import load_rows

__all__ = ["evaluate_model", "load_rows", "prune_model", "recover_model"]

HOMES = {
    "evaluate_model": "pipeline.live.evaluate",
    "load_rows": "pipeline.live.rows",
    "prune_model": "pipeline.live.prune",
    "recover_model": "pipeline.live.recover",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module."""
    if name not in HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names beside what is loaded."""
    return sorted({*globals(), *__all__})
