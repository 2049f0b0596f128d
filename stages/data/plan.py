"""The plan of the data stage: what the data group asks for, found before anything runs. No torch here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from stages.common.checks import require
from stages.common.choices import lookup
from stages.data.config import DataConfig
from stages.data.registry import DATASETS
from stages.stage import Planned


def planned(data: DataConfig, cache: Path, *, seed: int) -> Planned:
    """Return the data stage's config. A mixture's parts are data stages of their own (`mixture.parts_of`).

    Args:
        data: the options.
        cache: the directory in which downloads are kept.
        seed: the stage's own seed.

    Raises:
        UserError: the data set is unknown, an option is outside its range, or a file or name it gives can't be found.
    """
    dataset = lookup("data set", data.name, DATASETS)
    for option in ("validation_rows", "rows"):
        count = getattr(data, option, None)
        require(count is None or count >= 1, f"data.{option}", "at least 1", count)
    pinned, locations = dataset.pin(data, cache)
    label = re.sub(r"[^\w.+-]", "-", dataset.label(pinned))
    return Planned(label=label, config=dataclasses.replace(pinned, seed=seed), locations=locations)


def label(config: DataConfig) -> str:
    """Return the rows' name in reports."""
    return DATASETS[config.name].label(config)


def tasks(config: DataConfig) -> tuple[str, ...]:
    """Return the judged tasks whose train splits are among the rows. A mixture's parts are not looked into."""
    return DATASETS[config.name].tasks
