"""The identity of an artifact: the SHA-256 of what decides it, and of nothing else.

Key = SHA-256 of canonical JSON of {key schema, stage, stage version, typed config, {input: upstream key}}.
Paths, device, workers and tracker never enter a key. Source code does not enter: a stage's version is bumped by hand.
A value that can't be encoded without doubt raises an error and gets no key.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import math
from collections.abc import Mapping
from typing import Any

from stages.common.later import counted

SCHEMA = 1
"""Raised by one when the encoding below changes, which gives every artifact a new key."""


def canonical(value: Any, where: str = "config") -> Any:
    """Return `value` as JSON types only: a dataclass becomes {"field": …}, an enum its name.

    An option that came later is left out at its default, which is what was done before (`stages.common.later`).

    Raises:
        TypeError: the type's meaning is not its JSON (paths, sets, tensors, functions, …).
        ValueError: NaN or infinity.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: canonical(item, f"{where}.{name}") for name, item in counted(value).items()}
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which has no place in a key")
        return value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}; only strings can be keys")
        return {name: canonical(item, f"{where}.{name}") for name, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which cannot enter a key")


def payload(stage: str, version: int, config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return what the key is the hash of: the stage, its version, its config and its inputs' keys, as JSON types."""
    return {
        "schema": SCHEMA,
        "stage": stage,
        "version": version,
        "config": canonical(config),
        "inputs": {name: inputs[name] for name in sorted(inputs)},
    }


def derive_seed(seed: int, stage: str) -> int:
    """Return the seed of one stage, in [0, 2**31). A cache hit never shifts another stage's random numbers."""
    # Python's own hash of a string differs between processes.
    return int(hashlib.sha256(f"{seed}/{stage}".encode()).hexdigest()[:8], 16) % 2**31


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as {"a.b.c": leaf}; lists are leaves."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= flatten(item, f"{prefix}.{name}" if prefix else name)
    return flat


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {"dotted.field": (our value, their value)} for every field in which two payloads differ."""
    left, right = flatten(ours), flatten(theirs)
    return {
        name: (left.get(name), right.get(name))
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name) or (name in left) != (name in right)
    }
