"""Runs a page's Python snippets, given on standard input, as they are written: small numbers are added to their calls.

`SMALL` and `MODEL_HERE` of the environment have the numbers, as overrides of the command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import yaml

import pipeline
from helpers.tiny import added


def small(group: str, without: str = "") -> dict[str, Any]:
    """Return the small numbers of a group as keyword arguments, options within options as dictionaries."""
    found: dict[str, Any] = {}
    for override in os.environ["SMALL"].split():
        name, _, value = override.partition("=")
        first, *path = name.split(".")
        if first == group and path[0] != without:
            inner = found
            for part in path[:-1]:
                inner = inner.setdefault(part, {})
            inner[path[-1]] = yaml.safe_load(value)
    return found


def tiny(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` of overrides with those that make it tiny."""
    return lambda *overrides, **more: function(*overrides, *added(overrides), **more)


if __name__ == "__main__":
    calibration = small("prune")["calibration"] | {"length": 64}
    smaller = {
        "run": tiny(pipeline.run),
        "plan": tiny(pipeline.plan),
        "load_rows": partial(pipeline.load_rows, **small("data")),
        "prune_model": partial(pipeline.prune_model, calibration=calibration),
        # The default's rank is more than the tiny model's layers can take.
        "recover_model": partial(pipeline.recover_model, adapter={"name": "best", "rank": 8}, **small("recover")),
        "evaluate_model": partial(pipeline.evaluate_model, **small("evaluate", without="cost")),
    }
    for name, function in smaller.items():
        setattr(pipeline, name, function)
    exec(compile(sys.stdin.read(), "a page", "exec"), {"__name__": "__main__"})
