"""The header of a GGUF file, read with limits, before any library touches the file. No torch here.

A header's counts and lengths decide how much a reader allocates. Here each is compared with the bytes that are there
first. So a file that lies is one error, in the time and memory of an honest file of its size.
The format is ggml's docs/gguf.md: version 2 or 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from stages.common.checks import short
from stages.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values, and their forms for `struct`."""
TEXT, ARRAY = 8, 9
MOST_FIELDS, MOST_TENSORS, MOST_ITEMS, MOST_DIMENSIONS, MOST_SIZE = 10_000, 100_000, 10_000_000, 4, 2**31 - 1
MOST_ALIGNMENT = 1 << 20
BLOCKS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Types of tensors that can be dequantised: name, values of a block, and bytes of a block."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: its shape as Hugging Face has it ([rows, columns]), its type, and where its bytes are."""

    shape: tuple[int, ...]
    type: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says before its data."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Stored]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.fields["general.architecture"])

    def number(self, name: str) -> Any:
        """Return the architecture's field `name`; None where the file has none."""
        return self.fields.get(f"{self.architecture}.{name}")

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


class _Lie(Exception):
    """What is wrong with a file."""


def read_header(path: Path) -> Header:
    """Return the header of the GGUF file `path`.

    Raises:
        UserError: the file is no GGUF file, or its header contradicts its bytes.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, _Bytes(data))
    except (_Lie, ValueError) as lie:  # ValueError: an empty file can't be mapped
        raise UserError(f"{path} is no GGUF file that can be read: {lie}. Fetch it again.") from None


class _Bytes:
    """The bytes of a file, taken from the front. What is not there is never asked for."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.size = data, 0, len(data)

    def take(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes."""
        if count > self.size - self.at:
            raise _Lie(f"{what} needs {count:,} bytes at {self.at:,}, and the file has {self.size:,}")
        self.at += count
        return self.data[self.at - count : self.at]

    def values(self, form: str, what: str, count: int = 1) -> tuple[Any, ...]:
        """Return the next `count` numbers of a form."""
        return struct.unpack(f"<{count}{form}", self.take(count * struct.calcsize(f"<{form}"), what))

    def number(self, form: str, what: str) -> Any:
        """Return the next number of a form."""
        return self.values(form, what)[0]

    def text(self, what: str) -> str:
        """Return the next string."""
        given = self.take(self.number("Q", f"the length of {what}"), what)
        try:
            return given.decode("utf-8")
        except UnicodeDecodeError:
            raise _Lie(f"{what} is no UTF-8") from None


def _read(path: Path, data: _Bytes) -> Header:
    if data.take(4, "the magic number") != MAGIC:
        raise _Lie("it does not begin with GGUF")
    version = data.number("I", "the version")
    if version not in VERSIONS:
        raise _Lie(f"version {version} is none of {', '.join(map(str, VERSIONS))}")
    tensors, fields = data.values("Q", "the counts", 2)
    _at_most(tensors, MOST_TENSORS, "tensors")
    _at_most(fields, MOST_FIELDS, "fields")
    found = _unique(
        ((name := data.text("a field's name")), _value(data, f"field {short(name)}")) for _ in range(fields)
    )
    if not isinstance(found.get("general.architecture"), str):
        raise _Lie("it names no architecture (general.architecture)")
    parts = found.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise UserError(
            f"{path} is one of {parts:,} files that one model is split into. Join them by llama.cpp's own tool, and "
            "give the whole: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        )
    placed = _unique((data.text("a tensor's name"), _described(data)) for _ in range(tensors))
    return Header(path, found, _placed(placed, _start(found, data.at), data.size))


def _at_most(count: int, most: int, what: str) -> None:
    if count > most:
        raise _Lie(f"it tells of {count:,} {what}, and {most:,} is the most that is read")


def _unique(pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Lie(f"{short(name)} is there twice")
        found[name] = value
    return found


def _value(data: _Bytes, what: str) -> Any:
    kind = data.number("I", f"the type of {what}")
    if kind == TEXT:
        return data.text(what)
    if kind in SCALARS:
        return data.number(SCALARS[kind], what)
    if kind != ARRAY:
        raise _Lie(f"{what} is of the unknown type {kind}")
    inner, count = data.number("I", f"the type of {what}"), data.number("Q", f"the length of {what}")
    _at_most(count, MOST_ITEMS, f"items in {what}")
    if inner == TEXT:
        return [data.text(what) for _ in range(count)]
    if inner not in SCALARS:
        raise _Lie(f"{what} is a list of the type {inner}, which is not read")
    return list(data.values(SCALARS[inner], what, count))


def _described(data: _Bytes) -> tuple[tuple[int, ...], int, int]:
    """Return a tensor's shape, type and offset."""
    dimensions = data.number("I", "a tensor's dimensions")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise _Lie(f"a tensor has {dimensions} dimensions")
    # GGUF lists the columns first.
    shape = tuple(reversed(data.values("Q", "a tensor's shape", dimensions)))
    return shape, data.number("I", "a tensor's type"), data.number("Q", "a tensor's offset")


def _start(fields: dict[str, Any], end: int) -> int:
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise _Lie(f"general.alignment is {short(alignment)}, which is no power of two up to {MOST_ALIGNMENT:,}")
    return (end + alignment - 1) // alignment * alignment


def _placed(tensors: dict[str, tuple[tuple[int, ...], int, int]], start: int, size: int) -> dict[str, Stored]:
    """Return the tensors with their places, all of them inside the file and none inside another."""
    found = {}
    for name, (shape, kind, offset) in tensors.items():
        if kind not in BLOCKS:
            raise _Lie(f"tensor {short(name)} is of the unknown type {kind}")
        called, block, block_bytes = BLOCKS[kind]
        if not all(1 <= length <= MOST_SIZE for length in shape) or shape[-1] % block:
            raise _Lie(f"tensor {short(name)} has the shape {list(shape)}, impossible for {called}")
        needed = prod(shape) // block * block_bytes
        if start + offset + needed > size:
            raise _Lie(f"tensor {short(name)} ends at {start + offset + needed:,}, and the file has {size:,} bytes")
        found[name] = Stored(shape, called, start + offset, needed)
    end = start
    for name, tensor in sorted(found.items(), key=lambda item: item[1].start):
        if tensor.start < end:
            raise _Lie(f"tensor {short(name)} lies inside another")
        end = tensor.start + tensor.size
    return found
