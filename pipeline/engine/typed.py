"""The options of an artifact as its stage takes them, read back from the JSON that its manifest keeps."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pipeline.planning import keys
from stages.adapters.config import AdapterConfig
from stages.adapters.registry import ADAPTERS
from stages.data.config import DataConfig
from stages.data.registry import DATASETS
from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.registry import METHODS
from stages.registry import STAGES
from stages.stage import Stage

CATALOGUES: tuple[tuple[type, str, Mapping[str, Any]], ...] = (
    (DataConfig, "name", DATASETS),
    (PruneConfig, "method", METHODS),
    (AdapterConfig, "name", ADAPTERS),
)
"""Options of which there are several kinds: their common class, and the field that names the kind in a catalogue."""


def stage_and_config(payload: Mapping[str, Any]) -> tuple[Stage, Any]:
    """Return the stage that built an artifact with this `payload`, and its options.

    Raises:
        UserError: today's code would not build the artifact: the stage has another version, or other options.
    """
    name, version = payload["stage"], payload["version"]
    stage = STAGES.get(name)
    if stage is None or stage.version != version:
        now = "there is no such stage" if stage is None else f"version {stage.version} is installed"
        raise UserError(f"it was built by version {version} of the stage {name}, and {now}. Check out that version.")
    run: Any = inspect.unwrap(stage.load())
    # Of the other arguments some modules name the types for a checker alone.
    kind = run.__globals__[run.__annotations__["config"]]
    try:
        config = _typed(kind, payload["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the options of this {name} are not those of today's code ({error}).") from None
    if keys.payload(name, version, config, payload["inputs"]) != payload:
        raise UserError(f"the options of this {name} are read back as others: they have changed since it was built.")
    return stage, config


def _typed(kind: Any, value: Any) -> Any:
    """Return a JSON value as a value of a type: dataclasses, enumerations and containers of them are made again."""
    if value is None or kind is Any:
        return value
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _typed(next(part for part in parts if part is not types.NoneType), value)
    if origin in (list, tuple):
        return origin(_typed(parts[0], item) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return {name: _typed(parts[1], item) for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        kind = _kind(kind, value)
        hints = typing.get_type_hints(kind)
        return kind(**{name: _typed(hints[name], item) for name, item in value.items()})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[value]
    return value


def _kind(kind: type, value: Mapping[str, Any]) -> Any:
    """Return the class of these options: the one that its catalogue has under their name, where there is one."""
    for base, field, catalogue in CATALOGUES:
        if issubclass(kind, base):
            return catalogue[value[field]].config
    return kind
