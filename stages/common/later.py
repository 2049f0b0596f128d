"""Options that came after artifacts had been made: at their defaults they change no key and no record.

Such an option's default is what was done before the option was there. So at its default it decides nothing that the
options before it do not decide, and artifacts without it stay valid.
"""

from __future__ import annotations

import dataclasses
from typing import Any

LATER = {"later": True}
"""The `metadata` of such a field."""


def counted(options: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with their values, without later ones at their defaults."""
    values = {field: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {
        field.name: value
        for field, value in values.items()
        if not (field.metadata.get("later") and value == field.default)
    }


def recorded(value: Any) -> Any:
    """Return `dataclasses.asdict` of a dataclass, and of those in it, without later fields at their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: recorded(item) for name, item in counted(value).items()}
    return value
