"""Headers of safetensors files: the tensors in a file, known without reading them. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from stages.common.files import parse_json
from stages.errors import UserError

INDEX = "model.safetensors.index.json"
"""The file that says which tensor is in which file, where there are several files."""
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names of floating-point types in a header, and torch's names for them."""

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""The bytes of a number, for the types that models are stored in."""
MOST_BYTES = 100_000_000
"""Bytes that a header has at most, by the format."""

Header = Mapping[str, Mapping[str, Any]]
"""{tensor: {"dtype", "shape", "data_offsets"}}"""


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return {tensor: {"dtype", "shape", "data_offsets"}} from a safetensors file.

    Raises:
        UserError: the file is not in the format, or is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        # The file begins with the header's length in 8 bytes, then the header as JSON, then the tensors.
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if 0 < length <= min(size - 8, MOST_BYTES) else b""
    header = parse_json(text, f"the header of {path}") if text else None
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file, or is truncated ({size} bytes). Fetch it again.")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if problem := _problem(entry):
            raise UserError(f"{path} is not a safetensors file: tensor {name!r} has {problem}. Fetch it again.")
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise UserError(f"{path} is truncated: {size} of {expected} bytes. Fetch it again.")
    return header


def _problem(entry: Any) -> str:
    """Return what is wrong with a tensor's entry in a header; empty where nothing is."""
    if not isinstance(entry, dict):
        return "no entry with dtype, shape and data_offsets"
    dtype, shape, offsets = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        return "no dtype"
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        return f"the shape {shape!r}"
    places = offsets if isinstance(offsets, list) and all(type(place) is int for place in offsets) else []
    if len(places) != 2 or not 0 <= places[0] <= places[1]:
        return f"the data_offsets {offsets!r}"
    size = places[1] - places[0]
    if dtype in BYTES and prod(shape) * BYTES[dtype] != size:
        return f"{size} bytes for {dtype} of the shape {shape!r}"
    return ""


def numbers_by_precision(headers: Iterable[Header]) -> Counter[str]:
    """Return how many numbers are stored in each precision, by torch's name for it where there is one."""
    count: Counter[str] = Counter()
    for header in headers:
        for entry in header.values():
            stored: str = entry["dtype"]
            count[PRECISIONS.get(stored, stored)] += prod(entry["shape"])
    return count
