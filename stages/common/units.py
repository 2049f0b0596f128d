"""Units of memory, and how its parts are told. No torch here: a plan reads this."""

from __future__ import annotations

from collections.abc import Mapping

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The bytes of a number, by its precision."""


def in_gib(parts: Mapping[str, int]) -> str:
    """Return the parts that are not empty in GiB, from bytes by name."""
    return ", ".join(f"{size / GIB:.1f} {name}" for name, size in parts.items() if size)
