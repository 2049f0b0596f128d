"""The options that a file of `conf` writes, read without Hydra. No torch here."""

from __future__ import annotations

import copy
from functools import cache
from importlib import resources
from typing import Any

import yaml


def written(group: str, option: str) -> dict[str, Any]:
    """Return the values that `conf/GROUP/OPTION.yaml` sets, as they are written there, without its defaults list."""
    return copy.deepcopy(_read(group, option))


@cache
def _read(group: str, option: str) -> dict[str, Any]:
    text = (resources.files("conf") / group / f"{option}.yaml").read_text(encoding="utf-8")
    return {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
