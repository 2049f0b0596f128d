"""Options of the functions on live models: the command line's names, defaults, types and errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.schema.compose import compose
from pipeline.schema.config import Config
from stages.common.choices import nearest
from stages.errors import UserError
from stages.prune.config import RENAMED

APART: dict[str, tuple[str, ...]] = {
    "prune": ("method", "offload"),
    "recover": ("tune", "tune_factors", "tune_tokens", "tune_seed"),
    "evaluate": ("dtype", "cost"),
    "data": ("name",),
}
"""By group, the options that a live model leaves nothing to decide for: it is in memory, and there is no store."""


def configured(choice: str, **given: Mapping[str, Any]) -> Config:
    """Return the command line's configuration with `choice` and options on top.

    Args:
        choice: one option of a group, as in "prune=best".
        given: by group, its options by name. Options of options are dictionaries.

    Raises:
        UserError: a name is unknown, or a value has another type.
    """
    plain = compose(choice)
    for group, options in given.items():
        _check_names(options, getattr(plain, group), group, without=APART.get(group, ()))
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(plain), given))
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{where}{str(error).splitlines()[0]}") from None
    assert isinstance(config, Config)
    return config


def _check_names(given: Mapping[str, Any], known: Any, where: str, without: Collection[str] = ()) -> None:
    """Raise a `UserError` unless `given` has only names of the dataclass `known`, and so on in options of options."""
    names = sorted({field.name for field in dataclasses.fields(known)} - set(without))
    for name, value in given.items():
        if f"{where}.{name}" in RENAMED:
            raise UserError(f"{where}.{name} has another name now: {RENAMED[f'{where}.{name}']}.")
        if name not in names:
            raise UserError(f"{where} has no option '{name}'{nearest(name, names) or '.'} Known: {', '.join(names)}.")
        inner = getattr(known, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            _check_names(value, inner, f"{where}.{name}")
