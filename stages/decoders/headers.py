"""Headers of safetensors files: the tensors in a file, known without reading them. No torch here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from stages.errors import UserError

INDEX = "model.safetensors.index.json"
"""The file that says which tensor is in which file, where there are several files."""
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names of floating-point types in a header, and torch's names for them."""

Header = Mapping[str, Mapping[str, Any]]
"""{tensor: {"dtype", "shape", "data_offsets"}}"""


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return {tensor: {"dtype", "shape", "data_offsets"}} from a safetensors file.

    Raises:
        UserError: the file is not in the format, or is truncated.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            # The file begins with the header's length in 8 bytes, then the header as JSON, then the tensors.
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length <= size - 8 else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file, or is truncated ({size} bytes). Fetch it again.")
    header.pop("__metadata__", None)
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise UserError(f"{path} is truncated: {size} of {expected} bytes. Fetch it again.")
    return header


def numbers_by_precision(headers: Iterable[Header]) -> Counter[str]:
    """Return how many numbers are stored in each precision, by torch's name for it where there is one."""
    count: Counter[str] = Counter()
    for header in headers:
        for entry in header.values():
            stored: str = entry["dtype"]
            count[PRECISIONS.get(stored, stored)] += prod(entry["shape"])
    return count
