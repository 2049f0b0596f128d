"""The plan of the data stage: what the data group asks for, found before anything runs. No torch here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from stages.common.checks import require
from stages.common.choices import lookup
from stages.common.machine import precision
from stages.data.config import AskingConfig, DataConfig, Part
from stages.data.registry import DATASETS
from stages.stage import Planned


def planned(data: DataConfig, cache: Path, *, device: str, seed: int) -> Planned:
    """Return the data stage's config. Other data sets whose rows it takes are data stages of their own (`parts`).

    Args:
        data: the options.
        cache: the directory in which downloads are kept.
        device: where the model runs that is asked, if one is.
        seed: the stage's own seed.

    Raises:
        UserError: the data set is unknown, an option is outside its range, or a file or name it gives can't be found.
    """
    dataset = lookup("data set", data.name, DATASETS)
    for option in ("validation_rows", "rows"):
        count = getattr(data, option, None)
        require(count is None or count >= 1, f"data.{option}", "at least 1", count)
    pinned, locations = dataset.pin(data, cache)
    if isinstance(pinned, AskingConfig):
        pinned = dataclasses.replace(pinned, dtype=precision("data.dtype", pinned.dtype, device))
    label = re.sub(r"[^\w.+-]", "-", dataset.label(pinned))
    return Planned(label=label, config=dataclasses.replace(pinned, seed=seed), locations=locations)


def parts(data: DataConfig) -> dict[str, Part]:
    """Return the other data sets whose rows `data` takes, by the names of the inputs that they are.

    Raises:
        UserError: an option that names them is not as it should be.
    """
    return DATASETS[data.name].parts(data)


def asks_model(data: DataConfig) -> bool:
    """Return whether the dense model is an input of the stage."""
    return isinstance(data, AskingConfig)


def label(config: DataConfig) -> str:
    """Return the rows' name in reports."""
    return DATASETS[config.name].label(config)


def tasks(config: DataConfig) -> tuple[str, ...]:
    """Return the judged tasks whose train splits are among the rows. Parts are not looked into."""
    return DATASETS[config.name].tasks


def resembles(config: DataConfig) -> tuple[str, ...]:
    """Return the kinds of held-out text whose like the rows are. A mixture's parts are not looked into."""
    return DATASETS[config.name].resembles


def has_prompts(config: DataConfig) -> bool:
    """Return whether the rows have prompts. A mixture's parts are not looked into."""
    return DATASETS[config.name].prompts
