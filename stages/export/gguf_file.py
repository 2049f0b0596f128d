"""A GGUF file written to disk: the header, then one tensor at a time. It gets its final path only when whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from stages.common.progress import progress
from stages.export.tensors import Entry


def write_gguf(path: Path, architecture: str, fields: Mapping[str, Any], entries: Sequence[Entry]) -> int:
    """Write `path` with the header's `fields` and the tensors, and return its size in bytes.

    One tensor at a time is in memory.

    Raises:
        OSError: no space is left, among others. Nothing is then left at `path`.
    """
    beside = path.with_name(f".{path.name}.tmp")
    needed = sum(entry.nbytes for entry in entries)
    # Asked first: a full disk would otherwise show only after most of the file is written.
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    writer = gguf.GGUFWriter(beside, architecture)
    try:
        for name, value in fields.items():
            _add(writer, name, value)
        for entry in entries:
            writer.add_tensor_info(
                entry.name, entry.weight.shape, np.dtype(np.float32), entry.nbytes, raw_dtype=entry.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress(f"writing {path.name}", total=needed, unit="B", scale=True) as bar:
            for entry in entries:
                _write(writer, entry, path)
                bar.update(entry.nbytes)
        writer.close()
        os.replace(beside, path)
    finally:
        writer.close()
        beside.unlink(missing_ok=True)
    return path.stat().st_size


def _write(writer: gguf.GGUFWriter, entry: Entry, path: Path) -> None:
    try:
        writer.write_tensor_data(entry.data())
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy's error has no number: it says only how many items were written.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    """Add one field in the type in which llama.cpp reads it."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, list(value))
