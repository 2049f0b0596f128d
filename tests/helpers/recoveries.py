"""Several short recoveries in one launch of workers, since each launch takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stages.recover.config import RecoverStageConfig
from stages.recover.stage import train_together
from stages.recover.workers import Workers
from stages.stage import JSON, Context


def train_each(
    configs: Mapping[str, RecoverStageConfig], inputs: Mapping[str, Path], context: Context, workers: Workers
) -> JSON:
    """Train by each config, in the directory of its name; returns what each training returns."""
    found = {}
    for name, config in configs.items():
        (context.output / name).mkdir(parents=True, exist_ok=True)
        found[name] = train_together(config, inputs, replace(context, output=context.output / name), workers)
    return found
