"""Options of the functions on live models: the command line's names, defaults, types and errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.schema.config import Config, register
from pipeline.schema.overrides import check_arguments
from stages.common.choices import nearest
from stages.errors import UserError


def configured(choice: str, given: Mapping[str, Any]) -> Config:
    """Return the command line's configuration with `choice` and the values `given`.

    Args:
        choice: one option of a group, as in "prune=best".
        given: values by name. The values of a group, or of options within an option, are dictionaries.

    Raises:
        UserError: a name is unknown, or a value has another type.
    """
    register()
    check_arguments([choice])
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", overrides=[choice])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(composed, dict(given)))
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{where}{str(error).splitlines()[0]}") from None
    assert isinstance(config, Config)
    return config


def check_names(given: Mapping[str, Any], known: Any, where: str, without: Collection[str] = ()) -> None:
    """Check that every name in `given` is an option of `known`, also within options that have options.

    Args:
        given: the options given, by name.
        known: the dataclass of the options, with their defaults.
        where: names the options' owner in the error.
        without: names of `known` that can't be given.

    Raises:
        UserError: there is no such option. The message names the nearest one.
    """
    names = sorted({field.name for field in dataclasses.fields(known)} - set(without))
    for name, value in given.items():
        if name not in names:
            raise UserError(f"{where} has no option '{name}'{nearest(name, names) or '.'} Known: {', '.join(names)}.")
        inner = getattr(known, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            check_names(value, inner, f"{where}: {name}")
