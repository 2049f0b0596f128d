"""Configurations as the command line makes them."""

from __future__ import annotations

import pipeline
from helpers.plain import plain
from pipeline.planning.build import build_graph
from pipeline.planning.preview import preview
from pipeline.schema.config import Config


def configuration(*overrides: str) -> Config:
    """Return the configuration that a command line describes, on top of `PLAIN`."""
    return pipeline.compose(*plain(overrides), *overrides)


def planned(*overrides: str) -> Config:
    """Return the configuration after everything that is checked before a run starts."""
    config = configuration(*overrides)
    preview(config, build_graph(config), None)
    return config
