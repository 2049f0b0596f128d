"""Lookup of methods by name in plain dictionaries, with errors that name the nearest; and the options a stage takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from stages.errors import UserError

Method = TypeVar("Method")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the closest known name, or an empty string when none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def lookup(kind: str, name: str, methods: Mapping[str, Method]) -> Method:
    """Return `methods[name]`.

    Raises:
        UserError: `name` is unknown; the message lists the known names and the nearest one.
    """
    if name in methods:
        return methods[name]
    known = ", ".join(sorted(methods))
    raise UserError(f"unknown {kind} '{name}'{nearest(name, methods) or '.'} Known: {known}.")


def narrowed(kind: type[Method], options: Any) -> Method:
    """Return the dataclass `kind`, whose fields take their values from the wider dataclass `options`."""
    return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
